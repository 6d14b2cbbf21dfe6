"""Files: written whole or not at all, read with errors that name the line. Imports no torch."""

import csv
import difflib
import errno
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hrsa_lightning.errors import DataError

try:
    import fcntl
except ImportError:  # Windows has no record locks of this kind
    fcntl = None  # type: ignore[assignment]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The two files of a LoRA adapter in peft's format."""


_MARKS: dict[str, bytes | tuple[bytes, ...]] = {
    "a gzip file": b"\x1f\x8b",
    "a zip file": b"PK\x03\x04",
    "a zstd file": b"\x28\xb5\x2f\xfd",
    "an xz file": b"\xfd7zX",
    "a bzip2 file": b"BZh",
    "a parquet file": b"PAR1",
    "UTF-16 or UTF-32": (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"),
}
"""How files begin that are no text in UTF-8."""

NAME_RULE = "a name of letters, digits and _ . - that begins with none of . and -, at most 64 bytes"
"""What `is_name` asks, in words."""


def is_name(text: object, dots: bool = True) -> bool:
    """Whether a text can be (the beginning of) a file's name and a part of a tag."""
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


def is_path_of_file(path: str | Path) -> bool:
    """Whether a file can be written there: a name of at most 255 bytes, and no folder."""
    name = Path(path).name
    folder = Path(path).is_absolute() and os.path.isdir(path)  # noqa: PTH112 - that of pathlib raises
    return name not in ("", "..") and is_text(name) and len(name.encode()) <= 255 and not folder


def expand_user(path: str) -> str:
    """A path with `~` replaced; one of an unknown user stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 - that of pathlib raises


def is_file(path: str | Path) -> bool:
    """Whether a path is that of a file; no path is too long or too odd to be asked."""
    return os.path.isfile(path)  # noqa: PTH113 - that of pathlib raises


def exists(path: str | Path) -> bool:
    """Whether there is something; no path is too long or too odd to be asked."""
    return os.path.exists(path)  # noqa: PTH110 - that of pathlib raises


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


@contextmanager
def explained(place: object) -> Iterator[None]:
    """Say in one line that the disk is full or a folder cannot be written, and where.

    Raises:
        DataError: In the place of such an `OSError`.
    """
    try:
        yield
    except OSError as error:
        full, refused = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EROFS)
        if error.errno not in (*full, *refused, errno.ENOTDIR, errno.EEXIST):
            raise
        raise DataError(f"{place}: {os.strerror(error.errno)}") from error


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one move; its folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Replace a JSON file in one move; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=indent) + "\n")


def finite(content: Any) -> Any:
    """Content of a JSON file, which has null where a number is not finite.

    Example:
        >>> finite({"values": (1.0, math.nan)})
        {'values': [1.0, None]}
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def digest(text: str) -> str:
    """A short name of a text, which changes whenever the text does."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def numbered(path: Path) -> Iterator[Path]:
    """A path, and others beside it to take where it belongs to somebody else.

    Example:
        >>> names = numbered(Path("run/a.jsonl"))
        >>> next(names).name, next(names).name, next(names).name
        ('a.jsonl', 'a-v1.jsonl', 'a-v2.jsonl')
    """
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem}-v{number}{path.suffix}")


def make_first_free(folders: Iterable[Path]) -> Path:
    """Make the first of these folders that is not there; of several processes each gets its own."""
    for folder in folders:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError("every folder is taken")


_locks: dict[Path, int] = {}
"""A record lock is let go when any descriptor of its file is closed; these never are."""


def lock_folder(folder: Path) -> bool:
    """Lock a folder until this process ends, killed or not; whether no other process holds it."""
    path = folder.resolve() / ".lock"
    if fcntl is None or path in _locks:
        return True
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    try:  # a record lock, which workers do not inherit
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        return False
    except OSError:  # a file system without locks
        os.close(file)
        return True
    _locks[path] = file
    return True


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text that a spreadsheet would take for a formula is marked as text.

    Example:
        >>> csv_text([("=1+1", -1)])
        "'=1+1,-1\\n"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow(
            [f"'{v}" if isinstance(v, str) and v[:1] in (*"=+-@\t\r",) else v for v in row]
        )
    return buffer.getvalue()


def check_file(path: Path, *, is_text: bool = True) -> None:
    """Refuse what cannot be read as lines of UTF-8, without waiting for a pipe.

    Raises:
        DataError: It is not there, no file, compressed, or in UTF-16 or UTF-32; without its name.
    """
    if not is_file(path):
        if not exists(path):
            try:
                siblings = os.listdir(path.parent)  # noqa: PTH208 - names are enough
            except (OSError, ValueError):
                siblings = []
            close = difflib.get_close_matches(path.name[:255], siblings, n=1)
            hint = f", did you mean {path.parent / close[0]}?" if close else ""
            raise DataError(f"no such file or folder{hint}")
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"expected a file, got {kind}")
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    for kind, mark in _MARKS.items():
        if is_text and begin.startswith(mark):
            raise DataError(f"expected text in UTF-8, got {kind}")


def read_text(path: str | Path, most_bytes: int | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read, is larger than `most_bytes`, or is not UTF-8.
    """
    with open_lines(path) as file:
        content = file.read()
    if most_bytes is not None and len(content) > most_bytes:
        raise DataError(f"{path}: expected at most {most_bytes:,} bytes, got {len(content):,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: not UTF-8 at byte {byte} of the line") from None


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
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested too deeply)") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def open_lines(path: str | Path) -> BinaryIO:
    try:
        check_file(Path(path))
        return Path(path).open("rb")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
