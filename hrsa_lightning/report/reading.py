"""What a run left behind, read fast: histories as arrays, recipe, environment, summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.config import read_yaml
from hrsa_lightning.errors import ConfigError, DataError

__all__ = ["DETAILS_SUFFIX", "History", "Run", "find_runs", "read_run"]

DETAILS_SUFFIX = ".details.jsonl"
"""End of the names of files with layer-by-layer maps and spectra, beside the histories.

Each line is a JSON object with `step`, `group` (the monitor), `comparison` (empty where there is
only one), `kind` and `values`, null where not finite. Kinds are

- `cka`: (rows, columns), debiased linear CKA of every layer against every layer, with the layers'
  names in `rows` (live) and `columns` (reference);
- `singular_values`: those of the cross-covariance behind O*, falling, with their place in `where`;
- `row_entropy`: evenly spaced percentiles, from 0 to 100, of the entropies of the rows of O* over
  ln d, with their place in `where`.
"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """One history file.

    Attributes:
        name: File name.
        steps: (evaluations,), optimizer steps.
        seconds: (evaluations,), what each evaluation took; NaN where unknown.
        tags: Column of each tag.
        values: (evaluations, tags); NaN where undefined or absent.
        floors: Chance level by tag, where one is known.
    """

    name: str
    steps: Array
    seconds: Array
    tags: Mapping[str, int]
    values: Array
    floors: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One folder.

    Attributes:
        folder: Where it is.
        config: The resolved recipe; empty where there is none.
        environment: Versions, git state, command line, hardware; empty where there is none.
        summary: Steps and seconds; empty for a run that did not finish.
        histories: By file name.
        details: Layer-by-layer maps and spectra, in the order written.
        notes: What is missing or wrong, for the reader of the report.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Short name: the last two parts of the folder's path."""
        return "/".join(self.folder.absolute().parts[-2:])

    @property
    def seed(self) -> int | None:
        """The run's seed, where the recipe says one."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def last_step(self) -> float:
        """Latest step of any history."""
        return max(float(history.steps[-1]) for history in self.histories.values())


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Folders that hold a history; a folder without one stands for all runs below it.

    Raises:
        DataError: When a folder does not exist or there is no history in or below it.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected that of a run")
        own = [folder] if any(_history_files(folder)) else []
        below = [] if own else sorted({p.parent for p in folder.rglob("*.jsonl")})
        runs = own or [path for path in below if any(_history_files(path))]
        if not runs:
            raise DataError(
                f"{folder}: no history in or below it; expected a run's folder with "
                "similarity.jsonl or another file of a monitor"
            )
        found += runs
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Run:
    """Read what a run left behind.

    Raises:
        DataError: When a history is malformed; with file and line.
    """
    notes: list[str] = []
    histories = {path.name: _read_history(path) for path in _history_files(folder)}
    config: Mapping[str, Any] = {}
    if (folder / "config.yaml").is_file():
        try:
            config = read_yaml(folder / "config.yaml")
        except ConfigError as error:
            raise DataError(str(error)) from None
    else:
        notes.append("config.yaml is missing: recipe, seed and arms are unknown")
    environment = _read_json(folder / "environment.json")
    if not environment:
        notes.append("environment.json is missing: versions and git state are unknown")
    summary = _read_json(folder / "summary.json")
    if not summary:
        notes.append(
            "summary.json is missing: the run is not one of the package's or is unfinished"
        )
    details: list[Mapping[str, Any]] = []
    for path in sorted(folder.glob(f"*{DETAILS_SUFFIX}")):
        details += [record for _, record in _records(path)]
    shown = {name: history for name, history in histories.items() if len(history.steps)}
    if not shown:
        raise DataError(f"{folder}: its histories hold no whole record")
    return Run(folder, config, environment, summary, shown, details, notes)


def _history_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.endswith(DETAILS_SUFFIX):
            continue
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b'{"step":'):
            yield path


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record; a last line that a kill has cut off is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error})") from None


def _read_history(path: Path) -> History:
    steps: list[float] = []
    seconds: list[float] = []
    tags: dict[str, int] = {}
    floors: dict[str, float] = {}
    rows: list[tuple[NDArray[np.intp], Array]] = []
    latest: list[str] = []
    columns = np.empty(0, dtype=np.intp)
    for number, record in _records(path):
        try:
            values: dict[str, float | None] = record["values"]
            steps.append(record["step"])
            names = list(values)
            if names != latest:  # nearly always the same tags in the same order
                latest = names
                columns = np.array([tags.setdefault(name, len(tags)) for name in names], np.intp)
            rows.append((columns, np.array(list(values.values()), dtype=np.float64)))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise DataError(
                f"{path}:{number}: expected a record with 'step' and a mapping 'values' of numbers"
            ) from None
        seconds.append(record.get("seconds", np.nan))
        floors |= {
            tag: floor for tag, floor in record.get("floors", {}).items() if floor is not None
        }
    table = np.full((len(rows), len(tags)), np.nan)
    for index, (places, row) in enumerate(rows):
        table[index, places] = row
    return History(path.name, np.array(steps, float), np.array(seconds, float), tags, table, floors)
