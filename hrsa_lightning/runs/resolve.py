"""Which model is meant: one name for backbones, adapters, runs, checkpoints and exports.

A model is named by one of

- a hub id, or `ID@REVISION`;
- a backbone's folder, or a folder that `SentenceTransformer` loads, such as an export;
- `embedded:NAME`, which is shipped with the package;
- the folder of a LoRA adapter in peft's format;
- a run's folder or a checkpoint `step_N` of one, which stand for all arms; or one of these and
  `:ARM`. A folder above runs, and `LAST` in its place, stand for the newest complete run there.

`find_sources` turns a name into `Source`s and imports no torch, so that a command can answer a
mistake at once. `runs.loading` loads them.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hrsa_lightning.config import load_config
from hrsa_lightning.config.schema import Config, LoRAConfig, ModelConfig
from hrsa_lightning.errors import BackboneError, ConfigError, nearest
from hrsa_lightning.io.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, digest
from hrsa_lightning.io.resources import EMBEDDED
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.runs.directory import SUMMARY, newest_run

EXPORT_SETTINGS = "hrsa_embedding.json"
"""How an exported model was trained; its `backbone` is null where the folder has all weights."""

EXPORTED_ADAPTER = "hrsa_adapter.safetensors"
"""LoRA weights of an export. Not under peft's file name: peft alone would put them on a causal
backbone."""

_CONFIG, _STATE, _MODULES = "config.yaml", "state.json", "modules.json"
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([\w./-]+)")
_WEIGHTY = frozenset({".json", ".safetensors", ".txt", ".model", ".bin"})


@dataclass(frozen=True)
class Arm:
    """One arm of a run, at the run's end or at a checkpoint.

    Attributes:
        name: In the recipe.
        run: The run's folder.
        config: The recipe, as resolved when the run started.
        checkpoint: A folder `step_N`, `None` at the run's end.
    """

    name: str
    run: Path
    config: Config
    checkpoint: Path | None = None

    @property
    def step(self) -> int | None:
        """Optimizer step of the checkpoint."""
        return None if self.checkpoint is None else int(self.checkpoint.name.rpartition("_")[2])

    @property
    def backbone(self) -> str:
        """As the recipe names it."""
        return self.config.arms[self.name].backbone

    @property
    def label(self) -> str:
        """Name, and the step of a checkpoint."""
        return self.name if self.step is None else f"{self.name}-step_{self.step}"


@dataclass(frozen=True)
class Source:
    """One model that was named, before anything of it is loaded.

    Attributes:
        spec: What it is, as a user may write it.
        place: Where it is. The last part names it, the one before tells it from another of the
            same name.
        backbone: Folder or hub id.
        revision: On the hub.
        adapter: Folder of a LoRA adapter in peft's format, or the file of an adapter-only export.
        arm: Which arm of a run it is.
        model: How it was made an embedding model; `None` where nothing says so.
        lengths: Most tokens of a query and of a passage in training.
    """

    spec: str
    place: Path
    backbone: str
    revision: str | None = None
    adapter: Path | None = None
    arm: Arm | None = None
    model: ModelConfig | None = None
    lengths: tuple[int, int] | None = None

    @property
    def checkpoint(self) -> Path | None:
        """Checkpoint whose full weights replace those of the backbone."""
        return self.arm.checkpoint if self.arm is not None and self.adapter is None else None

    def identity(self, commit: str | None = None) -> str:
        """Changes when weights or settings do: sizes and times of local files stand for them.

        Args:
            commit: Of the hub, where the backbone comes from there.
        """
        adapter = self.adapter
        if adapter is not None and adapter.suffix == ".safetensors":
            adapter = adapter.parent
        folders = [Path(self.backbone), adapter, self.checkpoint]
        files = [
            (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
            for folder in folders
            if folder is not None and folder.is_dir()
            for path in sorted(folder.rglob("*"))
            if path.suffix in _WEIGHTY
        ]
        trained = None if self.model is None else asdict(self.model)
        arm = None if self.arm is None else self.arm.name
        content = [self.backbone, self.revision, commit, arm, trained, self.lengths, files]
        return digest(json.dumps(content))


def find_sources(text: str, base: str | None = None) -> list[Source]:
    """What a name stands for.

    Args:
        text: See `hrsa_lightning.runs.resolve`.
        base: Backbone of an adapter; by default the one that its own config names.

    Returns:
        One model, or all arms of a run.

    Raises:
        ConfigError: A run has no such arm, is not finished, or its config.yaml is wrong.
        BackboneError: A folder is missing or holds no model.
    """
    if text.startswith(EMBEDDED):
        return [_plain(text, Path(text))]
    folder, arm = newest_run(Path(text).expanduser()), None
    before, _, after = text.rpartition(":")
    if before and not folder.exists():
        named = newest_run(Path(before).expanduser())
        if named.is_dir():
            folder, arm = named, after
    owner = folder.parent.parent
    if folder.parent.name == "adapters" and arm is None and is_run(owner):
        folder, arm = owner, folder.name
    if is_run(folder):
        return find_arms(folder, arm)
    if arm is not None:
        raise ConfigError(
            f"{text}: {folder} is no run of ours ({_CONFIG}) and no checkpoint ({_STATE}), so it "
            f"has no arm {arm!r}"
        )
    if (folder / EXPORT_SETTINGS).is_file():
        return [_exported(text, folder)]
    if (folder / ADAPTER_CONFIG).is_file():
        return [_adapter(text, folder, base)]
    return [_plain(text, folder)]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run or of a checkpoint."""
    return (folder / _CONFIG).is_file() or (folder / _STATE).is_file()


