"""Which candidates become the negatives of a pair, and which pairs stay. Imports no torch.

Shapes: P pairs, K candidates of each in descending order of similarity, n negatives of each.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.errors import ConfigError

Corpus = Literal["file", "shared"]
Keep = Literal["below", "above"]

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class MiningOptions:
    """Which passages become the negatives of a pair.

    A pair's candidates are all passages of its corpus but these: its query's own text, every
    positive of a pair with the same query text (in whatever file) and what else is of these
    positives' documents (`pos_ids`), and what is already its negative. Texts that differ in case,
    white space or Unicode compatibility forms only count as one. Candidates are ranked by cosine
    similarity to the query; of equally similar ones the passage that comes first in the files ranks
    first.

    Attributes:
        num_negatives: Negatives of each pair.
        rank_range: First rank that may be taken, and the first that may not be; the most similar
            candidate has rank 0.
        max_relative: A candidate may have at most this share of the positive's similarity `s`; the
            limit is `s - (1 - max_relative) * |s|`, so that it lies below `s` whatever its sign.
            Of several positives the least similar one counts. 1 allows as much as the positive has;
            None sets no limit.
        corpus: "file" searches the passages of the pair's own file, "shared" those of all files.
        keep_existing: Keep the negatives that a pair comes with, and fill them up.
        min_negatives: Pairs with fewer negatives than this are dropped.
        keep: Side of `margin` on which pairs are kept: "below" (at or below it) or "above"; None
            filters nothing. A pair's margin is the similarity of its positive (of several, the
            least similar) less that of its most similar negative.
        margin: See `keep`.
        max_examples: Of more pairs of one file than this, those with the largest margins stay.

    Raises:
        ConfigError: An option is out of its range.
    """

    num_negatives: int = 3
    rank_range: tuple[int, int] = (0, 100)
    max_relative: float | None = 0.95
    corpus: Corpus = "file"
    keep_existing: bool = False
    min_negatives: int = 1
    keep: Keep | None = None
    margin: float = 0.7
    max_examples: int | None = None

    def __post_init__(self) -> None:
        first, end = self.rank_range
        if self.num_negatives < 1:
            raise ConfigError(f"num_negatives: expected at least 1, got {self.num_negatives}")
        if not 0 <= first < end:
            raise ConfigError(
                f"rank_range: expected a first rank from 0 and a larger end, got {first} {end}"
            )
        if end - first < self.num_negatives:
            raise ConfigError(
                f"rank_range: {first} to {end} holds {end - first} ranks, fewer than the "
                f"{self.num_negatives} negatives asked for"
            )
        if self.max_relative is not None and not 0 < self.max_relative <= 1:
            raise ConfigError(
                f"max_relative: expected above 0 and at most 1, got {self.max_relative}"
            )
        if not 1 <= self.min_negatives <= self.num_negatives:
            raise ConfigError(
                f"min_negatives: expected 1 to num_negatives ({self.num_negatives}), "
                f"got {self.min_negatives}"
            )
        if self.max_examples is not None and self.max_examples < 1:
            raise ConfigError(f"max_examples: expected at least 1, got {self.max_examples}")
        if self.corpus not in ("file", "shared"):
            raise ConfigError(f"corpus: expected one of file, shared; got {self.corpus!r}")
        if self.keep not in (None, "below", "above"):
            raise ConfigError(f"keep: expected one of below, above; got {self.keep!r}")


def similarity_limit(positives: Doubles, max_relative: float | None) -> Doubles:
    """Most similarity that a negative may have beside a positive, see `MiningOptions`.

    Example:
        >>> similarity_limit(np.array([0.8, -0.2]), 0.95).round(3)
        array([ 0.76, -0.21])
    """
    if max_relative is None:
        return np.full_like(positives, np.inf)
    return np.asarray(positives - (1 - max_relative) * np.abs(positives))


@dataclass(frozen=True, slots=True)
class Choice:
    """Negatives of some pairs.

    Attributes:
        negatives: Chosen passages (P, n), -1 where there are too few.
        hardest: Similarity of the most similar of them (P,), -inf without any.
        candidates: Candidates in the rank range (P,).
        too_similar: How many of these were above the limit of similarity (P,).
    """

    negatives: Integers
    hardest: Doubles
    candidates: Integers
    too_similar: Integers


def choose_negatives(
    scores: Doubles,
    passages: Integers,
    positives: Doubles,
    wanted: Integers,
    options: MiningOptions,
) -> Choice:
    """Take the first `wanted` candidates within the rank range that are below the limit.

    Args:
        scores: Similarities (P, K); -inf where there is no candidate.
        passages: Numbers of the candidates (P, K).
        positives: Similarity of each pair's positive (P,).
        wanted: Negatives that each pair lacks (P,), at most `options.num_negatives`.
        options: Rank range and limit.
    """
    first, end = options.rank_range
    scores, passages = scores[:, first:end], passages[:, first:end]
    there = np.isfinite(scores)
    allowed = there & (scores <= similarity_limit(positives, options.max_relative)[:, None])
    taken = allowed & (allowed.cumsum(1) <= wanted[:, None])
    negatives = np.full((len(scores), options.num_negatives), -1, dtype=np.int64)
    pair, column = np.nonzero(taken)
    negatives[pair, taken.cumsum(1)[pair, column] - 1] = passages[pair, column]
    hardest = np.where(taken, scores, -np.inf).max(1, initial=-np.inf)
    return Choice(negatives, hardest, there.sum(1), (there & ~allowed).sum(1))


@dataclass(frozen=True, slots=True)
class Kept:
    """Which pairs stay, and why the others do not; every array is (P,)."""

    kept: Flags
    too_few: Flags
    wrong_margin: Flags
    over_cap: Flags


def keep_pairs(
    counts: Integers, margins: Doubles, first_pairs: Integers, options: MiningOptions
) -> Kept:
    """Decide which pairs stay.

    Args:
        counts: Negatives of each pair (P,).
        margins: See `MiningOptions` (P,).
        first_pairs: Number of the first pair of each file, and P.
        options: `min_negatives`, `keep`, `margin` and `max_examples`.
    """
    too_few = counts < options.min_negatives
    kept = ~too_few
    wrong_margin = np.zeros_like(kept)
    if options.keep is not None:
        below = margins <= options.margin
        wrong_margin = kept & (below if options.keep == "above" else ~below)
        kept &= ~wrong_margin
    over_cap = np.zeros_like(kept)
    if options.max_examples is not None:
        for begin, end in pairwise(first_pairs):
            left = begin + np.flatnonzero(kept[begin:end])
            largest_first = left[np.argsort(-margins[left], kind="stable")]
            over_cap[largest_first[options.max_examples :]] = True
        kept &= ~over_cap
    return Kept(kept, too_few, wrong_margin, over_cap)
