"""The LightningDataModule of contrastive training, and its loader, which resumes in an epoch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from hrsa_lightning.data.collate import (
    ArmBatches,
    ContrastiveBatch,
    ContrastiveCollator,
    TextEncoder,
)
from hrsa_lightning.data.pairs import PairSource, read_pairs
from hrsa_lightning.data.sampling import ContrastiveDataset, GlobalBatchSampler
from hrsa_lightning.errors import DataError


class ContrastiveLoader:
    """Iterate over this rank's batches of the sampler's epoch: a `ContrastiveBatch` for all arms.

    With a sampler of several seeds they are `ArmBatches`, which hold one for each order.

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

    def __iter__(self) -> Iterator[ContrastiveBatch | ArmBatches]:
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
        seeds = self.sampler.seeds
        return {
            "seed": seeds if len(seeds) > 1 else seeds[0],
            "batch_size": self.sampler.batch_size,
            "examples": list(self.sampler.sizes),
            "drop_last": self.sampler.drop_last,
            "weights": self.sampler.weights,
        }


class ContrastiveDataModule(LightningDataModule):
    """Contrastive pairs for one arm or several, tokenized in the loader's workers.

    Arms of one seed see the same batches; an arm with a seed of its own has its own order and its
    own passages, those of a run with this seed. The same global batches in the same order come on
    any number of processes, with any number of workers, and after a resume from any step.

    Args:
        train: Sources of pairs, or paths of them as `read_pairs` takes. A batch comes from one of
            them wherever possible.
        tokenizers: One per arm; arms of equal tokenizers are tokenized for once.
        batch_size: Queries in a batch, over all processes.
        train_group_size: Passages per query: a positive, then hard negatives.
        query_length: Most tokens of a query, instruction included.
        passage_length: Most tokens of a passage.
        num_workers: Processes, per rank, that read and tokenize ahead.
        seed: Decides the order of examples and the passages drawn for them.
        seeds: Seeds of arms that are not to have `seed`.
        drop_last: Leave out what does not fill a batch; else fill the last one up with examples
            that were already used in the epoch.
        missing_negatives: "error", or "drop" to leave out examples without hard negatives.
        weights: How often batches come from each source, see `GlobalBatchSampler`.
        source_temperature: Takes sizes to the power of its inverse as weights: 1 is in proportion
            to sizes, and a large one is nearly alike for all. Excludes `weights`.

    Raises:
        DataError: If the pairs cannot be read, or are fewer than one batch takes.
    """

    def __init__(
        self,
        train: Sequence[str | Path | PairSource],
        tokenizers: Mapping[str, TextEncoder],
        batch_size: int = 512,
        train_group_size: int = 4,
        query_length: int = 512,
        passage_length: int = 512,
        num_workers: int = 0,
        seed: int = 0,
        seeds: Mapping[str, int] | None = None,
        drop_last: bool = True,
        missing_negatives: str = "error",
        weights: Sequence[float] | None = None,
        source_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.dataset = ContrastiveDataset(
            read_pairs(train), train_group_size, missing_negatives=missing_negatives
        )
        of_arms = {name: (seeds or {}).get(name, seed) for name in tokenizers}
        self.seeds = list(dict.fromkeys(of_arms.values()))
        orders = {name: self.seeds.index(own) for name, own in of_arms.items()}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._collator = ContrastiveCollator(tokenizers, query_length, passage_length, orders)
        self._loader: ContrastiveLoader | None = None
        self._weights = weights
        if source_temperature is not None:
            self._weights = [size ** (1 / source_temperature) for size in self.dataset.sizes]
        self._sampler(rank=0, world_size=1)  # answers a batch size that cannot be had at once

    def train_dataloader(self) -> ContrastiveLoader:
        """Batches for this process of the trainer, or for a single process without a trainer.

        Raises:
            DataError: If `batch_size` does not split evenly over the trainer's processes.
        """
        trainer = self.trainer
        sampler = self._sampler(
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        # A trainer that is to overfit a few batches stops the shuffling of a `DataLoader`.
        sampler.repeats_epoch = getattr(trainer, "overfit_batches", 0) > 0
        self._loader = ContrastiveLoader(
            self.dataset,
            sampler,
            self._collator,
            num_workers=self.num_workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )
        return self._loader

    def teardown(self, stage: str) -> None:
        """Stop the workers when training ends."""
        if stage == "fit" and self._loader is not None:
            self._loader.close()
            self._loader = None

    def _sampler(self, rank: int, world_size: int) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            self.dataset.sizes,
            self.batch_size,
            seed=self.seeds,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
            weights=self._weights,
        )
