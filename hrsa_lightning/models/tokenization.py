"""Texts to tokens: ragged batches that are padded late, and masks that leave instructions out.

Shapes: a batch of n texts with t tokens in all is held as input_ids (t,), pool_mask (t,) and
lengths (n,); padded to its longest text it is (n, longest).
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.pairs import DEFAULT_TEMPLATE

InstructionMask = Literal["offsets", "authors"]
Text = str | tuple[str, str] | list[str]

TEXTS_AT_ONCE = 256
"""Until they are cut, tokens of a text take a hundred bytes each."""


@dataclass(eq=False)  # not frozen: Lightning rebuilds batches field by field under 16-bit weights
class TokenizedTexts:
    """Tokens of several texts, one after another and without padding.

    Any selection of texts can be padded later, to the length that this selection needs. It moves
    with Lightning's batch transfer, pickles, and can be pinned.

    Attributes:
        input_ids: tokens of all texts, shape (tokens,), int64.
        pool_mask: which tokens the pooling may use, shape (tokens,), bool.
        lengths: tokens of each text, shape (texts,), int64. It decides shapes, and so it stays on
            the CPU when the rest moves to a device.

    Example:
        >>> texts = TokenizedTexts(
        ...     torch.tensor([5, 6, 7, 8]), torch.ones(4, dtype=torch.bool), torch.tensor([1, 3])
        ... )
        >>> texts.pad(pad_token_id=0)["input_ids"]
        tensor([[5, 0, 0],
                [6, 7, 8]])
    """

    input_ids: Tensor
    pool_mask: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.input_ids.device

    @classmethod
    def cat(cls, batches: Sequence["TokenizedTexts"]) -> "TokenizedTexts":
        """The texts of several batches as one batch, in order."""
        return cls(
            torch.cat([batch.input_ids for batch in batches]),
            torch.cat([batch.pool_mask for batch in batches]),
            torch.cat([batch.lengths for batch in batches]),
        )

    def select(self, indices: Tensor | Sequence[int]) -> "TokenizedTexts":
        """The texts at `indices`, in that order; an index may come more than once."""
        index = torch.as_tensor(indices, dtype=torch.long, device="cpu")
        lengths = self.lengths[index]
        starts = self._starts()[index]
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(
            lengths.cumsum(0) - lengths, lengths
        )
        places = torch.repeat_interleave(starts, lengths) + within
        places = places.to(self.device, non_blocking=True)
        return TokenizedTexts(self.input_ids[places], self.pool_mask[places], lengths)

    def pad(
        self, pad_token_id: int, indices: Tensor | Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Right-padded tensors of texts.

        Args:
            pad_token_id: What fills them up.
            indices: Which texts, in this order; `None` takes all.

        Returns:
            `input_ids` (int64), `attention_mask` (int64) and `pool_mask` (bool), each of shape
            (texts, longest of these texts).
        """
        lengths, starts = self.lengths, self._starts()
        if indices is not None:
            index = torch.as_tensor(indices, dtype=torch.long, device="cpu")
            lengths, starts = lengths[index], starts[index]
        # One small copy that the host does not wait for; the rest is made where the tokens are.
        spans = torch.stack([starts, lengths]).to(self.device, non_blocking=True)
        starts, ends = spans.unsqueeze(2)
        positions = torch.arange(int(lengths.max()) if len(lengths) else 0, device=self.device)
        real = positions < ends
        places = (starts + positions) * real
        return {
            "input_ids": self.input_ids[places].masked_fill(~real, pad_token_id),
            "attention_mask": real.long(),
            "pool_mask": self.pool_mask[places] & real,
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TokenizedTexts":
        """A copy on another device (waited for, unless `non_blocking`); `lengths` stays here."""
        return TokenizedTexts(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.pool_mask.to(device, non_blocking=non_blocking),
            self.lengths,
        )

    def pin_memory(self) -> "TokenizedTexts":
        """A copy in page-locked memory, for DataLoader's `pin_memory`."""
        return TokenizedTexts(
            self.input_ids.pin_memory(), self.pool_mask.pin_memory(), self.lengths
        )

    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths


class EmbeddingTokenizer:
    """Tokenizes plain texts and (instruction, text) pairs for an embedding model.

    A pair becomes `template.format(instruction=instruction) + text`, and the tokens of the first
    part are left out of the pooling; an empty instruction makes it a plain text. Two ways to find
    them:

    - "offsets": a token that holds any character of the text belongs to the text, and so does the
      template's last space: most tokenizers join it to the first word, and where they do not
      (digits, Chinese) it is left with the text as well. The tokens that are left out are thus the
      same for all texts behind one instruction, as sentence-transformers needs them to be.
    - "authors": as many tokens as the first part has when tokenized alone, as in the code of arXiv
      2601.21192 (and in sentence-transformers). The template's last space, a token of its own when
      alone, joins the first word of the text, so that this word's first token is left out too.

    Tokens that the tokenizer puts before a text (bos) count as instruction in a pair, and those
    behind it (eos) as text.

    Args:
        tokenizer: a fast tokenizer with a pad token.
        template: what goes before the text of a pair; holds `{instruction}`.
        instruction_mask: "offsets" or "authors".
        characters_per_token: texts are cut to so many characters per allowed token before they are
            tokenized, so that a huge text costs no time; None cuts nothing.
        add_eos: end each text with the end-of-sequence token, also when it is truncated.

    Raises:
        ValueError: an argument is out of its range, or `add_eos` without an eos token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str = DEFAULT_TEMPLATE,
        instruction_mask: InstructionMask = "offsets",
        characters_per_token: int | None = 10,
        add_eos: bool = False,
    ) -> None:
        if "{instruction}" not in template:
            raise ValueError(f"Expected `template` to hold {{instruction}}, got {template!r}")
        if instruction_mask not in ("offsets", "authors"):
            raise ValueError(
                f"Expected `instruction_mask` 'offsets' or 'authors', got {instruction_mask!r}"
            )
        if characters_per_token is not None and characters_per_token < 1:
            raise ValueError(
                f"Expected `characters_per_token` of at least 1, got {characters_per_token}"
            )
        if add_eos and tokenizer.eos_token_id is None:
            raise ValueError("`add_eos` needs a tokenizer with an eos token")
        self.tokenizer = tokenizer
        self.template = template
        self.instruction_mask = instruction_mask
        self.characters_per_token = characters_per_token
        self.add_eos = add_eos

    def __eq__(self, other: object) -> bool:
        """Equal tokenizers give equal tokens, however and from wherever they were loaded."""
        if not isinstance(other, EmbeddingTokenizer):
            return NotImplemented
        return self is other or self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> tuple[object, ...]:
        # Truncation and padding are what the last call left behind, not part of the tokenizer.
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        return (
            hashlib.blake2b(backend.to_str().encode()).digest(),
            self.tokenizer.pad_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.truncation_side,
            self.template,
            self.instruction_mask,
            self.characters_per_token,
            self.add_eos,
        )

    @property
    def pad_token_id(self) -> int:
        """The token that fills a batch up; it is masked out."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, texts: Sequence[Text], max_length: int) -> TokenizedTexts:
        """Tokenizes a batch, cutting each text (instruction included) to `max_length` tokens.

        Every text has at least one token: a text without any gets an end-of-sequence token (or a
        pad token, where there is none). The instruction of a pair may fill `max_length`; then no
        token of the row is in the pool mask.

        Args:
            texts: plain strings or (instruction, text) pairs.
            max_length: most tokens of a text, special tokens included.

        Raises:
            ValueError: `max_length` is below 1 (below 2 with `add_eos`).
            DataError: a text is neither a string nor a pair of strings.
        """
        room = max_length - self.add_eos
        if room < 1:
            raise ValueError(
                f"Expected `max_length` of at least {1 + self.add_eos}, got {max_length}"
            )
        if not texts:
            empty = torch.empty(0, dtype=torch.long)
            return TokenizedTexts(empty, empty.bool(), empty)
        parts = range(0, len(texts), TEXTS_AT_ONCE)
        return TokenizedTexts.cat(
            [self._encode_some(texts[begin : begin + TEXTS_AT_ONCE], room) for begin in parts]
        )

    def _encode_some(self, texts: Sequence[Text], room: int) -> TokenizedTexts:
        """Tokenize texts, each cut to `room` tokens without the eos that may be added."""
        split = [self._split(text) for text in texts]
        characters = self.characters_per_token
        limit = None if characters is None else characters * (room + self.add_eos)
        batch = self.tokenizer(
            [(prefix + content)[:limit] for prefix, content in split],
            truncation=True,
            max_length=room,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows: list[list[int]] = []
        starts: list[int] = []
        for (prefix, content), encoding in zip(split, batch.encodings, strict=True):
            start = self._content_start(encoding, prefix, content) if prefix else 0
            rows.append(self._finish(encoding.ids))
            starts.append(start)
        lengths = torch.tensor([len(row) for row in rows])
        within = torch.cat([torch.arange(len(row)) for row in rows])
        return TokenizedTexts(
            input_ids=torch.tensor(list(chain.from_iterable(rows))),
            pool_mask=within >= torch.repeat_interleave(torch.tensor(starts), lengths),
            lengths=lengths,
        )

    def _split(self, text: Text) -> tuple[str, str]:
        """The template filled in (empty for a plain text), and the text itself."""
        if isinstance(text, str):
            return "", text
        if len(text) != 2 or not all(isinstance(part, str) for part in text):
            raise DataError(f"Expected a text or a pair (instruction, text), got {text!r:.200}")
        instruction, content = text
        return self.template.format(instruction=instruction) if instruction else "", content

    def _finish(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        if self.add_eos and (not ids or ids[-1] != eos):
            return [*ids, int(eos)]
        return ids or [int(self.tokenizer.pad_token_id if eos is None else eos)]

    def _content_start(self, encoding: Any, prefix: str, content: str) -> int:
        """Index of the first token of a row that belongs to the text behind `prefix`."""
        if self.instruction_mask == "authors":
            special = encoding.special_tokens_mask
            leading = special.index(0) if 0 in special else len(special)
            return leading + self._num_tokens(prefix)
        if not content:
            return len(encoding.ids)
        begin = len(prefix.rstrip(" "))
        start = encoding.char_to_token(begin)
        if start is not None:
            return int(start)
        # That character is in no token (some tokenizers drop spaces), or the row ends before it.
        ends = (end for _, end in encoding.offsets)
        return next((i for i, end in enumerate(ends) if end > begin), len(encoding.ids))

    def _num_tokens(self, prefix: str) -> int:
        return len(self.tokenizer(prefix, add_special_tokens=False).input_ids)
