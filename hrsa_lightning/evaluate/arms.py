"""Which of the models that were given are seeds of one arm, and which differ by chance alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hrsa_lightning.config import to_yaml
from hrsa_lightning.encoders import ModelReference
from hrsa_lightning.errors import ConfigError, nearest


@dataclass(frozen=True)
class EvaluatedArm:
    """Models that differ in their seeds only.

    Attributes:
        name: As tables call it.
        models: One per seed.
        origin: Equal for arms that start from the same backbone under the same recipe; None for
            what is no arm of a run.
    """

    name: str
    models: tuple[ModelReference, ...]
    origin: str | None

    def is_control_of(self, other: "EvaluatedArm") -> bool:
        """Whether only chance makes it different from `other`."""
        return self is not other and self.origin is not None and self.origin == other.origin


def group_models(models: Sequence[ModelReference]) -> list[EvaluatedArm]:
    """Group models into arms.

    Arms of several runs are seeds of one arm if they have the same name, come from the same step,
    and their recipes differ in seeds, and where things are written, only.

    Raises:
        ConfigError: A model is given twice.
    """
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"model {name} is given twice")
    groups: dict[tuple[str, str], list[ModelReference]] = {}
    for model in models:
        groups.setdefault((_recipe(model), model.arm or model.name), []).append(model)
    short = [_short(members[0]) for members in groups.values()]
    return [
        EvaluatedArm(
            name if short.count(name) == 1 else members[0].name, tuple(members), _origin(members[0])
        )
        for name, members in zip(short, groups.values(), strict=True)
    ]


def find_arm(name: str, arms: Sequence[EvaluatedArm]) -> EvaluatedArm:
    """The arm of this name.

    Raises:
        ConfigError: There is none.
    """
    for arm in arms:
        if arm.name == name:
            return arm
    known = [arm.name for arm in arms]
    raise ConfigError(
        f"baseline: no arm {name!r}.{nearest(name, known)} Those here: {', '.join(known)}."
    )


def _short(model: ModelReference) -> str:
    if model.arm is not None:
        return model.arm
    return Path(model.path).name if Path(model.path).is_dir() else model.path


def _recipe(model: ModelReference) -> str:
    """The recipe without what may differ between seeds, and how far it was followed."""
    arm = model.source.arm
    if arm is None:
        return ""
    config = copy.deepcopy(arm.config)
    config.seed, config.output_dir, config.resume = 0, "", True
    for settings in config.arms.values():
        settings.seed = None
    return f"step {arm.step}\n{to_yaml(config)}"


def _origin(model: ModelReference) -> str | None:
    if model.config is None or model.arm is None:
        return None
    arm = model.config.arms[model.arm]
    return f"{arm.backbone}@{arm.revision}\n{_recipe(model)}"
