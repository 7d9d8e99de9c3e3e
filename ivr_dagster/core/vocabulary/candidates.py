"""Candidates: strings that would save the most tokens if each had an id.

Within pre-tokens by continued BPE (`within.py`), across them as phrases (`phrases.py`), ordered by saving. Strings that
already have an id keep it unless another one saves much more.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property

import numpy as np
import polars as pl
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import run_cuts
from ivr_dagster.core.tokenizer.segments import encode_each
from ivr_dagster.core.tokenizer.unigram import extended_tokenizer
from ivr_dagster.core.tokens.byte_level import BYTE_TO_CHARACTER, bytes_of, is_byte_level, string_of, whole_text
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import PreTokenization, read_pretokenization
from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter, Selection
from ivr_dagster.core.vocabulary.phrases import lookahead_after, select_phrases
from ivr_dagster.core.vocabulary.pieces import pieces_of_types
from ivr_dagster.core.vocabulary.within import select_within
from ivr_dagster.errors import InputError
from ivr_dagster.settings import SelectionSettings

# a string without an id replaces one that has it only if it saves more than this many times as much
REPLACEMENT_FACTOR = 2
# byte values that never occur in UTF-8
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def choose_candidates(
    base: Tokenizer,
    bpe: ByteLevelBPE,
    counts: PretokenCounts,
    texts: Iterable[str],
    settings: SelectionSettings,
    *,
    budget: int,
    kept: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Up to `budget` candidates within pre-tokens and, with merge_scope `across`, phrases, in one order by saving.

    Bytes of UTF-8 that the base has no token for, and silently drops, come first.

    Args:
        base: the base tokenizer.
        bpe: its vocabulary.
        counts: pre-token counts of the train split.
        texts: the train split; read for phrases only.
        settings: requirements for candidates and the merge scope.
        budget: maximum number of candidates.
        kept: strings that already have an id. They win against others that save up to `REPLACEMENT_FACTOR` times as
            much.
        progress: called with (candidates so far, budget).

    Raises:
        InputError: phrases are requested, but the base's pre-tokenizer is not a single pattern.
    """
    pretokenization = read_pretokenization(base)
    across = settings.merge_scope == "across"
    if across and pretokenization.pattern is None:
        raise InputError(
            "new tokens across pre-tokens need a pre-tokenizer with a single pattern; this tokenizer has none",
            where="merge_scope",
            remedy="Set --merge-scope within.",
        )
    return _Search(base, bpe, counts, settings, pretokenization, kept).run(texts, budget, across, progress)


