"""Texts that are never trained on: probes, and pairs as a retrieval task. Imports no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hrsa_lightning.data.pairs import read_pairs
from hrsa_lightning.errors import DataError
from hrsa_lightning.io import ContrastivePair, Problems, Query, check_text, read_text_records


@dataclass(frozen=True, slots=True)
class ProbeText:
    """One probe.

    Attributes:
        id: Unique in the set.
        text: What the models read.
        label: Class of the text, for curves by label and linear probes.
    """

    id: str
    text: str
    label: str | None = None


def read_texts(path: str | Path) -> list[ProbeText]:
    """Read probe texts.

    Args:
        path: A `.jsonl` or `.ndjson` file of objects with `text` and optional `id` and `label` (or
            of texts), or a `.txt` file of one probe a line. The default id is the number of the
            line.

    Returns:
        The probes in the order of the file; blank lines are passed over.

    Raises:
        DataError: One error that names every bad line, a repeated id, or a file without texts.
    """
    problems = Problems()
    first_line: dict[str, int] = {}
    probes = []
    for number, record in read_text_records(path, problems.add):
        try:
            text = check_text(record.get("text"), "text")
            label = record.get("label")
            label = None if label is None else check_text(str(label), "label")
            name = check_text(str(record.get("id", number)), "id")
        except DataError as error:
            problems.add(f"{path}:{number}", str(error))
            continue
        if first_line.setdefault(name, number) != number:
            problems.add(
                f"{path}:{number}", f'id "{name}" is already that of line {first_line[name]}'
            )
        probes.append(ProbeText(name, text, label))
    problems.raise_if_any()
    if not probes:
        raise DataError(f"{path}: no texts in the file")
    return probes


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries, the corpus they search, and what answers them.

    Attributes:
        queries: Texts, or (instruction, text), each once.
        corpus: Passages, each once.
        relevance: Of each query, the rows of `corpus` that answer it.
    """

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
    """Read held-out pairs as one retrieval task.

    Args:
        paths: Files, in any form that `read_pairs` takes.

    Returns:
        The pairs of all files over one corpus.

    Raises:
        DataError: As `read_pairs` does.
    """
    sources = read_pairs(paths)
    return RetrievalSet.from_pairs(source[row] for source in sources for row in range(len(source)))
