"""What a user may ask of the mining, checked before anything slow begins. Imports no torch."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from hrsa_lightning.errors import ConfigError

Corpus = Literal["file", "shared"]
Keep = Literal["below", "above"]
Backend = Literal["auto", "torch", "faiss"]

CORPORA = ("file", "shared")
KEEPS = ("below", "above")
BACKENDS = ("auto", "torch", "faiss")


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
        backend: Who multiplies: "torch" or "faiss", or "auto" for faiss where it is installed. The
            negatives are the same.

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
    backend: Backend = "auto"

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
        for name, value, known in (
            ("corpus", self.corpus, CORPORA),
            ("keep", self.keep, (None, *KEEPS)),
            ("backend", self.backend, BACKENDS),
        ):
            if value not in known:
                choices = ", ".join(choice for choice in known if choice)
                raise ConfigError(f"{name}: expected one of {choices}; got {value!r}")
        if self.backend == "faiss" and find_spec("faiss") is None:
            raise ConfigError("backend: faiss is not installed: pip install faiss-cpu")
