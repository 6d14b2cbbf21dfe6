"""RLVR by GRPO and supervised fine-tuning, both of adapters, both resumable at any step."""

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from tiny.evaluate import load_tokenizer
from tiny.prorl import Group, graded, grpo_loss, log_probs, sample
from transformers import PreTrainedTokenizerBase

from smollm2.backbones import merge, with_adapters
from smollm2.problems import EXAMPLES, Problem, draw_problems, is_correct

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 32
END = "\n"
"""What ends a completion: all of them are the rest of a line."""


@dataclass(frozen=True)
class TrainingConfig:
    """What decides a run, besides the base.

    Attributes:
        seed: Of adapters, problems and samples.
        max_steps: Steps at most.
        learning_rate: Constant after `num_warmup_steps` steps.
        num_prompts: Problems a step.
        num_generations: Completions of each in RLVR; in SFT, problems that share a row's examples.
        rows_per_pass: Prompts, with all their completions, whose graph is held at once.
        checkpoint_every: Steps between two checkpoints.
        keep_every: Steps between two adapters that are kept for good.
        window: RLVR ends when the mean reward of so many steps is no higher than that of as many
            before them.
    """

    seed: int
    max_steps: int
    learning_rate: float
    num_prompts: int
    num_generations: int = 8
    rows_per_pass: int = 2
    num_warmup_steps: int = 10
    max_grad_norm: float = 1.0
    checkpoint_every: int = 2
    keep_every: int = 25
    window: int = 40


RLVR = TrainingConfig(seed=17, max_steps=120, learning_rate=4e-4, num_prompts=8)
SFT = TrainingConfig(
    seed=23,
    max_steps=2000,
    learning_rate=4e-4,
    num_prompts=32,
    num_generations=16,
    rows_per_pass=1,
)
_Step = Callable[[PeftModel, PreTrainedTokenizerBase, int], dict[str, float]]


def train_rlvr(work: Path, config: TrainingConfig = RLVR) -> None:
    """Train `work/rlvr` on the correctness of its own answers, for as long as that rises."""

    def step(model: PeftModel, tokenizer: PreTrainedTokenizerBase, number: int) -> dict[str, float]:
        problems = _problems(config, number)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        prompts = [problem.prompt for problem in problems]
        completions = sample(
            model.get_base_model(),
            tokenizer,
            prompts,
            config.num_generations,
            generator,
            MAX_NEW_TOKENS,
            end_token(tokenizer),
        )
        groups, reward = graded(tokenizer, problems, completions, is_correct)
        _backward(model, groups, config.rows_per_pass)
        sampled = sum(len(ids) for of_problem in completions for ids in of_problem)
        trained = sum(len(ids) for group in groups for ids in group.completions)
        return {"reward": reward, "groups": len(groups), "sampled": sampled, "tokens": trained}

    def is_over(log: list[dict[str, float]]) -> bool:
        rewards = [line["reward"] for line in log]
        before, last = rewards[-2 * config.window : -config.window], rewards[-config.window :]
        return len(before) == config.window and sum(last) <= sum(before)

    _train(work, "rlvr", config, step, is_over)


def train_sft(work: Path, config: TrainingConfig = SFT) -> None:
    """Train `work/sft` on worked traces, on as many tokens as `work/rlvr` was trained on."""
    record = work / "rlvr" / "training.json"
    num_tokens = json.loads(record.read_text())["tokens"]

    def step(model: PeftModel, tokenizer: PreTrainedTokenizerBase, number: int) -> dict[str, float]:
        problems = _problems(config, number)
        groups = [
            _traces(tokenizer, problems[start : start + config.num_generations])
            for start in range(0, len(problems), config.num_generations)
        ]
        loss = _backward(model, groups, config.rows_per_pass)
        return {"loss": loss, "tokens": sum(int(a.sum()) for g in groups for a in g.advantages)}

    def is_over(log: list[dict[str, float]]) -> bool:
        return sum(line["tokens"] for line in log) >= num_tokens

    _train(work, "sft", config, step, is_over)


