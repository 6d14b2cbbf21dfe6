"""Contrastive training of one embedding model, or of several side by side on the same batches."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from hrsa_lightning.checkpoints import ADAPTERS
from hrsa_lightning.data import ContrastiveBatch
from hrsa_lightning.losses import InfoNCELoss
from hrsa_lightning.models.embedder import EmbeddingModel

_SCHEDULES = {
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


class PairedContrastiveModule(LightningModule):
    """Trains every arm on the same batches, each as if it were alone.

    The arms share nothing but the data: every arm has its own weights, its own parameter groups
    (AdamW works per parameter), its own gradient-norm clipping and its own stream of random numbers
    for dropout, drawn from (arm seed, epoch, batch, rank). An arm therefore ends with the same
    weights, to the bit, whether others are trained beside it or not.

    Args:
        arms: The embedding models by name.
        loss: InfoNCE over query and passage embeddings.
        seeds: Dropout seed of each arm; an arm that is not named has seed 0.
        lr: Peak learning rate.
        weight_decay: AdamW's decay, on matrices only (not on biases and norms).
        betas: AdamW's momenta.
        eps: AdamW's epsilon.
        warmup_ratio: Share of all steps over which the learning rate rises linearly.
        schedule: `"cosine"` (to zero) or `"constant"`.
        max_tokens_per_chunk: Bound on padded tokens per forward pass; texts are sorted by length.
            `None` encodes all queries, then all passages of a batch, in one pass each.
    """

    def __init__(
        self,
        arms: Mapping[str, EmbeddingModel],
        *,
        loss: InfoNCELoss | None = None,
        seeds: Mapping[str, int] | None = None,
        lr: float = 2e-5,
        weight_decay: float = 0.05,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_ratio: float = 0.03,
        schedule: str = "cosine",
        max_tokens_per_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if schedule not in _SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(_SCHEDULES)}, got '{schedule}'")
        self.arms = nn.ModuleDict(arms)
        self.loss = loss or InfoNCELoss()
        self.seeds = {name: (seeds or {}).get(name, 0) for name in arms}
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.max_tokens_per_chunk = max_tokens_per_chunk
        # Checkpoints carry what is trained; frozen backbones are read from where they came from.
        self.strict_loading = False

    def training_step(self, batch: ContrastiveBatch, batch_idx: int) -> Tensor:
        """Sum of the arms' losses; each arm's gradient is that of its own loss alone."""
        losses = {}
        for name in self.arms:
            with self._own_randomness(name, batch_idx):
                losses[name] = self._arm_loss(name, batch)
        for name, loss in losses.items():
            self.log(f"train/loss/{name}", loss.detach(), sync_dist=True)
        total = torch.stack(list(losses.values())).sum()
        self.log("loss", total.detach() / len(losses), prog_bar=True, sync_dist=True, logger=False)
        return total

    def _arm_loss(self, name: str, batch: ContrastiveBatch) -> Tensor:
        arm = self.arms[name]
        queries, passages = batch.queries[name], batch.passages[name]
        loss: Tensor = self.loss(
            arm.encode_texts(queries, self.max_tokens_per_chunk),
            arm.encode_texts(passages, self.max_tokens_per_chunk).unflatten(
                0, (len(queries), batch.group_size)
            ),
            batch.passage_ids,
        )
        return loss

    @contextmanager
    def _own_randomness(self, name: str, batch_idx: int) -> Iterator[None]:
        """Random numbers that depend on nothing but the arm's seed, the step and the rank."""
        step = (self.seeds[name], self.current_epoch, batch_idx, self.global_rank)
        digest = hashlib.blake2b(repr(step).encode(), digest_size=8).digest()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int.from_bytes(digest, "little", signed=True))
            yield

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with two parameter groups per arm (decayed or not) and one schedule for all."""
        groups = [group for name in self.arms for group in self._parameter_groups(name)]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.warmup_ratio * total)
        scheduler = _SCHEDULES[self.schedule](optimizer, warmup, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/lr"},
        }

    def _parameter_groups(self, name: str) -> list[dict[str, Any]]:
        trained = [p for p in self.arms[name].parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim >= 2]
        plain = [p for p in trained if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay, "name": f"{name}/decay"},
            {"params": plain, "weight_decay": 0.0, "name": f"{name}/no_decay"},
        ]
        return [group for group in groups if group["params"]]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each arm by its own gradient norm: one arm's spike must not slow another."""
        if gradient_clip_val is None:
            return
        for arm in self.arms.values():
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(arm.parameters(), gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(arm.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained weights only: adapters in peft's form, other trained tensors as they are."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        adapters = {}
        for name, arm in self.arms.items():
            if (state := arm.adapter_state()) is not None:
                adapters[name] = state
                trained -= {key for key in trained if key.startswith(f"arms.{name}.")}
        checkpoint[ADAPTERS] = adapters
        checkpoint["state_dict"] = {
            key: value for key, value in checkpoint["state_dict"].items() if key in trained
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters back; Lightning itself loads what is left in `state_dict`."""
        for name, (_, weights) in checkpoint.get(ADAPTERS, {}).items():
            self.arms[name].load_adapter_state(weights)


class ContrastiveModule(PairedContrastiveModule):
    """Trains one embedding model; the single arm is called `model`.

    Args:
        model: The embedding model.
        seed: Seed of its dropout.
        **options: As in `PairedContrastiveModule`.
    """

    def __init__(self, model: EmbeddingModel, *, seed: int = 0, **options: Any) -> None:
        super().__init__({"model": model}, seeds={"model": seed}, **options)
