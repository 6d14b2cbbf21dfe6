"""What the contrastive losses share: passages of the global batch, false negatives, and few rows of
scores at a time.

Shapes: B local queries, G passages of each query (its positive first), D features, N passages of
all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from hrsa_lightning.io.distributed import gather, rank

SCORES_AT_ONCE = 2**18
"""Scores of queries with all passages that are in memory at once, as several matrices."""
SCORES_AT_ONCE_ON_DEVICE = 2**25
"""The same on an accelerator: few kernels that fill it, and 128 MiB a matrix."""


@dataclass(frozen=True)
class Candidates:
    """Local queries and the passages they choose from, normalized in float32.

    Attributes:
        queries: `(B, D)` this rank's queries.
        passages: `(N, D)` passages of all ranks, or of this one, with their gradient.
        group_size: G; every G-th passage is a positive.
        own: `(B,)` number of each local query among all queries.
        positive_ids: `(B,)` ids of the local positives, `None` if passages have no ids.
        passage_ids: `(N,)`, as above.
        query_ids: `(B,)` ids of the local queries, `None` if queries have no ids.
        all_query_ids: `(Q,)`, as above.
    """

    queries: Tensor
    passages: Tensor
    group_size: int
    own: Tensor
    positive_ids: Tensor | None
    passage_ids: Tensor | None
    query_ids: Tensor | None
    all_query_ids: Tensor | None

    @property
    def targets(self) -> Tensor:
        """`(B,)` rows of `passages` that hold the local queries' positives."""
        return self.own * self.group_size

    def false_negatives(self, rows: slice) -> Tensor:
        """Which passages answer some local queries, except each one's own positive, by their ids.

        Args:
            rows: Of the local queries.

        Returns:
            `(rows, N)`, bool.
        """
        targets = self.targets[rows]
        false_BN = torch.zeros(
            len(targets), len(self.passages), dtype=torch.bool, device=targets.device
        )
        if self.positive_ids is not None:
            false_BN |= self.positive_ids[rows, None] == self.passage_ids
        if self.query_ids is not None:
            false_BN[:, :: self.group_size] |= self.query_ids[rows, None] == self.all_query_ids
        return false_BN.scatter_(1, targets[:, None], False)

    def mean_over_queries(self, loss: Callable[[slice], Tensor]) -> Tensor:
        """Mean over the local queries of a loss that looks at all passages, some rows at a time.

        Of several parts none keeps its scores: they are computed again in the backward pass.

        Args:
            loss: Summed over some rows; without random numbers and without talk between ranks.
        """
        B = len(self.queries)
        on_cpu = self.queries.device.type == "cpu"
        most = SCORES_AT_ONCE if on_cpu else SCORES_AT_ONCE_ON_DEVICE
        step = max(1, most // len(self.passages))
        if step >= B:
            return loss(slice(0, B)) / B
        parts = [
            checkpoint(
                loss, slice(begin, begin + step), use_reentrant=False, preserve_rng_state=False
            )
            for begin in range(0, B, step)
        ]
        return torch.stack(parts).sum() / B


def collect_candidates(
    queries: Tensor,
    passages: Tensor,
    passage_ids: Tensor | None = None,
    query_ids: Tensor | None = None,
    gather_distributed: bool = True,
) -> Candidates:
    """Normalize embeddings, and gather the passages and ids of all ranks.

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
    rows = torch.arange(B, device=queries.device)
    return Candidates(
        queries=normalize(queries.float(), dim=-1),
        passages=collect(normalize(passages.float(), dim=-1).flatten(0, 1)),
        group_size=G,
        own=rows + B * rank() if gather_distributed else rows,
        positive_ids=None if passage_ids is None else passage_ids[:, 0],
        passage_ids=None if passage_ids is None else collect(passage_ids.flatten()),
        query_ids=query_ids,
        all_query_ids=None if query_ids is None else collect(query_ids),
    )


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
