"""Ranks candidates by the held-out tokens that they save (backward elimination) and drops unreachable ones."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.agreement import is_reachable
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import cut_pattern, run_cuts
from ivr_dagster.core.tokenizer.lattice import Lattice, Vocabulary
from ivr_dagster.core.tokenizer.lengths import PretokenizedTexts, count_tokens_per_text
from ivr_dagster.core.tokenizer.scores import scores_with_new
from ivr_dagster.core.tokenizer.segments import indices_containing
from ivr_dagster.core.tokenizer.unigram import extended_tokenizer, unigram_tokenizer
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.candidate import Candidate, Selection
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.pieces import pieces_of_types

# at this many candidates or fewer, the saving is not measured again
MAX_UNMEASURED = 200


def reachable_candidates(base: Tokenizer, bpe: ByteLevelBPE, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose text is encoded as a single token when all candidates are in the vocabulary."""
    new = [candidate.string for candidate in candidates]
    tokenizer = extended_tokenizer(base, bpe, new, pattern=pattern_with(base, new), repair=False)
    found = is_reachable(tokenizer, new, range(bpe.size, bpe.size + len(new)))
    return [candidate for candidate, reachable in zip(candidates, found, strict=True) if reachable]


def rank_candidates(
    base: Tokenizer, bpe: ByteLevelBPE, selection: Selection, counts: PretokenCounts, heldout: PretokenizedTexts
) -> tuple[list[Candidate], np.ndarray]:
    """Rank candidates so that the first n are a good choice of n, and attribute the held-out saving to them.

    Backward elimination: repeatedly remove the half with the lowest removal costs, then measure the saving of the
    remaining half on held-out text. A candidate's removal cost is its occurrences times the additional tokens that
    replace it.

    Returns:
        The ranked candidates, and the share of held-out tokens that each saves, float64. The cumulative sum is measured
        at N, N/2, N/4, ... candidates and distributed in between in proportion to removal costs.
    """
    fixed = [candidate for candidate in selection.candidates if not candidate.constituents]
    remaining = [candidate for candidate in selection.candidates if candidate.constituents]
    ordered: list[Candidate] = []
    shares: list[np.ndarray] = []
    measure = _measurement(base, bpe, selection.candidates, counts, heldout)
    saving, costs = measure([*fixed, *remaining])
    while remaining:
        costs = costs[len(fixed) :]
        rank = np.lexsort((np.arange(len(remaining)), -costs))
        keep = len(remaining) // 2 if len(remaining) > MAX_UNMEASURED else 0
        kept = [remaining[n] for n in rank[:keep]]
        kept_saving, kept_costs = measure([*fixed, *kept]) if keep else (0.0, np.empty(0))
        weights = costs[rank[keep:]] + 1e-9
        ordered = [remaining[n] for n in rank[keep:]] + ordered
        shares.insert(0, (saving - kept_saving) * weights / weights.sum())
        remaining, saving, costs = kept, kept_saving, kept_costs
    return [*fixed, *ordered], np.concatenate([np.zeros(len(fixed)), *shares])


def _measurement(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    candidates: Sequence[Candidate],
    counts: PretokenCounts,
    heldout: PretokenizedTexts,
) -> Callable[[list[Candidate]], tuple[float, np.ndarray]]:
    """A function from candidates to the share of held-out tokens that they save and the removal cost of each.

    The removal cost is the number of additional train tokens if only that candidate is removed, float64. Runs are cut
    as if all candidates were in the vocabulary.
    """
    total = heldout.base_tokens
    id_of = {candidate.string: bpe.size + n for n, candidate in enumerate(candidates)}
    strings = [*bpe.strings, *id_of]
    vocabulary = Vocabulary(strings)
    pieces, weights = pieces_of_types(base, bpe, counts.types, counts.counts, id_of)
    relevant = indices_containing([*id_of], pl.Series(pieces, dtype=pl.String))
    weights, train_lattice = weights[relevant], Lattice(vocabulary, [pieces[n] for n in relevant])
    heldout_pieces, heldout_weights = pieces_of_types(base, bpe, heldout.types, heldout.counts, id_of)
    heldout_lattice, candidate_lattice = Lattice(vocabulary, heldout_pieces), Lattice(vocabulary, [*id_of])

    def measure(candidates: list[Candidate]) -> tuple[float, np.ndarray]:
        new = [candidate.string for candidate in candidates]
        scored = scores_with_new(bpe, [*bpe.strings, *new], repair=False)
        ids = np.array([id_of[string] for string in new], dtype=np.int64)
        scores = np.full(len(strings), -np.inf)  # ids do not depend on which candidates are used
        scores[: bpe.size], scores[ids] = scored[: bpe.size], scored[bpe.size :]
        segments = train_lattice.best(scores).segments
        occurrences = np.bincount(segments.ids, np.repeat(weights, segments.lengths), minlength=len(strings))[ids]
        # phrases do not occur in any single pre-token
        occurrences = np.where(occurrences > 0, occurrences, [candidate.frequency for candidate in candidates])
        costs = occurrences * (candidate_lattice.best(scores, split=True).tokens[ids - bpe.size] - 1)
        pattern = pattern_with(base, new)
        if pattern is None:
            tokens = int(heldout_weights @ heldout_lattice.best(scores).tokens) + int(heldout.added.sum())
        else:
            cuts = cut_pattern(run_cuts(base, bpe.model_strings, new), {})
            tokenizer = unigram_tokenizer(base, [*bpe.strings, *new], scored, cuts=cuts, pattern=pattern)
            tokens = int(count_tokens_per_text(tokenizer, heldout.texts).sum())
        return (1 - tokens / total if total else 0.0), costs

    return measure
