"""Where data lie: files, tables and data sets of the hub; and texts made of their columns.

Imports no torch. An entry is checked when it is made, and reads nothing before it is asked to.
"""

import csv
import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from hrsa_lightning.errors import DataError, cut, first_line, nearest, shown
from hrsa_lightning.io.files import check_file, exists
from hrsa_lightning.io.json_lines import JSON_LINES, Problems, read_text_records
from hrsa_lightning.io.pairs import check_text
from hrsa_lightning.io.resources import EMBEDDED, resolve_path

HUB_PREFIX = "hub:"
TABLES = (".parquet", ".json", ".csv")
"""Suffixes of files that the `datasets` package reads."""

_HUB_FORMATS = ("parquet", "json", "csv", "text", "arrow")
"""By the names of the `datasets` package; others read pickles, or query servers."""

_COMPRESSED = tuple(f"{suffix}.gz" for suffix in JSON_LINES)


@dataclass(frozen=True)
class SourceEntry:
    """Where data lie and which of them; in a recipe a mapping, or just its `path`.

    Attributes:
        path: A file (JSON lines, also `.gz`; `.parquet`, `.json`, `.csv`), a pattern such as
            `data/*.jsonl`, a folder (of parquet files, or what `Dataset.save_to_disk` wrote), or a
            data set of the hub as `hub:NAME[:CONFIG][@SPLIT[:N]]`, where N is its `limit`.
        name: What messages and files call it; the default is the path.
        split: Of a data set of the hub (train), with a slice such as `train[:1000]` if wanted.
        files: Names or patterns of files in the repository: nothing else of it is fetched.
        revision: Commit or branch of the data set.
        limit: The first so many only, after `filter`.
        filter: By column, the value, the list of values, or the `min` and `max` of rows that stay.

    Raises:
        DataError: A value is none of these; the message begins with its key.
    """

    path: str
    name: str | None = None
    split: str | None = None
    files: Any = None
    revision: str | None = None
    limit: int | None = None
    filter: Mapping[str, Any] | None = None

    numbers: ClassVar[tuple[str, ...]] = ("limit",)
    """Fields that are whole numbers from 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, text = getattr(self, field.name), field.type in (str, str | None)
            if value is not None and text and not (isinstance(value, str) and value.strip()):
                raise DataError(f"{field.name}: expected a text, got {shown(value)}")
        if not isinstance(self.path, str):
            raise DataError("path: expected a file, a folder or hub:NAME, got null")
        for key in self.numbers:
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or value is True or value < 1):
                raise DataError(f"{key}: expected a whole number from 1, got {shown(value)}")
        for key in ("split", "files", "revision"):
            if getattr(self, key) is not None and not self.is_hub:
                raise DataError(f"{key}: expected beside a path hub:NAME, got {shown(self.path)}")
        if self.files is not None and not is_texts(self.files):
            raise DataError(f"files: expected a pattern or a list, got {shown(self.files)}")
        self._check_filter()
        if self.limit is None and self.is_hub:
            object.__setattr__(self, "limit", self._address()[3])

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
    def of(cls, entry: object) -> Self:
        """An entry from a path, a mapping, or an entry.

        Raises:
            DataError: A key is unknown, or a value is none that it may have.
        """
        if isinstance(entry, cls):
            return entry
        own = as_mapping(entry)
        known = [field.name for field in fields(cls)]
        for key in own:
            if key not in known:
                hint = nearest(str(key), known) or f" Known here: {', '.join(known)}."
                raise DataError(f"unknown key {shown(key)}.{hint}")
        if "path" not in own:
            raise DataError("path: expected a file, a folder or hub:NAME, got none")
        return cls(**own)

    @property
    def is_hub(self) -> bool:
        """Whether it is a data set of the hub."""
        return self.path.startswith(HUB_PREFIX)

    @property
    def hub_name(self) -> str:
        """Name of the hub's data set, `OWNER/NAME`."""
        return self._address()[0]

    def _address(self) -> tuple[str, str, str, int | None]:
        """Name, configuration, split and number of rows, as far as the path of the hub says."""
        address, _, split = self.path.removeprefix(HUB_PREFIX).partition("@")
        name, _, config = address.partition(":")
        split, _, number = split.partition(":") if split[-1:].isdigit() else (split, "", "")
        return name, config, split, int(number) if number.isdigit() else None

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


