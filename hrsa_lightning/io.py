"""Files: written whole or not at all; JSON lines, texts and contrastive pairs read one at a time.

Imports no torch: a command answers a bad line before the heavy imports.
"""

import csv
import difflib
import fnmatch
import functools
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from hrsa_lightning.errors import DataError, cut, nearest, shown

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


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one move; its folder is made if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Replace a JSON file in one move."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


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

    Args:
        path: The file.
        is_text: Whether it has to be one of text.

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
    with _open_lines(path) as file:
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


def _open_lines(path: str | Path) -> BinaryIO:
    try:
        check_file(Path(path))
        return Path(path).open("rb")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


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
    with _open_lines(path) as file:
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
    with _open_lines(path) as lines:
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


Query = str | tuple[str, str]
"""A query's text, or its (instruction, text)."""

ROLES = ("query", "pos", "neg", "instruction", "pos_ids", "neg_ids")
"""What a column of pairs may be for."""

_QUERIES = (("query", "anchor"), ("question", "sentence1", "premise"))
_POSITIVES = (
    ("pos", "positive", "positive_passages"),
    ("answer", "document", "sentence2", "hypothesis"),
)
"""Names of the column, by preference; two of one group are ambiguous."""

_NEGATIVE = re.compile(r"(?:hard_)?(?:neg|negs|negative|negatives)(?:_([0-9]{1,9}))?")
_JUDGED = ("score", "label", "similarity", "similarity_score", "is_duplicate")
"""What says of two sentences how much alike they are: not every row is a pair of positives."""

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d*)\]")


@dataclass(frozen=True, slots=True)
class ContrastivePair:
    """A query with the passages that answer it and passages that nearly do.

    Attributes:
        query: A text, or an instruction and a text.
        positives: Texts that answer it, at least one.
        negatives: Texts that nearly do.
        id: Name of the pair.
        positive_ids: Of each positive, the document that it is a part of; empty where no file says.
        negative_ids: The same of the negatives.
    """

    query: Query
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    id: str | None = None
    positive_ids: tuple[str, ...] = field(default=(), repr=False)
    negative_ids: tuple[str, ...] = field(default=(), repr=False)


class Layout:
    """Which columns of a record are its query, its positives, its negatives and so on.

    Args:
        columns: Names of the columns.
        roles: Columns by role (`ROLES`): a name, a pattern such as `neg_*`, a path into what a
            column holds such as `passages[].text` or `pos[1]`, or a list of these. None recognizes
            the layouts people have: the authors' (`query`, `pos`, `neg`), those of
            sentence-transformers (`anchor`, `positive`, `negative_1` ..., and two columns such as
            `question`, `answer`), `query`, `document`, `negatives`, and Tevatron's passages.
        instruction: For queries that have none in their row.
        judged: Whether rows are filtered, so that a score beside two sentences is accounted for.
        strict: Whether all columns of `roles` have to be there, or the query and a positive.

    Raises:
        DataError: The columns are not known or not there; the second line says what to write.
    """

    def __init__(
        self,
        columns: Sequence[str],
        roles: Mapping[str, Any] | None = None,
        instruction: str | None = None,
        judged: bool = False,
        strict: bool = True,
    ) -> None:
        self.instruction = instruction
        found = _recognized(columns, judged) if roles is None else _mapped(columns, roles, strict)
        self.names = {role: names for role, names in found.items() if names}
        paths = {role: [_Path(name) for name in names] for role, names in found.items()}
        self._query, self._positives, self._negatives = paths["query"], paths["pos"], paths["neg"]
        self._instruction = paths.get("instruction", [])
        self._ids = paths.get("pos_ids", []), paths.get("neg_ids", [])

    def __str__(self) -> str:
        """The columns by role.

        Example:
            >>> print(Layout(["anchor", "positive", "negative_1", "negative_2"]))
            query anchor, pos positive, neg negative_1 ... negative_2
        """
        short = {
            role: names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
            for role, names in self.names.items()
        }
        return ", ".join(f"{role} {names}" for role, names in short.items())

    def parse(self, record: Mapping[str, Any]) -> ContrastivePair:
        """The pair of a record with these columns.

        Raises:
            DataError: A value has the wrong type, or holds an empty text.
        """
        (path,) = self._query
        query = _parse_query(path.read(record), path.name)
        if isinstance(query, str):
            given = next((path.read(record) for path in self._instruction), None)
            if instruction := given or self.instruction:
                query = (check_text(instruction, "instruction"), query)
        positives = _parse_columns(record, self._positives)
        if not positives:
            raise DataError(f'"{self._positives[0].name}" has no text')
        negatives = _parse_columns(record, self._negatives)
        # MEDI's [instruction, text] in the place of passages: one text would be right and wrong.
        if len(positives) == len(negatives) == 2 and positives[0] == negatives[0]:
            pos, neg = self._positives[0].name, self._negatives[0].name
            if not isinstance(query, str):
                raise DataError(
                    f'"{pos}" and "{neg}" both begin with {shown(positives[0])}: expected texts, '
                    f"got [instruction, text]\n  write columns: {{query: {path.name}, "
                    f"pos: '{pos}[1]', neg: '{neg}[1]'}}"
                )
        identifier = record.get("id")
        ids = [
            _parse_ids([path.read(record) for path in paths], role, len(texts))
            for paths, role, texts in zip(
                self._ids, ("pos_ids", "neg_ids"), (positives, negatives), strict=True
            )
        ]
        known = None if identifier is None else _parse_id(identifier, "id")
        return ContrastivePair(query, positives, negatives, known, *ids)


