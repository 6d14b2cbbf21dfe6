"""Texts split into chunks of similar length, so that little of the work is padding."""

from collections.abc import Sequence

import torch
from torch import Tensor

AUTO_SHARE = 0.5
"""Of the memory that training leaves free, what `activation_budget: auto` takes for graphs."""


def length_sorted_chunks(lengths: Tensor, max_tokens: int, at_least: int = 1) -> list[Tensor]:
    """Splits texts into chunks that have at most `max_tokens` tokens once padded.

    Texts are taken longest first, so that the first chunk is the widest and a batch that does not
    fit into memory fails at once; equal lengths keep their order. A text longer than `max_tokens`
    has a chunk of its own.

    Args:
        lengths: tokens of each text, shape (num_texts,), integers.
        max_tokens: most padded tokens of a chunk, (texts) x (longest text), at least 1.
        at_least: number of chunks to make, if there are as many texts; the fullest are halved.

    Returns:
        One int64 tensor (num_texts_of_chunk,) of text indices per chunk, on the CPU; together they
        hold every index once.

    Raises:
        ValueError: `max_tokens` is below 1.

    Example:
        >>> length_sorted_chunks(torch.tensor([2, 7, 3, 3]), max_tokens=9)
        [tensor([1]), tensor([2, 3, 0])]
        >>> length_sorted_chunks(torch.tensor([2, 7, 3, 3]), max_tokens=9, at_least=3)
        [tensor([1]), tensor([2, 3]), tensor([0])]
    """
    if max_tokens < 1:
        raise ValueError(f"Expected `max_tokens` to be at least 1, got {max_tokens}")
    order = torch.argsort(lengths.cpu(), descending=True, stable=True)
    chunks: list[Tensor] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, max_tokens // longest)
        chunks.append(order[start : start + size])
        start += size
    while len(chunks) < min(at_least, len(order)):
        fullest = max(range(len(chunks)), key=lambda number: len(chunks[number]))
        texts = chunks[fullest]
        half = (len(texts) + 1) // 2
        chunks[fullest : fullest + 1] = [texts[:half], texts[half:]]
    return chunks


def restore_order(outputs: Sequence[Tensor], chunks: Sequence[Tensor]) -> Tensor:
    """Rows of all chunks in the order of the texts.

    Args:
        outputs: of each chunk, shape (texts of the chunk, ...); more of them may follow.
        chunks: the indices of each chunk's texts, as `length_sorted_chunks` gives them.

    Returns:
        Shape (texts, ...).

    Example:
        >>> restore_order([torch.tensor([[7.0]]), torch.tensor([[3.0]])], [
        ...     torch.tensor([1]), torch.tensor([0])
        ... ])
        tensor([[3.],
                [7.]])
    """
    rows = torch.cat(list(outputs))
    order = torch.argsort(torch.cat(list(chunks)))
    return rows[order.to(rows.device, non_blocking=True)]