def find_arms(folder: Path, arm: str | None = None) -> list[Source]:
    """The arms of a run that is finished, or of one of its checkpoints; or one of them.

    Raises:
        ConfigError: There is no such arm, or it has no weights yet.
        BackboneError: The backbone of an arm is missing.
    """
    checkpoint = folder if (folder / _STATE).is_file() else None
    run = folder if checkpoint is None else folder.resolve().parent.parent
    if not (run / _CONFIG).is_file():
        raise ConfigError(f"{folder}: the checkpoint is not within its run, {run} has no {_CONFIG}")
    config = load_config(str(run / _CONFIG))
    if arm is not None and arm not in config.arms:
        raise ConfigError(
            f"{folder} has no arm {arm!r}.{nearest(arm, config.arms)} Its arms: "
            f"{', '.join(config.arms)}."
        )
    chosen = list(config.arms) if arm is None else [arm]
    return [_arm(folder, Arm(name, run, config, checkpoint)) for name in chosen]


def find_trained(folder: Path, arm: str | None) -> tuple[Source, Arm]:
    """The trained weights of one arm in a run's folder or in one of its checkpoints.

    Raises:
        ConfigError: There is no such run, arm or weights, or the run is not finished.
        BackboneError: The arm's backbone is missing.
    """
    folder = newest_run(folder)
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


def _arm(folder: Path, arm: Arm) -> Source:
    settings, model, data = arm.config.arms[arm.name], arm.config.model, arm.config.data
    trained, spec = folder / "adapters" / arm.name, f"{folder}:{arm.name}"
    in_checkpoint = model.lora is None and arm.checkpoint is not None
    if not in_checkpoint and not any(trained.glob("*.safetensors")):
        raise ConfigError(_unfinished(folder, arm))
    if model.lora is not None:
        _read_adapter(trained)
    of_itself = model.lora is None and not in_checkpoint
    try:
        backbone = resolve_backbone(trained if of_itself else settings.backbone)
    except BackboneError as error:
        raise BackboneError(f"{spec}: {error}") from None
    return Source(
        spec,
        folder.resolve() / arm.name,
        backbone,
        None if of_itself else settings.revision,
        adapter=None if model.lora is None else trained,
        arm=arm,
        model=model,
        lengths=(data.query_length, data.passage_length),
    )


def _unfinished(folder: Path, arm: Arm) -> str:
    if arm.checkpoint is not None:
        return f"{folder}: the checkpoint has no weights of arm {arm.name!r}"
    steps = sorted((folder / "checkpoints").glob(f"step_*/{_STATE}"))
    hint = f"; its newest checkpoint is {steps[-1].parent}" if steps else ""
    return f"{folder}: the run is not finished, it has no weights of arm {arm.name!r}{hint}"


def _adapter(text: str, folder: Path, base: str | None) -> Source:
    settings = _read_adapter(folder)
    named = base or settings.get("base_model_name_or_path")
    if not named:
        raise BackboneError(f"adapter {str(folder)!r} names no backbone; give it with --base")
    try:
        backbone = resolve_backbone(named)
    except BackboneError as error:
        hint = "" if base else " (--base names another place)"
        raise BackboneError(f"adapter {str(folder)!r}: {error}{hint}") from None
    revision = None if base else settings.get("revision")
    return Source(text, folder.resolve(), backbone, revision, adapter=folder)


def _read_adapter(folder: Path) -> dict[str, Any]:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise BackboneError(f"adapter {str(folder)!r} has no {name}")
    return _read_json(folder / ADAPTER_CONFIG)


def _exported(text: str, folder: Path) -> Source:
    """An export that the package's own module reads: on whole weights, or an adapter alone."""
    settings = _read_json(folder / EXPORT_SETTINGS)
    lora, named = settings.get("lora"), settings["backbone"]
    model = ModelConfig(
        dtype=settings["dtype"],
        attention=settings["attention"],
        pooling=settings["pooling"],
        normalize=settings["normalize"],
        instruction_mask=settings["instruction_mask"],
        lora=None if lora is None else LoRAConfig(**lora),
    )
    try:
        backbone = resolve_backbone(named or folder)
    except BackboneError as error:
        raise BackboneError(f"{text}: {error}") from None
    return Source(
        text,
        folder.resolve(),
        backbone,
        settings.get("revision"),
        adapter=folder / EXPORTED_ADAPTER if named else None,
        model=model,
        lengths=(settings["query_length"], settings["passage_length"]),
    )


def _plain(text: str, folder: Path) -> Source:
    if (folder / _MODULES).is_file():  # sentence-transformers knows what it needs there
        return Source(text, folder.absolute(), str(folder.absolute()))
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise BackboneError(
            f"model {text!r}: the folder is neither a run ({_CONFIG}), a checkpoint ({_STATE}), an "
            f"adapter ({ADAPTER_CONFIG}) nor a model ({_MODULES}, config.json)"
        )
    if not folder.exists() and (text[:1] in "./~" or text.count("/") > 1):
        raise BackboneError(f"model {text!r}: no such folder (looked for {folder.absolute()})")
    pinned = None if folder.exists() else _PINNED.fullmatch(text)
    path, revision = (pinned[1], pinned[2]) if pinned else (text, None)
    backbone = resolve_backbone(path)
    place = folder.absolute() if folder.is_dir() else Path(backbone)
    return Source(text, place, backbone, revision)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{path}: not valid JSON ({error})") from None
    return content
