"""What a comparison leaves behind: JSON and CSV for programs, a page and pictures for people."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.comparison.loading import KnownModel
from hrsa_lightning.comparison.pairs import Value
from hrsa_lightning.comparison.study import Comparison, Study
from hrsa_lightning.plots import COLORS, DASHES, Line, heatmap_figure, save_figure
from hrsa_lightning.plots.curves import panels_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["summary_lines", "write_results"]

_PROFILE = "layers.png"


def write_results(study: Study, out: Path) -> None:
    """Write `results.json`, `results.csv`, `report.md`, a map per pair and curves over layers.

    Every file appears in one move, the report last.
    """
    _draw(study, out)
    _write(out / "results.json", json.dumps(_content(study), indent=1) + "\n")
    _write(out / "results.csv", _csv(study))
    _write(out / "report.md", "\n".join(_report(study)) + "\n")


def summary_lines(study: Study) -> list[str]:
    """Every metric of every pair at the output, or where there is none at the last layer."""
    cells = {
        (value.metric, comparison.name): value
        for comparison in study.comparisons
        for value in _last(comparison)
    }
    names = [comparison.name for comparison in study.comparisons]
    rows = []
    for metric in dict.fromkeys(metric for metric, _ in cells):
        found = {name: cells[metric, name] for name in names if (metric, name) in cells}
        numbers = [_number(found[name].value) if name in found else "" for name in names]
        rows.append([metric, *numbers, _floor(found.values())])
    title = f"similarity at {_last_place(study)}, {study.num_rows} rows"
    return [title, "", *_table(["", *names, "chance"], rows)]


def _draw(study: Study, out: Path) -> None:
    for comparison in study.comparisons:
        heatmap = comparison.heatmap
        figure = heatmap_figure(
            heatmap.debiased,
            heatmap.rows,
            heatmap.columns,
            title=f"{comparison.model} vs {comparison.reference}",
            row_label=comparison.model,
            column_label=comparison.reference,
        )
        save_figure(figure, out / _picture(comparison))
    save_figure(_profile(study), out / _PROFILE)


def _profile(study: Study) -> "Figure":
    """Every metric from the first pair of layers to the last, a line per comparison."""
    lines: dict[str, list[Line]] = {}
    floors: dict[str, list[float]] = {}
    for index, comparison in enumerate(study.comparisons):
        over_layers: dict[str, list[Value]] = {}
        for value in comparison.values:
            if not value.label:
                over_layers.setdefault(value.metric, []).append(value)
        for metric, values in over_layers.items():
            line = Line(
                f"{comparison.model} vs {comparison.reference}",
                list(range(1, len(values) + 1)),
                [value.value for value in values],
                color=COLORS[index % len(COLORS)],
                dash=DASHES[index // len(COLORS) % len(DASHES)],
            )
            lines.setdefault(metric, []).append(line)
            last = values[-1].floor
            floors.setdefault(metric, []).append(math.nan if last is None else last)
    panels = [(metric.replace("_", " "), lines[metric], floors[metric]) for metric in lines]
    return panels_figure(panels, title="similarity by pair of layers, first to last")


def _content(study: Study) -> dict[str, Any]:
    return {
        "models": [_facts(known) for known in study.models],
        "texts": {
            "source": study.texts.source,
            "texts": len(study.texts.texts),
            "rows": study.num_rows,
            "labels": sorted(set(study.texts.labels or ())),
        },
        "look": asdict(study.look),
        "measures": asdict(study.measures),
        "comparisons": [
            {
                "name": comparison.name,
                "model": comparison.model,
                "reference": comparison.reference,
                "values": [_plain(asdict(value)) for value in comparison.values],
                "heatmap": {
                    key: [[_finite(v) for v in row] for row in value]
                    if key in ("debiased", "plain")
                    else value
                    for key, value in asdict(comparison.heatmap).items()
                },
                "notes": comparison.notes,
            }
            for comparison in study.comparisons
        ],
        "representations": None if study.kept is None else study.kept.name,
    }


def _facts(known: KnownModel) -> dict[str, Any]:
    return {
        "name": known.name,
        "model": known.source.spec,
        "backbone": known.source.backbone,
        "revision": known.source.revision,
        "adapter": None if known.source.adapter is None else str(known.source.adapter),
        "attention": known.model.attention,
        "pooling": known.model.pooling,
        "normalize": known.model.normalize,
        "dtype": known.model.dtype,
        "layers": known.num_layers,
        "width": known.width,
    }


def _csv(study: Study) -> str:
    text = io.StringIO()
    columns = ("layer", "reference_layer", "label", "metric", "value", "floor")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("model", "reference", *columns))
    for comparison in study.comparisons:
        for value in comparison.values:
            table.writerow(
                (comparison.model, comparison.reference, *(getattr(value, c) for c in columns))
            )
    return text.getvalue()


def _report(study: Study) -> list[str]:
    look, measures = study.look, study.measures
    unit = "texts" if look.level == "sentence" else "tokens"
    skipped = ", first token left out" if look.exclude_first_token else ""
    layers = ", ".join(look.layers)
    lines = [
        f"# {' / '.join(known.name for known in study.models)}",
        "",
        f"{len(study.texts.texts)} texts of `{study.texts.source}`, {study.num_rows} rows "
        f"({unit}), at most {look.max_length} tokens each{skipped}. Layers: {layers}. "
        f"Alignment: {measures.protocol}.",
        "",
        *_table(
            ["model", "from", "attention", "embedding", "dtype", "layers", "width"],
            [
                [
                    known.name,
                    f"`{known.source.spec}`",
                    known.model.attention,
                    f"{known.model.pooling}{', length 1' if known.model.normalize else ''}",
                    known.model.dtype,
                    str(known.num_layers),
                    str(known.width),
                ]
                for known in study.models
            ],
        ),
        "",
        *_cautions(study),
    ]
    lines += [f"![All metrics over layers]({_PROFILE})", ""]
    if len(study.models) > 2:
        lines += _matrices(study)
    for comparison in study.comparisons:
        lines += _section(comparison, study.num_rows)
    return lines


def _cautions(study: Study) -> list[str]:
    found = []
    for aspect in ("attention", "pooling", "dtype"):
        kinds = {known.name: str(getattr(known.model, aspect)) for known in study.models}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            found.append(f"- The models differ in {aspect}: {listed}.")
    if study.texts.labels and study.look.level == "token":
        found.append("- Labels belong to texts and are not used at token level.")
    return [*found, ""] if found else []


def _matrices(study: Study) -> list[str]:
    """Per metric a table of models: the reference across, the model down."""
    names = [known.name for known in study.models]
    cells = {
        (value.metric, comparison.model, comparison.reference): _number(value.value)
        for comparison in study.comparisons
        for value in _last(comparison)
    }
    lines = [f"## Matrices at {_last_place(study)}", ""]
    for metric in dict.fromkeys(metric for metric, _, _ in cells):
        rows = [
            [model, *(cells.get((metric, model, other), "") for other in names[:-1])]
            for model in names[1:]
        ]
        lines += [f"### {metric}", "", *_table(["", *names[:-1]], rows), ""]
    return lines


def _section(comparison: Comparison, num_rows: int) -> list[str]:
    lines = [f"## {comparison.model} vs {comparison.reference}", ""]
    lines += [f"![CKA of all layers]({_picture(comparison)})", ""]
    if comparison.heatmap.num_samples < num_rows:
        lines += [f"The map is of {comparison.heatmap.num_samples} rows, evenly spaced.", ""]
    everywhere = [value for value in comparison.values if not value.label]
    lines += [*_by_place(everywhere, lambda value: _place(value)), ""]
    last = everywhere[-1].layer
    within = [value for value in comparison.values if value.label and value.layer == last]
    if within:
        lines += [f"Within labels at {last}:", ""]
        lines += [*_by_place(within, lambda value: value.label), ""]
    for note, layers in comparison.notes.items():
        where = ", ".join(dict.fromkeys(layers))
        lines.append(f"- {note} (at {where})")
    return [*lines, ""] if comparison.notes else lines


def _by_place(values: Sequence[Value], place: Any) -> list[str]:
    """Places down, metrics across, and the value of chance where it is one for all places."""
    metrics = list(dict.fromkeys(value.metric for value in values))
    places = list(dict.fromkeys(place(value) for value in values))
    cells = {(place(value), value.metric): _number(value.value) for value in values}
    rows = [[where, *(cells.get((where, metric), "") for metric in metrics)] for where in places]
    chance = [_floor(value for value in values if value.metric == metric) for metric in metrics]
    return _table(["", *metrics], [*rows, ["*chance*", *chance]])


def _place(value: Value) -> str:
    same = value.layer == value.reference_layer
    return value.layer if same else f"{value.layer} ~ {value.reference_layer}"


def _last(comparison: Comparison) -> list[Value]:
    """Values over all rows at the output, or at the last pair of layers."""
    last = comparison.values[-1].layer
    return [value for value in comparison.values if value.layer == last and not value.label]


def _last_place(study: Study) -> str:
    places = {_place(_last(comparison)[0]) for comparison in study.comparisons}
    return places.pop() if len(places) == 1 else "the last layers"


def _floor(values: Iterable[Value]) -> str:
    """Of the values given: one number where they agree to three digits, else the range."""
    known = sorted(v.floor for v in values if v.floor is not None and math.isfinite(v.floor))
    if not known:
        return ""
    low, high = _number(known[0]), _number(known[-1])
    return low if low == high else f"{low} to {high}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, aligned for people who read it as text: words left, numbers right."""
    widths = [max(3, *(len(line[i]) for line in (header, *rows))) for i in range(len(header))]
    wordy = [all(not line[i][:1].isdigit() for line in rows) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, wordy, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, wordy, strict=True)
    ]
    return [line(header), line(rule), *map(line, rows)]


def _picture(comparison: Comparison) -> str:
    return f"cka_{comparison.name}.png"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _finite(value) if isinstance(value, float) else value for key, value in record.items()
    }


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
