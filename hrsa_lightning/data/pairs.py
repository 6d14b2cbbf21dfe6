"""Sources of contrastive pairs: checked when opened, read again row by row. Imports no torch.

A source checks every record when it is opened, keeps a few bytes per example, and parses an example
again when it is asked for: the texts stay on disk (memory-mapped) and in the system's page cache,
which all workers and ranks share. What the check of a large source found is kept in the user's
cache: of several processes one checks, and the others wait and read that.
"""

import gzip
import json
import mmap
import shutil
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.errors import DataError, first_line
from hrsa_lightning.io.files import digest, replacing
from hrsa_lightning.io.json_lines import Problems, read_json_lines
from hrsa_lightning.io.pairs import ContrastivePair, Layout, RetrievalSet, layout_of
from hrsa_lightning.io.resources import cache_folder

CACHED_BYTES = 2**24
"""Size from which on what a check found is kept: below, checking again is as quick."""

_ROWS_PER_READ = 1000
_FORMAT = 1
"""Of what is kept; another number forgets what other versions found."""


class PairSource(Protocol):
    """A readable, checked sequence of pairs.

    Attributes:
        name: What messages call it.
        negative_counts: (num_pairs,), hard negatives of each pair.
    """

    name: str
    negative_counts: NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> ContrastivePair: ...


