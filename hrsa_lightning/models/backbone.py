"""Loads a decoder LM without its head, and its tokenizer: safetensors only, no remote code unasked.

Anything wrong with the request raises `BackboneError` before weights are read.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hrsa_lightning.errors import BackboneError, EncoderError
from hrsa_lightning.io.pretrained import check_weights, read_tokenizer
from hrsa_lightning.models.attention import Attention, configure_attention, ensure_attention
from hrsa_lightning.models.paths import resolve_backbone

DType = Literal["float32", "bfloat16", "float16", "auto"]
AttnImplementation = Literal["sdpa", "eager", "flash_attention_2"]
Quantization = Literal["nf4"]


def load_backbone(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: DType = "float32",
    attn_implementation: AttnImplementation = "sdpa",
    attention: Attention = "bidirectional",
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Loads the transformer of a decoder LM (no LM head), on the CPU and in evaluation mode.

    That every layer attends as asked is verified on the loaded model, see
    `hrsa_lightning.models.attention`.

    Args:
        path: local folder, hub id, or `embedded:NAME`.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" takes the checkpoint's.
        attn_implementation: "flash_attention_2" needs a CUDA device and a 16-bit dtype. It gets the
            mask of real tokens as it is, and computes attention without the padding.
        attention: "bidirectional" (every token sees every real token) or "causal".
        trust_remote_code: run Python files that come with the model.
        quantization: "nf4" keeps the weights of linear layers in 4 bits, their scales quantized
            too (QLoRA, arXiv 2305.14314), for adapters to be trained on. It needs bitsandbytes and
            a CUDA device, and the model stays there.
        device: the CUDA device that `quantization` loads to and `flash_attention_2` is verified on,
            where each of several processes has its own; None takes the process's current one.

    Returns:
        The transformer; its `config.is_causal` says which attention it has, also once saved.

    Raises:
        BackboneError: no such model; not a decoder; no safetensors; weights are missing; the
            attention cannot be had.
    """
    source = resolve_backbone(path)
    config = load_backbone_config(source, revision, trust_remote_code)
    configure_attention(config, attention)
    flash = attn_implementation == "flash_attention_2"
    place = torch.device("cpu")
    quantized: dict[str, Any] = {}
    if flash or quantization is not None:
        place = _cuda_device(f"{attn_implementation=}" if flash else f"{quantization=}", device)
    if quantization is not None:
        quantized = _quantization_options(quantization, dtype, place)
    check_weights(source, revision)
    model = _load_weights(
        source,
        config,
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        **quantized,
    )
    if flash and not quantized:
        nn.Module.to(model, place)
        ensure_attention(model, attention)
        nn.Module.to(model, "cpu")
    else:
        ensure_attention(model, attention)
    return model


