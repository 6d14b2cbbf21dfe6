"""Numbers for the texts of contrastive pairs, which themselves stay in their files.

Texts are known by 64-bit digests; among ten million of them, two share one with a probability of
3e-6. Some two hundred bytes a passage are held in memory, whatever its length.
"""

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.data.pairs import PairSource
from hrsa_lightning.io import ContrastivePair, Query
from hrsa_lightning.mine.rules import Corpus

Integers = NDArray[np.int64]
Digests = NDArray[np.uint64]

Passage = tuple[str, str | None]
"""A passage's text, and the id of its document where that is known."""


def normalize_text(text: str) -> str:
    r"""What two texts must share to count as duplicates.

    Example:
        >>> normalize_text("  The \u2167th\n Law ")
        'the viiith law'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding takes some letters apart again.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def passages_of(pair: ContrastivePair) -> list[Passage]:
    """The positives of a pair, then its negatives.

    Example:
        >>> passages_of(ContrastivePair("q", ("a",), ("b",), positive_ids=("7",)))
        [('a', '7'), ('b', None)]
    """
    unknown = repeat(None)
    return [
        *zip(pair.positives, pair.positive_ids or unknown, strict=False),
        *zip(pair.negatives, pair.negative_ids or unknown, strict=False),
    ]


@dataclass(frozen=True, slots=True)
class SearchedCorpus:
    """Passages that some consecutive pairs search; each distinct text is one passage.

    Attributes:
        first_pair: Number of its first pair.
        num_pairs: Pairs that search it.
        first_passage: Number of its first passage; passages of a corpus are consecutive.
        num_passages: How many it has.
        keys: What its passages are known by, in ascending order: digests of texts and documents.
        known: For each key, one of its passages, counted from the corpus' first.
    """

    first_pair: int
    num_pairs: int
    first_passage: int
    num_passages: int
    keys: Digests
    known: Integers


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
        corpora: What is searched.
        digest: Changes whenever any text or document does.
    """

    def __init__(
        self,
        sources: Sequence[PairSource],
        corpus: Corpus = "file",
        progress: bool = False,
    ) -> None:
        self._sources = list(sources)
        sizes = [len(source) for source in sources]
        self.first_pairs = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        queries = self._read(progress)
        self._query_place, self.query = _number(queries)
        self._pairs_in_order = np.argsort(self._texts, kind="stable")
        self._texts_in_order = self._texts[self._pairs_in_order]
        self._number = np.empty(len(self._passages), np.int64)
        self._passage_place = np.empty(0, np.int64)
        edges = self.first_pairs if corpus == "file" else self.first_pairs[[0, -1]]
        self.corpora = tuple(
            self._number_corpus(begin, end) for begin, end in pairwise(edges.tolist())
        )

    def __len__(self) -> int:
        """Number of pairs."""
        return int(self.first_pairs[-1])

    @property
    def num_queries(self) -> int:
        return len(self._query_place)

    @property
    def num_passages(self) -> int:
        return len(self._passage_place)

    @property
    def num_negatives(self) -> Integers:
        """Negatives that each pair comes with."""
        return np.diff(self._offsets) - self._num_positives

    def pair(self, number: int) -> ContrastivePair:
        """Read one pair again."""
        source = int(np.searchsorted(self.first_pairs, number, side="right")) - 1
        return self._sources[source][number - int(self.first_pairs[source])]

    def read_queries(self, begin: int, end: int) -> list[Query]:
        """Read queries `begin` to `end`."""
        return [self.pair(int(place)).query for place in self._query_place[begin:end]]

    def read_passages(self, begin: int, end: int) -> list[str]:
        """Read passages `begin` to `end`."""
        return [text for text, _ in self.passages(np.arange(begin, end))]

    def passages(self, numbers: Integers) -> Iterator[Passage]:
        """Read passages."""
        places = self._passage_place[numbers]
        owners = np.searchsorted(self._offsets, places, side="right") - 1
        within = places - self._offsets[owners]
        read, own = -1, list[Passage]()
        # Neighbors come from one pair more often than not, and pairs are parsed when they are read.
        for owner, place in zip(owners.tolist(), within.tolist(), strict=True):
            if owner != read:
                read, own = owner, passages_of(self.pair(owner))
            yield own[place]

    def positives(self, pairs: Integers) -> tuple[Integers, Integers]:
        """The positives of `pairs`: each with its position in `pairs`, and its number."""
        row, place = _ranges(self._offsets[pairs], self._num_positives[pairs])
        return row, self._number[place]

    def negatives(self, pairs: Integers) -> tuple[Integers, Integers]:
        """As `positives`, the negatives that `pairs` come with."""
        begin = self._offsets[pairs] + self._num_positives[pairs]
        row, place = _ranges(begin, self._offsets[pairs + 1] - begin)
        return row, self._number[place]

    def own(self, corpus: SearchedCorpus, pairs: Integers) -> tuple[Integers, Integers]:
        """The passages of a corpus that are no negatives of `pairs`.

        These say the same as the query, answer a query with the same text in whatever file, or are
        of the document of such an answer.

        Returns:
            Positions in `pairs`, and passages counted from the corpus' first.
        """
        texts, asked = np.unique(self._texts[pairs], return_inverse=True)
        row, at = _matches(self._texts_in_order, texts)
        asking = self._pairs_in_order[at]
        answer, place = _ranges(self._offsets[asking], self._num_positives[asking])
        text = row[answer]
        documents = self._documents[place]
        named = documents != _UNKNOWN
        owner = np.concatenate([np.arange(len(texts)), text, text[named]])
        keys = np.concatenate([texts, self._passages[place], documents[named]])
        row, at = _matches(corpus.keys, keys)
        found = np.unique(owner[row] * corpus.num_passages + corpus.known[at])
        owner, passage = np.divmod(found, corpus.num_passages)
        counts = np.bincount(owner, minlength=len(texts))
        position, at = _ranges((counts.cumsum() - counts)[asked], counts[asked])
        return position, passage[at]

    def _read(self, progress: bool) -> Digests:
        """Fill the columns with what is in the pairs; returns that of the queries."""
        queries, texts, passages, documents = (array("Q") for _ in range(4))
        num_positives, offsets = array("q"), array("q", [0])
        everything = hashlib.blake2b(digest_size=16)
        pairs = (source[row] for source in self._sources for row in range(len(source)))
        bar = tqdm(
            pairs, "reading pairs", len(self), unit="pair", disable=None if progress else True
        )
        for pair in bar:
            instruction, text = ("", pair.query) if isinstance(pair.query, str) else pair.query
            own = passages_of(pair)
            queries.append(_digest(f"{instruction}\0{text}"))
            texts.append(_digest(normalize_text(text)))
            for passage, document in own:
                passages.append(_digest(normalize_text(passage)))
                known = document is not None
                documents.append(_digest(f"document\0{document}") if known else _UNKNOWN)
            num_positives.append(len(pair.positives))
            offsets.append(len(passages))
            everything.update(json.dumps([instruction, text, len(pair.positives), own]).encode())
        self.digest = everything.hexdigest()
        self._texts = np.frombuffer(texts, np.uint64)
        self._passages = np.frombuffer(passages, np.uint64)
        self._documents = np.frombuffer(documents, np.uint64)
        self._num_positives = np.frombuffer(num_positives, np.int64)
        self._offsets = np.frombuffer(offsets, np.int64)
        return np.frombuffer(queries, np.uint64)

    def _number_corpus(self, begin: int, end: int) -> SearchedCorpus:
        """Number the passages of some pairs, and note where each of them is first."""
        numbered = len(self._passage_place)
        inside = slice(int(self._offsets[begin]), int(self._offsets[end]))
        place, number = _number(self._passages[inside])
        self._passage_place = np.concatenate([self._passage_place, place + inside.start])
        self._number[inside] = number + numbered
        documents = self._documents[inside]
        named = documents != _UNKNOWN
        keys = np.concatenate([self._passages[inside][place], documents[named]])
        known = np.concatenate([np.arange(len(place)), number[named]])
        order = np.argsort(keys, kind="stable")
        return SearchedCorpus(begin, end - begin, numbered, len(place), keys[order], known[order])


_UNKNOWN = 0
"""Digest of a document that is not named."""


def _number(digests: Digests) -> tuple[Integers, Integers]:
    """Number distinct digests by first appearance.

    Returns:
        Place where each of them appears first, and the number of each entry.
    """
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = first[order]
    first[order] = np.arange(len(order))  # now the number of each digest
    return places, first[inverse]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _ranges(begins: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """`counts[i]` numbers from `begins[i]` on, one range after another, each after its `i`."""
    owner = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(owner), dtype=np.int64)
    numbers += (begins - np.cumsum(counts, dtype=np.int64) + counts)[owner]
    return owner, numbers


def _matches(ordered: Digests | Integers, wanted: Digests | Integers) -> tuple[Integers, Integers]:
    """Where `wanted` are in a column in ascending order: numbers of `wanted`, and places."""
    begin = np.searchsorted(ordered, wanted, side="left")
    return _ranges(begin, np.searchsorted(ordered, wanted, side="right") - begin)
