"""What a live model is compared with: its start, another arm, a frozen model, a recorded run."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.representations.capture import dtype_of, is_sharded
from hrsa_lightning.representations.layers import clean_name
from hrsa_lightning.representations.probes import Tokenizer, tokenizer_of
from hrsa_lightning.representations.trace import RepresentationTrace
from hrsa_lightning.tokenizers import read_tokenizer

__all__ = [
    "CheckpointModel",
    "Comparison",
    "FrozenModel",
    "GivenModel",
    "PretrainedModel",
    "References",
    "parse_references",
]

_CHECKPOINT_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}


class FrozenModel(ABC):
    """A model that does not train: run once, then let go."""

    per_arm = False  # whether each arm has a reference of its own

    @abstractmethod
    def opened(
        self, live: nn.Module, device: torch.device, prefix: str
    ) -> AbstractContextManager[nn.Module]:
        """Hold the model on `device` for the length of a block.

        Args:
            live: The live model that it is compared with.
            device: Where to run it.
            prefix: What the names of `live` begin with in the state of the whole LightningModule.
        """

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        """Its own way to tokenize texts, if it has one; asked for while it is open."""
        return None


class GivenModel(FrozenModel):
    """A module that the user made; it goes back to the device it came from, and is let go."""

    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = module

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        module = self._module
        if module is None:
            raise ConfigError(
                "reference: the module was let go once it had been run; for other probes, make a "
                "new monitor"
            )
        home = next((p.device for p in module.parameters()), device)
        try:
            yield module.to(device)
        finally:
            module.to(home)
        self._module = None

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        return None if self._module is None else tokenizer_of(self._module, max_length)


class PretrainedModel(FrozenModel):
    """A folder or hub id that transformers' `AutoModel` loads, safetensors only.

    It runs in the dtype of the live model, whatever its file has, so that rounding is no difference
    between the two.

    Raises:
        ConfigError: When `path` looks like a folder and is none with a `config.json`, or later,
            when there is no such model.
    """

    def __init__(self, path: str) -> None:
        local = Path(path).expanduser()
        looks_local = path.startswith((".", "~", "/")) or path.count("/") > 1
        if (looks_local or local.exists()) and not (local / "config.json").is_file():
            raise ConfigError(
                f"reference: {path!r} is neither a folder with a config.json, nor a checkpoint "
                "file, nor a trace"
            )
        self._path = str(local) if local.exists() else path

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                self._path, use_safetensors=True, dtype=dtype_of(live)
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"reference: {self._path!r} cannot be loaded: {reason}") from error
        yield model.to(device)

    def tokenizer(self, max_length: int) -> Tokenizer | None:
        tokenizer = read_tokenizer(self._path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return lambda texts: dict(
            tokenizer(
                texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
        )


class CheckpointModel(FrozenModel):
    """Weights from a file, run in the live model's own code, without a second model.

    A file may hold a part of the weights, such as adapters only; the rest is as in the live model.

    Raises:
        ConfigError: When there is no such file, it does not fit the live model, or the weights of
            the live model are spread over ranks, which hold them in more than one place.
    """

    per_arm = True

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()
        if not self._path.is_file():
            raise ConfigError(f"reference: no checkpoint file {path!r}")

    @contextmanager
    def opened(self, live: nn.Module, device: torch.device, prefix: str) -> Iterator[nn.Module]:
        if is_sharded(live):
            raise ConfigError(
                f"reference: {str(self._path)!r} cannot take the place of weights that are spread "
                "over ranks; give the model as a module or a folder"
            )
        weights = {clean_name(name): value for name, value in _read_weights(self._path).items()}
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
            raise ConfigError(f"reference: {str(self._path)!r} holds no weight of the live model")
        for name in shared:
            if targets[name].shape != weights[name].shape:
                raise ConfigError(
                    f"reference: {name} in {str(self._path)!r} has the shape "
                    f"{tuple(weights[name].shape)}, in the live model {tuple(targets[name].shape)}"
                )
        # Storage is exchanged, not copied, so the live weights come back untouched.
        own = {name: targets[name].data for name in shared}
        try:
            for name in shared:
                targets[name].data = weights[name].to(own[name])
            yield live
        finally:
            for name in shared:
                targets[name].data = own[name]


Source = Literal["arm", "initial", "frozen", "trace"]


@dataclass(frozen=True)
class Comparison:
    """One live arm against one reference.

    Attributes:
        name: How it is written in tags, such as `rlvr_vs_base`; empty when there is only one.
        arm: The live arm.
        source: What kind of reference.
        of: Which reference of that kind.
    """

    name: str
    arm: str
    source: Source
    of: str


@dataclass
class References:
    """Everything that the live arms are compared with."""

    initial: bool = False
    pairs: bool = False
    arms: list[str] = field(default_factory=list)
    frozen: dict[str, FrozenModel] = field(default_factory=dict)
    traces: dict[str, RepresentationTrace] = field(default_factory=dict)

    def comparisons(self, arms: Sequence[str]) -> list[Comparison]:
        """All comparisons, arms against arms first; the reference is the second name.

        Raises:
            ConfigError: When a named arm does not exist.
        """
        for arm in self.arms:
            if arm not in arms:
                raise ConfigError(
                    f"reference: no arm {arm!r}; the module has {', '.join(arms) or 'no arms'}"
                )
        found = [
            Comparison(f"{live}_vs_{base}", live, "arm", base)
            for base, live in (combinations(arms, 2) if self.pairs else ())
        ]
        for base in self.arms:
            for live in arms:
                related = {(c.arm, c.of) for c in found}
                if live != base and not {(live, base), (base, live)} & related:
                    found.append(Comparison(f"{live}_vs_{base}", live, "arm", base))
        others: list[tuple[Source, str]] = [("initial", "initial")] if self.initial else []
        others += [("frozen", name) for name in self.frozen]
        others += [("trace", name) for name in self.traces]
        for source, name in others:
            found += [Comparison(f"{arm or 'live'}_vs_{name}", arm, source, name) for arm in arms]
        if len(found) == 1 and not found[0].arm:
            return [Comparison("", "", found[0].source, found[0].of)]
        return found


def parse_references(reference: Any) -> References:
    """Understand the `reference=` of a monitor.

    Args:
        reference: `"initial"`, `"pairs"`, `"arm:NAME"`, `"trace:FOLDER"`, a checkpoint file, a
            folder or hub id of transformers, a module, a `RepresentationTrace`, a sequence of
            these, or a mapping from names to these.

    Raises:
        ConfigError: On anything else, or when a file or folder is missing.
    """
    references = References()
    if isinstance(reference, Mapping):
        named: list[tuple[str | None, Any]] = [*reference.items()]
    elif isinstance(reference, Sequence) and not isinstance(reference, str):
        named = [(None, item) for item in reference]
    else:
        named = [(None, reference)]
    if not named:
        raise ConfigError("reference: expected at least one")
    for name, item in named:
        _add(references, name, item)
    return references


def _add(references: References, name: str | None, item: Any) -> None:
    if item == "initial":
        references.initial = True
    elif item == "pairs":
        references.pairs = True
    elif isinstance(item, str) and item.startswith("arm:"):
        references.arms.append(item.removeprefix("arm:"))
    elif isinstance(item, RepresentationTrace):
        name = _new_name(references, name or _plain(item.folder.name))
        references.traces[name] = item
    elif isinstance(item, nn.Module):
        name = _new_name(references, name or f"reference{len(references.frozen) or ''}")
        references.frozen[name] = GivenModel(item)
    elif isinstance(item, (str, Path)):
        _add_path(references, name, str(item))
    else:
        raise ConfigError(
            "reference: expected 'initial', 'pairs', 'arm:NAME', a path, a hub id, a module or a "
            f"trace, got {type(item).__name__}"
        )


def _add_path(references: References, name: str | None, text: str) -> None:
    path = Path(text.removeprefix("trace:")).expanduser()
    is_trace = text.startswith("trace:") or (path / "trace.json").is_file()
    is_checkpoint = not is_trace and path.suffix in _CHECKPOINT_SUFFIXES
    name = _new_name(references, name or _plain(path.stem if is_checkpoint else path.name))
    if is_trace:
        references.traces[name] = RepresentationTrace(path)
    else:
        references.frozen[name] = CheckpointModel(text) if is_checkpoint else PretrainedModel(text)


def _new_name(references: References, name: str) -> str:
    if name in references.frozen or name in references.traces:
        raise ConfigError(
            f"reference: two are called {name!r}; name them with a mapping of names to references"
        )
    return name


def _plain(text: str) -> str:
    """A name that every logger takes in a tag."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text) or "reference"


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
