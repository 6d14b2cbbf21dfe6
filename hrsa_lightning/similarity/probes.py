"""Probe sets: the fixed inputs on which representations are compared, never trained on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io.pairs import check_text
from hrsa_lightning.io.sources import TextEntry, is_entry
from hrsa_lightning.similarity.batches import content_of, copied, described, entry_of, sizes_of
from hrsa_lightning.similarity.isolation import preserve_training_state

Tokenizer = Callable[[list[str]], Mapping[str, Any]]


@dataclass
class ProbeSet:
    """Fixed inputs, cut into batches of which every shard holds its own.

    Attributes:
        order: Numbers of all batches, in the order of the samples.
        fingerprint: Hash of the content, equal for equal probes.
        labels: One label per sample, or `None`.
        texts: All texts in the order of the samples, for probes given as texts.
        held: Batches of this shard by number, for probes given as batches.
        ends: Of each batch of texts, the text after its last.
        level: See `hrsa_lightning.io.sources.TextEntry`, as for the next two; empty where unsaid.
        max_length: `None` where unsaid.
        max_rows: Most rows of a text at level `token`, from its `max_tokens`.
    """

    order: list[int]
    fingerprint: str
    labels: list[str] | None = None
    texts: list[str] | None = None
    held: dict[int, Any] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    level: str = ""
    max_length: int | None = None
    max_rows: int | None = None
    _tokenized: dict[str, dict[int, Any]] = field(default_factory=dict)

    def batches(
        self, numbers: Sequence[int], owner: str, tokenize: Tokenizer | None
    ) -> Iterator[Any]:
        """The batches with these numbers, tokenized once per owner and kept.

        Args:
            numbers: Batch numbers, all held by this shard.
            owner: Whose tokens these are; models with different tokenizers have different batches.
            tokenize: Turns texts into a batch.

        Raises:
            ConfigError: For texts without a way to tokenize them.
            DataError: When the tokenizer does not give tensors with a row for each text.
        """
        if self.texts is None:
            yield from (self.held[number] for number in numbers)
            return
        if tokenize is None:
            raise ConfigError(
                f"probes: texts need tokenizer=, or a method probe_batch on {owner or 'the module'}"
            )
        kept = self._tokenized.setdefault(owner, {})
        for number in numbers:
            if number not in kept:
                texts = self.texts[self._begin(number) : self.ends[number]]
                kept[number] = _checked(dict(tokenize(texts)), len(texts))
            yield kept[number]

    def text_split_differently(
        self, owner: str, other: str, mask_of: Callable[[Any], Tensor | None]
    ) -> str | None:
        """The first text of which two owners have other token ids.

        Returns:
            The text; `None` where all are equal, or where one of the two has no token ids here.
        """
        ours, theirs = self._tokenized.get(owner, {}), self._tokenized.get(other, {})
        for number in sorted(ours.keys() & theirs.keys()):
            sides = [_token_rows(kept[number], mask_of) for kept in (ours, theirs)]
            for row, (first, second) in enumerate(zip(*sides, strict=False)):
                if first != second and self.texts is not None:
                    return self.texts[self._begin(number) + row]
        return None

    def _begin(self, number: int) -> int:
        return self.ends[number - 1] if number else 0


def load_probes(
    source: Any,
    *,
    size: int,
    label_key: str | int | None,
    limit: int | None,
    shard: int,
    shards: int,
    receive: Callable[[Any], Any] | None = None,
    max_length: int = 128,
) -> ProbeSet:
    """Make a probe set of texts, tensors or batches.

    Args:
        source: Texts, records with a `text` (also a dataset of them), anything that `TextEntry.of`
            takes, one tensor, or an iterable of batches such as a `DataLoader`, which is read once.
        size: Samples per batch, for texts and tensors.
        max_length: Most tokens of a text, where an entry does not say its own.
        label_key: Where a batch holds its labels: a key of a mapping or a position in a tuple.
        limit: At most so many batches.
        shard: Which shard this process holds.
        shards: Number of shards.
        receive: What a trainer does to a batch before its step; for loaders, while a list of
            batches is taken as it is.

    Raises:
        DataError: When there are no samples or a form is not understood.
    """
    if is_entry(source):
        entry = TextEntry.of(source)
        return _entry_probes(entry, size=size, limit=limit, max_length=max_length)
    if isinstance(source, Tensor):
        source = torch.split(source, size)
    if isinstance(source, Dataset) and not (
        isinstance(source, IterableDataset) or _holds_texts(source)
    ):
        raise DataError(
            f"probes: expected batches, got the samples of a {type(source).__name__}; give "
            "DataLoader(dataset, batch_size=32)"
        )
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(
            "probes: expected texts, a path, a tensor, or an iterable of batches, "
            f"got {type(source).__name__}"
        )
    if _holds_texts(source):
        return text_probes(list(source), size=size, limit=limit)
    return batch_probes(
        source,
        label_key=label_key,
        limit=limit,
        shard=shard,
        shards=shards,
        receive=None if isinstance(source, Sequence) else receive,
    )


def text_probes(items: Sequence[Any], *, size: int = 32, limit: int | None = None) -> ProbeSet:
    """A probe set of texts, ordered by length so that batches hold little padding.

    Raises:
        DataError: When an item has no text.
    """
    records = [{"text": item} if isinstance(item, str) else dict(item) for item in items]
    for position, record in enumerate(records):
        try:
            check_text(record.get("text"), "text")
        except DataError as error:
            raise DataError(f"probes: item {position + 1}: {error}") from None
    records = records[: None if limit is None else limit * size]
    records.sort(key=lambda record: len(record["text"]))
    texts = [record["text"] for record in records]
    labels = [str(record["label"]) for record in records if record.get("label") is not None]
    ends = [*range(size, len(texts), size), len(texts)]
    return ProbeSet(
        order=list(range(len(ends))),
        fingerprint=hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        labels=labels if len(labels) == len(texts) else None,
        texts=texts,
        ends=ends,
    )


def _entry_probes(entry: TextEntry, *, size: int, limit: int | None, max_length: int) -> ProbeSet:
    """A probe set of an entry's texts.

    A batch holds `size` texts of at most `max_length` tokens; of longer ones fewer, so that it
    takes no more memory: as many tokens in all, or a single text.
    """
    _, texts, labels = entry.read()
    known: Sequence[str | None] = labels or [None] * len(texts)
    records = [{"text": text, "label": label} for text, label in zip(texts, known, strict=True)]
    probes = text_probes(records, size=size, limit=limit)
    assert probes.texts is not None
    longest = entry.max_length or max_length
    # A token has at least one byte, and a tokenizer may add a few of its own.
    lengths = [min(longest, len(text.encode()) + 2) for text in probes.texts]
    probes.ends, begin = [], 0
    for place, length in enumerate(lengths):  # in rising order
        if place > begin and (
            place - begin == size or (place - begin + 1) * length > size * max_length
        ):
            probes.ends.append(place)
            begin = place
    probes.ends.append(len(lengths))
    probes.order = list(range(len(probes.ends)))
    probes.level, probes.max_length = entry.level or "", entry.max_length
    if entry.level == "token":
        probes.labels = None  # they belong to texts
    if entry.max_tokens is not None:
        probes.max_rows = rows_per_text(entry.max_tokens, len(probes.texts))
    if asked := [part for part in (entry.level, entry.max_length, entry.max_tokens) if part]:
        content = json.dumps([probes.fingerprint, *asked])
        probes.fingerprint = hashlib.sha256(content.encode()).hexdigest()
    return probes


def rows_per_text(max_tokens: int, num_texts: int) -> int:
    """Most rows of each text where all together have at most `max_tokens`.

    Raises:
        DataError: There are more texts.
    """
    if max_tokens < num_texts:
        raise DataError(
            f"max_tokens: expected at least one for each of {num_texts} texts, got {max_tokens}"
        )
    return max_tokens // num_texts


def batch_probes(
    source: Iterable[Any],
    *,
    label_key: str | int | None = None,
    limit: int | None = None,
    shard: int = 0,
    shards: int = 1,
    receive: Callable[[Any], Any] | None = None,
) -> ProbeSet:
    """A probe set of ready batches; each shard keeps its own and the first.

    Where weights are spread over ranks, a rank with fewer batches re-runs the first one, so that
    all make the same number of forward passes.

    Raises:
        DataError: When there are no samples.
    """
    digest = hashlib.sha256()
    held: dict[int, Any] = {}
    labels: list[str] = []
    count = 0
    holds_any, own_device = False, torch.device("cpu")
    with preserve_training_state(generators=_generators(source)), _workers_released(source):
        for count, batch in enumerate(islice(source, limit), start=1):
            if (count - 1) % shards == shard or count == 1:
                # A copy: loaders may reuse their memory, and users may change a list in place.
                own = copied(batch, own_device)
                held[count - 1] = own if receive is None else copied(receive(own), own_device)
            holds_any = holds_any or sizes_of(batch) not in (set(), {0})
            for content in content_of(batch):
                digest.update(content)
            if label_key is not None:
                labels.extend(_labels(batch, label_key))
    if not holds_any:
        raise DataError(
            "probes: expected at least one batch of samples, got "
            f"{described(batch) if count else 'none'}"
        )
    return ProbeSet(
        order=list(range(count)),
        fingerprint=digest.hexdigest(),
        labels=labels if label_key is not None else None,
        held=held,
    )


def tokenizer_of(module: nn.Module, max_length: int) -> Tokenizer | None:
    """The module's method `probe_batch` as a tokenizer; `None` where it has none."""
    probe_batch = getattr(module, "probe_batch", None)
    if probe_batch is None:
        return None
    return lambda texts: dict(probe_batch(texts, max_length))


