"""The packaged model: small, offline, GPT-2's vocabulary, trained on code."""

import itertools
import json

import pytest
import regex
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from benchmarks.train_sample_model import END_OF_TEXT, bits_per_byte
from ivr_dagster.sample import SAMPLE_MODEL
from ivr_dagster.sample.stdlib_source import is_heldout, read_stdlib, strip_docstrings

# GPT-2's pattern and byte alphabet, from the source code published by OpenAI
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _byte_alphabet() -> dict[int, str]:
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merge_by_rank(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Reference byte-level BPE: merges the lowest-ranked pair in each pre-token until no merge applies."""
    alphabet, ids = _byte_alphabet(), []
    for pretoken in regex.findall(_PATTERN, text):
        word = [alphabet[byte] for byte in pretoken.encode()]
        while len(word) > 1:
            rank, place = min((ranks.get((a, b), 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(word)))
            if rank == 1 << 30:
                break
            word[place : place + 2] = [word[place] + word[place + 1]]
        ids += [vocabulary[token] for token in word]
    return ids


def test_model_loads_offline_in_float32_with_tied_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoModelForCausalLM.from_pretrained(SAMPLE_MODEL)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == 50257
    assert model.config.eos_token_id == model.config.bos_token_id == END_OF_TEXT


@pytest.mark.parametrize(
    "text",
    [
        "Hello world",
        "def read(self, size=-1):\n    return self._buffer[:size]\n\n\n",
        "It's 3.14 and they'll  see\ttabs \r\n",
        "한국어 형태소 분석기는 '조사'를 나눕니다.",
        "naïve café — “quotes” 🙂 ===============",
        "",
    ],
)
def test_tokenizer_gives_the_ids_of_the_reference_bpe(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_MODEL, local_files_only=True)
    model = json.loads((SAMPLE_MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    ids = tokenizer(text)["input_ids"]
    assert ids == _merge_by_rank(text, model["vocab"], ranks)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_tokenizer_is_fast_and_matches_gpt2() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_MODEL, local_files_only=True)
    assert tokenizer.is_fast and len(tokenizer) == 50257
    assert tokenizer("Hello, world!")["input_ids"] == [15496, 11, 995, 0]  # known ids of GPT-2
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == END_OF_TEXT
    assert tokenizer("a<|endoftext|>b")["input_ids"] == [64, END_OF_TEXT, 65]
    assert tokenizer.decode([64, END_OF_TEXT], skip_special_tokens=True) == "a"


def test_heldout_code_costs_at_most_two_bits_per_byte() -> None:
    model = GPT2LMHeadModel.from_pretrained(SAMPLE_MODEL, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(SAMPLE_MODEL / "tokenizer.json"))
    heldout = [strip_docstrings(file.text) for file in read_stdlib(select=is_heldout)]
    # the longest files are ordinary code in every Python version; a short one may be a table, which costs twice as much
    pieces = [text[:6_000] for text in sorted(heldout, key=len)[-3:]]
    assert bits_per_byte(model, tokenizer, pieces) <= 2.0
