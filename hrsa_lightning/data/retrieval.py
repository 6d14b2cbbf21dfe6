"""A held-out retrieval task made of contrastive pairs. Imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hrsa_lightning.data.pairs import read_pairs
from hrsa_lightning.data.records import ContrastivePair, Query


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, the corpus they search, and for each query the rows of `corpus` that answer it."""

    queries: tuple[Query, ...]
    corpus: tuple[str, ...]
    relevance: tuple[tuple[int, ...], ...]

    @classmethod
    def from_pairs(cls, pairs: Iterable[ContrastivePair]) -> "RetrievalSet":
        """Pool all positives and negatives into one corpus.

        Equal passages are one row of the corpus, equal queries one query to which the positives of
        all of them are relevant. Order is that of first appearance.

        Example:
            >>> pairs = [ContrastivePair("a?", ("a",), ("b",)), ContrastivePair("b?", ("b",))]
            >>> RetrievalSet.from_pairs(pairs)
            RetrievalSet(queries=('a?', 'b?'), corpus=('a', 'b'), relevance=((0,), (1,)))
        """
        corpus: dict[str, int] = {}
        relevance: dict[Query, dict[int, None]] = {}
        for pair in pairs:
            rows = [corpus.setdefault(text, len(corpus)) for text in pair.positives]
            relevance.setdefault(pair.query, {}).update(dict.fromkeys(rows))
            for text in pair.negatives:
                corpus.setdefault(text, len(corpus))
        return cls(tuple(relevance), tuple(corpus), tuple(map(tuple, relevance.values())))


def read_retrieval_set(paths: Sequence[str | Path]) -> RetrievalSet:
    """Read held-out pairs, in any form that `read_pairs` takes, as one retrieval task.

    Raises:
        DataError: As `read_pairs` does.
    """
    sources = read_pairs(paths)
    return RetrievalSet.from_pairs(source[row] for source in sources for row in range(len(source)))
