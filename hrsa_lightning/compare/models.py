"""Models of a comparison: what is known before weights are read, and which layers are taken."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from hrsa_lightning.compare.options import ExtractionOptions
from hrsa_lightning.config.schema import ModelConfig
from hrsa_lightning.errors import BackboneError, ConfigError, EncoderError
from hrsa_lightning.models.backbone import load_tokenizer
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, InstructionMask
from hrsa_lightning.runs.encoder import load_packaged
from hrsa_lightning.runs.loading import check_source
from hrsa_lightning.runs.resolve import Source
from hrsa_lightning.similarity.extraction import Extractor
from hrsa_lightning.similarity.layers import LayerSelection, select_layers

OUTPUT = "output"


@dataclass(frozen=True)
class KnownModel:
    """A model whose config and tokenizer were read.

    Attributes:
        name: Unique among the models of a comparison; goes into tables and file names.
        source: Which one.
        model: How it is loaded.
        tokenizer: As the model will use it; None where sentence-transformers runs it.
        num_layers: Decoder layers.
        width: Features of each.
        identity: Changes when the weights do.
    """

    name: str
    source: Source
    model: ModelConfig
    tokenizer: EmbeddingTokenizer | None
    num_layers: int
    width: int
    identity: str


def read_model(name: str, source: Source, options: ExtractionOptions) -> KnownModel:
    """Read what decides how a model is loaded; refuse adapters that do not fit.

    Encoders, and folders with a modules.json that is not our own, are left to
    sentence-transformers; such a model is loaded for a moment to know its sizes.

    Raises:
        BackboneError: See `check_source` and `load_tokenizer`.
        ConfigError: sentence-transformers is needed and not installed, or runs at token level.
    """
    if _is_packaged(source):
        return _read_sentence_transformer(name, source, options)
    trust = source.model is not None and source.model.trust_remote_code
    config: Any = check_source(source, trust_remote_code=trust)
    tokenizer = load_tokenizer(source.backbone, revision=source.revision, trust_remote_code=trust)
    model = source.model
    if model is None:
        own = "causal" if getattr(config, "is_causal", True) else "bidirectional"
        attention = own if options.attention == "auto" else options.attention
        model = ModelConfig(attention=attention, pooling=options.pooling)
    model = replace(model, dtype=options.dtype or model.dtype)
    return KnownModel(
        name,
        source,
        model,
        EmbeddingTokenizer(
            tokenizer,
            instruction_mask=cast(InstructionMask, model.instruction_mask),
            add_eos=model.pooling == "last",
        ),
        config.num_hidden_layers,
        config.hidden_size,
        source.identity(getattr(config, "_commit_hash", None)),
    )


def _is_packaged(source: Source) -> bool:
    """Whether sentence-transformers knows best how it embeds: not our own, and no plain decoder."""
    if source.model is not None or source.adapter is not None:
        return False
    if (Path(source.backbone) / "modules.json").is_file():
        return True
    try:
        check_source(source)
    except EncoderError:
        return True
    except BackboneError:
        pass  # told where it is loaded
    return False


def _read_sentence_transformer(name: str, source: Source, options: ExtractionOptions) -> KnownModel:
    if options.level == "token":
        raise ConfigError(f"--level token: expected decoders, got {name}, which pools by itself")
    loaded = load_sentence_transformer(source, options)
    model = ModelConfig(attention="its own", pooling="its own", dtype=options.dtype or "float32")
    model.normalize = any(type(part).__name__ == "Normalize" for part in loaded)
    depth, width = len(_stacked_layers(loaded)), int(loaded.get_embedding_dimension())
    return KnownModel(name, source, model, None, depth, width, source.identity())


def load_sentence_transformer(source: Source, options: ExtractionOptions) -> Any:
    """A model by sentence-transformers, on the CPU, see `load_packaged`."""
    model = load_packaged(source, device="cpu", dtype=options.dtype)
    longest = model.max_seq_length or options.max_length
    model.max_seq_length = min(longest, options.max_length)
    return model.eval()


def _stacked_layers(model: nn.Module) -> list[nn.Module]:
    """Layers of the longest stack of modules; none where there is no stack."""
    stacks = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=[])


def chosen_layers(model: nn.Module, options: ExtractionOptions, name: str) -> LayerSelection:
    """Layers as `layer_0`, `layer_1`, … and `output`, or by the names that globs give.

    Raises:
        ConfigError: A glob matches nothing.
    """
    output: dict[str, str | None] = {OUTPUT: "sentence_embedding"}
    decoder = _stacked_layers(model)
    if isinstance(model, EmbeddingModel):
        output, decoder = {OUTPUT: None}, list(model.decoder_layers.values())
    numbered: dict[str, nn.Module] = {f"layer_{i}": layer for i, layer in enumerate(decoder)}
    if options.layers == ("all",):
        return LayerSelection(numbered, output)
    if options.layers == ("last",):
        return LayerSelection(dict([numbered.popitem()] if numbered else []), output)
    return select_layers(model, options.layers, owner=name)


def make_extractor(options: ExtractionOptions, packaged: bool = False) -> Extractor:
    """How layers become rows; at token level the output is the last hidden states.

    Args:
        options: How models are run.
        packaged: Whether sentence-transformers runs it, whose modules fill one mapping.
    """
    tokens = options.level == "token" and not packaged
    as_one = (lambda module, batch: module(dict(batch))) if packaged else None
    return Extractor(
        (),
        options.layers,
        forward=_hidden_states if tokens else as_one,
        pooling="none" if tokens else options.pooling,
        exclude_first_token=options.exclude_first_token,
    )


def _hidden_states(module: nn.Module, batch: Any) -> Any:
    return cast(EmbeddingModel, module).transformer(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
