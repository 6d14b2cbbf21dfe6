"""Weights, gradients and optimizer state shared out over the ranks by PyTorch's FSDP2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from hrsa_lightning.distributed import shared_out, whole
from hrsa_lightning.models.embedder import EmbeddingModel


def shard(arm: EmbeddingModel, mesh: DeviceMesh) -> None:
    """Share an arm's weights out over the ranks of a one-dimensional mesh, decoder layer by layer.

    A layer's weights are gathered for its forward and backward pass and then let go. It works the
    same with LoRA and with full fine-tuning. An arm that is sharded already is left as it is.
    """
    if isinstance(arm, FSDPModule):
        return
    for layer in arm.decoder_layers.values():
        fully_shard(layer, mesh=mesh)
    # Embeddings and the last norm would otherwise stay gathered after a pass without gradients,
    # and miss what the optimizer does to them.
    fully_shard(arm, mesh=mesh, reshard_after_forward=True)


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints of whole tensors written by rank 0.

    It takes any `CheckpointIO`, and its checkpoints can be resumed on any number of ranks and
    under any other strategy. The module shards itself in `configure_model`.

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
        """Trained weights only: gathering frozen ones would be for nothing."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        return {name: whole(weight) for name, weight in named if weight.requires_grad}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = tree_map(
            whole, super(ParallelStrategy, self).optimizer_state(optimizer)
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
            weights[name].detach().copy_(shared_out(value, weights[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {
                    name: shared_out(value, parameters[number]) for name, value in of_one.items()
                }
                for number, of_one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})