def _token_rows(
    batch: Mapping[str, Any], mask_of: Callable[[Any], Tensor | None]
) -> list[list[int]]:
    """The ids of the tokens that count, text by text; nothing where a batch has no ids."""
    ids, mask = batch.get("input_ids"), mask_of(batch)
    if not isinstance(ids, Tensor):
        return []
    keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]


def _checked(batch: dict[str, Any], num_texts: int) -> dict[str, Any]:
    found = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if not found or any(len(value) != num_texts for value in found.values() if value.ndim):
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        raise DataError(
            f"tokenizer: expected tensors with a row for each of {num_texts} texts, got "
            f"{shapes or 'none'}; one of transformers needs padding=True, return_tensors='pt'"
        )
    return batch


def _holds_texts(source: Any) -> bool:
    """Whether a list, or a dataset that can be indexed, holds texts or records with a text."""
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__") and len(source)):
        return False
    return isinstance(source[0], str) or _is_record(source[0])


def _is_record(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("text"), str)


def _generators(source: Any) -> list[torch.Generator]:
    """Random generators of a loader, which training may share."""
    holders = (source, getattr(source, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


@contextmanager
def _workers_released(source: Any) -> Iterator[None]:
    """Reset a loader with persistent workers to its state before it was read."""
    try:
        yield
    finally:
        if getattr(source, "persistent_workers", False):
            source._iterator = None


def _labels(batch: Any, key: str | int) -> list[str]:
    try:
        values = entry_of(batch, key) if isinstance(key, str) else batch[key]
    except (IndexError, TypeError, KeyError):
        values = None
    if values is None:
        raise DataError(f"label_key: {key!r} is not in the probe batch {described(batch)}")
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    return [str(value) for value in values]
