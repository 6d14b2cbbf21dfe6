"""Representations for TensorBoard's embedding projector, to look around in with the mouse."""

from collections.abc import Mapping

from lightning.pytorch import Trainer

from hrsa_lightning.callbacks.referencing import Live
from hrsa_lightning.callbacks.sinks import log_embeddings
from hrsa_lightning.representations.probes import ProbeSet

__all__ = ["log_projector"]

_LONGEST = 100


def log_projector(trainer: Trainer, name: str, live: Live, probes: Mapping[str, ProbeSet]) -> None:
    """Give the projector one matrix per arm and probe set: the output, or else the last layer.

    Args:
        trainer: Whose loggers.
        name: Begins the names of the matrices.
        live: Representations as of the latest evaluation.
        probes: The probe sets by name, which know labels and texts.
    """
    for group, arms in live.items():
        for arm, snapshot in arms.items():
            where = "output" if "output" in snapshot else list(snapshot)[-1]
            rows, known = snapshot[where], probes[group]
            columns = {
                title: [text[:_LONGEST] for text in column]
                for title, column in (("label", known.labels), ("text", known.texts))
                if column is not None and len(column) == len(rows)
            }
            tag = "/".join(part for part in (name, group, arm, where) if part)
            log_embeddings(trainer, tag, rows, columns, trainer.global_step)
