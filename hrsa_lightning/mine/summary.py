"""What mining kept, what it dropped, and why."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.mine.choice import Kept
from hrsa_lightning.mine.options import MiningOptions
from hrsa_lightning.mine.texts import PairTexts


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
