"""A contrastive loss on several leading parts of the embeddings at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MatryoshkaLoss(nn.Module):
    """Weighted sum of a contrastive loss over embeddings cut to their first `d` features.

    For sizes `d` and weights `w_d`, `loss = sum_d w_d * loss_d(queries[:, :d], passages[..., :d])`
    (Kusupati et al., arXiv 2205.13147, eq. 1), so that a cut embedding, normalized again, still
    retrieves.

    Args:
        loss: Loss of `(B, D)` queries, `(B, G, D)` passages and further arguments, which are passed
            on as they are. It has to normalize what it is given, as `InfoNCELoss` does.
        dims: Sizes; the full one is only there if named.
        weights: One per size; all 1 by default.

    Raises:
        ValueError: If `dims` is empty or not positive, or `weights` are not as many.

    Example:
        >>> from hrsa_lightning.losses import InfoNCELoss
        >>> loss = MatryoshkaLoss(InfoNCELoss(), dims=[4, 2])
        >>> loss(torch.ones(3, 4), torch.ones(3, 1, 4))  # 2 log 3
        tensor(2.1972)
    """

    def __init__(
        self, loss: nn.Module, dims: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must be positive numbers of features, got {list(dims)}")
        if weights is not None and len(weights) != len(dims):
            raise ValueError(f"weights must be {len(dims)} as dims are, got {len(weights)}")
        self.loss = loss
        self.dims = list(dims)
        self.weights = [1.0] * len(dims) if weights is None else list(weights)

    def forward(self, queries: Tensor, passages: Tensor, *ids: Tensor | None) -> Tensor:
        """Compute the weighted sum.

        Args:
            queries: `(B, D)` embeddings.
            passages: `(B, G, D)` embeddings.
            *ids: What else the loss takes.

        Returns:
            Scalar loss.

        Raises:
            ValueError: If a size is larger than D.
        """
        if max(self.dims) > queries.shape[-1]:
            raise ValueError(
                f"dims go up to {max(self.dims)}, but embeddings have {queries.shape[-1]} features"
            )
        losses = [
            weight * self.loss(queries[..., :dim], passages[..., :dim], *ids)
            for dim, weight in zip(self.dims, self.weights, strict=True)
        ]
        return torch.stack(losses).sum()
