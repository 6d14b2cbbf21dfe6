"""Exact large-batch gradients in bounded memory: GradCache with a budget for kept graphs.

A contrastive loss needs the embeddings of the whole batch at once, but not their graphs. The texts
are encoded in chunks; the loss's gradient with respect to the embeddings is then fed back into one
chunk after the other. A chunk's graph is kept from the first pass while the budget lasts, and is
computed again otherwise, under the same random numbers. Budget 0 is GradCache (Gao et al. 2021,
arXiv 2101.06983), no limit is a plain step; the gradients are the same.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hrsa_lightning.models.chunks import AUTO_SHARE


class ActivationBudget:
    """How many bytes of saved activations may be kept between the two passes.

    The bytes of a chunk are measured on the first one (the widest) and taken to grow with its
    padded tokens, which overestimates narrower chunks.

    Args:
        limit: Bytes; 0 keeps nothing; `"auto"` takes half of what is free at the first step, in
            the device's memory or, divided by its processes, in the computer's, once gradients and
            optimizer state have their room.
        agree: Makes ranks decide alike where they have to, see `GradientSync`.

    Raises:
        ValueError: `limit` is negative or an unknown word.
    """

    def __init__(self, limit: int | str, agree: Callable[[bool], bool] = bool) -> None:
        if limit != "auto" and not (isinstance(limit, int) and limit >= 0):
            raise ValueError(f"activation_budget: expected bytes or 'auto', got {limit!r}")
        self.limit = limit
        self.agree = agree
        self._bytes_per_token = 0.0
        self._widest = 0
        self._spent = 0.0

    def reset(
        self,
        device: torch.device,
        num_processes: int = 1,
        optimizers: Iterable[torch.optim.Optimizer] = (),
    ) -> None:
        """Start anew: nothing is kept.

        Args:
            device: Where activations are.
            num_processes: How many train on this computer, each with a budget of its own.
            optimizers: `"auto"` leaves room for their gradients and moments.
        """
        self._spent = 0.0
        if isinstance(self.limit, str):
            sharing = num_processes if device.type == "cpu" else 1
            left = free_memory(device) / sharing - bytes_to_come(optimizers)
            self.limit = max(0, int(AUTO_SHARE * left))

    @contextmanager
    def admit(self, num_tokens: int, width: int, parameters: Sequence[Tensor]) -> Iterator[bool]:
        """Decide whether a chunk's graph may be kept, and account for it.

        A chunk wider than any before is measured: attention may save more per token there.
        """
        assert isinstance(self.limit, int)
        if self.limit == 0 or not self.agree(
            self._spent + num_tokens * self._bytes_per_token <= self.limit
        ):
            yield False
        elif width <= self._widest:
            self._spent += num_tokens * self._bytes_per_token
            yield True
        else:
            with _saved_bytes(parameters) as saved:
                yield True
            self._widest = width
            self._bytes_per_token = max(self._bytes_per_token, sum(saved.values()) / num_tokens)
            self._spent += sum(saved.values())


class CachedEncoding:
    """Embeddings of one batch of texts whose gradient is propagated chunk by chunk.

    Args:
        encode: Maps a chunk's number to its embeddings, (texts of the chunk, features).
        sizes: Texts of each chunk.
        widths: Padded width of each chunk, in tokens.
        seed: Key of the random numbers; each chunk adds its number.
        budget: Which graphs are kept.
        module: The module that `encode` runs, for its device and its weights.

    Attributes:
        embeddings: (texts, features), one chunk after the other, a leaf: call `backward` once its
            gradient is there.
    """

    def __init__(
        self,
        encode: Callable[[int], Tensor],
        sizes: Sequence[int],
        widths: Sequence[int],
        seed: tuple[int, ...],
        budget: ActivationBudget,
        module: nn.Module,
    ) -> None:
        self._encode = encode
        self._ends = list(accumulate(sizes))
        self._seed = seed
        self._parameters = list(module.parameters())
        self._device = self._parameters[0].device
        self._kept: dict[int, Tensor] = {}
        self._casts_have_graphs = False
        # One block: small ones that stay, among large ones that come and go, scatter the memory.
        rows: Tensor | None = None
        for number, (size, width) in enumerate(zip(sizes, widths, strict=True)):
            with budget.admit(size * width, width, self._parameters) as keep:
                output = self._run(number, keep)
            if keep:
                self._kept[number] = output
            if rows is None:
                rows = output.new_empty(self._ends[-1], *output.shape[1:])
            rows[self._ends[number] - size : self._ends[number]] = output.detach()
            del output
        assert rows is not None
        self.embeddings = rows.requires_grad_()

    def backward(self, context: Callable[[], AbstractContextManager[object]]) -> "Pending":
        """Propagate all chunks but the last, which is returned ready to go."""
        for number in range(len(self._ends) - 1):
            pending = self._pending(number, context)
            torch.autograd.backward([pending[0]], [pending[1]])
        return self._pending(len(self._ends) - 1, context)

    def _pending(
        self, number: int, context: Callable[[], AbstractContextManager[object]]
    ) -> "Pending":
        output = self._kept.pop(number, None)
        if output is None:
            with context():
                output = self._run(number, True)
        assert self.embeddings.grad is not None
        end = self._ends[number]
        return output, self.embeddings.grad[end - len(output) : end]

    def _run(self, number: int, with_graph: bool) -> Tensor:
        # Autocast caches weights that were cast without a graph, and would use them with one. Casts
        # with a graph stay: all kept chunks share one copy of the weights.
        if with_graph and not self._casts_have_graphs:
            torch.clear_autocast_cache()
        self._casts_have_graphs = with_graph
        with torch.set_grad_enabled(with_graph), seeded(self._device, *self._seed, number):
            return self._encode(number)


Pending = tuple[Tensor, Tensor]
"""A chunk's embeddings with their graph, and the gradient to start from."""


def bytes_to_come(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of gradients and of Adam's two moments that do not exist yet.

    Under FSDP2 gradients stay whole until the last backward pass of a step, while moments are
    sharded as the weights are.
    """
    total = 0
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            sharded = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            total += parameter.nbytes if parameter.grad is None else 0
            total += 0 if optimizer.state.get(parameter) else 2 * sharded.nbytes
    return total


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device (PyTorch's own reserve included), else in memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    return int(psutil.virtual_memory().available)


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Random numbers that depend on `key` alone, on the CPU and `device`; undone afterwards."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(digest, "little", signed=True))
        yield


@contextmanager
def _saved_bytes(parameters: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves meanwhile, the weights themselves left out.

    Weights that FSDP2 gathers for a while are counted, though it lets them go: the estimate is then
    too high, and fewer graphs are kept.
    """
    own = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    weights = {parameter.untyped_storage().data_ptr() for parameter in own}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved
