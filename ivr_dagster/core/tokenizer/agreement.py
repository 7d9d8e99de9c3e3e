"""Comparison of two tokenizers: agreement on pre-token counts, lengths of texts, exact round trip."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.tokenizer.lengths import count_tokens_per_text, pretokenize_texts
from ivr_dagster.core.tokenizer.segments import Segments, encode_each, segments_of_types
from ivr_dagster.core.tokens.byte_level import whole_text
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import iter_batches

LISTED_DIVERGENCES, LISTED_TEXTS = 50, 10
# bytes of held-out documents that lengths and round trips are measured on; agreement is measured on all of them
LENGTHS_BYTES, ROUND_TRIP_BYTES = 4_000_000, 400_000
BATCH_TEXTS = 256


def heldout_sample(corpus: CleanedCorpus, max_bytes: int) -> list[str]:
    """Held-out documents of at most `max_bytes` of UTF-8, sampled evenly by document id, in corpus order."""
    wanted, _ = documents_within(corpus.documents("heldout"), max_bytes)
    return [text for document_id, text in corpus.documents("heldout") if document_id in wanted]


@dataclass(frozen=True)
class Divergence:
    """A pre-token that two tokenizers segment differently, with its count and both segmentations as strings."""

    pretoken: str
    count: int
    base: list[str]
    other: list[str]


@dataclass(frozen=True)
class Agreement:
    """Pre-token types and occurrences that two tokenizers segment identically; the most frequent `divergences`."""

    types: int
    types_identical: int
    occurrences: int
    occurrences_identical: int
    divergences: list[Divergence]

    @property
    def share(self) -> float:
        """Occurrences with identical ids over all occurrences, 1.0 for an empty text."""
        return self.occurrences_identical / self.occurrences if self.occurrences else 1.0

    def as_dict(self) -> dict[str, object]:
        """The content of `agreement.json`."""
        return {"agreement": self.share} | vars(self) | {"divergences": [vars(each) for each in self.divergences]}


def measure_agreement(
    base: Tokenizer, other: Tokenizer, counts: PretokenCounts, *, base_ids: Segments | None = None
) -> Agreement:
    """Compare the ids that `base` and `other` give to every pre-token type of `counts`.

    Both encode each type as a separate text, so that cuts which `other` makes after pre-tokenization count.
    `base_ids` are the base's ids of the types, if known.
    """
    differing = np.array(differing_types(base, other, counts, base_ids=base_ids), dtype=np.int64)

    def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
        return tokenizer.encode(text, add_special_tokens=False).tokens

    return Agreement(
        types=len(counts.types),
        types_identical=len(counts.types) - len(differing),
        occurrences=counts.occurrences,
        occurrences_identical=counts.occurrences - int(counts.counts[differing].sum()),
        divergences=[
            Divergence(text, int(counts.counts[n]), tokens(base, text), tokens(other, text))
            for n in differing[:LISTED_DIVERGENCES]  # types are sorted by falling count
            for text in [counts.types[n]]
        ],
    )


def differing_types(
    base: Tokenizer, other: Tokenizer, counts: PretokenCounts, *, base_ids: Segments | None = None
) -> list[int]:
    """Indices in `counts.types` of the types that get different ids, the most frequent first."""
    differing = (base_ids or segments_of_types(base, counts.types)).differing(encode_each(other, counts.types))
    indices: list[int] = np.flatnonzero(differing).tolist()
    return indices


def is_reachable(tokenizer: Tokenizer, strings: Sequence[str], ids: Sequence[int]) -> np.ndarray:
    """Whether each token's own text is encoded as exactly that token, bool [len(strings)].

    A string that is only part of a character has no text; the model encodes it without the pre-tokenizer.
    """
    texts = [whole_text(string) for string in strings]
    encoded = iter(tokenizer.encode_batch_fast([t for t in texts if t is not None], add_special_tokens=False))
    found = (
        [token.id for token in tokenizer.model.tokenize(string)] if text is None else next(encoded).ids
        for string, text in zip(strings, texts, strict=True)
    )
    return np.array([one == [token_id] for one, token_id in zip(found, ids, strict=True)], dtype=bool)


@dataclass(frozen=True)
class RoundTrip:
    """How many texts decode(encode(text)) reproduces, and the first failure: the text and what it became."""

    texts: int
    exact: int
    failure: tuple[str, str] | None

    @property
    def is_exact(self) -> bool:
        """Whether every text was reproduced."""
        return self.exact == self.texts


def measure_round_trip(tokenizer: Tokenizer, texts: Iterable[str]) -> RoundTrip:
    """decode(encode(text)) == text for each text; special tokens are neither added nor skipped."""
    total = exact = 0
    failure: tuple[str, str] | None = None
    for batch in _batches(texts):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        for text, decoded in zip(batch, tokenizer.decode_batch(ids, skip_special_tokens=False), strict=True):
            total += 1
            exact += text == decoded
            if text != decoded and failure is None:
                failure = (text, decoded)
    return RoundTrip(total, exact, failure)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the same texts under two tokenizers.

    Attributes:
        texts: number of texts.
        bytes: their UTF-8 bytes.
        base, other: total tokens.
        longer: how many texts are longer under `other`.
        worst: beginnings of the texts that grew most, with their tokens under base and other.
    """

    texts: int
    bytes: int
    base: int
    other: int
    longer: int
    worst: tuple[tuple[str, int, int], ...]

    @property
    def saving(self) -> float:
        """Token saving: 1 - other/base, 0.0 for an empty text."""
        return 1 - self.other / self.base if self.base else 0.0

    def as_dict(self) -> dict[str, object]:
        """The content of `agreement.json`, without texts: the tokenizer may be published, the corpus may not."""
        return {key: value for key, value in vars(self).items() if key != "worst"}


def compare_lengths(base: Tokenizer, other: Tokenizer, texts: Iterable[str]) -> Lengths:
    """Tokens of every text under `base` and `other`, in one pass."""
    count = size = base_total = other_total = longer = 0
    worst: list[tuple[str, int, int]] = []
    for batch in iter_batches(texts):
        cut = pretokenize_texts(batch, base)
        before, after = cut.tokens(base), cut.tokens(other)
        count, base_total, other_total = (
            count + len(batch),
            base_total + int(before.sum()),
            other_total + int(after.sum()),
        )
        size += sum(len(text.encode()) for text in batch)
        grown = np.flatnonzero(after > before).tolist()
        longer += len(grown)
        worst += [(batch[n][:60], int(before[n]), int(after[n])) for n in grown]
        worst = sorted(worst, key=lambda row: row[1] / row[2])[:LISTED_TEXTS]
    return Lengths(count, size, base_total, other_total, longer, tuple(worst))


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """(tokens, UTF-8 bytes) of the texts under `tokenizer`."""
    tokens = size = 0
    for batch in _batches(texts):
        tokens += int(count_tokens_per_text(tokenizer, batch).sum())
        size += sum(len(text.encode("utf-8")) for text in batch)
    return tokens, size


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, BATCH_TEXTS)):
        yield batch
