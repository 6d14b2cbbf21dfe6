"""Distinct texts of contrastive pairs by number, and their embeddings in files.

Texts stay where they are and are known by 64-bit digests: among ten million of them two share one
with a probability of 3e-6. About a hundred bytes a passage are held in memory, whatever its length.
"""

import hashlib
import json
import os
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.data.pairs import PairSource
from hrsa_lightning.errors import DataError
from hrsa_lightning.io.pairs import ContrastivePair, Query

Integers = NDArray[np.int64]
Digests = NDArray[np.uint64]

TEXTS_PER_BLOCK = 2048
"""Texts that are encoded and written at a time."""


def normalize_text(text: str) -> str:
    r"""What two texts must share to count as duplicates.

    Example:
        >>> normalize_text("  The \u2167th\n Law ")
        'the viiith law'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding takes some letters apart again.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


class PairTexts:
    """Distinct queries and passages of all pairs, numbered in the order of first appearance.

    A distinct query is an (instruction, text); a distinct passage is a text up to `normalize_text`,
    and is spelled as where it appears first.

    Attributes:
        query: For each pair, the number of its query.
        num_queries: Distinct ones.
        num_passages: Distinct ones.
        digest: Changes whenever any text or document does.
    """

    def __init__(self, sources: Sequence[PairSource], progress: bool = False) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        queries, asked, passages, documents = (array("Q") for _ in range(4))
        num_positives, offsets = array("q"), array("q", [0])
        everything = hashlib.blake2b(digest_size=16)
        pairs = (source[row] for source in self._sources for row in range(len(source)))
        silent = None if progress else True
        for pair in tqdm(pairs, "reading pairs", int(self._ends[-1]), unit="pair", disable=silent):
            instruction, text = ("", pair.query) if isinstance(pair.query, str) else pair.query
            queries.append(_digest(f"{instruction}\0{text}"))
            asked.append(_digest(normalize_text(text)))
            texts = [*pair.positives, *pair.negatives]
            known = pair.positive_ids or (None,) * len(pair.positives)
            names = [*known, *(pair.negative_ids or (None,) * len(pair.negatives))]
            passages.extend(_digest(normalize_text(passage)) for passage in texts)
            documents.extend(0 if name is None else _digest(f"document\0{name}") for name in names)
            num_positives.append(len(pair.positives))
            offsets.append(len(passages))
            everything.update(json.dumps([instruction, text, len(pair.positives), texts]).encode())
            everything.update(json.dumps(names).encode())
        self.digest = everything.hexdigest()
        self._offsets = np.frombuffer(offsets, np.int64)
        self._positives = np.frombuffer(num_positives, np.int64)
        self._asked = np.frombuffer(asked, np.uint64)
        first_of_query, self.query = _number(np.frombuffer(queries, np.uint64))
        self._pair_of_query = first_of_query
        self._passages = np.frombuffer(passages, np.uint64)
        self._documents = np.frombuffer(documents, np.uint64)
        self._place, self._number = _number(self._passages)
        self.num_queries, self.num_passages = len(first_of_query), len(self._place)
        positive = np.arange(len(passages)) < np.repeat(
            self._offsets[:-1] + self._positives, np.diff(self._offsets)
        )
        owner = np.repeat(self._asked, np.diff(self._offsets))
        named = positive & (self._documents != 0)
        keys = np.concatenate([owner[positive], owner[named]])
        order = np.argsort(keys, kind="stable")
        self._answered = keys[order]
        self._answers = np.concatenate([self._passages[positive], self._documents[named]])[order]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.query)

    @property
    def num_negatives(self) -> Integers:
        """Negatives that each pair comes with."""
        return np.diff(self._offsets) - self._positives

    def pair(self, number: int) -> ContrastivePair:
        """Read one pair again."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        return self._sources[source][number - int(self._ends[source] - len(self._sources[source]))]

    def read_queries(self, begin: int, end: int) -> list[Query]:
        """Read queries `begin` to `end`."""
        return [self.pair(int(number)).query for number in self._pair_of_query[begin:end]]

    def read_passages(self, numbers: Sequence[int] | Integers) -> list[tuple[str, str | None]]:
        """Read passages: their texts, with their documents where these are known."""
        places = self._place[np.asarray(numbers, dtype=np.int64)]
        owners = np.searchsorted(self._offsets, places, side="right") - 1
        found, read, pair = [], -1, None
        for owner, within in zip(owners, places - self._offsets[owners], strict=True):
            if pair is None or owner != read:  # neighbors often come from one pair
                read, pair = owner, self.pair(int(owner))
            right = len(pair.positives)
            texts, names = pair.positives, pair.positive_ids
            if within >= right:
                texts, names, within = pair.negatives, pair.negative_ids, within - right
            found.append((texts[within], names[within] if names else None))
        return found

    def positives(self, pair: int) -> Integers:
        """Numbers of a pair's positives."""
        begin = self._offsets[pair]
        return self._number[begin : begin + self._positives[pair]]

    def negatives(self, pair: int) -> Integers:
        """Numbers of the negatives that a pair comes with."""
        return self._number[self._offsets[pair] + self._positives[pair] : self._offsets[pair + 1]]

    def are_answers(self, pair: int, passages: Integers) -> NDArray[np.bool_]:
        """Which passages answer a query of its text, are of such a document, or are that text."""
        asked = self._asked[pair]
        begin, end = (np.searchsorted(self._answered, asked, side) for side in ("left", "right"))
        own = np.append(self._answers[begin:end], asked)
        places = self._place[passages]
        return np.isin(self._passages[places], own) | np.isin(self._documents[places], own)


