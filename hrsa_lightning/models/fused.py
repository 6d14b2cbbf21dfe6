"""peft's LoRA layers computed in one piece on CPUs: the same numbers by fewer passes over memory.

Beside its products, which are narrow, a LoRA layer of modules passes many times over matrices as
wide as its input and its output: to drop entries, to scale, to add, and all that backwards. There
products are added where they belong as they are computed, scales are applied to narrow matrices,
and one byte is kept for each entry that dropout may drop, its product being computed again.

Shapes: x (..., I), T of them, base weight (O, I), first weight (R, I), second weight (O, R).
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hrsa_lightning.models.dropout import draw_kept


class FusedLoraLinear(LoraLinear):
    """peft's LoRA layer over a frozen linear layer, as one node of the graph.

    Names, weights and all that peft does with them are those of the class it extends. Off the CPU,
    under autocast, with hooks on its parts, merged, or with anything but one plain adapter, it
    computes as that does.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self._plain_adapter(x)
        if name is None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        dropout = self.lora_dropout[name]
        p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        output = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x,
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            draw_kept(x.shape, p) if p else None,
            self.scaling[name] / (1 - p),
        )
        return output

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The adapter to compute with, or None where peft has to."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or self.disable_adapters or self.merged:
            return None
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        (name,) = names
        parts = [self.base_layer, self.lora_A[name], self.lora_B[name]]
        plain = name not in self.lora_variant and self.lora_B[name].bias is None
        frozen = not any(weight.requires_grad for weight in self.base_layer.parameters())
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
        return name if plain and frozen and not hooked else None


def fuse_lora(model: PeftModel) -> None:
    """Let LoRA layers on plain linear layers compute in one piece; names stay as they are."""
    for layer in model.modules():
        if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = FusedLoraLinear


class _LoraLinear(torch.autograd.Function):
    """x W^T + b + scale (x * kept) A^T B^T, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        first: Tensor,
        second: Tensor,
        kept: Tensor | None,
        scale: float,
    ) -> Tensor:
        result = linear(x, weight, bias)
        narrow_TR = _rows(_dropped(x, kept, first.dtype)) @ first.T
        _add_product(_rows(result), narrow_TR, second.T, scale)
        ctx.save_for_backward(x, weight, first, second, narrow_TR, kept)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, first, second, narrow_TR, kept = ctx.saved_tensors
        to_x = to_first = to_second = None
        grad_TO = _rows(grad)
        wide_TO = grad_TO.to(first.dtype)
        to_narrow_TR = (wide_TO @ second).mul_(ctx.scale)
        if ctx.needs_input_grad[4]:
            # In this order MKL takes half the time.
            to_second = (narrow_TR.T @ wide_TO).mul_(ctx.scale).T
        if ctx.needs_input_grad[3]:
            to_first = to_narrow_TR.T @ _rows(_dropped(x, kept, first.dtype))
        if ctx.needs_input_grad[0]:
            to_x = grad_TO @ weight
            if kept is None:
                _add_product(to_x, to_narrow_TR, first, 1.0)
            else:
                to_x += (to_narrow_TR @ first).mul_(_rows(kept))
            to_x = to_x.view(x.shape)
        return to_x, None, None, to_first, to_second, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _dropped(x: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if kept is None else kept.to(dtype).mul_(x)


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """total += scale * a @ b, in the precision of the product."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=scale)
    else:
        total += (a @ b).mul_(scale)
