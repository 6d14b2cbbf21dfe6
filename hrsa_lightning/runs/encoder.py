"""Anything that embeds texts, behind one face: arms of runs, exports, sentence-transformers.

Importing this module imports no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from hrsa_lightning.config.schema import Config, ModelConfig
from hrsa_lightning.errors import BackboneError, ConfigError, first_line
from hrsa_lightning.io.files import digest
from hrsa_lightning.io.pairs import DEFAULT_TEMPLATE, Query
from hrsa_lightning.io.pretrained import MODEL_FILES, check_weights
from hrsa_lightning.runs.resolve import Source, find_sources

_MAX_LENGTH = 512
"""Most tokens of a text where neither training nor an option says so."""


class Encoder(Protocol):
    """Embeds queries and passages, each as the model was trained to."""

    @property
    def identity(self) -> str:
        """Changes when the same texts could get other embeddings."""
        ...

    def encode_queries(self, texts: Sequence[Query]) -> Any:
        """Embeddings (texts, features) of texts or (instruction, text), an array or a tensor."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> Any:
        """Embeddings (texts, features), an array or a tensor."""
        ...


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder runs.

    Attributes:
        max_length: Most tokens of a text; None takes a run's own lengths, else 512.
        batch_size: Texts of one forward pass.
        device: Where, as torch names it; None takes a GPU if there is one.
        dtype: Of the weights; None takes a run's own, else float32.
        trust_remote_code: Run Python files that come with the model.
    """

    max_length: int | None = None
    batch_size: int = 32
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ModelReference:
    """A model that was named, as something that embeds.

    Models of the hub, and folders with a modules.json that is not our own, are left to
    sentence-transformers. Everything else is an `EmbeddingModel`: as it was trained, or, for a
    plain backbone, as recipes pool by default.

    Attributes:
        source: Which one.
    """

    source: Source

    @property
    def name(self) -> str:
        """As a user would write it."""
        return self.source.spec

    @property
    def path(self) -> str:
        """As a user would write it, without the name of an arm."""
        return self.name if self.source.arm is None else str(self.source.place.parent)

    @property
    def arm(self) -> str | None:
        """Name of the arm of a run."""
        return None if self.source.arm is None else self.source.arm.name

    @property
    def config(self) -> Config | None:
        """The run's recipe."""
        return None if self.source.arm is None else self.source.arm.config

    @property
    def packaged(self) -> bool:
        """Whether sentence-transformers knows best how it embeds."""
        if self.source.model is not None or self.source.adapter is not None:
            return False
        folder = Path(self.source.backbone)
        return not folder.is_dir() or (folder / "modules.json").is_file()

    def identity(self, options: EncoderOptions | None = None) -> str:
        """Changes with weights, settings, and those options that change embeddings."""
        options = options or EncoderOptions()
        parts = [
            self.source.identity(),
            str(options.dtype),
            str(options.max_length),
            DEFAULT_TEMPLATE,
        ]
        return digest("\n".join(parts))

    def load(self, options: EncoderOptions | None = None) -> Encoder:
        """Load the model.

        Raises:
            BackboneError: It cannot be loaded.
            ConfigError: sentence-transformers is needed and not installed.
        """
        load = _load_sentence_transformer if self.packaged else _load_own
        return load(self, options or EncoderOptions())


def find_models(text: str) -> list[ModelReference]:
    """What a name on the command line stands for, see `find_sources`."""
    return [ModelReference(source) for source in find_sources(text)]


def find_model(text: str) -> ModelReference:
    """As `find_models`, for where one model is wanted.

    Raises:
        ConfigError: The run has several arms and none is named.
    """
    found = find_models(text)
    if len(found) > 1:
        names = ", ".join(reference.name for reference in found)
        raise ConfigError(f"model {text!r} has several arms, name one of them: {names}")
    return found[0]


@dataclass(frozen=True)
class OwnEncoder:
    """An `EmbeddingModel` as an `Encoder`.

    Attributes:
        model: The model, on its device.
        identity: See `Encoder`.
        query_length: Most tokens of a query, its instruction included.
        passage_length: Most tokens of a passage.
        batch_size: Texts of full length in one forward pass.
    """

    model: Any
    identity: str
    query_length: int = 512
    passage_length: int = 512
    batch_size: int = 32

    def encode_queries(self, texts: Sequence[Query]) -> Any:
        return self.model.embed(texts, self.query_length, self.batch_size)

    def encode_passages(self, texts: Sequence[str]) -> Any:
        return self.model.embed(texts, self.passage_length, self.batch_size)


