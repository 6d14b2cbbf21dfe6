"""Histories by tag: what a monitor logged, for tests that name tags."""

from hrsa_lightning.callbacks.logging import tag_of, values_by_tag
from hrsa_lightning.similarity.history import read_evaluations


def read_tags(path):
    """Step, values and chance levels of every evaluation."""
    evaluations = read_evaluations(path)
    compared = [m for e in evaluations for m in e.measurements if m.reference]
    named = len({m.comparison for m in compared}) > 1 or any(m.arm for m in compared)
    return [
        {
            "step": e.step,
            "values": {
                **values_by_tag(e.monitor, e.measurements, named=named),
                f"{e.monitor}/seconds": e.seconds,
            },
            "chance": {
                tag_of(e.monitor, m, named=named): m.chance
                for m in e.measurements
                if m.chance is not None
            },
        }
        for e in evaluations
    ]
