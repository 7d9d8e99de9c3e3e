"""Arrow columns out of lists and arrays.

What belongs here: a way around `pyarrow.array`, which imports pandas before anything else: a third of a second in
each process that works on shards.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl


def arrow_column(values: Sequence[Any] | np.ndarray, kind: Any) -> Any:
    """The values as a `pyarrow.Array` of this type."""
    return pl.Series(values).to_arrow().cast(kind)
