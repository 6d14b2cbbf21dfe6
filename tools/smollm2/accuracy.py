"""Accuracy of the backbones on held-out problems, before and after training."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny.evaluate import Accuracies, is_beyond_noise, load_tokenizer, rises
from tiny.prorl import sample

from smollm2.backbones import load
from smollm2.problems import Problem, held_out_problems, is_correct
from smollm2.training import MAX_NEW_TOKENS, end_token

logger = logging.getLogger(__name__)

NUM_PROBLEMS = 256
NUM_SAMPLES = 4
_BATCH_SIZE = 32


def evaluate(work: Path, names: list[str]) -> None:
    """Write `accuracy.json`: each backbone's accuracies, and their rises over the base."""
    problems = held_out_problems(NUM_PROBLEMS)
    measured = {name: _measure(work, name, problems) for name in names}
    record: dict[str, Any] = {
        "problems": NUM_PROBLEMS,
        "samples": NUM_SAMPLES,
        "backbones": {name: accuracies.summary() for name, accuracies in measured.items()},
    }
    for name in names[1:]:
        rise = rises(measured[names[0]], measured[name])
        record.setdefault("rises", {})[name] = {**rise, "beyond_noise": is_beyond_noise(rise)}
    (work / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def _measure(work: Path, name: str, problems: list[Problem]) -> Accuracies:
    """Answer all problems, going on after the last batch that `accuracy.NAME.jsonl` holds."""
    path = work / f"accuracy.{name}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(done) < len(problems):
        model, tokenizer = load(work / name), load_tokenizer(work / name)
        end = end_token(tokenizer)
        for start in range(len(done), len(problems), _BATCH_SIZE):
            batch = problems[start : start + _BATCH_SIZE]
            prompts = [problem.prompt for problem in batch]
            generator = torch.Generator().manual_seed(start)
            greedy, sampled = (
                sample(model, tokenizer, prompts, count, drawn, MAX_NEW_TOKENS, end)
                for count, drawn in ((1, None), (NUM_SAMPLES, generator))
            )
            lines = []
            for problem, first, others in zip(batch, greedy, sampled, strict=True):
                texts = tokenizer.batch_decode([*first, *others], skip_special_tokens=True)
                right = [is_correct(problem.answer, text) for text in texts]
                lines.append(
                    {"greedy": right[0], "sampled": sum(right[1:]) / NUM_SAMPLES, "text": texts[0]}
                )
            # One write a batch: a stop between two leaves whole batches.
            with path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            done += lines
            logger.info("%s: %d of %d problems", name, len(done), len(problems))
    return Accuracies(
        sampled=np.array([line["sampled"] for line in done], dtype=np.float64),
        greedy=np.array([line["greedy"] for line in done], dtype=np.float64),
        worked=float(np.mean(["=" in line["text"] for line in done])),
    )
