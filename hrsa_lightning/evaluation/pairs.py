"""Retrieval on contrastive pairs: offline, in seconds for small files, and query by query."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrsa_lightning.callbacks.ranking import chance_scores, ranking_scores
from hrsa_lightning.data.retrieval import RetrievalSet
from hrsa_lightning.encoders import Encoder
from hrsa_lightning.errors import DataError
from hrsa_lightning.evaluation.scores import TaskScores

KS = (1, 10)
_TEXTS_AT_ONCE = 2048


def score_retrieval(name: str, task: RetrievalSet, encoder: Encoder) -> TaskScores:
    """MRR@10, nDCG@10 and recall@1 and @10 of one model, with nDCG@10 as the main metric.

    Args:
        name: Name of the task.
        task: Queries and their corpus.
        encoder: The model.

    Raises:
        DataError: An embedding is not finite.
    """
    queries = _embed(encoder.encode_queries, task.queries)
    corpus = _embed(encoder.encode_passages, task.corpus)
    if not (bool(queries.isfinite().all()) and bool(corpus.isfinite().all())):
        raise DataError(f"task {name}: the model gives embeddings that are not finite")
    rows = [
        ranking_scores(queries[row : row + 1], corpus, [right], KS)
        for row, right in enumerate(task.relevance)
    ]
    metrics = {metric: sum(row[metric] for row in rows) / len(rows) for metric in rows[0]}
    main = f"ndcg@{max(KS)}"
    chance = chance_scores([len(right) for right in task.relevance], len(task.corpus), KS)
    return TaskScores(name, main, metrics, tuple(row[main] for row in rows), "query", chance)


def _embed(encode: object, texts: Sequence[object]) -> Tensor:
    parts = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        embeddings = encode(texts[begin : begin + _TEXTS_AT_ONCE])  # type: ignore[operator]
        parts.append(torch.as_tensor(embeddings).detach().float().cpu())
    return torch.cat(parts)
