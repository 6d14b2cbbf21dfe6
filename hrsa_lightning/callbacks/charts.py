"""TensorBoard's custom charts: one per metric and place, with all arms and the floor."""

import re
from collections.abc import Mapping

from lightning.pytorch import Trainer

from hrsa_lightning.callbacks.sinks import Layout, log_floors, log_layout
from hrsa_lightning.representations.history import split_tag

__all__ = ["chart_layout", "shared_floors", "show_charts"]

FLOOR = "floor"
_BOUNDS = ("_low", "_high")


def show_charts(
    trainer: Trainer, values: Mapping[str, float], floors: Mapping[str, float], step: int
) -> None:
    """Keep the layout of charts up to date and log the floors, where a logger has such charts."""
    shared = shared_floors(floors)
    log_layout(trainer, chart_layout([*values, *shared]))
    log_floors(trainer, shared, step)


def shared_floors(floors: Mapping[str, float]) -> dict[str, float]:
    """One floor per metric and place instead of one per comparison: the highest of them.

    Example:
        >>> shared_floors({"s/knn/a_vs_b/output": 0.1, "s/knn/c_vs_b/output": 0.2})
        {'s/knn/floor/output': 0.2}
        >>> shared_floors({"retrieval/rlvr/mrr@10": 0.01})
        {'retrieval/floor/mrr@10': 0.01}
    """
    shared: dict[str, float] = {}
    for tag, floor in floors.items():
        group, metric, _, where = split_tag(tag)
        parts = (group, FLOOR, metric) if "@" in metric else (group, metric, FLOOR, where)
        name = "/".join(parts)
        shared[name] = max(floor, shared.get(name, floor))
    return shared


def chart_layout(tags: list[str]) -> Layout:
    """One section per place and reference, one chart per metric with all arms and the floor.

    The output comes first, and what arms have drifted from their own start comes last.

    Example:
        >>> chart_layout(["s/cka/a_vs_b/output", "s/cka/floor/output"])
        {'s at output, against b': {'cka': ['Multiline', ['s/cka/a_vs_b/output$', \
's/cka/floor/output$']]}}
    """
    layout: Layout = {}
    floors: dict[tuple[str, str], str] = {}
    places: dict[str, str] = {}
    for tag in sorted(tags, key=_prominence):
        group, metric, comparison, where = split_tag(tag)
        if metric.endswith(_BOUNDS) or not where:
            continue
        pattern = _exactly(tag)
        place = f"{group} on held-out pairs" if "@" in metric else f"{group} at {where}"
        if comparison == FLOOR or where.startswith(f"{FLOOR}/"):
            floors[place.replace(f"{FLOOR}/", ""), metric] = pattern
            continue
        reference = comparison.rpartition("_vs_")[2] if "_vs_" in comparison else ""
        title = f"{place}, against {reference}" if reference else place
        places[title] = place
        layout.setdefault(title, {}).setdefault(metric, ["Multiline", []])[1].append(pattern)
    for title, charts in layout.items():
        for metric, chart in charts.items():
            if (places[title], metric) in floors:
                chart[1].append(floors[places[title], metric])
    return layout


def _prominence(tag: str) -> tuple[bool, bool]:
    return (not tag.endswith("/output"), "_vs_initial/" in tag)


def _exactly(tag: str) -> str:
    """TensorBoard takes a tag for the beginning of a pattern: layer_1 would show layer_10, too."""
    return f"{re.escape(tag)}$"
