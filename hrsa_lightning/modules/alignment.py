"""Alignment with a reference as part of a contrastive step: pulled towards it, or pushed away.

Shapes: T texts of a rank's batch (queries, then passages), D features of an arm, R of the
reference.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn

from hrsa_lightning.losses import AlignmentLoss
from hrsa_lightning.models.attention import evaluating
from hrsa_lightning.models.embedder import EmbeddingModel

REFERENCE = "loss.alignment"
"""Whose tokens a reference with a tokenizer of its own reads, beside those of the arms."""


class Alignment(nn.Module):
    """`AlignmentLoss` of the arms' embeddings, with those of a reference for the same texts.

    The reference is run without gradients, in evaluation mode and in the same chunks as an arm. Its
    weights are never trained, and no checkpoint holds them.

    Args:
        arms: The embedding models that are trained, as they are before the first step.
        reference: `initial` (each arm with its own start: with new LoRA adapters the arm itself
            without them, else a copy), `arm:NAME` (the others with this arm as it is in the same
            step; run again for an arm whose batch has other texts), or an embedding model.
        loss: Default: a pull by debiased CKA.
        weight: What the loss is multiplied with.

    Raises:
        ValueError: `reference` is another word, or an arm that is not there.
    """

    def __init__(
        self,
        arms: Mapping[str, EmbeddingModel],
        reference: str | EmbeddingModel = "initial",
        *,
        loss: AlignmentLoss | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss = loss or AlignmentLoss()
        self.weight = weight
        self.arm: str | None = None  # the one that the others are compared with
        self.model: EmbeddingModel | None = None
        self._of_arm: Tensor | None = None
        starts: dict[str, EmbeddingModel] = {}
        if isinstance(reference, EmbeddingModel):
            self.model = reference.requires_grad_(False)
        elif reference == "initial":
            held = {name: arm for name, arm in arms.items() if not _is_its_backbone(arm)}
            starts = {name: copy.deepcopy(arm) for name, arm in held.items()}
        elif reference.removeprefix("arm:") in arms and reference.startswith("arm:"):
            self.arm = reference.removeprefix("arm:")
        else:
            raise ValueError(
                f"reference: expected initial, arm:NAME of {', '.join(arms)}, or a model, "
                f"got {reference!r}"
            )
        self.starts = nn.ModuleDict(starts).requires_grad_(False)

    def frozen_models(self) -> list[EmbeddingModel]:
        """Models beside the arms."""
        own = [] if self.model is None else [self.model]
        return [*own, *cast(Iterable[EmbeddingModel], self.starts.values())]

    def order(self, arms: Mapping[str, nn.Module]) -> list[str]:
        """Names of the arms, first the one that the others are compared with."""
        return sorted(arms, key=lambda name: name != self.arm)

    def forward(
        self,
        name: str,
        arm: EmbeddingModel,
        embeddings: Tensor,
        encode: Callable[[EmbeddingModel, str], Tensor],
        live: EmbeddingModel | None = None,
    ) -> Tensor:
        """The weighted loss of an arm.

        Args:
            name: Of the arm.
            arm: The arm.
            embeddings: `(T, D)` by the arm, with gradient.
            encode: Gives the `(T, R)` embeddings by a model of its own tokens or of an arm's.
            live: The arm that the others are compared with, where its batch has other texts.
        """
        if name == self.arm:
            self._of_arm = embeddings.detach()
            return embeddings.new_zeros(())
        if live is not None and self.arm is not None:
            reference = self._frozen(live, self.arm, encode, scale=1.0)
        elif self._of_arm is not None:
            reference = self._of_arm
        elif self.model is not None:
            reference = self._frozen(self.model, REFERENCE, encode)
        else:
            start = cast(EmbeddingModel, dict(self.starts.items()).get(name, arm))
            reference = self._frozen(start, name, encode)
        term: Tensor = self.weight * self.loss(embeddings, reference)
        return term

    @torch.no_grad()
    def _frozen(
        self,
        model: EmbeddingModel,
        tokens: str,
        encode: Callable[[EmbeddingModel, str], Tensor],
        scale: float = 0.0,
    ) -> Tensor:
        with _evaluated(model, scale):
            return encode(model, tokens)


def _is_its_backbone(arm: EmbeddingModel) -> bool:
    """Whether there are adapters, and they do nothing yet."""
    added = [weight for name, weight in arm.named_parameters() if "lora_B" in name]
    return bool(added) and not any(bool(weight.any()) for weight in added)


@contextmanager
def _evaluated(model: EmbeddingModel, scale: float) -> Iterator[None]:
    """Evaluation mode, and adapters of a model that is trained scaled: to nothing, as it started.

    peft's own `disable_adapter` would switch `requires_grad` off and on under FSDP2 and DDP.
    """
    is_arm = isinstance(model.backbone, PeftModel) and any(
        weight.requires_grad for weight in model.parameters()
    )
    try:
        with evaluating(model), rescale_adapter_scale(model, scale) if is_arm else nullcontext():
            yield
    finally:
        # Adapters that autocast has cast without a graph must not be used where one is needed.
        torch.clear_autocast_cache()
