"""Cuts, against the base's BPE, run by run and type by type."""

import re
from collections.abc import Callable
from itertools import accumulate, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import differing_types
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.cuts import cut_pattern, exception_pattern, find_exceptions, run_cuts
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.byte_level import is_byte_level, string_of
from ivr_dagster.core.tokens.counts import PretokenCounts, encode_types

from .conftest import ODD_PARTS

ODD = st.lists(st.sampled_from(ODD_PARTS), min_size=1, max_size=6).map("".join) | st.text(min_size=1, max_size=8)


def split(pattern: str, string: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(string)]


def tokens(tokenizer: Tokenizer, string: str, pattern: str | None = None) -> list[str]:
    """The model's tokens of a byte-level string, or of each piece that a pattern cuts."""
    pieces = split(pattern, string) if pattern else [string]
    return [token.value for piece in pieces for token in tokenizer.model.tokenize(piece)]


@pytest.fixture(scope="module")
def runs(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE) -> str:
    pattern = run_cuts(gpt2, gpt2_bpe.strings)
    assert pattern is not None
    return pattern


@given(ODD | st.text().filter(bool))
@example("=" * 30 + "(((")
@example("a" * 50)
def test_cut_at_a_token_boundary_does_not_change_bpe(gpt2: Tokenizer, text: str) -> None:
    whole = tokens(gpt2, string_of(text))
    for n in range(1, len(whole)):
        assert tokens(gpt2, "".join(whole[:n])) + tokens(gpt2, "".join(whole[n:])) == whole


@pytest.mark.parametrize("character", ["=", "-", "*", " ", "#", "_", "."])
def test_runs_of_any_length_are_segmented_as_by_gpt2(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, character: str
) -> None:
    texts = [head + character * length for head in ("", " ", "\n", "\n\n", "a") for length in range(1, 200)]
    ours, theirs = gpt2_distilled.encode_batch(texts), gpt2.encode_batch(texts)
    assert [t for t, a, b in zip(texts, ours, theirs, strict=True) if a.ids != b.ids] == []


def test_only_long_runs_of_symbols_are_cut(
    bpe_of: Callable[..., Tokenizer],
) -> None:
    merges = [("=", "="), ("==", "=="), ("====", "=="), ("-", "-"), ("a", "a"), ("aa", "aa"), ("0", "0"), ("00", "00")]
    base = bpe_of([left + right for left, right in merges], merges)
    cuts = run_cuts(base, read_bpe(base).strings)
    assert cuts is not None

    def ends(pieces: list[str]) -> list[int]:
        return list(accumulate(map(len, pieces)))

    for length in range(4, 40):
        found, expected = split(cuts, "=" * length), tokens(base, "=" * length)
        assert found[0] == expected[0]
        assert set(ends(found)) <= set(ends(expected))
        assert split(cuts, f"x{'=' * length}y")[:2] == ["x", expected[0]]
    for whole in ("===", "--", "------", "aaaaaaaa", "00000000"):
        assert split(cuts, whole) == [whole]


def test_space_before_a_run_stays_with_it(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["**", "Ġ**", "****"], [("*", "*"), ("Ġ", "**"), ("**", "**")])
    distilled = distill(base, read_bpe(base)).tokenizer
    for length in range(2, 30, 2):
        assert distilled.encode(" " + "*" * length).tokens == base.encode(" " + "*" * length).tokens


def test_vocabulary_without_runs_needs_no_cut(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["==", "===", "aa", "aaaa"], [("=", "="), ("==", "="), ("a", "a"), ("aa", "aa")])
    assert run_cuts(base, read_bpe(base).strings) is None
    assert cut_pattern(None, {}) is None


def test_run_cuts_split_only_two_tokens_of_gpt2(gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, runs: str) -> None:
    strings = [string for string in gpt2_bpe.strings if is_byte_level(string)]
    cutter = pre_tokenizers.Split(Regex(runs), "isolated")
    broken = {string for string in strings if len(cutter.pre_tokenize_str(string)) > 1}
    assert broken <= {"?????-", "?????-?????-"}


