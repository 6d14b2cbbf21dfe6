"""Evaluate models on tasks: one model in memory at a time, and none for what is in the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hrsa_lightning.data.held_out import RetrievalSet, read_retrieval_set
from hrsa_lightning.encoders import Encoder, EncoderOptions, ModelReference
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.evaluate.scores import TaskScores, cached_scores
from hrsa_lightning.resources import resolve_path

EMBEDDED_TASK = "embedded"
_FORMAT = 1
"""Of cached scores; another number forgets those of other versions."""

_EMBEDDED_PAIRS = "embedded:tiny/pairs_test.jsonl"


@dataclass(frozen=True)
class Tasks:
    """What models are evaluated on.

    Attributes:
        pairs: Retrieval on contrastive pairs, by name of the task.
        benchmarks: Tasks of `mteb`.
    """

    pairs: dict[str, RetrievalSet] = field(default_factory=dict)
    benchmarks: tuple[Any, ...] = ()


def read_tasks(names: Sequence[str], pairs: Sequence[str] = ()) -> Tasks:
    """Open tasks, those on pairs first.

    Args:
        names: "embedded" (the package's held-out pairs), or names of mteb's tasks and benchmarks.
        pairs: Files of held-out pairs, each a task of its own.

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
    if others:
        from hrsa_lightning.evaluate.benchmarks import find_tasks

        found = tuple(find_tasks(others))
    if not own and not found:
        raise ConfigError("tasks: none is given")
    return Tasks(own, found)


def evaluate_models(
    models: Sequence[ModelReference],
    tasks: Tasks,
    cache: Path,
    options: EncoderOptions | None = None,
    progress: bool = False,
) -> dict[str, list[TaskScores]]:
    """Score models on tasks, from the cache wherever they were scored before.

    Args:
        models: Each is loaded when the first task asks for it, and let go after its last.
        tasks: What they are scored on.
        cache: Folder for the scores.
        options: How models run.
        progress: Show progress bars.

    Returns:
        Scores of all tasks by the name of the model.

    Raises:
        BackboneError: A model cannot be loaded.
        DataError: A task's data cannot be had, or the cache cannot be written.
    """
    bar = tqdm(models, "evaluating", unit="model", disable=None if progress else True)
    try:
        return {
            model.name: _evaluate(model, tasks, cache, options or EncoderOptions(), progress)
            for model in bar
        }
    except OSError as error:
        raise DataError(f"{error.filename or cache}: {error.strerror}") from error


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
            tasks.benchmarks, name, identity, load, cache / "mteb", progress=progress
        )
    return scores


def _score_pairs(
    name: str, task: RetrievalSet, identity: str, load: Any, cache: Path
) -> TaskScores:
    content = json.dumps([_FORMAT, name, task.queries, task.corpus, task.relevance])
    digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def compute() -> TaskScores:
        from hrsa_lightning.evaluate.pairs import score_retrieval

        return score_retrieval(name, task, load())

    return cached_scores(cache / "pairs" / digest / f"{identity}.json", compute)
