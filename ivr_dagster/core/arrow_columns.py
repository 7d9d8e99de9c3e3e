"""Arrow columns out of lists and arrays.

What belongs here: a way around `pyarrow.array`, which imports pandas before anything else, and around casts, which
import `pyarrow.compute`: a third of a second in each process that works on shards.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa


def string_column(values: Sequence[str]) -> Any:
    """Strings as a `pyarrow.StringArray`; together they are less than 2 GB of UTF-8."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def number_column(values: Sequence[int] | np.ndarray) -> Any:
    """Numbers, or truth values, as a `pyarrow.Array` of their type, int64 where they are Python's."""
    return pl.Series(values).to_arrow()
