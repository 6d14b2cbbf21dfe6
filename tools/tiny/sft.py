"""Supervised fine-tuning on worked step-by-step traces of the tasks."""

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from tiny.evaluate import load_tokenizer
from tiny.lm import load_model
from tiny.tasks import Problem, draw_problem, worked

logger = logging.getLogger(__name__)
_IGNORED = -100


@dataclass(frozen=True)
class SftConfig:
    """What decides the SFT backbone, besides the base. Steps equal those of GRPO."""

    seed: int = 23
    num_steps: int = 100
    batch_size: int = 32
    learning_rate: float = 3e-4
    num_warmup_steps: int = 10
    num_threads: int = 1


def collate(
    tokenizer: PreTrainedTokenizerBase, problems: list[Problem]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, mask and labels, each (problems, tokens), right-padded; prompts carry no loss."""
    rows, prompt_lengths = [], []
    for problem in problems:
        prompt = tokenizer(problem.prompt)["input_ids"]
        completion = tokenizer(worked(problem))["input_ids"]
        rows.append(torch.tensor([*prompt, *completion, tokenizer.eos_token_id]))
        prompt_lengths.append(len(prompt))
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id)
    positions = torch.arange(ids.shape[1])
    mask = positions < torch.tensor([[len(row)] for row in rows])
    is_completion = mask & (positions >= torch.tensor(prompt_lengths)[:, None])
    return ids, mask.long(), ids.masked_fill(~is_completion, _IGNORED)


def train_sft(base: Path, config: SftConfig) -> Qwen2ForCausalLM:
    """Train the base on correct worked traces.

    Args:
        base: folder of the bf16-rounded base and its tokenizer.
        config: the run.
    """
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model, tokenizer = load_model(base), load_tokenizer(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    model.train()
    for step in range(config.num_steps):
        warmup = min(1.0, (step + 1) / config.num_warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup
        problems = [draw_problem(rng, held_out=False) for _ in range(config.batch_size)]
        ids, mask, labels = collate(tokenizer, problems)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            logger.info("SFT step %d of %d: loss %.3f", step + 1, config.num_steps, loss.item())
    return model
