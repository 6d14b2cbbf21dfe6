"""Collect every problem of the data files, to report them all in one error."""

from hrsa_lightning.errors import DataError


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
