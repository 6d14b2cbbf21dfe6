"""From per-token hidden states to one embedding per text.

Shapes: hidden_states (batch, tokens, features), mask (batch, tokens), embeddings (batch, features).

Each function pools the positions where `mask` is true, in float32 whatever the dtype of
`hidden_states`. A row of which no position is true has nothing to pool: its embedding is NaN.
`EmbeddingModel` never asks for one, since it falls back to all real tokens of such a row.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def mean_pool(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of the mask.

    Example:
        >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    return _weighted_mean(hidden_states, mask.to(torch.float32))


def weighted_mean_pool(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Mean with weights 1, 2, 3, ... over the tokens of the mask: later tokens weigh more.

    The position weights of SGPT (Muennighoff, arXiv 2202.08904, section 3.1.1), counted within the
    mask, so that a masked instruction does not shift them.

    Example:
        >>> hidden_states = torch.tensor([[[5.0], [1.0], [4.0]]])
        >>> weighted_mean_pool(hidden_states, torch.tensor([[False, True, True]]))
        tensor([[3.]])
    """
    counted = mask.to(torch.int64)
    return _weighted_mean(hidden_states, (counted.cumsum(1) * counted).to(torch.float32))


def last_pool(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Hidden state of the last token of the mask."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return _pick(hidden_states, mask, (positions * mask).argmax(1))


def first_pool(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Hidden state of the first token of the mask."""
    return _pick(hidden_states, mask, mask.to(torch.int8).argmax(1))


POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_pool,
    "weighted_mean": weighted_mean_pool,
    "last": last_pool,
    "first": first_pool,
}


def l2_normalize(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, whatever their scale: no absolute epsilon decides what is small.

    A row of zeros has no direction and becomes NaN.

    Args:
        embeddings: shape (batch, features).

    Returns:
        Shape (batch, features), each row of Euclidean norm 1.
    """
    # Dividing by the largest entry first keeps the squares from under- and overflowing. It needs no
    # gradient: the result does not depend on the scale of a row.
    scale = embeddings.detach().abs().amax(dim=1, keepdim=True)
    scaled = embeddings / scale
    normalized: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return normalized


def _weighted_mean(hidden_states: Tensor, weights: Tensor) -> Tensor:
    # Padding may hold anything, also NaN, which a weight of zero would not take out.
    kept = hidden_states.float().masked_fill((weights == 0).unsqueeze(2), 0.0)
    return (kept * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True)


def _pick(hidden_states: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    picked = hidden_states[torch.arange(len(index), device=index.device), index].float()
    return picked.masked_fill(~mask.bool().any(1, keepdim=True), torch.nan)
