"""The LightningDataModule of contrastive training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule

from hrsa_lightning.data.collate import ContrastiveCollator, TextEncoder
from hrsa_lightning.data.loader import ContrastiveLoader
from hrsa_lightning.data.pairs import read_pairs
from hrsa_lightning.data.sampling import ContrastiveDataset, GlobalBatchSampler
from hrsa_lightning.data.sources import PairSource


class ContrastiveDataModule(LightningDataModule):
    """Contrastive pairs for one arm or several, tokenized in the loader's workers.

    The same global batches in the same order come on any number of processes, with any number of
    workers, and after a resume from any step.

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
        drop_last: bool = True,
        missing_negatives: str = "error",
        weights: Sequence[float] | None = None,
        source_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.dataset = ContrastiveDataset(
            read_pairs(train), train_group_size, seed=seed, missing_negatives=missing_negatives
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._collator = ContrastiveCollator(tokenizers, query_length, passage_length)
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
            seed=self.dataset.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
            weights=self._weights,
        )
