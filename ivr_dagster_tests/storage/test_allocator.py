"""The allocator keeps what is freed: seen in the pages that the system has to fill."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from ivr_dagster.storage.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    print("can" if keep_freed_memory() else "cannot")
else:
    print("can")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

np.empty(100_000_000, dtype=np.uint8).fill(1)
before = faults()
for _ in range(10):
    np.empty(100_000_000, dtype=np.uint8).fill(1)
print(faults() - before)
"""


def faults(mode: str) -> int:
    result = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True, timeout=100)
    able, count = result.stdout.split()
    if able == "cannot":
        pytest.skip("this C library has no mallopt")
    return int(count)


def test_blocks_that_were_freed_are_used_again_and_not_filled_anew() -> None:
    assert faults("kept") * 10 < faults("given back")
