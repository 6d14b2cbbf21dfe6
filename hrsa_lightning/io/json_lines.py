"""JSON lines and texts, read one at a time. Imports no torch."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.files import exists, open_lines


class JSONLine(NamedTuple):
    """One line of a file.

    Attributes:
        number: Lines count from 1.
        start: First byte of the line.
        end: First byte of the next line.
        value: What the line says.
    """

    number: int
    start: int
    end: int
    value: Any


def _raise(where: str, what: str) -> None:
    raise DataError(f"{where}: {what}")


def read_json_lines(
    path: str | Path,
    on_problem: Callable[[str, str], None] = _raise,
    *,
    ended_only: bool = False,
    name: str | Path | None = None,
) -> Iterator[JSONLine]:
    """Read the lines of a file that are valid JSON; blank lines are left out.

    Args:
        path: The file.
        on_problem: Called with `PATH:NUMBER` and what is wrong with that line; raises by default.
        ended_only: Leave out a last line without a line break: a killed process was writing it.
        name: What messages call the file, where it was unpacked from another.

    Raises:
        DataError: The file cannot be read; or, by default, a line is not JSON.
    """
    end = 0
    with open_lines(path) as file:
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if ended_only and not line.endswith(b"\n"):
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                start = end - len(line)
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                on_problem(
                    f"{name or path}:{number}", f"not UTF-8 at byte {error.start + 1} of the line"
                )
            except ValueError as error:
                on_problem(f"{name or path}:{number}", f"not valid JSON: {error}")
            except RecursionError:
                on_problem(f"{name or path}:{number}", "not valid JSON: nested too deeply")
            else:
                yield JSONLine(number, start, end, value)


JSON_LINES = (".jsonl", ".ndjson")
"""Suffixes of files of JSON lines, in capitals too."""

_PLAIN_TEXT = (".txt", ".text", "")


def read_text_records(
    path: str | Path, on_problem: Callable[[str, str], None] = _raise, column: str = "text"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read records with a text: JSON lines of objects or strings, or plain text, one a line.

    Args:
        path: A file of a suffix in `JSON_LINES`, or of plain text (`.txt`, `.text` or none).
        on_problem: See `read_json_lines`.
        column: Where a record has its text; the text itself is not looked at.

    Yields:
        The number of the line, and its record; blank lines are left out.

    Raises:
        DataError: The file cannot be read or its suffix is another; or, by default, a line is bad.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        for number, _, _, value in read_json_lines(path, on_problem):
            record = {column: value} if isinstance(value, str) else value
            if isinstance(record, dict):
                yield number, record
            else:
                on_problem(f"{path}:{number}", f'expected an object with "{column}"')
        return
    if suffix not in _PLAIN_TEXT and exists(path):
        known = ", ".join((*JSON_LINES, *_PLAIN_TEXT[:-1]))
        raise DataError(f"{path}: expected a file of texts ({known}), got {suffix}")
    with open_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                on_problem(f"{path}:{number}", f"not UTF-8 at byte {error.start + 1} of the line")
                continue
            if text:
                yield number, {column: text}


class Problems:
    """Problems found so far: all are counted, the first few are printed.

    Example:
        >>> problems = Problems(shown=1)
        >>> problems.add("pairs.jsonl:3", "not valid JSON")
        >>> problems.add("pairs.jsonl:9", '"pos" is missing')
        >>> problems.raise_if_any()
        Traceback (most recent call last):
        ...
        hrsa_lightning.errors.DataError: 2 problems in the data:
          pairs.jsonl:3: not valid JSON
          ... and 1 more
    """

    def __init__(self, shown: int = 10) -> None:
        self._shown = shown
        self._first: list[str] = []
        self._count = 0

    def add(self, where: str, what: str) -> None:
        """Record one problem; `where` is a file and a line, or a data set and a row."""
        self._count += 1
        if self._count <= self._shown:
            self._first.append(f"{where}: {what}")

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def raise_if_any(self) -> None:
        """Raise one `DataError` that lists what was recorded; do nothing when nothing was."""
        if not self._count:
            return
        if self._count == 1:
            raise DataError(self._first[0])
        lines = [f"{self._count} problems in the data:", *self._first]
        if self._count > self._shown:
            lines.append(f"... and {self._count - self._shown} more")
        raise DataError("\n  ".join(lines))