@dataclass(frozen=True)
class SentenceTransformerEncoder:
    """A `SentenceTransformer` as an `Encoder`.

    An instruction is given as the prompt, so that a model which leaves prompts out of its pooling
    does so here; queries without one and passages get the prompts that the model brings along.

    Attributes:
        model: The model, on its device.
        identity: See `Encoder`.
        batch_size: Texts of one forward pass.
    """

    model: Any
    identity: str
    batch_size: int = 32

    def encode_queries(self, texts: Sequence[Query]) -> Any:
        import numpy as np

        def instruction(number: int) -> str:
            text = texts[number]
            return "" if isinstance(text, str) else text[0]

        order = sorted(range(len(texts)), key=instruction)
        parts = []
        for shared, numbers in groupby(order, instruction):
            contents = [t if isinstance(t := texts[n], str) else t[1] for n in numbers]
            prompt = {"prompt": DEFAULT_TEMPLATE.format(instruction=shared)} if shared else {}
            parts.append(self._encode(self.model.encode_query, contents, **prompt))
        embeddings = np.concatenate(parts)
        return embeddings[np.argsort(order)]

    def encode_passages(self, texts: Sequence[str]) -> Any:
        return self._encode(self.model.encode_document, list(texts))

    def _encode(self, encode: Any, texts: list[str], **options: Any) -> Any:
        return encode(texts, batch_size=self.batch_size, show_progress_bar=False, **options)


def _load_own(reference: ModelReference, options: EncoderOptions) -> Encoder:
    from hrsa_lightning.runs.loading import check_source, load_model

    source = reference.source
    model = source.model or ModelConfig(attention=_saved_attention(Path(source.backbone)))
    model = replace(
        model,
        dtype=options.dtype or model.dtype,
        trust_remote_code=options.trust_remote_code or model.trust_remote_code,
    )
    check_source(source, trust_remote_code=model.trust_remote_code)
    device = _device(options)
    loaded = load_model(source, model, device).to(device)
    lengths = source.lengths or (_MAX_LENGTH, _MAX_LENGTH)
    if options.max_length is not None:
        lengths = (options.max_length, options.max_length)
    identity = reference.identity(options)
    return OwnEncoder(loaded, identity, *lengths, batch_size=options.batch_size)


def _saved_attention(folder: Path) -> str:
    """What the folder's config says, and bidirectional where it says nothing."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "bidirectional"  # the loader explains what is wrong with it
    return "causal" if content.get("is_causal") else "bidirectional"


def _load_sentence_transformer(reference: ModelReference, options: EncoderOptions) -> Encoder:
    model = load_packaged(
        reference.source,
        device=_device(options),
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    model.max_seq_length = options.max_length or min(
        _MAX_LENGTH, model.max_seq_length or _MAX_LENGTH
    )
    return SentenceTransformerEncoder(model, reference.identity(options), options.batch_size)


def load_packaged(
    source: Source, *, device: str, dtype: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The `SentenceTransformer` of a folder or hub id, from safetensors only.

    Raises:
        BackboneError: It cannot be loaded, or a part of it has no weights in safetensors.
        ConfigError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"model {source.spec!r} needs sentence-transformers: "
            "pip install 'sentence-transformers>=6,<7'"
        ) from None
    try:
        folder = _downloaded(source, trust_remote_code)
        _check_packaged(folder)
        return SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True, **({"dtype": dtype} if dtype else {})},
        )
    # Errors of many libraries come through: hub clients, transformers, the model's own modules.
    except Exception as error:
        raise BackboneError(
            f"model {source.spec!r} cannot be loaded: {first_line(error)}"
        ) from error


def _downloaded(source: Source, trust_remote_code: bool) -> Path:
    """The model's folder, for a hub id with what may be read of it."""
    if Path(source.backbone).is_dir():
        return Path(source.backbone)
    from huggingface_hub import snapshot_download

    patterns = [*MODEL_FILES, *(["*.py"] if trust_remote_code else [])]
    found = snapshot_download(source.backbone, revision=source.revision, allow_patterns=patterns)
    return Path(found)


def _check_packaged(folder: Path) -> None:
    """Refuse pickles in any part: sentence-transformers reads them where it finds nothing else."""
    for pattern in ("pytorch_model*.bin", "adapter_model*.bin"):
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise BackboneError(
                    f"{path}: expected weights in safetensors; other formats can run code when "
                    "they are read"
                )
    if (folder / "config.json").is_file():
        check_weights(folder)


def _device(options: EncoderOptions) -> str:
    import torch

    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")
