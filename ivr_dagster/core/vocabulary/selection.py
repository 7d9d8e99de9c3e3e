"""The selection as a whole: candidates in the order of their worth, their number, and the ids that they receive."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from tokenizers import Regex, Tokenizer, pre_tokenizers

from ivr_dagster.core.tokenizer.agreement import is_reachable
from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import run_cuts
from ivr_dagster.core.tokenizer.lengths import PretokenizedTexts, pretokenize_texts
from ivr_dagster.core.tokenizer.segments import encode_each, segments_of_types
from ivr_dagster.core.tokens.byte_level import bytes_of, strings_of
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import read_pretokenization
from ivr_dagster.core.vocabulary.candidate import Candidate, Selection
from ivr_dagster.core.vocabulary.candidates import choose_candidates
from ivr_dagster.core.vocabulary.phrases import pattern_with
from ivr_dagster.core.vocabulary.remap import bpe_with, remap_tokenizer
from ivr_dagster.core.vocabulary.rules import RemapRule
from ivr_dagster.core.vocabulary.sacrifice import check_enough_ids, protected_ids
from ivr_dagster.core.vocabulary.table import candidates_table, fits_base, rules_from_table
from ivr_dagster.core.vocabulary.within import count_merges
from ivr_dagster.settings import SelectionSettings

STEP = 100  # new tokens; `auto` decides about so many at a time
# maximum for `auto`: more rows than a fine-tuning on a few megabytes can learn
AUTO_MAXIMUM = 10_000


@dataclass(frozen=True)
class Plan:
    """A selection and how it compares with the previous one.

    Attributes:
        table: see :data:`~ivr_dagster.core.vocabulary.table.COLUMNS`.
        saving_train: share of the train split's tokens saved, net of what sacrificed tokens cost; None if the previous
            selection stays.
        kept, moved, dropped: rules of the previous selection that are unchanged, get another id, are gone.
        rejected_gain: if the previous selection stays, the additional share of held-out tokens that the best new one
            would save; None for a new selection.
        heldout_now: what the previous selection, if it stays, saves of the held-out split now. The figures in its
            table are of the corpus it was made on.
    """

    table: pl.DataFrame
    saving_train: float | None
    kept: int = 0
    moved: int = 0
    dropped: int = 0
    rejected_gain: float | None = None
    heldout_now: float | None = None

    @property
    def saving_heldout(self) -> float:
        """Share of the held-out split's tokens saved."""
        return float(self.table["heldout_saving"].sum()) if self.heldout_now is None else self.heldout_now


@dataclass(frozen=True)
class _Text:
    """The text that a selection is made and measured on, and the share of the train split that is trained on."""

    counts: PretokenCounts
    train: Iterable[str]
    heldout: PretokenizedTexts
    trained_share: float