class _Search:
    """One search for candidates."""

    def __init__(
        self,
        base: Tokenizer,
        bpe: ByteLevelBPE,
        counts: PretokenCounts,
        settings: SelectionSettings,
        pretokenization: PreTokenization,
        kept: Sequence[str],
    ) -> None:
        self._base, self._bpe, self._counts, self._settings = base, bpe, counts, settings
        self._pretokenization, self._filter = pretokenization, CandidateFilter(settings)
        self._split = pretokenization.splitter(base)
        self._kept = frozenset(kept)
        self._kept_phrases, self._kept_words = self._by_scope(filter(self._filter.accepts, kept))
        self._pieces, self._weights = pieces_of_types(base, bpe, counts.types, counts.counts)

    @cached_property
    def _sequences(self) -> list[list[int]]:
        return encode_each(Tokenizer(self._base.model), self._pieces).lists()

    def run(
        self, texts: Iterable[str], budget: int, across: bool, progress: Callable[[int, int], None] | None
    ) -> Selection:
        missing_bytes = bytes_without_token(self._bpe, self._counts)[:budget]
        budget -= len(missing_bytes)
        within = self._select_within(self._kept_words, budget, progress)
        if not self._kept:  # repeat with the result: some candidates are unused because longer ones overlap them
            found = within.candidates[:budget]
            again = self._select_within(found, budget - len(found) + len(found) // 10, None)
            within = Selection(_best(again.candidates, budget), again.tokens_before)
        candidates = within.candidates
        if across:
            phrases = self._select_phrases(texts, _best(within.candidates, budget, self._kept), budget)
            candidates = [*candidates, *_best(phrases, self._settings.max_phrases or budget, self._kept)]
        return Selection([*missing_bytes, *_best(candidates, budget, self._kept)], within.tokens_before)

    def _by_scope(self, kept: Iterable[str]) -> tuple[list[Candidate], list[Candidate]]:
        """Kept strings across and within pre-tokens, as candidates with unknown saving."""
        across: list[Candidate] = []
        within: list[Candidate] = []
        for string in kept:
            if string in self._bpe.ids or not is_byte_level(string):
                continue
            text = whole_text(string)
            pretokens = self._split(text) if text else []
            is_phrase = len(pretokens) > 1
            if is_phrase:
                constituents = self._constituents(pretokens)
            else:
                constituents = tuple(token.id for token in self._base.model.tokenize(string))
            if len(constituents) > 1 and self._joined(constituents) == string:
                (across if is_phrase else within).append(Candidate(string, constituents, 0, 0))
        return across, within

    def _joined(self, ids: Iterable[int]) -> str:
        return "".join(self._bpe.strings[i] for i in ids)

    def _constituents(self, pretokens: Iterable[str]) -> tuple[int, ...]:
        """Ids of these pre-tokens, each encoded separately."""
        return tuple(i for piece in pretokens for i in self._base.encode(piece, add_special_tokens=False).ids)

    def _select_within(
        self, kept: list[Candidate], budget: int, progress: Callable[[int, int], None] | None
    ) -> Selection:
        started = None
        if kept:
            strings = [candidate.string for candidate in kept]
            model = extended_tokenizer(self._base, self._bpe, strings, repair=False).model
            started = encode_each(Tokenizer(model), self._pieces).lists()
        return select_within(
            self._sequences,
            self._weights,
            self._bpe.strings,
            budget=budget,
            settings=self._settings,
            kept=kept,
            kept_sequences=started,
            progress=progress,
        )

    def _select_phrases(self, texts: Iterable[str], within: list[Candidate], budget: int) -> list[Candidate]:
        """Phrases by falling saving beyond what the candidates within pre-tokens save."""
        bpe, pattern = self._bpe, self._pretokenization.pattern or ""
        words = [candidate.string for candidate in within]
        encoded = encode_each(extended_tokenizer(self._base, bpe, words), self._counts.types)
        lengths = dict(zip(self._counts.types, encoded.lengths.tolist(), strict=True))
        runs = run_cuts(self._base, bpe.model_strings)
        cut = regex.compile(runs) if runs else None
        known = {*words, *bpe.strings}

        def is_allowed(text: str) -> bool:
            string = string_of(text)
            return (
                lookahead_after(text, pattern) is not None
                and string not in known
                and self._filter.accepts(string)
                and not (cut and cut.search(string))
                and not self._pretokenization.has_added_token(text)
            )

        phrases = select_phrases(
            texts,
            self._split,
            lambda piece: lengths.get(piece, 1),
            budget=budget,
            min_saving=self._settings.min_frequency,
            least_documents=self._settings.least_documents,
            is_allowed=is_allowed,
            kept=[text for c in self._kept_phrases if is_allowed(text := bytes_of(c.string).decode())],
        )
        found = [
            Candidate(string_of(phrase.text), self._constituents(phrase.pretokens), phrase.saving, phrase.frequency)
            for phrase in phrases
        ]
        # the base drops bytes that it has no token for; such phrases have no constituents
        return [candidate for candidate in found if self._joined(candidate.constituents) == candidate.string]


def _best(candidates: list[Candidate], budget: int, kept: Collection[str] = ()) -> list[Candidate]:
    """The `budget` best candidates by falling saving, ties by string; kept ones are preferred."""
    worth = {c.string: c.saving * (REPLACEMENT_FACTOR if c.string in kept else 1) for c in candidates}
    order = sorted(candidates, key=lambda c: (-worth[c.string], c.string not in kept, c.string))
    return sorted(order[:budget], key=lambda candidate: (-candidate.saving, candidate.string))


def bytes_without_token(bpe: ByteLevelBPE, counts: PretokenCounts) -> list[Candidate]:
    """Bytes of UTF-8 for which the base has no token, by value, with their occurrences; they save nothing."""
    missing = [byte for byte, c in BYTE_TO_CHARACTER.items() if c not in bpe.ids and byte not in NEVER_IN_UTF8]
    if not missing:
        return []
    data = np.frombuffer("".join(counts.types).encode(), dtype=np.uint8)
    sizes = pl.Series(counts.types, dtype=pl.String).str.len_bytes().to_numpy()
    found = np.bincount(data, weights=np.repeat(counts.counts, sizes), minlength=256)
    return [Candidate(BYTE_TO_CHARACTER[byte], (), 0, int(found[byte])) for byte in sorted(missing)]
