"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import functools
import os

# numbers of malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> None:
    """Let arrays of a step be made in the memory of those before, instead of in new pages.

    By default glibc gives large arrays back to the system when they are freed, and asks for them anew a
    moment later: of a force call of 192 atoms that is a fifth of the time. Other C libraries are left alone,
    and so is a user who has set thresholds.
    """
    if any(name in os.environ for name in _OWN):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
        if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
            return
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 256 << 20)
    mallopt(_TRIM_THRESHOLD, 1 << 30)
