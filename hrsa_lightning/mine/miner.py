"""Mining from end to end: embed, search, choose, write; an interrupted call is taken up again."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.data.pairs import PairSource, read_pairs
from hrsa_lightning.errors import DataError
from hrsa_lightning.mine.output import (
    complete_files,
    output_files,
    summarize,
    summary_file,
    training_line,
)
from hrsa_lightning.mine.resuming import ResumeFolder, fill, to_unit_rows
from hrsa_lightning.mine.rules import MiningOptions, choose_negatives, keep_pairs
from hrsa_lightning.mine.search import nearest_passages, pair_scores
from hrsa_lightning.mine.texts import PairTexts, passages_of
from hrsa_lightning.runs.encoder import Encoder

PAIRS_PER_BLOCK = 512
"""Pairs that are searched and written at a time."""

TEXTS_PER_BLOCK = 2048
"""Texts that are encoded and written at a time."""

_FORMAT = 3
"""Of the work folder; another number forgets those of other versions."""

_EMBEDDING_OPTIONS = ("corpus",)
_SEARCH_OPTIONS = ("num_negatives", "rank_range", "max_relative", "keep_existing")


def mine(
    pairs: Sequence[str | Path | PairSource],
    encoder: Encoder,
    out: str | Path,
    options: MiningOptions | None = None,
    *,
    work: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Give contrastive pairs hard negatives.

    Args:
        pairs: As `read_pairs` takes them.
        encoder: Embeds the texts, see `hrsa_lightning.runs.encoder`.
        out: A `.jsonl` file for all pairs, or a folder for one file per source.
        options: Which negatives, and which pairs.
        work: Folder of embeddings and intermediate results, which stays; the default lies beside
            `out` and is removed at the end. An interrupted call goes on from there.
        progress: Show progress bars.

    Returns:
        The summary, which is also written beside `out`: what was kept, what was dropped and why.

    Raises:
        ConfigError: See `MiningOptions` and `output_files`.
        DataError: The pairs are malformed, there are too few passages, no pair is left, or the
            disk is full.
    """
    return Mining(pairs, out, options, work=work, progress=progress).run(encoder)


