"""One entry of `data.train`: where pairs lie, which of them, and what their columns are for.

Imports no torch and reads no file: an entry is checked before anything is loaded.
"""

import csv
import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hrsa_lightning.errors import DataError, cut, first_line, nearest, shown
from hrsa_lightning.io import JSON_LINES, ROLES, check_file, exists
from hrsa_lightning.resources import resolve_path

HUB_PREFIX = "hub:"
TABLES = (".parquet", ".json", ".csv")
"""Suffixes of files that the `datasets` package reads."""

_HUB_FORMATS = ("parquet", "json", "csv", "text", "arrow")
"""By the names of the `datasets` package; others read pickles, or query servers."""

_COMPRESSED = tuple(f"{suffix}.gz" for suffix in JSON_LINES)


@dataclass(frozen=True)
class PairEntry:
    """A source of contrastive pairs; in a recipe a mapping, or just its `path`.

    Attributes:
        path: A file (JSON lines, also `.gz`; `.parquet`, `.json`, `.csv`), a pattern such as
            `data/*.jsonl`, a folder (of parquet files, or what `Dataset.save_to_disk` wrote), or a
            data set of the hub as `hub:NAME[:CONFIG][@SPLIT]`.
        name: What messages and files call it; the default is the path.
        split: Of a data set of the hub (train), with a slice such as `train[:1000]` if wanted.
        files: Names or patterns of files in the repository: nothing else of it is fetched.
        revision: Commit or branch of the data set.
        columns: Columns by role, see `hrsa_lightning.io.Layout`; by default they are recognized.
        instruction: Of queries that have none in their row or in an instruction column.
        limit: The first so many pairs only, after `filter`.
        filter: By column, the value, the list of values, or the `min` and `max` of rows that stay.
        negatives: "error" or "drop" in place of `data.missing_negatives`.
        weight: How often batches come from this source, see `data.weights`.
        rows: Pairs that there are, as recorded when the recipe was written; for `plan`.

    Raises:
        DataError: A value is none of these; the message begins with its key.
    """

    path: str
    name: str | None = None
    split: str | None = None
    files: Any = None
    revision: str | None = None
    columns: Mapping[str, Any] | None = None
    instruction: str | None = None
    limit: int | None = None
    filter: Mapping[str, Any] | None = None
    negatives: str | None = None
    weight: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, text = getattr(self, field.name), field.type in (str, str | None)
            if value is not None and text and not (isinstance(value, str) and value.strip()):
                raise DataError(f"{field.name}: expected a text, got {shown(value)}")
        if not isinstance(self.path, str):
            raise DataError("path: expected a file, a folder or hub:NAME, got null")
        for key in ("limit", "rows"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or value is True or value < 1):
                raise DataError(f"{key}: expected a whole number from 1, got {shown(value)}")
        weight = self.weight
        if weight is not None and (isinstance(weight, bool | str) or not 0 <= weight <= 1e9):
            raise DataError(f"weight: expected a value in [0, 1e9], got {shown(weight)}")
        if self.negatives not in (None, "error", "drop"):
            raise DataError(f"negatives: expected error or drop, got {shown(self.negatives)}")
        for key in ("split", "files", "revision"):
            if getattr(self, key) is not None and not self.is_hub:
                raise DataError(f"{key}: expected beside a path hub:NAME, got {shown(self.path)}")
        if self.files is not None and not _is_texts(self.files):
            raise DataError(f"files: expected a pattern or a list, got {shown(self.files)}")
        self._check_columns()
        self._check_filter()

    def _check_columns(self) -> None:
        if self.columns is None:
            return
        if not isinstance(self.columns, Mapping):
            raise DataError(
                f"columns: expected a mapping such as {{query: NAME, pos: NAME}}, got "
                f"{shown(self.columns)}"
            )
        for role, names in self.columns.items():
            if role not in ROLES:
                raise DataError(
                    f"columns: expected roles {', '.join(ROLES)}, got {shown(role)}."
                    f"{nearest(str(role), ROLES)}"
                )
            if not _is_texts(names) or (role == "query" and not isinstance(names, str)):
                raise DataError(f"columns.{role}: expected a column's name, got {shown(names)}")
        for role in ("query", "pos"):
            if not self.columns.get(role):
                raise DataError(f"columns.{role}: expected a column's name, got none")

    def _check_filter(self) -> None:
        if self.filter is not None and not isinstance(self.filter, Mapping):
            raise DataError(
                f"filter: expected a mapping such as {{label: 0}}, got {shown(self.filter)}"
            )
        for column, wanted in (self.filter or {}).items():
            if isinstance(wanted, Mapping) and not (
                wanted
                and set(wanted) <= {"min", "max"}
                and all(isinstance(v, int | float) for v in wanted.values())
            ):
                raise DataError(
                    f"filter.{column}: expected a value, a list, or numbers min and max, got "
                    f"{shown(dict(wanted))}"
                )

    @classmethod
    def of(cls, entry: object) -> "PairEntry":
        """An entry from a path, a mapping, or an entry.

        Raises:
            DataError: A key is unknown, or a value is none that it may have.
        """
        if isinstance(entry, PairEntry):
            return entry
        if isinstance(entry, str | Path):
            return cls(str(entry))
        if not isinstance(entry, Mapping):
            raise DataError(f"expected a path or a mapping with path, got {shown(entry)}")
        known = [field.name for field in fields(cls)]
        for key in entry:
            if key not in known:
                hint = nearest(str(key), known) or f" Known here: {', '.join(known)}."
                raise DataError(f"unknown key {shown(key)}.{hint}")
        if "path" not in entry:
            raise DataError("path: expected a file, a folder or hub:NAME, got none")
        return cls(**entry)

    @property
    def is_hub(self) -> bool:
        """Whether it is a data set of the hub."""
        return self.path.startswith(HUB_PREFIX)

    @property
    def hub_name(self) -> str:
        """Name of the hub's data set, `OWNER/NAME`."""
        return re.split("[:@]", self.path.removeprefix(HUB_PREFIX))[0]

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or self.path

    def lines_files(self) -> list[Path] | None:
        """Its files of JSON lines, or None where it is a table.

        Raises:
            DataError: There is none of this name, or they are of several kinds.
        """
        if self.is_hub:
            return None
        path = resolve_path(self.path)
        found = [Path(path)]
        if not exists(path) and glob.has_magic(path):
            found = _matching(path)
        elif exists(path) and Path(path).is_dir():
            inside = [p for p in sorted(Path(path).iterdir()) if _is_lines(p)]
            found = inside if inside and not self._saved(Path(path)) else found
        for file in found:
            if not exists(file) or _is_lines(file):
                check_file(file, is_text=not file.name.lower().endswith(".gz"))
        kinds = {_is_lines(file) for file in found}
        if len(kinds) > 1:
            raise DataError("expected files of one kind, got JSON lines and others")
        return found if kinds == {True} else None

    def count(self) -> int | None:
        """Lines or rows on this machine, without reading them; None of what would take long.

        Raises:
            DataError: It is not there, or cannot be read.
        """
        files = self.lines_files()
        if files is not None and not any(file.suffix.lower() == ".gz" for file in files):
            total = 0
            for file in files:
                with file.open("rb") as lines:
                    total += sum(1 for line in lines if line.strip())
            return total
        tables = [] if self.is_hub else _table_files(Path(resolve_path(self.path)))
        if not tables or any(file.suffix.lower() != ".parquet" for file in tables):
            return None
        from pyarrow.parquet import ParquetFile

        return sum(int(ParquetFile(file).metadata.num_rows) for file in tables)

    def load_table(self) -> Any:
        """Open it with the `datasets` package.

        Raises:
            DataError: The package is missing, or it cannot read this.
        """
        return _load_hub(self) if self.is_hub else load_table(Path(resolve_path(self.path)))

    def keeps(self, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
        """Whether a record with these columns passes `filter`.

        Raises:
            DataError: A column is not there.
        """
        wanted = self.filter or {}
        for column in wanted:
            if column not in columns:
                raise DataError(
                    f"filter: no column {shown(column)}.{nearest(str(column), columns)}\n"
                    f"  the columns are {cut(', '.join(sorted(columns)), 200)}"
                )

        def passes(record: Mapping[str, Any]) -> bool:
            return all(_matches(record[column], rule) for column, rule in wanted.items())

        return passes

    @staticmethod
    def _saved(folder: Path) -> bool:
        return (folder / "dataset_info.json").is_file()


def _matching(pattern: str) -> list[Path]:
    files = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
    if not files:
        raise DataError("no file matches this pattern")
    return [Path(name) for name in files]


def _is_texts(value: object) -> bool:
    values = [value] if isinstance(value, str) else value
    return isinstance(values, list) and all(isinstance(text, str) and text for text in values)


def _is_lines(path: Path) -> bool:
    return path.name.lower().endswith((*JSON_LINES, *_COMPRESSED))


def _matches(value: Any, rule: Any) -> bool:
    if isinstance(rule, Mapping):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return bool(rule.get("min", value) <= value <= rule.get("max", value))
    return value in rule if isinstance(rule, list) else bool(value == rule)


def load_table(path: Path) -> Any:
    """Open a folder that `Dataset.save_to_disk` wrote, one of parquet files, or files of `TABLES`.

    Args:
        path: The file, the folder, or a pattern of files.

    Raises:
        DataError: If the `datasets` package is missing, or it cannot read `path`.
    """
    files = _table_files(path)
    for file in files:
        if not file.is_dir():
            check_file(file, is_text=file.suffix.lower() != ".parquet")
    datasets = _import_datasets()
    suffix, names = files[0].suffix.lower(), [str(file) for file in files]
    if files[0].is_dir():
        table = _call(datasets.load_from_disk, names[0])
    elif suffix == ".parquet":
        table = _call(datasets.Dataset.from_parquet, names)
    elif suffix == ".json":
        table = _call(datasets.Dataset.from_json, names)
    elif suffix == ".csv":
        table = _call(_read_csv, datasets, names)
    else:
        known = ", ".join((*JSON_LINES, *TABLES))
        raise DataError(f"expected a file ({known}), a folder of tables, or hub:NAME")
    if isinstance(table, datasets.DatasetDict):
        splits = ", ".join(str(path / split) for split in table)
        raise DataError(f"the folder holds several splits, name one of them: {splits}")
    return table


def _table_files(path: Path) -> list[Path]:
    if not exists(path) and glob.has_magic(str(path)):
        return _matching(str(path))
    inside = sorted(path.rglob("*.parquet")) if exists(path) and path.is_dir() else []
    return inside or [path]


def _read_csv(datasets: Any, names: list[str]) -> Any:
    """Every cell is text: `007`, `NA` and an empty one are what they are."""
    with Path(names[0]).open(encoding="utf-8-sig", newline="") as file:
        header = next(iter(csv.reader(file)), [])
    features = datasets.Features({name: datasets.Value("string") for name in header})
    return datasets.Dataset.from_csv(
        names, features=features, keep_default_na=False, encoding="utf-8-sig"
    )


def _load_hub(entry: PairEntry) -> Any:
    """The data set of an entry; of its repository only `files` are fetched where they are said."""
    address, _, split = entry.path.removeprefix(HUB_PREFIX).partition("@")
    name, _, config = address.partition(":")
    split = entry.split or split or "train"
    options: dict[str, Any] = {} if entry.revision is None else {"revision": entry.revision}
    if entry.files is None:
        options["name"] = config or None
    else:
        options["data_files"] = {re.split(r"[\[:+]", split)[0]: entry.files}
    builder = _call(_import_datasets().load_dataset_builder, hub_dataset(name), **options)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _HUB_FORMATS:  # `hub:pandas` with files, for one, reads pickles
        raise DataError(f"expected files of {', '.join(_HUB_FORMATS)} on the hub, got {kind}")
    _call(builder.download_and_prepare)
    return _call(builder.as_dataset, split=split)


def hub_dataset(name: str) -> str:
    """The hub's data set of this name, for `load_dataset`."""
    return name


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
        raise DataError(f"datasets cannot read it: {first_line(error)}") from error
