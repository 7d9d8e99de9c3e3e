"""How sure a figure is, given the documents it was measured on: bootstrap intervals of bits per byte.

Held-out text is a sample of what the domain writes; with other documents the figures were others. The bootstrap
(Efron 1979, percentile form) draws documents with replacement, as many as there are, and looks how far the figure
moves. Differences are paired: both variants are summed over the same drawn documents, so that documents that are hard
for everybody cancel out. What another training seed would change is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivr_dagster.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95
# below so many documents the percentile bootstrap's intervals are clearly too narrow
FEW_DOCUMENTS = 10

# drawn document numbers at once: 32 MB
_DRAWN = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval.

    Attributes:
        value: the figure on all documents as they are.
        low: 2.5 % of the resamples lie below.
        high: 2.5 % lie above.
    """

    value: float
    low: float
    high: float


def bpb_intervals(
    bits: Mapping[str, NDArray[np.float64]],
    document_bytes: NDArray[np.int64],
    differences: Sequence[tuple[str, str]] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> tuple[dict[str, Interval], dict[tuple[str, str], Interval]]:
    """Intervals of every variant's bits per byte, and of differences (variant, against): the first less the second.

    Bits per byte are a ratio of sums, bits over bytes, in every resample as on the whole.

    Args:
        bits: variant → float64 `[D]`, bits of every document.
        document_bytes: int64 `[D]`, UTF-8 bytes of every document; those without any are left out.
        differences: pairs of variants.
        resamples: draws of D documents.
        seed: of the draws; the same draws for all variants.

    Raises:
        InputError: a variant with other documents, a difference of a variant that is not there, no bytes at all.
    """
    sizes = document_bytes.astype(np.float64)
    for name, values in bits.items():
        if values.shape != sizes.shape:
            raise InputError(
                f"{name} was scored on {len(values)} documents, there are {len(sizes)}",
                where="bits",
                remedy="Score all variants on the same documents",
            )
    if missing := sorted({name for pair in differences for name in pair} - set(bits)):
        raise InputError(f"a difference of {missing[0]} was asked for, found {', '.join(bits)}", where="differences")
    written = sizes > 0
    if not written.any():
        raise InputError(f"the {len(sizes)} documents hold no text", where="document_bytes")
    sizes, names = sizes[written], list(bits)
    # one column a variant, the bytes behind them
    columns = np.column_stack([*(bits[name][written] for name in names), sizes])
    drawn = np.empty((resamples, columns.shape[1]))
    rng, rows = np.random.default_rng(seed), max(1, _DRAWN // len(sizes))
    for first in range(0, resamples, rows):
        chosen = rng.integers(0, len(sizes), size=(min(rows, resamples - first), len(sizes)))
        for number in range(columns.shape[1]):
            drawn[first : first + len(chosen), number] = columns[chosen, number].sum(axis=1)
    totals = columns.sum(axis=0)
    whole = {name: float(totals[n] / totals[-1]) for n, name in enumerate(names)}
    spread = {name: drawn[:, n] / drawn[:, -1] for n, name in enumerate(names)}
    return (
        {name: _interval(whole[name], spread[name]) for name in names},
        {(one, other): _interval(whole[one] - whole[other], spread[one] - spread[other]) for one, other in differences},
    )


def _interval(value: float, spread: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
