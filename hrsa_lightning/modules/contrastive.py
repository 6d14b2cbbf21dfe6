"""Contrastive training of one embedding model, or of several side by side."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from hrsa_lightning.data import ArmBatches, ContrastiveBatch
from hrsa_lightning.errors import DataError, HRSAWarning
from hrsa_lightning.losses import InfoNCELoss
from hrsa_lightning.models.chunks import length_sorted_chunks, restore_order
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.lora import adapter_state, load_adapter_state
from hrsa_lightning.models.tokenization import TokenizedTexts
from hrsa_lightning.modules.alignment import REFERENCE, Alignment
from hrsa_lightning.modules.checkpoints import ADAPTERS
from hrsa_lightning.modules.deferred_gradients import DeferredGradients
from hrsa_lightning.modules.gradcache import ActivationBudget, CachedEncoding, seeded
from hrsa_lightning.modules.gradient_sync import GradientSync, gradient_sync, shard
from hrsa_lightning.modules.throughput import Throughput

_SCHEDULES = {
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


_CURRENT = "current_model_state"
"""Key under which Lightning's `WeightAveraging` leaves the weights that are trained."""


class PairedContrastiveModule(LightningModule):
    """Trains arms side by side, each as if it were alone.

    The arms share nothing but the data, one batch for all of them or `ArmBatches`: every arm has
    its own weights, its own parameter groups (AdamW works per parameter), its own gradient-norm
    clipping and its own stream of random numbers for dropout, drawn from (arm seed, epoch, batch,
    rank). An arm therefore ends with the same
    weights, to the bit, whether others are trained beside it or not. Where the strategy allows it
    (one device, DDP), an arm's backward pass runs before the next arm's forward pass, so that
    activations of one arm at a time take memory.

    Args:
        arms: The embedding models by name.
        loss: Of query and passage embeddings and their ids, as `InfoNCELoss` takes them.
        regularizer: Of all local embeddings and the number of the optimizer step, such as
            `SIGRegLoss`; added to the loss.
        regularizer_weight: What the regularizer is multiplied with.
        alignment: Pulls the arms towards a reference or pushes them away from it; added to the
            loss. With another arm as the reference an arm no longer trains as if it were alone.
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
            `"auto"`: the rest is computed twice (see `gradcache`). `None` keeps all.
    """

    def __init__(
        self,
        arms: Mapping[str, EmbeddingModel],
        *,
        loss: nn.Module | None = None,
        regularizer: nn.Module | None = None,
        regularizer_weight: float = 1.0,
        alignment: Alignment | None = None,
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
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.alignment = alignment
        self.seeds = {name: (seeds or {}).get(name, 0) for name in arms}
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.max_tokens_per_chunk = max_tokens_per_chunk
        self._budget = None if activation_budget is None else ActivationBudget(activation_budget)
        self._sync = GradientSync()
        self._cached: list[CachedEncoding] = []
        self._deferred = DeferredGradients()
        self._throughput = Throughput()
        self._broken = torch.zeros(len(arms), dtype=torch.bool)  # whether a loss was not finite
        self._broken_step: int | None = None
        # Checkpoints carry what is trained; frozen backbones are read from where they came from.
        self.strict_loading = False

    def configure_model(self) -> None:
        """Shard every arm over the ranks where the strategy asks for it (FSDP2)."""
        if self.device_mesh is not None:
            frozen = self.alignment.frozen_models() if self.alignment else []
            for model in [*self.named_arms().values(), *frozen]:
                shard(model, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Find out how this strategy averages gradients.

        Raises:
            ConfigError: The strategy shards weights in another way than FSDP2.
        """
        assert self.trainer.model is not None
        self._sync = gradient_sync(self.trainer.model)
        if self._budget is not None:
            self._budget.agree = self._sync.all_ranks

    def training_step(self, batch: ContrastiveBatch | ArmBatches, batch_idx: int) -> Tensor:
        """Sum of the arms' losses; each arm's gradient is that of its own loss alone."""
        one_by_one = len(self.arms) > 1 and not self._sync.collective_forward
        if self._budget is not None or one_by_one:
            self._sync.disable()
        self._cached.clear()
        self._throughput.start_step()
        losses: dict[str, Tensor] = {}
        for name in self.alignment.order(self.named_arms()) if self.alignment else self.arms:
            if self._budget is not None and (one_by_one or not losses):
                self._budget.reset(self.device, self.trainer.num_devices, self.trainer.optimizers)
            loss = self._arm_loss(name, batch, batch_idx)
            losses[name] = loss.detach() if one_by_one else loss
            if one_by_one:
                with self._deferred.capture(self._arm(name), self._loss_scale()) as backward:
                    backward(loss)
                    self._backward_cached()
        losses = {name: losses[name] for name in self.arms}
        self._log_step(len(batch), losses)
        total = torch.stack(list(losses.values())).sum()
        return self._deferred.loss(total) if one_by_one else total

    def _log_step(self, num_queries: int, losses: Mapping[str, Tensor]) -> None:
        """Log means over ranks, exchanged in one collective and without waiting for the device."""
        loss_of_arms = torch.stack([loss.detach().float() for loss in losses.values()])
        throughput = self._throughput.values(self.device, self.trainer.world_size)
        # Their dtype is said, since megabytes and rates have more digits than 16 bits hold.
        measured = torch.tensor(list(throughput.values()), dtype=torch.float32)
        values = torch.cat([loss_of_arms, measured.to(self.device, non_blocking=True)])
        values = self.trainer.strategy.reduce(values, reduce_op="mean")
        self._watch_losses(values[: len(losses)])
        names = [*(f"loss/{name}" for name in losses), *throughput]
        for name, value in zip(names, values, strict=True):
            self.log(f"train/{name}", value, batch_size=num_queries)
        # Not with `prog_bar`: Lightning reads such values in every step, on every rank.
        mean = values[: len(losses)].mean()
        self.log("loss", mean, logger=False, batch_size=num_queries)

    def _watch_losses(self, losses: Tensor) -> None:
        """Warn once of a loss that is not finite, at the next step whose values are logged.

        Only there, since reading a value waits for the device, as the logger does then.
        """
        self._broken = losses.isfinite().logical_not() | self._broken.to(losses.device)
        step = self.trainer.global_step + 1
        rhythm = max(1, getattr(self.trainer, "log_every_n_steps", 1))
        waits = self.device.type != "cpu" and step % rhythm
        if self._broken_step is None and not waits and bool(self._broken.any()):
            self._broken_step = step
            self._warn_of_losses(f"not finite at step {step}; weights of it are lost from there on")

    def on_train_end(self) -> None:
        """Say again, where a long run is read, that a loss was not finite."""
        if self._broken_step is not None:
            self._warn_of_losses(f"not finite from step {self._broken_step} on; discard this run")

    def _warn_of_losses(self, what: str) -> None:
        arms = [name for name, bad in zip(self.arms, self._broken.tolist(), strict=True) if bad]
        cure = "a smaller optimizer.lr, or trainer.gradient_clip_val, may help"
        if self.trainer.is_global_zero:
            warnings.warn(f"loss of {', '.join(arms)}: {what} ({cure})", HRSAWarning, stacklevel=2)

    def _loss_scale(self) -> Tensor | float:
        """What mixed precision with float16 multiplies losses with, against underflow."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device))

    def named_arms(self) -> dict[str, EmbeddingModel]:
        """The embedding models by name."""
        return {name: self._arm(name) for name in self.arms}

    def encoders(self) -> dict[str, EmbeddingModel]:
        """Models that a batch has tokens for: the arms, and a reference with its own tokenizer."""
        model = self.alignment.model if self.alignment else None
        return self.named_arms() | ({} if model is None else {REFERENCE: model})

    def _arm(self, name: str) -> EmbeddingModel:
        return cast(EmbeddingModel, self.arms[name])

    def _arm_loss(
        self, name: str, batches: ContrastiveBatch | ArmBatches, batch_idx: int
    ) -> Tensor:
        batch = batches.of(name)
        embeddings = self._encode(name, _texts(batch, name), batch_idx)
        query_embeddings, passage_embeddings = _rows(batch, embeddings)
        loss: Tensor = self.loss(
            query_embeddings,
            passage_embeddings.view(len(batch), batch.group_size, -1),
            batch.document_ids,
            batch.query_ids,
        )
        if self.regularizer is None and self.alignment is None:
            return loss
        everything = torch.cat([query_embeddings, passage_embeddings])
        if self.regularizer is not None:
            loss = loss + self.regularizer_weight * self.regularizer(
                everything, self.trainer.global_step
            )
        if self.alignment is not None:

            def encode(model: EmbeddingModel, tokens: str) -> Tensor:
                texts = _texts(batch, tokens)
                chunks, passes = self._chunks(texts.lengths)
                outputs = [model.encode_chunk(texts, some) for some in passes]
                return torch.cat(_rows(batch, restore_order(outputs, chunks)))

            other = self.alignment.arm
            shared = other is None or batches.of(other) is batch
            live = None if other is None or shared else self._arm(other)
            loss = loss + self.alignment(name, self._arm(name), everything, encode, live)
        return loss

    def _encode(self, name: str, tokens: TokenizedTexts, batch_idx: int) -> Tensor:
        """Embeddings of all texts, (texts, features), with their graphs or as cached leaves."""
        arm = self._arm(name)
        chunks, passes = self._chunks(tokens.lengths)
        self._throughput.count(tokens.lengths, passes)

        def encode(number: int) -> Tensor:
            return arm.encode_chunk(tokens, passes[number])

        # The same numbers with and without other arms, and in any mode of computing gradients.
        key = (self.seeds[name], self.current_epoch, batch_idx, self.global_rank)
        if self._budget is None:
            outputs = []
            for number in range(len(passes)):
                with seeded(self.device, *key, number):
                    outputs.append(encode(number))
            return restore_order(outputs, chunks)
        sizes = [len(texts) for texts in passes]
        widths = [int(tokens.lengths[texts].max()) for texts in passes]
        cached = CachedEncoding(encode, sizes, widths, key, self._budget, arm)
        self._cached.append(cached)
        return restore_order([cached.embeddings], chunks)

    def _chunks(self, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Chunks of texts, and those of all forward passes.

        Where forward passes contain collectives, every rank has as many of them: a rank with too
        few texts for as many chunks encodes its last one again.
        """
        max_tokens = self.max_tokens_per_chunk or sys.maxsize
        chunks = length_sorted_chunks(lengths, max_tokens)
        wanted = self._sync.max_over_ranks(len(chunks))
        if wanted > len(chunks):
            chunks = length_sorted_chunks(lengths, max_tokens, wanted)
        return chunks, chunks + chunks[-1:] * (wanted - len(chunks))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The loss's own backward pass, then that of the cached chunks."""
        if not self._cached:
            self._sync.enable()
        super().backward(loss, *args, **kwargs)
        self._backward_cached(enable_sync=self._sync.enable)

    def _backward_cached(self, enable_sync: Callable[[], None] = lambda: None) -> None:
        """Backward pass of all cached chunks; ranks may average during the last of each arm."""
        if not self._cached:
            return
        context = self.trainer.precision_plugin.forward_context
        last = [cached.backward(context) for cached in self._cached]
        enable_sync()
        torch.autograd.backward([output for output, _ in last], [grad for _, grad in last])
        self._cached.clear()

    def configure_optimizers(self) -> Any:
        """AdamW with two parameter groups per arm (decayed or not) and one schedule for all."""
        groups = [group for name in self.arms for group in self._parameter_groups(name)]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
        total = int(self.trainer.estimated_stepping_batches)
        # To count steps by epochs, Lightning makes the loader, before it knows of a checkpoint's
        # place in the data, and keeps it. It has to make another one.
        self.trainer.fit_loop._combined_loader = None
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
        """Keep trained weights only: adapters in peft's form, other trained tensors as they are.

        Where weights are averaged, `state_dict` and the adapters are the average.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]  # full tensors; under FSDP2 on rank 0 only
        if (current := checkpoint.get(_CURRENT)) is not None:
            checkpoint[_CURRENT] = {key: value for key, value in current.items() if key in trained}
        adapters = {}
        for name in self.arms:
            prefix = f"arms.{name}.backbone."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if (adapter := adapter_state(self._arm(name).backbone, own)) is not None:
                adapters[name] = adapter
                trained -= {key for key in trained if key.startswith(f"arms.{name}.")}
        checkpoint[ADAPTERS] = adapters
        checkpoint["state_dict"] = {key: value for key, value in state.items() if key in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters back; Lightning itself loads what is left in `state_dict`."""
        adapters = checkpoint.get(ADAPTERS, {})
        for name, arm in self.named_arms().items():
            if name in adapters:
                load_adapter_state(arm.backbone, adapters[name][1])
            elif adapter_state(arm.backbone) is not None:
                raise DataError(f"the checkpoint has no adapter of arm {name!r}")
        if (current := checkpoint.get(_CURRENT)) is not None:  # both of them are asked to be whole
            average = self.state_dict() | checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint[_CURRENT] = average, average | current


def _texts(batch: ContrastiveBatch, name: str) -> TokenizedTexts:
    """Distinct queries, then distinct passages, as a model reads them."""
    return TokenizedTexts.cat(cast(tuple[TokenizedTexts, TokenizedTexts], batch.tokens(name)))


def _rows(batch: ContrastiveBatch, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(queries, features) and (all passages, features) from those of the distinct texts."""
    num_queries = len(embeddings) - len(cast(TokenizedTexts, batch.passages[0]))
    passage_rows = batch.passage_rows.flatten() + num_queries
    return embeddings[batch.query_rows], embeddings[passage_rows]


class ContrastiveModule(PairedContrastiveModule):
    """Trains one embedding model; the single arm is called `model`.

    Args:
        model: The embedding model.
        seed: Seed of its dropout.
        **options: As in `PairedContrastiveModule`.
    """

    def __init__(self, model: EmbeddingModel, *, seed: int = 0, **options: Any) -> None:
        super().__init__({"model": model}, seeds={"model": seed}, **options)
