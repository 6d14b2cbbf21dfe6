"""Gradients that are computed within `training_step` and applied in the backward pass.

Lightning zeroes gradients after `training_step` and calls `backward` on one loss. Arms that are
trained side by side share no graph: each arm's gradients are computed as soon as its loss is there,
which frees its activations, and are stored until Lightning's backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class DeferredGradients:
    """Gradients of several modules between `training_step` and `backward`; false when empty."""

    def __init__(self) -> None:
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._total: Tensor | None = None
        self._scale = 1.0

    def __bool__(self) -> bool:
        return bool(self._gradients)

    @contextmanager
    def capture(self, module: nn.Module, scale: float) -> Iterator[Callable[[Tensor], None]]:
        """Store what backward passes within add to the module's gradients.

        Args:
            module: Its parameters have the same gradients afterwards as before.
            scale: Multiplies the loss for its backward pass; `apply` divides by it again.

        Yields:
            A function that runs the backward pass of a loss.
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._scale = scale
        yield lambda loss: (loss * scale).backward()  # type: ignore[no-untyped-call]
        for parameter, previous in zip(parameters, before, strict=True):
            if parameter.grad is not None:
                self._gradients.append((parameter, parameter.grad))
            parameter.grad = previous

    def proxy_loss(self, total: Tensor) -> Tensor:
        """A leaf of the same value; its gradient says how to scale the stored gradients."""
        self._total = total.detach().requires_grad_()
        return self._total

    def apply(self) -> None:
        """Add the gradients to those of the parameters in one backward pass, so that hooks run."""
        assert self._total is not None
        assert self._total.grad is not None
        factor = self._total.grad / self._scale
        parameters = [parameter for parameter, _ in self._gradients]
        torch.autograd.backward(parameters, [g * factor.to(g.dtype) for _, g in self._gradients])
        self._gradients.clear()
        self._total = None
