"""Retrieval on contrastive pairs: offline, in seconds for small files, and query by query."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrsa_lightning.data.held_out import RetrievalSet
from hrsa_lightning.encoders import Encoder
from hrsa_lightning.errors import DataError
from hrsa_lightning.evaluate.scores import TaskScores
from hrsa_lightning.functional.ranking import chance_scores, query_scores

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
    scores = query_scores(queries, corpus, task.relevance, KS)
    metrics = {metric: sum(values) / len(values) for metric, values in scores.items()}
    main = f"ndcg@{max(KS)}"
    chance = chance_scores([len(right) for right in task.relevance], len(task.corpus), KS)
    return TaskScores(name, main, metrics, tuple(scores[main]), "query", chance)


def _embed(encode: Callable[[Sequence[Any]], Any], texts: Sequence[Any]) -> Tensor:
    parts = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        embeddings = torch.as_tensor(encode(texts[begin : begin + _TEXTS_AT_ONCE]))
        parts.append(embeddings.detach().float().cpu())
    return torch.cat(parts)
