"""Scores of models on tasks: one model in memory at a time, and none for what is in the cache."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hrsa_lightning.data.pairs import read_retrieval_set
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io.files import digest, explained, read_json, write_text
from hrsa_lightning.io.pairs import RetrievalSet
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.runs.encoder import Encoder, EncoderOptions, ModelReference

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED_TASK = "embedded"
_FORMAT = 1
"""Of cached scores; another number forgets those of other versions."""

_EMBEDDED_PAIRS = "embedded:tiny/pairs_test.jsonl"
_KS = (1, 10)
_TEXTS_AT_ONCE = 2048


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


@dataclass(frozen=True)
class Tasks:
    """What models are evaluated on.

    Attributes:
        pairs: Retrieval on contrastive pairs, by name of the task.
        benchmarks: Tasks of `mteb`.
        instructions: Of these, by name, see `read_instructions`.
    """

    pairs: dict[str, RetrievalSet] = field(default_factory=dict)
    benchmarks: tuple[Any, ...] = ()
    instructions: dict[str, str] = field(default_factory=dict)


def read_tasks(
    names: Sequence[str], pairs: Sequence[str] = (), instructions: str | None = None
) -> Tasks:
    """Open tasks, those on pairs first.

    Args:
        names: "embedded" (the package's held-out pairs), or names of mteb's tasks and benchmarks.
        pairs: Files of held-out pairs, each a task of its own.
        instructions: A JSON file of instructions for mteb's tasks.

    Raises:
        ConfigError: mteb is needed and not installed, or knows no such task; two tasks have one
            name; or there is nothing to do.
        DataError: See `read_pairs`.
    """
    files = [(EMBEDDED_TASK, resolve_path(_EMBEDDED_PAIRS))] if EMBEDDED_TASK in names else []
    files += [(Path(path).stem, resolve_path(path)) for path in pairs]
    own: dict[str, RetrievalSet] = {}
    for name, path in files:
        if name in own:
            raise ConfigError(f"pairs: two files would give a task {name!r}")
        own[name] = read_retrieval_set([path])
    others = [name for name in names if name != EMBEDDED_TASK]
    found: tuple[Any, ...] = ()
    given: dict[str, str] = {}
    if others:
        from hrsa_lightning.evaluate.benchmarks import find_tasks, read_instructions

        found = tuple(find_tasks(others))
        given = read_instructions(Path(instructions), found) if instructions else {}
    elif instructions:
        raise ConfigError("--instructions: expected tasks of mteb beside it (--tasks), got none")
    if not own and not found:
        raise ConfigError("tasks: none is given")
    return Tasks(own, found, given)


def evaluate_models(
    models: Sequence[ModelReference],
    tasks: Tasks,
    cache: Path,
    options: EncoderOptions | None = None,
    progress: bool = False,
) -> dict[str, list[TaskScores]]:
    """Score models on tasks, from the cache wherever they were scored before.

    Returns:
        Scores of all tasks by the name of the model.

    Raises:
        BackboneError: A model cannot be loaded.
        DataError: A task's data cannot be had, or the cache cannot be written.
    """
    bar = tqdm(models, "evaluating", unit="model", disable=None if progress else True)
    with explained(cache):
        return {
            model.name: _evaluate(model, tasks, cache, options or EncoderOptions(), progress)
            for model in bar
        }


def _evaluate(
    model: ModelReference, tasks: Tasks, cache: Path, options: EncoderOptions, progress: bool
) -> list[TaskScores]:
    loaded: list[Encoder] = []

    def load() -> Encoder:
        if not loaded:
            loaded.append(model.load(options))
        return loaded[0]

    identity = model.identity(options)
    scores = [_score_pairs(name, task, identity, load, cache) for name, task in tasks.pairs.items()]
    if tasks.benchmarks:
        from hrsa_lightning.evaluate.benchmarks import score_benchmarks

        name = model.name.strip("./~").replace(":", "/")
        scores += score_benchmarks(
            tasks.benchmarks,
            name,
            identity,
            load,
            cache / "mteb",
            instructions=tasks.instructions,
            progress=progress,
        )
    return scores


def _score_pairs(
    name: str, task: RetrievalSet, identity: str, load: Any, cache: Path
) -> TaskScores:
    content = json.dumps([_FORMAT, name, task.queries, task.corpus, task.relevance])
    path = cache / "pairs" / digest(content) / f"{identity}.json"
    with suppress(DataError, KeyError, TypeError):  # none there, or it is damaged
        found = read_json(path)
        return TaskScores(**{**found, "units": tuple(found["units"])})
    scores = score_retrieval(name, task, load())
    write_text(path, json.dumps(asdict(scores)))  # with NaN, which is read back
    return scores


def score_retrieval(name: str, task: RetrievalSet, encoder: Encoder) -> TaskScores:
    """MRR@10, nDCG@10 and recall@1 and @10 of one model, with nDCG@10 as the main metric.

    Raises:
        DataError: An embedding is not finite.
    """
    from hrsa_lightning.functional.ranking import chance_scores, query_scores

    queries = _encoded(encoder.encode_queries, task.queries)
    corpus = _encoded(encoder.encode_passages, task.corpus)
    if not (bool(queries.isfinite().all()) and bool(corpus.isfinite().all())):
        raise DataError(f"task {name}: the model gives embeddings that are not finite")
    scores = query_scores(queries, corpus, task.relevance, _KS)
    metrics = {metric: sum(values) / len(values) for metric, values in scores.items()}
    main = f"ndcg@{max(_KS)}"
    chance = chance_scores([len(right) for right in task.relevance], len(task.corpus), _KS)
    return TaskScores(name, main, metrics, tuple(scores[main]), "query", chance)


def _encoded(encode: Callable[[Sequence[Any]], Any], texts: Sequence[Any]) -> "Tensor":
    import torch

    parts = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        embeddings = torch.as_tensor(encode(texts[begin : begin + _TEXTS_AT_ONCE]))
        parts.append(embeddings.detach().float().cpu())
    return torch.cat(parts)
