"""Candidates: strings that would save the most tokens if each had an id.

Within pre-tokens by continued BPE (`within.py`), across them as phrases (`phrases.py`), ordered by saving. New tokens
of the previous selection are kept unless another string saves much more.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import polars as pl
import regex
from tokenizers import Tokenizer

from ivr_dagster.core.tokenizer.bpe import ByteLevelBPE
from ivr_dagster.core.tokenizer.cuts import run_cuts
from ivr_dagster.core.tokenizer.segments import Segments, encode_each, segments_of_types
from ivr_dagster.core.tokens.byte_level import BYTE_TO_CHARACTER, string_of, strings_of, whole_text
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import PreTokenization, read_pretokenization
from ivr_dagster.core.vocabulary.candidate import Candidate, CandidateFilter, Selection, best_candidates
from ivr_dagster.core.vocabulary.phrases import lookahead_after, select_phrases
from ivr_dagster.core.vocabulary.rules import RemapRule
from ivr_dagster.core.vocabulary.within import select_within
from ivr_dagster.errors import InputError
from ivr_dagster.settings import SelectionSettings

# a string replaces a new token of the previous selection only if it saves more than this many times as much
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
    kept: Sequence[RemapRule] = (),
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
        kept: rules of strings that already have an id, in merge order. They win against others that save up to
            `REPLACEMENT_FACTOR` times as much.
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
        kept: Sequence[RemapRule],
    ) -> None:
        self._base, self._counts, self._settings = base, counts, settings
        self._pretokenization, self._filter = pretokenization, CandidateFilter(settings)
        self._split = pretokenization.splitter(base)
        self._kept = [rule.new_token for rule in kept]
        self._missing = bytes_without_token(bpe, counts)
        self._base_bpe, self._bpe = bpe, bpe.extended([candidate.string for candidate in self._missing], ())
        self._kept_words, self._kept_phrases = self._by_scope(kept)

    def run(
        self, texts: Iterable[str], budget: int, across: bool, progress: Callable[[int, int], None] | None
    ) -> Selection:
        missing = self._missing[:budget]
        budget -= len(missing)
        words = select_within(
            self._encode(self._kept_words).lists(),
            self._counts.counts,
            self._bpe.strings,
            budget=budget,
            settings=self._settings,
            kept=self._kept_words,
            unmerged=frozenset(range(self._base_bpe.size, self._bpe.size)),
            progress=progress,
        )
        accepts = self._filter.accepts
        words = best_candidates(words, budget, self._kept, REPLACEMENT_FACTOR, accepts=accepts, in_order=True)
        phrases: list[Candidate] = []
        if across:
            phrases = self._select_phrases(texts, words, budget)
            phrases = best_candidates(phrases, self._settings.max_phrases or budget, self._kept, REPLACEMENT_FACTOR)
        best = best_candidates([*words, *phrases], budget, self._kept, REPLACEMENT_FACTOR, accepts=accepts)
        order = [*missing, *words, *phrases]
        return Selection([*missing, *best], {candidate.string: n for n, candidate in enumerate(order)})

    def _encode(self, words: Sequence[Candidate]) -> Segments:
        """Ids of every pre-token type with these candidates in use."""
        if not words and not self._missing:
            return segments_of_types(self._base, self._counts.types)
        return encode_each(Tokenizer(self._with(words).model()), strings_of(self._counts.types))

    def _with(self, words: Sequence[Candidate]) -> ByteLevelBPE:
        merges = [(word.halves[0], word.halves[1]) for word in words]
        return self._bpe.extended([word.string for word in words], merges)

    def _by_scope(self, kept: Iterable[RemapRule]) -> tuple[list[Candidate], list[str]]:
        """Kept strings within pre-tokens, as candidates with unknown saving, and the texts of kept phrases."""
        words: list[Candidate] = []
        phrases: list[str] = []
        known = set(self._bpe.strings)
        for rule in kept:
            string, text = rule.new_token, whole_text(rule.new_token)
            if string in known or not all(part in self._base_bpe.ids for part in rule.constituents):
                continue
            if rule.halves and known.issuperset(rule.halves) and self._filter.accepts_part(string):
                constituents = tuple(self._base_bpe.ids[part] for part in rule.constituents)
                words.append(Candidate(string, rule.halves, constituents, 0, 0))
                known.add(string)
            elif text and not rule.halves and self._filter.accepts(string) and len(self._split(text)) > 1:
                phrases.append(text)
        return words, phrases

    def _select_phrases(self, texts: Iterable[str], words: list[Candidate], budget: int) -> list[Candidate]:
        """Phrases by falling saving beyond what the candidates within pre-tokens save."""
        pattern = self._pretokenization.pattern or ""
        lengths = dict(zip(self._counts.types, self._encode(words).lengths.tolist(), strict=True))
        bpe = self._with(words)
        runs = run_cuts(Tokenizer(bpe.model()), bpe.model_strings)
        cut = regex.compile(runs) if runs else None

        def is_allowed(text: str) -> bool:
            string = string_of(text)
            return (
                len(self._split(text)) > 1  # "\n\n" is two pre-tokens before a word, but one alone
                and lookahead_after(text, pattern) is not None
                and string not in bpe.ids
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
            kept=[text for text in self._kept_phrases if is_allowed(text)],
        )
        strings = self._base_bpe.strings
        found = [
            Candidate(string_of(phrase.text), (), self._constituents(phrase.pretokens), phrase.saving, phrase.frequency)
            for phrase in phrases
        ]
        # the base drops bytes that it has no token for: then the constituents do not make up the phrase
        return [c for c in found if "".join(strings[i] for i in c.constituents) == c.string]

    def _constituents(self, pretokens: Iterable[str]) -> tuple[int, ...]:
        """Base ids of these pre-tokens, each encoded separately."""
        return tuple(i for piece in pretokens for i in self._base.encode(piece, add_special_tokens=False).ids)


def bytes_without_token(bpe: ByteLevelBPE, counts: PretokenCounts) -> list[Candidate]:
    """Bytes of UTF-8 for which the base has no token, by value, with their occurrences; they save nothing."""
    missing = [byte for byte, c in BYTE_TO_CHARACTER.items() if c not in bpe.ids and byte not in NEVER_IN_UTF8]
    if not missing:
        return []
    data = np.frombuffer("".join(counts.types).encode(), dtype=np.uint8)
    sizes = pl.Series(counts.types, dtype=pl.String).str.len_bytes().to_numpy()
    found = np.bincount(data, weights=np.repeat(counts.counts, sizes), minlength=256)
    return [Candidate(BYTE_TO_CHARACTER[byte], (), (), 0, int(found[byte])) for byte in sorted(missing)]
