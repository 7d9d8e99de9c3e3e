"""Fast encoders compared with tokenizers, and sequences in Parquet."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gigatoken
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from ivr_dagster.core.tokens import sequences
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens, encode_types, token_frequencies
from ivr_dagster.core.tokens.pretokens import PreTokenization
from ivr_dagster.core.tokens.sequences import (
    Encoder,
    SequencesWriter,
    TokenSequences,
    gigatoken_encoder,
    id_dtype,
    ids_of_types,
    pretoken_encoder,
    reference_encoder,
)

TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cn"])) | st.sampled_from(["<|endoftext|>", " the", "====", "'ll"])
).map("".join)


def assert_same(ids: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [(i.dtype, i.tolist()) for i in ids] == [(e.dtype, e.tolist()) for e in expected]


@pytest.fixture(scope="module")
def gpt2_pretoken(gpt2: Tokenizer, topics_counts: PretokenCounts) -> Encoder:
    return pretoken_encoder(gpt2, topics_counts.types)


def test_pretoken_encoder_gives_the_ids_of_tokenizers(
    gpt2: Tokenizer, gpt2_pretoken: Encoder, topics: list[str]
) -> None:
    texts = [*topics, "", "<|endoftext|>", "a<|endoftext|> b"]
    assert_same(gpt2_pretoken(texts), reference_encoder(gpt2)(texts))


@given(st.lists(TEXT, max_size=6))
def test_pretoken_encoder_is_exact_on_any_texts(gpt2: Tokenizer, gpt2_pretoken: Encoder, texts: list[str]) -> None:
    assert_same(gpt2_pretoken(texts), reference_encoder(gpt2)(texts))


def test_pretoken_encoder_encodes_unknown_types(gpt2: Tokenizer) -> None:
    texts = ["known words", "known strange words", "", "known"]
    encode = pretoken_encoder(gpt2, ["known", " words"])
    assert_same(encode(texts), reference_encoder(gpt2)(texts))


def test_pretoken_encoder_detects_a_wrong_split(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def every_character(self: PreTokenization, tokenizer: Tokenizer) -> Callable[[list[str]], pl.Series]:
        return lambda texts: pl.Series([list(text) for text in texts], dtype=pl.List(pl.String))

    monkeypatch.setattr(PreTokenization, "column_splitter", every_character)
    texts = ["the words", "the", "of the words"]
    assert_same(pretoken_encoder(gpt2, sorted(set("the words of")))(texts), reference_encoder(gpt2)(texts))


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, dict[str, dict[str, int]]]], None]) -> Tokenizer:
    spec = json.loads(tokenizer.to_str())
    change(spec)
    return Tokenizer.from_str(json.dumps(spec))


def test_pretoken_encoder_is_exact_if_ids_are_not_in_merge_order(tiny_bpe: Tokenizer, topics: list[str]) -> None:

    def reverse(spec: dict[str, dict[str, dict[str, int]]]) -> None:
        vocabulary = spec["model"]["vocab"]
        spec["model"]["vocab"] = {string: len(vocabulary) - 1 - i for string, i in vocabulary.items()}

    tokenizer = changed(tiny_bpe, reverse)
    encode = pretoken_encoder(tokenizer, count_pretokens(topics[:5], tokenizer).types)
    assert_same(encode(topics[:5]), reference_encoder(tokenizer)(topics[:5]))


def test_pretoken_encoder_drops_bytes_missing_in_the_vocabulary(train_bpe: Callable[..., Tokenizer]) -> None:
    tokenizer = train_bpe(["banana bandana"], 5, alphabet=sorted(CHARACTER_TO_BYTE.keys() - {"d"}))
    encode = pretoken_encoder(tokenizer, ["banana", " bandana"])
    assert_same(encode(["d bandana"]), reference_encoder(tokenizer)(["d bandana"]))


def test_pretoken_encoder_leaves_normalizing_tokenizers_to_tokenizers(tiny_bpe: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.normalizer = normalizers.NFC()
    assert_same(pretoken_encoder(tokenizer, ["e"])(["e\u0301"]), reference_encoder(tokenizer)(["é"]))


@pytest.mark.parametrize("way", [lambda tokenizer: pretoken_encoder(tokenizer, [" is"]), gigatoken_encoder])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_encoders_leave_context_dependent_added_tokens_to_tokenizers(
    tiny_bpe: Tokenizer, flag: str, way: Callable[[Tokenizer], Encoder]
) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.add_tokens([AddedToken("mask", normalized=False, **{flag: True})])
    texts = ["the  mask  is", "unmasked"]
    for each in texts:
        assert_same(way(tokenizer)([each]), reference_encoder(tokenizer)([each]))
    assert_same(way(tokenizer)(texts), reference_encoder(tokenizer)(texts))


def test_pretoken_encoder_accepts_a_vocabulary_with_strings_outside_the_alphabet(tiny_bpe: Tokenizer) -> None:
    def add(spec: dict[str, dict[str, dict[str, int]]]) -> None:
        spec["model"]["vocab"]["▁odd"] = len(spec["model"]["vocab"]) + 1

    tokenizer = changed(tiny_bpe, add)
    assert_same(pretoken_encoder(tokenizer, ["odd"])(["▁odd one"]), reference_encoder(tokenizer)(["▁odd one"]))


def test_id_dtype_is_uint16_if_ids_fit() -> None:
    assert id_dtype(50_257) is np.uint16
    assert id_dtype(65_536) is np.uint16
    assert id_dtype(65_537) is np.uint32


def write(target: Path, documents: list[tuple[str, str]], encode: Encoder, tokenizer: Tokenizer) -> np.ndarray:
    with SequencesWriter(
        target / f"part-{len(list(target.iterdir())):05d}.parquet", tokenizer.get_vocab_size()
    ) as file:
        for n in range(0, len(documents), 7):
            ids, texts = zip(*documents[n : n + 7], strict=True)
            file.write(list(ids), encode(list(texts)))
    return file.frequencies


def digest_of(target: Path, documents: list[tuple[str, list[int]]], at_once: int, size: int = 300) -> str:
    with SequencesWriter(target, size) as file:
        for n in range(0, len(documents), at_once):
            ids, sequences = zip(*documents[n : n + at_once], strict=True)
            file.write(list(ids), [np.array(sequence, id_dtype(size)) for sequence in sequences])
    return file.digest()


def test_digest_depends_on_documents_and_ids_but_not_on_row_groups(tmp_path: Path) -> None:
    documents = [("a", [1, 2]), ("b", [3]), ("c", []), ("d", [4, 5, 6])]
    digest = digest_of(tmp_path / "x", documents, 4)
    assert digest == digest_of(tmp_path / "x", documents, 3) == digest_of(tmp_path / "x", documents, 1)
    others = [
        [("a", [1]), ("b", [2, 3]), *documents[2:]],
        [("a", [1, 2]), ("bc", [3]), ("", []), documents[3]],
        [documents[1], documents[0], *documents[2:]],
        [*documents[:3], ("d", [4, 5, 7])],
        documents[:3],
    ]
    assert len({digest, *(digest_of(tmp_path / "x", other, 2) for other in others)}) == 1 + len(others)


def test_sequences_round_trip_through_parquet(
    tmp_path: Path, gpt2: Tokenizer, gpt2_pretoken: Encoder, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", *topics[:40], "", "", "the end"]
    documents = [(f"document {n}", text) for n, text in enumerate(texts)]
    frequencies = sum(write(tmp_path, part, gpt2_pretoken, gpt2) for part in (documents[:30], documents[30:]))
    monkeypatch.setattr(sequences, "DOCUMENTS_PER_READ", 3)
    expected = reference_encoder(gpt2)(texts)
    stored = TokenSequences(tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert np.sum(frequencies) == sum(map(len, expected))
    assert [document for document, _ in stored.documents()] == [document for document, _ in documents]
    assert_same([ids for _, ids in stored.documents()], expected)
    assert_same(list(stored), expected)
    assert expected[0].dtype == np.uint16


def test_frequencies_of_sequences_equal_those_of_the_counts(
    tmp_path: Path, gpt2: Tokenizer, gpt2_pretoken: Encoder, topics: list[str], topics_counts: PretokenCounts
) -> None:
    counted = write(tmp_path, [(str(n), text) for n, text in enumerate(topics)], gpt2_pretoken, gpt2)
    np.testing.assert_array_equal(counted, TokenSequences(tmp_path).frequencies(gpt2.get_vocab_size()))
    np.testing.assert_array_equal(counted, token_frequencies(topics_counts, gpt2))


def test_empty_folder_has_no_sequences(tmp_path: Path) -> None:
    assert list(TokenSequences(tmp_path)) == []
    assert TokenSequences(tmp_path).frequencies(3).tolist() == [0, 0, 0]


def test_empty_documents_have_no_ids(tmp_path: Path, tiny_bpe: Tokenizer) -> None:
    assert not write(tmp_path, [("a", ""), ("b", "")], reference_encoder(tiny_bpe), tiny_bpe).any()
    assert [(d, i.tolist()) for d, i in TokenSequences(tmp_path).documents()] == [("a", []), ("b", [])]


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_llama3_pattern(tokenizer: Tokenizer) -> Tokenizer:
    changed = Tokenizer.from_str(tokenizer.to_str())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    changed.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), whole])
    return changed


@pytest.fixture(scope="module")
def gpt2_gigatoken(gpt2: Tokenizer) -> Encoder:
    encode = gigatoken_encoder(gpt2)
    assert encode is not None
    return encode


@given(st.lists(TEXT, max_size=6))
def test_gigatoken_encoder_gives_the_ids_of_tokenizers(
    gpt2: Tokenizer, gpt2_gigatoken: Encoder, texts: list[str]
) -> None:
    assert_same(gpt2_gigatoken(texts), reference_encoder(gpt2)(texts))


def test_gigatoken_encoder_supports_other_patterns(gpt2: Tokenizer, topics: list[str]) -> None:
    tokenizer = with_llama3_pattern(gpt2)
    encode = gigatoken_encoder(tokenizer)
    assert encode is not None
    texts = [*topics, "한국어 12345 \r\n\n  x", "<|endoftext|>a"]
    assert_same(encode(texts), reference_encoder(tokenizer)(texts))


def test_gigatoken_encoder_is_none_for_an_unsupported_pattern(gpt2: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(gpt2.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), gpt2.pre_tokenizer]
    )
    assert gigatoken_encoder(tokenizer) is None


def test_gigatoken_encoder_reloads_to_clear_its_cache(
    gpt2: Tokenizer, topics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = gigatoken.Tokenizer.from_json
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda text: loaded.append(text) or load(text))
    monkeypatch.setattr(sequences, "CACHED_CHARACTERS", 50_000)
    encode = gigatoken_encoder(gpt2)
    assert encode is not None
    for text in topics:
        assert_same(encode([text]), reference_encoder(gpt2)([text]))
    assert len(loaded) == pytest.approx(sum(map(len, topics)) / 50_000, rel=0.5)


def test_verified_encoder_falls_back_to_tokenizers(gpt2: Tokenizer, topics: list[str]) -> None:
    wrong = sequences._verified(lambda texts: [np.zeros(1, np.uint16) for _ in texts], reference_encoder(gpt2))
    assert_same(wrong(topics[:3]), reference_encoder(gpt2)(topics[:3]))


def test_ids_of_types_equal_those_of_tokenizers(gpt2: Tokenizer, topics_counts: PretokenCounts) -> None:
    types = [*topics_counts.types, "\n\n", "한국어", " é"]
    found = ids_of_types(gpt2, types)
    assert found is not None
    ids, starts = found
    assert [ids[start:end].tolist() for start, end in pairwise(starts)] == encode_types(gpt2, types)
    np.testing.assert_array_equal(
        token_frequencies(topics_counts, gpt2, ids_of_types(gpt2, topics_counts.types)),
        token_frequencies(topics_counts, gpt2),
    )


def test_ids_of_types_is_none_if_a_type_contains_an_added_token(gpt2: Tokenizer) -> None:
    assert ids_of_types(gpt2, ["a", "<|endoftext|>"]) is None
    tokenizer = Tokenizer.from_str(gpt2.to_str())
    tokenizer.add_tokens([AddedToken("mask")])
    assert ids_of_types(tokenizer, ["a", "b"]) is not None
    assert ids_of_types(tokenizer, ["a", "unmasked"]) is None


def test_ids_of_types_is_none_without_a_separating_added_token(gpt2: Tokenizer) -> None:
    specification = json.loads(gpt2.to_str())
    specification["added_tokens"] = []
    assert ids_of_types(Tokenizer.from_str(json.dumps(specification)), ["a", "b"]) is None


def test_ids_of_types_is_none_if_gigatoken_differs_from_tokenizers(
    gpt2: Tokenizer, tiny_bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = gigatoken.Tokenizer.from_json(tiny_bpe.to_str())
    monkeypatch.setattr(sequences, "_load_gigatoken", lambda tokenizer: other)
    assert ids_of_types(gpt2, [" statement", " the"]) is None
