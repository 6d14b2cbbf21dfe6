"""Reinforcement learning with verifiable rewards: GRPO through TRL."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    Qwen2ForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from tiny.evaluate import MAX_NEW_TOKENS, load_tokenizer
from tiny.lm import load_model
from tiny.tasks import draw_training_problems, is_correct

logger = logging.getLogger(__name__)

NUM_TRAINING_PROMPTS = 4096


@dataclass(frozen=True)
class GrpoConfig:
    """What decides the RLVR backbone, besides the base.

    The learning rate falls to 0: at a constant rate, accuracy rose for some tens of steps and then
    fell.
    """

    seed: int = 17
    num_steps: int = 100
    num_prompts: int = 12
    num_generations: int = 16
    learning_rate: float = 1.2e-4
    num_warmup_steps: int = 10
    beta: float = 0.02
    num_threads: int = 1


def exact_answer_reward(
    completions: Sequence[str], answer: Sequence[str], **_: object
) -> list[float]:
    """Return 1 for a completion that states exactly the right answer, else 0."""
    pairs = zip(answer, completions, strict=True)
    return [float(is_correct(right, completion)) for right, completion in pairs]


def training_prompts(seed: int) -> Dataset:
    """Draw training problems as columns `prompt` and `answer`."""
    problems = draw_training_problems(random.Random(seed), NUM_TRAINING_PROMPTS)
    return Dataset.from_list(
        [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
    )


class _RewardLog(TrainerCallback):
    """Log the mean reward as training goes on, instead of the whole table of TRL's figures."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: object,
    ) -> None:
        if "reward" in logs:
            logger.info(
                "GRPO step %d of %d: reward %.3f", state.global_step, args.max_steps, logs["reward"]
            )


def train_grpo(base: Path, config: GrpoConfig, work: Path) -> Qwen2ForCausalLM:
    """Train the base on its own answers' correctness.

    Args:
        base: folder of the bf16-rounded base and its tokenizer.
        config: the run.
        work: folder for TRL's files.
    """
    torch.set_num_threads(config.num_threads)
    trainer = GRPOTrainer(
        model=load_model(base),
        processing_class=load_tokenizer(base),
        reward_funcs=exact_answer_reward,
        train_dataset=training_prompts(config.seed),
        args=GRPOConfig(
            output_dir=str(work),
            seed=config.seed,
            max_steps=config.num_steps,
            per_device_train_batch_size=config.num_prompts * config.num_generations,
            num_generations=config.num_generations,
            max_completion_length=MAX_NEW_TOKENS,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=config.num_warmup_steps,
            beta=config.beta,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_RewardLog())
    trainer.train()
    model: Qwen2ForCausalLM = trainer.model
    return model
