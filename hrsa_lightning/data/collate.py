"""From drawn examples to a tokenized batch that travels through workers and to devices.

Shapes: B local queries, G passages of each query.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from hrsa_lightning.data.sampling import ContrastiveExample
from hrsa_lightning.io import Query


class Tokens(Protocol):
    """What the batch needs of tokenized texts (`hrsa_lightning.models.TokenizedTexts`)."""

    def to(self, device: torch.device | str) -> Self: ...

    def pin_memory(self) -> Self: ...


class TextEncoder(Protocol):
    """What the collator needs of a tokenizer (`hrsa_lightning.models.EmbeddingTokenizer`).

    Encoders that compare equal must give equal tokens; the collator then runs only one of them.
    """

    def encode(self, texts: Sequence[Query], max_length: int) -> Tokens: ...


@dataclass
class ContrastiveBatch:
    """One rank's share of a global batch, tokenized for every arm.

    Attributes:
        queries: The B queries' tokens, by arm. Arms of equal tokenizers hold the same object.
        passages: The B * G passages' tokens, by arm: row `i * G` is the positive of query `i`, the
            G - 1 rows after it are its hard negatives.
        query_ids: `(B,)` int64, equal where instruction and text of two queries are equal.
        passage_ids: `(B, G)` int64, equal where the texts of two passages are equal.
        document_ids: `(B, G)` int64, equal where two passages are of one document; where documents
            have no name, as `passage_ids`.
    """

    queries: dict[str, Tokens]
    passages: dict[str, Tokens]
    query_ids: Tensor
    passage_ids: Tensor
    document_ids: Tensor

    def __len__(self) -> int:
        """B, the number of local queries."""
        return len(self.query_ids)

    @property
    def group_size(self) -> int:
        """G, the number of passages of each query."""
        return self.passage_ids.shape[1]

    def to(self, device: torch.device | str) -> "ContrastiveBatch":
        """Move every tensor; tokens that arms share are moved once. Lightning calls this."""
        return replace(
            self,
            queries=_map_shared(self.queries, lambda tokens: tokens.to(device)),
            passages=_map_shared(self.passages, lambda tokens: tokens.to(device)),
            query_ids=self.query_ids.to(device, non_blocking=True),
            passage_ids=self.passage_ids.to(device, non_blocking=True),
            document_ids=self.document_ids.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "ContrastiveBatch":
        """Copy every tensor to page-locked memory. The `DataLoader` calls this."""
        return replace(
            self,
            queries=_map_shared(self.queries, lambda tokens: tokens.pin_memory()),
            passages=_map_shared(self.passages, lambda tokens: tokens.pin_memory()),
            query_ids=self.query_ids.pin_memory(),
            passage_ids=self.passage_ids.pin_memory(),
            document_ids=self.document_ids.pin_memory(),
        )


def _map_shared(
    by_arm: Mapping[str, Tokens], function: Callable[[Tokens], Tokens]
) -> dict[str, Tokens]:
    done = {id(tokens): tokens for tokens in by_arm.values()}
    done = {key: function(tokens) for key, tokens in done.items()}
    return {arm: done[id(tokens)] for arm, tokens in by_arm.items()}


class ContrastiveCollator:
    """Tokenize drawn examples into a `ContrastiveBatch`, once for arms of equal tokenizers.

    Args:
        tokenizers: One per arm.
        query_length: Most tokens of a query, instruction included.
        passage_length: Most tokens of a passage.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, TextEncoder],
        query_length: int = 512,
        passage_length: int = 512,
    ) -> None:
        self.query_length = query_length
        self.passage_length = passage_length
        self._tokenizers: list[TextEncoder] = []
        self._number: dict[str, int] = {}
        for arm, tokenizer in tokenizers.items():
            if tokenizer not in self._tokenizers:
                self._tokenizers.append(tokenizer)
            self._number[arm] = self._tokenizers.index(tokenizer)

    def __call__(self, examples: Sequence[ContrastiveExample]) -> ContrastiveBatch:
        queries = [example.query for example in examples]
        passages = [text for example in examples for text in example.passages]
        passage_ids = [text_id(text) for text in passages]
        names = [
            name
            for example in examples
            for name in example.document_ids or (None,) * len(example.passages)
        ]
        document_ids = [
            number if name is None else text_id(("document", name))
            for number, name in zip(passage_ids, names, strict=True)
        ]
        return ContrastiveBatch(
            queries=self._encode(queries, self.query_length),
            passages=self._encode(passages, self.passage_length),
            query_ids=torch.tensor([text_id(query) for query in queries]),
            passage_ids=torch.tensor(passage_ids).view(len(queries), -1),
            document_ids=torch.tensor(document_ids).view(len(queries), -1),
        )

    def _encode(self, texts: Sequence[Query], max_length: int) -> dict[str, Tokens]:
        encoded = [tokenizer.encode(texts, max_length) for tokenizer in self._tokenizers]
        return {arm: encoded[number] for arm, number in self._number.items()}


def text_id(text: Query) -> int:
    """A 64-bit signed number of a text or of (instruction, text): the same in every process.

    Example:
        >>> text_id("a passage") == text_id("a passage"), text_id(("a", "b")) == text_id("ab")
        (True, False)
    """
    joined = text if isinstance(text, str) else "\0".join(text)
    digest = hashlib.blake2b(joined.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
