"""InfoNCE corrected for the share of false negatives among the negatives.

Shapes: B local queries, G passages of each query (its positive first), D features, N passages of
all ranks.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hrsa_lightning.losses.candidates import CandidateLoss, Candidates


class DebiasedInfoNCELoss(CandidateLoss):
    """Contrastive loss that assumes a share `tau_plus` of the negatives to be positives in truth.

    With a query's positive score `s`, its `n` negative scores `s_1 .. s_n` (cosines over
    temperature `t`),

        g = max( (mean_j exp(s_j) - tau_plus * exp(s)) / (1 - tau_plus), exp(-1 / t) )
        loss = -log( exp(s) / (exp(s) + n * g) )

    (Chuang et al., arXiv 2007.00224, eqs. 7 and 8 with one positive), averaged over local queries.
    `tau_plus=0` is InfoNCE. Negatives are all other passages of all ranks, hard ones included;
    gradients across ranks are as in `InfoNCELoss`.

    Args:
        temperature: Divides the similarities, positive.
        tau_plus: Assumed probability that a negative is a positive, in [0, 1).
        gather_distributed: Take negatives from all ranks; else from this rank alone.
        mask_duplicates: Leave out false negatives that the ids given to `forward` reveal.

    Raises:
        ValueError: If `temperature` is not positive or `tau_plus` is outside [0, 1).
    """

    def __init__(
        self,
        temperature: float = 0.02,
        tau_plus: float = 0.1,
        gather_distributed: bool = True,
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__(temperature, gather_distributed, mask_duplicates)
        if not 0 <= tau_plus < 1:
            raise ValueError(f"tau_plus must be in [0, 1), got {tau_plus}")
        self.tau_plus = tau_plus

    def forward(
        self,
        queries: Tensor,
        passages: Tensor,
        passage_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss of the local queries; arguments are those of `InfoNCELoss`.

        Returns:
            Scalar float32 loss in nats, at least 0.

        Raises:
            ValueError: If the shapes do not fit together.
        """
        with torch.autocast(queries.device.type, enabled=False):
            batch = self.candidates(queries, passages, passage_ids, query_ids)
            return batch.mean_over_queries(lambda rows: self._sum(batch, rows))

    def _sum(self, batch: Candidates, rows: slice) -> Tensor:
        """Sum over some local queries of the loss."""
        scores_BN = batch.queries[rows] @ batch.passages.T / self.temperature
        at_target = batch.targets[rows, None]
        positive_B = scores_BN.gather(1, at_target).squeeze(1)
        excluded_BN = batch.false_negatives(rows).scatter_(1, at_target, True)
        count_B = (~excluded_BN).sum(dim=1).float()
        least = -1 / self.temperature
        # Low enough to vanish from the sum, but finite: a row without negatives keeps a gradient.
        log_sum_B = scores_BN.masked_fill(excluded_BN, least - 1000).logsumexp(dim=1)
        log_mean_B = log_sum_B - count_B.clamp(min=1).log()
        log_g_B = self._log_corrected(log_mean_B, positive_B, least)
        return softplus(count_B.log() + log_g_B - positive_B).sum()

    def _log_corrected(self, log_mean_B: Tensor, positive_B: Tensor, least: float) -> Tensor:
        """Logarithm of g, computed without leaving the logarithms."""
        if self.tau_plus == 0:
            return log_mean_B
        # Logarithm of the part of the mean that positives are assumed to make up.
        part_B = math.log(self.tau_plus) + positive_B - log_mean_B
        rest_B = log_mean_B + torch.log1p(-part_B.clamp(max=-1e-6).exp())
        log_g_B = rest_B - math.log1p(-self.tau_plus)
        return log_g_B.masked_fill(part_B >= 0, least).clamp(min=least)