class _Path:
    """Where a value lies in a record: `passages[].text` is the text of each of its passages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.column = re.split(r"[.\[]", name, maxsplit=1)[0]
        rest = name[len(self.column) :]
        self._steps = [match.groups() for match in _STEP.finditer(rest)]
        if "".join(match[0] for match in _STEP.finditer(rest)) != rest or not self.column:
            raise DataError(f"columns: expected a path such as passages[].text, got {shown(name)}")

    def read(self, record: Mapping[str, Any]) -> Any:
        """What is there; None where the column is empty."""
        value = record.get(self.column)
        return value if not self._steps else self._follow(value, self._steps)

    def _follow(self, value: Any, steps: list[tuple[Any, ...]]) -> Any:
        if not steps or value is None:
            return value
        (key, index), rest = steps[0], steps[1:]
        try:
            if key is not None:
                return self._follow(value[key], rest)
            if index:
                return self._follow(value[int(index)], rest)
            return [self._follow(item, rest) for item in value]
        except (KeyError, IndexError, TypeError):
            raise DataError(f'"{self.name}" is not there, found {_kind(value)}') from None


def _recognized(columns: Sequence[str], judged: bool) -> dict[str, list[str]]:
    """The columns of a known layout by role."""
    query = _preferred(columns, _QUERIES, "query")
    positive = _preferred(columns, _POSITIVES, "pos")
    numbered = sorted(
        (-1 if match[1] is None else int(match[1]), name)
        for name in columns
        if (match := _NEGATIVE.fullmatch(name))
    )
    roles = {"query": [query], "pos": [positive], "neg": [name for _, name in numbered]}
    for role, passages in (("pos", "positive_passages"), ("neg", "negative_passages")):
        if passages in columns and positive == "positive_passages":
            roles[role] = [passages]
            roles[f"{role}_ids"] = [f"{passages}[].docid"]
        elif f"{role}_ids" in columns:
            roles[f"{role}_ids"] = [f"{role}_ids"]
    if "instruction" in columns:
        roles["instruction"] = ["instruction"]
    told = [name for name in _JUDGED if name in columns]
    if told and not judged and not roles["neg"]:
        raise DataError(
            f'which rows are positives says the column "{told[0]}"; expected a filter\n'
            f"  write filter: {{{told[0]}: {{min: 0.8}}}} or {{{told[0]}: [values of positives]}}"
        )
    return roles


def _preferred(columns: Sequence[str], groups: Sequence[Sequence[str]], role: str) -> str:
    for names in groups:
        found = [name for name in names if name in columns]
        if len(found) > 1:
            raise DataError(
                f'expected "{found[0]}" or "{found[1]}", got both\n'
                f"  write columns: {{query: NAME, pos: NAME, neg: NAME}} to choose"
            )
        if found:
            return found[0]
    known = ", ".join(f'"{name}"' for names in groups for name in names)
    raise DataError(
        f"{known}: none is a column, found {shown(sorted(columns))}\n"
        "  write columns: {query: NAME, pos: NAME, neg: NAME}, neg where there is one"
    )


def _mapped(columns: Sequence[str], roles: Mapping[str, Any], strict: bool) -> dict[str, list[str]]:
    """The columns that a mapping names, patterns replaced by what they match, in natural order."""
    found: dict[str, list[str]] = {"query": [], "pos": [], "neg": []}
    for role, names in roles.items():
        found[role] = []
        for name in [names] if isinstance(names, str) else names:
            column = _Path(name).column
            matching = fnmatch.filter(columns, column) if "*" in column else [column]
            matching.sort(key=lambda text: [(len(part), part) for part in re.split("_", text)])
            missing = not matching or any(text not in columns for text in matching)
            if missing and not strict and role not in ("query", "pos"):
                continue
            if missing:
                raise DataError(
                    f"columns.{role}: no column {shown(name)}.{nearest(column, columns)}\n"
                    f"  the columns are {cut(', '.join(sorted(columns)), 200)}"
                )
            found[role] += [text + name[len(column) :] for text in matching]
    return found


def parse_pair(record: object) -> ContrastivePair:
    """Turn a record of a known layout into a pair, see `Layout`.

    Wherever one text is expected for a passage, a list is accepted too, and the other way round.
    With `pos_ids` and `neg_ids`, lists as long as `pos` and `neg`, passages of one document are
    never taken for each other's negatives.

    Raises:
        DataError: If a column is missing, has the wrong type, or holds an empty text.

    Example:
        >>> parse_pair({"query": ["Find the answer", "2 + 2?"], "pos": ["4"], "neg": ["5"]})
        ContrastivePair(query=('Find the answer', '2 + 2?'), positives=('4',), negatives=('5',), \
id=None)
        >>> parse_pair({"anchor": "2 + 2?", "positive": "4", "negative_1": "5", "negative_2": "3"})
        ContrastivePair(query='2 + 2?', positives=('4',), negatives=('5', '3'), id=None)
    """
    return layout_of(record).parse(cast(Mapping[str, Any], record))


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, the corpus they search, and what answers them.

    Attributes:
        queries: Texts, or (instruction, text), each once.
        corpus: Passages, each once.
        relevance: Of each query, the rows of `corpus` that answer it.
    """

    queries: tuple[Query, ...]
    corpus: tuple[str, ...]
    relevance: tuple[tuple[int, ...], ...]

    @classmethod
    def from_pairs(cls, pairs: Iterable[ContrastivePair]) -> "RetrievalSet":
        """Pool all positives and negatives into one corpus.

        Equal passages are one row of the corpus, equal queries one query to which the positives of
        all of them are relevant. Order is that of first appearance.

        Example:
            >>> pairs = [ContrastivePair("a?", ("a",), ("b",)), ContrastivePair("b?", ("b",))]
            >>> RetrievalSet.from_pairs(pairs)
            RetrievalSet(queries=('a?', 'b?'), corpus=('a', 'b'), relevance=((0,), (1,)))
        """
        corpus: dict[str, int] = {}
        relevance: dict[Query, dict[int, None]] = {}
        for pair in pairs:
            rows = [corpus.setdefault(text, len(corpus)) for text in pair.positives]
            relevance.setdefault(pair.query, {}).update(dict.fromkeys(rows))
            for text in pair.negatives:
                corpus.setdefault(text, len(corpus))
        return cls(tuple(relevance), tuple(corpus), tuple(map(tuple, relevance.values())))


