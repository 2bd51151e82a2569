"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tace

CODE = """
import ctypes, resource, sys
from tace.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = c.malloc(48_000_000)
    ctypes.memset(array, 1, 48_000_000)
    c.free(array)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
PAGES = 48_000_000 // 4096


def faults(what: str, **environment: str) -> int:
    """Pages that the second of two arrays of the same size asks for."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, what],
        env={"PYTHONPATH": str(Path(tace.__file__).parents[1]), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_a_second_array_takes_the_pages_of_the_first_unless_the_user_says_otherwise():
    if faults("leave") < PAGES // 2:
        pytest.skip("this system does it anyway, or has larger pages")
    assert faults("keep") < PAGES // 10
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="1000000") > PAGES // 2
