"""One plain transformer out of a backbone and its adapter, or out of two models."""

from typing import Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models.embedder import EmbeddingModel

Method = Literal["slerp", "linear"]

_PARALLEL = 1e-6
"""Below this sine of the angle slerp is linear interpolation to within float32 rounding."""


def merge_adapter(model: EmbeddingModel) -> None:
    """Adds the adapter's update to the backbone's weights, in place; without one, does nothing."""
    if isinstance(model.backbone, PeftModel):
        merged = model.backbone.merge_and_unload()
        model.backbone = cast(PreTrainedModel, merged)


def slerp(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Spherical linear interpolation of two tensors, taken as vectors (Shoemake 1985).

    The angle is that between the whole tensors; lengths are interpolated linearly, so that the
    interpolation of a tensor with itself is that tensor. Parallel or zero tensors are interpolated
    linearly, opposite ones too, since no arc between them is the shortest.

    Args:
        x: any shape, floating point.
        y: the same shape.
        weight: in [0, 1]; 0 gives `x`, 1 gives `y`.

    Returns:
        The shape and dtype of `x`.

    Example:
        >>> slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
        tensor([1.4142, 1.4142])
    """
    a, b = x.double(), y.double()
    length_a, length_b = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    if length_a == 0 or length_b == 0:
        return torch.lerp(a, b, weight).to(x.dtype)
    unit_a, unit_b = a / length_a, b / length_b
    angle = torch.arccos((unit_a * unit_b).sum().clamp(-1, 1))
    if torch.sin(angle) < _PARALLEL:
        return torch.lerp(a, b, weight).to(x.dtype)
    direction = torch.sin((1 - weight) * angle) * unit_a + torch.sin(weight * angle) * unit_b
    length = torch.lerp(length_a, length_b, weight)
    turned: Tensor = direction / torch.sin(angle) * length
    return turned.to(x.dtype)


@torch.no_grad()
def interpolate(
    model: PreTrainedModel, other: PreTrainedModel, weight: float, method: Method
) -> None:
    """Moves the weights of `model` towards those of `other`, in place, tensor by tensor.

    Args:
        model: any transformer.
        other: one of the same architecture.
        weight: share of `other`, in [0, 1].
        method: "slerp" or "linear".

    Raises:
        BackboneError: the two do not have the same weights in the same shapes.
    """
    own, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    odd = [
        name
        for name in sorted(own.keys() | theirs.keys())
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape
    ]
    if odd:
        raise BackboneError(
            f"--interpolate: expected two models of one architecture; {len(odd)} weights differ,"
            f" such as {odd[0]}"
        )
    for name, parameter in own.items():
        target = theirs[name].to(parameter)
        mixed = (
            slerp(parameter, target, weight)
            if method == "slerp"
            else torch.lerp(parameter, target, weight)
        )
        parameter.copy_(mixed)