PRESETS: dict[str, dict[str, Any]] = {
    # Reasoning traces token by token, as the paper's figures 3 to 11 have them. Its own traces are
    # not public: these are human solutions; `path` takes a file that tools/traces.py wrote.
    "paper_tokens": {
        "path": "hub:HuggingFaceH4/MATH-500@test:64",
        "text": "{problem}\n{solution}",
        "spread": True,
        "level": "token",
        "max_length": 8000,
        "max_tokens": 8192,
    },
    "general": {
        "path": "hub:TIGER-Lab/MMLU-Pro@test:512",  # ordered by category, hence spread
        "text": "{question}\n{options}",
        "label": "category",
        "spread": True,
        "max_length": 512,
    },
    "reasoning": {
        "path": "hub:openai/gsm8k:main@test:512",
        "text": "{question}\n{answer}",
        "max_length": 1024,
    },
    "reasoning_math": {
        "path": "hub:HuggingFaceH4/MATH-500@test",
        "text": "{problem}\n{solution}",
        "label": "subject",
        "max_length": 2048,
    },
    "labels": {
        "path": "hub:fancyzhx/ag_news@test:2000",
        "text": "text",
        "label": "label",
        "spread": True,
        "max_length": 256,
    },
    # Of the same kinds, for the embedded backbones and without a network.
    "tiny_tokens": {
        "path": "embedded:tiny/traces.jsonl",
        "limit": 128,
        "spread": True,
        "level": "token",
        "max_tokens": 2048,
    },
    "tiny_general": {"path": "embedded:tiny/probes.jsonl"},
    "tiny_reasoning": {"path": "embedded:tiny/traces.jsonl", "label": "family"},
    "tiny_labels": {"path": "embedded:tiny/domains.jsonl"},
}
"""Texts of known sources, by the name that `preset` takes."""

PRESET_PREFIX = "preset:"
LEVELS = ("token", "pooled")
_COLUMN = re.compile(r"\{([^{}]+)\}")


class Texts(NamedTuple):
    """Texts in the order of their source.

    Attributes:
        source: What messages call it.
        texts: At least one.
        labels: One per text, or `None`.
    """

    source: str
    texts: list[str]
    labels: list[str] | None = None


