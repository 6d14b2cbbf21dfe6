"""Numbers for the texts of contrastive pairs, which themselves stay in their files.

Texts are known by 64-bit digests; among ten million of them, two share one with a probability of
3e-6. Digests and numbers are columns in files too, see `columns`, and are looked up for some pairs
at a time: memory does not grow with the pairs but for a byte a passage.
"""

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hrsa_lightning.data.records import ContrastivePair, Query
from hrsa_lightning.data.sources import PairSource
from hrsa_lightning.mine.columns import (
    ColumnWriter,
    Digests,
    Integers,
    blocks,
    new_column,
    number_column,
    sort_column,
)
from hrsa_lightning.mine.options import Corpus

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
        folder: On the disk that is to hold the columns; the default is the system's for temporary
            files.
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
        folder: Path | None = None,
        progress: bool = False,
    ) -> None:
        self._sources = list(sources)
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        sizes = [len(source) for source in sources]
        self.first_pairs = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        queries = self._read(progress)
        self._query_place, self.query = number_column(queries, self._folder)
        self._texts_in_order, self._pairs_in_order = sort_column(self._texts, self._folder)
        self._number = new_column(len(self._passages), np.int64, self._folder)
        places = ColumnWriter(np.int64, self._folder)
        edges = self.first_pairs if corpus == "file" else self.first_pairs[[0, -1]]
        self.corpora = tuple(
            self._number_corpus(begin, end, places) for begin, end in pairwise(edges.tolist())
        )
        self._passage_place: Integers = places.column()

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
        document, at = _matches(self._documented, place)
        owner = np.concatenate([np.arange(len(texts)), text, text[document]])
        keys = np.concatenate([texts, self._passages[place], self._documents[at]])
        row, at = _matches(corpus.keys, keys)
        found = np.unique(owner[row] * corpus.num_passages + corpus.known[at])
        owner, passage = np.divmod(found, corpus.num_passages)
        counts = np.bincount(owner, minlength=len(texts))
        position, at = _ranges((counts.cumsum() - counts)[asked], counts[asked])
        return position, passage[at]

    def _read(self, progress: bool) -> Digests:
        """Write the columns of what is in the pairs; returns that of the queries."""
        folder = self._folder
        queries, texts, passages, documents = (ColumnWriter(np.uint64, folder) for _ in range(4))
        num_positives, offsets, documented = (ColumnWriter(np.int64, folder) for _ in range(3))
        everything = hashlib.blake2b(digest_size=16)
        offsets.extend([0])
        pairs = (source[row] for source in self._sources for row in range(len(source)))
        bar = tqdm(
            pairs, "reading pairs", len(self), unit="pair", disable=None if progress else True
        )
        for pair in bar:
            instruction, text = ("", pair.query) if isinstance(pair.query, str) else pair.query
            own = passages_of(pair)
            queries.extend([_digest(f"{instruction}\0{text}")])
            texts.extend([_digest(normalize_text(text))])
            for place, (_, document) in enumerate(own, start=len(passages)):
                if document is not None:
                    documented.extend([place])
                    documents.extend([_digest(f"document\0{document}")])
            passages.extend(_digest(normalize_text(passage)) for passage, _ in own)
            num_positives.extend([len(pair.positives)])
            offsets.extend([len(passages)])
            everything.update(json.dumps([instruction, text, len(pair.positives), own]).encode())
        self.digest = everything.hexdigest()
        self._texts: Digests = texts.column()
        self._passages: Digests = passages.column()
        self._documented: Integers = documented.column()
        self._documents: Digests = documents.column()
        self._num_positives: Integers = num_positives.column()
        self._offsets: Integers = offsets.column()
        return queries.column()

    def _number_corpus(self, begin: int, end: int, places: ColumnWriter) -> SearchedCorpus:
        """Number the passages of some pairs, and write where each of them is first."""
        numbered = len(places)
        first, last = int(self._offsets[begin]), int(self._offsets[end])
        place, number = number_column(self._passages[first:last], self._folder)
        inside = slice(*np.searchsorted(self._documented, (first, last)))
        keys = new_column(len(place) + inside.stop - inside.start, np.uint64, self._folder)
        for block in blocks(len(place)):
            keys[block] = self._passages[place[block] + first]
            places.extend((place[block] + first).tolist())
        keys[len(place) :] = self._documents[inside]
        for block in blocks(last - first):
            self._number[block.start + first : block.stop + first] = number[block] + numbered
        keys, known = sort_column(keys, self._folder)
        documented = self._documented[inside]
        for block in blocks(len(known)):
            passage = known[block]
            of_document = passage >= len(place)
            passage[of_document] = number[documented[passage[of_document] - len(place)] - first]
        return SearchedCorpus(begin, end - begin, numbered, len(place), keys, known)


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
