"""Runs models over the texts, one after the other, and keeps their representations on disk.

```
<name>-<hash>/
  layer_0.safetensors …   a tensor `rows` of shape (rows, features), float32
  representations.json    written last: complete
```
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from hrsa_lightning.compare.models import (
    KnownModel,
    chosen_layers,
    load_sentence_transformer,
    make_extractor,
)
from hrsa_lightning.compare.options import ExtractionOptions
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io.files import read_json, write_json
from hrsa_lightning.models.chunks import length_sorted_chunks
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, TokenizedTexts
from hrsa_lightning.runs.loading import load_model
from hrsa_lightning.similarity.extraction import Snapshot
from hrsa_lightning.similarity.isolation import preserve_training_state
from hrsa_lightning.similarity.probes import ProbeSet, rows_per_text

_INDEX = "representations.json"
_HEADER_BYTES = 256
_LENGTH_BYTES = 8
_FLOAT_BYTES = 4

_WINDOW = 32
"""Batches whose texts are tokenized at once and sorted by their numbers of tokens."""

_LONG = 512
"""Tokens of a text from which on a batch holds fewer texts."""

_CPU_TOKENS = 1024
"""Most tokens, padding included, of a forward pass on a CPU. There larger batches gain nothing, and
their activations come as fresh pages from the system instead of out of its caches."""


class StoredRepresentations:
    """Representations of one model, layer by layer; nothing is held in memory.

    Attributes:
        layers: Names in the order of depth.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.layers: list[str] = read_json(folder / _INDEX)["layers"]

    def rows(self, layer: str) -> Tensor:
        """(rows, features) of a layer, float32, on the CPU; pages are read when they are used."""
        with safe_open(_file(self._folder, layer), "pt") as content:
            rows: Tensor = content.get_tensor("rows")
        return rows


