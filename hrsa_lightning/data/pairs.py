"""Sources of contrastive pairs: checked when opened, read again row by row. Imports no torch.

A source checks every record when it is opened, keeps a few bytes per example, and parses an example
again when it is asked for: the texts stay on disk (memory-mapped) and in the system's page cache,
which all workers and ranks share.
"""

import json
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.errors import DataError, first_line
from hrsa_lightning.io import (
    JSON_LINES,
    ContrastivePair,
    Problems,
    check_file,
    exists,
    parse_pair,
    read_json_lines,
)

HUB_PREFIX = "hub:"
_ROWS_PER_READ = 1000


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


class DatasetPairs:
    """Pairs of one `datasets.Dataset`; its columns are those that `parse_pair` accepts.

    Args:
        table: The data set.
        name: How messages call it.
        problems: Where bad rows are recorded; without it they raise one `DataError`. Rows count
            from 0, as `table[row]` does.
    """

    def __init__(self, table: Any, name: str, problems: Problems | None = None) -> None:
        self.name = name
        self._table = table.with_format(None)  # a table may be saved to give arrays
        found = Problems() if problems is None else problems
        counts = array("i")
        for row, record in enumerate(self._records()):
            try:
                counts.append(len(parse_pair(record).negatives))
            except DataError as error:
                found.add(f"{name} row {row}", str(error))
        if problems is None:
            found.raise_if_any()
        self.negative_counts = np.array(counts, dtype=np.int32)

    def _records(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.iter(batch_size=_ROWS_PER_READ):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> ContrastivePair:
        return parse_pair(self._table[int(row)])


def load_table(path: Path) -> Any:
    """Open a folder that `Dataset.save_to_disk` wrote, a `.parquet` or a `.json` file.

    Raises:
        DataError: If the `datasets` package is missing, or it cannot read `path`.
    """
    if not path.is_dir():
        check_file(path, is_text=path.suffix.lower() != ".parquet")
    datasets = _import_datasets()
    if path.is_dir():
        table = _call(datasets.load_from_disk, str(path))
    elif path.suffix.lower() == ".parquet":
        table = _call(datasets.Dataset.from_parquet, str(path))
    elif path.suffix.lower() == ".json":
        table = _call(datasets.Dataset.from_json, str(path))
    else:
        known = ", ".join((*JSON_LINES, ".parquet", ".json"))
        raise DataError(f"expected a file ({known}), a saved data set, or hub:NAME")
    if isinstance(table, datasets.DatasetDict):
        splits = ", ".join(str(path / split) for split in table)
        raise DataError(f"the folder holds several splits, name one of them: {splits}")
    return table


def load_hub_table(address: str) -> Any:
    """Load `NAME`, `NAME:CONFIG`, `NAME@SPLIT` or `NAME:CONFIG@SPLIT` from the Hugging Face hub.

    Raises:
        DataError: If the `datasets` package is missing, or it cannot load the data set.
    """
    name_and_config, _, split = address.partition("@")
    name, _, config = name_and_config.partition(":")
    load = _import_datasets().load_dataset
    return _call(load, name, config or None, split=split or "train")


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("reading this needs the datasets package: pip install datasets") from None
    return datasets


def _call(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return load(*args, **kwargs)
    # The package lets through errors of many libraries (pyarrow, fsspec, hub clients, its own).
    except Exception as error:
        raise DataError(f"datasets cannot read it: {first_line(error)}") from error


def read_pairs(paths: Sequence[str | Path | PairSource]) -> list[PairSource]:
    """Open and check sources of contrastive pairs; each is a source of its own for batching.

    Args:
        paths: Each one a `.jsonl` or `.ndjson` file; or, with the `datasets` package, a `.parquet`
            or `.json` file, a folder that `Dataset.save_to_disk` wrote, or a data set of the
            Hugging Face hub as `hub:NAME`, `hub:NAME:CONFIG` and with `@SPLIT` at the end (default
            `train`). Sources that are already open are passed through.

    Returns:
        One source per path, in the order given.

    Raises:
        DataError: One error that names every missing file, bad line and empty source.
    """
    if not paths:
        raise DataError("no file of contrastive pairs is given")
    problems = Problems()
    sources: list[PairSource] = []
    for path in paths:
        if not isinstance(path, str | Path):
            sources.append(path)
            continue
        try:
            source = _open_source(str(path), problems)
        except DataError as error:
            problems.add(str(path), str(error))
        else:
            sources.append(source)
    problems.raise_if_any()
    empty = [source.name for source in sources if not len(source)]
    if empty:
        raise DataError(f"no pairs in {', '.join(empty)}")
    return sources


def _open_source(path: str, problems: Problems) -> PairSource:
    if path.startswith(HUB_PREFIX):
        return DatasetPairs(load_hub_table(path.removeprefix(HUB_PREFIX)), path, problems)
    file = Path(path)
    if not exists(file) or file.suffix.lower() in JSON_LINES:
        check_file(file)
        return JsonlPairs(file, problems)
    return DatasetPairs(load_table(file), path, problems)
