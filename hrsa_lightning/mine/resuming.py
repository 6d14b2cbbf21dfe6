"""What a call of `mine` has done so far, in a folder, and what of it the next call may use."""

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io import read_json, write_json

_ROWS_AT_ONCE = 256
"""Rows that are held in float64."""


class ResumeFolder:
    """Embeddings and search results that are written block by block, so that a call can go on.

    Args:
        path: The folder; made when it is first used.
        keep: Leave it there in the end.

    Attributes:
        queries: File of the embeddings of queries.
        passages: File of the embeddings of passages.
        found: File of what was found for each pair.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self._keep = keep
        self.queries = path / "queries.f32"
        self.passages = path / "passages.f32"
        self.found = path / "negatives.bin"
        self._state = path / "mining.json"
        self._renaming = path / "renaming.json"

    def check(self) -> None:
        """Refuse what can be no folder.

        Raises:
            ConfigError: It is a file, or there is no folder to make it in.
        """
        if not self.path.absolute().parent.is_dir():
            raise ConfigError(f"work: there is no folder {self.path.absolute().parent}")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"work: {self.path} is a file; expected a folder")

    def open(self, embeddings: str, search: str, num_bytes: int) -> None:
        """Drop what an earlier call left behind, as far as this one cannot go on from it.

        Args:
            embeddings: What embeddings depend on; others are dropped.
            search: What search results depend on besides.
            num_bytes: What all files will need.

        Raises:
            DataError: The disk has no room for them.
        """
        state = {"embeddings": embeddings, "search": search}
        self.path.mkdir(exist_ok=True)
        old = self._read(self._state)
        if old.get("embeddings") != embeddings:
            self.queries.unlink(missing_ok=True)
            self.passages.unlink(missing_ok=True)
        if old != state:
            self.found.unlink(missing_ok=True)
            write_json(self._state, state)
        files = (self.queries, self.passages, self.found)
        needed = num_bytes - sum(file.stat().st_size for file in files if file.exists())
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DataError(
                f"{self.path}: embeddings need {needed / 1e9:.1f} GB more, and "
                f"{free / 1e9:.1f} GB are free; name another folder with work"
            )

    def begin_renaming(self, files: list[Path]) -> None:
        """Say that these files are the result of this call, which may be stopped among them."""
        write_json(self._renaming, {"files": [str(file.absolute()) for file in files]})

    def renaming(self) -> set[Path]:
        """Files that an earlier call was stopped among, and that may be written again."""
        return {Path(file) for file in self._read(self._renaming).get("files", ())}

    def close(self) -> None:
        """The result is complete."""
        self._renaming.unlink(missing_ok=True)
        if not self._keep:
            shutil.rmtree(self.path)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            return read_json(file)
        except DataError:  # there is none
            return {}


def fill(
    path: Path,
    record: Any,
    ends: Sequence[int],
    make: Callable[[int, int], NDArray[Any]],
    title: str,
    unit: str,
    progress: bool,
) -> NDArray[Any]:
    """Write records of fixed size block by block, from where an earlier call stopped.

    The file is nothing but the records so far, whole blocks of them, so that its size says where to
    go on, and the blocks are the same ones however often it was stopped.

    Args:
        path: The file.
        record: Its dtype.
        ends: Where each block ends, the last one with the last record.
        make: `make(begin, end)` gives the records of a block.
        title: Of the progress bar.
        unit: What a record is of.
        progress: Show a progress bar.

    Returns:
        The records, memory-mapped; writing into them changes nothing on disk.
    """
    dtype = np.dtype(record)
    written = path.stat().st_size // dtype.itemsize if path.exists() else 0
    skipped = int(np.searchsorted(ends, written, side="right"))
    done = ends[skipped - 1] if skipped else 0
    silent = None if progress else True
    with (
        path.open("r+b" if path.exists() else "w+b") as file,
        tqdm(None, title, ends[-1], initial=done, unit=unit, disable=silent) as bar,
    ):
        file.truncate(done * dtype.itemsize)
        file.seek(done * dtype.itemsize)
        for begin, end in pairwise((done, *ends[skipped:])):
            file.write(make(begin, end).tobytes())
            file.flush()
            os.fsync(file.fileno())
            bar.update(end - begin)
    return np.memmap(path, dtype=dtype, mode="c", shape=(ends[-1],))


def to_unit_rows(
    embeddings: Any, num_texts: int, dim: int | None, name: str
) -> NDArray[np.float32]:
    """What a model returned as checked float32 rows of length 1.

    Args:
        embeddings: (texts, features), an array or a tensor on any device.
        num_texts: Rows that are expected.
        dim: Features that are expected; None takes any.
        name: What was embedded, for messages.

    Raises:
        DataError: An embedding is not finite, is zero, or has another number of features.
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or rows.shape != (num_texts, rows.shape[1] if dim is None else dim):
        raise DataError(
            f"embedding {name}: expected an array of shape ({num_texts}, {dim or 'features'}), "
            f"got {rows.shape}"
        )
    unit = np.empty_like(rows)
    for begin in range(0, num_texts, _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE].astype(np.float64)
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise DataError(
                f"embedding {name}: the model gives embeddings that are not finite or zero"
            )
        unit[begin : begin + _ROWS_AT_ONCE] = part / lengths
    return unit
