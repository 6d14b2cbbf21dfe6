"""A decoder LM as an embedding model: backbone (with or without LoRA), pooling, normalization."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import PreTrainedModel

from hrsa_lightning.errors import BackboneError
from hrsa_lightning.io.distributed import gather_on_rank_zero, rank
from hrsa_lightning.models.attention import (
    Attention,
    decoder_layers,
    evaluating,
    mask_of_known_padding,
)
from hrsa_lightning.models.backbone import (
    AttnImplementation,
    DType,
    Quantization,
    load_backbone,
    load_tokenizer,
)
from hrsa_lightning.models.chunks import length_sorted_chunks, restore_order
from hrsa_lightning.models.lora import add_lora, cast_frozen_linears, load_lora
from hrsa_lightning.models.pooling import POOLINGS, l2_normalize
from hrsa_lightning.models.tokenization import (
    EmbeddingTokenizer,
    InstructionMask,
    Text,
    TokenizedTexts,
)

Pooling = Literal["mean", "weighted_mean", "last", "first"]


class EmbeddingModel(nn.Module):
    """Texts in, one embedding per text out.

    Shapes: input_ids, attention_mask and pool_mask (batch, tokens), embeddings (batch, features).

    Args:
        backbone: transformer without a head, as it comes from `load_backbone`, or wrapped by peft.
        tokenizer: turns texts into tokens and pool masks.
        pooling: "mean" and "weighted_mean" pool the tokens of the pool mask, "last" and "first"
            take the last and the first real token.
        normalize: scale embeddings to length 1.

    Raises:
        ValueError: `pooling` is unknown.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | PeftModel,
        tokenizer: EmbeddingTokenizer,
        pooling: Pooling = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"Expected `pooling` one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self._frozen_dtype: torch.dtype | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: DType = "float32",
        attn_implementation: AttnImplementation = "sdpa",
        attention: Attention = "bidirectional",
        pooling: Pooling = "mean",
        normalize: bool = True,
        lora: Mapping[str, Any] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        instruction_mask: InstructionMask = "offsets",
        quantization: Quantization | None = None,
        device: torch.device | str | None = None,
    ) -> "EmbeddingModel":
        """Loads a backbone and makes an embedding model of it, in training mode.

        Args:
            path: see `load_backbone`, as for `revision`, `dtype`, `attn_implementation`,
                `attention` and `trust_remote_code`.
            pooling: see the class; "last" ends each text with the end-of-sequence token.
            normalize: see the class.
            lora: arguments of `add_lora`; None trains all weights.
            adapter: folder written by `save_adapter`, whose adapter goes on the backbone; excludes
                `lora`.
            seed: draws the initial LoRA weights.
            gradient_checkpointing: recompute activations in the backward pass.
            instruction_mask: see `EmbeddingTokenizer`.
            quantization: see `load_backbone`; only adapters can be trained then.
            device: see `load_backbone`; the model moves there only if it is quantized.

        Raises:
            BackboneError: see `load_backbone`, `load_tokenizer` and `add_lora`; or `adapter` is no
                adapter of this backbone.
            ValueError: both `lora` and `adapter` are given, or neither with `quantization`.
        """
        if lora is not None and adapter is not None:
            raise ValueError("Expected one of `lora` and `adapter`, got both")
        if quantization is not None and lora is None and adapter is None:
            raise ValueError("Expected `lora` or `adapter` with `quantization`, got neither")
        tokenizer = EmbeddingTokenizer(
            load_tokenizer(path, revision=revision, trust_remote_code=trust_remote_code),
            instruction_mask=instruction_mask,
            add_eos=pooling == "last",
        )
        transformer = load_backbone(
            path,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            attention=attention,
            trust_remote_code=trust_remote_code,
            quantization=quantization,
            device=device,
        )
        rows = cast(nn.Embedding, transformer.get_input_embeddings()).num_embeddings
        largest = max(tokenizer.tokenizer.get_vocab().values())
        if largest >= rows:
            raise BackboneError(
                f"backbone {os.fspath(path)!r}: its tokenizer has ids up to {largest}, and its "
                f"embedding table {rows} rows"
            )
        if quantization is not None:
            transformer = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
                transformer, use_gradient_checkpointing=False
            )
        backbone: PreTrainedModel | PeftModel = transformer
        if lora is not None:
            backbone = add_lora(transformer, **lora, seed=seed)
        elif adapter is not None:
            backbone = load_lora(transformer, adapter)
        model = cls(backbone, tokenizer, pooling, normalize)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return model.train()

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformer itself, adapters in place, without peft's wrapper."""
        if isinstance(self.backbone, PeftModel):
            return cast(PreTrainedModel, self.backbone.get_base_model())
        return self.backbone

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def embedding_dim(self) -> int:
        """Features of an embedding."""
        return int(self.transformer.config.hidden_size)

    @property
    def max_positions(self) -> int | None:
        """Most tokens of a text, where positions are looked up in a table; else `None`."""
        limit: int = getattr(self.transformer.config, "max_position_embeddings", None) or 0
        tables = [m for m in self.transformer.modules() if isinstance(m, nn.Embedding)]
        others = [m for m in tables if m is not self.transformer.get_input_embeddings()]
        # Some families put a few rows for padding in front.
        return limit if any(0 <= table.num_embeddings - limit <= 2 for table in others) else None

    @property
    def num_layers(self) -> int:
        """Decoder layers of the backbone."""
        return len(self.decoder_layers)

    @property
    def decoder_layers(self) -> dict[str, nn.Module]:
        """Decoder layers, first to last, by their name within this module."""
        names = {module: name for name, module in self.named_modules()}
        return {names[layer]: layer for layer in decoder_layers(self.transformer).values()}

    def layer_names(self) -> list[str]:
        """Names of the decoder layers, such as `backbone.base_model.model.layers.0`."""
        return list(self.decoder_layers)

    def tokenize(self, texts: Sequence[Text], max_length: int) -> TokenizedTexts:
        """Tokens of plain texts or (instruction, text) pairs, cut to `max_length` each."""
        return self.tokenizer.encode(texts, max_length)

    def probe_batch(self, texts: Sequence[Text], max_length: int) -> dict[str, Tensor]:
        """The arguments of `forward` for `texts` of at most `max_length` tokens, on the CPU."""
        return self.tokenize(texts, max_length).pad(self.tokenizer.pad_token_id)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pool_mask: Tensor | None = None,
        is_padded: bool | None = None,
    ) -> Tensor:
        """Embeddings of right-padded texts.

        Args:
            input_ids: shape (batch, tokens), integers.
            attention_mask: real tokens, shape (batch, tokens).
            pool_mask: tokens that mean pooling may use, shape (batch, tokens). All real tokens
                where it is None, or false all along a row (an instruction that fills the text).
            is_padded: whether any token is padding, where that is known: else the device is asked.

        Returns:
            Shape (batch, features), float32, of length 1 if `normalize`.
        """
        # The transformer is called directly: peft's wrapper would pass by its forward hooks, and
        # one of them makes the 4-D mask where `ensure_attention` found that it takes one.
        transformer = self.transformer
        seen: Tensor | None = attention_mask
        if is_padded is not None:
            seen = mask_of_known_padding(transformer, attention_mask, is_padded)
        with self._autocast():
            hidden_states = transformer(
                input_ids=input_ids, attention_mask=seen, use_cache=False
            ).last_hidden_state
        mask = attention_mask.bool()
        if pool_mask is not None and self.pooling in ("mean", "weighted_mean"):
            mask = torch.where(pool_mask.any(1, keepdim=True), pool_mask, mask)
        embeddings = POOLINGS[self.pooling](hidden_states, mask)
        return l2_normalize(embeddings) if self.normalize else embeddings

    def cast_frozen_weights(self, dtype: torch.dtype) -> None:
        """Keeps the frozen weights of linear layers in `dtype`, for training LoRA with autocast.

        In mixed precision autocast casts them anyway: loss and gradients are the same to the bit,
        but the weights take half of the memory and no copy of them is saved with every chunk of
        texts whose graph is kept. Trained weights stay in float32. Outside of autocast the model
        then computes with autocast of this dtype. For the full precision of the backbone, merge a
        saved adapter into a freshly loaded backbone, as `export` does.

        Args:
            dtype: That of autocast. Without LoRA nothing is frozen, and nothing happens.
        """
        if isinstance(self.backbone, PeftModel) and cast_frozen_linears(self.backbone, dtype):
            self._frozen_dtype = dtype

    def _autocast(self) -> AbstractContextManager[object]:
        """Autocast where `cast_frozen_weights` makes it necessary and the caller has none."""
        device = self.device.type
        if self._frozen_dtype is None or torch.is_autocast_enabled(device):
            return nullcontext()
        return torch.autocast(device, self._frozen_dtype)

    def encode_texts(
        self, tokens: TokenizedTexts, max_tokens_per_chunk: int | None = None
    ) -> Tensor:
        """Embeddings of tokenized texts, chunk by chunk, with gradient where it is enabled.

        Args:
            tokens: any number of texts.
            max_tokens_per_chunk: most padded tokens of a chunk, see `length_sorted_chunks`; None
                takes all texts at once.

        Returns:
            Shape (texts, features), in the order of `tokens`.
        """
        if not len(tokens):
            return torch.zeros(0, self.embedding_dim, device=self.device)
        tokens = tokens.to(self.device, non_blocking=True)
        chunks = length_sorted_chunks(tokens.lengths, max_tokens_per_chunk or sys.maxsize)
        return restore_order([self.encode_chunk(tokens, chunk) for chunk in chunks], chunks)

    def encode_chunk(self, tokens: TokenizedTexts, texts: Tensor) -> Tensor:
        """Embeddings of some texts in one forward pass, for which the host does not wait.

        Args:
            tokens: on the device of the model.
            texts: numbers of the texts to encode, shape (texts,), on the CPU.

        Returns:
            Shape (texts, features).
        """
        lengths = tokens.lengths[texts]
        is_padded = bool(lengths.min() < lengths.max())
        padded = tokens.pad(self.tokenizer.pad_token_id, texts)
        return cast(Tensor, self(**padded, is_padded=is_padded))

    @torch.no_grad()
    def embed(self, texts: Sequence[Text], max_length: int = 512, batch_size: int = 64) -> Tensor:
        """Embeddings of texts as a user wants them: in evaluation mode, without gradient.

        Args:
            texts: plain texts or (instruction, text) pairs.
            max_length: most tokens of a text.
            batch_size: texts of full length per forward pass; more where they are shorter.

        Returns:
            Shape (texts, features), in the order of `texts`.
        """
        with evaluating(self):
            return self.encode_texts(self.tokenize(texts, max_length), batch_size * max_length)

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes each layer's activations in the backward pass, in training mode only."""
        transformer: Any = self.transformer
        # Older releases of transformers know the second name only.
        enable = getattr(transformer, "activation_checkpointing_enable", None)
        (enable or transformer.gradient_checkpointing_enable)({"use_reentrant": False})

    def save_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Writes what was trained into a folder: a LoRA adapter in peft's format, or the backbone.

        Both are safetensors. The whole backbone comes with its tokenizer, and its config.json keeps
        `is_causal`, so that it is loaded with the same attention. Where ranks share the weights
        out (FSDP2), all of them have to call it; only rank 0 writes.
        """
        backbone = self.backbone
        with_adapter = isinstance(backbone, PeftModel)
        state = {
            name: gather_on_rank_zero(weight)
            for name, weight in backbone.named_parameters()
            if weight.requires_grad or not with_adapter
        }
        if rank() > 0:
            return
        if isinstance(backbone, PeftModel):
            # "auto" would ask the hub whether the vocabulary has grown; we never grow it.
            backbone.save_pretrained(
                os.fspath(folder), state_dict=state, save_embedding_layers=False
            )
        else:
            backbone.save_pretrained(folder, state_dict=state)
            self.tokenizer.tokenizer.save_pretrained(folder)