def load_tokenizer(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer of a backbone.

    It is read by `io.pretrained.read_tokenizer`, with the checkpoint's own rules. A tokenizer
    without a pad token pads with its end-of-sequence token: padding is masked out, so that any
    token would do.

    Args:
        path: as of `load_backbone`.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python files that come with the tokenizer.

    Returns:
        A tokenizer of `transformers` that gives character offsets and has a pad token.

    Raises:
        BackboneError: there is no tokenizer, it is not a fast one (character offsets are needed),
            or it has neither a pad nor an end-of-sequence token.
    """
    source = resolve_backbone(path)
    try:
        tokenizer = read_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(
            f"backbone {str(path)!r}: its tokenizer cannot be loaded: {_first_sentence(error)}"
        ) from error
    # Some classes make an empty tokenizer where there are no files.
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        raise BackboneError(f"backbone {str(path)!r} has no tokenizer.json or other vocabulary")
    if not tokenizer.is_fast:
        raise BackboneError(
            f"backbone {str(path)!r}: {type(tokenizer).__name__} is not a fast tokenizer, and "
            "character offsets need one (is tokenizer.json missing?)"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BackboneError(
                f"backbone {str(path)!r}: its tokenizer has neither a pad nor an eos token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    # Instructions stand in front and are found from there, whatever the checkpoint prefers.
    tokenizer.truncation_side = "right"
    return cast(PreTrainedTokenizerFast, tokenizer)


def load_backbone_config(
    source: str, revision: str | None, trust_remote_code: bool
) -> PretrainedConfig:
    """Reads a backbone's config.json and no weights.

    Raises:
        BackboneError: The config cannot be had, needs code of its own, or is of no decoder LM.
    """
    try:
        config: Any = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # classes of configs raise what they like when a value is wrong
        if "trust_remote_code" in str(error):
            problem = "it comes with Python code of its own; trust_remote_code=True would run it"
        elif Path(source).is_dir():
            problem = _first_sentence(error)
        else:
            problem = (
                f"neither a folder nor a model to be had from the hub: {_first_sentence(error)}"
            )
        raise BackboneError(f"backbone {source!r}: {problem}") from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise BackboneError(
            f"backbone {source!r}: {kind} is an encoder-decoder; expected a decoder"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise EncoderError(f"backbone {source!r}: {kind} is an encoder; expected a decoder LM")
    if config.get_text_config() is not config:
        raise BackboneError(
            f"backbone {source!r}: {kind} has more than a language model in it; expected a decoder "
            "LM alone"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust_remote_code:
        raise BackboneError(
            f"backbone {source!r}: {kind} is not a decoder LM known to transformers"
        )
    return cast(PretrainedConfig, config)


def _load_weights(source: str, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    try:
        # Some families draw random numbers while they load.
        with torch.random.fork_rng(devices=[]), _without_report():
            loaded: Any = AutoModel.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a config that was edited ends in anything, assertions too
        raise BackboneError(
            f"backbone {source!r} with attn_implementation={options['attn_implementation']!r} "
            f"cannot be loaded: {_first_sentence(error)}"
        ) from error
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackboneError(
            f"backbone {source!r}: the checkpoint lacks {len(missing)} weights, such as "
            f"{missing[0]!r}"
        )
    for name, saved, expected in sorted(info["mismatched_keys"]):
        raise BackboneError(
            f"backbone {source!r}: config.json asks for {name!r} of shape {tuple(expected)}, the "
            f"checkpoint has {tuple(saved)}"
        )
    for name, weight in model.named_parameters():
        # The sum takes no memory and is finite where all are; if it overflows, all are asked.
        finite = not weight.is_floating_point() or weight.sum(dtype=torch.float32).isfinite()
        if not finite and not weight.isfinite().all():
            raise BackboneError(f"backbone {source!r}: {name!r} holds NaN or infinite weights")
    nn.Module.eval(model)
    return model


@contextmanager
def _without_report() -> Iterator[None]:
    """Silences the tables in which transformers tells of weights that did not fit."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cuda_device(asked: str, device: torch.device | str | None) -> torch.device:
    """The CUDA device that is meant, with its number."""
    place = torch.device("cuda" if device is None else device)
    if not torch.cuda.is_available():
        raise BackboneError(f"{asked} needs a CUDA device, and none is available")
    if place.type != "cuda":
        raise BackboneError(f"{asked} needs a CUDA device, got {place}")
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def _quantization_options(
    quantization: Quantization, dtype: DType, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights of 4 bits on a CUDA device."""
    asked = f"quantization={quantization!r}"
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"{asked} needs the bitsandbytes package: pip install bitsandbytes")
    computing = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computing,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _first_sentence(error: BaseException) -> str:
    """The messages of transformers run over many lines; the first sentence says what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = " ".join(map(str.strip, lines[:2])) if lines[0].endswith(":") else lines[0]
    return first.split(". ")[0].rstrip(".")


def has_dropout(model: nn.Module) -> bool:
    """Whether a model draws random numbers in training: dropout in layers, adapters or attention.

    Example:
        >>> has_dropout(nn.Sequential(nn.Dropout(0.0))), has_dropout(nn.Sequential(nn.Dropout(0.1)))
        (False, True)
    """
    return any(
        (module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0))
        > 0
        for module in model.modules()
    )
