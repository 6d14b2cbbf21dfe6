"""Scores of a ranking: MRR, nDCG and recall, and what a ranking by chance would score."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrsa_lightning.functional._numerics import in_units, is_finite, slices, unit_of

ROWS_AT_ONCE = 256
PASSAGES_AT_ONCE = 4096
SAME_SCORE = 1e-12
"""Cosines in float64 that differ by less are taken for equal: their rounding is smaller."""


def ranking_scores(
    queries: Tensor, corpus: Tensor, relevant: Sequence[Sequence[int]], ks: Sequence[int]
) -> dict[str, float]:
    """Means over the queries of what `query_scores` gives.

    Args:
        queries: (queries, features).
        corpus: (passages, features).
        relevant: For each query, the rows of `corpus` that answer it.
        ks: Depths.

    Returns:
        Means, in [0, 1]; NaN when an embedding is not finite.

    Example:
        >>> ranking_scores(torch.eye(2), torch.eye(2), [[0], [1]], [1])
        {'mrr@1': 1.0, 'ndcg@1': 1.0, 'recall@1': 1.0}
    """
    scores = query_scores(queries, corpus, relevant, ks)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def query_scores(
    queries: Tensor, corpus: Tensor, relevant: Sequence[Sequence[int]], ks: Sequence[int]
) -> dict[str, list[float]]:
    """MRR and nDCG at the largest depth, and recall at each, of every query by cosine similarity.

    Of passages that score the same, the wrong ones count as found first.

    Args:
        queries: (queries, features).
        corpus: (passages, features).
        relevant: For each query, the rows of `corpus` that answer it, at least one; a row that is
            named twice counts once.
        ks: Depths.

    Returns:
        One value per query and metric, in [0, 1]; NaN when an embedding is not finite.

    Raises:
        ValueError: If a query has no answer, or one that is no row of `corpus`.

    Example:
        >>> query_scores(torch.eye(2), torch.eye(2), [[0], [0]], [1])["recall@1"]
        [1.0, 0.0]
    """
    depth = max(ks)
    relevant = [list(dict.fromkeys(right)) for right in relevant]
    for row, right in enumerate(relevant):
        if not right or not 0 <= min(right) <= max(right) < len(corpus):
            raise ValueError(
                f"Expected `relevant[{row}]` to name rows of `corpus`, from 0 to "
                f"{len(corpus) - 1}, got {right}."
            )
    if not (is_finite(queries) and is_finite(corpus)):
        return {name: [math.nan] * len(queries) for name in _names(ks)}
    scores: dict[str, list[float]] = {name: [] for name in _names(ks)}
    for ranks in _ranks(queries, corpus, relevant):
        gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= depth)
        scores[f"mrr@{depth}"].append(1 / ranks[0] if ranks[0] <= depth else 0.0)
        scores[f"ndcg@{depth}"].append(gain / _ideal_gain(len(ranks), depth))
        for k in ks:
            scores[f"recall@{k}"].append(sum(rank <= k for rank in ranks) / len(ranks))
    return scores


def chance_scores(
    num_relevant: Sequence[int], num_passages: int, ks: Sequence[int]
) -> dict[str, float]:
    """What `ranking_scores` gives on average where the order of the passages is random.

    Args:
        num_relevant: For each query, how many passages answer it.
        num_passages: Size of the corpus.
        ks: Depths.

    Example:
        >>> chance_scores([1, 1], 4, [1])
        {'mrr@1': 0.25, 'ndcg@1': 0.25, 'recall@1': 0.25}
    """
    depth = min(max(ks), num_passages)
    totals = dict.fromkeys(_names(ks), 0.0)
    for count in num_relevant:
        none_yet, mrr = 1.0, 0.0
        for rank in range(1, depth + 1):
            left = num_passages - rank + 1
            hit = min(1.0, count / left)  # given that none was found before
            mrr += none_yet * hit / rank
            none_yet *= 1 - hit
        gain = sum(1 / math.log2(1 + rank) for rank in range(1, depth + 1)) * count / num_passages
        totals[f"mrr@{max(ks)}"] += mrr
        totals[f"ndcg@{max(ks)}"] += gain / _ideal_gain(count, max(ks))
        for k in ks:
            totals[f"recall@{k}"] += min(1.0, k / num_passages)
    return {name: total / len(num_relevant) for name, total in totals.items()}


def _names(ks: Sequence[int]) -> list[str]:
    return [f"mrr@{max(ks)}", f"ndcg@{max(ks)}", *(f"recall@{k}" for k in ks)]


def _ideal_gain(num_relevant: int, depth: int) -> float:
    return sum(1 / math.log2(2 + place) for place in range(min(depth, num_relevant)))


def _ranks(queries: Tensor, corpus: Tensor, relevant: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each query, the ranks of its right passages, from 1, the best first."""
    pairs = [(row, passage) for row, right in enumerate(relevant) for passage in right]
    before: list[list[int]] = [[] for _ in relevant]
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        part = pairs[start : start + ROWS_AT_ONCE]
        rows, right = torch.tensor(part, device=queries.device).unbind(1)
        asked = _unit(queries[rows])
        least = (asked * _unit(corpus[right])).sum(1, keepdim=True) - SAME_SCORE
        answers = torch.tensor(
            [(i, passage) for i, (row, _) in enumerate(part) for passage in relevant[row]]
        ).to(rows)
        wrong = torch.zeros_like(rows)
        for passages in slices(len(corpus), PASSAGES_AT_ONCE):
            found = asked @ _unit(corpus[passages]).mT >= least
            here = (answers[:, 1] >= passages.start) & (answers[:, 1] < passages.stop)
            place, passage = answers[here].unbind(1)
            found[place, passage - passages.start] = False
            wrong += found.sum(1)
        for (row, _), count in zip(part, wrong.tolist(), strict=True):
            before[row].append(count)
    return [
        [place + wrong for place, wrong in enumerate(sorted(counts), start=1)] for counts in before
    ]


def _unit(rows: Tensor) -> Tensor:
    """Rows over their norm in float64; rows of zeros stay."""
    rows = in_units(rows.double(), unit_of(rows))
    return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(torch.float64).tiny)
