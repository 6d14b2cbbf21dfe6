"""One value of an evaluation, with everything that is known of it."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

OUTPUT = "output"
MEAN_OVER_LAYERS = "mean_over_layers"
"""Stands for a layer in measurements of a whole stack of layers."""


class Series(NamedTuple):
    """What the values of one curve have in common.

    Attributes:
        metric: See `Measurement`, as for the others.
        probes: Probe set.
        arm: Live arm.
        reference: What it is compared with.
        layer: Layer.
        label: Label of the samples.
    """

    metric: str
    probes: str = ""
    arm: str = ""
    reference: str = ""
    layer: str = ""
    label: str = ""

    @property
    def comparison(self) -> str:
        """See `Measurement.comparison`."""
        return comparison_name(self.arm, self.reference)


class Measurement(NamedTuple):
    """One value of one metric.

    Attributes:
        metric: Such as `cka`, `knn_overlap_10` or `mrr@10`.
        value: NaN where it is undefined.
        chance: Value of unrelated representations; `None` where it is not known.
        probes: Name of the probe set; empty where there is only one.
        arm: Name of the live model; empty where there is only one.
        reference: Name of what it is compared with; empty for a property of the model alone, such
            as a retrieval score.
        layer: Short name of the layer, such as `layer_3` or `output`; `mean_over_layers` for the
            mean over the layers before the output; empty for a property of the model as a whole.
        label: Label of the samples that were compared; empty for all samples.
        step: Optimizer step.
        low: Lower end of the 95 % band; `None` where none was asked for.
        high: Upper end of the band.
        identity: Value of the reference compared with itself on these samples; `None` where it is
            not known. Like the next two it is found at the first and the last evaluation.
        null_95: Level that 95 % of the values stay below where the samples of one side are
            permuted (above, for a residual).
        p_value: Share of the permuted values as much alike as the value, which counts as one.
        level: Of a metric of the user's, the HRSA level that its invariances mean; empty for ours,
            see `hrsa_lightning.similarity.metric_info`, and where they mean none.
    """

    metric: str
    value: float
    chance: float | None = None
    probes: str = ""
    arm: str = ""
    reference: str = ""
    layer: str = ""
    label: str = ""
    step: int = 0
    low: float | None = None
    high: float | None = None
    identity: float | None = None
    null_95: float | None = None
    p_value: float | None = None
    level: str = ""

    @property
    def series(self) -> Series:
        """The curve that the value belongs to."""
        return Series(self.metric, self.probes, self.arm, self.reference, self.layer, self.label)

    @property
    def comparison(self) -> str:
        """Name for people and file names, such as `rlvr_vs_base`; the arm where it is alone."""
        return comparison_name(self.arm, self.reference)


def comparison_name(arm: str, reference: str) -> str:
    """Name of a comparison; a model that is the only one is called `live`.

    Example:
        >>> comparison_name("rlvr", "base"), comparison_name("", "initial")
        ('rlvr_vs_base', 'live_vs_initial')
    """
    return f"{arm or 'live'}_vs_{reference}" if reference else arm


def headline_layer(layers: Iterable[str]) -> str:
    """The layer that summaries show: the output, or else the last one.

    Example:
        >>> headline_layer(["layer_0", "output", "pooler"]), headline_layer(["layer_0", "layer_1"])
        ('output', 'layer_1')
    """
    names = [name for name in layers if name != MEAN_OVER_LAYERS]
    return OUTPUT if OUTPUT in names else names[-1]


def means_over_layers(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Means of comparisons over the layers before the output, where there are several.

    Layers at which a value is undefined are left out, and their chance levels and identities with
    them. Bands and permutation nulls are of one layer and have no mean.

    Example:
        >>> layers = [Measurement("cka", v, reference="a", layer=f"layer_{v}") for v in (0, 1)]
        >>> [(m.value, m.layer) for m in means_over_layers(layers)]
        [(0.5, 'mean_over_layers')]
    """
    stacks: dict[Series, list[Measurement]] = {}
    for m in measurements:
        if m.reference and m.layer and m.layer.split(".")[0] != OUTPUT:
            stacks.setdefault(m.series._replace(layer=MEAN_OVER_LAYERS), []).append(m)
    found = []
    for series, stack in stacks.items():
        defined = [m for m in stack if math.isfinite(m.value)] or stack
        if len(stack) > 1:
            found.append(
                Measurement(
                    *series[:1],
                    _mean([m.value for m in defined]),
                    _mean([m.chance for m in defined]),
                    *series[1:],
                    step=stack[0].step,
                    identity=_mean([m.identity for m in defined]),
                    level=stack[0].level,
                )
            )
    return found


def _mean(values: list[Any]) -> Any:
    return None if None in values else sum(values) / len(values)


def listed(places: Iterable[str], most: int = 4) -> str:
    """Places in a few words: neighboring layers as a range, and a count of those beyond the first.

    Example:
        >>> listed(["layer_1", "layer_2", "layer_3", "layer_5", "output"])
        'layer_1 to layer_3, layer_5, output'
        >>> listed(["a", "b", "c"], most=1)
        'a and 2 more'
    """
    runs: list[list[str]] = []
    latest: tuple[str, ...] = ()
    for place in dict.fromkeys(places):
        numbered = re.fullmatch(r"(.*?)(\d+)(\D.*|)", place)
        parts = numbered.groups() if numbered else ()
        follows = bool(parts and latest) and parts[::2] == latest[::2]
        if follows and int(parts[1]) == int(latest[1]) + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
        latest = parts
    words = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:most]]
    rest = sum(map(len, runs[most:]))
    return ", ".join(words) + (f" and {rest} more" if rest else "")
