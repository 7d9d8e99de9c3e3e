"""The C library's allocator, told to keep what is freed while a model computes on a processor.

A training step of a small model with a large vocabulary allocates and frees logits of hundreds of megabytes. By
default glibc takes such blocks from the system each time and gives them back, and the system fills every page with
zeros anew: half the time of a step.
"""

import ctypes
import sys

# names of <malloc.h>: blocks above the first are mapped one by one, free memory above the second is given back
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 30
_MOST_KEPT = 2**31 - 1


def give_back_freed_memory() -> None:
    """Have the C library return to the system what lies free between blocks in use, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """Have this process keep freed blocks of up to a gigabyte for itself; whether the C library can.

    It costs memory: what a process has held at its peak, up to 2 GB, it goes on holding.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
