import platform

import psutil
import pytest
import torch

from hrsa_lightning.modules.heap import give_back_freed_memory, keep_freed_memory

_BLOCK_MB = 64


def _resident_mb():
    return psutil.Process().memory_info().rss / 2**20


def _use_and_free():
    for _ in range(4):  # the first ones may leave gaps that are too narrow for the next
        torch.ones(_BLOCK_MB * 2**18)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_memory_is_kept_and_given_back():
    keep_freed_memory()
    try:
        _use_and_free()
        kept = _resident_mb()
        _use_and_free()
        assert _resident_mb() < kept + _BLOCK_MB / 2  # the same memory again
    finally:
        give_back_freed_memory()
    assert _resident_mb() < kept - _BLOCK_MB / 2
