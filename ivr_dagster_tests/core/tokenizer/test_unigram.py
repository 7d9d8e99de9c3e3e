"""Scores, their repair and the tokenizer around them: against brute force, BPE itself, and text of all kinds."""

import inspect
import json
import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import measure_agreement
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.unigram import (
    NEW_TOKEN_GAIN,
    UNREACHABLE,
    best_split,
    distill,
    extended_tokenizer,
    gain,
    repair_scores,
    run_cuts,
    scores_from_merges,
    scores_with_new,
    storable,
)
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens

# all planes, control characters, marks without a base
TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["<|endoftext|>", "\x00", "\u0301", "  ", "====", "\r\n", "🙂\u200d", "한", "\U0010ffff"])
    | st.builds(lambda character, times: character * times, st.sampled_from("=- \n#aé"), st.integers(0, 200))
).map("".join)

STRING = st.text("abc", min_size=1, max_size=7)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[str], np.ndarray]:
    """The letters a, b, c and up to ten strings of them, with scores of all magnitudes."""
    strings = ["a", "b", "c", *sorted(draw(st.sets(st.text("abc", min_size=2, max_size=5), max_size=10)))]
    score = st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 1e-9, 1 / 3])
    return strings, np.array([draw(score) for _ in strings])


def segmentations(string: str, strings: list[str]) -> Iterator[list[str]]:
    """Every way to write `string` as tokens."""
    if not string:
        yield []
    for end in range(1, len(string) + 1):
        if string[:end] in strings:
            for rest in segmentations(string[end:], strings):
                yield [string[:end], *rest]


def score(pieces: list[str], score_of: dict[str, float]) -> float:
    """Left to right, as both Viterbis add."""
    total = 0.0
    for piece in pieces:
        total += score_of[piece]
    return total


@given(vocabularies(), STRING)
def test_the_viterbi_of_tokenizers_finds_the_best_of_all_segmentations(
    vocabulary: tuple[list[str], np.ndarray], string: str
) -> None:
    strings, scores = vocabulary
    score_of = dict(zip(strings, map(float, scores), strict=True))
    model = models.Unigram(list(score_of.items()))
    found = [token.value for token in model.tokenize(string)]
    assert "".join(found) == string
    assert score(found, score_of) == max(score(pieces, score_of) for pieces in segmentations(string, strings))


@given(vocabularies(), STRING)
def test_the_best_split_is_the_best_segmentation_into_two_or_more(
    vocabulary: tuple[list[str], np.ndarray], string: str
) -> None:
    strings, scores = vocabulary
    score_of = dict(zip(strings, map(float, scores), strict=True))
    rivals = [score(pieces, score_of) for pieces in segmentations(string, strings) if len(pieces) > 1]
    assert best_split(string, score_of, max(map(len, strings))) == max(rivals, default=-math.inf)


@given(vocabularies())
def test_after_repair_every_token_is_the_one_best_segmentation_of_itself(
    vocabulary: tuple[list[str], np.ndarray],
) -> None:
    strings, scores = vocabulary
    before = scores.copy()
    repaired, raised = repair_scores(strings, scores, range(len(strings)))
    np.testing.assert_array_equal(scores, before)
    assert [n for n in range(len(strings)) if repaired[n] != scores[n]] == raised
    assert all(repaired >= scores)
    score_of = dict(zip(strings, map(float, repaired), strict=True))
    model = models.Unigram(list(score_of.items()))
    for string in strings:
        best, *others = sorted((score(p, score_of) for p in segmentations(string, strings)), reverse=True)
        assert score_of[string] == best
        assert not others or others[0] < best
        assert [token.value for token in model.tokenize(string)] == [string]


def test_repair_leaves_alone_what_is_not_in_its_order() -> None:
    strings, scores = ["a", "b", "ab", "ba"], np.array([1.0, 1.0, 0.0, 0.0])
    repaired, raised = repair_scores(strings, scores, [3])
    assert raised == [3]
    assert repaired[3] > 2.0
    assert repaired[:3].tolist() == [1.0, 1.0, 0.0]


def test_the_gain_falls_with_the_fourth_power_of_the_rank() -> None:
    assert gain(0) == 1.0
    assert gain(16) == pytest.approx(1 / 16)
    assert gain(48) == pytest.approx(1 / 256)


