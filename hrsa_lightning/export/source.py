"""Which trained weights are exported, found and checked before torch is loaded."""

import json
from pathlib import Path

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.runs.directory import SUMMARY
from hrsa_lightning.runs.resolve import Arm, Source, find_arms, is_run

__all__ = ["find_trained", "holds_transformer"]


def find_trained(folder: Path, arm: str | None) -> tuple[Source, Arm]:
    """The trained weights of one arm in a run's folder or in one of its checkpoints.

    Args:
        folder: The run or the checkpoint.
        arm: Name of the arm; may be left out where there is one only.

    Raises:
        ConfigError: There is no such run, arm or weights, or the run is not finished.
        BackboneError: The arm's backbone is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a run, as in runs/<recipe>/<time>")
    if not is_run(folder):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
        raise ConfigError(
            f"{folder}: expected the folder of a run (with config.yaml) or a checkpoint step_N;"
            f" found {found}"
        )
    source, *others = find_arms(folder, arm)
    if others:
        names = ", ".join(one.place.name for one in (source, *others))
        raise ConfigError(f"--arm: the run has {1 + len(others)} arms; choose one: {names}")
    assert source.arm is not None
    run = source.arm.run
    if source.arm.checkpoint is None and not (run / SUMMARY).is_file():
        raise ConfigError(
            f"{run}: this run is not finished (no {SUMMARY}); the same train command goes on with"
            " it, or name one of its checkpoints/step_N"
        )
    return source, source.arm


def holds_transformer(folder: Path) -> bool:
    """Whether the folder holds a whole transformer, such as an earlier export."""
    config = folder / "config.json"
    return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))
