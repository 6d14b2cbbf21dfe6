"""Freed memory that stays with the process while it trains on CPUs.

glibc gives large blocks back to the kernel as soon as they are free. A training step frees and
takes gigabytes, and every page of 4 KiB that comes from the kernel is a fault and is zeroed.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Where glibc's own thresholds end up when large blocks have been freed.
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_DEFAULT_MMAP_MAX = 65_536


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for blocks to come. Does nothing without glibc."""
    if libc := _glibc():
        libc.mallopt(_TRIM_THRESHOLD, -1)
        libc.mallopt(_MMAP_MAX, 0)


def give_back_freed_memory() -> None:
    """Give back what is free, and let glibc do so again. Does nothing without glibc."""
    if libc := _glibc():
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
