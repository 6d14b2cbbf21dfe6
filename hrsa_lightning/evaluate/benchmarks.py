"""MTEB's tasks and benchmarks through the `mteb` package, which is imported when it is used."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrsa_lightning.errors import (
    BackboneError,
    ConfigError,
    DataError,
    HRSAWarning,
    first_line,
    nearest,
    shown,
)
from hrsa_lightning.evaluate.scoring import TaskScores
from hrsa_lightning.io.files import digest, read_json
from hrsa_lightning.runs.encoder import Encoder

TASK_SETS = {
    "BRIGHT(short)": ("BRIGHT(v1.1)",),
    "paper": ("MTEB(Multilingual, v2)", "MTEB(Code, v1)", "BRIGHT(short)"),
}
"""The sets that the paper scores on: BRIGHT's twelve tasks of short documents, and all of them."""

_TEXTS_AT_ONCE = 512
"""Texts that mteb hands over; the encoder sorts them by length into its own batches."""


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of `mteb` by their own names or by those of benchmarks, each task once.

    Args:
        names: Such as "MTEB(Multilingual, v2)", "BRIGHT(v1.1)" or "SciFact", or a set of
            `TASK_SETS`.

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
    if name in TASK_SETS:
        tasks = [task for inner in TASK_SETS[name] for task in _tasks_named(mteb, inner)]
        short = name == "BRIGHT(short)"
        return [task for task in tasks if not (short and "Long" in task.metadata.name)]
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


def read_instructions(path: Path, tasks: Sequence[Any]) -> dict[str, str]:
    """Instructions by the name of a task, with `default` for those that have none in mteb.

    Args:
        path: A JSON file with one object of texts.
        tasks: From `find_tasks`; the file may name other tasks of mteb, too.

    Raises:
        ConfigError: The file is missing, is none, or names something that is no task.
    """
    import mteb

    try:
        content = read_json(path)
    except DataError as error:
        raise ConfigError(f"--instructions {error}") from None
    known = {task.metadata.name for task in tasks}
    for name, text in content.items():
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"--instructions {path}: {name}: expected a text, got {shown(text)}")
        if name == "default" or name in known:
            continue
        try:
            mteb.get_task(name)
        except KeyError:
            hint = nearest(name, [*known, "default"])
            raise ConfigError(
                f"--instructions {path}: expected names of tasks or default, got {shown(name)}."
                f"{hint}"
            ) from None
    return dict(content)


def score_benchmarks(
    tasks: Sequence[Any],
    name: str,
    identity: str,
    load: Callable[[], Encoder],
    cache: Path,
    *,
    instructions: Mapping[str, str] | None = None,
    progress: bool = False,
) -> list[TaskScores]:
    """Run a model on tasks of `mteb`.

    Queries get the task's own instruction in the template of training, and so do all texts of tasks
    that know no queries; documents get none. What is in the cache is not run again, unless with
    other instructions.

    Args:
        tasks: From `find_tasks`.
        name: What mteb calls the model.
        identity: Changes with the model.
        load: Loads the model; called if anything has to be run.
        cache: Folder for mteb's own result files.
        instructions: From `read_instructions`, in place of mteb's.
        progress: Show progress bars.

    Raises:
        DataError: A task's data cannot be had, or mteb refuses the model.
    """
    import mteb
    from datasets.exceptions import DatasetsError

    scores = []
    for task in tasks:
        own = chosen_instruction(task.metadata, instructions or {})
        revision = identity if own is None else digest(f"{identity}\n{own}")
        model: Any = TaskEncoder(name, revision, load, own)
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
            first = first_line(error)
            raise DataError(f"task {task.metadata.name}: {first}") from error
        for failed in result.exceptions or ():  # mteb raises none of data that is not public
            raise DataError(f"task {failed.task_name}: {failed.exception}")
        scores.append(_to_scores(task, result.task_results[0]))
    return scores


def chosen_instruction(metadata: Any, instructions: Mapping[str, str]) -> str | None:
    """The instruction that a user gives a task; None leaves it to mteb."""
    default = None if metadata.prompt else instructions.get("default")
    return instructions.get(metadata.name, default)


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
    """A model as mteb wants it."""

    # What mteb's own base class reads; the instruction is the task's, never a model's.
    prompts_dict = None
    prompt_priority = ()

    def __init__(
        self,
        name: str,
        identity: str,
        load: Callable[[], Encoder],
        instruction: str | None = None,
    ) -> None:
        from mteb.models import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": identity})
        self._load = load
        self._given = instruction
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
        if self._given is not None:
            return self._given
        from mteb.models.abs_encoder import AbsEncoder

        ours: Any = self
        return str(AbsEncoder.get_instruction(ours, task_metadata, prompt_type) or "")
