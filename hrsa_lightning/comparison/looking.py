"""Runs models over the texts, one after the other, and keeps their representations on disk."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hrsa_lightning.comparison.loading import KnownModel, extractor_of, wanted_layers
from hrsa_lightning.comparison.options import Look
from hrsa_lightning.comparison.store import Representations, RepresentationWriter
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.models.chunks import length_sorted_chunks
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, TokenizedTexts
from hrsa_lightning.similarity.isolation import preserve_training_state
from hrsa_lightning.similarity.probes import ProbeSet
from hrsa_lightning.sources.loading import load_model

__all__ = ["Viewer"]

_FLOAT_BYTES = 4

_WINDOW = 32
"""Batches whose texts are tokenized at once and sorted by their numbers of tokens."""

_CPU_SLOTS = 1024
"""Most tokens, padding included, of a forward pass on a CPU. There larger batches gain nothing, and
their activations come as fresh pages from the system instead of out of its caches."""


class Viewer:
    """Makes representations of the texts, or finds those of an earlier call.

    Args:
        probes: The texts, ordered by length.
        look: How models are looked at.
        folder: Where representations are kept, one folder per model.
        device: Where models run.
        resume: Use what an earlier call kept of the same weights, texts and look.
    """

    def __init__(
        self, probes: ProbeSet, look: Look, folder: Path, device: torch.device, resume: bool
    ) -> None:
        self._probes = probes
        self._look = look
        self._folder = folder
        self._device = device
        self._resume = resume

    @property
    def texts(self) -> list[str]:
        """The texts in the order of the rows."""
        return self._probes.texts or []

    def num_rows(self, models: Sequence[KnownModel]) -> int:
        """Rows that every layer will have.

        Raises:
            DataError: At token level, when two models cut the texts into different tokens.
        """
        if self._look.level == "sentence":
            return self._probes.num_samples
        first, *others = models
        ids, counts = self._tokens(first.tokenizer)
        for other in others:
            if other.tokenizer == first.tokenizer:
                continue
            found, _ = self._tokens(other.tokenizer)
            odd = next(
                (i for i, pair in enumerate(zip(ids, found, strict=True)) if len(set(pair)) > 1),
                None,
            )
            if odd is not None:
                raise DataError(
                    f"--level token: {first.name} and {other.name} cut texts into different "
                    f"tokens, such as {self.texts[odd]!r:.80}; compare them with --level sentence"
                )
        return sum(counts)

    def is_kept(self, known: KnownModel) -> bool:
        """Whether an earlier call left the representations."""
        return self._resume and Representations.is_complete(self._home(known))

    def check_space(self, models: Sequence[KnownModel], num_rows: int) -> None:
        """Refuse before any model runs when the disk cannot hold what they will write.

        Raises:
            ConfigError: There is not enough free space.
        """
        missing = [known for known in models if not self.is_kept(known)]
        places = [known.num_layers + 1 if self._look.layers == ("all",) else 2 for known in missing]
        needed = sum(
            _FLOAT_BYTES * num_rows * count * known.width
            for known, count in zip(missing, places, strict=True)
        )
        free = shutil.disk_usage(_existing(self._folder)).free
        if needed > free:
            raise ConfigError(
                f"--out {self._folder.parent}: representations need {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free there; choose fewer --layers or texts (--limit)"
            )

    def look_at(self, known: KnownModel) -> Representations:
        """Run one model, unless that was done before, and let it go.

        Raises:
            BackboneError: It cannot be loaded.
            ConfigError: It has no such layers.
        """
        home = self._home(known)
        if not self.is_kept(known):
            self._run(known, home)
        return Representations(home)

    def remove(self) -> None:
        """Delete all representations."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, known: KnownModel, home: Path) -> None:
        model = load_model(known.source, known.model, self._device).to(self._device)
        layers = wanted_layers(model, self._look, known.name)
        writer = RepresentationWriter(home, layers.names)
        extractor = extractor_of(self._look)
        extractor.device = self._device
        bar = tqdm(total=len(self.texts), desc=known.name, unit="text", disable=None)
        try:
            with bar, preserve_training_state(model):
                for spans, batch in self._batches(known.tokenizer):
                    writer.add(extractor.extract_batch(model, batch, layers), spans)
                    bar.update(len(spans))
            writer.finish({"model": known.source.spec, "look": asdict(self._look)})
        except BaseException:
            writer.abandon()
            raise

    def _batches(
        self, tokenizer: EmbeddingTokenizer
    ) -> Iterator[tuple[list[tuple[int, int]], dict[str, Any]]]:
        """Texts of equal length together, with the first row and the number of rows of each."""
        slots = self._look.batch_size * self._look.max_length
        if self._device.type == "cpu":
            slots = min(slots, _CPU_SLOTS)
        begun = 0
        for tokens in self._encoded(tokenizer, self._look.batch_size * _WINDOW):
            counts = self._num_rows(tokens.lengths)
            ends = begun + counts.cumsum(0)
            spans = list(zip((ends - counts).tolist(), counts.tolist(), strict=True))
            for chunk in length_sorted_chunks(tokens.lengths, slots):
                batch = tokens.pad(tokenizer.pad_token_id, chunk)
                yield [spans[index] for index in chunk.tolist()], batch
            begun = int(ends[-1])

    def _encoded(self, tokenizer: EmbeddingTokenizer, size: int) -> Iterator[TokenizedTexts]:
        for start in range(0, len(self.texts), size):
            yield tokenizer.encode(self.texts[start : start + size], self._look.max_length)

    def _num_rows(self, lengths: Tensor) -> Tensor:
        """Rows of texts of so many tokens."""
        if self._look.level == "sentence":
            return torch.ones_like(lengths)
        return (lengths - int(self._look.exclude_first_token)).clamp(min=1)

    def _tokens(self, tokenizer: EmbeddingTokenizer) -> tuple[list[tuple[int, ...]], list[int]]:
        """Token ids of every text, and how many of them become rows."""
        ids: list[tuple[int, ...]] = []
        counts: list[int] = []
        for tokens in self._encoded(tokenizer, self._look.batch_size):
            rows = torch.split(tokens.input_ids, tokens.lengths.tolist())
            ids += [tuple(row.tolist()) for row in rows]
            counts += self._num_rows(tokens.lengths).tolist()
        return ids, counts

    def _home(self, known: KnownModel) -> Path:
        content = {
            "weights": known.identity,
            "texts": self._probes.fingerprint,
            "look": {
                k: v for k, v in asdict(self._look).items() if k not in ("attention", "dtype")
            },
            "as": asdict(known.model),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{known.name}-{digest[:12]}"


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