class RepresentationWriter:
    """Writes batches of rows in any order; an unfinished folder is replaced."""

    def __init__(self, folder: Path, layers: Sequence[str]) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        self._shapes = {layer: [0, 0] for layer in layers}
        for layer in layers:
            self._files[layer] = _file(folder, layer).open("wb")
            self._files[layer].write(b" " * _HEADER_BYTES)

    def add(self, snapshot: Snapshot, spans: Sequence[tuple[int, int]]) -> None:
        """Put rows in their places.

        Args:
            snapshot: Layer to (rows, features), the rows of one text after those of another.
            spans: Of each of these texts the first row in the file, and the number of rows.
        """
        for layer, tensor in snapshot.items():
            rows = tensor.to("cpu", torch.float32).contiguous().numpy()
            file, shape, taken = self._files[layer], self._shapes[layer], 0
            for start, count in spans:
                file.seek(_HEADER_BYTES + start * rows[0].nbytes)
                file.write(rows[taken : taken + count].data)
                taken += count
            shape[:] = shape[0] + len(rows), rows.shape[1]

    def finish(self, about: dict[str, Any]) -> None:
        """Write the headers and, last, the index with what else is to be known."""
        for layer, file in self._files.items():
            file.seek(0)
            file.write(_header(self._shapes[layer]))
            file.close()
        write_json(self._folder / _INDEX, {"layers": list(self._files), **about})

    def abandon(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk cannot take what is still in the buffer
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ModelRunner:
    """Makes representations of the texts, or finds those of an earlier call."""

    def __init__(
        self,
        probes: ProbeSet,
        options: ExtractionOptions,
        folder: Path,
        device: torch.device,
        resume: bool,
    ) -> None:
        self._probes = probes
        self._texts = probes.texts or []
        self._options = options
        self._folder = folder
        self._device = device
        self._resume = resume
        self._max_rows: int | None = None
        if options.level == "token" and options.max_tokens is not None:
            self._max_rows = rows_per_text(options.max_tokens, len(self._texts))

    def num_rows(self, models: Sequence[KnownModel]) -> int:
        """Rows that every layer will have.

        Raises:
            DataError: At token level, when two models split the texts into different tokens.
        """
        if self._options.level == "sentence":
            return len(self._texts)
        first, *others = models
        ids, counts = self._tokens(_tokenizer(first))
        for other in (other for other in others if other.tokenizer != first.tokenizer):
            pairs = zip(ids, self._tokens(_tokenizer(other))[0], strict=True)
            odd = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
            if odd is not None:
                raise DataError(
                    f"--level token: {first.name} and {other.name} split texts into different "
                    f"tokens, such as {self._texts[odd]!r:.80}; compare them with --level sentence"
                )
        return sum(counts)

    def check_space(self, models: Sequence[KnownModel], num_rows: int) -> None:
        """Refuse before any model runs when the disk cannot hold what they will write.

        Raises:
            ConfigError: There is not enough free space.
        """
        needed = sum(
            _FLOAT_BYTES
            * num_rows
            * known.width
            * (known.num_layers + 1 if self._options.layers == ("all",) else 2)
            for known in models
            if not self._is_kept(known)
        )
        above = self._folder.absolute()
        place = next(folder for folder in (above, *above.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise ConfigError(
                f"--out {self._folder.parent}: representations need {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free there; choose fewer --layers or texts (--limit)"
            )

    def extract(self, known: KnownModel) -> StoredRepresentations:
        """Run one model, unless that was done before, and let it go.

        Raises:
            BackboneError: It cannot be loaded.
            ConfigError: It has no such layers.
        """
        home = self._home(known)
        if not self._is_kept(known):
            self._run(known, home)
        return StoredRepresentations(home)

    def remove(self) -> None:
        """Delete all representations."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_kept(self, known: KnownModel) -> bool:
        return self._resume and (self._home(known) / _INDEX).is_file()

    def _run(self, known: KnownModel, home: Path) -> None:
        packaged = known.tokenizer is None
        if packaged:
            model = load_sentence_transformer(known.source, self._options).to(self._device)
        else:
            model = load_model(known.source, known.model).to(self._device)
        layers = chosen_layers(model, self._options, known.name)
        writer = RepresentationWriter(home, layers.names)
        extractor = make_extractor(self._options, packaged)
        extractor.device = self._device
        level = "token" if self._options.level == "token" else ""
        pooling = extractor.pooling.at_level(level, self._max_rows)
        bar = tqdm(total=len(self._texts), desc=known.name, unit="text", disable=None)
        try:
            with bar, preserve_training_state(model):
                for spans, batch in self._packaged(model) if packaged else self._batches(known):
                    rows = extractor.extract_batch(model, batch, layers, pooling)
                    writer.add(rows, spans)
                    bar.update(len(spans))
            writer.finish({"model": known.source.spec, "extraction": asdict(self._options)})
        except BaseException:
            writer.abandon()
            raise

    def _packaged(self, model: Any) -> Iterator[tuple[list[tuple[int, int]], dict[str, Any]]]:
        """Texts as sentence-transformers reads them; they are ordered by length already."""
        size = self._options.batch_size
        for start in range(0, len(self._texts), size):
            texts = self._texts[start : start + size]
            features = {
                key: value
                for key, value in model.preprocess(texts).items()
                if isinstance(value, Tensor)
            }
            yield [(start + row, 1) for row in range(len(texts))], features

    def _batches(self, known: KnownModel) -> Iterator[tuple[list[tuple[int, int]], dict[str, Any]]]:
        """Texts of like length, with the first row and the number of rows of each."""
        tokenizer = _tokenizer(known)
        # Longer texts come in smaller batches, so that they need no more memory.
        most_tokens = self._options.batch_size * min(self._options.max_length, _LONG)
        if self._device.type == "cpu":
            most_tokens = min(most_tokens, _CPU_TOKENS)
        begun = 0
        for tokens in self._encoded(tokenizer, self._options.batch_size * _WINDOW):
            counts = self._row_counts(tokens.lengths)
            ends = begun + counts.cumsum(0)
            spans = list(zip((ends - counts).tolist(), counts.tolist(), strict=True))
            for chunk in length_sorted_chunks(tokens.lengths, most_tokens):
                batch = tokens.pad(tokenizer.pad_token_id, chunk)
                yield [spans[index] for index in chunk.tolist()], batch
            begun = int(ends[-1])

    def _encoded(self, tokenizer: EmbeddingTokenizer, size: int) -> Iterator[TokenizedTexts]:
        for start in range(0, len(self._texts), size):
            yield tokenizer.encode(self._texts[start : start + size], self._options.max_length)

    def _row_counts(self, lengths: Tensor) -> Tensor:
        """Rows of texts of so many tokens."""
        if self._options.level == "sentence":
            return torch.ones_like(lengths)
        counts = (lengths - int(self._options.exclude_first_token)).clamp(min=1)
        return counts if self._max_rows is None else counts.clamp(max=self._max_rows)

    def _tokens(self, tokenizer: EmbeddingTokenizer) -> tuple[list[tuple[int, ...]], list[int]]:
        """Token ids of every text, and how many of them become rows."""
        ids: list[tuple[int, ...]] = []
        counts: list[int] = []
        for tokens in self._encoded(tokenizer, self._options.batch_size):
            rows = torch.split(tokens.input_ids, tokens.lengths.tolist())
            ids += [tuple(row.tolist()) for row in rows]
            counts += self._row_counts(tokens.lengths).tolist()
        return ids, counts

    def _home(self, known: KnownModel) -> Path:
        options = asdict(self._options)
        content = {
            "weights": known.identity,
            "texts": self._probes.fingerprint,
            "extraction": {k: v for k, v in options.items() if k not in ("attention", "dtype")},
            "model": asdict(known.model),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{known.name}-{digest[:12]}"


def _tokenizer(known: KnownModel) -> EmbeddingTokenizer:
    assert known.tokenizer is not None  # at token level, others were refused
    return known.tokenizer


def _header(shape: Sequence[int]) -> bytes:
    """Header of a safetensors file with one tensor, padded to a fixed size as the format allows."""
    end = _FLOAT_BYTES * shape[0] * shape[1]
    entry = {"rows": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]}}
    size = _HEADER_BYTES - _LENGTH_BYTES
    return size.to_bytes(_LENGTH_BYTES, "little") + json.dumps(entry).encode().ljust(size)


def _file(folder: Path, layer: str) -> Path:
    return folder / f"{layer.replace('/', '_')}.safetensors"
