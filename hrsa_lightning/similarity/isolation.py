"""Forward passes in the middle of training that leave the training state as it was."""

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hrsa_lightning.errors import ConfigError

__all__ = ["preserve_training_state"]


@contextmanager
def preserve_training_state(
    *modules: nn.Module, seed: int = 0, generators: Iterable[torch.Generator] = ()
) -> Iterator[None]:
    """Run a block in evaluation mode and restore the training state after it.

    Inside the block every submodule is in eval mode, gradients are off, all random generators start
    from `seed` (so that random numbers drawn in a forward pass are equal at each evaluation), and
    `torch.compile` is bypassed, since compiled graphs do not run forward hooks. Afterwards, also
    when the block raises, the following are as before, bit for bit: the global random state of
    Python, NumPy and torch (CPU and devices), `generators`, the training flag of every submodule
    and every buffer.

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
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if is_lazy(value):
                raise ConfigError(
                    f"layers: expected initialized weights, got {name!r} of a lazy module; "
                    "call the module once before training"
                )
    flags = [(part, part.training) for module in modules for part in module.modules()]
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
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
        # Flags are set one by one: `train()` may be overridden, and parts may differ in mode.
        for part, training in flags:
            part.training = training
        for part, name, buffer, value in buffers:
            _restore_buffer(part, name, buffer, value)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        _set_random_state(random_state)


def _restore_buffer(part: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    part._buffers[name] = buffer
    # An unchanged buffer is left alone, so that its version counter does not move either.
    if buffer.shape != value.shape or not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.resize_(value.shape).copy_(value)


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
