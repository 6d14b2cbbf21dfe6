"""Measurements as JSON lines, one evaluation a line, and the details beside them.

A line of a history is an object with `step`, `epoch`, `time`, `seconds`, `run`, `monitor` and
`measurements`, a list of objects with the fields of `Measurement` that differ from their defaults.
Undefined values, for which JSON has no number, are null. Files of version 0.1, whose `values` and
`floors` are mappings by tag, are read as well.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.files import finite, numbered, write_text
from hrsa_lightning.io.json_lines import read_json_lines
from hrsa_lightning.similarity.measurement import Measurement, Series

DETAILS_SUFFIX = ".details.jsonl"
"""End of the names of files with layer-by-layer maps and spectra, beside the histories."""

_NUMBERS = ("value", "chance", "low", "high", "identity", "null_95", "p_value")
MAPS = ("cka", "cka_standardized", "dimension_correlation")
"""Those of `hrsa_lightning.metrics.heatmaps.HEATMAPS`, which takes torch to import."""

_SPECTRA = ("singular_values", "row_entropy")
_LARGEST = 1e100
"""Larger values are taken as undefined, so that squares and sums stay finite."""
_MALFORMED = (LookupError, TypeError, AttributeError, ValueError, OverflowError)
_SCORE = re.compile(r"(mrr|ndcg|recall)@\d+")
_BOUNDS = ("low", "high")

_UNNAMED = "reference"
"""The only reference of a monitor, whose name files of version 0.1 do not hold."""


class Evaluation(NamedTuple):
    """What one evaluation of a monitor left in its history.

    Attributes:
        step: Optimizer step.
        measurements: Values, in the order written.
        monitor: Name of the monitor.
        epoch: Counted from 0.
        time: Seconds since 1970.
        seconds: Duration of the evaluation.
        run: Id of the run, the same in all records of a file.
    """

    step: int
    measurements: list[Measurement]
    monitor: str = ""
    epoch: int = 0
    time: float = math.nan
    seconds: float = math.nan
    run: str = ""


class Detail(NamedTuple):
    """A map of all layers against all layers, or a spectrum of an alignment.

    Attributes:
        step: Optimizer step.
        kind: `cka` (debiased linear CKA of every layer against every layer), `cka_standardized`,
            `dimension_correlation` (mean of each pair of layers), `singular_values` (of the
            cross-covariance behind O*, falling) or `row_entropy` (evenly spaced percentiles,
            from 0 to 100, of the entropies of the rows of O* over ln d).
        values: (rows, columns) of a map, or a list; NaN where undefined.
        probes: See `Measurement`.
        arm: See `Measurement`.
        reference: See `Measurement`.
        layer: Layer of a spectrum.
        rows: Layers of the live model, for a map.
        columns: Layers of the reference, for a map.
        monitor: Name of the monitor.
    """

    step: int
    kind: str
    values: list[Any]
    probes: str = ""
    arm: str = ""
    reference: str = ""
    layer: str = ""
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    monitor: str = ""


class SummaryRow(NamedTuple):
    """First and last value of one series.

    Attributes:
        series: Which one.
        first: The first measurement.
        last: The last.
    """

    series: Series
    first: Measurement
    last: Measurement


def read_history(path: str | Path) -> list[Measurement]:
    """Read all measurements of a history file; a last line cut off by a kill is left out.

    Args:
        path: The file.

    Returns:
        Measurements in the order written.

    Raises:
        DataError: When a line is malformed; with file and line.
    """
    return [m for evaluation in read_evaluations(path) for m in evaluation.measurements]


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """Read a history file evaluation by evaluation; see `read_history`."""
    path = Path(path)
    old = _TagReader(path.stem)
    found: list[Evaluation] = []
    num_old = 0
    for number, _, _, record in read_json_lines(path, ended_only=True):
        try:
            step, monitor = _count(record["step"]), _word(record.get("monitor", ""))
            if "values" in record:
                monitor, measurements = old.read(record)
                num_old += 1
            else:
                measurements = [_measurement(step, fields) for fields in record["measurements"]]
            found.append(
                Evaluation(
                    step,
                    measurements,
                    monitor,
                    _count(record.get("epoch", 0)),
                    _number(record.get("time")),
                    _number(record.get("seconds")),
                    _word(record.get("run", "")),
                )
            )
        except _MALFORMED:
            raise DataError(
                f"{path}:{number}: expected an evaluation, with 'step' and a list 'measurements', "
                f"got {json.dumps(record):.80}"
            ) from None
    return _with_named_reference(found[:num_old], found[num_old:]) + found[num_old:]


def read_details(path: str | Path) -> list[Detail]:
    """Read a file of maps and spectra.

    Raises:
        DataError: When a line is malformed; with file and line.
    """
    path = Path(path)
    found = []
    for number, _, _, record in read_json_lines(path, ended_only=True):
        try:
            if "group" in record:
                record = _old_detail(record, path.name.removesuffix(DETAILS_SUFFIX))
            found.append(_detail(record))
        except _MALFORMED:
            raise DataError(
                f"{path}:{number}: expected a map with 'values' of its 'rows' and 'columns', or a "
                f"spectrum with a list 'values', got {json.dumps(record):.80}"
            ) from None
    return found


def details_path(history: Path) -> Path:
    """The file of maps and spectra beside a history.

    Example:
        >>> details_path(Path("run/similarity.jsonl")).name
        'similarity.details.jsonl'
    """
    return history.with_name(f"{history.stem}{DETAILS_SUFFIX}")


def append_record(path: Path, record: Evaluation | Detail) -> None:
    """Add one line to a history or a file of details."""
    fields = _own_fields(record)
    if isinstance(record, Evaluation):  # which says the step once
        fields["measurements"] = [_own_fields(m._replace(step=0)) for m in record.measurements]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def reserve_history(wanted: Path) -> Path:
    """Make an empty file for the history of a new run, under this name or `NAME-v1` and so on."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for path in numbered(wanted):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    return path


