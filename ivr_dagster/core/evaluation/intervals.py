"""Bootstrap confidence intervals of bits per byte over documents.

Held-out text is a sample of the domain. The percentile bootstrap (Efron 1979) resamples the documents with
replacement and measures how much the figure varies. Differences are paired: both variants use the same resamples, so
that documents that are hard for every model cancel out. Variation between training seeds is not included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95
# with fewer documents, percentile bootstrap intervals are clearly too narrow
FEW_DOCUMENTS = 10
# document indices per chunk of resamples: 32 MB
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure over all documents, and its 2.5th and 97.5th percentiles over resamples."""

    value: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Whether a difference is significant at 95 %: zero lies outside the interval."""
        return self.low * self.high > 0


def bpb_intervals(
    bits: Mapping[str, NDArray[np.float64]],
    document_bytes: NDArray[np.int64],
    differences: Sequence[tuple[str, str]] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> tuple[dict[str, Interval], dict[tuple[str, str], Interval]]:
    """Intervals of every variant's bits per byte, and of differences (variant, reference): variant minus reference.

    Bits per byte is a ratio of sums, in each resample as well as over all documents.

    Args:
        bits: variant → float64 `[D]`, bits of every document.
        document_bytes: int64 `[D]`, UTF-8 bytes of every document; empty documents are ignored.
        differences: pairs of variants.
        resamples: number of resamples, of D documents each.
        seed: seed of the resamples, which all variants share.

    Raises:
        InputError: a variant was scored on a different number of documents, or all documents are empty.
    """
    sizes = document_bytes.astype(np.float64)
    for name, values in bits.items():
        if values.shape != sizes.shape:
            raise InputError(f"{name} was scored on {len(values)} documents, the others on {len(sizes)}", where="bits")
    is_text = sizes > 0
    if not is_text.any():
        raise InputError(f"all {len(sizes)} documents are empty", where="document_bytes")
    sizes, names = sizes[is_text], list(bits)
    # one column per variant, then the bytes
    columns = np.column_stack([*(bits[name][is_text] for name in names), sizes])
    sums = np.empty((resamples, columns.shape[1]))
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // len(sizes))
    for first in range(0, resamples, rows):
        drawn = rng.integers(0, len(sizes), size=(min(rows, resamples - first), len(sizes)))
        for column in range(columns.shape[1]):
            sums[first : first + len(drawn), column] = columns[drawn, column].sum(axis=1)
    totals = columns.sum(axis=0)
    value = {name: float(totals[n] / totals[-1]) for n, name in enumerate(names)}
    resampled = {name: sums[:, n] / sums[:, -1] for n, name in enumerate(names)}
    return (
        {name: _interval(value[name], resampled[name]) for name in names},
        {(a, b): _interval(value[a] - value[b], resampled[a] - resampled[b]) for a, b in differences},
    )


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
