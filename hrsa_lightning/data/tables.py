"""Pairs from tables of the Hugging Face `datasets` package, which stay memory-mapped on disk."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_lightning.data.problems import Problems
from hrsa_lightning.data.records import ContrastivePair, parse_pair
from hrsa_lightning.errors import DataError

_ROWS_PER_READ = 1000


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
        self._table = table
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
    datasets = _import_datasets()
    if path.is_dir():
        table = _call(datasets.load_from_disk, str(path))
    elif path.suffix == ".parquet":
        table = _call(datasets.Dataset.from_parquet, str(path))
    elif path.suffix == ".json":
        table = _call(datasets.Dataset.from_json, str(path))
    else:
        raise DataError("expected a .jsonl, .parquet or .json file, a saved data set, or hub:NAME")
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
        raise DataError(
            "reading this needs the datasets package: pip install 'hrsa-lightning[datasets]'"
        ) from None
    return datasets


def _call(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return load(*args, **kwargs)
    # The package lets through errors of many libraries (pyarrow, fsspec, hub clients, its own).
    except Exception as error:
        raise DataError(f"datasets cannot read it: {str(error).splitlines()[0]}") from error