def plan_selection(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    frequencies: np.ndarray,
    texts: Iterable[str],
    heldout: Sequence[str],
    settings: SelectionSettings,
    *,
    train_bytes: int = 0,
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
        train_bytes: bytes of the train split that are trained on; 0 for all.
        previous: the table of the previous selection; rules for another base are ignored.
        same_settings: whether it was made with the current settings and code; otherwise it cannot stay whole.
        progress: called with (candidates so far, maximum).

    Raises:
        InputError: more new tokens are requested than ids can be reassigned.
    """
    trained_share = min(1.0, train_bytes / counts.bytes) if train_bytes and counts.bytes else 1.0
    text = _Text(counts, texts, pretokenize_texts(heldout, base), trained_share)
    old_rules = rules_from_table(previous).rules if previous is not None and settings.sticky else ()
    old_rules = tuple(r for r in old_rules if 0 <= r.id < bpe.size and bpe.strings[r.id] == r.sacrificed_token)
    selection, shares = _choose(base, bpe, text, settings, old_rules, progress)
    old_ids = {rule.new_token: rule.id for rule in old_rules}
    table = candidates_table(selection, bpe, frequencies, heldout=shares, previous_ids=old_ids)
    remapped = remap_tokenizer(base, bpe, rules_from_table(table))
    costs = [len(remapped.model.tokenize(string)) for string in table["sacrificed_token"]]
    # the shares do not include what sacrificed tokens cost: subtract it in equal parts, so that they add up to `saving`
    saving = text.heldout.saving(remapped)
    table = table.with_columns(
        pl.col("heldout_saving") + (saving - float(table["heldout_saving"].sum())) / max(len(table), 1),
        sacrificed_cost=pl.Series(costs, dtype=pl.Int64),
    )
    if settings.sticky and previous is not None and same_settings and fits_base(previous, bpe):
        old_saving = text.heldout.saving(remap_tokenizer(base, bpe, rules_from_table(previous)))
        if (gain := saving - old_saving) < settings.least_gain:
            return Plan(previous, None, kept=len(previous), rejected_gain=gain, heldout_now=old_saving)
    kept, moved = (int((table["status"] == status).sum()) for status in ("kept", "moved"))
    saved = _saved_tokens(base, remapped, counts) + sum(c.saving for c in selection.candidates if c.is_phrase)
    return Plan(table, saved / max(int(frequencies.sum()), 1), kept, moved, len(old_rules) - kept - moved)


def _saved_tokens(base: Tokenizer, remapped: Tokenizer, counts: PretokenCounts) -> int:
    """Tokens that a remapped tokenizer saves of the train split, without phrases."""
    before, after = segments_of_types(base, counts.types).lengths, encode_each(remapped, counts.types).lengths
    return int((before - after) @ counts.counts)


def _choose(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    text: _Text,
    settings: SelectionSettings,
    kept: Sequence[RemapRule],
    progress: Callable[[int, int], None] | None,
) -> tuple[Selection, np.ndarray]:
    """The selected candidates in the order of their worth, and the share of held-out tokens that each saves."""
    free = bpe.size - len(protected_ids(bpe))
    budget = settings.max_candidates or min(AUTO_MAXIMUM, free // 2)
    check_enough_ids(budget, free, bpe.size)
    selection = choose_candidates(
        base, bpe, text.counts, text.train, settings, budget=budget, kept=kept, progress=progress
    )
    selection = _reachable(base, bpe, selection)
    shares = heldout_shares(base, bpe, selection, text.heldout)
    if not settings.max_candidates:
        bytes_alone = sum(not candidate.constituents for candidate in selection.candidates)  # they come first
        rest = selection.candidates[bytes_alone:]
        worthwhile = count_worthwhile(shares[bytes_alone:], settings.least_saving)
        learnable = count_learnable(rest, settings.least_occurrences / text.trained_share)
        selection = selection.first(bytes_alone + min(worthwhile, learnable))
        in_use = {i for candidate in selection.candidates for i in candidate.constituents}
        selection = selection.first(bpe.size - len(protected_ids(bpe, in_use)))
    return selection, shares


def _reachable(base: Tokenizer, bpe: ByteLevelBPE, selection: Selection) -> Selection:
    """Remove candidates that the BPE does not encode as one token or that the pre-tokenizer of its Unigram would cut.

    Tokens made of them are removed as well.
    """
    strings = [candidate.string for candidate in selection.candidates]
    tokenizer = _extended(base, bpe, selection)
    found = is_reachable(tokenizer, strings, range(bpe.size, bpe.size + len(strings)))
    runs = run_cuts(tokenizer, [*bpe.model_strings, *strings])
    cut = pre_tokenizers.Split(Regex(runs), "isolated") if runs else None
    lost = {
        string
        for string, reachable in zip(strings, found, strict=True)
        if not reachable or (cut and len(cut.pre_tokenize_str(string)) > 1)
    }
    for candidate in selection.in_merge_order():
        if not lost.isdisjoint(candidate.halves):
            lost.add(candidate.string)
    return replace(selection, candidates=[c for c in selection.candidates if c.string not in lost])


def _extended(base: Tokenizer, bpe: ByteLevelBPE, selection: Selection) -> Tokenizer:
    """The base tokenizer with the candidates at the ids V, V + 1, ..."""
    new_tokens = {candidate.string: bpe.size + n for n, candidate in enumerate(selection.candidates)}
    return bpe_with(base, new_tokens, selection.merges(), pattern=pattern_with(base, new_tokens))


def heldout_shares(base: Tokenizer, bpe: ByteLevelBPE, selection: Selection, heldout: PretokenizedTexts) -> np.ndarray:
    """The share of held-out tokens that each candidate saves, float64; they add up to the saving of all.

    A merge saves one token where it is applied, also inside longer tokens. A phrase saves what its pre-tokens take
    beyond one token.
    """
    words = [candidate for candidate in selection.in_merge_order() if candidate.halves]
    singles = [c.string for c in selection.candidates if not c.constituents]
    extended = bpe.extended([*singles, *(word.string for word in words)], selection.merges())
    tokenizer = Tokenizer(extended.model())
    encoded = encode_each(tokenizer, strings_of(heldout.types))
    frequencies = np.bincount(encoded.ids, np.repeat(heldout.counts, encoded.lengths), extended.size)
    ids = extended.ids
    halves = {ids[word.string]: (ids[word.halves[0]], ids[word.halves[1]]) for word in words}
    applied = count_merges(dict(enumerate(frequencies.tolist())), halves)
    saved = {word.string: applied[ids[word.string]] for word in words}
    phrases = [c.string for c in selection.candidates if c.is_phrase]
    if phrases:
        split = read_pretokenization(base).splitter(base)
        pieces = [split(bytes_of(phrase).decode()) for phrase in phrases]
        tokens = encode_each(tokenizer, strings_of([piece for each in pieces for piece in each])).lengths
        owners = np.repeat(np.arange(len(phrases)), list(map(len, pieces)))
        saved |= _phrase_savings(base, bpe, selection, heldout, phrases, np.bincount(owners, tokens).astype(np.int64))
    return np.array([saved.get(c.string, 0) for c in selection.candidates]) / max(heldout.base_tokens, 1)


def _phrase_savings(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    selection: Selection,
    heldout: PretokenizedTexts,
    phrases: list[str],
    tokens: np.ndarray,
) -> dict[str, int]:
    """Tokens that phrases save, given what each takes without its id, int64."""
    tokenizer = _extended(base, bpe, selection)
    counts = np.zeros(bpe.size + len(selection.candidates), dtype=np.int64)
    for encoding in tokenizer.encode_batch_fast(list(heldout.texts), add_special_tokens=False):
        counts += np.bincount(encoding.ids, minlength=len(counts))
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[phrase] for phrase in phrases]
    return dict(zip(phrases, (counts[ids] * (tokens - 1)).tolist(), strict=True))


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


def count_learnable(candidates: Sequence[Candidate], least_occurrences: float) -> int:
    """How many candidates to take: up to the hundred whose median occurs less than `least_occurrences` times.

    A merge counts where it is applied, also inside longer tokens, since a shorter selection has fewer of these.

    Args:
        candidates: in the order of their worth.
        least_occurrences: in the text that the candidates were counted on.
    """
    occurrences = np.array([c.saving if c.halves else c.frequency for c in candidates])
    for start in range(0, len(occurrences), STEP):
        if np.median(occurrences[start : start + STEP]) < least_occurrences:
            return start
    return len(occurrences)
