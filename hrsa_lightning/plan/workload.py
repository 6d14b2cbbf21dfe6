"""How much there is to do: examples, steps, texts and tokens of a recipe. Imports no torch."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hrsa_lightning.config.schema import Config
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.io import parse_pair
from hrsa_lightning.resources import resolve_path

__all__ = ["Workload", "count_lines", "workload_of", "world_size"]

CHARACTERS_PER_TOKEN = 4
"""Assumed where the length of a text is estimated from its characters (English, 32 k and more)."""

_SAMPLE = 400


@dataclass(frozen=True)
class Workload:
    """One run's work.

    Attributes:
        gpus: Processes.
        examples: Pairs, or `None` where the files are elsewhere and their number was not given.
        steps: Optimizer steps, or `None` where they follow from an unknown number of examples.
        texts: Queries and passages of a step, of all processes.
        mean_tokens: Tokens of a text, on average.
        tokens_are: Where `mean_tokens` comes from, in words.
        width: Tokens of the longest row.
        chunk_texts: Rows of that width in a chunk, at most those of a process.
    """

    gpus: int
    examples: int | None
    steps: int | None
    texts: int
    mean_tokens: float
    tokens_are: str
    width: int
    chunk_texts: int

    @property
    def tokens(self) -> float:
        """Tokens of a step, of all processes."""
        return self.texts * self.mean_tokens

    @property
    def rows_per_gpu(self) -> float:
        """Texts of a step on one process, in rows of full width."""
        return self.tokens / self.gpus / self.width


def workload_of(
    config: Config, examples: int | None = None, text_tokens: float | None = None
) -> Workload:
    """Count what the recipe asks for.

    Args:
        config: The recipe.
        examples: Pairs, where the files cannot be counted here.
        text_tokens: Mean tokens of a text, where it is known better.

    Raises:
        ConfigError: The batch does not divide over the processes, or devices make no number.
    """
    data = config.data
    gpus = world_size(config)
    if data.batch_size % gpus:
        raise ConfigError(
            f"data.batch_size: {data.batch_size} queries do not divide over {gpus} processes"
        )
    width = max(data.query_length, data.passage_length)
    if examples is None:
        examples = _count_examples(config)
    if text_tokens is None:
        mean, tokens_are = _estimate_tokens(config)
    else:
        mean, tokens_are = min(text_tokens, width), "as given"
    texts = data.batch_size * (1 + data.train_group_size)
    limit = config.max_tokens_per_chunk
    rows = math.ceil(texts * mean / gpus / width)
    return Workload(
        gpus=gpus,
        examples=examples,
        steps=_count_steps(config, examples),
        texts=texts,
        mean_tokens=mean,
        tokens_are=tokens_are,
        width=width,
        chunk_texts=rows if limit is None else min(rows, max(1, limit // width)),
    )


def world_size(config: Config) -> int:
    """Processes of the recipe; `devices: auto` counts as one a node, since none is looked at."""
    devices = config.trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, int) and devices > 0:
        count = devices
    elif devices == "auto":
        count = 1
    else:
        raise ConfigError(
            f"trainer.devices: to plan, a number of devices a node is needed; got {devices!r}"
        )
    return count * config.trainer.num_nodes


def count_lines(path: str) -> int | None:
    """Lines of a JSONL file that is there, else `None`."""
    file = Path(resolve_path(path))
    if file.suffix != ".jsonl" or not file.is_file():
        return None
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _count_examples(config: Config) -> int | None:
    counts = [count_lines(path) for path in config.data.train]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count_steps(config: Config, examples: int | None) -> int | None:
    trainer, data = config.trainer, config.data
    if trainer.max_steps > 0:
        return trainer.max_steps
    if examples is None:
        return None
    exact = examples / data.batch_size
    batches = math.floor(exact) if data.drop_last else math.ceil(exact)
    return (trainer.max_epochs or 1) * max(1, batches // trainer.accumulate_grad_batches)


def _estimate_tokens(config: Config) -> tuple[float, str]:
    """Mean tokens of a text over the first pairs of each file, queries and passages alike."""
    data = config.data
    totals = [0.0, 0.0]
    rows = 0
    for query, passages in _sampled(config):
        totals[0] += min(query / CHARACTERS_PER_TOKEN, data.query_length)
        totals[1] += min(passages / CHARACTERS_PER_TOKEN, data.passage_length)
        rows += 1
    if not rows:
        mean = data.query_length + data.train_group_size * data.passage_length
        return mean / (1 + data.train_group_size), "every text at its longest"
    mean_tokens = (totals[0] + data.train_group_size * totals[1]) / rows
    words = f"{CHARACTERS_PER_TOKEN} characters a token, over {rows} pairs of the files"
    return mean_tokens / (1 + data.train_group_size), words


def _sampled(config: Config) -> Iterator[tuple[int, float]]:
    """Characters of a query with its instruction, and of a passage on average."""
    for name in config.data.train:
        file = Path(resolve_path(name))
        if count_lines(name) is None:
            continue
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in islice(lines, _SAMPLE):
                try:
                    pair = parse_pair(json.loads(line))
                except (DataError, ValueError):
                    continue  # train answers it; here it counts for nothing
                query = pair.query if isinstance(pair.query, str) else "".join(pair.query)
                passages = [*pair.positives, *pair.negatives]
                yield len(query), sum(map(len, passages)) / len(passages)
