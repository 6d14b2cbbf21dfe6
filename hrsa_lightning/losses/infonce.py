"""InfoNCE with hard negatives and in-batch negatives from every rank.

Shapes: B local queries, G passages of each query (its positive first), D features, W ranks.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from hrsa_lightning.distributed import gather, rank


class InfoNCELoss(nn.Module):
    """Contrastive cross-entropy of each query's positive against all passages of the global batch.

    For query `q_i` with positive `p_i` and the set `P` of all passages of all queries of all ranks,

        loss = -mean_i log( exp(cos(q_i, p_i) / t) / sum_{p in P} exp(cos(q_i, p) / t) )

    (van den Oord et al., arXiv 1807.03748, eq. 4, with in-batch and hard negatives). The mean runs
    over local queries and passages are gathered with their gradient, so that gradients averaged
    over ranks, as DDP does, are those of the whole global batch in one process.

    Args:
        temperature: Divides the similarities, positive (scale = 1 / temperature).
        gather_distributed: Take negatives from all ranks; else from this rank alone.
        mask_duplicates: Leave out false negatives that the ids given to `forward` reveal.

    Raises:
        ValueError: If `temperature` is not positive.

    Example:
        >>> queries = torch.eye(2)
        >>> passages = torch.stack([queries, -queries], dim=1)
        >>> InfoNCELoss(temperature=1.0)(queries, passages)
        tensor(0.6265)
    """

    def __init__(
        self,
        temperature: float = 0.02,
        gather_distributed: bool = True,
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.mask_duplicates = mask_duplicates

    def forward(
        self,
        queries: Tensor,
        passages: Tensor,
        passage_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss of the local queries.

        Args:
            queries: `(B, D)` embeddings; any length, they are normalized here, in float32.
            passages: `(B, G, D)` embeddings; `passages[:, 0]` are the positives.
            passage_ids: `(B, G)` integers that are equal where two passages are the same text or
                document. A passage with the id of a query's positive is no negative of that query.
            query_ids: `(B,)` integers that are equal where two queries are the same. The positive
                of an equal query is no negative.

        Returns:
            Scalar float32 loss in nats, at least 0.

        Raises:
            ValueError: If the shapes do not fit together.
        """
        _check_shapes(queries, passages, passage_ids, query_ids)
        collect = gather if self.gather_distributed else _identity
        group_size = passages.shape[1]
        # Mixed precision would round cosines near 1 to steps of .004, which is .2 after division
        # by a temperature of .02.
        with torch.autocast(queries.device.type, enabled=False):
            normalized_BD = normalize(queries.float(), dim=-1)
            candidates_ND = collect(normalize(passages.float(), dim=-1).flatten(0, 1))
            scores_BN = normalized_BD @ candidates_ND.T / self.temperature

        first_row = rank() * len(queries) if self.gather_distributed else 0
        rows = torch.arange(len(queries), device=queries.device)
        positive_B = (first_row + rows) * group_size
        if self.mask_duplicates:
            false_negative_BN = torch.zeros_like(scores_BN, dtype=torch.bool)
            if passage_ids is not None:
                false_negative_BN |= passage_ids[:, :1] == collect(passage_ids.flatten())
            if query_ids is not None:
                false_negative_BN[:, ::group_size] |= query_ids[:, None] == collect(query_ids)
            false_negative_BN[rows, positive_B] = False
            scores_BN = scores_BN.masked_fill(false_negative_BN, float("-inf"))
        return cross_entropy(scores_BN, positive_B)


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _check_shapes(
    queries: Tensor, passages: Tensor, passage_ids: Tensor | None, query_ids: Tensor | None
) -> None:
    if queries.ndim != 2:
        raise ValueError(f"queries must be (B, D), got shape {tuple(queries.shape)}")
    B, D = queries.shape
    if passages.ndim != 3 or passages.shape[0] != B or passages.shape[2] != D:
        raise ValueError(
            f"passages must be (B, G, D) with B={B} and D={D} as the queries have, "
            f"got shape {tuple(passages.shape)}"
        )
    if passage_ids is not None and passage_ids.shape != passages.shape[:2]:
        raise ValueError(
            f"passage_ids must have shape {tuple(passages.shape[:2])}, "
            f"got {tuple(passage_ids.shape)}"
        )
    if query_ids is not None and query_ids.shape != (B,):
        raise ValueError(f"query_ids must have shape ({B},), got {tuple(query_ids.shape)}")
