"""From drawn examples to a tokenized batch that travels through workers and to devices.

Shapes: B local queries, G passages of each query.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from hrsa_lightning.data.sampling import ContrastiveExample
from hrsa_lightning.io.pairs import Query


class Tokens(Protocol):
    """What the batch needs of tokenized texts (`hrsa_lightning.models.TokenizedTexts`)."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self: ...

    def pin_memory(self) -> Self: ...


class TextEncoder(Protocol):
    """What the collator needs of a tokenizer (`hrsa_lightning.models.EmbeddingTokenizer`).

    Encoders that compare equal must give equal tokens; the collator then runs only one of them.
    """

    def encode(self, texts: Sequence[Query], max_length: int) -> Tokens: ...


@dataclass
class ContrastiveBatch:
    """One rank's share of a global batch: each distinct text once, tokenized for every arm.

    Attributes:
        queries: Tokens of the distinct queries, in order of appearance, for each tokenizer.
        passages: Tokens of the distinct passages, likewise.
        tokenizers: Which of them each arm takes: arms of equal tokenizers share their tokens.
        query_rows: `(B,)` int64, which of the distinct queries each query is.
        passage_rows: `(B, G)` int64, which of the distinct passages; column 0 holds the positives,
            the others hard negatives.
        query_ids: `(B,)` int64, equal where instruction and text of two queries are equal.
        passage_ids: `(B, G)` int64, equal where the texts of two passages are equal.
        document_ids: `(B, G)` int64, equal where two passages are of one document; where documents
            have no name, as `passage_ids`.
    """

    queries: list[Tokens]
    passages: list[Tokens]
    tokenizers: dict[str, int]
    query_rows: Tensor
    passage_rows: Tensor
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

    def of(self, arm: str) -> "ContrastiveBatch":
        """The batch that an arm trains on: this one, for all of them."""
        return self

    def tokens(self, arm: str) -> tuple[Tokens, Tokens]:
        """Tokens of the distinct queries and of the distinct passages, for one arm."""
        number = self.tokenizers[arm]
        return self.queries[number], self.passages[number]

    def to(self, device: torch.device | str) -> "ContrastiveBatch":
        """Move every tensor to a device without waiting for it. Lightning calls this."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "ContrastiveBatch":
        """Copy every tensor to page-locked memory. The `DataLoader` calls this."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> "ContrastiveBatch":
        """Apply a function to all tensors and tokens."""
        return ContrastiveBatch(
            queries=[function(tokens) for tokens in self.queries],
            passages=[function(tokens) for tokens in self.passages],
            tokenizers=self.tokenizers,
            query_rows=function(self.query_rows),
            passage_rows=function(self.passage_rows),
            query_ids=function(self.query_ids),
            passage_ids=function(self.passage_ids),
            document_ids=function(self.document_ids),
        )


@dataclass
class ArmBatches:
    """Batches of one step for arms whose orders of the data differ.

    Attributes:
        batches: One for each order.
        orders: Which of them each arm trains on.
    """

    batches: list[ContrastiveBatch]
    orders: dict[str, int]

    def __len__(self) -> int:
        """B, the number of local queries of each batch."""
        return len(self.batches[0])

    def of(self, arm: str) -> ContrastiveBatch:
        """The batch that an arm trains on; arms of one order share it."""
        return self.batches[self.orders[arm]]

    def to(self, device: torch.device | str) -> "ArmBatches":
        """Move every tensor to a device without waiting for it. Lightning calls this."""
        return ArmBatches([batch.to(device) for batch in self.batches], self.orders)

    def pin_memory(self) -> "ArmBatches":
        """Copy every tensor to page-locked memory. The `DataLoader` calls this."""
        return ArmBatches([batch.pin_memory() for batch in self.batches], self.orders)


class ContrastiveCollator:
    """Tokenize drawn examples into a `ContrastiveBatch`, once for arms of equal tokenizers.

    Args:
        tokenizers: One per arm.
        query_length: Most tokens of a query, instruction included.
        passage_length: Most tokens of a passage.
        orders: Which order of the data each arm follows, where there are several: examples are then
            those of the first order, of the second and so on, as many of each, and make up
            `ArmBatches`.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, TextEncoder],
        query_length: int = 512,
        passage_length: int = 512,
        orders: Mapping[str, int] | None = None,
    ) -> None:
        self.orders = dict(orders or {})
        self.query_length = query_length
        self.passage_length = passage_length
        self._tokenizers: list[TextEncoder] = []
        self._number: dict[str, int] = {}
        for arm, tokenizer in tokenizers.items():
            if tokenizer not in self._tokenizers:
                self._tokenizers.append(tokenizer)
            self._number[arm] = self._tokenizers.index(tokenizer)

    def __call__(self, examples: Sequence[ContrastiveExample]) -> ContrastiveBatch | ArmBatches:
        num_orders = len({*self.orders.values()})
        if num_orders < 2:
            return self._collate(examples)
        size = len(examples) // num_orders
        starts = range(0, len(examples), size)
        return ArmBatches(
            [self._collate(examples[start : start + size]) for start in starts], self.orders
        )

    def _collate(self, examples: Sequence[ContrastiveExample]) -> ContrastiveBatch:
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
        query_ids = [text_id(query) for query in queries]
        kept_queries, query_rows = _distinct(query_ids)
        kept_passages, passage_rows = _distinct(passage_ids)
        return ContrastiveBatch(
            queries=self._encode([queries[index] for index in kept_queries], self.query_length),
            passages=self._encode(
                [passages[index] for index in kept_passages], self.passage_length
            ),
            tokenizers=self._number,
            query_rows=torch.tensor(query_rows),
            passage_rows=torch.tensor(passage_rows).view(len(queries), -1),
            query_ids=torch.tensor(query_ids),
            passage_ids=torch.tensor(passage_ids).view(len(queries), -1),
            document_ids=torch.tensor(document_ids).view(len(queries), -1),
        )

    def _encode(self, texts: Sequence[Query], max_length: int) -> list[Tokens]:
        return [tokenizer.encode(texts, max_length) for tokenizer in self._tokenizers]


def _distinct(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where each distinct id comes first, and which of them every id is."""
    rows: dict[int, int] = {}
    kept: list[int] = []
    for index, text in enumerate(ids):
        if text not in rows:
            rows[text] = len(kept)
            kept.append(index)
    return kept, [rows[text] for text in ids]


def text_id(text: Query) -> int:
    """A number of a text or of (instruction, text): the same in every process.

    Args:
        text: A text, or an instruction and a text.

    Returns:
        A signed number of 64 bits; that of equal texts is equal.

    Example:
        >>> text_id("a passage") == text_id("a passage"), text_id(("a", "b")) == text_id("ab")
        (True, False)
    """
    joined = text if isinstance(text, str) else "\0".join(text)
    digest = hashlib.blake2b(joined.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
