"""Bidirectional attention for decoder models, by configuration, and proof that it took effect.

transformers (5.2 and later) builds a bidirectional mask when `config.is_causal` is false, and saves
that with the config. Families follow it in nearly all cases, but not in all (stablelm ignores it
under sdpa), so `ensure_attention` looks at what each decoder layer really does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hrsa_lightning.errors import BackboneError, first_line

Attention = Literal["bidirectional", "causal"]

_SOFTMAX_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# Three real tokens: the ends are two apart, which is within every sliding window in use.
_NUM_REAL, _NUM_PADDING = 3, 2


def configure_attention(config: PretrainedConfig, attention: Attention) -> None:
    """Writes the wished attention into `config`, before the model is made from it.

    Raises:
        BackboneError: `attention` is "bidirectional" and the config names layers that are causal by
            nature, such as linear attention.
    """
    recurrent = sorted(set(getattr(config, "layer_types", None) or ()) - _SOFTMAX_LAYERS)
    if attention == "bidirectional" and recurrent:
        raise BackboneError(
            f"{config.model_type}: layers of type {', '.join(recurrent)} are causal by nature, so "
            "attention='bidirectional' cannot be had; choose attention='causal'"
        )
    config.is_causal = attention == "causal"


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Decoder layers of a transformer by their name within it, first to last.

    They are the outermost module list that has as many entries as the config counts layers.

    Raises:
        BackboneError: there is no such list.
    """
    num_layers = model.config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not lists:
        raise BackboneError(
            f"{type(model).__name__}: found no list of {num_layers} decoder layers "
            "(config.num_hidden_layers)"
        )
    name, layers = min(lists, key=lambda item: item[0].count("."))
    return {f"{name}.{index}": layer for index, layer in enumerate(layers)}


def ensure_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Makes sure that every decoder layer attends as wished, and falls back to a 4-D mask.

    Call it on a model whose config went through `configure_attention`. The global RNG, train or
    eval mode and gradients are left as they were.

    Raises:
        BackboneError: the layers attend otherwise, and a 4-D mask does not help.
    """
    problem = attention_problem(model, attention)
    if problem is None:
        return
    # An explicit mask would be the same for all layers and so would widen sliding windows.
    if attention == "bidirectional" and getattr(model.config, "sliding_window", None) is None:
        hook = model.register_forward_pre_hook(expand_attention_mask, with_kwargs=True)
        if attention_problem(model, attention) is None:
            return
        hook.remove()
    raise BackboneError(
        f"{model.config.model_type} with attn_implementation="
        f"{model.config._attn_implementation!r}: attention={attention!r} cannot be had ({problem})"
    )


def attention_problem(model: PreTrainedModel, attention: Attention) -> str | None:
    """What is wrong with how the decoder layers attend, in words, or None.

    Each layer is fed with random hidden states, and the gradient of its output tells which tokens
    it looked at: a token that is masked out has a gradient of exactly zero, in every dtype. Looked
    at with and without padding in the batch, since implementations choose their kernels by that.
    """
    for num_padding in (0, _NUM_PADDING):
        try:
            seen = _tokens_seen(model, num_padding)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"a trial forward pass failed: {first_line(error)}"
        padded = "with padding" if num_padding else "without padding"
        for layer, (by_first, by_last) in seen.items():
            if (by_first | by_last)[_NUM_REAL:].any():
                return f"in {layer} real tokens see padding"
            if not by_last[0]:
                return f"in {layer} the last token does not see the first, {padded}"
            if bool(by_first[_NUM_REAL - 1]) != (attention == "bidirectional"):
                verb = "does not see" if attention == "bidirectional" else "sees"
                return f"in {layer} the first token {verb} the last, {padded}"
    return None


def mask_of_known_padding(
    model: PreTrainedModel, attention_mask: Tensor, is_padded: bool
) -> Tensor | None:
    """The mask that transformers would make of a (batch, tokens) one, without a look at its values.

    Under sdpa it takes a faster kernel where nothing is padding, and asks the device for that in
    every forward pass, so that the host waits for all it has queued. Whoever padded knows. A mask
    that means something else to some layers (windows, causal attention) is returned as it is.
    """
    config: Any = model.config
    simple = (
        config._attn_implementation == "sdpa"
        and not getattr(config, "is_causal", True)
        and not model._forward_pre_hooks  # `ensure_attention` had to expand masks
        and getattr(config, "sliding_window", None) is None
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    )
    if not simple:
        return attention_mask
    if not is_padded:
        return None
    batch, tokens = attention_mask.shape
    return attention_mask.bool()[:, None, None, :].expand(batch, 1, tokens, tokens)


def expand_attention_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook: (batch, tokens) mask to an additive (batch, 1, tokens, tokens) one."""
    mask = kwargs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    dtype = next(module.parameters()).dtype
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    additive = additive.masked_fill(mask == 0, torch.finfo(dtype).min)
    batch, tokens = mask.shape
    expanded = additive[:, None, None, :].expand(batch, 1, tokens, tokens)
    return args, {**kwargs, "attention_mask": expanded}


def _tokens_seen(model: PreTrainedModel, num_padding: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Per layer, which tokens the first and the last real token see; booleans of shape (tokens,).

    With padding, the batch has a full row besides, as it has in training.
    """
    num_tokens = _NUM_REAL + num_padding
    device = next(model.parameters()).device
    mask = torch.ones(2 if num_padding else 1, num_tokens, dtype=torch.long, device=device)
    mask[-1, _NUM_REAL:] = 0
    input_ids = torch.arange(num_tokens, device=device).expand(len(mask), -1)
    input_ids = input_ids % model.config.vocab_size
    with evaluating(model), torch.enable_grad(), _isolated_layers(model) as passes:
        model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        return {
            name: (_seen_by(0, *passed), _seen_by(_NUM_REAL - 1, *passed))
            for name, passed in passes.items()
        }


def _seen_by(token: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(outputs.shape[2], generator=generator).to(outputs)
    (gradient,) = torch.autograd.grad(
        (outputs[-1, token] * direction).sum(), inputs, retain_graph=True
    )
    return (gradient[-1] != 0).any(1)


@contextmanager
def _isolated_layers(model: PreTrainedModel) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Feeds each layer random hidden states of its own; yields its inputs and outputs by name."""
    passes: dict[str, tuple[Tensor, Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def replace(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        live = args[0] if args else kwargs["hidden_states"]
        fresh = torch.randn(live.shape, generator=generator).to(live).requires_grad_()
        inputs[name] = fresh
        return ((fresh, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": fresh})

    def record(name: str, output: Any) -> None:
        passes[name] = (inputs[name], output[0] if isinstance(output, tuple) else output)

    handles = []
    for name, layer in decoder_layers(model).items():
        handles.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: replace(name, args, kwargs), with_kwargs=True
            )
        )
        handles.append(
            layer.register_forward_hook(lambda _, args, output, name=name: record(name, output))
        )
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a block; each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
