"""Settings of glibc's memory allocator.

A training step of a small model with a large vocabulary allocates and frees logits of hundreds of megabytes. By default
glibc maps such blocks one by one and the kernel zeroes every page again. Keeping freed memory makes a step on the CPU
faster; `python -m benchmarks.allocator` measures by how much.
"""

import ctypes
import sys

# parameters of mallopt in <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30
_MAX_KEPT = 2**31 - 1


def release_freed_memory() -> None:
    """Return free memory between used blocks to the operating system, with glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to 1 GB, up to 2 GB in total, in this process; returns whether the C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, _MAX_KEPT))
