"""Which examples make up each batch, and which passages stand beside each query. Imports no torch.

Every draw comes from a generator of its own, seeded by what it is for: the order of an epoch by
(seed, epoch), the passages of an example by (seed, epoch, example). Nothing depends on the number
of processes or workers, nor on what was drawn before, and no global generator is touched.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.data.pairs import PairSource, read_pairs
from hrsa_lightning.errors import DataError, HRSAWarning
from hrsa_lightning.io.pairs import Query

Key = tuple[int, int, int]
"""(seed, epoch, example): what a `ContrastiveDataset` is indexed with."""

# Keeps the streams of one seed apart.
_ORDER, _LEFTOVERS, _BATCHES, _PASSAGES, _ROUNDS = range(5)


@dataclass(frozen=True, slots=True)
class ContrastiveExample:
    """A query and its group of passages, the positive first, then hard negatives.

    Attributes:
        query: A text, or an instruction and a text.
        passages: `train_group_size` texts.
        document_ids: Of each passage, the document; `None` where it is unknown. Empty where no pair
            names one.
    """

    query: Query
    passages: tuple[str, ...]
    document_ids: tuple[str | None, ...] = ()


class ContrastiveDataset:
    """Examples of all sources under one numbering, with passages drawn anew in each epoch.

    Each example has `train_group_size` passages: one of its positives at random, then hard
    negatives at random without repetition; where there are too few, all are used before any is
    repeated. Indexed with (seed, epoch, example), which alone decide the passages.

    Args:
        sources: What `read_pairs` returned.
        train_group_size: Passages per query: 1 for in-batch negatives alone.
        missing_negatives: What to do about examples without hard negatives when the group needs
            some: "error", or "drop" to leave them out with a warning that counts them.

    Raises:
        DataError: If examples without negatives are there and not to be dropped, or if no example
            is left.
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        train_group_size: int = 4,
        missing_negatives: str = "error",
    ) -> None:
        if train_group_size < 1:
            raise DataError(f"train_group_size must be at least 1, got {train_group_size}")
        if missing_negatives not in ("error", "drop"):
            raise DataError(
                f'missing_negatives must be "error" or "drop", got {missing_negatives!r}'
            )
        self.train_group_size = train_group_size
        self._sources = list(sources)
        # None stands for "all rows", which is the rule and costs no memory.
        self._rows: list[NDArray[np.int64] | None] = [None] * len(self._sources)
        if train_group_size > 1:
            self._leave_out_rows_without_negatives(missing_negatives)
        self.sizes = [
            len(source) if rows is None else len(rows)
            for source, rows in zip(self._sources, self._rows, strict=True)
        ]
        self._ends = np.cumsum(self.sizes)
        if not len(self):
            raise DataError("no example is left to train on")

    def _leave_out_rows_without_negatives(self, missing_negatives: str) -> None:
        bare = {
            number: int((source.negative_counts == 0).sum())
            for number, source in enumerate(self._sources)
            if not source.negative_counts.all()
        }
        if not bare:
            return
        where = {
            number: f"{count} of {len(self._sources[number])} in {self._sources[number].name}"
            for number, count in bare.items()
        }
        refused = [
            where[number]
            for number, count in bare.items()
            if count == len(self._sources[number])  # nothing of it would be left
            or (
                getattr(self._sources[number], "entry", PairEntry("-")).negatives
                or missing_negatives
            )
            == "error"
        ]
        if refused:
            raise DataError(
                f"train_group_size={self.train_group_size} needs hard negatives, but examples have "
                f"none: {', '.join(refused)}\n  mine some, or use train_group_size=1, or "
                'missing_negatives="drop" to leave out such examples of a source that has others'
            )
        dropped = ", ".join(where.values())
        warnings.warn(f"dropped examples without negatives: {dropped}", HRSAWarning, stacklevel=4)
        for number in bare:
            self._rows[number] = np.flatnonzero(self._sources[number].negative_counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def source_of(self, example: int) -> int:
        """Number of the source that holds an example."""
        return int(np.searchsorted(self._ends, example, side="right"))

    def __getitem__(self, key: Key) -> ContrastiveExample:
        seed, epoch, example = key
        number = self.source_of(example)
        rows = self._rows[number]
        row = example - (int(self._ends[number]) - self.sizes[number])
        pair = self._sources[number][row if rows is None else int(rows[row])]
        rng = np.random.default_rng([seed, _PASSAGES, epoch, example])
        positive = rng.integers(len(pair.positives))
        num_negatives = self.train_group_size - 1
        negatives = np.resize(rng.permutation(len(pair.negatives)), num_negatives)
        texts = (pair.positives[positive], *(pair.negatives[index] for index in negatives))
        if not pair.positive_ids and not pair.negative_ids:
            return ContrastiveExample(pair.query, texts)
        ids = (
            pair.positive_ids[positive] if pair.positive_ids else None,
            *(pair.negative_ids[index] if pair.negative_ids else None for index in negatives),
        )
        return ContrastiveExample(pair.query, texts, ids)


class GlobalBatchSampler:
    """Batches of example keys: every rank takes its slice of the same sequence of global batches.

    A global batch comes from one source wherever possible. What each source has left over from
    whole batches is mixed, and makes up the last batches of the epoch. The sequence is fixed by
    (`seed`, epoch); rank `r` of `w` takes the `r`-th of `w` equal, contiguous slices of each batch.
    With several seeds there are as many sequences side by side, and the slices of their batches
    come one after the other.

    Args:
        sizes: Number of examples of each source.
        batch_size: Queries in a global batch, over all ranks.
        seed: With the epoch, decides the order; several seeds give as many orders.
        rank: This process.
        world_size: Number of processes.
        drop_last: Leave out what does not fill a batch; else fill the last batch up with examples
            that were already used in this epoch, so that all batches are of one size.
        weights: How often batches of each source come, as parts of their sum. An epoch has as many
            batches as without weights, `drop_last` being true; a source that has not enough begins
            anew in another order, and of one that has too many other examples come in each epoch.
            No batch is mixed.

    Attributes:
        repeats_epoch: Whether each epoch has the batches of the first.

    Raises:
        DataError: If `batch_size` cannot be split evenly over the ranks, if there are fewer
            examples than one batch takes, also in a single source with a weight, or if `weights`
            are not one per source, none negative.

    Example:
        >>> sampler = GlobalBatchSampler([5, 3], batch_size=2, seed=0)
        >>> len(sampler)
        4
        >>> [sorted(example for _, _, example in batch) for batch in sampler]
        [[6, 7], [0, 3], [2, 4], [1, 5]]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int | Sequence[int] = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f"batch_size counts queries of all processes and must be a positive multiple of "
                f"their number, {world_size}, got {batch_size}"
            )
        if sum(sizes) < batch_size:
            raise DataError(f"batch_size is {batch_size}, but there are only {sum(sizes)} examples")
        if weights is not None:
            _check_weights(weights, sizes, batch_size)
        self.sizes = list(sizes)
        self.weights = None if weights is None else list(weights)
        self.batch_size = batch_size
        self.seeds = [seed] if isinstance(seed, int) else list(seed)
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.epoch = 0
        self.first_batch = 0
        self.repeats_epoch = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows; Lightning calls this."""
        self.epoch = 0 if self.repeats_epoch else epoch

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        whole, rest = divmod(sum(self.sizes), self.batch_size)
        return whole if self.drop_last or not rest or self.weights else whole + 1

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield this rank's slices, from batch number `first_batch` on."""
        epoch = self.epoch
        per_rank = self.batch_size // self.world_size
        mine = slice(self.rank * per_rank, (self.rank + 1) * per_rank)
        orders = [self.global_batches(seed)[self.first_batch :, mine] for seed in self.seeds]
        for batches in zip(*orders, strict=True):
            yield [
                (seed, epoch, int(example))
                for seed, batch in zip(self.seeds, batches, strict=True)
                for example in batch
            ]

    def global_batches(self, seed: int) -> NDArray[np.integer]:
        """Examples of all batches of an epoch, `(num_batches, batch_size)`, by its `seed`."""
        if self.weights is not None:
            return self._weighted_batches(seed, self.weights)
        whole, leftovers = [], []
        first = 0
        dtype = np.int32 if sum(self.sizes) < 2**31 else np.int64  # ten million examples: 40 MB
        for number, size in enumerate(self.sizes):
            examples = np.arange(first, first + size, dtype=dtype)
            self._rng(seed, _ORDER, number).shuffle(examples)
            rest = size % self.batch_size
            whole.append(examples[: size - rest].reshape(-1, self.batch_size))
            leftovers.append(examples[size - rest :])
            first += size
        batches = np.concatenate(whole)
        self._rng(seed, _BATCHES).shuffle(batches)
        mixed = np.concatenate(leftovers)
        self._rng(seed, _LEFTOVERS).shuffle(mixed)
        missing = -len(mixed) % self.batch_size
        if missing and self.drop_last:
            mixed = mixed[: len(mixed) - len(mixed) % self.batch_size]
        elif missing:
            used = np.concatenate(
                [batches.ravel(), mixed[: len(mixed) - len(mixed) % self.batch_size]]
            )
            mixed = np.concatenate([mixed, used[:missing]])
        return np.concatenate([batches, mixed.reshape(-1, self.batch_size)])

    def _weighted_batches(self, seed: int, weights: Sequence[float]) -> NDArray[np.integer]:
        dtype = np.int32 if sum(self.sizes) < 2**31 else np.int64
        firsts = [0, *np.cumsum(self.sizes).tolist()]
        batches = []
        for number, count in enumerate(_shares(weights, len(self))):
            per_round = self.sizes[number] // self.batch_size
            for begun in range(-(-count // max(1, per_round))):
                examples = np.arange(firsts[number], firsts[number + 1], dtype=dtype)
                self._rng(seed, _ROUNDS, number, begun).shuffle(examples)
                wanted = min(per_round, count - begun * per_round)
                batches.append(examples[: wanted * self.batch_size].reshape(wanted, -1))
        all_batches = np.concatenate(batches)
        self._rng(seed, _BATCHES).shuffle(all_batches)
        return all_batches

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([*key, self.epoch])


def _check_weights(weights: Sequence[float], sizes: Sequence[int], batch_size: int) -> None:
    if len(weights) != len(sizes) or min(weights) < 0 or not sum(weights) > 0:
        raise DataError(
            f"weights must be {len(sizes)}, one per source, none negative and not all 0, "
            f"got {list(weights)}"
        )
    for number, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        if weight and size < batch_size:
            raise DataError(
                f"weights: source {number} has {size} examples, fewer than the {batch_size} of a "
                "batch; expected weight 0 for it, or a smaller batch_size"
            )


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` split by weights into whole numbers, largest remainders rounded up."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return [int(count) for count in counts]


def check_pairs(
    paths: Sequence[Any],
    train_group_size: int = 1,
    batch_size: int = 1,
    missing_negatives: str = "error",
    weights: Sequence[float] | None = None,
    limit: int | None = None,
) -> list[PairSource]:
    """Raise what training on these pairs would raise; for commands, before they load a model.

    Args:
        paths: As in `read_pairs`.
        train_group_size: As in `ContrastiveDataset`.
        batch_size: As in `GlobalBatchSampler`.
        missing_negatives: As in `ContrastiveDataset`.
        weights: As in `GlobalBatchSampler`.
        limit: As in `read_pairs`.

    Returns:
        The open sources, for `ContrastiveDataModule` to use without checking them again.

    Raises:
        DataError: As `read_pairs`, `ContrastiveDataset` and `GlobalBatchSampler` do.
    """
    sources = read_pairs(paths, limit)
    dataset = ContrastiveDataset(sources, train_group_size, missing_negatives=missing_negatives)
    GlobalBatchSampler(dataset.sizes, batch_size, weights=weights)
    return sources
