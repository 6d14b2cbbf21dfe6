"""Mining from end to end: embed, search with sentence-transformers, filter, write."""

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hrsa_lightning.data.pairs import PairSource, read_pairs
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io.files import explained, write_json
from hrsa_lightning.io.pairs import pair_line
from hrsa_lightning.mine.texts import Integers, PairTexts, encode_to_file
from hrsa_lightning.runs.encoder import Encoder

SCORE_BYTES = 2**28
"""Of the similarities that are held at a time: some queries with all passages, in float32."""

RANKS_PER_BLOCK = 2**21
"""Ranked candidates, of all queries of one call of `mine_hard_negatives`."""

_SUMMARY = "summary.json"
_LIBRARIES = ("sentence_transformers", "datasets")


@dataclass(frozen=True)
class MiningOptions:
    """Which passages become the negatives of a pair.

    The search is sentence-transformers' `mine_hard_negatives` with `sampling_strategy="top"`; a
    query with several positives is limited by the least similar of them, in whatever pair of the
    corpus they are, and `rank_range` counts the candidates within the limit. Never taken are the
    query's own text, what answers a query of the same text or is of such an answer's document
    (`pos_ids`), and what is already a negative of the pair. Texts that differ in case, white space
    or Unicode compatibility forms only count as one.

    Attributes:
        num_negatives: Negatives of each pair.
        rank_range: `range_min` and `range_max`; the most similar candidate has rank 0.
        max_relative: Most similarity as a share of the positive's, 1 less `relative_margin`: the
            limit is `s - (1 - max_relative) * |s|` beside a positive's `s`. None sets no limit.
        corpus: "file" searches the passages of the pair's own file, "shared" those of all files.
        keep_existing: Keep the negatives that a pair comes with, and fill them up.
        min_negatives: Pairs with fewer negatives than this are dropped.
        keep: Side of `margin` on which pairs are kept: "below" (at or below it) or "above"; None
            filters nothing. A pair's margin is the similarity of its positive (of several, the
            least similar) less that of its most similar negative.
        margin: See `keep`.
        max_examples: Of more pairs of one file than this, those with the largest margins stay.
        faiss: Search with faiss (on all GPUs, if it is built for them) instead of torch.

    Raises:
        ConfigError: An option is out of its range.
    """

    num_negatives: int = 3
    rank_range: tuple[int, int] = (0, 100)
    max_relative: float | None = 0.95
    corpus: Literal["file", "shared"] = "file"
    keep_existing: bool = False
    min_negatives: int = 1
    keep: Literal["below", "above"] | None = None
    margin: float = 0.7
    max_examples: int | None = None
    faiss: bool = False

    def __post_init__(self) -> None:
        first, end = self.rank_range
        rules = {
            "num_negatives": ("at least 1", self.num_negatives >= 1),
            "rank_range": ("a first rank from 0 and a larger end", 0 <= first < end),
            "max_relative": ("above 0 and at most 1", 0 < (self.max_relative or 1) <= 1),
            "min_negatives": (
                f"1 to num_negatives ({self.num_negatives})",
                1 <= self.min_negatives <= self.num_negatives,
            ),
            "max_examples": ("at least 1", self.max_examples is None or self.max_examples >= 1),
            "corpus": ("one of file, shared", self.corpus in ("file", "shared")),
            "keep": ("one of below, above", self.keep in (None, "below", "above")),
        }
        for name, (expected, holds) in rules.items():
            if not holds:
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if end - first < self.num_negatives:
            raise ConfigError(
                f"rank_range: expected ranks for {self.num_negatives} negatives, got {end - first}"
            )


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
        out: A `.jsonl` file for all pairs, or a new folder for one file per source.
        options: Which negatives, and which pairs.
        work: Folder of embeddings, which stays; the default lies beside `out` and is removed at the
            end. An interrupted call goes on from there.
        progress: Show progress bars.

    Returns:
        The summary, which is also written beside `out`: what was kept, what was dropped and why.

    Raises:
        ConfigError: `out` is there already, has no folder, or would have one file of two sources.
        DataError: The pairs are malformed, there are too few passages, no pair is left, or the
            disk is full.
    """
    return Mining(pairs, out, options, work=work, progress=progress).run(encoder)


class Mining:
    """What `mine` does, with everything checked before a model is loaded; arguments are its."""

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
        missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            needed = "'sentence-transformers>=6,<7' 'datasets>=3.0'"
            raise ConfigError(f"mining needs {missing[0]}: pip install {needed}")
        self._progress, self._out, self._keep_work = progress, Path(out), work is not None
        self._work = Path(f"{out}.work") if work is None else Path(work)
        names = [str(one) if isinstance(one, str | Path) else one.name for one in pairs]
        self._files = _output_files(self._out, names)
        if not self._work.absolute().parent.is_dir() or self._work.is_file():
            raise ConfigError(f"work: expected a folder to make or to use, got {self._work}")
        self._sources = read_pairs(pairs)
        shared = self.options.corpus == "shared"
        corpora = [self._sources] if shared else [[source] for source in self._sources]
        self._texts = [PairTexts(sources, progress) for sources in corpora]
        self._corpora = np.cumsum([0, *map(len, self._texts)])  # first pair of each
        first = self.options.rank_range[0]
        for sources, texts in zip(corpora, self._texts, strict=True):
            if (
                texts.num_passages - 1 < first + self.options.num_negatives
            ):  # a pair's positive is none of its negatives
                raise DataError(
                    f"{sources[0].name}: {texts.num_passages} different passages are too few for "
                    f"{self.options.num_negatives} negatives from rank {first} on; "
                    "add pairs, or search several files together with corpus='shared'"
                )

    def run(self, encoder: Encoder) -> dict[str, Any]:
        """Mine with this model; see `mine`."""
        with explained(self._work):
            self._work.mkdir(exist_ok=True)
            mined = [self._mine(texts, encoder) for texts in self._texts]
        negatives = np.concatenate([one[0] for one in mined])
        positive, hardest = (np.concatenate([one[k] for one in mined]) for k in (1, 2))
        with explained(self._out.parent):
            summary = self._write(negatives, positive, hardest)
        del mined  # files that are mapped cannot be removed everywhere
        if not self._keep_work:
            shutil.rmtree(self._work)
        return summary

    def _mine(self, texts: PairTexts, encoder: Encoder) -> tuple[Integers, Any, Any]:
        """Negatives of each pair (-1: none), similarity of its positive and of its hardest one."""
        options = self.options
        key = hashlib.blake2b(f"{encoder.identity}\n{texts.digest}".encode(), digest_size=8)
        name = self._work / key.hexdigest()
        queries = encode_to_file(
            name.with_suffix(".queries.f32"),
            texts.num_queries,
            lambda begin, end: encoder.encode_queries(texts.read_queries(begin, end)),
            "queries",
            self._progress,
        )
        passages = encode_to_file(
            name.with_suffix(".passages.f32"),
            texts.num_passages,
            lambda begin, end: encoder.encode_passages(
                [text for text, _ in texts.read_passages(range(begin, end))]
            ),
            "passages",
            self._progress,
            queries.shape[1],
        )
        negatives = np.full((len(texts), options.num_negatives), -1)
        positive, hardest = (np.full(len(texts), np.nan) for _ in range(2))
        silent = None if self._progress else True
        with tqdm(None, "searching", len(texts), unit="pair", disable=silent) as bar:
            for pair, candidates in _search(texts, queries, passages, options):
                existing = texts.negatives(pair) if options.keep_existing else np.empty(0, np.int64)
                hidden = texts.are_answers(pair, candidates) | np.isin(candidates, existing)
                wanted = max(0, options.num_negatives - len(existing))
                chosen = candidates[~hidden][:wanted]
                negatives[pair, : len(chosen)] = chosen
                asked = queries[texts.query[pair]]
                positive[pair] = (passages[texts.positives(pair)] @ asked).min()
                there = np.concatenate([existing, chosen])
                hardest[pair] = (passages[there] @ asked).max(initial=-np.inf)
                bar.update()
        return negatives, positive, hardest

    def _write(
        self, negatives: Integers, positive: NDArray[np.float64], hardest: NDArray[np.float64]
    ) -> dict[str, Any]:
        existing = np.concatenate([texts.num_negatives for texts in self._texts])
        existing = existing * self.options.keep_existing
        counts = (negatives >= 0).sum(1) + existing
        ends = np.cumsum([len(source) for source in self._sources]).tolist()
        files = [slice(end - len(s), end) for s, end in zip(self._sources, ends, strict=True)]
        kept, dropped = keep_pairs(counts, positive - hardest, files, self.options)
        if not kept.any():
            reasons = ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
            raise DataError(f"no pair is left, and nothing is written ({reasons})")
        summary = {
            "pairs": len(kept),
            "kept": int(kept.sum()),
            "dropped": dropped,
            "kept_with_fewer_negatives_than_asked": int(
                (counts[kept] < self.options.num_negatives).sum()
            ),
            "negatives_mined": int((negatives[kept] >= 0).sum()),
            "negatives_kept": int(existing[kept].sum()),
            "queries": sum(texts.num_queries for texts in self._texts),
            "passages": sum(texts.num_passages for texts in self._texts),
            "similarity_of_positives": round(float(positive[kept].mean()), 6),
            "similarity_of_hardest_negatives": round(float(hardest[kept].mean()), 6),
            "files": {
                source.name: {"pairs": len(source), "kept": int(kept[rows].sum())}
                for source, rows in zip(self._sources, files, strict=True)
            },
            "options": asdict(self.options),
        }
        folder = self._out.with_name(f"{self._out.name}.partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            self._write_lines(folder, negatives, kept, ends)
            write_json(folder / _SUMMARY, summary)
            if self._out.suffix == ".jsonl":
                (folder / _SUMMARY).replace(self._out.with_suffix(f".{_SUMMARY}"))
                (folder / self._out.name).replace(self._out)
            else:
                folder.replace(self._out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return summary

    def _write_lines(
        self, folder: Path, negatives: Integers, kept: NDArray[np.bool_], ends: list[int]
    ) -> None:
        """Write the pairs that stay, in their order."""
        with contextlib.ExitStack() as stack:
            opened = {
                name: stack.enter_context((folder / name).open("w", encoding="utf-8", newline="\n"))
                for name in dict.fromkeys(self._files)
            }
            silent = None if self._progress else True
            for number in tqdm(np.flatnonzero(kept), "writing", unit="pair", disable=silent):
                corpus = np.searchsorted(self._corpora, number, side="right") - 1
                texts, row = self._texts[corpus], int(number - self._corpora[corpus])
                pair, chosen = texts.pair(row), negatives[number]
                negatives_of = texts.read_passages(chosen[chosen >= 0])
                if self.options.keep_existing:
                    ids = pair.negative_ids or (None,) * len(pair.negatives)
                    negatives_of = [*zip(pair.negatives, ids, strict=True), *negatives_of]
                known = all(document is not None for _, document in negatives_of)
                pair = replace(
                    pair,
                    negatives=tuple(text for text, _ in negatives_of),
                    negative_ids=tuple(str(d) for _, d in negatives_of) if known else (),
                )
                name = self._files[int(np.searchsorted(ends, number, side="right"))]
                opened[name].write(pair_line(pair))


def _search(
    texts: PairTexts, queries: NDArray[np.float32], passages: NDArray[np.float32], options: Any
) -> Iterator[tuple[int, Integers]]:
    """Each pair with its candidates within range and limit, most similar first.

    The library holds the similarities of `faiss_batch_size` queries with all passages (16,384 by
    default: 65 GB at a million), and the ranks of all queries of a call, as many for each as the
    one with the most positives needs. So it is called for blocks of queries that need about as
    many, and is given numbers for texts and mapped files for embeddings.
    """
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers.util import mine_hard_negatives

    disable_progress_bars()
    first, end = options.rank_range
    pairs_in_order = np.argsort(texts.query, kind="stable")
    begins = np.searchsorted(texts.query[pairs_in_order], np.arange(texts.num_queries + 1))
    positives = [
        np.unique(np.concatenate([texts.positives(p) for p in pairs_in_order[slice(*edges)]]))
        for edges in pairwise(begins)
    ]
    order = sorted(range(texts.num_queries), key=lambda query: -len(positives[query]))
    corpus = [str(number) for number in range(texts.num_passages)]
    model: Any = EmbeddedTexts(queries, passages)
    chunk = 16384 if options.faiss else max(1, SCORE_BYTES // (4 * len(corpus)))
    while order:
        size = max(1, RANKS_PER_BLOCK // (end + len(positives[order[0]])))
        block, order = order[:size], order[size:]
        rows = [(str(query), str(number)) for query in block for number in positives[query]]
        with contextlib.redirect_stderr(io.StringIO()):  # its bars, one a chunk
            found = mine_hard_negatives(
                Dataset.from_dict({"query": [r[0] for r in rows], "pos": [r[1] for r in rows]}),
                model,
                corpus=corpus,
                range_min=first,
                range_max=end,
                relative_margin=None if options.max_relative is None else 1 - options.max_relative,
                num_negatives=end - first,
                sampling_strategy="top",
                output_format="labeled-list",
                faiss_batch_size=chunk,
                use_faiss=options.faiss,
                verbose=False,
            )
        ranked = dict(zip(found["query"], found["pos"], strict=True))
        for query in block:
            candidates = np.array(ranked.get(str(query), ["-1"])[1:], dtype=np.int64)
            for pair in pairs_in_order[begins[query] : begins[query + 1]].tolist():
                yield pair, candidates


class EmbeddedTexts:
    """Embeddings by the number of a text: what `mine_hard_negatives` needs of a model."""

    def __init__(self, queries: NDArray[np.float32], passages: NDArray[np.float32]) -> None:
        import torch

        self.device = torch.device("cpu")
        self._queries, self._passages = queries, passages

    def get_embedding_dimension(self) -> int:
        return int(self._passages.shape[1])

    def encode_query(self, numbers: Sequence[str], **_: Any) -> NDArray[np.float32]:
        return self._queries[[int(number) for number in numbers]]

    def encode_document(self, numbers: Sequence[str], **_: Any) -> NDArray[np.float32]:
        assert len(numbers) == len(self._passages)  # all of them, in their order: not copied
        return self._passages

    def similarity(self, queries: Any, passages: Any) -> Any:
        """Of rows of length 1, (queries, passages)."""
        import torch

        return torch.as_tensor(queries) @ torch.as_tensor(passages).T

    def similarity_pairwise(self, queries: Any, passages: Any) -> Any:
        """Of rows of length 1, one with one."""
        import torch

        return (torch.as_tensor(queries) * torch.as_tensor(passages)).sum(-1)


def keep_pairs(
    counts: Integers, margins: NDArray[np.float64], files: Sequence[slice], options: MiningOptions
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which pairs stay, and how many do not for each reason."""
    kept = counts >= options.min_negatives
    dropped = {"too few negatives": int((~kept).sum())}
    if options.keep is not None:
        below = margins <= options.margin
        wrong = kept & (below if options.keep == "above" else ~below)
        kept &= ~wrong
    dropped["other side of the margin"] = len(kept) - int(kept.sum()) - sum(dropped.values())
    for rows in files:
        left = rows.start + np.flatnonzero(kept[rows])
        largest_first = left[np.argsort(-margins[left], kind="stable")]
        kept[largest_first[options.max_examples or len(left) :]] = False
    dropped["over the cap"] = len(kept) - int(kept.sum()) - sum(dropped.values())
    return kept, dropped


def _output_files(out: Path, sources: Sequence[str]) -> list[str]:
    """The file's name for each source: one `.jsonl` file for all, or files in a folder."""
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"out: expected a folder that can be written into, got {folder}")
    if out.is_file() or (out.is_dir() and (out.suffix == ".jsonl" or any(out.iterdir()))):
        raise ConfigError(f"out: {out} exists already; remove it or choose another name")
    if out.suffix == ".jsonl":
        return [out.name] * len(sources)
    stems = [
        re.sub(r"[^\w.-]", "_", s[4:]) if s.startswith("hub:") else Path(s).stem for s in sources
    ]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise ConfigError(f"out: several inputs would be written to {out / twice[0]}.jsonl")
    return [f"{stem}.jsonl" for stem in stems]
