"""The distilled tokenizer, against the base tokenizer, on all kinds of text."""

import inspect
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import measure_agreement
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE, read_bpe
from ivr_dagster.core.tokenizer.cuts import run_cuts
from ivr_dagster.core.tokenizer.scores import repair_scores, scores_from_merges
from ivr_dagster.core.tokenizer.trie import trie_pattern
from ivr_dagster.core.tokenizer.unigram import Distillation, distill
from ivr_dagster.core.tokens.byte_level import CHARACTER_TO_BYTE, string_of
from ivr_dagster.core.tokens.counts import PretokenCounts, count_pretokens

# all planes, control characters, marks without a base
TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text(st.characters(categories=["Mn", "Mc", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"]), max_size=5)
    | st.sampled_from(["<|endoftext|>", "\x00", "\u0301", "  ", "====", "\r\n", "🙂\u200d", "한", "\U0010ffff"])
    | st.builds(lambda character, times: character * times, st.sampled_from("=- \n#aé"), st.integers(0, 200))
).map("".join)


def only(counts: PretokenCounts, wanted: Callable[[str], bool]) -> PretokenCounts:
    chosen = [n for n, piece in enumerate(counts.types) if wanted(piece)]
    return PretokenCounts([counts.types[n] for n in chosen], counts.counts[chosen], {}, 0, 0)


def test_distilled_vocabulary_equals_the_base(gpt2: Tokenizer, gpt2_exact: Distillation) -> None:
    assert gpt2_exact.tokenizer.get_vocab(with_added_tokens=True) == gpt2.get_vocab(with_added_tokens=True)
    assert json.loads(gpt2_exact.tokenizer.to_str())["model"]["type"] == "Unigram"


def test_agreement_with_gpt2_is_high_without_exceptions(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, topics_counts: PretokenCounts
) -> None:
    assert measure_agreement(gpt2, gpt2_distilled, topics_counts).share >= 0.9995
    # tables of mixed runs are most of what is left
    rest = only(topics_counts, lambda piece: not any(len(set(piece[n : n + 3])) == 1 for n in range(len(piece) - 2)))
    assert rest.occurrences > 0.95 * topics_counts.occurrences
    assert measure_agreement(gpt2, gpt2_distilled, rest).share >= 0.9999


def test_agreement_on_counted_text_is_complete(
    gpt2: Tokenizer, gpt2_exact: Distillation, topics: list[str], topics_counts: PretokenCounts
) -> None:
    agreement = measure_agreement(gpt2, gpt2_exact.tokenizer, topics_counts)
    assert agreement.share == 1.0
    assert agreement.divergences == []
    ours, theirs = gpt2_exact.tokenizer.encode_batch(topics), gpt2.encode_batch(topics)
    assert [encoding.ids for encoding in ours] == [encoding.ids for encoding in theirs]


def test_no_exceptions_without_counts_limit_or_differences(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, gpt2_bpe: ByteLevelBPE, topics_counts: PretokenCounts
) -> None:
    for plain in (
        distill(gpt2, gpt2_bpe),
        distill(gpt2, gpt2_bpe, exceptions=1_000),
        distill(gpt2, gpt2_bpe, topics_counts),
        distill(gpt2, gpt2_bpe, count_pretokens(["The quick brown fox."], gpt2), exceptions=1_000),
    ):
        assert plain.exceptions == {}
        assert plain.tokenizer.to_str() == gpt2_distilled.to_str()


def test_exceptions_change_only_the_pre_tokenizer(
    gpt2: Tokenizer, gpt2_distilled: Tokenizer, gpt2_exact: Distillation, gpt2_bpe: ByteLevelBPE
) -> None:
    assert gpt2_exact.exceptions
    assert gpt2_exact.raised == scores_from_merges(gpt2_bpe)[1]
    exact, plain = json.loads(gpt2_exact.tokenizer.to_str()), json.loads(gpt2_distilled.to_str())
    differing = {key for key in exact if exact[key] != plain[key]}
    assert differing == {"pre_tokenizer"}


@given(TEXT)
@example("<|endoftext|>" * 3 + " <|endoftext|>x")
@example("\u0301")
@example("".join(map(chr, range(0x20))) + "\x7f\x80\x9f\u200b\ufeff\ufffe")
def test_round_trip_of_any_text_is_exact(gpt2_exact_on_odd: Distillation, text: str) -> None:
    tokenizer = gpt2_exact_on_odd.tokenizer
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids.count(50_256) == text.count("<|endoftext|>")


@pytest.mark.parametrize(
    "part", ["a", "é", " ", "\u0301", "=", "0", "p", "한", "\x00", "Grüße [0.5]\t한국어 x=(((1;e\u0301 ppp🙂\u200d\r\n"]
)
def test_round_trip_of_a_long_line_is_exact(gpt2_exact_on_odd: Distillation, part: str) -> None:
    line = (part * 100_000)[:100_000]
    tokenizer = gpt2_exact_on_odd.tokenizer
    assert tokenizer.decode(tokenizer.encode(line).ids, skip_special_tokens=False) == line


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
def normalized(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()


@change
def several_added_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False)])
    tokenizer.add_tokens(
        [AddedToken("한국어", normalized=False), AddedToken("lone", single_word=True, normalized=False)]
    )


