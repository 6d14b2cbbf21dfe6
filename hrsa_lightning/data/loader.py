"""A training loader that knows its place in the epoch and can take it up again."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from hrsa_lightning.data.collate import ContrastiveBatch, ContrastiveCollator
from hrsa_lightning.data.sampling import ContrastiveDataset, GlobalBatchSampler
from hrsa_lightning.errors import DataError


class ContrastiveLoader:
    """Iterate over this rank's `ContrastiveBatch`es of the sampler's epoch.

    It is deliberately no `DataLoader`: Lightning would replace the sampler of one under a
    distributed strategy, and ours already gives each rank its share. Lightning sees an iterable of
    known length whose `sampler` has an epoch, and saves and restores `state_dict` with every
    checkpoint. The state is the number of batches handed out, not those that workers prefetched; it
    is the same on every rank, and valid for another number of workers or processes.

    Args:
        dataset: Where examples are drawn from.
        sampler: Decides which, and in what order.
        collator: Tokenizes them, in the workers if there are any.
        num_workers: Processes that read and tokenize ahead; 0 does it in the training process.
        pin_memory: Copy batches to page-locked memory, for faster transfer to CUDA devices.
    """

    def __init__(
        self,
        dataset: ContrastiveDataset,
        sampler: GlobalBatchSampler,
        collator: ContrastiveCollator,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = sampler
        self._epoch = 0
        self._handed_out = 0  # of the batches of `_epoch`
        self._resuming = False
        self._batches: DataLoader[Any] | None = DataLoader(
            cast(Dataset[Any], dataset),
            batch_sampler=cast(Any, sampler),
            collate_fn=collator,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # A DataLoader draws a seed for its workers at each start. From the global generator
            # that draw would shift dropout after a resume.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[ContrastiveBatch]:
        # Being a generator, this runs from the first `next` on: Lightning makes the iterator before
        # it sets the epoch.
        assert self._batches is not None, "the loader is closed"
        if not self._resuming or self._epoch != self.sampler.epoch:
            self._handed_out = 0
        self._resuming = False
        self._epoch = self.sampler.epoch
        self.sampler.first_batch = self._handed_out
        for batch in self._batches:
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and what must be unchanged for it to mean the same batches."""
        return {
            "epoch": self._epoch,
            "batches": self._handed_out,
            "order": self._order(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were handed out when `state` was taken.

        Raises:
            DataError: If the data, the seed or the batch size are not those of the checkpoint.
        """
        changed = [
            f"{name} was {state['order'].get(name)} and is {value}"
            for name, value in self._order().items()
            if state["order"].get(name) != value
        ]
        if changed:
            raise DataError(
                f"the checkpoint's place in the data means nothing here: {'; '.join(changed)}"
            )
        self._epoch = state["epoch"]
        self._handed_out = state["batches"]
        self._resuming = True
        self.sampler.set_epoch(self._epoch)

    def close(self) -> None:
        """Stop the workers."""
        self._batches = None

    def _order(self) -> dict[str, Any]:
        return {
            "seed": self.sampler.seed,
            "batch_size": self.sampler.batch_size,
            "examples": list(self.sampler.sizes),
            "drop_last": self.sampler.drop_last,
            "weights": self.sampler.weights,
        }