def test_exceptions_fix_every_odd_type_after_saving(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, gpt2_exact_on_odd: Distillation, odd_counts: PretokenCounts
) -> None:
    stored = Tokenizer.from_str(gpt2_exact_on_odd.tokenizer.to_str())
    assert len(differing_types(gpt2, gpt2_distilled, odd_counts)) > 500
    assert {"hexadecimal", "ppp", "((("} <= gpt2_exact_on_odd.exceptions.keys()
    assert {"Befehl", "=====(((", "[[]]", "000483647", "ppppppp"} <= set(odd_counts.types)
    assert differing_types(gpt2, stored, odd_counts) == []


def test_other_types_are_unaffected_by_exceptions(
    gpt2_distilled: Tokenizer,
    gpt2_exact_on_odd: Distillation,
    topics_counts: PretokenCounts,
    odd_counts: PretokenCounts,
) -> None:
    exceptions = gpt2_exact_on_odd.exceptions
    types = [text for text in (*topics_counts.types, *odd_counts.types) if string_of(text) not in exceptions]
    assert len(types) > 10_000
    assert encode_types(gpt2_exact_on_odd.tokenizer, types) == encode_types(gpt2_distilled, types)


@given(st.lists(ODD.map(string_of), min_size=1, max_size=8, unique=True))
def test_exceptions_fix_any_strings_at_token_boundaries(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, runs: str, strings: list[str]
) -> None:
    failing = [string for string in strings if tokens(gpt2_distilled, string, runs) != tokens(gpt2, string)]
    exceptions = find_exceptions(gpt2, gpt2_distilled, runs, failing, len(failing))
    assert set(failing) <= exceptions.keys()
    for string in strings:
        assert tokens(gpt2_distilled, string, cut_pattern(runs, exceptions)) == tokens(gpt2, string)
    for string, piece in exceptions.items():
        assert piece in list(accumulate(tokens(gpt2, string)))[:-1]


def test_string_may_need_several_cuts(gpt2: Tokenizer, gpt2_distilled: Tokenizer, runs: str) -> None:
    exceptions = find_exceptions(gpt2, gpt2_distilled, runs, ["pppaaa"], 1)
    assert exceptions == {"pppaaa": "pp", "paaa": "p"}
    one_cut = {"pppaaa": "pp"}
    assert tokens(gpt2_distilled, "pppaaa", cut_pattern(runs, one_cut)) != tokens(gpt2, "pppaaa")
    assert tokens(gpt2_distilled, "pppaaa", cut_pattern(runs, exceptions)) == tokens(gpt2, "pppaaa")


