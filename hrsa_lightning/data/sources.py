"""Sources of pairs: checked when opened, read again row by row. Imports no torch.

A source checks every record when it is opened, keeps a few bytes per example, and parses an example
again when it is asked for: the texts stay on disk (memory-mapped) and in the system's page cache,
which all workers and ranks share.
"""

import json
import mmap
from array import array
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.data.problems import Problems
from hrsa_lightning.data.records import ContrastivePair, parse_pair
from hrsa_lightning.errors import DataError
from hrsa_lightning.io import read_json_lines


class PairSource(Protocol):
    """A readable, checked sequence of pairs. `negative_counts` has one number per pair."""

    name: str
    negative_counts: NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> ContrastivePair: ...


class JsonlPairs:
    """Pairs of one JSON Lines file, in the order of its lines.

    Keeps where each line begins and ends, 20 bytes an example; texts stay in the mapped file.

    Args:
        path: The file.
        problems: Where bad lines are recorded; without it they raise one `DataError`.
    """

    def __init__(self, path: Path, problems: Problems | None = None) -> None:
        self.name = str(path)
        self._path = path
        found = Problems() if problems is None else problems
        spans, counts = array("q"), array("i")
        for number, start, end, record in read_json_lines(path, found.add):
            try:
                pair = parse_pair(record)
            except DataError as error:
                found.add(f"{path}:{number}", str(error))
            else:
                spans.extend((start, end))
                counts.append(len(pair.negatives))
        if problems is None:
            found.raise_if_any()
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        self.negative_counts = np.array(counts, dtype=np.int32)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> ContrastivePair:
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, end = self._spans[row]
        return parse_pair(json.loads(self._map[start:end]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a mapping does not travel to another process
