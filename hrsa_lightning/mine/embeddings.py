"""Embeddings that are written block by block, so that a stopped run goes on where it was.

Shapes: embeddings (texts, features), float32, each of length 1.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.errors import DataError

TEXTS_PER_BLOCK = 2048
"""Texts that are encoded and written together."""

_ROWS_AT_ONCE = 256
"""Rows that are held in float64."""


def embed_file(
    path: Path,
    num_texts: int,
    embed: Callable[[int, int], Any],
    *,
    dim: int,
    name: str,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Embed texts into a file, from where an earlier call stopped.

    The file is nothing but the rows so far, whole blocks of them, so that its size says where to go
    on, and the blocks are the same ones however often it was stopped.

    Args:
        path: The file.
        num_texts: How many texts there are.
        embed: `embed(begin, end)` gives the embeddings of texts `begin` to `end`, of any length.
        dim: Number of features.
        name: What the texts are, for messages.
        progress: Show a progress bar.

    Returns:
        The embeddings, memory-mapped; writing into them changes nothing on disk.

    Raises:
        DataError: An embedding is not finite, is zero, or has another number of features.
    """
    block_bytes = TEXTS_PER_BLOCK * dim * 4
    total_bytes = num_texts * dim * 4
    written = path.stat().st_size if path.exists() else 0
    if written < total_bytes:
        written -= written % block_bytes
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(written)
        file.seek(written)
        done = written // (dim * 4)
        bar = tqdm(
            None,
            f"embedding {name}",
            num_texts,
            initial=done,
            unit="text",
            disable=None if progress else True,
        )
        with bar:
            for begin in range(done, num_texts, TEXTS_PER_BLOCK):
                end = min(begin + TEXTS_PER_BLOCK, num_texts)
                rows = to_unit_rows(embed(begin, end), end - begin, dim, name)
                file.write(rows.data)
                file.flush()
                os.fsync(file.fileno())
                bar.update(end - begin)
    return np.memmap(path, dtype=np.float32, mode="c", shape=(num_texts, dim))


def to_unit_rows(
    embeddings: Any, num_texts: int, dim: int | None, name: str
) -> NDArray[np.float32]:
    """What a model returned as checked float32 rows of length 1.

    Args:
        embeddings: (texts, features), an array or a tensor on any device.
        num_texts: Rows that are expected.
        dim: Features that are expected; None takes any.
        name: What was embedded, for messages.

    Raises:
        DataError: See `embed_file`.
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or rows.shape != (num_texts, rows.shape[1] if dim is None else dim):
        raise DataError(
            f"embedding {name}: expected an array of shape ({num_texts}, {dim or 'features'}), "
            f"got {rows.shape}"
        )
    unit = np.empty_like(rows)
    for begin in range(0, num_texts, _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE].astype(np.float64)
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise DataError(
                f"embedding {name}: the model gives embeddings that are not finite or zero"
            )
        unit[begin : begin + _ROWS_AT_ONCE] = part / lengths
    return unit