def bpe_of(vocabulary: list[str], merges: list[tuple[str, str]], **model: bool) -> Tokenizer:
    characters = sorted(CHARACTER_TO_BYTE)
    ids = {string: n for n, string in enumerate([*characters, *vocabulary])}
    tokenizer = Tokenizer(models.BPE(ids, merges, **model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@given(st.lists(st.floats(1e-16, 1e4) | st.floats(-1e6, -1e-16) | st.sampled_from([0.0, UNREACHABLE])))
def test_a_storable_score_comes_back_from_json_as_it_was(scores: list[float]) -> None:
    kept = [storable(score) for score in scores]
    for score, stored in zip(scores, kept, strict=True):
        assert 0 <= stored - score <= 64 * math.ulp(score)
    tokenizer = Tokenizer(models.Unigram([(str(n), score) for n, score in enumerate(kept)]))
    back = json.loads(Tokenizer.from_str(tokenizer.to_str()).to_str())["model"]["vocab"]
    assert [score for _, score in back] == kept


def test_the_closed_form_is_the_sum_of_the_halves_and_the_gain_of_their_merge() -> None:
    bpe = read_bpe(bpe_of(["ab", "abc", "zz"], [("a", "b"), ("ab", "c")]))
    scores = scores_from_merges(bpe)
    assert scores[:256].tolist() == [0.0] * 256
    assert scores[256:].tolist() == [1.0, pytest.approx(1.0 + gain(1)), UNREACHABLE]


def test_halves_that_merge_later_than_their_whole_are_scored_first() -> None:
    bpe = read_bpe(bpe_of(["abc", "ab"], [("ab", "c"), ("a", "b")]))
    assert scores_from_merges(bpe)[256:].tolist() == pytest.approx([gain(1) + gain(0), gain(1)])


def test_what_would_be_made_of_a_token_that_nothing_makes_is_never_yielded_as_in_bpe() -> None:
    base = bpe_of(["ab", "cd", "abx", "abcd"], [("ab", "x"), ("ab", "cd")])
    distilled, _ = distill(base, read_bpe(base))
    for text in ("abcd", "ab", "abx", "xabcdx"):
        assert distilled.encode(text).ids == base.encode(text).ids == [base.token_to_id(letter) for letter in text]


def test_every_token_of_gpt2_encodes_to_itself_once_stored(gpt2_distilled: Tokenizer, gpt2_bpe: ByteLevelBPE) -> None:
    added, stored = gpt2_bpe.added_ids, Tokenizer.from_str(gpt2_distilled.to_str())
    other = {
        string: [token.value for token in stored.model.tokenize(string)]
        for token_id, string in enumerate(gpt2_bpe.strings)
        if token_id not in added
    }
    assert len(other) == 50_256
    assert {string: pieces for string, pieces in other.items() if pieces != [string]} == {}


def test_the_distilled_vocabulary_is_the_bases_string_by_string(gpt2: Tokenizer, gpt2_distilled: Tokenizer) -> None:
    assert gpt2_distilled.get_vocab(with_added_tokens=True) == gpt2.get_vocab(with_added_tokens=True)
    assert json.loads(gpt2_distilled.to_str())["model"]["type"] == "Unigram"


def only(counts: PretokenCounts, wanted: Callable[[str], bool]) -> PretokenCounts:
    chosen = [n for n, piece in enumerate(counts.types) if wanted(piece)]
    return PretokenCounts([counts.types[n] for n in chosen], counts.counts[chosen], {}, 0, 0)


def test_gpt2_distilled_agrees_with_gpt2(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, topics_counts: PretokenCounts
) -> None:
    assert measure_agreement(gpt2, gpt2_distilled, topics_counts).share >= 0.9995
    # tables of mixed runs are most of what is left
    rest = only(topics_counts, lambda piece: not any(len(set(piece[n : n + 3])) == 1 for n in range(len(piece) - 2)))
    assert rest.occurrences > 0.95 * topics_counts.occurrences
    assert measure_agreement(gpt2, gpt2_distilled, rest).share >= 0.9999


@given(TEXT)
@example("<|endoftext|>" * 3 + " <|endoftext|>x")
def test_any_text_comes_back_from_the_distilled_tokenizer(gpt2_distilled: Tokenizer, text: str) -> None:
    ids = gpt2_distilled.encode(text).ids
    assert gpt2_distilled.decode(ids, skip_special_tokens=False) == text
    assert ids.count(50_256) == text.count("<|endoftext|>")


CHANGES: dict[str, Callable[[Tokenizer], None]] = {}


def change(function: Callable[[Tokenizer], None]) -> Callable[[Tokenizer], None]:
    CHANGES[function.__name__] = function
    return function


@change
def nothing(tokenizer: Tokenizer) -> None:
    pass


@change
def digits_one_by_one(tokenizer: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])


@change
def split_by_a_pattern(tokenizer: Tokenizer) -> None:
    pattern = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pattern, whole])


