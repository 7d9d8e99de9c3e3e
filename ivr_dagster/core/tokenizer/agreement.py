"""Agreement: the share of pre-token occurrences whose ids equal the base tokenizer's.

What belongs here: comparing two tokenizers on pre-token counts, and the exact round trip of text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from ivr_dagster.core.corpus.cleaned import CleanedCorpus
from ivr_dagster.core.corpus.subset import documents_within
from ivr_dagster.core.tokenizer.lengths import cut_texts, tokens_of
from ivr_dagster.core.tokenizer.segments import Segments, encode_each, segments_of_types
from ivr_dagster.core.tokens.byte_level import whole_text
from ivr_dagster.core.tokens.counts import PretokenCounts
from ivr_dagster.core.tokens.pretokens import iter_batches

LISTED_DIVERGENCES = 50
# of held-out documents, what lengths are compared on and what is encoded and decoded; pre-tokens are compared on all
LENGTHS_BYTES, ROUND_TRIP_BYTES = 4_000_000, 400_000


def heldout_sample(corpus: CleanedCorpus, most_bytes: int) -> list[str]:
    """Held-out documents of at most `most_bytes` of UTF-8 in all, by their id: an even sample, in corpus order."""
    wanted, _ = documents_within(corpus.documents("heldout"), most_bytes)
    return [text for document_id, text in corpus.documents("heldout") if document_id in wanted]


@dataclass(frozen=True)
class Divergence:
    """A pre-token that two tokenizers cut differently: its text, count and both segmentations as strings."""

    pretoken: str
    count: int
    base: list[str]
    other: list[str]


@dataclass(frozen=True)
class Agreement:
    """What a comparison on pre-token counts found; `divergences` holds the most frequent ones."""

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
        """For `agreement.json`."""
        return {
            "agreement": self.share,
            "types": self.types,
            "types_identical": self.types_identical,
            "occurrences": self.occurrences,
            "occurrences_identical": self.occurrences_identical,
            "divergences": [vars(divergence) for divergence in self.divergences],
        }


def measure_agreement(
    base: Tokenizer, other: Tokenizer, counts: PretokenCounts, *, of_base: Segments | None = None
) -> Agreement:
    """Compare the ids that `base` and `other` give to every pre-token type of `counts`.

    Both encode the type as a text of its own, so cuts that `other` makes after the base's pre-tokenizer take part.
    `of_base` are the base's ids of the types, where they are known.
    """
    differing = np.array(differing_types(base, other, counts, of_base=of_base), dtype=np.int64)
    return Agreement(
        types=len(counts.types),
        types_identical=len(counts.types) - len(differing),
        occurrences=counts.occurrences,
        occurrences_identical=counts.occurrences - int(counts.counts[differing].sum()),
        divergences=[
            Divergence(
                counts.types[n],
                int(counts.counts[n]),
                base.encode(counts.types[n], add_special_tokens=False).tokens,
                other.encode(counts.types[n], add_special_tokens=False).tokens,
            )
            for n in differing[:LISTED_DIVERGENCES]  # types come by falling count
        ],
    )


def differing_types(
    base: Tokenizer, other: Tokenizer, counts: PretokenCounts, *, of_base: Segments | None = None
) -> list[int]:
    """Places in `counts.types` of those that `base` and `other` give different ids, the most frequent first."""
    differing = (of_base or segments_of_types(base, counts.types)).differing(encode_each(other, counts.types))
    places: list[int] = np.flatnonzero(differing).tolist()
    return places


def encode_to_themselves(tokenizer: Tokenizer, strings: Sequence[str], ids: Sequence[int]) -> np.ndarray:
    """Whether the text of each token is encoded as that one token, bool [len(strings)].

    A string that is part of a character has no text; it is put to the model, behind the pre-tokenizer.
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
    """How many texts decode(encode(text)) gives back, and the first that it does not, with what came back."""

    texts: int
    exact: int
    failure: tuple[str, str] | None

    @property
    def holds(self) -> bool:
        """Whether every text came back unchanged."""
        return self.exact == self.texts


def measure_round_trip(tokenizer: Tokenizer, texts: Iterable[str]) -> RoundTrip:
    """decode(encode(text)) == text, text by text, special tokens neither added nor skipped."""
    texts = iter(texts)
    total = exact = 0
    failure: tuple[str, str] | None = None
    while batch := list(islice(texts, 256)):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        for text, back in zip(batch, tokenizer.decode_batch(ids, skip_special_tokens=False), strict=True):
            total += 1
            exact += text == back
            if text != back and failure is None:
                failure = (text, back)
    return RoundTrip(total, exact, failure)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the same texts under two tokenizers.

    Attributes:
        texts: how many were compared.
        bytes: their UTF-8 bytes.
        base, other: tokens in all.
        longer: how many texts are longer under `other`.
        worst: of these, the beginnings of those that grew most, with their tokens under base and other.
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
        """For `agreement.json`."""
        # the tokenizer may be published, texts of the corpus may not
        return {key: value for key, value in vars(self).items() if key != "worst"}


def compare_lengths(base: Tokenizer, other: Tokenizer, texts: Iterable[str], *, listed: int = 10) -> Lengths:
    """Tokens of every text under `base` and `other`, read once."""
    count = size = in_base = in_other = longer = 0
    worst: list[tuple[str, int, int]] = []
    for batch in iter_batches(texts):
        cut = cut_texts(batch, base)
        before, after = cut.tokens(base), cut.tokens(other)
        count, in_base, in_other = count + len(batch), in_base + int(before.sum()), in_other + int(after.sum())
        size += sum(len(text.encode()) for text in batch)
        grown = np.flatnonzero(after > before).tolist()
        longer += len(grown)
        worst += [(batch[n][:60], int(before[n]), int(after[n])) for n in grown]
        worst = sorted(worst, key=lambda row: row[1] / row[2])[:listed]
    return Lengths(count, size, in_base, in_other, longer, tuple(worst))


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """(tokens, UTF-8 bytes) of the texts under `tokenizer`."""
    texts = iter(texts)
    tokens = size = 0
    while batch := list(islice(texts, 256)):
        tokens += int(tokens_of(tokenizer, batch).sum())
        size += sum(len(text.encode("utf-8")) for text in batch)
    return tokens, size
