"""What live models are compared with; each kind of reference has the rows of its layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.pretrained import check_weights, read_tokenizer
from hrsa_lightning.similarity.extraction import (
    Extractor,
    Representations,
    Snapshot,
    dtype_of,
    is_sharded,
)
from hrsa_lightning.similarity.isolation import preserve_training_state
from hrsa_lightning.similarity.layers import LayerSelection, clean_name, select_layers
from hrsa_lightning.similarity.measurement import listed
from hrsa_lightning.similarity.probes import Tokenizer, tokenizer_of
from hrsa_lightning.similarity.trace import (
    RepresentationTrace,
    flatten,
    share_file,
    write_representations,
)

INITIAL = "initial"


class Reference(ABC):
    """Something that live models are compared with.

    An evaluation calls `update` once, on all ranks, and then `rows` for every comparison.

    Args:
        name: Stands in measurements.

    Attributes:
        name: As given.
        order: References of a lower one are compared first.
        absence: Why there are no rows now, and details that change from step to step.
    """

    order: ClassVar[int]

    def __init__(self, name: str) -> None:
        self.name = name
        self.absence = ("", "")

    def arms(self, arms: Sequence[str]) -> list[str]:
        """Which of the live arms are compared with it."""
        return list(arms)

    def prepare(self, extractor: Extractor) -> None:
        """Take note of the models and probes of a run, and check that they fit."""
        self._extractor = extractor

    def start(self, folder: Path | None, prefix: str) -> None:
        """Begin a run.

        Args:
            folder: Keep representations in files there; `None` keeps tensors in memory.
            prefix: Begins the file names.
        """
        self.absence = ("", "")

    def update(self, live: Representations, step: int, *, first: bool) -> None:  # noqa: B027
        """Get what `rows` will need, before the comparisons of a step; may hold collectives.

        Args:
            live: Representations of all arms now.
            step: Current step.
            first: Whether this is the first evaluation of the run.
        """

    @abstractmethod
    def rows(self, live: Representations, probes: str, arm: str) -> Snapshot | None:
        """Layer to rows that an arm is compared with, `None` when there are none now."""

    def key(self, arm: str) -> tuple[str, ...] | None:
        """Names the rows where they stay the same for the whole run; arms may share them."""
        return None

    def owner(self) -> str | None:
        """Whose tokens its rows are; `None` where it has no token ids here."""
        return None


class _KeptReference(Reference):
    """Rows that stay the same for a run, in memory or in a file that is read layer by layer."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._path: Path | None = None
        self._content: dict[str, Tensor] | Path | None = None

    def start(self, folder: Path | None, prefix: str) -> None:
        super().start(folder, prefix)
        name = f"{prefix}_reference_{self.name}.safetensors"
        self._path = None if folder is None else folder / name

    def _keep(self, representations: Representations) -> None:
        ranks, flat = self._extractor.ranks, flatten(representations).items()
        tensors = {f"{self.name}|{key}": rows for key, rows in flat}
        with ranks.raise_on_all_ranks():
            if self._path is not None and ranks.rank == 0:
                write_representations(self._path, tensors)
        self._content = self._path or tensors

    def _kept_rows(self, probes: str, arm: str) -> Snapshot:
        start = f"{self.name}|{probes}|{arm}|"
        if isinstance(self._content, Path):
            with safe_open(self._content, framework="pt") as file:
                keys = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
                return {k.removeprefix(start): torch.as_tensor(file.get_tensor(k)) for k in keys}
        kept = (self._content or {}).items()
        return {key.removeprefix(start): rows for key, rows in kept if key.startswith(start)}


