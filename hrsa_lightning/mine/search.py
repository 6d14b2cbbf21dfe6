"""Exact nearest passages in bounded memory, in blocks of any size, and the negatives among them.

A first pass in float32 selects somewhat more passages than are asked for; these are scored again
in float64, one dot product at a time. Where rounding of the first pass could have hidden a passage,
a second pass collects all those that come into question.

Shapes: Q queries, N passages, D features, W selected passages.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Own = tuple[Integers, Integers]

BLOCK_BYTES = 4 * 2**20
"""Float32 scores of a block, and at most its passages."""

PAIR_BYTES = 2**20
"""Float64 products of single pairs; they should fit into a core's cache."""

SPARE = 16
"""Passages that the first pass selects beyond those asked for."""


def nearest_passages(
    queries: Floats, passages: Floats, depth: int, own: Own, block: int | None = None
) -> tuple[Doubles, Integers]:
    """The passages most similar to each query.

    Args:
        queries: (Q, D), rows of length 1.
        passages: (N, D), rows of length 1; may be memory-mapped.
        depth: How many are wanted.
        own: Passages that are not wanted: rows of `queries` and of `passages`.
        block: Passages taken at once; the default fills `BLOCK_BYTES`. It does not change the
            result.

    Returns:
        Similarities in descending order, (Q, depth), and rows of `passages`, (Q, depth); of equal
        similarities the lower row comes first. Where fewer than `depth` are left, similarities are
        -inf and rows -1.
    """
    queries, passages = np.asarray(queries), np.asarray(passages)  # memory maps index slowly
    if block is None:
        block = max(1, BLOCK_BYTES // (4 * max(queries.shape)))
    order = np.argsort(own[1], kind="stable")
    own = own[0][order], own[1][order]
    width = min(depth + SPARE, len(passages))
    found, candidates = _select(queries, passages, width, own, block)
    scores, rows = _scored(queries, passages, candidates)
    if width < len(passages):
        # Cauchy-Schwarz bounds what summing D products of unit vectors in float32 can be off by.
        error = (queries.shape[1] + 4) * 2.0**-24
        last = scores[:, min(depth, width) - 1]
        unsure = np.flatnonzero(np.isfinite(found[:, -1]) & (found[:, -1] + error >= last))
        if len(unsure):
            least = last[unsure] - error
            again = _all_above(queries, passages, unsure, least, depth, own, block)
            scores[unsure, :depth], rows[unsure, :depth] = again
    missing = ((0, 0), (0, max(0, depth - width)))
    return (
        np.pad(scores[:, :depth], missing, constant_values=-np.inf),
        np.pad(rows[:, :depth], missing, constant_values=-1),
    )


def pair_scores(queries: Floats, passages: Floats, rows: Integers, numbers: Integers) -> Doubles:
    """Similarities of single (query, passage) pairs, the same as in `nearest_passages`.

    Args:
        queries: (Q, D).
        passages: (N, D).
        rows: Rows of `queries`, (P,).
        numbers: Rows of `passages`, (P,).
    """
    scores = np.empty(len(rows))
    step = max(1, PAIR_BYTES // (8 * queries.shape[1]))
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        product = np.take(passages, numbers[part], axis=0).astype(np.float64)
        product *= np.take(queries, rows[part], axis=0)
        scores[part] = product.sum(-1)
    return scores


def _blocks(
    queries: Floats, passages: Floats, own: Own, block: int
) -> Iterator[tuple[int, Floats]]:
    """First row and float32 scores (Q, passages) of each block; -inf for what is not wanted."""
    import torch

    from hrsa_lightning.functional._numerics import full_precision

    asked = torch.from_numpy(np.ascontiguousarray(queries))
    # One buffer: asked for again and again, large pieces of memory end up scattered.
    buffer = torch.empty(len(queries) * min(block, len(passages)))
    for begin in range(0, len(passages), block):
        part = torch.from_numpy(passages[begin : begin + block])
        scores = buffer[: len(queries) * len(part)].view(len(queries), len(part))
        with full_precision(torch.device("cpu")):
            torch.mm(asked, part.T, out=scores)
        hidden = slice(*np.searchsorted(own[1], (begin, begin + len(part))))
        scores[own[0][hidden], own[1][hidden] - begin] = -torch.inf
        yield begin, scores.numpy()


def _select(
    queries: Floats, passages: Floats, width: int, own: Own, block: int
) -> tuple[Floats, Integers]:
    """The best `width` passages of each query by float32 scores: scores in order, and rows."""
    import torch

    best = torch.full((len(queries), width), -torch.inf)
    rows = torch.full((len(queries), width), -1)
    for begin, found in _blocks(queries, passages, own, block):
        values, columns = torch.from_numpy(found).topk(min(width, found.shape[1]))
        best, order = torch.cat([best, values], 1).topk(width)
        rows = torch.cat([rows, columns + begin], 1).gather(1, order)
    rows[best == -torch.inf] = -1
    return best.numpy(), rows.numpy()


def _all_above(
    queries: Floats,
    passages: Floats,
    unsure: Integers,
    least: Doubles,
    depth: int,
    own: Own,
    block: int,
) -> tuple[Doubles, Integers]:
    """The best `depth` of all passages whose float32 score is at least `least`, for some queries.

    Args:
        queries: (Q, D).
        passages: (N, D).
        unsure: Rows of `queries`, (U,).
        least: Of these, (U,).
        depth: See `nearest_passages`.
        own: See `nearest_passages`.
        block: See `nearest_passages`.

    Returns:
        Exact scores in descending order, (U, depth), and rows of `passages`.
    """
    scores = np.full((len(unsure), depth), -np.inf)
    rows = np.full((len(unsure), depth), -1)
    for begin, found in _blocks(queries, passages, own, block):
        for place, close in enumerate(found[unsure] >= least[:, None]):
            new = np.flatnonzero(close) + begin
            if len(new):
                candidates = np.concatenate([rows[place], new])[None]
                asked = queries[unsure[place : place + 1]]
                again = _scored(asked, passages, candidates)
                scores[place], rows[place] = (each[0, :depth] for each in again)
    return scores, rows


def _scored(queries: Floats, passages: Floats, rows: Integers) -> tuple[Doubles, Integers]:
    """Exact scores of each query's own candidates (Q, W), in order; -inf where the row is -1."""
    flat = rows.ravel()
    owner = np.repeat(np.arange(len(rows)), rows.shape[1])
    there = flat >= 0
    exact = np.full(len(flat), -np.inf)
    exact[there] = pair_scores(queries, passages, owner[there], flat[there])
    scores = exact.reshape(rows.shape)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
