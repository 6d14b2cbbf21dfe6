"""The texts of a comparison: a file, a table, or a data set of the hub. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hrsa_lightning.data.entries import PairEntry, load_table
from hrsa_lightning.errors import DataError
from hrsa_lightning.io import Problems, check_file, check_text, exists, read_text_records
from hrsa_lightning.resources import resolve_path

__all__ = ["Texts", "load_texts"]

HUB = "hub:"
_DEFAULT_COLUMN = "text"
_DEFAULT_LABEL = "label"
_TABLES = (".parquet", ".json", ".csv")


@dataclass(frozen=True)
class Texts:
    """Texts in the order of their source.

    Attributes:
        source: Where they came from, as the user wrote it.
        texts: At least one.
        labels: One per text, or `None`.
    """

    source: str
    texts: list[str]
    labels: list[str] | None = None


def load_texts(
    source: str,
    *,
    column: str = _DEFAULT_COLUMN,
    split: str | None = None,
    label: str | None = None,
    limit: int | None = None,
) -> Texts:
    """Read texts, and labels where there are some.

    Args:
        source: A `.jsonl` or `.ndjson` file, a `.parquet` or `.json` table, a folder that
            `Dataset.save_to_disk` wrote, `hub:NAME` or `hub:NAME:CONFIG`, or a `.txt` file, one
            text a line. `embedded:tiny/probes.jsonl` is shipped with the package.
        column: Where a record or table has its text.
        split: Of a data set of the hub; `train` by default.
        label: Column of the labels. `None` takes `label` where every record has one.
        limit: At most so many texts, from the first.

    Raises:
        DataError: There is no such file, column or text; or bad lines, all named in one error.
    """
    if split is not None and not source.startswith(HUB):
        raise DataError(f"--split {split}: only data sets of the hub have splits, got {source!r}")
    wanted = label or _DEFAULT_LABEL
    problems = Problems()
    texts: list[str] = []
    labels: list[str | None] = []
    for where, record in islice(_records(source, column, split, problems), limit):
        if not texts and not labels:
            _check_columns(where, record, column, label)
        try:
            texts.append(check_text(record.get(column), column))
        except DataError as error:
            problems.add(where, str(error))
            continue
        found = record.get(wanted)
        if found is None and label is not None:
            problems.add(where, f'"{label}" is missing')
        labels.append(None if found is None else str(found))
    problems.raise_if_any()
    if not texts:
        raise DataError(f"{source}: no texts in it")
    known = [value for value in labels if value is not None]
    return Texts(source, texts, known if len(known) == len(texts) else None)


def _records(
    source: str, column: str, split: str | None, problems: Problems
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each record stands, and the record."""
    path = Path(resolve_path(source))
    is_table = path.suffix.lower() in _TABLES or (exists(path) and path.is_dir())
    is_table = is_table or source.startswith(HUB)
    if not is_table:
        try:
            check_file(path)
        except DataError as error:
            hint = f"a data set of the hub is written {HUB}NAME"
            raise DataError(f"{source}: {error} ({hint})") from None
    if is_table:
        for row, record in enumerate(_open_table(source, path, split)):
            yield f"{source} row {row}", record
        return
    for number, record in read_text_records(path, problems.add, column):
        yield f"{path}:{number}", record


def _open_table(source: str, path: Path, split: str | None) -> Any:
    try:
        if not source.startswith(HUB):
            return load_table(path)
        return PairEntry(source, split=split).load_table()
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _check_columns(where: str, record: Mapping[str, Any], column: str, label: str | None) -> None:
    """Say at the first record that a column has another name, instead of at every one."""
    for option, name in (("--column", column), ("--label", label)):
        if name is not None and name not in record:
            found = ", ".join(map(str, record))
            raise DataError(f'{where}: no column "{name}" ({option}); found {found}')