def _problems(config: TrainingConfig, step: int) -> list[Problem]:
    """Training problems of one step: a function of seed and step, so that resuming is exact."""
    rng = random.Random(f"{config.seed}:{step}")
    return draw_problems(rng, config.num_prompts, held_out=False)


def _traces(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> Group:
    """Problems with their traces as completions of one prompt, the examples before them.

    With an advantage of 1 the policy gradient is that of the likelihood; questions have 0.
    """
    completions, advantages = [], []
    for problem in problems:
        question = tokenizer(problem.prompt.removeprefix(EXAMPLES))["input_ids"]
        trace = tokenizer(problem.trace + END)["input_ids"]
        completions.append([*question, *trace])
        advantages.append(torch.tensor([0.0] * len(question) + [1.0] * len(trace)))
    return Group(tokenizer(EXAMPLES)["input_ids"], completions, advantages)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token of `END`."""
    ids = tokenizer(END)["input_ids"]
    return int(ids[0])


def _backward(model: PeftModel, groups: list[Group], rows: int) -> float:
    """Add the gradient of the mean over all tokens with an advantage, a few rows at a time.

    Returns:
        The mean negative log-likelihood of these tokens.
    """
    passes = [groups[start : start + rows] for start in range(0, len(groups), rows)]
    total, loss = 0, 0.0
    for part in passes:
        values, advantages = log_probs(model.get_base_model(), part)
        counted = advantages != 0
        values, advantages = values[counted], advantages[counted]
        total += len(values)
        (len(values) * grpo_loss(values, values.detach(), advantages, beta=0.0)).backward()
        loss -= float(values.detach().sum())
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= total
    return loss / max(total, 1)


def _train(
    work: Path,
    name: str,
    config: TrainingConfig,
    step: _Step,
    is_over: Callable[[list[dict[str, float]]], bool],
) -> None:
    """Train adapters on `work/base` step by step, going on after the last checkpoint.

    Args:
        work: Folder of the study; `work/NAME.training` holds checkpoint, log and adapters.
        name: Of the backbone.
        config: The run.
        step: Adds a step's gradient, and returns what to log; among it `tokens`, how many have an
            advantage or a target.
        is_over: Whether the run ends, given the lines of all its steps.
    """
    folder = work / f"{name}.training"
    folder.mkdir(exist_ok=True)
    checkpoint, log_file = folder / "checkpoint.pt", folder / "log.jsonl"
    model, tokenizer = with_adapters(work / "base", config.seed), load_tokenizer(work / "base")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    log: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        set_peft_model_state_dict(model, state["adapters"])
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
        logger.info("%s goes on after step %d", name, len(log))
    while len(log) < config.max_steps and not is_over(log):
        started = time.process_time()
        number = len(log) + 1
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, number / config.num_warmup_steps)
        line = step(model, tokenizer, number)
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        line = {"step": number, **line, "cpu_seconds": round(time.process_time() - started, 1)}
        log.append({key: round(value, 4) for key, value in line.items()})
        logger.info("%s %s", name, log[-1])
        if number % config.checkpoint_every == 0:
            state = {
                "adapters": get_peft_model_state_dict(model),
                "optimizer": optimizer.state_dict(),
                "log": log,
            }
            _save(state, checkpoint)
            log_file.write_text("".join(json.dumps(line) + "\n" for line in log))
        if number % config.keep_every == 0:
            model.save_pretrained(folder / f"step_{number}")
    for parameter in trained:
        parameter.data = parameter.data.to(torch.bfloat16)  # half the file, which is shipped
    model.save_pretrained(folder / "final")
    merge(work / "base", folder / "final", work / name)
    sums = {key: round(sum(line[key] for line in log), 1) for key in ("tokens", "cpu_seconds")}
    record: dict[str, Any] = {"steps": len(log), **sums, **vars(config)}
    (work / name / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