@change
def normalised(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


@change
def several_added_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False)])
    tokenizer.add_tokens(
        [AddedToken("한국어", normalized=False), AddedToken("lone", single_word=True, normalized=False)]
    )


ADDED = ["<|endoftext|>", "<|im_start|>", "한국어", "lone", " cloned"]


@pytest.mark.parametrize("kind", CHANGES)
def test_what_surrounds_the_model_works_as_in_the_base(kind: str, tiny_bpe: Tokenizer, topics: list[str]) -> None:
    base = Tokenizer.from_str(tiny_bpe.to_str())
    CHANGES[kind](base)
    distilled, _ = distill(base, read_bpe(base))
    assert distilled.get_vocab(with_added_tokens=True) == base.get_vocab(with_added_tokens=True)
    added = [token["id"] for token in json.loads(base.to_str())["added_tokens"]]
    text = " ".join(ADDED) + "".join(ADDED) + "caf\u0065\u0301 12345\r\n\n  It's 7"
    ours, theirs = distilled.encode(text), base.encode(text)
    assert [i for i in ours.ids if i in added] == [i for i in theirs.ids if i in added]
    assert distilled.decode(ours.ids, skip_special_tokens=False) == base.decode(theirs.ids, skip_special_tokens=False)
    assert distilled.decode(ours.ids) == base.decode(theirs.ids)
    words = only(count_pretokens(topics[20:30], base), lambda piece: piece.strip().isalpha())
    assert measure_agreement(base, distilled, words).share >= 0.999


@given(st.lists(st.text("abcd "), min_size=1, max_size=10), st.text("abcd =é", max_size=20))
@settings(max_examples=50)
def test_tokens_of_any_trained_bpe_encode_to_themselves_and_any_text_comes_back(
    train_bpe: Callable[..., Tokenizer], texts: list[str], text: str
) -> None:
    base = train_bpe(texts * 2, 20)
    bpe = read_bpe(base)
    distilled, _ = distill(base, bpe)
    for made in bpe.merge_of:
        assert [token.id for token in distilled.model.tokenize(bpe.strings[made])] == [made]
    assert distilled.decode(distilled.encode(text).ids) == text


def test_bytes_that_the_base_lacks_are_dropped_as_the_base_drops_them(
    train_bpe: Callable[..., Tokenizer], topics: list[str]
) -> None:
    lacking = {*string_of("d^]-\\한"), "ÿ"}
    base = train_bpe(topics[:10], 200, alphabet=sorted(CHARACTER_TO_BYTE.keys() - lacking))
    bpe = read_bpe(base)
    distilled, _ = distill(base, bpe)
    dropped = 0
    for text in ["d", "a^b", "had - ]", "\\", "한국어", "ddd<|endoftext|>d", *topics[:3]]:
        theirs, ours = base.encode(text).ids, distilled.encode(text).ids
        assert distilled.decode(ours, skip_special_tokens=False) == base.decode(theirs, skip_special_tokens=False)
        dropped += len(string_of(text)) - sum(len(bpe.strings[i]) for i in ours)
        assert text in topics or ours == theirs
    assert dropped > 100


def test_saving_and_reading_back_keeps_every_id(tmp_path: Path, gpt2_distilled: Tokenizer, topics: list[str]) -> None:
    gpt2_distilled.save(str(tmp_path / "tokenizer.json"))
    back = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert back.get_vocab() == gpt2_distilled.get_vocab()
    assert json.loads(back.to_str())["model"] == json.loads(gpt2_distilled.to_str())["model"]
    texts = [*topics, "<|endoftext|>" + "=" * 100]
    assert [e.ids for e in back.encode_batch(texts)] == [e.ids for e in gpt2_distilled.encode_batch(texts)]


@pytest.mark.parametrize("character", ["=", "-", "*", " ", "#", "_", "."])
def test_runs_of_any_length_are_cut_as_gpt2_cuts_them(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, character: str
) -> None:
    texts = [head + character * length for head in ("", " ", "\n", "\n\n", "a") for length in range(1, 200)]
    ours, theirs = gpt2_distilled.encode_batch(texts), gpt2.encode_batch(texts)
    assert [t for t, a, b in zip(texts, ours, theirs, strict=True) if a.ids != b.ids] == []