@dataclass(frozen=True)
class TextEntry(SourceEntry):
    """Texts that models are run on, such as a probe set; in a recipe a mapping, or just its `path`.

    `path` may also be a plain text, one a line, or `preset:NAME`; a mapping may have `preset: NAME`
    and what is to be different from it.

    Attributes:
        text: A column, or a template of several such as `{question}\\n{answer}`; by default `text`,
            and prompt and solution of a trace.
        label: A column; by default `label` where every record has one.
        spread: Take `limit` evenly from the whole source, for one that is sorted.
        level: `token` for a row per token, `pooled` for one per text; by default as the command or
            monitor says.
        max_length: Most tokens of a text; by default as the command or monitor says.
        max_tokens: Most rows at level `token`, evenly taken from each text: bounds the memory.

    Raises:
        DataError: A value is none of these; the message begins with its key.
    """

    text: str | None = None
    label: str | None = None
    spread: bool = False
    level: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None

    numbers = ("limit", "max_length", "max_tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in (None, *LEVELS):
            raise DataError(f"level: expected {' or '.join(LEVELS)}, got {shown(self.level)}")
        if not isinstance(self.spread, bool):
            raise DataError(f"spread: expected true or false, got {shown(self.spread)}")
        if self.max_tokens is not None and self.level != "token":
            raise DataError(f"max_tokens: expected beside level: token, got {shown(self.level)}")

    @classmethod
    def of(cls, entry: object) -> Self:
        if isinstance(entry, cls):
            return entry
        own = as_mapping(entry)
        if isinstance(path := own.get("path"), str) and path.startswith(PRESET_PREFIX):
            own["preset"] = own.pop("path").removeprefix(PRESET_PREFIX)
        if "preset" not in own:
            return super().of(own)
        if (name := own.pop("preset")) not in PRESETS:
            raise DataError(
                f"preset: expected one of {', '.join(PRESETS)}, got {shown(name)}."
                f"{nearest(str(name), PRESETS)}"
            )
        preset = PRESETS[name]
        if "path" in own:  # another source has other columns, and as many texts as it has
            kept = ("level", "max_length", "max_tokens")
            preset = {key: preset[key] for key in kept if key in preset}
        if own.get("level", "token") != "token":
            preset = {key: value for key, value in preset.items() if key != "max_tokens"}
        return super().of({**preset, **own})

    def read(self) -> Texts:
        """Read all texts, and labels where there are some.

        Raises:
            DataError: There is no such source, column or text; or bad lines, all in one error.
        """
        problems = Problems()
        texts: list[str] = []
        labels: list[str | None] = []
        template = ""
        for where, record in self._chosen(problems):
            template = template or self._template(record, where)
            try:
                texts.append(_filled(template, record))
                found = record.get(self.label or "label")
                if found is None and self.label is not None:
                    raise DataError(f'"{self.label}" is missing')
                labels.append(None if found is None else check_text(str(found), "label"))
            except DataError as error:
                problems.add(where, str(error))
        problems.raise_if_any()
        if not texts:
            raise DataError(f"{self.title}: no texts in {'it' if self.is_hub else 'the file'}")
        known = [label for label in labels if label is not None]
        return Texts(self.title, texts, known if len(known) == len(texts) else None)

    def _chosen(self, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Where each record stands that is asked for, and the record."""
        passing = self._passing(problems)
        if not self.spread or self.limit is None:
            yield from islice(passing, self.limit)
            return
        found = list(passing)
        taken = min(self.limit, len(found))
        yield from (found[place * len(found) // taken] for place in range(taken))

    def _passing(self, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
        passes: Callable[[Mapping[str, Any]], bool] | None = None
        for where, record in self._records(problems):
            try:
                passes = passes or self.keeps(tuple(record))
                if passes(record):
                    yield where, record
            except KeyError as error:
                problems.add(where, f"filter: no column {error}")

    def _records(self, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
        path = Path(resolve_path(self.path))
        is_table = self.is_hub or path.suffix.lower() in TABLES or glob.has_magic(str(path))
        if is_table or (exists(path) and path.is_dir()):
            try:
                table = self.load_table()
            except DataError as error:
                raise DataError(f"{self.title}: {error}") from None
            wanted = self.label or "label"
            names = getattr(table.features.get(wanted), "names", None)  # of a `ClassLabel`
            for row, record in enumerate(table):
                number = record.get(wanted)
                if names and number is not None:
                    record[wanted] = names[number] if number >= 0 else None
                yield f"{self.title} row {row}", record
            return
        column = "text" if self.text is None or _COLUMN.search(self.text) else self.text
        for line, record in read_text_records(path, problems.add, column):
            yield f"{path}:{line}", record

    def _template(self, first: Mapping[str, Any], where: str) -> str:
        """What to make a text of, from the columns of the first record."""
        template = (self.text or "text").replace("\\n", "\n")  # as a shell leaves it
        if self.text is None and "text" not in first and {"prompt", "solution"} <= set(first):
            template = "{prompt}\n{solution}"
        wanted = {"text": _COLUMN.findall(template) or [template], "label": [self.label]}
        for key, names in wanted.items():
            for name in names:
                if name is not None and name not in first:
                    found = cut(", ".join(map(str, first)), 200)
                    raise DataError(f'{where}: {key}: no column "{name}"; found {found}')
        return template


def as_mapping(entry: object) -> dict[str, Any]:
    """An entry that is a path or a mapping, as a mapping of its own.

    Raises:
        DataError: It is something else.
    """
    if isinstance(entry, Mapping):
        return dict(entry)
    if isinstance(entry, str | Path):
        return {"path": str(entry)}
    raise DataError(f"expected a path or a mapping with path, got {shown(entry)}")


def is_entry(source: Any) -> bool:
    """Whether probes are said by where they lie, and not given."""
    if isinstance(source, Mapping):
        return any(isinstance(source.get(key), str) for key in ("path", "preset"))
    return isinstance(source, str | Path | TextEntry)


def is_address(source: Any) -> bool:
    """Whether a text is a data set of the hub, a preset or an embedded file, by how it begins."""
    return isinstance(source, str) and source.startswith((HUB_PREFIX, PRESET_PREFIX, EMBEDDED))


def _filled(template: str, record: Mapping[str, Any]) -> str:
    if not _COLUMN.search(template):
        return check_text(record.get(template), template)
    return _COLUMN.sub(lambda column: _cell(record.get(column[1]), column[1]), template)


def _cell(value: Any, column: str) -> str:
    """A value in a template: text, number, or a list of these, one a line."""
    if isinstance(value, list | tuple):
        return "\n".join(_cell(each, column) for each in value)
    return check_text(str(value) if isinstance(value, int | float) else value, column)


def _matching(pattern: str) -> list[Path]:
    files = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
    if not files:
        raise DataError("no file matches this pattern")
    return [Path(name) for name in files]


def is_texts(value: object) -> bool:
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


def _load_hub(entry: SourceEntry) -> Any:
    """The data set of an entry; of its repository only `files` are fetched where they are said."""
    name, config, split, _ = entry._address()
    split = entry.split or split or "train"
    options: dict[str, Any] = {} if entry.revision is None else {"revision": entry.revision}
    if entry.files is None:
        options["name"] = config or None
    else:
        options["data_files"] = {re.split(r"[\[:+]", split)[0]: entry.files}
    builder = _call(_import_datasets().load_dataset_builder, name, **options)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _HUB_FORMATS:  # `hub:pandas` with files, for one, reads pickles
        raise DataError(f"expected files of {', '.join(_HUB_FORMATS)} on the hub, got {kind}")
    _call(builder.download_and_prepare)
    return _call(builder.as_dataset, split=split)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "reading this needs the datasets package: pip install 'datasets>=3.0'"
        ) from None
    return datasets


def _call(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return load(*args, **kwargs)
    # The package lets through errors of many libraries (pyarrow, fsspec, hub clients, its own).
    except Exception as error:
        raise DataError(f"datasets cannot read it: {first_line(error)}") from error
