"""Exact nearest passages in bounded memory: the same whoever multiplies, in blocks of any size.

A first pass in float32 selects somewhat more passages than are asked for; these are scored again
in float64, one dot product at a time. Where rounding of the first pass could have hidden a passage,
a second pass looks for all those that come into question.

Shapes: Q queries, N passages, D features, W selected passages.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.mine.options import Backend

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Own = tuple[Integers, Integers]
Best = tuple[Floats, Integers]

BLOCK_BYTES = 4 * 2**20
"""Float32 scores of a block, and at most its passages."""

PAIR_BYTES = 2**20
"""Float64 products of single pairs; they should fit into a core's cache."""

SPARE = 16
"""Passages that the first pass selects beyond those asked for."""

MOST_OWN = 256
"""Passages of a query's own up to which faiss is asked."""


class Scratch:
    """Buffers that searches use one after another.

    Given back and asked for again, large pieces of memory end up scattered among small ones, and
    the process grows with every search.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: Any) -> "Tensor":
        """The buffer of a name, as (rows, columns) of anything."""
        import torch

        if name not in self._held or self._held[name].numel() < rows * columns:
            self._held[name] = torch.empty(rows * columns, dtype=dtype)
        return self._held[name][: rows * columns].view(rows, columns)


def nearest_passages(
    queries: Floats,
    passages: Floats,
    depth: int,
    own: Own,
    backend: Backend = "auto",
    block: int | None = None,
    scratch: Scratch | None = None,
) -> tuple[Doubles, Integers]:
    """The passages most similar to each query.

    Args:
        queries: (Q, D), rows of length 1.
        passages: (N, D), rows of length 1; may be memory-mapped.
        depth: How many are wanted.
        own: Passages that are not wanted: rows of `queries` and of `passages`.
        backend: See `MiningOptions`.
        block: Passages taken at once; the default fills `BLOCK_BYTES`. It does not change the
            result.
        scratch: Buffers of earlier searches.

    Returns:
        Similarities in descending order, (Q, depth), and rows of `passages`, (Q, depth); of equal
        similarities the lower row comes first. Where fewer than `depth` are left, similarities are
        -inf and rows -1.
    """
    queries, passages = np.asarray(queries), np.asarray(passages)  # memory maps index slowly
    if block is None:
        block = max(1, BLOCK_BYTES // (4 * max(queries.shape)))
    width = min(depth + SPARE, len(passages))
    if _use_faiss(backend, own):
        found, rows = _select_with_faiss(queries, passages, width, own)
    else:
        found, rows = _select_with_torch(queries, passages, width, own, block, scratch or Scratch())
    scores = _exact_scores(queries, passages, rows)
    scores, rows = _in_order(scores, rows)
    if width < len(passages):
        # Cauchy-Schwarz bounds what summing D products of unit vectors in float32 can be off by.
        error = (queries.shape[1] + 4) * 2.0**-24
        last = scores[:, min(depth, width) - 1]
        unsure = np.flatnonzero(found[:, -1] + error >= last)
        unsure = unsure[np.isfinite(found[unsure, -1])]
        if len(unsure):
            floors = last[unsure] - error
            again = _all_above(queries, passages, unsure, floors, depth, own, block)
            scores[unsure, :depth], rows[unsure, :depth] = again
    return _to_width(scores, depth, -np.inf), _to_width(rows, depth, -1)


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


def _use_faiss(backend: Backend, own: Own) -> bool:
    # faiss cannot leave passages out: as many more are selected as a query has of its own.
    few = len(own[0]) == 0 or int(np.bincount(own[0]).max()) <= MOST_OWN
    return few and (backend == "faiss" or (backend == "auto" and find_spec("faiss") is not None))


def _exact_scores(queries: Floats, passages: Floats, rows: Integers) -> Doubles:
    """Float64 similarities of each query to its own `rows` (Q, W); -inf where the row is -1."""
    flat = rows.ravel()
    owner = np.repeat(np.arange(len(rows)), rows.shape[1])
    there = flat >= 0
    scores = np.full(len(flat), -np.inf)
    scores[there] = pair_scores(queries, passages, owner[there], flat[there])
    return scores.reshape(rows.shape)


def _in_order(scores: Doubles, rows: Integers) -> tuple[Doubles, Integers]:
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _to_width(values: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
    missing = width - values.shape[1]
    if missing <= 0:
        return values[:, :width]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill)


def _blocks(passages: Floats, block: int) -> Iterator[tuple[int, Floats]]:
    for begin in range(0, len(passages), block):
        yield begin, passages[begin : begin + block]


def _forbidden(own: Own, num_passages: int) -> Integers:
    """Sorted numbers `query * num_passages + passage` of what is not wanted."""
    return np.unique(own[0] * num_passages + own[1])


def _contains(ordered: Integers, values: Integers) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(values.shape, dtype=bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[place] == values)


def _select_with_torch(
    queries: Floats, passages: Floats, width: int, own: Own, block: int, scratch: Scratch
) -> Best:
    """About the best `width` passages of each query: scores in descending order, and rows."""
    import torch

    from hrsa_lightning.functional._numerics import full_precision

    asked = torch.from_numpy(np.ascontiguousarray(queries))
    # The best so far, in order, and behind them what came since.
    best = scratch.take("best", len(queries), 3 * width, torch.float32)
    best_rows = scratch.take("rows", len(queries), 3 * width, torch.int64)
    best[:, :width] = -torch.inf
    filled = width
    by_passage = np.argsort(own[1], kind="stable")
    own_queries, own_passages = own[0][by_passage], own[1][by_passage]
    cpu = torch.device("cpu")
    for begin, part in _blocks(passages, block):
        scores = scratch.take("scores", len(queries), len(part), torch.float32)
        with full_precision(cpu):
            torch.mm(asked, torch.from_numpy(part).T, out=scores)
        mine = slice(*np.searchsorted(own_passages, (begin, begin + len(part))))
        scores[own_queries[mine], own_passages[mine] - begin] = -torch.inf
        places = slice(filled, filled + width)
        floors = best[:, width - 1 : width]
        count = _put_better(scores, floors, begin, best[:, places], best_rows[:, places], scratch)
        filled += count
        # Sorting a few at a time would take longer than finding them.
        if filled >= 2 * width or begin + block >= len(passages):
            values, order = best[:, :filled].topk(width)
            best_rows[:, :width] = best_rows[:, :filled].gather(1, order)
            best[:, :width] = values
            filled = width
    found, rows = best[:, :width].clone(), best_rows[:, :width].clone()
    rows[found == -torch.inf] = -1
    return found.numpy(), rows.numpy()


def _put_better(
    scores: "Tensor",
    floors: "Tensor",
    begin: int,
    values: "Tensor",
    rows: "Tensor",
    scratch: Scratch,
) -> int:
    """Put the scores of a block above each query's floor, or its best, into `values` and `rows`.

    Few scores of a later block are among the best so far, and only these have to be sorted.

    Args:
        scores: (Q, passages of the block).
        floors: (Q, 1).
        begin: Row of the block's first passage.
        values: (Q, W), for the scores; -inf fills up.
        rows: (Q, W), for the passages.
        scratch: See `nearest_passages`.

    Returns:
        How many columns were used.
    """
    import torch

    width = min(values.shape[1], scores.shape[1])
    flags = scratch.take("better", len(scores), scores.shape[1], torch.bool)
    better = torch.gt(scores, floors, out=flags)
    if np.count_nonzero(better.numpy()) <= len(scores) * width:
        query, column = better.nonzero(as_tuple=True)
        counts = torch.bincount(query, minlength=len(scores))
        most = int(counts.max())
        if most <= width:
            place = torch.arange(len(query)) - (counts.cumsum(0) - counts)[query]
            values[:, :most] = -torch.inf
            values[query, place] = scores[query, column]
            rows[query, place] = column + begin
            return most
    values[:, :width], rows[:, :width] = scores.topk(width)
    rows[:, :width] += begin
    return width


def _select_with_faiss(queries: Floats, passages: Floats, width: int, own: Own) -> Best:
    """As `_select_with_torch`; faiss takes passages in blocks of its own."""
    import faiss

    spare = int(np.bincount(own[0], minlength=1).max()) if len(own[0]) else 0
    found, rows = faiss.knn(
        np.ascontiguousarray(queries),
        np.ascontiguousarray(passages),
        min(width + spare, len(passages)),
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    numbers = np.arange(len(queries))[:, None] * len(passages) + rows
    found[_contains(_forbidden(own, len(passages)), numbers)] = -np.inf
    order = np.argsort(-found, axis=1, kind="stable")[:, :width]
    best, best_rows = np.take_along_axis(found, order, 1), np.take_along_axis(rows, order, 1)
    best_rows[best == -np.inf] = -1
    return best, best_rows


def _all_above(
    queries: Floats,
    passages: Floats,
    unsure: Integers,
    floors: Doubles,
    depth: int,
    own: Own,
    block: int,
) -> tuple[Doubles, Integers]:
    """The best `depth` of all passages whose float32 score reaches a floor, for some queries.

    Args:
        queries: (Q, D).
        passages: (N, D).
        unsure: Rows of `queries`, (U,).
        floors: Of these, (U,).
        depth: See `nearest_passages`.
        own: See `nearest_passages`.
        block: See `nearest_passages`.

    Returns:
        Exact scores in descending order, (U, depth), and rows of `passages`.
    """
    forbidden = _forbidden(own, len(passages))
    best = np.full((len(unsure), depth), -np.inf)
    best_rows = np.full((len(unsure), depth), -1)
    asked = queries[unsure]
    for begin, part in _blocks(passages, block):
        for place, close in enumerate(asked @ part.T >= floors[:, None]):
            rows = np.flatnonzero(close) + begin
            rows = rows[~_contains(forbidden, unsure[place] * len(passages) + rows)]
            if not len(rows):
                continue
            scores = _exact_scores(asked[place : place + 1], passages, rows[None])
            both = np.concatenate([best[place : place + 1], scores], 1)
            both_rows = np.concatenate([best_rows[place : place + 1], rows[None]], 1)
            ordered, ordered_rows = _in_order(both, both_rows)
            best[place], best_rows[place] = ordered[0, :depth], ordered_rows[0, :depth]
    return best, best_rows
