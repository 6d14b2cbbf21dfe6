"""Files: written whole or not at all, and JSON lines read one at a time. Imports no torch."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hrsa_lightning.errors import DataError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The two files of a LoRA adapter in peft's format."""


NAME_RULE = "a name of letters, digits and _ . - that begins with none of . and -, at most 64 bytes"
"""What `is_name` asks, in words."""


def is_name(text: object, dots: bool = True) -> bool:
    """Whether a text can be (the beginning of) a file's name and a part of a tag.

    Args:
        text: What a user calls something.
        dots: Whether it may have dots.
    """
    if not isinstance(text, str) or len(text.encode(errors="replace")) > 64:
        return False
    return re.fullmatch(r"\w[\w.-]*" if dots else r"\w[\w-]*", text) is not None


def is_text(text: str) -> bool:
    """Whether a text can be written to a file and be part of a path: no NUL, no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def expand_user(path: str) -> str:
    """A path with `~` replaced; one of an unknown user stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 - that of pathlib raises


def is_file(path: str | Path) -> bool:
    """Whether a path is that of a file; no path is too long or too odd to be asked."""
    return os.path.isfile(path)  # noqa: PTH113 - that of pathlib raises


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the path that is given; it takes the place of `path` when the block ends well.

    A process that dies while it writes leaves the old file, and a file `NAME.partial`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as partial:
        ...     _ = partial.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one move; its folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Replace a JSON file in one move."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_text(path: str | Path, most_bytes: int | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read, is larger than `most_bytes`, or is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if most_bytes is not None and len(content) > most_bytes:
        raise DataError(f"{path}: expected at most {most_bytes:,} bytes, got {len(content):,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: {not_utf8(content, error)}") from None


def not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """Why bytes could not be decoded, for a message."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "expected UTF-8, got UTF-16 (it begins with the mark of that encoding)"
    begin = content.rfind(b"\n", 0, error.start) + 1
    return f"not UTF-8 at byte {error.start - begin + 1} of the line"


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: The file is missing or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


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
) -> Iterator[JSONLine]:
    """Read the lines of a file that are valid JSON; blank lines are left out.

    Args:
        path: The file.
        on_problem: Called with `PATH:NUMBER` and what is wrong with that line; raises by default.
        ended_only: Leave out a last line without a line break: a killed process was writing it.

    Raises:
        DataError: A line is not JSON, by default.
    """
    end = 0
    with Path(path).open("rb") as file:
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
                on_problem(f"{path}:{number}", f"not UTF-8 at byte {error.start + 1} of the line")
            except ValueError as error:
                on_problem(f"{path}:{number}", f"not valid JSON: {error}")
            except RecursionError:
                on_problem(f"{path}:{number}", "not valid JSON: nested too deeply")
            else:
                yield JSONLine(number, start, end, value)
