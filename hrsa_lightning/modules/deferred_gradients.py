"""Gradients that are computed within `training_step` and applied in the backward pass.

Lightning zeroes gradients after `training_step` and calls `backward` on one loss. Arms that are
trained side by side share no graph: each arm's gradients are computed as soon as its loss is there,
which frees its activations, and are stored until Lightning's backward pass. They exist once: scaled
in place, and moved into the parameters rather than copied.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class DeferredGradients:
    """Gradients of several modules between `training_step` and `backward`."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []
        self._gradients: list[Tensor] = []
        self._scale: Tensor | float = 1.0

    @contextmanager
    def capture(
        self, module: nn.Module, scale: Tensor | float
    ) -> Iterator[Callable[[Tensor], None]]:
        """Store what backward passes within add to the module's gradients.

        Args:
            module: Its parameters have the same gradients afterwards as before.
            scale: Multiplies the loss for its backward pass; the backward pass of `loss` divides by
                it again.

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
                self._parameters.append(parameter)
                self._gradients.append(parameter.grad)
            parameter.grad = previous

    def loss(self, total: Tensor) -> Tensor:
        """A loss of the value `total` whose backward pass gives the parameters what was stored.

        It is one backward pass with all its hooks, those of DDP among them.
        """
        parameters, self._parameters = self._parameters, []
        gradients, self._gradients = self._gradients, []
        result: Tensor = _Stored.apply(total, gradients, self._scale, *parameters)  # type: ignore[no-untyped-call]
        return result


class _Stored(torch.autograd.Function):
    """Identity of `total` whose gradients were computed before."""

    @staticmethod
    def forward(
        ctx: Any, total: Tensor, gradients: list[Tensor], scale: Tensor | float, *parameters: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # With no other reference left, a parameter takes its gradient over without a copy.
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_outputs[0] / ctx.scale
        scaled = (gradient.mul_(factor.to(gradient.dtype)) for gradient in gradients)
        return (None, None, None, *scaled)
