"""Splitting text, compared with the pre-tokenizers of tokenizers."""

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


def tokenizer_of(*parts: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({character: n for n, character in enumerate(sorted(GPT2.alphabet()))}, []))
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(list(parts))
    return tokenizer


def expected_pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [string for string, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


TOKENIZERS = {
    "GPT-2": tokenizer_of(GPT2),
    "SmolLM2": tokenizer_of(pre_tokenizers.Digits(individual_digits=True), GPT2),
    "Llama 3": tokenizer_of(pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), BYTES),
    "matches only": tokenizer_of(pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "removed", invert=True), BYTES),
    "no single pattern": tokenizer_of(
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

# whether unassigned code points are letters depends on the Unicode version
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=3)
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u3000", "\x85", "\x1c"]
WORDS = ["a", " b", "'s", "'LL", "'", "1", " 23", "½", "e\u0301", "한국", "漢字", "...", " _", "\x00", "\u200d", "🙂"]
TEXT = st.lists(ASSIGNED | st.sampled_from([*SPACES, *WORDS]), max_size=10).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(TEXT, max_size=4))
@example(["it's 12 o'clock\u3000 \n\n  x1 ½ 한국어\r\n\t'S", "", "a \t\n \n  b\x00  c", " \n  1  \n"])
def test_splitters_split_as_tokenizers_does(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    pretokenization = read_pretokenization(tokenizer)
    expected = [expected_pieces(tokenizer, text) for text in texts]
    column = pretokenization.column_splitter(tokenizer)(texts).to_list()
    assert [[string_of(piece) for piece in pieces] for pieces in column] == expected
    split = pretokenization.splitter(tokenizer)
    assert [[string_of(piece) for piece in split(text)] for text in texts] == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_equivalent_pattern_is_found(name: str) -> None:
    assert read_pretokenization(TOKENIZERS[name]).pattern == PATTERNS[name]


@pytest.mark.parametrize(
    ("pattern", "uses_polars"),
    [
        (GPT2_PATTERN, True),
        (DIGITS_THEN_GPT2_PATTERN, True),
        (LLAMA3_PATTERN, True),
        (r"\p{L}++|\s+(?!\S)|\s+", False),
        (r"(?=a)a|.", False),
        (r"a|\s+(?!x)|\s+", False),
    ],
)
def test_polars_splits_by_patterns_whose_look_ahead_can_be_avoided(pattern: str, uses_polars: bool) -> None:
    split = PreTokenization(pattern, (), ()).column_splitter(TOKENIZERS["GPT-2"])
    assert ("split_with_polars" in split.__qualname__) == uses_polars


@pytest.mark.parametrize("pattern", [r"(a)|\S+|\s+", r"(?~b)b|[^b]+"])
def test_pattern_with_groups_or_of_another_dialect_is_left_to_tokenizers(pattern: str) -> None:
    tokenizer = tokenizer_of(pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES)
    split = read_pretokenization(tokenizer).splitter(tokenizer)
    assert [string_of(piece) for piece in split("a ba")] == expected_pieces(tokenizer, "a ba")


def test_text_is_normalized_before_it_is_split() -> None:
    tokenizer = tokenizer_of(GPT2)
    tokenizer.normalizer = normalizers.NFC()
    assert read_pretokenization(tokenizer).splitter(tokenizer)("cafe\u0301 au lait") == ["café", " au", " lait"]


ADDED = ["<end>", "<end><end>", "<e>", "  "]
WITH_ADDED_TOKENS = Tokenizer.from_str(TOKENIZERS["GPT-2"].to_str())
WITH_ADDED_TOKENS.add_special_tokens([AddedToken(token, normalized=False) for token in ADDED[:2]])
WITH_ADDED_TOKENS.add_tokens([AddedToken(token, normalized=False) for token in ADDED[2:]])


@given(st.lists(st.sampled_from([*ADDED, "<", "end>", " ", "x", " y", "\n"]), max_size=12).map("".join))
def test_added_tokens_are_cut_out_and_counted_where_tokenizers_finds_them(text: str) -> None:
    pretokenization = read_pretokenization(WITH_ADDED_TOKENS)
    encoding = WITH_ADDED_TOKENS.encode(text, add_special_tokens=False)
    ids = {WITH_ADDED_TOKENS.token_to_id(token): token for token in ADDED}
    expected: dict[str, int] = {}
    for i in encoding.ids:
        if i in ids:
            expected[ids[i]] = expected.get(ids[i], 0) + 1
    assert pretokenization.count_added_tokens(text) == expected
    # a BPE without merges yields the bytes of the text in between
    between = "".join(token for token, i in zip(encoding.tokens, encoding.ids, strict=True) if i not in ids)
    assert string_of("".join(pretokenization.splitter(WITH_ADDED_TOKENS)(text))) == between


def test_text_between_added_tokens_is_split_independently() -> None:
    pretokenization = read_pretokenization(WITH_ADDED_TOKENS)
    texts = ["one two <end> three<e>", "<end>", "no token here"]
    expected = [["one", " two", " ", " three"], [], ["no", " token", " here"]]
    assert pretokenization.column_splitter(WITH_ADDED_TOKENS)(texts).to_list() == expected
    assert [pretokenization.splitter(WITH_ADDED_TOKENS)(text) for text in texts] == expected


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
def test_tokenizer_that_is_not_byte_level_is_refused(
    pre_tokenizer: pre_tokenizers.PreTokenizer | None, found: str
) -> None:
    tokenizer = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    with pytest.raises(InputError) as error:
        read_pretokenization(tokenizer)
    assert error.value.message == f"a byte-level tokenizer is required, found the pre-tokenizer {found}"


def test_tokenizer_that_changes_the_text_is_refused() -> None:
    tokenizer = tokenizer_of(GPT2)
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="Lowercase"):
        read_pretokenization(tokenizer)
    with pytest.raises(InputError, match="add_prefix_space"):
        read_pretokenization(tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=True)))
