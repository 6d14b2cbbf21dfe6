"""Numbers for the texts of contrastive pairs, which themselves stay in their files.

Everything here is arrays of numbers: about 100 bytes a pair, however long the texts are. Texts are
known by 64-bit digests; among ten million of them, two share one with a probability of 3e-6.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.data.records import ContrastivePair, Query
from hrsa_lightning.data.sources import PairSource
from hrsa_lightning.mining.options import Corpus

Integers = NDArray[np.int64]


def normalize_text(text: str) -> str:
    r"""What two texts must share to count as duplicates.

    Example:
        >>> normalize_text("  The \u2167th\n Law ")
        'the viiith law'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths: row `i` is `values[offsets[i] : offsets[i + 1]]`."""

    offsets: Integers
    values: Integers

    def take(self, rows: Integers) -> tuple[Integers, Integers]:
        """The values of `rows`, one row after another, each with its position in `rows`."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        position = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(position)) - np.repeat(counts.cumsum() - counts, counts)
        return position, self.values[self.offsets[rows][position] + within]


@dataclass(frozen=True, slots=True)
class SearchedCorpus:
    """Passages that some consecutive pairs search; each distinct text is one passage.

    Attributes:
        first_pair: Number of its first pair.
        num_pairs: Pairs that search it.
        first_passage: Number of its first passage; passages of a corpus are consecutive.
        num_passages: How many it has.
        query_text: For each pair, the number of its query's text, without instruction.
        own: For each query text, the passages that say the same as it or answer it.
    """

    first_pair: int
    num_pairs: int
    first_passage: int
    num_passages: int
    query_text: Integers
    own: Ragged


class PairTexts:
    """Distinct queries and passages of all pairs, numbered in the order of first appearance.

    A distinct query is an (instruction, text); a distinct passage is a text of one corpus up to
    `normalize_text`, and is spelled as where it appears first.

    Args:
        sources: Open files of pairs.
        corpus: See `MiningOptions`.
        progress: Show a progress bar.

    Attributes:
        first_pairs: Number of the first pair of each source, and the number of all pairs.
        query: For each pair, the number of its query.
        positives: For each pair, the numbers of its positives.
        negatives: For each pair, the numbers of the negatives that it comes with.
        corpora: What is searched.
        digest: Changes whenever any text does.
    """

    def __init__(
        self, sources: Sequence[PairSource], corpus: Corpus = "file", progress: bool = False
    ) -> None:
        self._sources = list(sources)
        sizes = [len(source) for source in sources]
        self.first_pairs = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        read = _read(self._iterate(progress))
        self.digest = read.digest
        _, self._query_place, self.query = _number(read.queries)
        flat = np.empty(len(read.passages), dtype=np.int64)
        places, corpora, numbered = [], [], 0
        edges = self.first_pairs if corpus == "file" else self.first_pairs[[0, -1]]
        answers = _answers(read)
        for begin, end in pairwise(edges):
            span = slice(read.offsets[begin], read.offsets[end])
            digests, place, number = _number(read.passages[span])
            flat[span] = number + numbered
            places.append(place + read.offsets[begin])
            text, own = _own_passages(answers, read.texts[begin:end], digests)
            corpora.append(
                SearchedCorpus(int(begin), int(end - begin), numbered, len(place), text, own)
            )
            numbered += len(place)
        self.corpora = tuple(corpora)
        self._passage_place = np.concatenate(places)
        self._offsets = read.offsets
        counts = np.diff(read.offsets)
        is_positive = np.arange(len(flat)) - np.repeat(read.offsets[:-1], counts) < np.repeat(
            read.num_positives, counts
        )
        self.positives = Ragged(_offsets(read.num_positives), flat[is_positive])
        self.negatives = Ragged(_offsets(counts - read.num_positives), flat[~is_positive])

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self.first_pairs[-1])

    @property
    def num_queries(self) -> int:
        return len(self._query_place)

    @property
    def num_passages(self) -> int:
        return len(self._passage_place)

    def pair(self, number: int) -> ContrastivePair:
        """Read one pair again."""
        source = int(np.searchsorted(self.first_pairs, number, side="right")) - 1
        return self._sources[source][number - int(self.first_pairs[source])]

    def read_queries(self, begin: int, end: int) -> list[Query]:
        """Read queries `begin` to `end`."""
        return [self.pair(int(place)).query for place in self._query_place[begin:end]]

    def read_passages(self, begin: int, end: int) -> list[str]:
        """Read passages `begin` to `end`."""
        places = self._passage_place[begin:end]
        owners = np.searchsorted(self._offsets, places, side="right") - 1
        within = places - self._offsets[owners]
        texts: list[str] = []
        read, own = -1, tuple[str, ...]()
        # Neighbors come from one pair more often than not, and pairs are parsed when they are read.
        for owner, place in zip(owners.tolist(), within.tolist(), strict=True):
            if owner != read:
                pair = self.pair(owner)
                read, own = owner, (*pair.positives, *pair.negatives)
            texts.append(own[place])
        return texts

    def passage(self, number: int) -> str:
        """Read one passage."""
        return self.read_passages(number, number + 1)[0]

    def _iterate(self, progress: bool) -> Iterator[ContrastivePair]:
        pairs = (source[row] for source in self._sources for row in range(len(source)))
        silent = None if progress else True
        yield from tqdm(pairs, "reading pairs", len(self), unit="pair", disable=silent)