def cut_history(source: Path, target: Path, last_step: int, run: str = "") -> list[int]:
    """Begin `target` with the records of `source` up to a step, for a run that resumes there.

    A file with lines that cannot be read is copied to `NAME.damaged` before it is replaced.

    Args:
        source: The file of the run that was interrupted; may be missing.
        target: The file of the run that goes on; may be the same one.
        last_step: Later records are dropped.
        run: Id of the run; records with another one are not taken over.

    Returns:
        The steps of the records kept.
    """
    damaged: list[str] = []
    lines = [
        line
        for line in _records(source, lambda where, _: damaged.append(where))
        if line.get("run", run) == run and line["step"] <= last_step
    ]
    if damaged and source == target:
        shutil.copyfile(source, source.with_name(f"{source.name}.damaged"))
    if lines or target.is_file():
        write_text(target, "".join(f"{json.dumps(line)}\n" for line in lines))
    return [line["step"] for line in lines]


def has_other_run(path: Path, run: str) -> bool:
    """Whether a file holds records of another run."""
    return any(record.get("run", run) != run for record in _records(path, lambda *_: None))


def _records(path: Path, on_problem: Callable[[str, str], None]) -> Iterator[dict[str, Any]]:
    """Lines of a file that are records of some step."""
    if not path.is_file():
        return
    for number, _, _, record in read_json_lines(path, on_problem, ended_only=True):
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
        else:
            on_problem(f"{path}:{number}", "no record")


def summarize(measurements: Iterable[Measurement]) -> list[SummaryRow]:
    """First and last value of every series.

    Args:
        measurements: In the order of their steps, such as a history.

    Returns:
        One row (`series`, `first`, `last`) per curve, in the order of first appearance.
    """
    first: dict[Series, Measurement] = {}
    last: dict[Series, Measurement] = {}
    for m in measurements:
        first.setdefault(m.series, m)
        last[m.series] = m
    return [SummaryRow(series, first[series], last[series]) for series in first]


def _measurement(step: int, fields: dict[str, Any]) -> Measurement:
    for name, value in fields.items():
        fields[name] = _number(value) if name in _NUMBERS else _word(value)
    return Measurement(**fields, step=step)


def _detail(fields: dict[str, Any]) -> Detail:
    """A map has rows and columns, a spectrum has neither."""
    rows, columns = fields.get("rows", ()), fields.get("columns", ())
    if (fields["kind"] in MAPS and not rows) or (fields["kind"] in _SPECTRA and rows):
        raise ValueError
    if rows:
        shape = [len(columns)] * len(rows)
        if [len(row) for row in fields["values"]] != shape:
            raise ValueError
        values: list[Any] = [[_number(value) for value in row] for row in fields["values"]]
    else:
        values = [_number(value) for value in fields["values"]]
    read: dict[str, Any] = {
        "step": _count(fields["step"]),
        "values": values,
        "rows": rows and [_word(name) for name in rows],
        "columns": columns and [_word(name) for name in columns],
    }
    return Detail(**{**{k: _word(v) for k, v in fields.items() if k not in read}, **read})


def _own_fields(record: Evaluation | Detail | Measurement) -> dict[str, Any]:
    """Fields that differ from their defaults."""
    defaults = record._field_defaults
    return {
        name: finite(value)
        for name, value in record._asdict().items()
        if name not in defaults or value != defaults[name]
    }


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise TypeError
    return float(value) if abs(value) < _LARGEST else math.nan


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError
    return value


