"""What the contrastive losses share: the passages of the global batch, and the false negatives.

Shapes: B local queries, G passages of each query (its positive first), D features, N passages of
all ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hrsa_lightning.distributed import gather, rank


@dataclass(frozen=True)
class Candidates:
    """Local queries and the passages they choose from, normalized in float32.

    Attributes:
        queries: `(B, D)` this rank's queries.
        passages: `(N, D)` passages of all ranks, or of this one, with their gradient.
        group_size: G; every G-th passage is a positive.
        own: `(B,)` number of each local query among all queries.
        false_negatives: `(B, N)` true where ids tell that a passage answers a query, except at the
            query's own positive.
    """

    queries: Tensor
    passages: Tensor
    group_size: int
    own: Tensor
    false_negatives: Tensor

    @property
    def targets(self) -> Tensor:
        """`(B,)` rows of `passages` that hold the local queries' positives."""
        return self.own * self.group_size


def collect_candidates(
    queries: Tensor,
    passages: Tensor,
    passage_ids: Tensor | None = None,
    query_ids: Tensor | None = None,
    gather_distributed: bool = True,
) -> Candidates:
    """Normalize embeddings, gather the passages of all ranks, and find false negatives by ids.

    Args:
        queries: `(B, D)` embeddings of any length.
        passages: `(B, G, D)` embeddings; `passages[:, 0]` are the positives.
        passage_ids: `(B, G)` integers that are equal where two passages are the same text or
            document: a passage with the id of a query's positive answers that query.
        query_ids: `(B,)` integers that are equal where two queries are the same: the positive of an
            equal query answers both.
        gather_distributed: Take passages from all ranks; else from this rank alone.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    _check_shapes(queries, passages, passage_ids, query_ids)
    B, G, _ = passages.shape
    collect = gather if gather_distributed else _identity
    normalized_BD = normalize(queries.float(), dim=-1)
    passages_ND = collect(normalize(passages.float(), dim=-1).flatten(0, 1))
    rows = torch.arange(B, device=queries.device)
    own_B = rows + B * rank() if gather_distributed else rows
    false_BN = torch.zeros(B, len(passages_ND), dtype=torch.bool, device=queries.device)
    if passage_ids is not None:
        false_BN |= passage_ids[:, :1] == collect(passage_ids.flatten())
    if query_ids is not None:
        false_BN[:, ::G] |= query_ids[:, None] == collect(query_ids)
    false_BN[rows, own_B * G] = False
    return Candidates(normalized_BD, passages_ND, G, own_B, false_BN)


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


class CandidateLoss(nn.Module):
    """What the losses over candidates have in common; abstract.

    Args:
        temperature: Divides the similarities, positive.
        gather_distributed: Take negatives from all ranks; else from this rank alone.
        mask_duplicates: Leave out false negatives that ids reveal.

    Raises:
        ValueError: If `temperature` is not positive.
    """

    def __init__(self, temperature: float, gather_distributed: bool, mask_duplicates: bool) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.mask_duplicates = mask_duplicates

    def candidates(
        self,
        queries: Tensor,
        passages: Tensor,
        passage_ids: Tensor | None,
        query_ids: Tensor | None,
    ) -> Candidates:
        """`collect_candidates` as this loss was asked to."""
        return collect_candidates(
            queries,
            passages,
            passage_ids if self.mask_duplicates else None,
            query_ids if self.mask_duplicates else None,
            self.gather_distributed,
        )