class InitialReference(_KeptReference):
    """The models as they were before their first training step."""

    order = 2

    def __init__(self) -> None:
        super().__init__(INITIAL)

    def start(self, folder: Path | None, prefix: str) -> None:
        super().start(folder, prefix)
        self._content = None

    def state(self) -> dict[str, Tensor] | str | None:
        """What a checkpoint has to hold, the tensors or a path: the start cannot be made again."""
        return str(self._content) if isinstance(self._content, Path) else self._content

    def restore(
        self,
        state: dict[str, Tensor] | str,
        fingerprints: Mapping[str, str],
        previous: Path | None = None,
    ) -> None:
        """Go on with the representations that a checkpoint holds.

        Args:
            state: What `state` returned before a restart.
            fingerprints: Those of the probes then.
            previous: Folder in which a file may be now; it is looked for there first.
        """
        if fingerprints != self._extractor.fingerprints:
            self._is_lost("the probes are not those of before the restart")
        elif isinstance(state, str):
            file = Path(state)
            places = [file] if previous is None else [previous / file.name, file]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                self._is_lost(f"{file} is gone")
            else:
                self._content = self._taken_over(found)
        else:
            self._content = state

    def _taken_over(self, file: Path) -> Path:
        """The file in this run's folder: that of the interrupted run may be deleted."""
        if self._path is None or self._path.exists():
            return self._path or file
        with self._extractor.ranks.raise_on_all_ranks():
            if self._extractor.ranks.rank == 0:
                share_file(file, self._path)
        return self._path

    def update(self, live: Representations, step: int, *, first: bool) -> None:
        if self._content is not None or self.absence[0]:
            return
        if first:
            self._keep(live)
        else:
            self._is_lost("the evaluation before the first step failed")

    def rows(self, live: Representations, probes: str, arm: str) -> Snapshot | None:
        return self._kept_rows(probes, arm) or None

    def key(self, arm: str) -> tuple[str, ...]:
        return (self.name, arm)

    def _is_lost(self, why: str) -> None:
        self.absence = (f"comparisons with the start are left out: {why}", "")


class ArmReference(Reference):
    """Another model of the same training run, as it is now.

    Args:
        name: Of the arm.
        only: The arm that is compared with it; by default all others are.

    Raises:
        ConfigError: The arm is called `initial`.
    """

    order = 1

    def __init__(self, name: str, only: str | None = None) -> None:
        super().__init__(_new_name(name))
        self._only = only

    def arms(self, arms: Sequence[str]) -> list[str]:
        if self.name not in arms:
            listed = ", ".join(arm for arm in arms if arm) or "no arms"
            raise ConfigError(f"reference: no arm {self.name!r}; the module has {listed}")
        if self._only is not None:
            return [self._only]
        return [arm for arm in arms if arm != self.name]

    def rows(self, live: Representations, probes: str, arm: str) -> Snapshot:
        return live[probes][self.name]

    def owner(self) -> str:
        return self.name


