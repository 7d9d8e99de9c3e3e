"""Frequencies computed from pre-token counts, compared with encoding the texts."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.tokens.counts import (
    PretokenCounts,
    count_pretokens,
    counts_from_table,
    counts_table,
    encode_types,
    frequency_table,
    token_frequencies,
)

TEXTS = st.lists(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cn"])) | st.sampled_from(["<|endoftext|>", " the"])).map(
        "".join
    )
)


def frequencies_by_encoding(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
    return np.bincount(np.array(ids, np.int64), minlength=tokenizer.get_vocab_size(with_added_tokens=True))


def test_frequencies_equal_those_of_the_encoded_texts(
    topics: list[str], topics_counts: PretokenCounts, gpt2: Tokenizer
) -> None:
    frequencies = token_frequencies(topics_counts, gpt2)
    assert frequencies.dtype == np.int64
    np.testing.assert_array_equal(frequencies, frequencies_by_encoding(topics, gpt2))


@given(TEXTS)
def test_frequencies_are_exact_for_any_texts_with_added_tokens(tiny_bpe: Tokenizer, texts: list[str]) -> None:
    np.testing.assert_array_equal(
        token_frequencies(count_pretokens(texts, tiny_bpe), tiny_bpe), frequencies_by_encoding(texts, tiny_bpe)
    )


ODD_TEXTS = ["cafe\u0301 cre\u0300me <|endoftext|>", "12 345, 6", "<|endoftext|><|endoftext|> \u1100\u1161\u11a8"]


def normalize(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


def split_digits(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,2}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])


def split_with_gaps(tokenizer: Tokenizer) -> None:
    letters = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([letters, whole])


@pytest.mark.parametrize("change", [normalize, split_digits, split_with_gaps])
def test_frequencies_are_exact_for_any_pre_tokenizer(tiny_bpe: Tokenizer, change: Callable[[Tokenizer], None]) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    change(tokenizer)
    np.testing.assert_array_equal(
        token_frequencies(count_pretokens(ODD_TEXTS, tokenizer), tokenizer),
        frequencies_by_encoding(ODD_TEXTS, tokenizer),
    )


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_context_dependent_added_tokens_are_counted_as_encoded(tiny_bpe: Tokenizer, flag: str) -> None:
    tokenizer = Tokenizer.from_str(tiny_bpe.to_str())
    tokenizer.add_tokens([AddedToken("mask", normalized=False, **{flag: True})])
    texts = ["the  mask  is", "unmasked mask<|endoftext|>mask", "mask", "masks 한mask mask."]
    np.testing.assert_array_equal(
        token_frequencies(count_pretokens(texts, tokenizer), tokenizer), frequencies_by_encoding(texts, tokenizer)
    )


def test_bytes_missing_in_the_vocabulary_are_not_counted(train_bpe: Callable[..., Tokenizer]) -> None:
    tokenizer = train_bpe(["banana bandana"], 5, alphabet=sorted(CHARACTER_TO_BYTE.keys() - {"d"}))
    texts = ["banana bandana", "d"]
    frequencies = token_frequencies(count_pretokens(texts, tokenizer), tokenizer)
    np.testing.assert_array_equal(frequencies, frequencies_by_encoding(texts, tokenizer))


@given(TEXTS)
def test_counts_are_sorted_and_include_texts_and_bytes(tiny_bpe: Tokenizer, texts: list[str]) -> None:
    counts = count_pretokens(iter(texts), tiny_bpe)
    expected: Counter[str] = Counter()
    for text in texts:
        for part in text.split("<|endoftext|>"):
            expected.update(string for string, _ in tiny_bpe.pre_tokenizer.pre_tokenize_str(part))
    assert {string_of(piece): int(n) for piece, n in zip(counts.types, counts.counts, strict=True)} == expected
    order = list(zip(-counts.counts, counts.types, strict=True))
    assert order == sorted(order)
    assert counts.occurrences == expected.total()
    assert counts.added.get("<|endoftext|>", 0) == sum(text.count("<|endoftext|>") for text in texts)
    assert counts.bytes == sum(len(text.encode()) for text in texts)
    assert counts.texts == len(texts)


def test_types_are_encoded_without_special_tokens(gpt2: Tokenizer) -> None:
    assert encode_types(gpt2, [" the", "the"]) == [[gpt2.token_to_id("Ġthe")], [gpt2.token_to_id("the")]]
    assert encode_types(gpt2, []) == []


def test_frequency_table_has_every_id_with_string_text_and_frequency() -> None:
    table = frequency_table(["Ġthe", string_of("한")[:2], "<｜end｜>"], np.array([3, 0, 1]))
    assert table.to_dict(as_series=False) == {
        "token_id": [0, 1, 2],
        "token": ["Ġthe", "íķ", "<｜end｜>"],
        "text": [" the", "\ufffd", "<｜end｜>"],
        "frequency": [3, 0, 1],
    }
    assert table.schema == {"token_id": pl.UInt32, "token": pl.String, "text": pl.String, "frequency": pl.Int64}


@given(TEXTS)
def test_counts_round_trip_through_their_table(tiny_bpe: Tokenizer, texts: list[str]) -> None:
    counts = count_pretokens(texts, tiny_bpe)
    back = counts_from_table(counts_table(counts))
    assert (back.types, back.added, back.bytes) == (counts.types, counts.added, counts.bytes)
    np.testing.assert_array_equal(back.counts, counts.counts)
    assert back.counts.dtype == np.int64