class EntryPairs:
    """What the sources of files share: records become pairs by their columns.

    Attributes:
        entry: What was asked for.
        name: How messages call it.
        layouts: The columns that were found, by role and in words.
        negative_counts: Negatives of each pair.
    """

    def __init__(self, entry: PairEntry) -> None:
        self.entry = entry
        self.name = entry.title
        self.layouts: list[str] = []
        self.negative_counts = np.empty(0, np.int32)
        self._known: dict[tuple[str, ...], tuple[Layout, Callable[[Any], bool]]] = {}

    def describe(self) -> str:
        """One line: how many pairs, and which columns they are made of."""
        return f"{self.name}: {len(self.negative_counts):,} pairs, {' or '.join(self.layouts)}"

    def _layout(self, record: object) -> tuple[Layout, Callable[[Any], bool]]:
        if not isinstance(record, dict):
            return layout_of(record), bool  # which raises
        columns = tuple(record)
        if columns not in self._known:
            entry, strict = self.entry, isinstance(self, TablePairs)
            layout = Layout(columns, entry.columns, entry.instruction, bool(entry.filter), strict)
            self._known[columns] = layout, entry.keeps(columns)
            if str(layout) not in self.layouts:
                self.layouts.append(str(layout))
        return self._known[columns]

    def _check(
        self, records: Iterator[tuple[str, int, Any]], problems: Problems
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Keys and numbers of negatives of the records that pass, until there are enough.

        Args:
            records: Where each one is, in words; its key; itself.
            problems: Where bad records are recorded.
        """
        keys, counts = array("q"), array("i")
        told: set[str] = set()
        for where, key, record in records:
            try:
                layout, passes = self._layout(record)
            except DataError as error:  # said once, not of each line with these columns
                if str(error) not in told:
                    problems.add(where, str(error))
                told.add(str(error))
                continue
            try:
                if not passes(record):
                    continue
                counts.append(len(layout.parse(record).negatives))
            except DataError as error:
                problems.add(where, str(error))
                continue
            keys.append(key)
            if len(counts) == self.entry.limit:
                break
        for role in self.entry.columns or {}:
            if self._known and all(role not in layout.names for layout, _ in self._known.values()):
                problems.add(self.name, f"columns.{role}: no record has this column")
        return np.array(keys, dtype=np.int64), np.array(counts, dtype=np.int32)

    def _found(
        self, of: list[Any] | None, problems: Problems, check: Callable[[], Any]
    ) -> dict[str, NDArray[Any]]:
        """What `check` finds, or what it found in another process or an earlier run.

        Args:
            of: What it depends on beside the entry; None keeps nothing.
            problems: Where bad records are recorded; with one, nothing is kept.
            check: Returns arrays by name.
        """
        if of is None:
            return dict(check())
        entry = self.entry
        asked = [_FORMAT, of, entry.columns, entry.filter, entry.limit]
        key = digest(json.dumps(asked))
        with _locked(cache_folder() / "pairs" / f"{key}.npz") as path:
            if path is not None and path.is_file():
                with suppress(ValueError, OSError, KeyError), np.load(path) as kept:
                    self.layouts = kept["layouts"].tolist()
                    return {name: kept[name] for name in kept.files}
            before = len(problems)
            found = dict(check())
            if path is not None and len(problems) == before:
                with suppress(OSError), replacing(path) as partial, partial.open("wb") as file:
                    np.savez(file, layouts=np.array(self.layouts), **found)
            return found


@contextmanager
def _locked(path: Path) -> Iterator[Path | None]:
    """Keep other processes from making this file; None where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire(poll_interval=0.25)
    except (OSError, NotImplementedError):  # read-only, or a file system without locks
        yield None
        return
    try:
        yield path
    finally:
        lock.release()


class LinePairs(EntryPairs):
    """Pairs of files of JSON lines, in their order.

    Keeps where each line begins, 12 bytes an example; texts stay in the mapped files.

    Args:
        entry: What was asked for.
        files: The files; compressed ones are unpacked into the user's cache.
        problems: Where bad lines are recorded; without it they raise one `DataError`.
    """

    def __init__(
        self, entry: PairEntry, files: Sequence[Path], problems: Problems | None = None
    ) -> None:
        super().__init__(entry)
        self._files = [_unpacked(file) for file in files]
        found = Problems() if problems is None else problems
        stats = [(str(file.resolve()), file.stat()) for file in self._files]
        large = sum(stat.st_size for _, stat in stats) >= CACHED_BYTES
        of = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats] if large else None

        def check() -> dict[str, NDArray[Any]]:
            def lines() -> Iterator[tuple[str, int, Any]]:
                for number, (file, asked) in enumerate(zip(self._files, files, strict=True)):
                    for line in read_json_lines(file, found.add, name=asked):
                        # the file's number beside the place: files are smaller than 2^47 bytes
                        yield f"{asked}:{line.number}", number << 47 | line.start, line.value

            starts, counts = self._check(lines(), found)
            return {"starts": starts, "counts": counts}

        kept = self._found(of, found, check)
        if problems is None:
            found.raise_if_any()
        self._starts, self.negative_counts = kept["starts"], kept["counts"]
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: int) -> ContrastivePair:
        number, start = divmod(int(self._starts[row]), 1 << 47)
        if number not in self._maps:
            with self._files[number].open("rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = self._maps[number]
        end = content.find(b"\n", start)
        record = json.loads(content[start : end if end >= 0 else len(content)])
        return self._layout(record)[0].parse(record)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_known": {}}  # neither travels to another process


def _unpacked(file: Path) -> Path:
    """A file to read at any place: what a compressed one holds, from the user's cache."""
    if file.suffix.lower() != ".gz":
        return file
    stat = file.stat()
    asked = json.dumps([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    key = digest(asked)
    with _locked(cache_folder() / "unpacked" / f"{key}.jsonl") as path:
        if path is None:
            raise DataError("expected a cache folder that can be written, to unpack it")
        if not path.is_file():
            try:
                with replacing(path) as part, gzip.open(file) as packed, part.open("wb") as whole:
                    shutil.copyfileobj(packed, whole)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"cannot be unpacked ({first_line(error)})") from None
        return path


class TablePairs(EntryPairs):
    """Pairs of one `datasets.Dataset`.

    Args:
        table: The data set.
        entry: What was asked for, or a name for messages.
        problems: Where bad rows are recorded; without it they raise one `DataError`. Rows count
            from 0, as `table[row]` does.
    """

    def __init__(
        self, table: Any, entry: PairEntry | str, problems: Problems | None = None
    ) -> None:
        super().__init__(PairEntry(entry) if isinstance(entry, str) else entry)
        self._table = table.with_format(None)  # a table may be saved to give arrays
        found = Problems() if problems is None else problems
        files = [Path(file["filename"]) for file in table.cache_files]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        large = sum(size for _, size, _ in stats) >= CACHED_BYTES
        of = [table._fingerprint, len(table), *stats] if large else None

        def check() -> dict[str, NDArray[Any]]:
            rows, counts = self._check(self._records(), found)
            whole = len(rows) == len(table)
            return {"rows": rows[:0] if whole else rows, "counts": counts}

        kept = self._found(of, found, check)
        if problems is None:
            found.raise_if_any()
        self._rows, self.negative_counts = kept["rows"], kept["counts"]

    def _records(self) -> Iterator[tuple[str, int, Any]]:
        row = 0
        for batch in self._table.iter(batch_size=_ROWS_PER_READ):
            for values in zip(*batch.values(), strict=True):
                yield f"{self.name} row {row}", row, dict(zip(batch, values, strict=True))
                row += 1

    def __len__(self) -> int:
        return len(self.negative_counts)

    def __getitem__(self, row: int) -> ContrastivePair:
        if row >= len(self):
            raise IndexError(row)
        record = self._table[int(self._rows[row]) if len(self._rows) else int(row)]
        return self._layout(record)[0].parse(record)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}


def read_pairs(entries: Sequence[Any], limit: int | None = None) -> list[PairSource]:
    """Open and check sources of contrastive pairs; each is a source of its own for batching.

    Args:
        entries: Paths, mappings or `PairEntry`s, see there. Sources that are already open are
            passed through.
        limit: The first so many pairs of each, where an entry does not say fewer.

    Returns:
        One source per entry, in the order given.

    Raises:
        DataError: One error that names every missing file, bad line and empty source.
    """
    if not entries:
        raise DataError("no file of contrastive pairs is given")
    problems = Problems()
    sources: list[PairSource] = []
    for number, one in enumerate(entries):
        if not isinstance(one, str | Path | Mapping | PairEntry):
            sources.append(one)
            continue
        try:
            entry = PairEntry.of(one)
        except DataError as error:
            problems.add(f"entry {number + 1}", str(error))
            continue
        if limit is not None:
            entry = replace(entry, limit=min(limit, entry.limit or limit))
        try:
            sources.append(_open(entry, problems))
        except DataError as error:
            problems.add(entry.title, str(error))
    problems.raise_if_any()
    empty = [source.name for source in sources if not len(source)]
    if empty:
        raise DataError(f"no pairs in {', '.join(empty)}")
    return sources


def _open(entry: PairEntry, problems: Problems) -> PairSource:
    files = entry.lines_files()
    if files is not None:
        return LinePairs(entry, files, problems)
    return TablePairs(entry.load_table(), entry, problems)


def sample_pairs(entry: Any, count: int) -> list[ContrastivePair]:
    """The first pairs of a source that is on this machine; none of one on the hub.

    Raises:
        DataError: As `read_pairs` does.
    """
    entry = PairEntry.of(entry)
    if entry.is_hub:
        return []
    (source,) = read_pairs([entry], count)
    return [source[row] for row in range(len(source))]


def read_retrieval_set(paths: Sequence[str | Path]) -> RetrievalSet:
    """Read held-out pairs as one retrieval task.

    Args:
        paths: Files, in any form that `read_pairs` takes.

    Returns:
        The pairs of all files over one corpus.

    Raises:
        DataError: As `read_pairs` does.
    """
    sources = read_pairs(paths)
    return RetrievalSet.from_pairs(source[row] for source in sources for row in range(len(source)))
