import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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


def _resident_after_each_use():
    keep_freed_memory()
    _use_and_free()
    kept = _resident_mb()
    _use_and_free()
    again = _resident_mb()
    give_back_freed_memory()
    return kept, again, _resident_mb()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_memory_is_kept_and_given_back():
    # In a process of its own: what other tests left may put something small into the gaps.
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        kept, again, given_back = alone.submit(_resident_after_each_use).result()
    assert again < kept + _BLOCK_MB / 2  # the same memory again
    assert given_back < kept - _BLOCK_MB / 2
