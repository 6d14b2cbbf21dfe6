"""How ranks share a model: when gradients are averaged, and FSDP2's sharding.

A step whose texts are encoded in chunks has one backward pass per chunk. Averaging after each would
be slow, and DDP allows it only once: it is disabled until the last pass.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp import FullyShardedDataParallel as FirstFSDP
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.distributed import gather_on_rank_zero, shard_like
from hrsa_lightning.models.embedder import EmbeddingModel


class GradientSync:
    """A single process, and any strategy that averages by itself: nothing to disable.

    Attributes:
        collective_forward: Forward passes contain collectives: every rank must run the same number.
    """

    collective_forward = False

    def disable(self) -> None:
        """Let backward passes accumulate gradients on this rank alone."""

    def enable(self) -> None:
        """Average during the next backward pass, which must reach all trained weights."""

    def max_over_ranks(self, count: int) -> int:
        """The largest count of any rank with `collective_forward`, else this rank's own."""
        return count

    def all_ranks(self, decision: bool) -> bool:
        """Whether all ranks decided so with `collective_forward`, else this rank's decision."""
        return decision


class DDPSync(GradientSync):
    """DDP arms its reducer when `training_step` returns, for the one backward pass that follows.

    Lightning has switched averaging off for all but the last batch of an accumulation, and then so
    it stays.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._wanted = False

    def disable(self) -> None:
        self._wanted = self._model.require_backward_grad_sync
        self._model.require_backward_grad_sync = False

    def enable(self) -> None:
        if self._wanted:
            self._model.require_backward_grad_sync = True
            self._model.reducer.prepare_for_backward([])


class ShardedSync(GradientSync):
    """FSDP2: layers gather their weights in every pass; gradients are scattered after the last.

    All batches of an accumulation are averaged: sharded gradients add up to the same.
    """

    collective_forward = True

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, FSDPModule)]

    def disable(self) -> None:
        self._set(False)

    def enable(self) -> None:
        self._set(True)

    def _set(self, synchronize: bool) -> None:
        for module in self._modules:
            module.set_requires_gradient_sync(synchronize, recurse=False)

    def max_over_ranks(self, count: int) -> int:
        return _reduce(count, dist.ReduceOp.MAX)

    def all_ranks(self, decision: bool) -> bool:
        return bool(_reduce(int(decision), dist.ReduceOp.MIN))


def gradient_sync(model: nn.Module) -> GradientSync:
    """How the gradients of `model`, as wrapped by its strategy, are averaged.

    Raises:
        ConfigError: By DeepSpeed or the first FSDP, which know neither several backward passes a
            step nor the gradients of one arm.
    """
    if type(model).__module__.startswith("deepspeed.") or isinstance(model, FirstFSDP):
        raise ConfigError(
            f"trainer.strategy: expected fsdp2 (`FullyShardedStrategy`) to shard weights, got the"
            f" one of {type(model).__name__}"
        )
    if isinstance(model, DistributedDataParallel):
        return DDPSync(model)
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return ShardedSync(model)
    return GradientSync()


def _reduce(value: int, operation: "dist.ReduceOp.RedOpType") -> int:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, operation)
    return int(shared)


def shard(arm: EmbeddingModel, mesh: DeviceMesh) -> None:
    """Shard an arm's weights over the ranks of a one-dimensional mesh, decoder layer by layer.

    A layer's weights are gathered for its forward and backward pass and freed afterwards, with LoRA
    and with full fine-tuning. An arm that is sharded already is left as it is.
    """
    if isinstance(arm, FSDPModule):
        return
    for layer in arm.decoder_layers.values():
        fully_shard(layer, mesh=mesh)
    # Embeddings and the last norm would otherwise stay gathered after a pass without gradients,
    # and miss what the optimizer does to them.
    fully_shard(arm, mesh=mesh, reshard_after_forward=True)


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints of full tensors written by rank 0.

    It takes any `CheckpointIO`, and its checkpoints can be resumed on any number of ranks and
    under any other strategy. Tensors are gathered one by one on rank 0; to resume, each rank reads
    its own shard of each. The module shards itself in `configure_model`.

    Args:
        **options: Of `ModelParallelStrategy`, such as `timeout`.
    """

    strategy_name = "fsdp2"

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights only, on rank 0 only: gathering frozen ones would be for nothing."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        trained = ((name, weight) for name, weight in named if weight.requires_grad)
        gathered = {name: gather_on_rank_zero(weight) for name, weight in trained}
        return {name: weight for name, weight in gathered.items() if weight is not None}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = tree_map(
            gather_on_rank_zero, super(ParallelStrategy, self).optimizer_state(optimizer)
        )
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        super(ParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return super(ParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        weights = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            weights[name].detach().copy_(shard_like(value, weights[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {
                    name: shard_like(value, parameters[number]) for name, value in of_one.items()
                }
                for number, of_one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})
