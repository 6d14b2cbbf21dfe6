"""MTEB's tasks and benchmarks through the `mteb` package, which is imported when it is used."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.errors import BackboneError, ConfigError, DataError, HRSAWarning
from hrsa_lightning.evaluate.scoring import TaskScores
from hrsa_lightning.runs.encoder import Encoder

_TEXTS_AT_ONCE = 512
"""Texts that mteb hands over; the encoder sorts them by length into its own batches."""


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of `mteb` by their own names or by those of benchmarks, each task once.

    Args:
        names: Such as "MTEB(Multilingual, v2)", "BRIGHT" or "SciFact".

    Raises:
        ConfigError: mteb is not installed, or knows no such name.
    """
    try:
        import mteb
    except ImportError:
        raise ConfigError(
            f"tasks: {', '.join(names)} need mteb: pip install 'mteb>=2.26,<3'"
        ) from None
    found: dict[str, Any] = {}
    for name in names:
        for task in _tasks_named(mteb, name):
            found.setdefault(task.metadata.name, task)
    return list(found.values())


def _tasks_named(mteb: Any, name: str) -> Iterable[Any]:
    try:
        benchmark = mteb.get_benchmark(name)
    except KeyError as error:
        no_benchmark = error
    else:
        if newer := ", ".join(getattr(benchmark, "superseded_by", None) or ()):
            warnings.warn(
                f"tasks: mteb has replaced {name!r} by {newer!r}", HRSAWarning, stacklevel=2
            )
        return list(benchmark.tasks)
    try:
        return [mteb.get_task(name)]
    except KeyError as error:
        reasons = [str(no_benchmark.args[0]), str(error.args[0])]
        hint = next((text for text in reasons if "mean" in text), "mteb knows no such name")
        raise ConfigError(
            f"tasks: {name!r} is neither a benchmark nor a task of mteb: {hint}"
        ) from None


def score_benchmarks(
    tasks: Sequence[Any],
    name: str,
    identity: str,
    load: Callable[[], Encoder],
    cache: Path,
    *,
    progress: bool = False,
) -> list[TaskScores]:
    """Run a model on tasks of `mteb`.

    Queries get the task's own instruction in the template of training, and so do all texts of tasks
    that know no queries; documents get none. What is in the cache is not run again.

    Args:
        tasks: From `find_tasks`.
        name: What mteb calls the model.
        identity: Changes with the model.
        load: Loads the model; called if anything has to be run.
        cache: Folder for mteb's own result files.
        progress: Show progress bars.

    Raises:
        DataError: A task's data cannot be had, or mteb refuses the model.
    """
    import mteb
    from datasets.exceptions import DatasetsError

    model: Any = TaskEncoder(name, identity, load)
    scores = []
    for task in tasks:
        try:
            result = mteb.evaluate(
                model,
                task,
                encode_kwargs={"batch_size": _TEXTS_AT_ONCE},
                cache=mteb.ResultCache(cache),
                show_progress_bar=progress,
                co2_tracker=False,
            )
        except (BackboneError, ConfigError):  # of loading the model
            raise
        # Data sets come through many libraries, whose errors have only these in common.
        except (OSError, ValueError, DatasetsError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DataError(f"task {task.metadata.name}: {first}") from error
        for failed in result.exceptions or ():  # mteb raises none of data that is not public
            raise DataError(f"task {failed.task_name}: {failed.exception}")
        scores.append(_to_scores(task, result.task_results[0]))
    return scores


def _to_scores(task: Any, result: Any) -> TaskScores:
    rows = [(split, row) for split in sorted(result.scores) for row in result.scores[split]]
    rows.sort(key=lambda item: (item[0], item[1]["hf_subset"]))
    units = tuple(float(row["main_score"]) for _, row in rows)
    main = task.metadata.main_score
    score = float(result.get_score())
    if not math.isfinite(score):
        warnings.warn(f"task {result.task_name}: the score is not finite", stacklevel=2)
    return TaskScores(result.task_name, main, {main: score}, units, "subset")


class TaskEncoder:
    """A model as mteb wants it.

    Args:
        name: How mteb calls it.
        identity: What mteb takes for its revision.
        load: Loads the model, when the first texts come.
    """

    # What mteb's own base class reads; the instruction is the task's, never a model's.
    prompts_dict = None
    prompt_priority = ()

    def __init__(self, name: str, identity: str, load: Callable[[], Encoder]) -> None:
        from mteb.models import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": identity})
        self._load = load
        self._encoder: Encoder | None = None

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> NDArray[np.float32]:
        """Embeddings of batches of texts, (texts, features)."""
        import torch

        self._encoder = self._encoder or self._load()
        instruction = self._instruction(task_metadata, prompt_type)
        parts = []
        for batch in inputs:
            texts = list(batch["text"])
            if instruction:
                embedded = self._encoder.encode_queries([(instruction, text) for text in texts])
            else:
                embedded = self._encoder.encode_passages(texts)
            parts.append(torch.as_tensor(embedded).detach().float().cpu())
        return torch.cat(parts).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every embedding with every other."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of embeddings in the same row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _instruction(self, task_metadata: Any, prompt_type: Any) -> str:
        if prompt_type is not None and prompt_type.value == "document":
            return ""
        from mteb.models.abs_encoder import AbsEncoder

        ours: Any = self
        return str(AbsEncoder.get_instruction(ours, task_metadata, prompt_type) or "")