class Mining:
    """What `mine` does, with everything checked before a model is loaded.

    Args:
        pairs: See `mine`.
        out: See `mine`.
        options: See `mine`.
        work: See `mine`.
        progress: See `mine`.

    Raises:
        ConfigError: See `mine`.
        DataError: See `mine`.
    """

    def __init__(
        self,
        pairs: Sequence[str | Path | PairSource],
        out: str | Path,
        options: MiningOptions | None = None,
        *,
        work: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        self.options = options or MiningOptions()
        self.progress = progress
        self._out = Path(out)
        self._work = ResumeFolder(
            Path(f"{out}.work") if work is None else Path(work), keep=work is not None
        )
        names = [str(one) if isinstance(one, str | Path) else one.name for one in pairs]
        self._files = output_files(self._out, names, self._work.renaming())
        self._work.check()
        sources = read_pairs(pairs)
        self._names = [source.name for source in sources]
        with _space_explained(self._out.parent):
            self._texts = PairTexts(sources, self.options.corpus, progress)
        self._check_corpora()

    def run(self, encoder: Encoder) -> dict[str, Any]:
        """Mine with this model; see `mine`."""
        with _space_explained(self._work.path):
            queries, passages = self._embed(encoder)
            found = self._search(queries, passages)
            summary = self._write(found)
            del queries, passages, found  # files that are mapped cannot be removed everywhere
            self._work.close()
        return summary

    def _check_corpora(self) -> None:
        needed = self.options.rank_range[0] + self.options.num_negatives
        for corpus in self._texts.corpora:
            available = corpus.num_passages - 1  # a pair's positive is none of its negatives
            if available < needed:
                first = int(np.searchsorted(self._texts.first_pairs, corpus.first_pair, "right"))
                raise DataError(
                    f"{self._names[first - 1]}: {corpus.num_passages} different passages are too "
                    f"few for {self.options.num_negatives} negatives from rank "
                    f"{self.options.rank_range[0]} on; add pairs, or search several files together "
                    "with corpus='shared'"
                )

    def _embed(self, encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        texts = self._texts
        probe = to_unit_rows(encoder.encode_queries(texts.read_queries(0, 1)), 1, None, "queries")
        dim = probe.shape[1]
        options = asdict(self.options)
        embedded = [_FORMAT, encoder.identity, texts.digest, dim]
        embedded += [options[name] for name in _EMBEDDING_OPTIONS]
        searched = [options[name] for name in _SEARCH_OPTIONS]
        rows = texts.num_queries + texts.num_passages
        num_bytes = rows * dim * 4 + len(texts) * self._record.itemsize
        self._work.open(_fingerprint(embedded), _fingerprint(searched), num_bytes)

        def embedded_file(path: Path, name: str, num_texts: int, embed: Any) -> NDArray[np.float32]:
            ends = [*range(TEXTS_PER_BLOCK, num_texts, TEXTS_PER_BLOCK), num_texts]
            title, row = f"embedding {name}", (np.float32, (dim,))

            def rows(begin: int, end: int) -> NDArray[np.float32]:
                return to_unit_rows(embed(begin, end), end - begin, dim, name)

            return fill(path, row, ends, rows, title, "text", self.progress)

        return (
            embedded_file(
                self._work.queries,
                "queries",
                texts.num_queries,
                lambda begin, end: encoder.encode_queries(texts.read_queries(begin, end)),
            ),
            embedded_file(
                self._work.passages,
                "passages",
                texts.num_passages,
                lambda begin, end: encoder.encode_passages(texts.read_passages(begin, end)),
            ),
        )

    @property
    def _record(self) -> np.dtype[Any]:
        """What is found for one pair."""
        return np.dtype(
            [
                ("negatives", np.int64, (self.options.num_negatives,)),
                ("positive", np.float64),
                ("hardest", np.float64),
                ("candidates", np.int64),
                ("too_similar", np.int64),
            ]
        )

    def _search(self, queries: NDArray[np.float32], passages: NDArray[np.float32]) -> NDArray[Any]:
        """Find the negatives of all pairs, from where an earlier call stopped."""
        ends = [
            min(begin + PAIRS_PER_BLOCK, corpus.first_pair + corpus.num_pairs)
            for corpus in self._texts.corpora
            for begin in range(
                corpus.first_pair, corpus.first_pair + corpus.num_pairs, PAIRS_PER_BLOCK
            )
        ]

        def search(begin: int, end: int) -> NDArray[Any]:
            return self._search_block(np.arange(begin, end), queries, passages)

        path = self._work.found
        return fill(path, self._record, ends, search, "searching", "pair", self.progress)

    def _search_block(
        self,
        pairs: NDArray[np.int64],
        queries: NDArray[np.float32],
        passages: NDArray[np.float32],
    ) -> NDArray[Any]:
        """Find the negatives of some pairs of one corpus."""
        texts, options = self._texts, self.options
        corpus = next(c for c in reversed(texts.corpora) if c.first_pair <= pairs[0])
        asked = np.array(queries[texts.query[pairs]])
        begin = corpus.first_passage
        searched = passages[begin : begin + corpus.num_passages]
        row, own = texts.own(corpus, pairs)
        old_row, old = texts.negatives(pairs)
        if not options.keep_existing:
            old_row, old = old_row[:0], old[:0]
        old = old - begin
        excluded = (np.concatenate([row, old_row]), np.concatenate([own, old]))
        scores, rows = nearest_passages(asked, searched, options.rank_range[1], excluded)
        right_row, right = texts.positives(pairs)
        positive = np.full(len(pairs), np.inf)
        np.minimum.at(positive, right_row, pair_scores(asked, searched, right_row, right - begin))
        lacking = options.num_negatives - np.bincount(old_row, minlength=len(pairs))
        choice = choose_negatives(scores, rows, positive, np.maximum(lacking, 0), options)
        hardest = choice.hardest
        np.maximum.at(hardest, old_row, pair_scores(asked, searched, old_row, old))
        found = np.empty(len(pairs), dtype=self._record)
        found["negatives"] = np.where(choice.negatives < 0, -1, choice.negatives + begin)
        found["positive"] = positive
        found["hardest"] = hardest
        found["candidates"] = choice.candidates
        found["too_similar"] = choice.too_similar
        return found

    def _write(self, found: NDArray[Any]) -> dict[str, Any]:
        texts, options = self._texts, self.options
        counts = (found["negatives"] >= 0).sum(1)
        if options.keep_existing:
            counts = counts + texts.num_negatives
        margins = found["positive"] - found["hardest"]
        decided = keep_pairs(counts, margins, texts.first_pairs, options)
        summary = summarize(texts, self._names, options, found, counts, decided)
        if not summary["kept"]:
            dropped = ", ".join(f"{n} {why}" for why, n in summary["dropped"].items() if n)
            raise DataError(f"no pair is left, and nothing is written ({dropped})")
        written = summary_file(self._out)
        kept = np.flatnonzero(decided.kept)
        silent = None if self.progress else True
        with (
            complete_files([*self._files, written]) as opened,
            tqdm(None, "writing", len(kept), unit="pair", disable=silent) as bar,
        ):
            for begin in range(0, len(kept), PAIRS_PER_BLOCK):
                block = kept[begin : begin + PAIRS_PER_BLOCK]
                sources = np.searchsorted(texts.first_pairs, block, side="right") - 1
                for source, line in zip(sources, self._lines(block, found), strict=True):
                    opened[self._files[source]].write(line)
                bar.update(len(block))
            opened[written].write(json.dumps(summary, indent=1) + "\n")
            self._work.begin_renaming([*self._files, written])
        return summary

    def _lines(self, pairs: NDArray[np.int64], found: NDArray[Any]) -> Iterator[str]:
        """Pairs with their negatives in the training format."""
        chosen = np.asarray(found["negatives"][pairs])
        mined = self._texts.passages(chosen[chosen >= 0])
        for number, count in zip(pairs.tolist(), (chosen >= 0).sum(1).tolist(), strict=True):
            pair = self._texts.pair(number)
            existing = (
                passages_of(pair)[len(pair.positives) :] if self.options.keep_existing else []
            )
            yield training_line(pair, [*existing, *islice(mined, count)])


def _fingerprint(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


@contextmanager
def _space_explained(folder: Path) -> Iterator[None]:
    """Say in one line that the disk is full, or that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = error.filename or folder
        raise DataError(f"{where}: {os.strerror(error.errno)}") from error
