"""Sketched isotropic Gaussian regularization of embeddings.

Shapes: B local embeddings of D features, S slices, K knots.
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hrsa_lightning.io.distributed import gather, world_size


class SIGRegLoss(nn.Module):
    """Distance of the embeddings' distribution from a standard Gaussian, seen along random slices.

    Embeddings are normalized and scaled by `sqrt(D)`, so that an isotropic distribution has unit
    variance along every direction. Along each of `num_slices` random directions the empirical
    characteristic function `f` of all `n` embeddings of all ranks is compared with the Gaussian's:

        loss = mean over slices of  n * integral |f(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

    (Epps and Pulley's statistic, as used by Balestriero and LeCun, arXiv 2511.08544, algorithm 1).
    The integrand is even in `t`: it is integrated over [0, `max_t`] by the trapezoidal rule and
    doubled. The value is the same on every rank, and gradients averaged over ranks are those of one
    process, so that its weight beside a contrastive loss means the same on any number of ranks.

    Args:
        num_slices: Random directions, drawn anew for each step.
        num_knots: Points of the integration.
        max_t: Upper end of the integration.
        seed: With the step, decides the directions, the same on every rank.
        gather_distributed: Judge the embeddings of all ranks together; else of this rank alone.

    Raises:
        ValueError: If there is no slice, fewer than 2 knots, or `max_t` is not positive.
    """

    def __init__(
        self,
        num_slices: int = 256,
        num_knots: int = 17,
        max_t: float = 3.0,
        seed: int = 0,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__()
        if num_slices < 1 or num_knots < 2 or not max_t > 0:
            raise ValueError(
                "num_slices must be at least 1, num_knots at least 2 and max_t positive, "
                f"got {num_slices}, {num_knots} and {max_t}"
            )
        self.num_slices = num_slices
        self.seed = seed
        self.gather_distributed = gather_distributed
        self.num_knots = num_knots
        self.max_t = max_t

    def forward(self, embeddings: Tensor, step: int = 0) -> Tensor:
        """Compute the statistic.

        Args:
            embeddings: `(B, D)`, the same B on every rank.
            step: Number of the optimizer step, the same on every rank.

        Returns:
            Scalar float32, at least 0.

        Raises:
            ValueError: If `embeddings` is no matrix.
        """
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings must be (B, D), got shape {tuple(embeddings.shape)}")
        B, D = embeddings.shape
        with torch.autocast(embeddings.device.type, enabled=False):
            scaled_BD = normalize(embeddings.float(), dim=-1) * D**0.5
            directions_DS = self._directions(D, step).to(embeddings.device, non_blocking=True)
            projected_BS = scaled_BD @ directions_DS
            knots_K = torch.linspace(
                0, self.max_t, self.num_knots, dtype=torch.float32, device=embeddings.device
            )
            gaussian_K = torch.exp(-knots_K.square() / 2)
            angles_BSK = projected_BS.unsqueeze(-1) * knots_K
            # Real and imaginary part: their mean over ranks is all that ranks need to exchange.
            function_2SK = torch.stack([angles_BSK.cos().mean(0), angles_BSK.sin().mean(0)])
            n = B
            if self.gather_distributed:
                function_2SK = gather(function_2SK.unsqueeze(0)).mean(0)
                n = B * world_size()
            real_SK, imaginary_SK = function_2SK
            error_SK = (real_SK - gaussian_K).square() + imaginary_SK.square()
            integral_S = 2 * torch.trapezoid(error_SK * gaussian_K, knots_K)
            return n * integral_S.mean()

    def _directions(self, num_features: int, step: int) -> Tensor:
        """`(D, S)` unit vectors; on the CPU, where every machine draws the same."""
        # A hash, since torch's generator takes only the low 32 bits of its seed.
        digest = hashlib.blake2b(f"{self.seed} {step}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        # The dtype is said, since true half precision makes another one the default in the step.
        shape = (num_features, self.num_slices)
        return normalize(torch.randn(shape, generator=generator, dtype=torch.float32), dim=0)
