"""The selection as a whole: candidates in the order of their worth, their number, and the ids that they receive."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.lengths import PretokenizedTexts, pretokenize_texts
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.vocabulary.candidate import Candidate, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.elimination import rank_candidates, reachable_candidates
from ivr_dagster.core.vocabulary.remap import remap_tokenizer
from ivr_dagster.core.vocabulary.sacrifice import check_enough_ids, protected_ids
from ivr_dagster.core.vocabulary.table import candidates_table, fits_base, rules_from_table
from ivr_dagster.settings import SelectionSettings

STEP = 100  # new tokens; `auto` decides about so many at a time
# maximum for `auto`: more rows than a fine-tuning on a few megabytes can learn
AUTO_MAXIMUM = 10_000


@dataclass(frozen=True)
class Plan:
    """A selection and how it compares with the previous one.

    Attributes:
        table: see :data:`~ivr_dagster.core.vocabulary.table.COLUMNS`.
        train_tokens: tokens of the train split under the base tokenizer.
        kept, moved, dropped: rules of the previous selection that are unchanged, get another id, are gone.
        rejected_gain: if the previous selection stays, the additional share of held-out tokens that the best new one
            would save; None for a new selection.
        heldout_now: what the previous selection, if it stays, saves of the held-out split now. The figures in its
            table are of the corpus it was made on.
    """

    table: pl.DataFrame
    train_tokens: int
    kept: int = 0
    moved: int = 0
    dropped: int = 0
    rejected_gain: float | None = None
    heldout_now: float | None = None

    @property
    def saving_train(self) -> float | None:
        """Share of the train split's tokens saved; None if the previous selection stays."""
        if self.rejected_gain is not None:
            return None
        return float(self.table["saving"].sum()) / max(self.train_tokens, 1)

    @property
    def saving_heldout(self) -> float:
        """Share of the held-out split's tokens saved."""
        return float(self.table["heldout_saving"].sum()) if self.heldout_now is None else self.heldout_now


@dataclass(frozen=True)
class _Text:
    """The text that a selection is made and measured on."""

    counts: PretokenCounts
    frequencies: np.ndarray
    train: Iterable[str]
    heldout: PretokenizedTexts


def plan_selection(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    frequencies: np.ndarray,
    texts: Iterable[str],
    heldout: Sequence[str],
    settings: SelectionSettings,
    *,
    previous: pl.DataFrame | None = None,
    same_settings: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Choose new tokens and the ids that they receive.

    If `sticky`, rules of the previous selection keep their ids while they pay off. The whole previous selection stays
    while the new one saves less than `least_gain` more, since another vocabulary means training another model.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary of V ids.
        counts: pre-token counts of the train split.
        frequencies: occurrences of the base's ids there, int64 [V].
        texts: the train split; read for phrases only.
        heldout: the held-out split.
        settings: what to select.
        previous: the table of the previous selection; rules for another base are ignored.
        same_settings: whether it was made with the current settings and code; otherwise it cannot stay whole.
        progress: called with (candidates so far, maximum).

    Raises:
        InputError: more new tokens are requested than ids can be reassigned.
    """
    text = _Text(counts, frequencies, texts, pretokenize_texts(heldout, base))
    if not settings.sticky:
        previous = None
    old_rules = rules_from_table(previous).rules if previous is not None else ()
    old_ids = {
        rule.new_token: rule.id
        for rule in old_rules
        if 0 <= rule.id < bpe.size and bpe.strings[rule.id] == rule.sacrificed_token
    }
    selection, shares = _choose(base, bpe, text, settings, list(old_ids), progress)
    table = candidates_table(selection, bpe, frequencies, heldout=shares, previous_ids=old_ids)
    remapped = remap_tokenizer(base, bpe, rules_from_table(table)).tokenizer
    costs = [len(remapped.model.tokenize(string)) for string in table["sacrificed_token"]]
    # shares were measured without sacrifices; their cost is distributed evenly
    saving = text.heldout.saving(remapped)
    table = table.with_columns(
        pl.col("heldout_saving") + (saving - float(table["heldout_saving"].sum())) / max(len(table), 1),
        sacrificed_cost=pl.Series(costs, dtype=pl.Int64),
    )
    if previous is not None and same_settings and fits_base(previous, bpe):
        old_saving = text.heldout.saving(remap_tokenizer(base, bpe, rules_from_table(previous)).tokenizer)
        if (gain := saving - old_saving) < settings.least_gain:
            return Plan(
                previous, selection.tokens_before, kept=len(previous), rejected_gain=gain, heldout_now=old_saving
            )
    kept, moved = (int((table["status"] == status).sum()) for status in ("kept", "moved"))
    return Plan(table, selection.tokens_before, kept, moved, len(old_rules) - kept - moved)


def _choose(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    text: _Text,
    settings: SelectionSettings,
    kept: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[Selection, np.ndarray]:
    """The selected candidates in the order of their worth, and the share of held-out tokens that each saves."""
    protected = protected_ids(bpe)
    free = bpe.size - len(protected)
    budget = settings.max_candidates or min(AUTO_MAXIMUM, free // 2)
    check_enough_ids(budget, free, bpe.size)
    selection = choose_candidates(
        base, bpe, text.counts, text.train, settings, budget=budget, kept=kept, progress=progress
    )
    selection = replace(selection, candidates=reachable_candidates(base, bpe, selection.candidates))
    ordered, shares = rank_candidates(base, bpe, selection, text.counts, text.heldout)
    if not settings.max_candidates:
        ordered = _while_it_pays(ordered, shares, settings.least_saving)
        in_use = {i for candidate in ordered for i in candidate.constituents}
        ordered = ordered[: free - len(in_use - protected)]
    return replace(selection, candidates=ordered), shares


def _while_it_pays(candidates: list[Candidate], shares: np.ndarray, least_saving: float) -> list[Candidate]:
    bytes_alone = sum(not candidate.constituents for candidate in candidates)  # they save nothing and come first
    return candidates[: bytes_alone + count_worthwhile(shares[bytes_alone:], least_saving)]


def count_worthwhile(shares: np.ndarray, least_saving: float) -> int:
    """How many candidates to take: up to the hundred that adds less than `least_saving`.

    Args:
        shares: what each candidate adds to the share of held-out tokens saved, in order.
        least_saving: a share of held-out tokens.
    """
    for start in range(0, len(shares), STEP):
        hundred = shares[start : start + STEP]
        if hundred.sum() < least_saving * len(hundred) / STEP:
            return start
    return len(shares)
