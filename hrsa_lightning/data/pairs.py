"""Contrastive pairs and the sources that they are read from. Imports no torch.

A source checks every record when it is opened, keeps a few bytes per example, and parses an example
again when it is asked for: the texts stay on disk (memory-mapped) and in the system's page cache,
which all workers and ranks share.
"""

import difflib
import json
import mmap
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.data.problems import Problems
from hrsa_lightning.errors import DataError

Query = str | tuple[str, str]
"""A query's text, or its (instruction, text)."""

HUB_PREFIX = "hub:"
_QUERY_COLUMNS = ("query", "anchor")
_POSITIVE_COLUMNS = ("pos", "positive")
_NEGATIVE_COLUMN = re.compile(r"negative(?:_(\d+))?")


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """A query with the passages that answer it and passages that nearly do."""

    query: Query
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    id: str | None = None


class PairSource(Protocol):
    """A readable, checked sequence of pairs. `negative_counts` has one number per pair."""

    name: str
    negative_counts: NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> ContrastivePair: ...


def parse_pair(record: object) -> ContrastivePair:
    """Turn a record of either accepted form into a pair.

    The authors' form has `query` (a text or [instruction, text]), `pos` and `neg` (lists of texts)
    and an optional `id`. The sentence-transformers form has `anchor` (or `query`), `positive`, and
    `negative` or `negative_1`, `negative_2`, ... Wherever one text is expected for a passage, a
    list is accepted too, and the other way round.

    Raises:
        DataError: If a column is missing, has the wrong type, or holds an empty text.

    Example:
        >>> parse_pair({"query": ["Find the answer", "2 + 2?"], "pos": ["4"], "neg": ["5"]})
        ContrastivePair(query=('Find the answer', '2 + 2?'), positives=('4',), negatives=('5',), \
id=None)
        >>> parse_pair({"anchor": "2 + 2?", "positive": "4", "negative_1": "5", "negative_2": "3"})
        ContrastivePair(query='2 + 2?', positives=('4',), negatives=('5', '3'), id=None)
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object with query and pos, got {_kind(record)}")
    query_column = _first_column(record, _QUERY_COLUMNS)
    positive_column = _first_column(record, _POSITIVE_COLUMNS)
    query = _parse_query(record[query_column], query_column)
    positives = _parse_texts(record[positive_column], positive_column)
    if not positives:
        raise DataError(f'"{positive_column}" has no text')
    negatives: tuple[str, ...] = ()
    for column in _negative_columns(record):
        negatives += _parse_texts(record[column], column)
    identifier = record.get("id")
    return ContrastivePair(
        query, positives, negatives, None if identifier is None else str(identifier)
    )


def _first_column(record: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in record:
            return name
    expected = " or ".join(f'"{name}"' for name in names)
    raise DataError(f"{expected} is missing, found {sorted(map(str, record))}")


def _negative_columns(record: Mapping[str, Any]) -> list[str]:
    numbered = {
        int(match[1] or 0): name
        for name in record
        if (match := _NEGATIVE_COLUMN.fullmatch(str(name)))
    }
    authors = ["neg"] if "neg" in record else []
    return authors + [numbered[number] for number in sorted(numbered)]


def _parse_query(value: object, column: str) -> Query:
    if isinstance(value, str):
        return check_text(value, column)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise DataError(f'"{column}" must be a text or [instruction, text], got {_kind(value)}')
    instruction, text = value
    text = check_text(text, f"{column}[1]")
    # An empty instruction is how the authors write a query without one.
    return (check_text(instruction, f"{column}[0]"), text) if instruction else text


def _parse_texts(value: object, column: str) -> tuple[str, ...]:
    if value is None:  # how tables of columns spell "fewer negatives here"
        return ()
    if isinstance(value, str):
        return (check_text(value, column),)
    if not isinstance(value, Sequence):
        raise DataError(f'"{column}" must be a text or a list of texts, got {_kind(value)}')
    return tuple(check_text(text, f"{column}[{index}]") for index, text in enumerate(value))


def check_text(value: object, column: str) -> str:
    """Return `value` if it is a text that a tokenizer can take, else raise `DataError`."""
    if not isinstance(value, str):
        raise DataError(f'"{column}" must be a text, got {_kind(value)}')
    if not value or value.isspace():
        raise DataError(f'"{column}" is empty')
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f'"{column}" has half of a surrogate pair (\\ud800-\\udfff)') from None
    return value


def _kind(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"


def read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[int, int, int, object]]:
    """Yield (line number, first byte, end byte, value) of each line that is valid JSON.

    Lines count from 1; blank lines are passed over; bad ones are added to `problems`.
    """
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                start = end - len(line)
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                problems.add(f"{path}:{number}", f"not UTF-8 at byte {error.start + 1} of the line")
            except ValueError as error:
                problems.add(f"{path}:{number}", f"not valid JSON: {error}")
            except RecursionError:
                problems.add(f"{path}:{number}", "not valid JSON: nested too deeply")
            else:
                yield number, start, end, value


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
        for number, start, end, record in read_json_lines(path, found):
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


def read_pairs(paths: Sequence[str | Path]) -> list[PairSource]:
    """Open and check sources of contrastive pairs; each is a source of its own for batching.

    Args:
        paths: Each one a `.jsonl` file; or, with the `datasets` package, a `.parquet` or `.json`
            file, a folder that `Dataset.save_to_disk` wrote, or a data set of the Hugging Face hub
            as `hub:NAME`, `hub:NAME:CONFIG` and with `@SPLIT` at the end (default `train`).

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
    if not path.startswith(HUB_PREFIX):
        check_exists(Path(path))
        if Path(path).suffix == ".jsonl":
            return JsonlPairs(Path(path), problems)
    # `datasets` takes a second to import and is an optional dependency.
    from hrsa_lightning.data.tables import DatasetPairs, load_table

    return DatasetPairs(load_table(path), path, problems)


def check_exists(path: Path) -> None:
    """Raise a `DataError` that suggests the nearest name if `path` does not exist."""
    if path.exists():
        return
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f", did you mean {path.parent / close[0]}?" if close else ""
    raise DataError(f"no such file or folder{hint}")
