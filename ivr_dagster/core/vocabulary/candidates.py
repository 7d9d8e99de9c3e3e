"""Candidates: strings that would save the most tokens if each had an id.

Within pre-tokens by continued BPE (`within.py`), across them as phrases (`phrases.py`), in one order by what each
saves. Strings that had an id before keep it unless another is worth much more.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.agreement import encode_to_themselves
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import SHORTEST_RUN, cut_pattern, run_cuts, run_heads, whole_run
from ivr_dagster.core.tokenizer.lattice import Lattice, Vocabulary
from ivr_dagster.core.tokenizer.lengths import CutTexts, tokens_of
from ivr_dagster.core.tokenizer.scores import scores_with_new
from ivr_dagster.core.tokenizer.segments import encode_each, places_of_any
from ivr_dagster.core.tokenizer.trie import escaped
from ivr_dagster.core.tokenizer.unigram import extended_tokenizer, unigram_tokenizer
from ivr_dagster.core.tokens.byte_level import (
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    bytes_of,
    is_byte_level,
    string_of,
    strings_of,
    whole_text,
)
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import PreTokenization, read_pretokenization
from ivr_dagster.core.vocabulary.candidate import Candidate, Guards, Selection
from ivr_dagster.core.vocabulary.phrases import end_of, pattern_with, select_phrases
from ivr_dagster.core.vocabulary.within import select_within
from ivr_dagster.errors import InputError

# a string without an id takes the place of one that has it if it saves more than so many times as much
STAYING_POWER = 2
# below so many candidates the saving is not measured again
SMALLEST_MEASURED = 200
# characters; of what is longer (base64, DNA) no new token is that long
LONGEST_PIECE = 10_000
# byte values that no UTF-8 holds
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def choose_candidates(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    texts: Iterable[str],
    *,
    budget: int,
    guards: Guards = Guards(),  # noqa: B008 (frozen)
    across: bool = False,
    most_phrases: int | None = None,
    kept: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates within pre-tokens and, where `across`, phrases of them, in one order by saving.

    Bytes of UTF-8 that the base has no token for, and drops without a word, come before all others.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        counts: pre-token counts of the train split.
        texts: the train split; read for phrases only.
        budget, guards, progress: as of :func:`select_within`.
        across: whether phrases take part.
        most_phrases: how many of them at most; None for as many as are worth it.
        kept: strings that have an id already; they go before others that save up to `STAYING_POWER` times as much.

    Raises:
        InputError: phrases are asked for and the base's pre-tokenizer is more than one pattern.
    """
    pretokenization = read_pretokenization(base)
    if across and pretokenization.pattern is None:
        raise InputError(
            "new tokens across pre-tokens need a pre-tokenizer that is one pattern, this tokenizer's is not",
            where="merge_scope",
            remedy="Set --merge-scope within.",
        )
    in_bytes = bytes_without_token(bpe, counts)[:budget]
    budget -= len(in_bytes)
    before = frozenset(kept)
    phrases_kept, words_kept = _by_scope(base, bpe, pretokenization, filter(guards.may_be, kept))
    pieces, weights = _pieces(base, bpe, counts.types, counts.counts)
    sequences = encode_each(Tokenizer(base.model), pieces).lists()

    def continue_from(kept: list[Candidate], budget: int, progress: Callable[[int, int], None] | None) -> Selection:
        started = None
        if kept:
            model = extended_tokenizer(base, bpe, [candidate.string for candidate in kept], repair=False).model
            started = encode_each(Tokenizer(model), pieces)
        return select_within(
            sequences,
            weights,
            bpe.strings,
            budget=budget,
            guards=guards,
            kept=kept,
            kept_sequences=None if started is None else started.lists(),
            progress=progress,
        )

    within = continue_from(words_kept, budget, progress)
    if not kept:  # once more with what was found: some are not used where longer ones overlap them
        found = within.candidates[:budget]
        again = continue_from(found, budget - len(found) + len(found) // 10, None)
        within = Selection(_best(again.candidates, budget), again.tokens_before)
    candidates = within.candidates
    if across:
        phrases = _choose_phrases(base, bpe, counts, texts, within, phrases_kept, budget, guards, before)
        candidates = [*candidates, *_best(phrases, budget if most_phrases is None else most_phrases, before)]
    best = [*in_bytes, *_best(candidates, budget, before)]
    return Selection(best, within.tokens_before)


def _best(candidates: list[Candidate], budget: int, before: frozenset[str] = frozenset()) -> list[Candidate]:
    """The `budget` best by falling saving, ties by string; those of `before` stay where they can."""
    worth = {c.string: c.saving * (STAYING_POWER if c.string in before else 1) for c in candidates}
    order = sorted(candidates, key=lambda c: (-worth[c.string], c.string not in before, c.string))
    best = order[:budget]
    return sorted(best, key=lambda candidate: (-candidate.saving, candidate.string))


def bytes_without_token(bpe: ByteLevelBPE, counts: PretokenCounts) -> list[Candidate]:
    """Bytes of UTF-8 for which the base has no token, by value, with their occurrences; they save nothing."""
    missing = [byte for byte, c in BYTE_TO_CHARACTER.items() if c not in bpe.ids and byte not in NEVER_IN_UTF8]
    if not missing:
        return []
    held = np.frombuffer("".join(counts.types).encode(), dtype=np.uint8)
    sizes = pl.Series(counts.types, dtype=pl.String).str.len_bytes().to_numpy()
    found = np.bincount(held, weights=np.repeat(counts.counts, sizes), minlength=256)
    return [Candidate(BYTE_TO_CHARACTER[byte], (), 0, int(found[byte])) for byte in sorted(missing)]


def _by_scope(
    base: Tokenizer, bpe: ByteLevelBPE, pretokenization: PreTokenization, kept: Iterable[str]
) -> tuple[list[Candidate], list[Candidate]]:
    """Strings chosen before, those across pre-tokens and those within, as candidates whose saving is not known yet."""
    split = pretokenization.splitter(base)
    across: list[Candidate] = []
    within: list[Candidate] = []
    for string in kept:
        if string in bpe.ids or not is_byte_level(string):
            continue
        text = whole_text(string)
        is_phrase = text is not None and len(split(text)) > 1
        constituents = _constituents(base, split(text)) if text and is_phrase else _cut_by_model(base, string)
        if len(constituents) < 2 or "".join(bpe.strings[i] for i in constituents) != string:
            continue
        (across if is_phrase else within).append(Candidate(string, constituents, 0, 0))
    return across, within


def _cut_by_model(base: Tokenizer, string: str) -> tuple[int, ...]:
    return tuple(token.id for token in base.model.tokenize(string))


def _constituents(base: Tokenizer, pretokens: Iterable[str]) -> tuple[int, ...]:
    """Ids of these pre-tokens, each encoded by itself."""
    return tuple(i for piece in pretokens for i in base.encode(piece, add_special_tokens=False).ids)


def _pieces(
    base: Tokenizer, bpe: ByteLevelBPE, types: Sequence[str], counts: np.ndarray, new: Collection[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """What :func:`cut_pieces` gives, also cut at bytes that the base has no token for, these left out.

    Runs that are among the `new` tokens are not cut; while there are none yet, no type that is a run as a whole is.
    """
    missing = [character for character in CHARACTER_TO_BYTE if character not in bpe.ids]
    cuts = [run_cuts(base, bpe.model_strings, new or ()), *map(escaped, missing)]
    heads = run_heads(bpe.model_strings)
    marks = [*(SHORTEST_RUN * character for character in heads), *missing]
    whole = {} if new is not None else heads
    pieces, weights = cut_pieces(types, counts, "|".join(filter(None, cuts)) or None, whole, marks=marks)
    present = [n for n, piece in enumerate(pieces) if len(piece) > 1 or piece in bpe.ids or piece in (new or ())]
    return [pieces[n] for n in present], weights[present]


def _choose_phrases(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    texts: Iterable[str],
    within: Selection,
    kept: list[Candidate],
    budget: int,
    guards: Guards,
    before: frozenset[str],
) -> list[Candidate]:
    """Phrases by falling saving over what words save by themselves."""
    pretokenization = read_pretokenization(base)
    pattern = pretokenization.pattern or ""
    words = [candidate.string for candidate in _best(within.candidates, budget, before)]
    tokenizer = extended_tokenizer(base, bpe, words)
    lengths = dict(zip(counts.types, encode_each(tokenizer, counts.types).lengths.tolist(), strict=True))
    runs = run_cuts(base, bpe.model_strings)
    cut = regex.compile(runs) if runs else None
    known = {*words, *bpe.strings}

    def allowed(text: str) -> bool:
        string = string_of(text)
        return (
            end_of(text, pattern) is not None
            and string not in known
            and guards.may_be(string)
            and not (cut and cut.search(string))
            and not pretokenization.has_added_token(text)
        )

    phrases = select_phrases(
        texts,
        pretokenization.splitter(base),
        lambda piece: lengths.get(piece, 1),
        budget=budget,
        min_saving=guards.min_frequency,
        least_documents=guards.least_documents,
        allowed=allowed,
        kept=[text for text in (bytes_of(candidate.string).decode() for candidate in kept) if allowed(text)],
    )
    found = [
        Candidate(string_of(phrase.text), _constituents(base, phrase.pretokens), phrase.saving, phrase.frequency)
        for phrase in phrases
    ]
    # the base drops bytes that it has no token for: nothing it knows makes up such a phrase
    return [c for c in found if "".join(bpe.strings[i] for i in c.constituents) == c.string]


def order_by_worth(
    base: Tokenizer, bpe: ByteLevelBPE, selection: Selection, counts: PretokenCounts, heldout: CutTexts
) -> tuple[list[Candidate], np.ndarray]:
    """The candidates such that the first n are a good choice of n, and what each adds to the saving on held-out text.

    From all of them, the half that is missed least is left out, again and again; what is left is measured on held-out
    text each time. Candidates are missed by their occurrences times the tokens that would stand in their place.

    Returns:
        The candidates, and shares of held-out tokens, float64: their running sum is measured at N, N/2, N/4, ...
        candidates, and between these shared out by how much each is missed.
    """
    fixed = [candidate for candidate in selection.candidates if not candidate.constituents]
    left = [candidate for candidate in selection.candidates if candidate.constituents]
    ordered: list[Candidate] = []
    shares: list[np.ndarray] = []
    worth_of = _worth(base, bpe, selection.candidates, counts, heldout)
    saving, missed = worth_of([*fixed, *left])
    while left:
        missed = missed[len(fixed) :]
        rank = np.lexsort((np.arange(len(left)), -missed))
        keep = len(left) // 2 if len(left) > SMALLEST_MEASURED else 0
        kept = [left[n] for n in rank[:keep]]
        less, missed_next = worth_of([*fixed, *kept]) if keep else (0.0, np.empty(0))
        weights = missed[rank[keep:]] + 1e-9
        ordered = [left[n] for n in rank[keep:]] + ordered
        shares.insert(0, (saving - less) * weights / weights.sum())
        left, saving, missed = kept, less, missed_next
    return [*fixed, *ordered], np.concatenate([np.zeros(len(fixed)), *shares])


def _worth(
    base: Tokenizer, bpe: ByteLevelBPE, candidates: Sequence[Candidate], counts: PretokenCounts, heldout: CutTexts
) -> Callable[[list[Candidate]], tuple[float, np.ndarray]]:
    """A function from some candidates to the share of held-out tokens that they save and how much each is missed.

    A candidate is missed by the tokens of the train split that would be more without it, all others being there,
    float64. Runs are cut as if all candidates were there.
    """
    total = heldout.base_tokens
    id_of = {candidate.string: bpe.size + n for n, candidate in enumerate(candidates)}
    strings = [*bpe.strings, *id_of]
    vocabulary = Vocabulary(strings)
    pieces, weights = _pieces(base, bpe, counts.types, counts.counts, id_of)
    holding = places_of_any([*id_of], pl.Series(pieces, dtype=pl.String))
    weights, on_train = weights[holding], Lattice(vocabulary, [pieces[n] for n in holding])
    heldout_pieces, heldout_weights = _pieces(base, bpe, heldout.types, heldout.counts, id_of)
    on_heldout, themselves = Lattice(vocabulary, heldout_pieces), Lattice(vocabulary, [*id_of])

    def worth_of(candidates: list[Candidate]) -> tuple[float, np.ndarray]:
        new = [candidate.string for candidate in candidates]
        scored = scores_with_new(bpe, [*bpe.strings, *new], repair=False)
        ids = np.array([id_of[string] for string in new], dtype=np.int64)
        scores = np.full(len(strings), -np.inf)  # so that ids stay whoever is left out
        scores[: bpe.size], scores[ids] = scored[: bpe.size], scored[bpe.size :]
        segments = on_train.best(scores).segments
        standing = np.bincount(segments.ids, np.repeat(weights, segments.lengths), minlength=len(strings))[ids]
        # a phrase stands in no single pre-token
        standing = np.where(standing > 0, standing, [candidate.frequency for candidate in candidates])
        missed = standing * (themselves.best(scores, split=True).tokens[ids - bpe.size] - 1)
        pattern = pattern_with(base, new)
        if pattern is None:
            tokens = int(heldout_weights @ on_heldout.best(scores).tokens) + int(heldout.added.sum())
        else:
            cuts = cut_pattern(run_cuts(base, bpe.model_strings, new), {})
            across = unigram_tokenizer(base, [*bpe.strings, *new], scored, cuts=cuts, pattern=pattern)
            tokens = int(tokens_of(across, heldout.texts).sum())
        return (1 - tokens / total if total else 0.0), missed

    return worth_of


def reachable(base: Tokenizer, bpe: ByteLevelBPE, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those whose own text is encoded as that one token once all are in use."""
    new = [candidate.string for candidate in candidates]
    tokenizer = extended_tokenizer(base, bpe, new, pattern=pattern_with(base, new), repair=False)
    found = encode_to_themselves(tokenizer, new, range(bpe.size, bpe.size + len(new)))
    return [candidate for candidate, itself in zip(candidates, found, strict=True) if itself]


def cut_pieces(
    types: Sequence[str],
    counts: np.ndarray,
    cuts: str | None,
    heads: Mapping[str, set[str]],
    *,
    marks: Sequence[str] = ("",),
) -> tuple[list[str], np.ndarray]:
    """Byte-level strings inside which a new token may lie, with their counts (int64), by falling count.

    Pre-token types, cut where the distilled tokenizer cuts them once more: a candidate across such a cut could never
    be produced. Types that are runs as a whole (behind one of `heads`) stay so: a run that becomes a token is not cut.
    A type that holds none of `marks` is never cut, and not looked through. What is longer than `LONGEST_PIECE` is cut
    there, whatever it is.
    """
    strings = pl.Series(strings_of(types), dtype=pl.String)
    pattern = regex.compile(f"({cuts})") if cuts else None
    marked = strings.str.len_chars() > LONGEST_PIECE
    if pattern:
        marked |= strings.str.contains_any(list(marks))

    def cut(string: str) -> Iterator[str]:
        pieces = pattern.split(string) if pattern and not whole_run(string, heads) else [string]
        return (
            piece[start : start + LONGEST_PIECE] for piece in pieces for start in range(0, len(piece), LONGEST_PIECE)
        )

    pieces = [list(cut(string)) for string in strings.filter(marked)]
    weights = pl.Series(counts, dtype=pl.Int64)
    found = pl.concat(
        [
            pl.DataFrame({"piece": strings, "count": weights}).filter(~marked),
            pl.DataFrame(
                {"piece": pl.Series(pieces, dtype=pl.List(pl.String)), "count": weights.filter(marked)}
            ).explode("piece", empty_as_null=False),
        ]
    )
    found = found.group_by("piece").agg(pl.col("count").sum()).sort(["count", "piece"], descending=[True, False])
    return found["piece"].to_list(), found["count"].to_numpy()
