"""InfoNCE with hard negatives and in-batch negatives from every rank.

Shapes: B local queries, G passages of each query (its positive first), D features, Q queries and
N passages of all ranks.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hrsa_lightning.io.distributed import gather
from hrsa_lightning.losses.candidates import CandidateLoss, Candidates


class InfoNCELoss(CandidateLoss):
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
        symmetric: Average with the loss in the other direction, where each positive looks for its
            query among the queries of all ranks.
        same_side_negatives: Take the other queries as negatives of a query too, and with
            `symmetric` the other positives as negatives of a positive: NT-Xent (Chen et al., arXiv
            2002.05709, eq. 1).
        joint: With `symmetric`, one softmax over what both directions look at instead of the mean
            of two. With `same_side_negatives` it is the loss of Li et al. (arXiv 2308.03281, eq.
            2), in whose sum, as there, the positive pair stands once for each direction: it is at
            least log 2.
        false_negative_margin: Leave out negatives whose cosine exceeds that of the positive by more
            than this, as false negatives (Qwen3 Embedding, arXiv 2506.05176, takes 0.1); `None`
            leaves none out.
        hardness: Weight each negative by `exp(hardness * cos)`, in which the cosine gets no
            gradient, so that harder ones count for more (Lan et al., arXiv 2503.04812, eq. 5, take
            9); 0 weights all alike.

    Raises:
        ValueError: If `temperature` is not positive, `hardness` is negative, or `joint` comes
            without `symmetric`.

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
        symmetric: bool = False,
        same_side_negatives: bool = False,
        false_negative_margin: float | None = None,
        hardness: float = 0.0,
        joint: bool = False,
    ) -> None:
        super().__init__(temperature, gather_distributed, mask_duplicates)
        if hardness < 0:
            raise ValueError(f"hardness must be at least 0, got {hardness}")
        if joint and not symmetric:
            raise ValueError("joint: expected symmetric beside it, whose directions it joins")
        self.symmetric = symmetric
        self.joint = joint
        self.same_side_negatives = same_side_negatives
        self.false_negative_margin = false_negative_margin
        self.hardness = hardness

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
        # Mixed precision would round cosines near 1 to steps of .004, which is .2 after division
        # by a temperature of .02.
        with torch.autocast(queries.device.type, enabled=False):
            batch = self.candidates(queries, passages, passage_ids, query_ids)
            both_sides = self.symmetric or self.same_side_negatives
            across_ranks = both_sides and self.gather_distributed
            all_queries_QD = gather(batch.queries) if across_ranks else batch.queries
            return batch.mean_over_queries(lambda rows: self._sum(batch, all_queries_QD, rows))

    def _sum(self, batch: Candidates, all_queries_QD: Tensor, rows: slice) -> Tensor:
        """Sum over some local queries of the loss, in both directions if asked for."""
        queries_BD, own, targets = batch.queries[rows], batch.own[rows], batch.targets[rows]
        false_negatives = batch.false_negatives(rows)
        # Two queries are alike in what they look for if one's positive answers the other.
        alike_BQ = false_negatives[:, :: batch.group_size]
        forth = self._logits(
            queries_BD,
            (batch.passages, false_negatives, targets),
            (all_queries_QD, alike_BQ, own),
        )
        if not self.symmetric:
            return cross_entropy(forth, targets, reduction="sum")
        positives_QD = batch.passages[:: batch.group_size]
        back = self._logits(
            positives_QD[own],
            (all_queries_QD, alike_BQ, own),
            (positives_QD, alike_BQ, own),
        )
        if self.joint:
            return cross_entropy(torch.cat([forth, back], dim=1), targets, reduction="sum")
        sums = [cross_entropy(*side, reduction="sum") for side in ((forth, targets), (back, own))]
        return (sums[0] + sums[1]) / 2

    def _logits(
        self,
        anchors_BD: Tensor,
        across: tuple[Tensor, Tensor, Tensor],
        same_side: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """What anchors choose from `across`, and may have as negatives on the `same_side`.

        Each side is its embeddings, which of them are false negatives of each anchor, and which is
        the anchor's target or, on its own side, the anchor itself.

        Returns:
            Scores of `across`, then of the same side; `-inf` where there is nothing to choose.
        """
        candidates, excluded, targets = across
        similarities = anchors_BD @ candidates.T
        if self.same_side_negatives:
            siblings, alike, own = same_side
            itself = torch.zeros_like(alike).scatter(1, own[:, None], True)
            similarities = torch.cat([similarities, anchors_BD @ siblings.T], dim=1)
            excluded = torch.cat([excluded, alike | itself], dim=1)
        at_target = targets[:, None]
        fixed = similarities.detach()
        if self.false_negative_margin is not None:
            limit = fixed.gather(1, at_target) + self.false_negative_margin
            excluded = (excluded | (fixed > limit)).scatter(1, at_target, False)
        logits = similarities / self.temperature
        if self.hardness:
            logits = logits + (self.hardness * fixed).scatter(1, at_target, 0.0)
        return logits.masked_fill(excluded, float("-inf"))
