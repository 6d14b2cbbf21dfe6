"""Which trained weights a run folder holds, found and checked before torch is loaded.

A source is a finished run (`runs/<recipe>/<time>`), one of its checkpoints
(`…/checkpoints/step_000100`), or, to interpolate with, a folder that transformers loads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.config import load_config
from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.runs import SUMMARY
from hrsa_lightning.schema import Config, nearest

if TYPE_CHECKING:
    from hrsa_lightning.models.embedder import EmbeddingModel

__all__ = ["Source", "find_source", "holds_transformer", "load_source"]


@dataclass(frozen=True)
class Source:
    """One arm of a run, at its end or at a checkpoint.

    Attributes:
        run: The run's folder.
        arm: Name of the arm.
        config: The recipe of the run, as resolved when it started.
        weights: Folder of the adapter or of the whole backbone, or the checkpoint itself where all
            weights were trained.
        step: Optimizer step of a checkpoint; `None` at the end of the run.
    """

    run: Path
    arm: str
    config: Config
    weights: Path
    step: int | None

    @property
    def backbone(self) -> str:
        return self.config.arms[self.arm].backbone

    @property
    def label(self) -> str:
        return self.arm if self.step is None else f"{self.arm}-step_{self.step}"

    @property
    def has_adapter(self) -> bool:
        return self.config.model.lora is not None


def find_source(folder: Path, arm: str | None) -> Source:
    """The trained weights of one arm in a run's folder or in one of its checkpoints.

    Args:
        folder: The run or the checkpoint.
        arm: Name of the arm; may be left out where there is one only.

    Raises:
        ConfigError: There is no such run, arm or weights, or the run is not finished.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a run, as in runs/<recipe>/<time>")
    is_checkpoint = (folder / "state.json").is_file()
    run = folder.resolve().parent.parent if is_checkpoint else folder
    if not (run / "config.yaml").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
        raise ConfigError(
            f"{folder}: expected the folder of a run (with config.yaml) or a checkpoint step_N;"
            f" found {found}"
        )
    config = load_config(str(run / "config.yaml"))
    name = _choose_arm(config, arm)
    step = int(folder.name.rpartition("_")[2]) if is_checkpoint else None
    weights = folder / "adapters" / name
    if is_checkpoint and config.model.lora is None:
        weights = folder
    if not is_checkpoint and not (run / SUMMARY).is_file():
        raise ConfigError(
            f"{run}: this run is not finished (no {SUMMARY}); the same train command goes on with"
            f" it, or name a checkpoint of it: {_checkpoints(run)}"
        )
    wanted = "adapter_model.safetensors" if config.model.lora else "*.safetensors"
    if not any(weights.glob(wanted)):
        raise ConfigError(f"{weights}: no {wanted} there; the run has no weights of arm '{name}'")
    if config.model.lora:
        try:
            resolve_backbone(config.arms[name].backbone)
        except BackboneError as error:
            raise ConfigError(f"arms.{name}.backbone of {run}: {error}") from None
    return Source(run, name, config, weights, step)


def load_source(source: Source) -> "EmbeddingModel":
    """The trained embedding model, in float32 and evaluation mode.

    Raises:
        BackboneError: The adapter does not fit the backbone, or the backbone cannot be loaded.
    """
    from hrsa_lightning.models.embedder import EmbeddingModel

    model: Any = source.config.model
    arm = source.config.arms[source.arm]
    whole = not source.has_adapter and source.step is None
    loaded = EmbeddingModel.from_pretrained(
        source.weights if whole else arm.backbone,
        revision=None if whole else arm.revision,
        dtype="float32",
        attn_implementation="eager" if model.attn_implementation == "eager" else "sdpa",
        attention=model.attention,
        pooling=model.pooling,
        normalize=model.normalize,
        adapter=source.weights if source.has_adapter else None,
        trust_remote_code=model.trust_remote_code,
        instruction_mask=model.instruction_mask,
    )
    if not source.has_adapter and source.step is not None:
        _load_whole_checkpoint(loaded, source)
    return loaded.eval()


def _load_whole_checkpoint(model: "EmbeddingModel", source: Source) -> None:
    from hrsa_lightning.checkpoints import SafetensorsCheckpointIO

    state = SafetensorsCheckpointIO().load_checkpoint(source.weights)["state_dict"]
    prefix = f"arms.{source.arm}."
    own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    missing = {name for name, _ in model.named_parameters()} - own.keys()
    if missing:
        raise BackboneError(
            f"{source.weights}: holds {len(own)} weights of arm '{source.arm}' but not"
            f" {min(missing)}"
        )
    model.load_state_dict(own, strict=False)


def _choose_arm(config: Config, arm: str | None) -> str:
    names = list(config.arms)
    if arm is None and len(names) == 1:
        return names[0]
    if arm is None:
        raise ConfigError(f"--arm: the run has {len(names)} arms; choose one: {', '.join(names)}")
    if arm not in config.arms:
        raise ConfigError(
            f"--arm {arm}: no such arm in the run; it has {', '.join(names)}.{nearest(arm, names)}"
        )
    return arm


def _checkpoints(run: Path) -> str:
    found = sorted(path.parent for path in run.glob("checkpoints/step_*/state.json"))
    return str(found[-1]) if found else "there is none yet"


def holds_transformer(folder: Path) -> bool:
    """Whether the folder holds a whole transformer, such as an earlier export."""
    config = folder / "config.json"
    return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))
