"""What mining writes: complete files or none, and a summary of what it kept and why."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io import ContrastivePair
from hrsa_lightning.mine.rules import Kept, MiningOptions
from hrsa_lightning.mine.texts import PairTexts, Passage


def output_files(
    out: Path, sources: Sequence[str], replaceable: Collection[Path] = ()
) -> list[Path]:
    """One file per source: the same `.jsonl` file for all, or files of their names in a folder.

    Args:
        out: A name that ends with `.jsonl` is a file, any other a folder.
        sources: Names of the sources.
        replaceable: Files that may be there already, by their absolute paths.

    Raises:
        ConfigError: There is no folder to put it in, or none that can be written into; a file is
            there already; or two sources would give the same file.
    """
    if out.suffix == ".jsonl":
        files = [out] * len(sources)
    else:
        files = [out / f"{_stem(source)}.jsonl" for source in sources]
        twice = sorted({file.name for file in files if files.count(file) > 1})
        if twice:
            raise ConfigError(f"out: several inputs would be written to {out / twice[0]}")
    if not out.parent.is_dir():
        raise ConfigError(f"out: there is no folder {out.parent.absolute()}")
    if out.is_file() and out.suffix != ".jsonl":
        raise ConfigError(f"out: {out} is a file; expected NAME.jsonl or a folder")
    folder = out if out.is_dir() else out.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"out: the folder {folder.absolute()} cannot be written into")
    for file in (*files, summary_file(out)):
        if file.exists() and file.absolute() not in replaceable:
            raise ConfigError(f"out: {file} exists already; remove it or choose another name")
    return files


def summary_file(out: Path) -> Path:
    """Where the summary goes."""
    return out.with_suffix(".summary.json") if out.suffix == ".jsonl" else out / "summary.json"


def _stem(source: str) -> str:
    if source.startswith("hub:"):
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in source.removeprefix("hub:"))
    return Path(source).stem


@contextmanager
def complete_files(paths: Iterable[Path]) -> Iterator[dict[Path, Any]]:
    """Open text files that get their names when the block ends well, and vanish when it does not.

    Yields:
        The open file by its path; equal paths are one file.
    """
    parts = {path: path.with_name(f"{path.name}.partial") for path in paths}
    made = {path.parent for path in parts if not path.parent.exists()}
    opened: dict[Path, Any] = {}
    try:
        for path, part in parts.items():
            path.parent.mkdir(exist_ok=True)
            opened[path] = part.open("w", encoding="utf-8", newline="\n")
        yield opened
        for file in opened.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for path, part in parts.items():
            part.replace(path)
    finally:
        for file in opened.values():
            file.close()
        for part in parts.values():
            part.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # it holds what was asked for
                folder.rmdir()


def training_line(pair: ContrastivePair, negatives: Sequence[Passage]) -> str:
    """A pair with its negatives as a line of the training format.

    Documents of the negatives are named where all are known.

    Example:
        >>> pair = ContrastivePair("q", ("a",), positive_ids=("7",))
        >>> print(training_line(pair, [("b", "8")]), end="")
        {"query": "q", "pos": ["a"], "neg": ["b"], "pos_ids": ["7"], "neg_ids": ["8"]}
        >>> print(training_line(ContrastivePair("q", ("a",)), [("b", "8"), ("c", None)]), end="")
        {"query": "q", "pos": ["a"], "neg": ["b", "c"]}
    """
    record: dict[str, Any] = {} if pair.id is None else {"id": pair.id}
    query = pair.query if isinstance(pair.query, str) else list(pair.query)
    texts, documents = [text for text, _ in negatives], [document for _, document in negatives]
    record |= {"query": query, "pos": list(pair.positives), "neg": texts}
    if pair.positive_ids:
        record["pos_ids"] = list(pair.positive_ids)
    if documents and None not in documents:
        record["neg_ids"] = documents
    return json.dumps(record, ensure_ascii=False) + "\n"


def summarize(
    texts: PairTexts,
    names: Sequence[str],
    options: MiningOptions,
    found: NDArray[Any],
    counts: NDArray[np.int64],
    decided: Kept,
) -> dict[str, Any]:
    """Figures of one call of `mine`, as plain data.

    Args:
        texts: What was mined.
        names: Names of the sources.
        options: How it was mined.
        found: What was found for each pair, see `Mining`.
        counts: Negatives of each pair.
        decided: Which pairs stay.
    """
    kept = decided.kept
    edges = zip(names, texts.first_pairs[:-1], texts.first_pairs[1:], strict=True)
    existing = texts.num_negatives[kept].sum() if options.keep_existing else 0
    return {
        "pairs": len(texts),
        "kept": int(kept.sum()),
        "dropped": {
            "too few negatives": int(decided.too_few.sum()),
            "other side of the margin": int(decided.wrong_margin.sum()),
            "over the cap": int(decided.over_cap.sum()),
        },
        "kept_with_fewer_negatives_than_asked": int((counts[kept] < options.num_negatives).sum()),
        "negatives_mined": int((found["negatives"][kept] >= 0).sum()),
        "negatives_kept": int(existing),
        "queries": texts.num_queries,
        "passages": texts.num_passages,
        "candidates": int(found["candidates"].sum()),
        "candidates_too_similar": int(found["too_similar"].sum()),
        "similarity_of_positives": _mean(found["positive"][kept]),
        "similarity_of_hardest_negatives": _mean(found["hardest"][kept]),
        "files": {
            name: {"pairs": int(end - begin), "kept": int(kept[begin:end].sum())}
            for name, begin, end in edges
        },
        "options": asdict(options),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
