"""Task accuracy on held-out problems, sampled and greedy, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2ForCausalLM

from tiny.tasks import Problem, held_out_problems, is_correct

MAX_NEW_TOKENS = 48
MAX_PROBLEMS_PER_FAMILY = 300
NUM_SAMPLES = 4
_BATCH_SIZE = 350
_SELECTION_SEED = 31337
_SELECTION_STRIDE = 3
TEST_SEED = 60221
_SAMPLING_SEED = 11


@dataclass(frozen=True)
class Accuracies:
    """Right or wrong of each held-out problem.

    Attributes:
        sampled: share of right answers among `NUM_SAMPLES` samples at temperature 1, shape
            (problems,).
        greedy: 1 or 0, shape (problems,).
        worked: share of greedy completions that show their work, in [0, 1].
    """

    sampled: np.ndarray
    greedy: np.ndarray
    worked: float

    def summary(self) -> dict[str, float]:
        """Return means and standard errors over problems."""
        return {
            "num_problems": len(self.greedy),
            "sampled": round(float(self.sampled.mean()), 4),
            "sampled_standard_error": round(standard_error(self.sampled), 4),
            "greedy": round(float(self.greedy.mean()), 4),
            "greedy_standard_error": round(standard_error(self.greedy), 4),
            "greedy_worked_share": round(self.worked, 4),
        }

    def by_family(self, problems: Sequence[Problem]) -> dict[str, dict[str, float]]:
        """Return the number of problems and the mean accuracies of each task family."""
        families = np.array([problem.family for problem in problems])
        return {
            family: {
                "num_problems": int((families == family).sum()),
                "sampled": round(float(self.sampled[families == family].mean()), 3),
                "greedy": round(float(self.greedy[families == family].mean()), 3),
            }
            for family in dict.fromkeys(families.tolist())
        }


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of independent values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def selection_problems() -> list[Problem]:
    """Return the held-out problems on which settings are chosen."""
    return held_out_problems(MAX_PROBLEMS_PER_FAMILY, _SELECTION_SEED)[::_SELECTION_STRIDE]


def test_problems() -> list[Problem]:
    """Return the held-out problems on which backbones are reported: none is a selection problem.

    Families with few distinct problems give all they have left.
    """
    chosen_on = {problem.question for problem in selection_problems()}
    drawn = held_out_problems(MAX_PROBLEMS_PER_FAMILY, TEST_SEED)
    return [problem for problem in drawn if problem.question not in chosen_on]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the shared tokenizer as written, padding on the left, as generation needs.

    `AutoTokenizer` would put Qwen2's rules for splitting words in the place of those in
    tokenizer.json, with which the base was pretrained.
    """
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return tokenizer


@torch.no_grad()
def complete(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    do_sample: bool,
) -> list[str]:
    """Complete prompts, greedily or by sampling at temperature 1."""
    completions: list[str] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        batch = tokenizer(
            list(prompts[start : start + _BATCH_SIZE]), padding=True, return_tensors="pt"
        )
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=do_sample,
            top_k=0 if do_sample else None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new_ids = output[:, batch["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return completions


def measure(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> Accuracies:
    """Measure sampled and greedy accuracy; the global seed is set, so that it repeats."""
    model.eval()
    torch.manual_seed(_SAMPLING_SEED)
    prompts = [problem.prompt for problem in problems]
    greedy = complete(model, tokenizer, prompts, do_sample=False)
    sampled = [
        [
            is_correct(problem.answer, completion)
            for problem, completion in zip(
                problems, complete(model, tokenizer, prompts, do_sample=True), strict=True
            )
        ]
        for _ in range(NUM_SAMPLES)
    ]
    return Accuracies(
        sampled=np.array(sampled, dtype=np.float64).mean(axis=0),
        greedy=np.array(
            [is_correct(p.answer, text) for p, text in zip(problems, greedy, strict=True)],
            dtype=np.float64,
        ),
        worked=float(np.mean([text.startswith("Work:") for text in greedy])),
    )


def rises(before: Accuracies, after: Accuracies) -> dict[str, float]:
    """Return the paired rise of each accuracy with its standard error over problems."""
    sampled, greedy = after.sampled - before.sampled, after.greedy - before.greedy
    return {
        "sampled": round(float(sampled.mean()), 4),
        "sampled_standard_error": round(standard_error(sampled), 4),
        "greedy": round(float(greedy.mean()), 4),
        "greedy_standard_error": round(standard_error(greedy), 4),
    }


def is_beyond_noise(rise: dict[str, float]) -> bool:
    """Whether both accuracies rise by more than two standard errors."""
    return all(rise[kind] > 2 * rise[f"{kind}_standard_error"] for kind in ("sampled", "greedy"))
