"""Splitting text against tokenizers' own pre-tokenizers."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ivr_dagster.core.tokens.byte_level import string_of
from ivr_dagster.core.tokens.pretokens import (
    DIGITS_THEN_GPT2_PATTERN,
    GPT2_PATTERN,
    PreTokenization,
    read_pretokenization,
)
from ivr_dagster.errors import InputError

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def made_of(*parts: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({character: n for n, character in enumerate(sorted(GPT2.alphabet()))}, []))
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(list(parts))
    return tokenizer


def verify_splitter(split: Callable[[str], list[str]], tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """The first of `texts` that `split` cuts otherwise than `tokenizer` does, or None."""
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer is not None else text
        expected = [string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
        if [string_of(piece) for piece in split(text)] != expected:
            return text
    return None


KINDS = {
    "GPT-2": made_of(GPT2),
    "SmolLM2": made_of(pre_tokenizers.Digits(individual_digits=True), GPT2),
    "Llama 3": made_of(pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), BYTES),
    "matches only": made_of(pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "removed", invert=True), BYTES),
    "no single pattern": made_of(
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥]+"), "isolated"),
        GPT2,
    ),
}
PATTERNS = {
    "GPT-2": GPT2_PATTERN,
    "SmolLM2": DIGITS_THEN_GPT2_PATTERN,
    "Llama 3": LLAMA3_PATTERN,
    "matches only": LLAMA3_PATTERN,
    "no single pattern": None,
}

# unassigned code points are letters or not by the year of the Unicode table
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=3)
TRICKY = [
    "a",
    " b",
    "'s",
    "'LL",
    "'",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u3000",
    "\x85",
    "\x1c",
    "1",
    " 23",
    "½",
    "e\u0301",
]
TRICKY += ["한국", "漢字", "...", " _", "\x00", "\u200d", "🙂"]
TEXT = st.lists(ASSIGNED | st.sampled_from(TRICKY), max_size=10).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(TEXT, max_size=4))
@example(["it's 12 o'clock\u3000 \n\n  x1 ½ 한국어\r\n\t'S", "", "a \t\n \n  b\x00  c", " \n  1  \n"])
def test_texts_together_are_split_as_tokenizers_splits_each(kind: str, texts: list[str]) -> None:
    tokenizer = KINDS[kind]
    split = read_pretokenization(tokenizer).column_splitter(tokenizer)
    expected = [[string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] for text in texts]
    assert [[string_of(piece) for piece in pieces] for pieces in split(texts).to_list()] == expected


@pytest.mark.parametrize("kind", ["GPT-2", "SmolLM2", "Llama 3"])
def test_known_patterns_need_no_look_ahead(kind: str) -> None:
    tokenizer = KINDS[kind]
    assert "split_at_once" in read_pretokenization(tokenizer).column_splitter(tokenizer).__qualname__


@pytest.mark.parametrize("pattern", [r"\p{L}++|\s+(?!\S)|\s+", r"(?=a)a|.", r"a|\s+(?!x)|\s+"])
def test_a_pattern_of_another_dialect_is_left_to_another_library(pattern: str) -> None:
    tokenizer = KINDS["GPT-2"]
    split = PreTokenization(pattern, (), ()).column_splitter(tokenizer)
    assert "split_at_once" not in split.__qualname__


def test_added_tokens_are_cut_out_of_texts_together_with_others() -> None:
    tokenizer = Tokenizer.from_str(KINDS["GPT-2"].to_str())
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    split = read_pretokenization(tokenizer).column_splitter(tokenizer)
    assert split(["a  b", "a <|end|>  b", "<|end|>"]).to_list() == [["a", " ", " b"], ["a", " ", " ", " b"], []]


@pytest.mark.parametrize("kind", KINDS)
@given(TEXT)
@example("it's 12 o'clock\u3000 \n\n  x1 ½ 한국어\r\n\t'S")
def test_text_is_split_as_tokenizers_splits_it(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    split = read_pretokenization(tokenizer).splitter(tokenizer)
    assert [string_of(piece) for piece in split(text)] == [
        string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pre_tokenizer_that_amounts_to_one_pattern_is_known_by_it(kind: str) -> None:
    assert read_pretokenization(KINDS[kind]).pattern == PATTERNS[kind]


@pytest.mark.parametrize("pattern", [r"(a)|\S+|\s+", r"(?~b)b|[^b]+"])
def test_a_pattern_whose_matches_regex_would_not_list_is_left_to_tokenizers(pattern: str) -> None:
    tokenizer = made_of(pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES)
    found = read_pretokenization(tokenizer)
    expected = [string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str("a ba")]
    assert [string_of(piece) for piece in found.splitter(tokenizer)("a ba")] == expected


def test_a_text_is_normalized_before_it_is_split() -> None:
    tokenizer = made_of(GPT2)
    tokenizer.normalizer = normalizers.NFC()
    split = read_pretokenization(tokenizer).splitter(tokenizer)
    assert split("cafe\u0301 au lait") == ["café", " au", " lait"]
    assert verify_splitter(split, tokenizer, ["cafe\u0301 au lait"]) is None


ADDED = ["<end>", "<end><end>", "<e>", "  "]


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ADDED[:2]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED[2:]])
    return tokenizer


ADDED_TO_GPT2 = with_added(KINDS["GPT-2"])


@given(st.lists(st.sampled_from([*ADDED, "<", "end>", " ", "x", " y", "\n"]), max_size=12).map("".join))
def test_added_tokens_are_cut_out_and_counted_where_tokenizers_finds_them(text: str) -> None:
    pretokenization = read_pretokenization(ADDED_TO_GPT2)
    encoding = ADDED_TO_GPT2.encode(text, add_special_tokens=False)
    ids = {ADDED_TO_GPT2.token_to_id(token): token for token in ADDED}
    expected: dict[str, int] = {}
    for i in encoding.ids:
        if i in ids:
            expected[ids[i]] = expected.get(ids[i], 0) + 1
    assert pretokenization.count_added_tokens(text) == expected
    # a BPE without merges yields the bytes of what lies between
    between = "".join(token for token, i in zip(encoding.tokens, encoding.ids, strict=True) if i not in ids)
    assert string_of("".join(pretokenization.splitter(ADDED_TO_GPT2)(text))) == between


def test_each_part_between_added_tokens_is_split_by_itself() -> None:
    split = read_pretokenization(ADDED_TO_GPT2).splitter(ADDED_TO_GPT2)
    assert split("one two <end> three<e>") == ["one", " two", " ", " three"]
    assert split("<end>") == []
    assert split("no token here") == ["no", " token", " here"]


NO_BYTE_LEVEL = "a byte-level tokenizer was asked for, found the pre-tokenizer "


@pytest.mark.parametrize(
    ("pre_tokenizer", "found"),
    [
        (pre_tokenizers.Metaspace(), "Metaspace"),
        (pre_tokenizers.BertPreTokenizer(), "BertPreTokenizer"),
        (
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
            "WhitespaceSplit + Metaspace",
        ),
        (pre_tokenizers.Sequence([GPT2, pre_tokenizers.Digits()]), "ByteLevel + Digits"),
        (pre_tokenizers.Sequence([GPT2, BYTES]), "ByteLevel + ByteLevel"),
        (None, "none"),
    ],
)
def test_a_tokenizer_that_is_not_byte_level_is_refused_by_what_was_found(
    pre_tokenizer: pre_tokenizers.PreTokenizer | None, found: str
) -> None:
    tokenizer = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    with pytest.raises(InputError) as error:
        read_pretokenization(tokenizer)
    assert error.value.message == NO_BYTE_LEVEL + found


def test_a_normalizer_that_changes_more_than_the_form_is_refused_by_its_name() -> None:
    tokenizer = made_of(GPT2)
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="Lowercase"):
        read_pretokenization(tokenizer)


def test_a_space_put_before_the_text_is_refused() -> None:
    with pytest.raises(InputError, match="add_prefix_space"):
        read_pretokenization(made_of(pre_tokenizers.ByteLevel(add_prefix_space=True)))


def test_the_first_text_that_a_wrong_pattern_splits_otherwise_is_found() -> None:
    tokenizer = KINDS["SmolLM2"]
    wrong = PreTokenization(GPT2_PATTERN, (), ()).splitter(tokenizer)
    assert verify_splitter(wrong, tokenizer, ["no digits", "7 eleven", "11", "12"]) == "11"
    right = read_pretokenization(tokenizer).splitter(tokenizer)
    assert verify_splitter(right, tokenizer, ["no digits", "7 eleven", "11", "12"]) is None


def test_a_pattern_that_leaves_gaps_is_found() -> None:
    tokenizer = made_of(pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated"), BYTES)
    found = read_pretokenization(tokenizer)
    assert verify_splitter(found.splitter(tokenizer), tokenizer, ["ab", "ab, cd"]) == "ab, cd"
