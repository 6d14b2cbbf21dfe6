"""Files of a comparison: JSON and CSV for programs, a page and pictures for people."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.cli import markdown_table
from hrsa_lightning.compare.comparison import Comparison, ComparisonResults
from hrsa_lightning.compare.models import OUTPUT, KnownModel
from hrsa_lightning.io.files import csv_text, write_json, write_text
from hrsa_lightning.plots import COLORS, DASHES, Line, heatmap_figure, save_figure
from hrsa_lightning.plots.curves import panels_figure
from hrsa_lightning.similarity.comparer import DOMINATED
from hrsa_lightning.similarity.measurement import Measurement, listed
from hrsa_lightning.similarity.metric_info import info_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PROFILE = "layers.png"
_LEVELS = ("chance", "identity", "null_95", "p_value")
_COLUMNS = ("layer", "reference_layer", "label", "metric", "value", *_LEVELS)


def write_results(results: ComparisonResults, out: Path) -> None:
    """Write `results.json`, `results.csv`, `report.md`, a map per pair and curves over layers.

    Every file appears in one move, the report last.
    """
    for comparison in results.comparisons:
        for kind, values in _maps(comparison).items():
            save_figure(_map_figure(comparison, kind, values), out / _picture(comparison, kind))
    save_figure(_profile_figure(results), out / _PROFILE)
    write_json(out / "results.json", _content(results))
    write_text(out / "results.csv", _csv(results))
    write_text(out / "report.md", "\n".join(_report(results)) + "\n")


def write_overview(
    found: Sequence[tuple[str, str, str, Path, ComparisonResults]], out: Path
) -> None:
    """Write `report.md` and `overview.csv` of several comparisons: means over layers, as tables.

    Args:
        found: Pair, its kind, name of the texts, folder below `out`, and results of each.
        out: Their folder.
    """
    metrics = list(
        dict.fromkeys(
            metric
            for *_, results in found
            for each in results.comparisons
            for metric in _defined(_headline(each))
        )
    )
    rows = []
    for *labels, folder, results in found:
        for each in results.comparisons:
            values = {m.metric: m.value for m in _headline(each)}
            cells = [_number(values[m]) if m in values else "" for m in metrics]
            rows.append([each.name, *labels, folder.as_posix(), str(results.num_rows), *cells])
    header = ["comparison", "pair", "kind", "texts", "folder", "rows", *metrics]
    lines = [
        "# Overview",
        "",
        f"Means over layers where there are several, else {OUTPUT}. Each folder has a report.",
        "",
        *markdown_table([header, *rows]),
    ]
    write_text(out / "overview.csv", csv_text([tuple(header), *map(tuple, rows)]))
    write_text(out / "report.md", "\n".join(lines) + "\n")


def _headline(comparison: Comparison) -> list[Measurement]:
    """Means over layers, or the values of the last place where there are none."""
    return [m for m in comparison.means if not m.label] or _last(comparison)


def summary_lines(results: ComparisonResults) -> list[str]:
    """Every metric of every pair at the output, or where there is none at the last layer."""
    cells = {(m.metric, m.comparison): m for each in results.comparisons for m in _last(each)}
    names = [comparison.name for comparison in results.comparisons]
    rows = []
    metrics = _defined(cells.values())
    for metric in metrics:
        found = {name: cells[metric, name] for name in names if (metric, name) in cells}
        numbers = [_number(found[name].value) if name in found else "" for name in names]
        rows.append([metric, *numbers, *(_level(found.values(), name) for name in _LEVELS)])
    header = ["", *names, "chance", "itself", "95 % of permuted", "p"]
    used = [i for i in range(len(header)) if i < 2 + len(names) or any(row[i] for row in rows)]
    title = f"similarity at {_last_place(results)}, {results.num_rows} rows"
    table = markdown_table([[row[i] for i in used] for row in [header, *rows]])
    left_out = _left_out({metric for metric, _ in cells}.difference(metrics))
    dominated = [f"{each.name}: {words}" for each in results.comparisons for words in _told(each)]
    return [title, "", *table, *left_out, *([""] if dominated else []), *dominated]


def _maps(comparison: Comparison) -> dict[str, list[list[float]]]:
    """What is drawn of all layers, by metric: CKA, and the correlation of equal dimensions."""
    heatmap = comparison.heatmap
    found = {
        "cka": heatmap.debiased,
        "cka_standardized": heatmap.standardized,
        "dimension_correlation": heatmap.dimension_correlation,
    }
    if heatmap.standardized is not None:
        del found["cka"]
    return {kind: values for kind, values in found.items() if values is not None}


def _map_figure(comparison: Comparison, kind: str, values: list[list[float]]) -> "Figure":
    heatmap = comparison.heatmap
    return heatmap_figure(
        values,
        heatmap.rows,
        heatmap.columns,
        title=f"{comparison.model} vs {comparison.reference}",
        row_label=comparison.model,
        column_label=comparison.reference,
        label=info_of(kind).title,
    )


def _profile_figure(results: ComparisonResults) -> "Figure":
    """Every metric from the first pair of layers to the last, a line per comparison."""
    lines: dict[str, list[Line]] = {}
    levels: dict[str, list[float]] = {}
    for index, comparison in enumerate(results.comparisons):
        over_layers: dict[str, list[Measurement]] = {}
        for m in (m for m in comparison.measurements if not m.label):
            over_layers.setdefault(m.metric, []).append(m)
        for metric, found in over_layers.items():
            line = Line(
                f"{comparison.model} vs {comparison.reference}",
                list(range(1, len(found) + 1)),
                [m.value for m in found],
                color=COLORS[index % len(COLORS)],
                dash=DASHES[index // len(COLORS) % len(DASHES)],
            )
            lines.setdefault(metric, []).append(line)
            last = found[-1].chance
            levels.setdefault(metric, []).append(math.nan if last is None else last)
    panels = [(metric.replace("_", " "), lines[metric], levels[metric]) for metric in lines]
    return panels_figure(panels, title="similarity by pair of layers, first to last")


def _content(results: ComparisonResults) -> dict[str, Any]:
    content = {
        "models": [_model_content(known) for known in results.models],
        "texts": {
            "source": results.texts.source,
            "texts": len(results.texts.texts),
            "rows": results.num_rows,
            "labels": sorted(set(results.texts.labels or ())),
        },
        "extraction": asdict(results.extraction),
        "metrics": asdict(results.metrics),
        "comparisons": [
            {
                "name": comparison.name,
                "model": comparison.model,
                "reference": comparison.reference,
                "values": [
                    dict(zip(_COLUMNS, _row(comparison, m), strict=True))
                    for m in (*comparison.measurements, *comparison.means)
                ],
                "heatmap": asdict(comparison.heatmap),
                "notes": comparison.notes,
            }
            for comparison in results.comparisons
        ],
        "representations": None if results.kept is None else results.kept.name,
    }
    return content


def _model_content(known: KnownModel) -> dict[str, Any]:
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


def _row(comparison: Comparison, m: Measurement) -> tuple[Any, ...]:
    levels = (getattr(m, name) for name in _LEVELS)
    return m.layer, comparison.layers.get(m.layer, m.layer), m.label, m.metric, m.value, *levels


def _csv(results: ComparisonResults) -> str:
    rows = [
        (comparison.model, comparison.reference, *_row(comparison, m))
        for comparison in results.comparisons
        for m in (*comparison.measurements, *comparison.means)
    ]
    return csv_text([("model", "reference", *_COLUMNS), *rows])


def _report(results: ComparisonResults) -> list[str]:
    extraction = results.extraction
    unit = "texts" if extraction.level == "sentence" else "tokens"
    skipped = ", first token left out" if extraction.exclude_first_token else ""
    header = ["model", "from", "attention", "embedding", "dtype", "layers", "width"]
    rows = [
        [
            known.name,
            f"`{known.source.spec}`",
            known.model.attention,
            f"{known.model.pooling}{', length 1' if known.model.normalize else ''}",
            known.model.dtype,
            str(known.num_layers),
            str(known.width),
        ]
        for known in results.models
    ]
    lines = [
        f"# {' / '.join(known.name for known in results.models)}",
        "",
        f"{len(results.texts.texts)} texts of `{results.texts.source}`, {results.num_rows} rows "
        f"({unit}), at most {extraction.max_length} tokens each{skipped}. "
        f"Layers: {', '.join(extraction.layers)}. Alignment: {results.metrics.protocol}.",
        "",
        *markdown_table([header, *rows]),
        "",
        *cautions(results),
        *([""] if cautions(results) else []),
        f"![All metrics over layers]({_PROFILE})",
        "",
    ]
    if len(results.models) > 2:
        lines += _matrices(results)
    for comparison in results.comparisons:
        lines += _section(comparison, results.num_rows)
    return lines


def cautions(results: ComparisonResults) -> list[str]:
    """What the models differ in beside their weights, as lines of a list."""
    found = []
    for aspect in ("attention", "pooling", "dtype"):
        kinds = {known.name: str(getattr(known.model, aspect)) for known in results.models}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            found.append(f"- The models differ in {aspect}: {listed}.")
            if aspect == "attention":
                found.append(
                    "  Of one backbone before and after training, most of the distance can be the"
                    " mask: --attention bidirectional runs plain backbones as trained ones."
                )
    if results.texts.labels and results.extraction.level == "token":
        found.append("- Labels belong to texts and are not used at token level.")
    return found


def _matrices(results: ComparisonResults) -> list[str]:
    """Per metric a table of models: the reference across, the model down."""
    names = [known.name for known in results.models]
    cells = {
        (m.metric, m.arm, m.reference): _number(m.value)
        for comparison in results.comparisons
        for m in _last(comparison)
    }
    lines = [f"## Matrices at {_last_place(results)}", ""]
    for metric in dict.fromkeys(metric for metric, _, _ in cells):
        rows = [
            [model, *(cells.get((metric, model, other), "") for other in names[:-1])]
            for model in names[1:]
        ]
        lines += [f"### {metric}", "", *markdown_table([["", *names[:-1]], *rows]), ""]
    return lines


def _section(comparison: Comparison, num_rows: int) -> list[str]:
    lines = [f"## {comparison.model} vs {comparison.reference}", ""]
    for kind in _maps(comparison):
        words = f"all layers, {info_of(kind).title}"
        lines += [f"![{words[0].upper()}{words[1:]}]({_picture(comparison, kind)})", ""]
    if comparison.heatmap.num_samples < num_rows:
        lines += [f"The maps are of {comparison.heatmap.num_samples} rows, evenly spaced.", ""]
    everywhere = [m for m in comparison.measurements if not m.label]
    means = [m for m in comparison.means if not m.label]
    lines += [*_by_place([*everywhere, *means], lambda m: _place(comparison, m.layer)), ""]
    last = everywhere[-1].layer
    within = [m for m in comparison.measurements if m.label and m.layer == last]
    if within:
        lines += [f"Within labels at {last}:", ""]
        lines += [*_by_place(within, lambda m: m.label), ""]
    notes = [f"{note} (at {listed(where)})" for note, where in comparison.notes.items()]
    notes = [f"- {note}" for note in [*_told(comparison), *notes]]
    return [*lines, *notes, *([""] if notes else [])]


def _by_place(found: Sequence[Measurement], place: Callable[[Measurement], str]) -> list[str]:
    """Places down, metrics across, and what is known of each metric; without undefined ones."""
    metrics = _defined(found)
    cells = {(place(m), m.metric): _number(m.value) for m in found}
    rows = [
        [where, *(cells.get((where, metric), "") for metric in metrics)]
        for where in dict.fromkeys(map(place, found))
    ]
    for name, words in zip(_LEVELS, ("chance", "itself", "95 % of permuted", "p"), strict=True):
        levels = [_level([m for m in found if m.metric == metric], name) for metric in metrics]
        if any(levels):
            rows.append([f"*{words}*", *levels])
    left_out = {m.metric for m in found}.difference(metrics)
    return [*markdown_table([["", *metrics], *rows]), *_left_out(left_out)]


def _defined(found: Iterable[Measurement]) -> list[str]:
    """Metrics that have a value anywhere."""
    return list(dict.fromkeys(m.metric for m in found if math.isfinite(m.value)))


def _told(comparison: Comparison) -> list[str]:
    """The layers whose variance one dimension carries, in a line."""
    found = comparison.dominated
    words = f"{DOMINATED} (up to {max(found.values(), default=0):.0%}, at {listed(found)})"
    return [words] if found else []


def _left_out(metrics: Iterable[str]) -> list[str]:
    names = sorted(metrics)
    return ["", f"Undefined here and left out: {', '.join(names)}."] if names else []


def _place(comparison: Comparison, layer: str) -> str:
    other = comparison.layers.get(layer, layer)
    return layer if layer == other else f"{layer} ~ {other}"


def _last(comparison: Comparison) -> list[Measurement]:
    """Values over all rows at the output, or at the last pair of layers."""
    last = comparison.measurements[-1].layer
    return [m for m in comparison.measurements if m.layer == last and not m.label]


def _last_place(results: ComparisonResults) -> str:
    places = {_place(each, _last(each)[0].layer) for each in results.comparisons}
    return places.pop() if len(places) == 1 else "the last layers"


def _level(found: Iterable[Measurement], name: str) -> str:
    """A level of the values given: one number where all agree to three digits, else the range.

    What a representation has with itself is shown where it is not the 0 or 1 of theory.
    """
    levels = (getattr(m, name) for m in found if math.isfinite(m.value))
    known = sorted(level for level in levels if level is not None and math.isfinite(level))
    if not known or (name == "identity" and all(level in (0, 1) for level in known)):
        return ""
    low, high = _number(known[0]), _number(known[-1])
    return low if low == high else f"{low} to {high}"


def _picture(comparison: Comparison, kind: str) -> str:
    return f"{kind}_{comparison.name}.png"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
