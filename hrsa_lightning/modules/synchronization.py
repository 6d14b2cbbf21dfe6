"""When ranks average gradients in a step of several backward passes, under each kind of strategy.

A step whose texts are encoded in chunks has one backward pass per chunk. Averaging after each would
be slow, and DDP allows it only once: it is held back until the last pass.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


class GradientSync:
    """A single process, and any strategy that averages by itself: nothing to hold back.

    Attributes:
        lockstep: Ranks communicate within forward passes, so that all need as many of them.
        deferrable: `hold_back` and `release` work, so that a step may have several backward passes.
    """

    lockstep = False
    deferrable = True

    def hold_back(self) -> None:
        """Let backward passes add up gradients on this rank alone."""

    def release(self) -> None:
        """Average during the next backward pass, which has to reach all trained weights."""

    def at_most(self, count: int) -> int:
        """The largest count of any rank where ranks go in lockstep, else this rank's own."""
        return count

    def all_agree(self, decision: bool) -> bool:
        """Whether all ranks decided so where they go in lockstep, else this rank's own decision."""
        return decision


class UndeferrableSync(GradientSync):
    """A strategy with a backward pass of its own, such as DeepSpeed: one pass a step."""

    deferrable = False


class DDPSync(GradientSync):
    """DDP arms its reducer when `training_step` returns, for the one backward pass that follows.

    Lightning has switched averaging off for all but the last batch of an accumulation, and then so
    it stays.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._wanted = False

    def hold_back(self) -> None:
        self._wanted = self._model.require_backward_grad_sync
        self._model.require_backward_grad_sync = False

    def release(self) -> None:
        if self._wanted:
            self._model.require_backward_grad_sync = True
            self._model.reducer.prepare_for_backward([])


class ShardedSync(GradientSync):
    """FSDP2: layers fetch their weights in every pass, and gradients are scattered after the last.

    All batches of an accumulation are averaged: sharded gradients add up to the same.
    """

    lockstep = True

    def __init__(self, model: nn.Module) -> None:
        self._parts = [part for part in model.modules() if isinstance(part, FSDPModule)]

    def hold_back(self) -> None:
        self._set(False)

    def release(self) -> None:
        self._set(True)

    def _set(self, synchronize: bool) -> None:
        for part in self._parts:
            part.set_requires_gradient_sync(synchronize, recurse=False)

    def at_most(self, count: int) -> int:
        return _reduce(count, dist.ReduceOp.MAX)

    def all_agree(self, decision: bool) -> bool:
        return bool(_reduce(int(decision), dist.ReduceOp.MIN))


def gradient_sync(model: nn.Module) -> GradientSync:
    """How gradients of `model`, as the strategy has wrapped it, are averaged."""
    if isinstance(model, DistributedDataParallel):
        return DDPSync(model)
    if any(isinstance(part, FSDPModule) for part in model.modules()):
        return ShardedSync(model)
    if type(model).__module__.startswith("deepspeed."):
        return UndeferrableSync()
    return GradientSync()


def _reduce(value: int, operation: "dist.ReduceOp.RedOpType") -> int:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, operation)
    return int(shared)