def test_indented_code_agrees_where_line_breaks_and_spaces_are_one_token(train_bpe: Callable[..., Tokenizer]) -> None:
    """As in vocabularies made from code (StarCoder, SmolLM2)."""
    functions = [distill, repair_scores, run_cuts, best_split, read_bpe, measure_agreement, count_pretokens, given]
    code = [inspect.getsource(inspect.getmodule(function)) for function in functions]
    base = train_bpe(code, 1500)
    assert base.token_to_id("ĊĠĠĠĠĠĠĠ") is not None
    distilled, _ = distill(base, read_bpe(base))
    assert measure_agreement(base, distilled, count_pretokens(code, base)).share >= 0.998
    breaks = ["\n" * lines + " " * spaces for lines in (1, 2) for spaces in range(40)]
    same = [distilled.encode(text).ids == base.encode(text).ids for text in breaks]
    assert sum(same) >= 0.95 * len(same)


def test_runs_are_cut_where_the_base_cuts_them_and_letters_digits_and_short_runs_nowhere() -> None:
    merges = [("=", "="), ("==", "=="), ("====", "=="), ("-", "-"), ("a", "a"), ("aa", "aa"), ("0", "0"), ("00", "00")]
    base = bpe_of([left + right for left, right in merges], merges)
    cuts = run_cuts(base, read_bpe(base).strings)
    assert cuts is not None
    split = pre_tokenizers.Split(Regex(cuts), "isolated")

    def ends(pieces: list[str]) -> list[int]:
        return list(accumulate(map(len, pieces)))

    for length in range(4, 40):
        found = [piece for piece, _ in split.pre_tokenize_str("=" * length)]
        expected = [token.value for token in base.model.tokenize("=" * length)]
        assert found[0] == expected[0]
        assert set(ends(found)) <= set(ends(expected))
        inside = [piece for piece, _ in split.pre_tokenize_str(f"x{'=' * length}y")]
        assert inside[:2] == ["x", expected[0]]
    for whole in ("===", "--", "------", "aaaaaaaa", "00000000"):
        assert [piece for piece, _ in split.pre_tokenize_str(whole)] == [whole]


def test_a_space_that_the_base_joins_to_part_of_a_run_stays_with_it() -> None:
    base = bpe_of(["**", "Ġ**", "****"], [("*", "*"), ("Ġ", "**"), ("**", "**")])
    distilled, _ = distill(base, read_bpe(base))
    for length in range(2, 30, 2):
        assert distilled.encode(" " + "*" * length).tokens == base.encode(" " + "*" * length).tokens


def test_without_tokens_of_four_symbols_there_is_no_cut() -> None:
    base = bpe_of(["==", "===", "aa", "aaaa"], [("=", "="), ("==", "="), ("a", "a"), ("aa", "aa")])
    assert run_cuts(base, read_bpe(base).strings) is None


def test_a_new_token_scores_just_above_its_best_split_and_the_rest_stay() -> None:
    base = bpe_of(["ab", "abc"], [("a", "b"), ("ab", "c")])
    bpe = read_bpe(base)
    strings = [*bpe.strings, "abcab", "xy"]
    scores = scores_with_new(bpe, strings)
    assert scores[:-2].tolist() == scores_from_merges(bpe).tolist()
    best = scores[bpe.ids["abc"]] + scores[bpe.ids["ab"]]
    assert scores[-2] - best == pytest.approx(NEW_TOKEN_GAIN)
    assert scores[-1] == pytest.approx(NEW_TOKEN_GAIN)


def test_new_tokens_are_yielded_whole_and_old_ones_where_they_were(
    gpt2: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    new = ["Ġawaitable", "Ġcoroutine", string_of("한국어"), string_of("한국")]
    assert not set(new) & gpt2_bpe.ids.keys()
    tokenizer = extended_tokenizer(gpt2, gpt2_bpe, new)
    size = gpt2_bpe.size
    assert [tokenizer.token_to_id(string) for string in new] == [size, size + 1, size + 2, size + 3]
    assert tokenizer.encode(" awaitable coroutine한국어한국").ids == [size, size + 1, size + 2, size + 3]
    for string in gpt2_bpe.strings[:50_256:50]:
        assert [token.value for token in tokenizer.model.tokenize(string)] == [string]
    rest = only(topics_counts, lambda piece: not any(string in string_of(piece) for string in new))
    assert measure_agreement(gpt2, tokenizer, rest).share >= 0.998