@dataclass(frozen=True, slots=True)
class _Read:
    """Digests of all texts, pair after pair; passages are positives, then negatives."""

    queries: NDArray[np.uint64]
    texts: NDArray[np.uint64]
    passages: NDArray[np.uint64]
    num_positives: Integers
    offsets: Integers
    digest: str


def _read(pairs: Iterable[ContrastivePair]) -> _Read:
    queries, texts, passages = array("Q"), array("Q"), array("Q")
    num_positives, num_passages = array("q"), array("q")
    everything = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        instruction, text = ("", pair.query) if isinstance(pair.query, str) else pair.query
        both = f"{instruction}\0{text}"
        queries.append(_digest(both))
        texts.append(_digest(normalize_text(text)))
        own = (*pair.positives, *pair.negatives)
        passages.extend(_digest(normalize_text(passage)) for passage in own)
        num_positives.append(len(pair.positives))
        num_passages.append(len(own))
        everything.update("\0".join((both, str(len(pair.positives)), *own, "\n")).encode())
    return _Read(
        np.array(queries, dtype=np.uint64),
        np.array(texts, dtype=np.uint64),
        np.array(passages, dtype=np.uint64),
        np.array(num_positives, dtype=np.int64),
        _offsets(np.array(num_passages, dtype=np.int64)),
        everything.hexdigest(),
    )


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _offsets(counts: Integers) -> Integers:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _number(digests: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Integers, Integers]:
    """Number distinct digests by first appearance: (digest, place) of each, number of all."""
    values, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(values), dtype=np.int64)
    number[order] = np.arange(len(values))
    return values[order], first[order], number[inverse]


def _answers(read: _Read) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Every (query text, passage that says the same or answers it), sorted, without repeats."""
    counts = np.diff(read.offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    is_positive = np.arange(len(owner)) - read.offsets[owner] < read.num_positives[owner]
    texts = np.concatenate([read.texts, read.texts[owner[is_positive]]])
    passages = np.concatenate([read.texts, read.passages[is_positive]])
    order = np.lexsort((passages, texts))
    texts, passages = texts[order], passages[order]
    new = np.ones(len(texts), dtype=bool)
    new[1:] = (texts[1:] != texts[:-1]) | (passages[1:] != passages[:-1])
    return texts[new], passages[new]


def _own_passages(
    answers: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    pair_texts: NDArray[np.uint64],
    passages: NDArray[np.uint64],
) -> tuple[Integers, Ragged]:
    """Number the query texts of some pairs, with the passages of their corpus that are their own.

    Args:
        answers: From `_answers`.
        pair_texts: Digest of each pair's query text.
        passages: Digest of each passage of the corpus.
    """
    texts, query_text = np.unique(pair_texts, return_inverse=True)
    begin = np.searchsorted(answers[0], texts, side="left")
    end = np.searchsorted(answers[0], texts, side="right")
    counts = end - begin
    owner = np.repeat(np.arange(len(texts)), counts)
    within = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
    wanted = answers[1][begin[owner] + within]
    order = np.argsort(passages)
    place = np.minimum(np.searchsorted(passages[order], wanted), len(order) - 1)
    found = passages[order][place] == wanted
    rows = np.bincount(owner[found], minlength=len(texts))
    return query_text, Ragged(_offsets(rows), order[place[found]])