class ModelReference(_KeptReference):
    """A model that does not train: it is run once and let go."""

    order = 3
    per_arm: ClassVar[bool] = False
    """Whether each arm has a reference of its own."""

    def __init__(self, name: str, layers: Sequence[str] | None = None) -> None:
        super().__init__(_new_name(name))
        self._layers = layers
        self._fingerprints: dict[str, str] = {}

    @abstractmethod
    def opened(
        self, live: nn.Module, device: torch.device, prefix: str
    ) -> AbstractContextManager[nn.Module]:
        """Hold the model on `device` for the length of a block.

        Args:
            live: The live model that it is compared with.
            device: Where to run it.
            prefix: What the names of `live` begin with in checkpoints.
        """

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """Its own way to tokenize texts, if it has one; asked for while it is open."""
        return None

    def start(self, folder: Path | None, prefix: str) -> None:
        super().start(folder, prefix)
        if self._fingerprints != self._extractor.fingerprints:
            self._content = None
        self._fingerprints = self._extractor.fingerprints

    def update(self, live: Representations, step: int, *, first: bool) -> None:
        if self._content is None:
            self._keep(self._run())

    def rows(self, live: Representations, probes: str, arm: str) -> Snapshot:
        return self._kept_rows(probes, arm if self.per_arm else "")

    def key(self, arm: str) -> tuple[str, ...]:
        return ("model", self.name, *([arm] if self.per_arm else []))

    def owner(self) -> str:
        return f"reference {self.name}"

    def _run(self) -> Representations:
        """One forward pass, or one with the weights of each arm."""
        extractor = self._extractor
        arms = list(extractor.models) if self.per_arm else [next(iter(extractor.models))]
        found: dict[str, dict[str, Snapshot]] = {}
        for arm in arms:
            live = extractor.models[arm]
            prefix = f"{extractor.holder}.{arm}." if extractor.holder else ""
            with (
                extractor.ranks.raise_on_all_ranks(),
                self.opened(live, extractor.device, prefix) as module,
                preserve_training_state(module),
            ):
                layers = self._layers_of(module, extractor.layers[arm])
                own = self.tokenizer(extractor.max_length) is not None
                owner = self.owner() if own else arm
                tokenizer = extractor.tokenizer_for(module if own else live, self.tokenizer)
                shares = extractor.share(module, layers, owner, tokenizer)
            found[arm if self.per_arm else ""] = extractor.gather(shares)
        return {
            probes: {arm: snapshots[probes] for arm, snapshots in found.items()}
            for probes in extractor.probes
        }

    def _layers_of(self, module: nn.Module, live: LayerSelection) -> LayerSelection:
        """Its layers, under the names that they have in the live model."""
        owner = f"reference {self.name!r}"
        if self._layers is None:
            try:
                return select_layers(module, self._extractor.patterns, relative=True, owner=owner)
            except ConfigError:
                if not self._extractor.are_default:
                    raise
                return LayerSelection(outputs=live.outputs)
        found = select_layers(module, self._layers, owner=owner)
        if len(found.modules) != len(live.modules) or len(found.outputs) != len(live.outputs):
            raise ConfigError(
                f"reference_layers: expected one for each of {len(live.names)} layers of the live "
                f"model, got {len(found.names)} layers of {owner}"
            )
        return LayerSelection(
            dict(zip(live.modules, found.modules.values(), strict=True)),
            dict(zip(live.outputs, found.outputs.values(), strict=True)),
        )


class ModuleReference(ModelReference):
    """A module that the user made; it goes back to the device it came from, and is let go."""

    def __init__(self, name: str, module: nn.Module, layers: Sequence[str] | None = None) -> None:
        super().__init__(name, layers)
        self._module: nn.Module | None = module

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        module = self._module
        if module is None:
            raise ConfigError(
                f"reference {self.name!r}: the module was let go once it had been run; for other "
                "probes, make a new monitor"
            )
        home = next((p.device for p in module.parameters()), device)
        try:
            yield module.to(device)
        finally:
            module.to(home)
        self._module = None

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        return None if self._module is None else tokenizer_of(self._module, max_length)


