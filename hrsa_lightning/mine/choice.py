"""From ranked candidates to the negatives of a pair, and to the pairs that are kept.

Shapes: P pairs, K candidates of each in descending order of similarity, n negatives of each.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.mine.options import MiningOptions

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


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
