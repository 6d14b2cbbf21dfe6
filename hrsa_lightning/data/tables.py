"""Pairs from tables of the Hugging Face `datasets` package, which stay memory-mapped on disk."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hrsa_lightning.data.pairs import HUB_PREFIX, ContrastivePair, parse_pair
from hrsa_lightning.data.problems import Problems
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


def load_table(path: str) -> Any:
    """Open a saved folder, a `.parquet` or `.json` file, or `hub:NAME[:CONFIG][@SPLIT]`.

    Raises:
        DataError: If the `datasets` package is missing, or it cannot read `path`.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "reading this needs the datasets package: pip install 'hrsa-lightning[datasets]'"
        ) from None
    try:
        if path.startswith(HUB_PREFIX):
            return _load_from_hub(datasets, path.removeprefix(HUB_PREFIX))
        if Path(path).is_dir():
            table = datasets.load_from_disk(path)
        elif Path(path).suffix == ".parquet":
            table = datasets.Dataset.from_parquet(path)
        elif Path(path).suffix == ".json":
            table = datasets.Dataset.from_json(path)
        else:
            raise DataError(
                "expected a .jsonl, .parquet or .json file, a saved data set, or hub:NAME"
            )
    except DataError:
        raise
    # The package raises errors of many libraries (pyarrow, fsspec, hub clients, its own).
    except Exception as error:
        raise DataError(f"datasets cannot read it: {str(error).splitlines()[0]}") from error
    if isinstance(table, datasets.DatasetDict):
        splits = ", ".join(str(Path(path) / split) for split in table)
        raise DataError(f"this folder holds several splits, name one: {splits}")
    return table


def _load_from_hub(datasets: Any, address: str) -> Any:
    name_and_config, _, split = address.partition("@")
    name, _, config = name_and_config.partition(":")
    return datasets.load_dataset(name, config or None, split=split or "train")