ADDED = ["<|endoftext|>", "<|im_start|>", "한국어", "lone", " cloned"]


@pytest.mark.parametrize("kind", CHANGES)
def test_surroundings_of_the_model_work_as_in_the_base(kind: str, tiny_bpe: Tokenizer, topics: list[str]) -> None:
    base = Tokenizer.from_str(tiny_bpe.to_str())
    CHANGES[kind](base)
    distilled = distill(base, read_bpe(base)).tokenizer
    assert distilled.get_vocab(with_added_tokens=True) == base.get_vocab(with_added_tokens=True)
    added = [token["id"] for token in json.loads(base.to_str())["added_tokens"]]
    text = " ".join(ADDED) + "".join(ADDED) + "caf\u0065\u0301 12345\r\n\n  It's 7"
    ours, theirs = distilled.encode(text), base.encode(text)
    assert [i for i in ours.ids if i in added] == [i for i in theirs.ids if i in added]
    assert distilled.decode(ours.ids, skip_special_tokens=False) == base.decode(theirs.ids, skip_special_tokens=False)
    assert distilled.decode(ours.ids) == base.decode(theirs.ids)
    counts = count_pretokens(topics[20:30], base)
    words = only(counts, lambda piece: piece.strip().isalpha())
    assert measure_agreement(base, distilled, words).share >= 0.999
    exact = distill(base, read_bpe(base), counts, exceptions=1_000).tokenizer
    assert measure_agreement(base, Tokenizer.from_str(exact.to_str()), counts).share == 1.0


@given(st.lists(st.text("abcd "), min_size=1, max_size=10), st.text("abcd =é", max_size=20))
@settings(max_examples=50)
def test_any_trained_bpe_is_distilled_exactly(train_bpe: Callable[..., Tokenizer], texts: list[str], text: str) -> None:
    base = train_bpe(texts * 2, 20)
    bpe = read_bpe(base)
    counts = count_pretokens([*texts, *map("".join, pairwise(texts)), text], base)
    distilled = distill(base, bpe, counts, exceptions=1_000).tokenizer
    for made in bpe.merge_of:
        assert [token.id for token in distilled.model.tokenize(bpe.strings[made])] == [made]
    assert measure_agreement(base, distilled, counts).share == 1.0
    assert distilled.decode(distilled.encode(text).ids) == text


def test_missing_bytes_are_dropped_as_by_the_base(train_bpe: Callable[..., Tokenizer], topics: list[str]) -> None:
    lacking = {*string_of("d^]-\\한"), "ÿ"}
    base = train_bpe(topics[:10], 200, alphabet=sorted(CHARACTER_TO_BYTE.keys() - lacking))
    bpe = read_bpe(base)
    distilled = distill(base, bpe).tokenizer
    dropped = 0
    for text in ["d", "a^b", "had - ]", "\\", "한국어", "ddd<|endoftext|>d", *topics[:3]]:
        theirs, ours = base.encode(text).ids, distilled.encode(text).ids
        assert distilled.decode(ours, skip_special_tokens=False) == base.decode(theirs, skip_special_tokens=False)
        dropped += len(string_of(text)) - sum(len(bpe.strings[i]) for i in ours)
        assert text in topics or ours == theirs
    assert dropped > 100


def test_saved_tokenizer_gives_the_same_ids(
    tmp_path: Path, gpt2_exact_on_odd: Distillation, topics: list[str], odd_counts: PretokenCounts
) -> None:
    tokenizer = gpt2_exact_on_odd.tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    back = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert back.to_str() == tokenizer.to_str()
    texts = [*topics, *odd_counts.types, "<|endoftext|>" + "=" * 100]
    assert [e.ids for e in back.encode_batch(texts)] == [e.ids for e in tokenizer.encode_batch(texts)]


def test_indented_code_agrees_if_line_breaks_and_spaces_are_one_token(train_bpe: Callable[..., Tokenizer]) -> None:
    """As in vocabularies made from code (StarCoder, SmolLM2)."""
    functions: list[Callable[..., object]] = [distill, repair_scores, run_cuts, trie_pattern, read_bpe]
    functions += [measure_agreement, count_pretokens, given]
    code = [Path(inspect.getfile(function)).read_text(encoding="utf-8") for function in functions]
    base = train_bpe(code, 1500)
    assert base.token_to_id("ĊĠĠĠĠĠĠĠ") is not None
    distilled = distill(base, read_bpe(base)).tokenizer
    assert measure_agreement(base, distilled, count_pretokens(code, base)).share >= 0.998
    breaks = ["\n" * lines + " " * spaces for lines in (1, 2) for spaces in range(40)]
    same = [distilled.encode(text).ids == base.encode(text).ids for text in breaks]
    assert sum(same) >= 0.95 * len(same)


@pytest.mark.parametrize("added", ["        ", "====", "─────"])
def test_added_token_may_be_a_run(added: str, tiny_bpe: Tokenizer) -> None:
    base = Tokenizer.from_str(tiny_bpe.to_str())
    base.add_tokens([AddedToken(added, normalized=False)])
    distilled = distill(base, read_bpe(base)).tokenizer
    assert distilled.get_vocab() == base.get_vocab()
    text = f"a{added}b {added}{added} ===="
    assert distilled.encode(text).ids == base.encode(text).ids
