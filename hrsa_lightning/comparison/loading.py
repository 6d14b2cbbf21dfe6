"""Models of a comparison: what is known before weights are read, and the models themselves."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hrsa_lightning.checkpoints import SafetensorsCheckpointIO
from hrsa_lightning.comparison.options import Look
from hrsa_lightning.comparison.sources import ModelSource
from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models.attention import Attention
from hrsa_lightning.models.backbone import DType, load_backbone_config, load_tokenizer
from hrsa_lightning.models.embedder import EmbeddingModel, Pooling
from hrsa_lightning.models.tokenization import EmbeddingTokenizer, InstructionMask
from hrsa_lightning.representations.capture import CaptureOptions
from hrsa_lightning.representations.layers import LayerSelection, select_layers

__all__ = ["OUTPUT", "KnownModel", "capture_options", "know", "open_model", "wanted_layers"]

OUTPUT = "output"


@dataclass(frozen=True)
class KnownModel:
    """A model whose config and tokenizer were read.

    Attributes:
        source: Which one.
        tokenizer: As the model will use it.
        attention: `causal` or `bidirectional`.
        pooling: Of its embedding.
        normalize: Whether its embedding has length 1.
        dtype: Of the weights.
        num_layers: Decoder layers.
        width: Features of each.
        identity: Changes when the weights do.
    """

    source: ModelSource
    tokenizer: EmbeddingTokenizer
    attention: Attention
    pooling: Pooling
    normalize: bool
    dtype: DType
    num_layers: int
    width: int
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its source."""
        return self.source.name


def know(source: ModelSource, look: Look) -> KnownModel:
    """Read what decides how a model is loaded, and refuse what is no decoder.

    Raises:
        BackboneError: See `load_backbone` and `load_tokenizer`.
    """
    trained = source.trained
    trust = trained is not None and trained.trust_remote_code
    config: Any = load_backbone_config(source.backbone, source.revision, trust)
    tokenizer = load_tokenizer(source.backbone, revision=source.revision, trust_remote_code=trust)
    pooling = look.pooling if trained is None else trained.pooling
    mask = "offsets" if trained is None else trained.instruction_mask
    own = "causal" if getattr(config, "is_causal", True) else "bidirectional"
    attention = own if look.attention == "auto" else look.attention
    return KnownModel(
        source,
        EmbeddingTokenizer(
            tokenizer,
            instruction_mask=cast(InstructionMask, mask),
            add_eos=pooling == "last",
        ),
        cast(Attention, attention if trained is None else trained.attention),
        cast(Pooling, pooling),
        trained is None or trained.normalize,
        cast(DType, look.dtype or (trained.dtype if trained else "float32")),
        config.num_hidden_layers,
        config.hidden_size,
        source.identity(getattr(config, "_commit_hash", None)),
    )


def open_model(known: KnownModel, device: torch.device) -> EmbeddingModel:
    """Load a model in evaluation mode.

    Raises:
        BackboneError: See `EmbeddingModel.from_pretrained`; or the weights of a checkpoint do not
            fit the backbone.
    """
    source, trained = known.source, known.source.trained
    model = EmbeddingModel.from_pretrained(
        source.backbone,
        revision=source.revision,
        dtype=known.dtype,
        attn_implementation=cast(Any, trained.attn_implementation if trained else "sdpa"),
        attention=known.attention,
        pooling=known.pooling,
        normalize=known.normalize,
        adapter=source.adapter,
        trust_remote_code=trained is not None and trained.trust_remote_code,
        instruction_mask=known.tokenizer.instruction_mask,
    )
    if source.checkpoint is not None:
        folder, arm = source.checkpoint
        try:
            model.load_state_dict(_arm_weights(folder, arm))
        except RuntimeError as error:
            problem = " ".join(str(error).split())
            raise BackboneError(
                f"{folder}: the weights of arm {arm!r} do not fit its backbone: {problem:.200}"
            ) from error
    return model.to(device).eval()


def _arm_weights(checkpoint: Any, arm: str) -> dict[str, Tensor]:
    content = SafetensorsCheckpointIO().load_checkpoint(checkpoint)
    prefix = f"arms.{arm}."
    return {
        name.removeprefix(prefix): value
        for name, value in content["state_dict"].items()
        if name.startswith(prefix)
    }


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


def capture_options(look: Look) -> CaptureOptions:
    """How layers become rows; at token level the output is the last hidden states."""
    if look.level == "sentence":
        return CaptureOptions(pooling=look.pooling, exclude_first_token=look.exclude_first_token)
    return CaptureOptions(
        forward=_hidden_states, pooling="none", exclude_first_token=look.exclude_first_token
    )


def _hidden_states(module: nn.Module, batch: Any) -> Any:
    return cast(EmbeddingModel, module).transformer(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
