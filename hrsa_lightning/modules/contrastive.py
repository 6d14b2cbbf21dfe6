"""Contrastive training of one embedding model, or of several side by side on the same batches."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from hrsa_lightning.checkpoints import ADAPTERS
from hrsa_lightning.data import ContrastiveBatch
from hrsa_lightning.losses import InfoNCELoss
from hrsa_lightning.models.adapters import adapter_state, load_adapter_state
from hrsa_lightning.models.chunks import length_sorted_chunks
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import TokenizedTexts
from hrsa_lightning.modules.gradcache import ActivationBudget, CachedEncoding, seeded

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
        max_tokens_per_chunk: Bound on padded tokens per forward pass; queries and passages are
            sorted by length together. `None` encodes the whole batch in one pass.
        activation_budget: Bytes of activations that may be kept until the backward pass, or
            `"auto"`: the rest is computed twice (see `gradcache`). `None` keeps all, and is the
            only choice under strategies other than a single device and DDP.
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
        activation_budget: int | str | None = None,
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
        self._budget = None if activation_budget is None else ActivationBudget(activation_budget)
        self._cached: list[CachedEncoding] = []
        self._synchronize = False
        # Checkpoints carry what is trained; frozen backbones are read from where they came from.
        self.strict_loading = False

    def training_step(self, batch: ContrastiveBatch, batch_idx: int) -> Tensor:
        """Sum of the arms' losses; each arm's gradient is that of its own loss alone."""
        self._hold_back_synchronization()
        if self._budget is not None:
            self._budget.reset(self.device)
        self._cached.clear()
        losses = {name: self._arm_loss(name, batch, batch_idx) for name in self.arms}
        for name, loss in losses.items():
            self.log(f"train/loss/{name}", loss.detach(), sync_dist=True, batch_size=len(batch))
        mean = torch.stack([loss.detach() for loss in losses.values()]).mean()
        self.log("loss", mean, prog_bar=True, logger=False, sync_dist=True, batch_size=len(batch))
        return torch.stack(list(losses.values())).sum()

    def named_arms(self) -> dict[str, EmbeddingModel]:
        """The embedding models by name."""
        return {name: self._arm(name) for name in self.arms}

    def _arm(self, name: str) -> EmbeddingModel:
        return cast(EmbeddingModel, self.arms[name])

    def _arm_loss(self, name: str, batch: ContrastiveBatch, batch_idx: int) -> Tensor:
        queries, query_rows = _encode_once(batch.queries[name], batch.query_ids)
        passages, passage_rows = _encode_once(batch.passages[name], batch.passage_ids.flatten())
        embeddings = self._encode(name, TokenizedTexts.cat([queries, passages]), batch_idx)
        loss: Tensor = self.loss(
            embeddings[query_rows],
            embeddings[(passage_rows + len(queries)).view(-1, batch.group_size)],
            passage_ids=batch.passage_ids,
            query_ids=batch.query_ids,
        )
        return loss

    def _encode(self, name: str, tokens: TokenizedTexts, batch_idx: int) -> Tensor:
        """Embeddings of all texts, (texts, features), with their graphs or as cached leaves."""
        arm = self._arm(name)
        chunks = length_sorted_chunks(tokens.lengths, self.max_tokens_per_chunk or sys.maxsize)

        def encode(number: int) -> Tensor:
            embeddings: Tensor = arm(**tokens.pad(arm.tokenizer.pad_token_id, chunks[number]))
            return embeddings

        # The same numbers with and without other arms, and in any mode of computing gradients.
        key = (self.seeds[name], self.current_epoch, batch_idx, self.global_rank)
        if self._budget is None:
            outputs = []
            for number in range(len(chunks)):
                with seeded(self.device, *key, number):
                    outputs.append(encode(number))
            order = torch.argsort(torch.cat(chunks)).to(self.device)
            return torch.cat(outputs)[order]
        widths = [int(tokens.lengths[chunk].max()) for chunk in chunks]
        cached = CachedEncoding(encode, chunks, widths, key, self._budget, arm)
        self._cached.append(cached)
        return cached.embeddings

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The loss's own backward pass, then that of the cached chunks."""
        super().backward(loss, *args, **kwargs)
        if not self._cached:
            return
        context = self.trainer.precision_plugin.forward_context
        last = [cached.backward(context) for cached in self._cached]
        self._release_synchronization()
        torch.autograd.backward([output for output, _ in last], [grad for _, grad in last])
        self._cached.clear()

    def _hold_back_synchronization(self) -> None:
        """Keep DDP from averaging gradients after the first of many backward passes.

        DDP decides when `training_step` returns; Lightning has switched synchronization off
        already for all but the last batch of an accumulation, and then so it stays.
        """
        model = self.trainer.model
        self._synchronize = False
        if self._budget is not None and isinstance(model, DistributedDataParallel):
            self._synchronize = model.require_backward_grad_sync
            model.require_backward_grad_sync = False

    def _release_synchronization(self) -> None:
        """Let DDP average gradients during the next backward pass, which reaches all weights."""
        model = self.trainer.model
        if self._synchronize and isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = True
            model.reducer.prepare_for_backward([])

    def configure_optimizers(self) -> Any:
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
        for name in self.arms:
            if (state := adapter_state(self._arm(name))) is not None:
                adapters[name] = state
                trained -= {key for key in trained if key.startswith(f"arms.{name}.")}
        checkpoint[ADAPTERS] = adapters
        checkpoint["state_dict"] = {
            key: value for key, value in checkpoint["state_dict"].items() if key in trained
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters back; Lightning itself loads what is left in `state_dict`."""
        for name, (_, weights) in checkpoint.get(ADAPTERS, {}).items():
            load_adapter_state(self._arm(name), weights)


class ContrastiveModule(PairedContrastiveModule):
    """Trains one embedding model; the single arm is called `model`.

    Args:
        model: The embedding model.
        seed: Seed of its dropout.
        **options: As in `PairedContrastiveModule`.
    """

    def __init__(self, model: EmbeddingModel, *, seed: int = 0, **options: Any) -> None:
        super().__init__({"model": model}, seeds={"model": seed}, **options)


def _encode_once(tokens: Any, ids: Tensor) -> tuple[TokenizedTexts, Tensor]:
    """The distinct texts by their ids, and for each text the row of its equal among them."""
    first: dict[int, int] = {}
    rows = []
    keep: list[int] = []
    for index, text_id in enumerate(ids.tolist()):
        if text_id not in first:
            first[text_id] = len(keep)
            keep.append(index)
        rows.append(first[text_id])
    row_of_each = torch.tensor(rows, device=ids.device)
    return (tokens if len(keep) == len(rows) else tokens.select(keep)), row_of_each
