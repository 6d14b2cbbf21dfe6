"""What a contrastive pair is, and how records of files become one. Imports no torch."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrsa_lightning.errors import DataError

Query = str | tuple[str, str]
"""A query's text, or its (instruction, text)."""

_QUERY_COLUMNS = ("query", "anchor")
_POSITIVE_COLUMNS = ("pos", "positive")
_NEGATIVE_COLUMN = re.compile(r"negative(?:_(\d+))?")


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """A query with the passages that answer it and passages that nearly do.

    `positive_ids` and `negative_ids` name the documents of the passages, one each, or are empty.
    """

    query: Query
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    id: str | None = None
    positive_ids: tuple[str, ...] = field(default=(), repr=False)
    negative_ids: tuple[str, ...] = field(default=(), repr=False)


def parse_pair(record: object) -> ContrastivePair:
    """Turn a record of either accepted form into a pair.

    The authors' form has `query` (a text or [instruction, text]), `pos` and `neg` (lists of texts)
    and an optional `id`. With `pos_ids` and `neg_ids`, lists as long as these, passages of one
    document are never taken for each other's negatives. The sentence-transformers form has `anchor`
    (or `query`), `positive`, and `negative` or `negative_1`, `negative_2`, ... Wherever one text is
    expected for a passage, a list is accepted too, and the other way round.

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
        query,
        positives,
        negatives,
        None if identifier is None else str(identifier),
        _parse_ids(record.get("pos_ids"), "pos_ids", len(positives)),
        _parse_ids(record.get("neg_ids"), "neg_ids", len(negatives)),
    )


def _parse_ids(value: object, column: str, count: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f'"{column}" must be a list of ids, got {_kind(value)}')
    if len(value) != count:
        raise DataError(f'"{column}" has {len(value)} ids for {count} texts')
    return tuple(map(str, value))


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


def check_exists(path: Path) -> None:
    """Raise a `DataError` that suggests the nearest name if `path` does not exist."""
    if path.exists():
        return
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f", did you mean {path.parent / close[0]}?" if close else ""
    raise DataError(f"no such file or folder{hint}")
