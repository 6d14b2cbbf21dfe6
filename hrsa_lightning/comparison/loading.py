"""Models of a comparison: what is known before weights are read, and the models themselves."""

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from hrsa_lightning.comparison.options import Look
from hrsa_lightning.config.schema import ModelConfig
from hrsa_lightning.models.backbone import load_tokenizer
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, InstructionMask
from hrsa_lightning.similarity.extraction import Extractor
from hrsa_lightning.similarity.layers import LayerSelection, select_layers
from hrsa_lightning.sources import Source
from hrsa_lightning.sources.loading import check_source

__all__ = ["OUTPUT", "KnownModel", "extractor_of", "know", "wanted_layers"]

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


def know(name: str, source: Source, look: Look) -> KnownModel:
    """Read what decides how a model is loaded; refuse what is no decoder, and misfit adapters.

    Raises:
        BackboneError: See `check_source` and `load_tokenizer`.
    """
    trust = source.model is not None and source.model.trust_remote_code
    config: Any = check_source(source, trust_remote_code=trust)
    tokenizer = load_tokenizer(source.backbone, revision=source.revision, trust_remote_code=trust)
    model = source.model
    if model is None:
        own = "causal" if getattr(config, "is_causal", True) else "bidirectional"
        attention = own if look.attention == "auto" else look.attention
        model = ModelConfig(attention=attention, pooling=look.pooling)
    model = replace(model, dtype=look.dtype or model.dtype)
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


def wanted_layers(model: EmbeddingModel, look: Look, name: str) -> LayerSelection:
    """The layers to look at, as `layer_0`, `layer_1`, … and `output`, or by the globs' names.

    Raises:
        ConfigError: A glob matches nothing.
    """
    decoder = list(model.decoder_layers.values())
    numbered = {f"layer_{index}": layer for index, layer in enumerate(decoder)}
    if look.layers == ("all",):
        return LayerSelection(dict(numbered), {OUTPUT: None})
    if look.layers == ("last",):
        return LayerSelection(dict([numbered.popitem()]), {OUTPUT: None})
    return select_layers(model, look.layers, owner=name)


def extractor_of(look: Look) -> Extractor:
    """How layers become rows; at token level the output is the last hidden states."""
    if look.level == "sentence":
        pooled = look.exclude_first_token
        return Extractor((), look.layers, pooling=look.pooling, exclude_first_token=pooled)
    return Extractor(
        (),
        look.layers,
        forward=_hidden_states,
        pooling="none",
        exclude_first_token=look.exclude_first_token,
    )


def _hidden_states(module: nn.Module, batch: Any) -> Any:
    return cast(EmbeddingModel, module).transformer(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