class PretrainedReference(ModelReference):
    """A folder or hub id that transformers' `AutoModel` loads, safetensors only.

    It runs in the dtype of the live model, whatever its file has, so that rounding is no difference
    between the two.

    Attributes:
        source: The folder or hub id.

    Raises:
        ConfigError: When `path` looks like a folder and is none with a `config.json`, or later,
            when there is no such model.
    """

    def __init__(self, name: str, path: str, layers: Sequence[str] | None = None) -> None:
        super().__init__(name, layers)
        local = Path(path).expanduser()
        looks_local = path.startswith((".", "~", "/")) or path.count("/") > 1
        if (looks_local or local.exists()) and not (local / "config.json").is_file():
            raise ConfigError(
                "reference: expected a folder with a config.json, a checkpoint file or a trace, "
                f"got {path!r}"
            )
        self.source = str(local) if local.exists() else path

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        from transformers import AutoModel

        try:
            check_weights(self.source)
            model = AutoModel.from_pretrained(
                self.source, use_safetensors=True, dtype=dtype_of(live)
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"reference: {self.source!r} cannot be loaded: {reason}") from error
        yield model.to(device)

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        tokenizer = read_tokenizer(self.source)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return lambda texts: dict(
            tokenizer(
                texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
        )


class CheckpointReference(ModelReference):
    """Weights from a file, run in the live model's own code, without a second model.

    A file may hold a part of the weights, such as adapters only; the rest is as in the live model.

    Raises:
        ConfigError: When there is no such file, it does not fit the live model, or the weights of
            the live model are spread over ranks, which hold them in more than one place.
    """

    per_arm = True

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._file = Path(path).expanduser()
        if not self._file.is_file():
            raise ConfigError(f"reference: no checkpoint file {path!r}")

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        file = str(self._file)
        if is_sharded(live):
            raise ConfigError(
                f"reference: {file!r} cannot take the place of weights that are spread "
                "over ranks; give the model as a module or a folder"
            )
        weights = {clean_name(name): value for name, value in _read_weights(self._file).items()}
        if any(name.startswith(prefix) for name in weights):
            weights = {
                name.removeprefix(prefix): value
                for name, value in weights.items()
                if name.startswith(prefix)
            }
        targets = {
            clean_name(name): tensor
            for name, tensor in (*live.named_parameters(), *live.named_buffers())
        }
        shared = sorted(targets.keys() & weights.keys())
        if not shared:
            raise ConfigError(f"reference: {file!r} holds no weight of the live model")
        for name in shared:
            if targets[name].shape != weights[name].shape:
                raise ConfigError(
                    f"reference: {name} in {file!r} has the shape "
                    f"{tuple(weights[name].shape)}, in the live model {tuple(targets[name].shape)}"
                )
        # Storage is exchanged, not copied, so that the live weights come back bit for bit.
        own = {name: targets[name].data for name in shared}
        try:
            for name in shared:
                targets[name].data = weights[name].to(own[name])
            yield live
        finally:
            for name in shared:
                targets[name].data = own[name]


class TraceReference(Reference):
    """Representations that another run recorded, step for step."""

    order = 4

    def __init__(self, name: str, trace: RepresentationTrace) -> None:
        super().__init__(_new_name(name))
        self._trace = trace
        self._recording: Representations | None = None

    def prepare(self, extractor: Extractor) -> None:
        super().prepare(extractor)
        self._trace.check_probes(extractor.fingerprints)
        for arm in extractor.models:
            own = extractor.layers[arm].names
            recorded = self._trace.layers(self._trace.arm_for(arm))
            if recorded and not set(own) & set(recorded):
                raise ConfigError(no_common_layer(self.name, own, recorded))

    def update(self, live: Representations, step: int, *, first: bool) -> None:
        with self._extractor.ranks.raise_on_all_ranks():
            self._recording = self._trace.at(step)
        self.absence = (f"{self.name!r} has nothing for some steps", f" ({step})")

    def rows(self, live: Representations, probes: str, arm: str) -> Snapshot | None:
        if self._recording is None:
            return None
        return self._recording[probes][self._trace.arm_for(arm)]


def no_common_layer(name: str, own: Iterable[str], other: Iterable[str]) -> str:
    """The message where nothing can be compared."""
    return (
        f"layers: expected one that {name!r} has, such as {listed(other)}; got {listed(own)}; "
        "layers={'name there': 'name here'} gives them one name"
    )


def _new_name(name: str) -> str:
    if name == INITIAL:
        raise ConfigError(
            f"reference: expected another name than {INITIAL!r}, which is that of the models "
            "before training, for an arm or a named reference"
        )
    return name


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ConfigError(
            f"reference: {str(path)!r} holds more than tensors and plain values, which would have "
            "to be executed; save its state_dict as .safetensors"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ConfigError(f"reference: {str(path)!r} holds no state_dict")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
