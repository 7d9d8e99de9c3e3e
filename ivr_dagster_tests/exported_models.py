"""Small models to export, tokenizers after vocabulary surgery, and lines of text to encode with them."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from ivr_dagster.core.tokenizer.bpe import read_bpe
from ivr_dagster.core.tokenizer.folder import BASE_TOKENIZER, BPE_TOKENIZER
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster_tests.small_pipeline import END, train_bpe

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_PATTERN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
LLAMA3_PATTERN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_REPOSITORY = Path(__file__).parents[1]
_SYLLABLES = range(0xAC00, 0xD7A4)
_MIXED = (
    *("🙂", "😂", "🚀", "👍🏽", "👩\u200d👩\u200d👧\u200d👦", "🇰🇷", "1️⃣", "❤️", "🏳️\u200d🌈", "☕", "𝒳", "𐍈"),
    *"éñßøžΩЖکשहไあア中文한ㅋ½Ⅷ٣…“”—€",
)


def lines_of_five_kinds(count: int = 1_000) -> list[str]:
    """Lines of English, Korean, code, numbers with spaces and runs, and mixed Unicode: `count` lines in total."""
    each, chosen = count // 5, random.Random(0)
    english = [line for _, text in sorted(topics.items()) for line in text.splitlines() if len(line) > 30][:each]
    readme = (_REPOSITORY / "README.ko.md").read_text(encoding="utf-8").splitlines()
    korean = [line for line in readme if any(ord(character) in _SYLLABLES for character in line)][:each]
    while len(korean) < each:
        words = ("".join(chr(chosen.choice(_SYLLABLES)) for _ in range(chosen.randint(1, 5))) for _ in range(9))
        korean.append(" ".join(words))
    source = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in source if line][:each]
    numbers = [_numbers(chosen) for _ in range(each)]
    mixed = ["".join(chosen.choices([*_MIXED, " ", "  ", "a", "B", "don't", "."], k=25)) for _ in range(each)]
    return [*english, *korean, *code, *numbers, *mixed]


def _numbers(chosen: random.Random) -> str:
    parts = (
        *(str(chosen.randrange(10**length)) for length in (1, 3, 4, 9)),
        f"{chosen.random():.4f}",
        " " * chosen.randint(1, 9),
        "\t" * chosen.randint(1, 3),
        chosen.choice("=-_#*.(") * chosen.randint(1, 40),
        "1,000,000",
        "0x1F",
        "\n\n",
        " \n ",
    )
    return "".join(chosen.choices(parts, k=10))


def reassign_leaves(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> Tokenizer:
    """A BPE whose last leaf merges gave their ids to frequent pairs of tokens; everything else is as before.

    A leaf is a token that is no part of another token's merge. New merges come last, so the order of ids is no longer
    the order of merges.
    """
    bpe = read_bpe(tokenizer)
    specification = json.loads(tokenizer.to_str())
    merges: list[list[str]] = specification["model"]["merges"]
    pairs: Counter[tuple[int, int]] = Counter()
    pre_tokenizer: Any = tokenizer.pre_tokenizer
    for text in texts:
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            pairs.update(pairwise(token.id for token in tokenizer.model.tokenize(piece)))
    new: list[tuple[str, str]] = []
    for (left, right), _ in pairs.most_common():
        halves = (bpe.strings[left], bpe.strings[right])
        if "".join(halves) not in bpe.ids and "".join(halves) not in map("".join, new) and len(new) < count:
            new.append(halves)
    parts = {part for merge in merges for part in merge} | {half for halves in new for half in halves}
    leaves = [merge for merge in merges if "".join(merge) not in parts][-len(new) :]
    sacrificed = {"".join(merge): halves for merge, halves in zip(leaves, new, strict=True)}
    specification["model"]["merges"] = [merge for merge in merges if "".join(merge) not in sacrificed]
    specification["model"]["merges"] += [list(halves) for halves in sacrificed.values()]
    specification["model"]["vocab"] = {
        "".join(sacrificed.get(string, (string,))): token_id
        for string, token_id in specification["model"]["vocab"].items()
    }
    return Tokenizer.from_str(json.dumps(specification))


def trained_tokenizer(kind: str, texts: Iterable[str], merges: int = 700) -> Tokenizer:
    """A BPE with the pre-tokenizer of a kind of model: `gpt2`, `llama` (Llama 3), `qwen2` or `qwen3`."""
    patterns = {"llama": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN, "qwen3": QWEN2_PATTERN}
    pre_tokenizer = None
    if kind in patterns:
        split = pre_tokenizers.Split(Regex(patterns[kind]), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer = train_bpe(texts, merges, alphabet=sorted(CHARACTER_TO_BYTE), pre_tokenizer=pre_tokenizer)
    if kind.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    if kind == "llama":
        tokenizer.model.ignore_merges = True
    return tokenizer


def write_random_model(folder: Path, kind: str, tokenizer: Tokenizer, **changed: Any) -> None:
    """Write an untrained two-layer model with more embedding rows than tokens, and its tokenizer.

    Grouped attention, head sizes and biases are such that a wrong layout of a tensor changes the logits.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    rows = tokenizer.get_vocab_size() + (0 if kind == "gpt2" else 7)
    end = tokenizer.token_to_id(END)
    values: dict[str, Any] = {"vocab_size": rows, "bos_token_id": end, "eos_token_id": end}
    if kind == "gpt2":
        values |= {"n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
    else:
        values |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        values |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
    if kind == "qwen3":
        values["head_dim"] = 32
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values | changed))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that matter, and logits far apart
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)


def add_bpe_form(folder: Path, base: Tokenizer, remapped: Tokenizer) -> None:
    """Add the context of a remapped tokenizer to a model's folder."""
    base.save(str(folder / BASE_TOKENIZER))
    remapped.save(str(folder / BPE_TOKENIZER))