def _number(digests: Digests) -> tuple[Integers, Integers]:
    """Number digests by first appearance: where each one is first, and the number of each entry."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return first[order], numbers[inverse]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_to_file(
    path: Path,
    num_texts: int,
    encode: Callable[[int, int], Any],
    title: str,
    progress: bool,
    dim: int | None = None,
) -> NDArray[np.float32]:
    """Embeddings of length 1, (texts, features), written block by block from where a call stopped.

    Args:
        path: The file: nothing but float32 rows, so that its size says where to go on.
        num_texts: How many there are.
        encode: `encode(begin, end)` gives the embeddings of a block.
        title: What is embedded.
        progress: Show a progress bar.
        dim: Features that are expected; None takes those of the first text.

    Returns:
        The rows, memory-mapped; writing into them changes nothing on disk.

    Raises:
        DataError: An embedding is not finite, is zero, or has another number of features.
    """
    dim = dim or _unit_rows(encode(0, 1), 1, None, title).shape[1]
    written = path.stat().st_size // (4 * dim) if path.exists() else 0
    begin = written if written >= num_texts else written - written % TEXTS_PER_BLOCK
    silent = None if progress else True
    with (
        path.open("r+b" if path.exists() else "w+b") as file,
        tqdm(None, f"embedding {title}", num_texts, begin, unit="text", disable=silent) as bar,
    ):
        file.truncate(begin * 4 * dim)
        file.seek(begin * 4 * dim)
        for start, end in pairwise([*range(begin, num_texts, TEXTS_PER_BLOCK), num_texts]):
            file.write(_unit_rows(encode(start, end), end - start, dim, title).tobytes())
            file.flush()
            os.fsync(file.fileno())
            bar.update(end - start)
    return np.memmap(path, dtype=np.float32, mode="c", shape=(num_texts, dim))


def _unit_rows(embeddings: Any, num_texts: int, dim: int | None, title: str) -> NDArray[np.float32]:
    """What a model returned, an array or a tensor on any device, as checked rows of length 1."""
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or rows.shape != (num_texts, rows.shape[1] if dim is None else dim):
        raise DataError(
            f"embedding {title}: expected an array of shape ({num_texts}, {dim or 'features'}), "
            f"got {rows.shape}"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(
            f"embedding {title}: the model gives embeddings that are not finite or zero"
        )
    return np.asarray(rows / lengths, dtype=np.float32)
