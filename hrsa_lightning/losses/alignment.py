"""Alignment with a reference as a regularizer.

Shapes: B local samples, D features of the model, R features of the reference.
"""

from typing import Literal

from torch import Tensor, nn

from hrsa_lightning.functional import linear_cka
from hrsa_lightning.io.distributed import gather

Direction = Literal["pull", "push"]
DIRECTIONS = ("pull", "push")


class AlignmentLoss(nn.Module):
    """A regularizer that pulls representations towards a reference, or pushes them away from it.

    It is linear CKA with the reference's representations of the same samples, as a loss.

    `pull` is `1 - CKA`, 0 where both have the same geometry up to rotation, scale and offset.
    `push` is CKA itself down to 0, where the representations are as far apart as unrelated ones:
    below their chance level there is nothing to gain. CKA is debiased unless `debiased=False`,
    with which a batch smaller than the width looks alike whatever the model does.

    The value is the same on every rank, and gradients averaged over ranks are those of one process.

    Args:
        direction: `pull` or `push`.
        debiased: Use the debiased form.
        standardize: Bring every feature to unit variance first, so that one massive dimension does
            not decide the loss alone.
        gather_distributed: Compare the samples of all ranks together; else of this rank alone.

    Raises:
        ValueError: If `direction` is neither.

    Example:
        >>> import torch
        >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        >>> loss = AlignmentLoss()(x, 3 * x.detach() + 1)
        >>> abs(loss.item()) < 1e-6
        True
    """

    def __init__(
        self,
        direction: Direction = "pull",
        *,
        debiased: bool = True,
        standardize: bool = False,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected pull or push, got {direction!r}")
        self.direction = direction
        self.debiased = debiased
        self.standardize = standardize
        self.gather_distributed = gather_distributed

    def forward(self, representations: Tensor, reference: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            representations: `(B, D)` of the model that is trained, the same B on every rank.
            reference: `(B, R)` of the same samples by the reference; it gets no gradient.

        Returns:
            Scalar float32; NaN, with a warning, where CKA is not defined: representations that are
            not finite or have no variance.

        Raises:
            ValueError: If shapes do not match, or all ranks together have fewer than 4 samples.
        """
        representations, reference = representations.float(), reference.detach().float()
        if self.gather_distributed:
            representations, reference = gather(representations), gather(reference)
        cka = linear_cka(
            representations, reference, self.debiased, standardize=self.standardize
        ).float()
        return 1 - cka if self.direction == "pull" else cka.clamp(min=0)