def _word(value: Any) -> str:
    """A name; one that breaks a line or has half a surrogate pair fits into no title or file."""
    if type(value) is not str or not value.isprintable():
        raise TypeError
    return value


class _TagReader:
    """Reads records of version 0.1, the only place that takes a tag apart.

    Args:
        name: Monitor whose file it is, where a record does not say.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._chances: dict[str, float] = {}
        self._known: dict[str, Series] = {}
        self._arms: set[str] = set()

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[Measurement]]:
        """Monitor and measurements of a record."""
        values: dict[str, float | None] = record["values"]
        # Chance levels were written once, at the first evaluation that knew them.
        self._chances |= record.get("floors", {})
        seconds = [tag for tag in values if tag.count("/") == 1 and tag.endswith("/seconds")]
        name = seconds[0].removesuffix("/seconds") if seconds else self._name
        # Every arm has such a diagnostic, so that its name says where that of the reference begins.
        shares = (tag.split("/") for tag in values if "/variance_share_sample/" in tag)
        arms = {parts[2] for parts in shares if len(parts) == 4}
        if arms != self._arms or name != self._name:
            self._name, self._arms, self._known = name, arms, {}
        found: dict[Series, Measurement] = {}
        for tag, value in values.items():
            if tag in seconds:
                continue
            series = self._known.get(tag) or self._known.setdefault(tag, self._series(tag))
            chance = self._chances.get(tag)
            chance = None if chance is None else _number(chance)
            found[series] = _of_series(series, _number(value), chance, record["step"])
        return name, _with_bands(found)

    def _series(self, tag: str) -> Series:
        group, *parts = _word(tag).split("/")
        probes = _probes_of(group, self._name)
        if len(parts) < 3 and _SCORE.fullmatch(parts[-1]):
            return Series(parts[-1], probes, arm=parts[0] if len(parts) == 2 else "")
        metric, *place = parts
        if metric.startswith("variance_share_"):
            return Series(metric, probes, arm="".join(place[:-1]), layer=place[-1])
        arm, reference = "", _UNNAMED
        if len(place) > 1 and "_vs_" in place[0]:
            arm, reference = _sides(place.pop(0), self._arms)
        return Series(
            metric, probes, arm, reference, place[0] if place else "", "/".join(place[1:])
        )


def _of_series(series: Series, value: float, chance: float | None, step: int) -> Measurement:
    metric, probes, arm, reference, layer, label = series
    return Measurement(metric, value, chance, probes, arm, reference, layer, label, step)


def _with_bands(found: dict[Series, Measurement]) -> list[Measurement]:
    """Bounds as fields of the value that they belong to."""
    bands: dict[Series, tuple[float, float]] = {}
    bounds: set[Series] = set()
    for series in found:
        low, high = (series._replace(metric=f"{series.metric}_{end}") for end in _BOUNDS)
        if low in found and high in found:
            bands[series] = found[low].value, found[high].value
            bounds |= {low, high}
    return [
        m._replace(low=bands[series][0], high=bands[series][1]) if series in bands else m
        for series, m in found.items()
        if series not in bounds
    ]


def _with_named_reference(old: list[Evaluation], later: Sequence[Evaluation]) -> list[Evaluation]:
    """Where a run of version 0.1 was resumed, its later records name the only reference."""
    names = {m.reference for e in later for m in e.measurements if m.reference and not m.arm}
    if len(names) != 1:
        return old
    (name,) = names
    return [
        e._replace(
            measurements=[
                m._replace(reference=name) if (m.arm, m.reference) == ("", _UNNAMED) else m
                for m in e.measurements
            ]
        )
        for e in old
    ]


def _probes_of(group: str, name: str) -> str:
    return group.removeprefix(name).removeprefix(".")


def _sides(comparison: str, arms: Iterable[str]) -> tuple[str, str]:
    """Arm and reference of a name such as `rlvr_vs_base`."""
    for arm in sorted(arms, key=len, reverse=True):
        if comparison.startswith(f"{arm}_vs_"):
            return arm, comparison.removeprefix(f"{arm}_vs_")
    arm, _, reference = comparison.partition("_vs_")
    return "" if arm == "live" else arm, reference


def _old_detail(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    names: Sequence[str] = ("step", "kind", "values", "rows", "columns")
    found = {key: record[key] for key in names if key in record}
    sides = _sides(record["comparison"], ()) if record["comparison"] else ("", _UNNAMED)
    return {
        **found,
        "probes": _probes_of(record["group"], name),
        "arm": sides[0],
        "reference": sides[1],
        "layer": record.get("where", ""),
        "monitor": name,
    }