def pair_line(pair: ContrastivePair) -> str:
    """A pair as a line of the training format, which `parse_pair` reads.

    Example:
        >>> print(pair_line(ContrastivePair(("do", "q"), ("a",), ("b",), None, ("7",))), end="")
        {"query": ["do", "q"], "pos": ["a"], "neg": ["b"], "pos_ids": ["7"]}
    """
    record: dict[str, Any] = {} if pair.id is None else {"id": pair.id}
    query = pair.query if isinstance(pair.query, str) else list(pair.query)
    record |= {"query": query, "pos": list(pair.positives), "neg": list(pair.negatives)}
    for key, ids in (("pos_ids", pair.positive_ids), ("neg_ids", pair.negative_ids)):
        if ids:
            record[key] = list(ids)
    return json.dumps(record, ensure_ascii=False) + "\n"


def layout_of(record: object) -> Layout:
    """The known layout of a record by its columns.

    Raises:
        DataError: It is none, or no record.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"expected an object with query and pos, got {_kind(record)}")
    return _known_layout(tuple(record))


@functools.lru_cache(maxsize=256)
def _known_layout(columns: tuple[str, ...]) -> Layout:
    return Layout(columns)


def _parse_ids(values: Sequence[object], column: str, count: int) -> tuple[str, ...]:
    ids: list[str] = []
    for value in values:
        if value is None:
            continue
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f'"{column}" must be a list of ids, got {_kind(value)}')
        ids += [_parse_id(entry, column) for entry in value]
    if ids and len(ids) != count:
        raise DataError(f'"{column}" has {len(ids)} ids for {count} texts')
    return tuple(ids)


def _parse_id(value: object, column: str) -> str:
    if isinstance(value, str | int) and is_text(text := str(value)):
        return text
    raise DataError(f'"{column}" must be a text or a whole number, got {_kind(value)}')


def _parse_query(value: object, column: str) -> Query:
    if isinstance(value, str):
        return check_text(value, column)
    if not isinstance(value, Sequence) or len(value) != 2:
        raise DataError(f'"{column}" must be a text or [instruction, text], got {_kind(value)}')
    instruction, text = value
    text = check_text(text, f"{column}[1]")
    # An empty instruction is how the authors write a query without one.
    return (check_text(instruction, f"{column}[0]"), text) if instruction else text


def _parse_columns(record: Mapping[str, Any], paths: Sequence[_Path]) -> tuple[str, ...]:
    texts: list[str] = []
    for path in paths:
        value = path.read(record)
        if isinstance(value, str):
            texts.append(check_text(value, path.name))
        elif isinstance(value, Sequence):
            texts += [
                check_text(_passage(item), f"{path.name}[{n}]") for n, item in enumerate(value)
            ]
        elif value is not None:  # how tables of columns spell "fewer negatives here"
            kind = _kind(value)
            raise DataError(f'"{path.name}" must be a text or a list of texts, got {kind}')
    return tuple(texts)


def _passage(item: Any) -> Any:
    """The text of a passage, behind its title where Tevatron's form has one."""
    if not isinstance(item, Mapping) or "text" not in item:
        return item
    title = item.get("title")
    return f"{title} {item['text']}" if title else item["text"]


def check_text(value: object, column: str) -> str:
    """Return `value` if it is a text that a tokenizer can take, else raise `DataError`."""
    if not isinstance(value, str):
        raise DataError(f'"{column}" must be a text, got {_kind(value)}')
    if not value or value.isspace():
        raise DataError(f'"{column}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'"{column}" has half of a surrogate pair (\\ud800-\\udfff)') from None
    return value


def _kind(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"
