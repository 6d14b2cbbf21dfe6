"""Which models are meant: from what a user writes to folders, adapters and settings.

Imports no torch.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hrsa_lightning.config import load_config
from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.schema import Config, ModelConfig, nearest
from hrsa_lightning.shelf import EMBEDDED

__all__ = ["ModelSource", "find_models"]

_NAMED = re.compile(r"([\w.-]+)=(.+)")
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CONFIG, _STATE = "config.yaml", "state.json"


@dataclass(frozen=True)
class ModelSource:
    """One model, before anything of it is loaded.

    Attributes:
        name: Unique among the models of a comparison; goes into tables and file names.
        spec: What it is, as a user may write it.
        owner: What it belongs to, which tells it from another of the same name.
        backbone: Folder or hub id.
        revision: On the hub.
        adapter: Folder of a LoRA adapter, in peft's format.
        checkpoint: Checkpoint folder and arm whose full weights replace those of the backbone.
        trained: How the arm of a run was made an embedding model; `None` for a plain model.
    """

    name: str
    spec: str
    owner: str
    backbone: str
    revision: str | None = None
    adapter: Path | None = None
    checkpoint: tuple[Path, str] | None = None
    trained: ModelConfig | None = None

    def identity(self, commit: str | None) -> dict[str, Any]:
        """What changes when the weights do: names, sizes and times of local files.

        Args:
            commit: Of the hub, where the backbone comes from there.
        """
        folders = [Path(self.backbone), self.adapter, self.checkpoint and self.checkpoint[0]]
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for folder in folders
            if folder is not None and folder.is_dir()
            for path in sorted(folder.iterdir())
            if path.suffix in (".json", ".safetensors")
        ]
        arm = self.checkpoint[1] if self.checkpoint else None
        return {"backbone": self.backbone, "commit": commit, "arm": arm, "files": files}


def find_models(specs: Sequence[str], base: str | None = None) -> list[ModelSource]:
    """Understand the models of a command line.

    Args:
        specs: Each `[NAME=]MODEL`, where MODEL is a hub id (`ID@REVISION` pins it), a backbone's
            folder, `embedded:NAME`, a folder of a LoRA adapter, a run's folder or a `step_N`
            checkpoint of one (all arms), or one of these with `:ARM`.
        base: Backbone of the adapters; by default the one that their own config names.

    Returns:
        At least two models with different names.

    Raises:
        ConfigError: There are fewer than two, or a run has no such arm.
        BackboneError: A folder is missing or holds no model.
    """
    found: list[ModelSource] = []
    for spec in specs:
        named = None if Path(spec).exists() else _NAMED.fullmatch(spec)
        given, text = (named[1], named[2]) if named else (None, spec)
        sources = list(_find(text, base))
        for source in sources:
            name = given or source.name
            if given and len(sources) > 1:
                name = f"{given}_{source.name}"
            found.append(replace(source, name=name))
    if len(found) < 2:
        raise ConfigError(
            f"expected at least two models, got {', '.join(source.spec for source in found)}"
        )
    return _with_unique_names(found)


def _find(text: str, base: str | None) -> Iterator[ModelSource]:
    if text.startswith(EMBEDDED):
        yield _plain(text)
        return
    folder, arm = Path(text).expanduser(), None
    if not folder.exists() and ":" in text:
        before, _, after = text.rpartition(":")
        if Path(before).expanduser().is_dir():
            folder, arm = Path(before).expanduser(), after
    owner = folder.parent.parent
    if folder.parent.name == "adapters" and arm is None and _is_ours(owner):
        folder, arm = owner, folder.name
    if _is_ours(folder):
        yield from _arms(folder, arm)
    elif arm is not None:
        raise ConfigError(
            f"{text}: {folder} is no run of ours ({_CONFIG}) and no checkpoint ({_STATE}), so it "
            f"has no arm {arm!r}"
        )
    elif (folder / _ADAPTER_FILES[0]).is_file():
        yield _adapter(folder, base)
    else:
        yield _plain(text)


def _is_ours(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() or (folder / _STATE).is_file()


def _plain(text: str) -> ModelSource:
    pinned = None if Path(text).expanduser().exists() else _PINNED.fullmatch(text)
    path, revision = (pinned[1], pinned[2]) if pinned else (text, None)
    backbone = resolve_backbone(path)
    place = Path(path.removeprefix(EMBEDDED)).expanduser()
    return ModelSource(_file_name(place.name), text, place.parent.name, backbone, revision)


def _adapter(folder: Path, base: str | None) -> ModelSource:
    settings = _adapter_settings(folder)
    named = base or settings.get("base_model_name_or_path")
    if not named:
        raise BackboneError(f"adapter {str(folder)!r} names no backbone; give it with --base")
    try:
        backbone = resolve_backbone(named)
    except BackboneError as error:
        hint = "" if base else " (--base names another place)"
        raise BackboneError(f"adapter {str(folder)!r}: {error}{hint}") from None
    revision = None if base else settings.get("revision")
    place = folder.resolve()
    return ModelSource(
        _file_name(place.name), str(folder), place.parent.name, backbone, revision, adapter=folder
    )


def _adapter_settings(folder: Path) -> dict[str, Any]:
    for name in _ADAPTER_FILES:
        if not (folder / name).is_file():
            raise BackboneError(f"adapter {str(folder)!r} has no {name}")
    path = folder / _ADAPTER_FILES[0]
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{path}: not valid JSON ({error})") from None
    return settings


def _arms(folder: Path, arm: str | None) -> Iterator[ModelSource]:
    """The arms of a run that is finished, or of one of its checkpoints."""
    checkpoint = folder if (folder / _STATE).is_file() else None
    run = folder if checkpoint is None else folder.resolve().parent.parent
    if not (run / _CONFIG).is_file():
        raise ConfigError(f"{folder}: the checkpoint is not within its run, {run} has no {_CONFIG}")
    config = load_config(str(run / _CONFIG))
    if arm is not None and arm not in config.arms:
        raise ConfigError(
            f"{folder}: no arm {arm!r}.{nearest(arm, config.arms)} Its arms: "
            f"{', '.join(config.arms)}."
        )
    for name in [arm] if arm is not None else config.arms:
        yield _arm(folder, checkpoint, config, name)


def _arm(folder: Path, checkpoint: Path | None, config: Config, name: str) -> ModelSource:
    settings = config.arms[name]
    trained = folder / "adapters" / name
    source = ModelSource(
        _file_name(name),
        f"{folder}:{name}",
        folder.resolve().name,
        settings.backbone,
        settings.revision,
        trained=config.model,
    )
    if checkpoint is not None and config.model.lora is None:
        backbone = _backbone_of(source)
        return replace(source, backbone=backbone, checkpoint=(checkpoint, name))
    if not trained.is_dir():
        raise ConfigError(_unfinished(folder, checkpoint, name))
    if config.model.lora is None:
        return replace(source, backbone=resolve_backbone(trained), revision=None)
    _adapter_settings(trained)
    return replace(source, backbone=_backbone_of(source), adapter=trained)


def _backbone_of(source: ModelSource) -> str:
    try:
        return resolve_backbone(source.backbone)
    except BackboneError as error:
        raise BackboneError(f"{source.spec}: {error}") from None


def _unfinished(folder: Path, checkpoint: Path | None, arm: str) -> str:
    if checkpoint is not None:
        return f"{folder}: the checkpoint has no weights of arm {arm!r}"
    steps = sorted((folder / "checkpoints").glob(f"step_*/{_STATE}"))
    hint = f"; its newest checkpoint is {steps[-1].parent}" if steps else ""
    return f"{folder}: the run is not finished, it has no weights of arm {arm!r}{hint}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text) or "model"


def _with_unique_names(sources: Sequence[ModelSource]) -> list[ModelSource]:
    """Models of one name get that of their owner as well, and where that is shared, a number."""
    names = [source.name for source in sources]
    longer = [
        _file_name(f"{source.owner}_{source.name}") if names.count(source.name) > 1 else source.name
        for source in sources
    ]
    unique: list[ModelSource] = []
    for source, name in zip(sources, longer, strict=True):
        same = longer[: len(unique)].count(name)
        unique.append(replace(source, name=f"{name}_{same + 1}" if same else name))
    return unique


def fingerprint(content: Any) -> str:
    """Hash of plain data, equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
