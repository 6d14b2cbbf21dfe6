"""What the sections of a report share: places, names, cells."""

import math

from hrsa_lightning.report.document import Cell
from hrsa_lightning.report.grouping import Experiment
from hrsa_lightning.report.statistics import Spread

__all__ = [
    "HELD_OUT",
    "band_words",
    "cell",
    "groups_of",
    "metrics_of",
    "name_of",
    "number",
    "place_of",
    "places_of",
]

HELD_OUT = "held_out"
"""Place of the values that have no layer: those of retrieval."""


def groups_of(experiment: Experiment) -> list[str]:
    """Monitors, with probe sets apart; those of retrieval last."""
    found = dict.fromkeys(key.group for key in experiment.keys)
    return sorted(found, key=lambda group: place_of(experiment, group) == HELD_OUT)


def place_of(experiment: Experiment, group: str) -> str:
    """Where verdicts are given: at the output, or else at the last layer."""
    places = places_of(experiment, group)
    return "output" if "output" in places else places[-1]


def places_of(experiment: Experiment, group: str) -> list[str]:
    """Layers and output; parts of the probe set only where there is nothing else."""
    found = dict.fromkeys(key.where for key in experiment.keys if key.group == group)
    return [where for where in found if "/" not in where] or list(found)


def metrics_of(experiment: Experiment, group: str) -> list[str]:
    """Metrics of comparisons; diagnostics of single arms are not among them."""
    return list(
        dict.fromkeys(
            key.metric
            for key in experiment.keys
            if key.group == group and not key.metric.startswith("variance_share")
        )
    )


def band_words(experiment: Experiment) -> str:
    """What lines, bands and dashes mean."""
    count = len(experiment.runs)
    if count > 1:
        return f"Mean over {count} seeds; bands are one standard deviation. Dashed: chance."
    return "One seed; bands, where drawn, are its own uncertainty over probes. Dashed: chance."


def name_of(comparison: str) -> str:
    """A comparison for people."""
    return comparison.replace("_vs_", " vs ") or "live vs reference"


def cell(found: Spread, *, digits: int = 3, signed: bool = False) -> Cell:
    """Mean ± standard deviation; the latter where it shows at so many digits."""
    if not found.num_values:
        return Cell("–", math.nan)
    # Adding zero after rounding takes the sign off a zero.
    text = f"{round(found.mean, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    if found.std >= 0.5 * 10**-digits:
        text += f" ± {found.std:.{digits}f}"
    return Cell(text, found.mean)


def number(value: float) -> str | Cell:
    """One number, or a dash where it is undefined."""
    return "–" if math.isnan(value) else Cell(f"{value:.3f}", value)