def test_most_frequent_types_become_exceptions_first(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    failing = differing_types(gpt2, gpt2_distilled, topics_counts)
    assert len(failing) > 3
    few = distill(gpt2, gpt2_bpe, topics_counts, exceptions=3)
    assert differing_types(gpt2, few.tokenizer, topics_counts) == failing[3:]
    settled = [string_of(topics_counts.types[n]) for n in failing[:3]]
    assert set(settled) <= few.exceptions.keys()
    # all others are rests of these
    assert all(any(string.endswith(rest) for string in settled) for rest in few.exceptions)


def test_string_with_a_missing_byte_gets_no_exception(bpe_of: Callable[..., Tokenizer]) -> None:
    base = bpe_of(["ab"], [("a", "b")], lacking="d")
    unigram = distill(base, read_bpe(base)).tokenizer
    assert base.encode("adb").tokens == ["ab"] != unigram.encode("adb").tokens
    assert find_exceptions(base, unigram, None, ["adb", "adbx", "abxd", "dabx"], 4) == {}


def test_string_that_is_one_base_token_gets_no_exception(bpe_of: Callable[..., Tokenizer]) -> None:
    base, never = bpe_of(["zz"], [], ignore_merges=True), bpe_of(["zz"], [])
    unigram = distill(never, read_bpe(never)).tokenizer
    assert base.encode("zz").tokens == ["zz"] != unigram.encode("zz").tokens
    assert find_exceptions(base, unigram, None, ["zz"], 1) == {}


def test_exception_cuts_whole_strings_and_their_rests() -> None:
    pattern = exception_pattern({"abc": "a", "bc": "b", "a[": "a", "a]]": "a]", "a]": "a"})
    assert split(pattern, "abc") == ["a", "b", "c"]
    assert split(pattern, "bc") == ["b", "c"]
    assert split(pattern, "a[") == ["a", "["]
    assert split(pattern, "a]]") == ["a]", "]"]
    assert split(pattern, "a]") == ["a", "]"]
    for other in ("xabc", "abcx", "abcabc", "xbc", "ab", "a", "a[[", "aa["):
        assert split(pattern, other) == [other]


@given(st.dictionaries(st.text("ab[=", min_size=2, max_size=5), st.integers(1, 4)), st.text("ab[=", max_size=7))
@example({"ab[=": 1, "b[=": 2, "[=": 1}, "ab[=")
def test_exceptions_apply_to_every_rest(places: dict[str, int], text: str) -> None:
    exceptions = {string: string[: min(place, len(string) - 1)] for string, place in places.items()}
    for string in (text, *exceptions):
        expected, rest = [], string
        while rest in exceptions:
            expected.append(exceptions[rest])
            rest = rest.removeprefix(exceptions[rest])
        pieces = [*expected, rest] if rest else expected
        assert not exceptions or split(exception_pattern(exceptions), string) == pieces


def test_exceptions_come_before_runs(runs: str) -> None:
    string = "====+" + "-" * 200
    pattern = cut_pattern(runs, {string: "====+"})
    assert pattern is not None
    assert split(pattern, string) == ["====+", *split(runs, "-" * 200)]
    assert split(pattern, "x" + string) == split(runs, "x" + string)
    assert split(pattern, string + "x") == split(runs, string + "x")
    assert cut_pattern(None, {"ab": "a"}) == exception_pattern({"ab": "a"})
    assert cut_pattern(runs, {}) == runs


def test_exceptions_also_cut_what_run_cuts_leave(runs: str) -> None:
    pattern = cut_pattern(runs, {"~~~": "~~", "-" * 13 + "+": "-" * 10, "---+": "--", "???-": "???", "=+": "="})
    assert pattern is not None
    assert split(runs, "~" * 43) == ["~" * 16, "~" * 16, "~" * 8, "~~~"]
    assert split(pattern, "~" * 43) == ["~" * 16, "~" * 16, "~" * 8, "~~", "~"]
    assert split(pattern, "+" + "-" * 29 + "+") == ["+", "-" * 16, "-" * 10, "--", "-+"]
    assert split(pattern, "x~~~") == ["x~~~"]
    assert split(pattern, "-----+") == split(runs, "-----+")
    # of runs before tails (`?????-` is a token), only the start of very long ones is cut
    assert split(pattern, "???????-") == ["???????-"]
    # a run of five may end with a token before its last character
    assert split(pattern, "=====+") == split(runs, "=====+")


def test_start_of_a_long_run_is_cut_whatever_follows(gpt2: Tokenizer, runs: str) -> None:
    for string in ["?" * length + tail for length in (17, 30, 100) for tail in ("-", "?????-", "-?????-", "x")]:
        ends = list(accumulate(map(len, split(runs, string))))
        assert len(ends) > 1
        assert set(ends) <= set(accumulate(map(len, tokens(gpt2, string))))


def test_patterns_use_only_what_javascript_has(runs: str, gpt2_exact_on_odd: Distillation) -> None:
    exceptions = gpt2_exact_on_odd.exceptions
    assert any(string.removeprefix(piece) in exceptions for string, piece in exceptions.items())
    pattern = cut_pattern(runs, exceptions)
    assert pattern is not None
    assert set(re.findall(r"\\(.)", pattern)) <= set("^$\\.*+?()[]{}|-")  # the flag `u` allows no others
    assert set(re.findall(r"(?<!\\)(?:\\\\)*\((\?(?:<[=!]|.))", pattern)) == {"?:", "?=", "?!", "?<="}


@pytest.mark.parametrize(
    ("unit", "end"),
    [*product(["ĊĠ", "ĠĠĠĊ", "-+=", "?????-", "ab", "*="], [""]), *product("=-?Ġ", ["", "-", "+"])],
)
def test_pretoken_of_a_million_characters_is_cut(runs: str, unit: str, end: str) -> None:
    string = unit * 600_000 + end
    pattern = cut_pattern(runs, {"ab": "a", "-+=": "-", "---+": "--", "?-": "?"})
    assert pattern is not None
    assert "".join(split(pattern, string)) == string
