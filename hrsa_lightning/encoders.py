"""Anything that embeds texts, behind one face: arms of runs, exports, sentence-transformers.

A model is named by one of

- a run's folder, which stands for all its arms, or `FOLDER:ARM` for one of them;
- a folder that `SentenceTransformer` loads (it has a modules.json), or a model of the hub;
- a backbone's folder or `embedded:NAME`, pooled as the recipes do by default.

Importing this module imports no torch.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.data.records import Query
from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.schema import Config, nearest
from hrsa_lightning.shelf import EMBEDDED, resolve_path

TEMPLATE = "Instruct: {instruction}\nQuery: "
"""What goes before a query that has an instruction, as in training."""


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
    """One model that a command was given.

    Attributes:
        kind: "arm" of a run, "sentence-transformers", or "backbone".
        path: Folder or hub id; of an arm, the run's folder.
        arm: Name of the arm.
        config: The run's recipe.
    """

    kind: Literal["arm", "sentence-transformers", "backbone"]
    path: str
    arm: str | None = None
    config: Config | None = None

    @property
    def name(self) -> str:
        """As a user would write it."""
        return self.path if self.arm is None else f"{self.path}:{self.arm}"

    def identity(self, options: EncoderOptions | None = None) -> str:
        """Name, settings, and size and time of every file; a hub id stands for its files."""
        options = options or EncoderOptions()
        parts = [self.kind, self.name, str(options.dtype), str(options.max_length), TEMPLATE]
        folders = [Path(resolve_path(self.path)).expanduser()]
        if self.config is not None and self.arm is not None:
            backbone = Path(resolve_path(self.config.arms[self.arm].backbone)).expanduser()
            folders = [folders[0] / "adapters" / self.arm, backbone]
            parts.append(to_yaml(self.config))
        for folder in folders:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                state = path.stat()
                parts.append(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}")
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def load(self, options: EncoderOptions | None = None) -> Encoder:
        """Load the model.

        Raises:
            BackboneError: It cannot be loaded.
            ConfigError: sentence-transformers is needed and not installed.
        """
        options = options or EncoderOptions()
        if self.kind == "sentence-transformers":
            return _load_sentence_transformer(self.path, options)
        return _load_own(self, options)


def find_models(text: str) -> list[ModelReference]:
    """What a name on the command line stands for; a run's folder stands for all its arms.

    Raises:
        BackboneError: There is no such folder, or nothing in it that can be loaded.
        ConfigError: The run has no such arm, or its config.yaml is wrong.
    """
    if text.startswith(EMBEDDED):
        from hrsa_lightning.models.paths import resolve_backbone

        resolve_backbone(text)
        return [ModelReference("backbone", text)]
    path, arm = _split_arm(text)
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        return _find_arms(folder, arm)
    if folder.is_dir() and arm is None:
        if (folder / "modules.json").is_file():
            return [ModelReference("sentence-transformers", str(folder))]
        if (folder / "config.json").is_file():
            return [ModelReference("backbone", str(folder))]
        raise BackboneError(
            f"model {text!r}: the folder is neither a run (config.yaml) nor a model (modules.json, "
            "config.json)"
        )
    if folder.exists() or text[:1] in "./~" or text.count("/") > 1 or ":" in text:
        raise BackboneError(f"model {text!r}: no such folder (looked for {folder.absolute()})")
    return [ModelReference("sentence-transformers", text)]


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


def _split_arm(text: str) -> tuple[str, str | None]:
    path, colon, arm = text.rpartition(":")
    # A drive letter's colon, or none, is followed by something that is no arm's name.
    return (path, arm) if colon and arm.isidentifier() and len(path) > 1 else (text, None)


def _find_arms(folder: Path, arm: str | None) -> list[ModelReference]:
    config = load_config(str(folder / "config.yaml"))
    if arm is not None and arm not in config.arms:
        raise ConfigError(
            f"{folder} has no arm {arm!r}.{nearest(arm, config.arms)} "
            f"Its arms: {', '.join(config.arms)}."
        )
    chosen = [arm] if arm is not None else list(config.arms)
    for name in chosen:
        if not (folder / "adapters" / name).is_dir():
            raise BackboneError(
                f"run {str(folder)!r}: adapters/{name} is missing; the run is not finished"
            )
    return [ModelReference("arm", str(folder), name, config) for name in chosen]


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
            prompt = {"prompt": TEMPLATE.format(instruction=shared)} if shared else {}
            parts.append(self._encode(self.model.encode_query, contents, **prompt))
        embeddings = np.concatenate(parts)
        return embeddings[np.argsort(order)]

    def encode_passages(self, texts: Sequence[str]) -> Any:
        return self._encode(self.model.encode_document, list(texts))

    def _encode(self, encode: Any, texts: list[str], **options: Any) -> Any:
        return encode(texts, batch_size=self.batch_size, show_progress_bar=False, **options)


def _load_own(reference: ModelReference, options: EncoderOptions) -> Encoder:
    from hrsa_lightning.models.embedder import EmbeddingModel

    config = reference.config
    arguments: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    lengths = (512, 512)
    if config is None or reference.arm is None:
        backbone, attention = reference.path, _saved_attention(Path(resolve_path(reference.path)))
        arguments |= {"dtype": options.dtype or "float32", "attention": attention}
    else:
        adapter = Path(reference.path, "adapters", reference.arm)
        arm, model = config.arms[reference.arm], config.model
        lengths = (config.data.query_length, config.data.passage_length)
        backbone = arm.backbone if model.lora else str(adapter)
        if model.lora:
            arguments |= {"adapter": adapter, "revision": arm.revision}
        arguments |= {
            "dtype": options.dtype or model.dtype,
            "attn_implementation": model.attn_implementation,
            "attention": model.attention,
            "pooling": model.pooling,
            "normalize": model.normalize,
            "instruction_mask": model.instruction_mask,
            "trust_remote_code": options.trust_remote_code or model.trust_remote_code,
        }
    loaded = EmbeddingModel.from_pretrained(backbone, **arguments)
    loaded.to(_device(options)).eval()
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


def _load_sentence_transformer(path: str, options: EncoderOptions) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"model {path!r} needs sentence-transformers: pip install 'hrsa-lightning[mine]'"
        ) from None
    dtype = {"dtype": options.dtype} if options.dtype else {}
    try:
        model = SentenceTransformer(
            path,
            device=_device(options),
            trust_remote_code=options.trust_remote_code,
            model_kwargs=dtype,
        )
    # Errors of many libraries come through: hub clients, transformers, the model's own modules.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackboneError(f"model {path!r} cannot be loaded: {first}") from error
    model.max_seq_length = options.max_length or min(512, model.max_seq_length or 512)
    identity = ModelReference("sentence-transformers", path).identity(options)
    return SentenceTransformerEncoder(model, identity, options.batch_size)


def _device(options: EncoderOptions) -> str:
    import torch

    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")
