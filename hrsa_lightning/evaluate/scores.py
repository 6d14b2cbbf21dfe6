"""What a model scored on a task, and the cache that keeps anything from being computed twice."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TaskScores:
    """One model on one task.

    Attributes:
        task: Name of the task.
        main: Name of the metric that stands for the task.
        metrics: Every metric, in [0, 1].
        chance: What a random ranking scores on average, where that is known.
        units: What the main metric is the mean of (one value per query, or per subset), in an order
            that is the same for all models; what a paired test pairs.
        unit: What a unit is: "query" or "subset".
    """

    task: str
    main: str
    metrics: dict[str, float]
    units: tuple[float, ...]
    unit: str
    chance: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The main metric."""
        return self.metrics[self.main]


def cached_scores(path: Path, compute: Callable[[], TaskScores]) -> TaskScores:
    """Read scores that were written before, or compute and write them."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # none there, or it is damaged
        content = json.loads(path.read_text(encoding="utf-8"))
        return TaskScores(**{**content, "units": tuple(content["units"])})
    scores = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.partial")
    part.write_text(json.dumps(asdict(scores)) + "\n", encoding="utf-8")
    part.replace(path)
    return scores
