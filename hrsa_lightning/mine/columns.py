"""Columns of numbers in files without names, and how to sort them in bounded memory.

The files are mapped, so that the system may put their pages back on disk at any time, and vanish
with the process.
"""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Digests = NDArray[np.uint64]

ENTRIES_PER_BLOCK = 2**16
"""Numbers of a column that are worked on together."""

_CODES = {np.dtype(np.int64): "q", np.dtype(np.uint64): "Q"}


def blocks(num_entries: int) -> Iterator[slice]:
    """Consecutive parts of a column."""
    for begin in range(0, num_entries, ENTRIES_PER_BLOCK):
        yield slice(begin, min(begin + ENTRIES_PER_BLOCK, num_entries))


def new_column(num_entries: int, dtype: Any, folder: Path) -> NDArray[Any]:
    """A column of zeros.

    Args:
        num_entries: How many.
        dtype: Of each.
        folder: On the disk that is to hold it.

    Raises:
        OSError: The disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        # The space is taken now: a full disk would end the process when mapped pages are written.
        for block in blocks(num_entries):
            file.write(bytes((block.stop - block.start) * np.dtype(dtype).itemsize))
        return _mapped(file, dtype, "r+")


class ColumnWriter:
    """Writes a column one number after another.

    Args:
        dtype: int64 or uint64.
        folder: On the disk that is to hold it.
    """

    def __init__(self, dtype: Any, folder: Path) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `column`
        self._waiting = array(_CODES[self._dtype])
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._waiting)

    def extend(self, values: Iterable[int]) -> None:
        """Write numbers."""
        self._waiting.extend(values)
        if len(self._waiting) >= ENTRIES_PER_BLOCK:
            self._flush()

    def column(self) -> NDArray[Any]:
        """All that was written; nothing more can be."""
        self._flush()
        with self._file:
            return _mapped(self._file, self._dtype, "r")

    def _flush(self) -> None:
        self._file.write(self._waiting.tobytes())
        self._written += len(self._waiting)
        self._waiting = array(self._waiting.typecode)


def sort_column(digests: Digests, folder: Path) -> tuple[Digests, Integers]:
    """Digests in ascending order, and where each was; of equal ones the first comes first."""
    ordered = new_column(len(digests), np.uint64, folder)
    places = new_column(len(digests), np.int64, folder)
    begin = 0
    for values, where in _in_order(digests):
        end = begin + len(values)
        ordered[begin:end], places[begin:end] = values, where
        begin = end
    return ordered, places


def number_column(digests: Digests, folder: Path) -> tuple[Integers, Integers]:
    """Number distinct digests by first appearance.

    Returns:
        Place where each of them appears first, and the number of each entry of the column.
    """
    first = new_column(len(digests), np.int64, folder)
    appears = np.zeros(len(digests), dtype=bool)
    for values, places in _in_order(digests):
        new = np.ones(len(values), dtype=bool)
        new[1:] = values[1:] != values[:-1]
        starts = places[new]
        appears[starts] = True
        first[places] = np.repeat(starts, np.diff(np.flatnonzero(new), append=len(values)))
    number = new_column(len(digests), np.int64, folder)
    place = ColumnWriter(np.int64, folder)
    for block in blocks(len(digests)):
        fresh = np.flatnonzero(appears[block]) + block.start
        number[fresh] = np.arange(len(place), len(place) + len(fresh))
        number[block] = number[first[block]]
        place.extend(fresh.tolist())
    return place.column(), number


def _in_order(digests: Digests) -> Iterator[tuple[Digests, Integers]]:
    """Digests and their places in ascending order, some at a time, equal ones together.

    Digests are spread evenly, so that those within a range of values are about as many as expected.
    """
    bits = max(0, len(digests) // ENTRIES_PER_BLOCK).bit_length()
    for part in range(2**bits):
        low = np.uint64(part << (64 - bits))
        high = np.uint64(((part + 1) << (64 - bits)) - 1)
        inside = np.concatenate(
            [
                np.flatnonzero((digests[block] >= low) & (digests[block] <= high)) + block.start
                for block in blocks(len(digests))
            ]
            or [np.empty(0, dtype=np.int64)]
        )
        values = digests[inside]
        order = np.argsort(values, kind="stable")
        yield values[order], inside[order]


def _mapped(file: Any, dtype: Any, mode: Any) -> NDArray[Any]:
    file.flush()
    if file.tell() == 0:  # nothing cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode=mode))
