"""Forward passes in the middle of training that leave the training state as it was."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hrsa_lightning.errors import ConfigError

# Attributes of every module that a forward pass may add to but whose entries others exchange:
# FSDP keeps whole weights in place of shards until the next forward pass.
_REGISTRIES = ("_parameters", "_modules")
_DICTS = (dict, OrderedDict, defaultdict, Counter)
# Larger attributes, buffers aside, are data and no state of a forward pass.
_MOST_ELEMENTS, _MOST_ENTRIES = 1_000_000, 1_000


@contextmanager
def preserve_training_state(
    *modules: nn.Module, seed: int = 0, generators: Iterable[torch.Generator] = ()
) -> Iterator[None]:
    """Run a block in evaluation mode and restore the training state after it.

    Inside the block every submodule is in eval mode, gradients are off, all random generators start
    from `seed` (so that random numbers drawn in a forward pass are equal at each evaluation), and
    `torch.compile` is bypassed, since compiled graphs do not run forward hooks. Afterwards, also
    when the block raises, the following are as before, bit for bit: the global random state of
    Python, NumPy and torch (CPU and devices), `generators`, and of every submodule its training
    flag, its buffers, the parameters and submodules that it has, and its Python attributes, with
    what lists, dicts, sets and tensors in them hold. What an object of another class changes inside
    itself stays changed, as does what more than 1,000 entries or a million numbers hold.

    Gradients are off through `torch.no_grad` and not through inference mode: a tensor that a module
    caches during the block must stay usable in the next training step.

    Args:
        modules: The modules that the block will call.
        seed: Seed of the random generators inside the block.
        generators: Further generators to restore, such as that of a probe `DataLoader`.

    Raises:
        ConfigError: When a weight is not initialized yet: its initial value would be drawn inside
            the block, and the training run would be another.
    """
    generators = list(generators)
    for module in modules:
        if (name := lazy_weight_of(module)) is not None:
            raise ConfigError(
                f"layers: expected initialized weights, got {name!r} of a lazy module; "
                "call the module once before training"
            )
    kept = [_Kept(part) for module in modules for part in module.modules()]
    states = [generator.get_state() for generator in generators]
    random_state = _random_state()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            for module in modules:
                module.eval()
            yield
    finally:
        for each in kept:
            each.restore()
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        _set_random_state(random_state)


def lazy_weight_of(module: nn.Module) -> str | None:
    """Name of a weight that the first forward pass has yet to draw; `None` where there is none."""
    values = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, value in values if is_lazy(value)), None)


class _Kept:
    """The attributes of one module as they were; `train()` may be overridden, so no call of it."""

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._attributes = {
            name: (value, _state(value, of_any_size=name == "_buffers"))
            for name, value in vars(part).items()
            if not name.endswith(("_hooks", "_hooks_with_kwargs")) and name not in _REGISTRIES
        }
        self._registered = {name: set(vars(part)[name]) for name in _REGISTRIES}

    def restore(self) -> None:
        attributes = vars(self._part)
        for name in attributes.keys() - self._attributes.keys():
            if not name.endswith(("_hooks", "_hooks_with_kwargs")) and name not in _REGISTRIES:
                del attributes[name]
        for name, (value, state) in self._attributes.items():
            attributes[name] = value
            _restore(value, state)
        for name, known in self._registered.items():
            for new in attributes[name].keys() - known:
                del attributes[name][new]


def _state(value: Any, *, of_any_size: bool = False) -> Any:
    """What has to be known of a value to restore it in place; `None` where that is nothing."""
    if isinstance(value, Tensor):
        is_fixed = value.requires_grad or is_lazy(value)
        is_state = of_any_size or value.numel() <= _MOST_ELEMENTS
        return value.detach().clone() if is_state and not is_fixed else None
    if type(value) not in (*_DICTS, list, deque, set) or len(value) > _MOST_ENTRIES:
        return None
    if isinstance(value, dict):
        return {key: (item, _state(item, of_any_size=of_any_size)) for key, item in value.items()}
    return set(value) if isinstance(value, set) else [(item, _state(item)) for item in value]


def _restore(value: Any, state: Any) -> None:
    if state is None:
        return
    if isinstance(value, Tensor):
        # An unchanged tensor is left alone, so that its version counter does not move either.
        if value.shape != state.shape or not torch.equal(value, state):
            with torch.no_grad():
                value.resize_(state.shape).copy_(state)
        return
    if isinstance(value, set):
        value.intersection_update(state)
        value.update(state)
        return
    items = list(state.values()) if isinstance(state, dict) else state
    for item, inner in items:
        _restore(item, inner)
    if isinstance(state, dict):
        own = {key: item for key, (item, _) in state.items()}
        if list(value) != list(own) or any(value[key] is not item for key, item in own.items()):
            dict.clear(value)
            dict.update(value, own)
    elif len(value) != len(state) or any(
        a is not b for a, (b, _) in zip(value, state, strict=True)
    ):
        value.clear()
        value.extend(item for item, _ in state)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
