"""Models of a comparison: what is known before weights are read, and which layers are taken."""

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from hrsa_lightning.compare.options import ExtractionOptions
from hrsa_lightning.config.schema import ModelConfig
from hrsa_lightning.models.backbone import load_tokenizer
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, InstructionMask
from hrsa_lightning.runs.loading import check_source
from hrsa_lightning.runs.resolve import Source
from hrsa_lightning.similarity.extraction import Extractor
from hrsa_lightning.similarity.layers import LayerSelection, select_layers

__all__ = ["OUTPUT", "KnownModel", "chosen_layers", "make_extractor", "read_model"]

OUTPUT = "output"


@dataclass(frozen=True)
class KnownModel:
    """A model whose config and tokenizer were read.

    Attributes:
        name: Unique among the models of a comparison; goes into tables and file names.
        source: Which one.
        model: How it is loaded.
        tokenizer: As the model will use it.
        num_layers: Decoder layers.
        width: Features of each.
        identity: Changes when the weights do.
    """

    name: str
    source: Source
    model: ModelConfig
    tokenizer: EmbeddingTokenizer
    num_layers: int
    width: int
    identity: str


def read_model(name: str, source: Source, options: ExtractionOptions) -> KnownModel:
    """Read what decides how a model is loaded; refuse encoders, and adapters that do not fit.

    Raises:
        BackboneError: See `check_source` and `load_tokenizer`.
    """
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


def chosen_layers(model: EmbeddingModel, options: ExtractionOptions, name: str) -> LayerSelection:
    """Layers as `layer_0`, `layer_1`, … and `output`, or by the names that globs give.

    Raises:
        ConfigError: A glob matches nothing.
    """
    decoder = list(model.decoder_layers.values())
    numbered: dict[str, nn.Module] = {f"layer_{i}": layer for i, layer in enumerate(decoder)}
    if options.layers == ("all",):
        return LayerSelection(numbered, {OUTPUT: None})
    if options.layers == ("last",):
        return LayerSelection(dict([numbered.popitem()]), {OUTPUT: None})
    return select_layers(model, options.layers, owner=name)


def make_extractor(options: ExtractionOptions) -> Extractor:
    """How layers become rows; at token level the output is the last hidden states."""
    tokens = options.level == "token"
    return Extractor(
        (),
        options.layers,
        forward=_hidden_states if tokens else None,
        pooling="none" if tokens else options.pooling,
        exclude_first_token=options.exclude_first_token,
    )


def _hidden_states(module: nn.Module, batch: Any) -> Any:
    return cast(EmbeddingModel, module).transformer(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
