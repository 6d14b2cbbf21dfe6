"""Prolonged reinforcement learning: GRPO in periods, as ProRL (arXiv 2505.24864) trains.

Each period starts anew from the last one's weights: they become the reference policy of the KL
term, and the optimizer forgets its moments. Groups whose answers are all right or all wrong say
nothing about what is better and are left out (dynamic sampling).

TRL, which trains the short RLVR backbone, spends 4.5 seconds a step on one core here. This loop
runs each prompt once instead of once per completion, drops completions from generation when they
end and groups without an advantage from the update, and pads less.
"""

import inspect
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM
from transformers import get_cosine_schedule_with_warmup as cosine_schedule

from tiny.evaluate import MAX_NEW_TOKENS, load_tokenizer, measure, selection_problems
from tiny.lm import load_model
from tiny.tasks import draw_training_problems, is_correct

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProrlConfig:
    """What decides the ProRL backbone, besides the base.

    A period is the longest single GRPO run tried, and all of them are ten times the short RLVR
    backbone's training. Within a period the learning rate falls to 0, as there.
    """

    seed: int = 1729
    num_periods: int = 5
    num_steps_per_period: int = 200
    num_prompts: int = 12
    num_generations: int = 16
    learning_rate: float = 3e-4
    num_warmup_steps: int = 10
    beta: float = 0.02
    max_grad_norm: float = 1.0
    num_threads: int = 1


@dataclass(frozen=True)
class Group:
    """Completions of one prompt and how much better each is than their mean, in deviations.

    An advantage is one number, or one for each token of its completion.
    """

    prompt: list[int]
    completions: list[list[int]]
    advantages: Sequence[torch.Tensor]


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_generations: int,
    generator: torch.Generator | None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    end_token_id: int | None = None,
) -> list[list[list[int]]]:
    """Sample completions at temperature 1, with their end token where they have one.

    Args:
        model: the policy.
        tokenizer: pads on the left.
        prompts: texts to complete.
        num_generations: completions of each prompt.
        generator: decides the samples; without one, the likeliest token is taken.
        max_new_tokens: of a completion.
        end_token_id: ends a completion; the tokenizer's end of text if not given.

    Returns:
        Token ids by prompt and completion.
    """
    end = tokenizer.eos_token_id if end_token_id is None else end_token_id
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    cache = DynamicCache(config=model.config)
    parameters = inspect.signature(model.forward).parameters
    caching = {"cache" if "cache" in parameters else "past_key_values": cache}  # transformers 5.24
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=1,
        **caching,
    ).logits[:, -1]
    cache.batch_repeat_interleave(num_generations)
    logits, mask, positions = (
        value.repeat_interleave(num_generations, 0) for value in (logits, mask, positions[:, -1:])
    )
    completions: list[list[int]] = [[] for _ in range(len(mask))]
    rows = torch.arange(len(mask))
    for _ in range(max_new_tokens):
        if generator is None:
            ids = logits.argmax(1, keepdim=True)
        else:
            # Inverting the distribution function: `torch.multinomial` takes ten times as long here.
            cumulative = logits.float().softmax(1).cumsum(1)
            drawn = torch.rand(len(rows), 1, generator=generator) * cumulative[:, -1:]
            ids = torch.searchsorted(cumulative, drawn, right=True).clamp(max=logits.shape[1] - 1)
        for row, token in zip(rows.tolist(), ids[:, 0].tolist(), strict=True):
            completions[row].append(token)
        going = (ids[:, 0] != end).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            cache.batch_select_indices(going)
            rows, ids, mask, positions = (value[going] for value in (rows, ids, mask, positions))
        mask = functional.pad(mask, (0, 1), value=1)
        positions = positions + 1
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, **caching
        ).logits[:, -1]
    return [
        completions[start : start + num_generations]
        for start in range(0, len(completions), num_generations)
    ]


def log_probs(
    model: Qwen2ForCausalLM, groups: Sequence[Group]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability and advantage of every completion token of all groups.

    A row holds a prompt and all its completions, each of which sees the prompt and itself.
    """
    lengths = [len(g.prompt) + sum(map(len, g.completions)) for g in groups]
    shape = (len(groups), max(lengths))
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    # The prompt is segment 0; padding is of a segment that nothing else sees.
    segments = torch.full(shape, -1)
    sources, targets, advantages = [], [], []
    for row, group in enumerate(groups):
        start = end = len(group.prompt)
        ids[row, :end] = torch.tensor(group.prompt)
        positions[row, :end] = torch.arange(end)
        segments[row, :end] = 0
        pairs = zip(group.completions, group.advantages, strict=True)
        for number, (completion, advantage) in enumerate(pairs, 1):
            first, end = end, end + len(completion)
            ids[row, first:end] = torch.tensor(completion)
            positions[row, first:end] = torch.arange(start, start + len(completion))
            segments[row, first:end] = number
            before = [start - 1, *range(first, end - 1)]
            sources.append(torch.tensor(before) + row * shape[1])
            targets.append(torch.tensor(completion))
            advantages.append(advantage.expand(len(completion)))
    queries, keys = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    mask = causal & ((queries == keys) | ((keys == 0) & (queries > 0)))
    hidden = model.model(
        input_ids=ids, attention_mask=mask[:, None], position_ids=positions, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[torch.cat(sources)]).float()
    values = -functional.cross_entropy(logits, torch.cat(targets), reduction="none")
    return values, torch.cat(advantages)


def graded(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Any],
    completions: Sequence[list[list[int]]],
    is_correct: Callable[[str, str], bool] = is_correct,
) -> tuple[list[Group], float]:
    """Return the groups that have right and wrong completions, and the mean reward of all.

    Args:
        tokenizer: the policy's.
        problems: with a `prompt` and an `answer` each.
        completions: token ids by problem.
        is_correct: whether an answer is what a completion's text says.
    """
    groups, rewards = [], []
    for problem, of_problem in zip(problems, completions, strict=True):
        texts = tokenizer.batch_decode(of_problem, skip_special_tokens=True)
        right = torch.tensor([float(is_correct(problem.answer, text)) for text in texts])
        rewards.append(right.mean())
        if 0 < right.mean() < 1:
            advantages = (right - right.mean()) / right.std()
            groups.append(Group(tokenizer(problem.prompt)["input_ids"], of_problem, advantages))
    return groups, float(torch.stack(rewards).mean())


def grpo_loss(
    policy: torch.Tensor, reference: torch.Tensor, advantages: torch.Tensor, beta: float
) -> torch.Tensor:
    """Return the mean over tokens of the policy gradient's loss and the KL term.

    Args:
        policy: log-probabilities under the policy that sampled the tokens, shape (tokens,).
        reference: log-probabilities under the reference policy, shape (tokens,).
        advantages: of each token's completion, shape (tokens,).
        beta: weight of the KL term.
    """
    # The tokens are the policy's own, so the importance ratio is 1 and only its gradient counts.
    ratio = (policy - policy.detach()).exp()
    difference = reference - policy
    kl = difference.exp() - difference - 1
    return (beta * kl - ratio * advantages).mean()


def train_period(
    model: Qwen2ForCausalLM,
    reference: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    config: ProrlConfig,
    period: int,
) -> None:
    """Train the model in place for one period.

    Args:
        model: the policy.
        reference: another copy of the policy as the period starts.
        tokenizer: pads on the left.
        config: the run.
        period: number of the period, from 0; decides problems and samples.
    """
    seed = config.seed + period
    problems = draw_training_problems(
        random.Random(seed), config.num_steps_per_period * config.num_prompts
    )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = cosine_schedule(optimizer, config.num_warmup_steps, config.num_steps_per_period)
    model.eval()  # There is no dropout; the mode only decides warnings.
    for step in range(config.num_steps_per_period):
        drawn = problems[step * config.num_prompts : (step + 1) * config.num_prompts]
        completions = sample(
            model, tokenizer, [p.prompt for p in drawn], config.num_generations, generator
        )
        groups, reward = graded(tokenizer, drawn, completions)
        if groups:
            with torch.no_grad():
                before, _ = log_probs(reference, groups)
            policy, advantages = log_probs(model, groups)
            grpo_loss(policy, before, advantages, config.beta).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 10 == 0:
            logger.info(
                "ProRL period %d, step %d of %d: reward %.3f, %d of %d groups used",
                period + 1,
                step + 1,
                config.num_steps_per_period,
                reward,
                len(groups),
                len(drawn),
            )


def train_prorl(
    base: Path, config: ProrlConfig, work: Path
) -> tuple[Qwen2ForCausalLM, dict[str, Any]]:
    """Train the base period by period, going on after the last period that `work` holds.

    Args:
        base: folder of the bf16-rounded base and its tokenizer.
        config: the run.
        work: folder for weights and accuracies of each period's end.

    Returns:
        The accepted model, and what is known of the run: the accepted period and the accuracies of
        every period's end on selection problems, those of the base first.
    """
    torch.set_num_threads(config.num_threads)
    work.mkdir(parents=True, exist_ok=True)
    model, reference, tokenizer = load_model(base), load_model(base), load_tokenizer(base)
    problems = selection_problems()
    accuracies: list[dict[str, float]] = []
    for period in range(config.num_periods + 1):
        weights, measured = work / f"period_{period}.pt", work / f"period_{period}.json"
        if measured.exists():
            model.load_state_dict(torch.load(weights, weights_only=True))
            accuracies.append(json.loads(measured.read_text()))
            continue
        if period:
            reference.load_state_dict(model.state_dict())
            train_period(model, reference, tokenizer, config, period - 1)
        torch.save(model.state_dict(), weights)
        accuracies.append(measure(model, tokenizer, problems).summary())
        measured.write_text(json.dumps(accuracies[-1]))
        logger.info("ProRL after period %d: %s", period, accuracies[-1])
    accepted = accepted_period(accuracies)
    model.load_state_dict(torch.load(work / f"period_{accepted}.pt", weights_only=True))
    return model, {"accepted_period": accepted, "selection_accuracies": accuracies}


def accepted_period(accuracies: Sequence[Mapping[str, float]]) -> int:
    """Return the latest period that is as good as the best, and greedily no worse than the base.

    As good is: its sampled accuracy lies at most one standard error below the best.

    Args:
        accuracies: on selection problems, of the base and of every period's end.

    Raises:
        RuntimeError: no period's end is as good greedily as the base.
    """
    kept = [n for n, a in enumerate(accuracies) if n and a["greedy"] >= accuracies[0]["greedy"]]
    if not kept:
        raise RuntimeError("ProRL is not accepted: its greedy accuracy falls in every period")
    best = max((accuracies[n] for n in kept), key=itemgetter("sampled"))
    least = best["sampled"] - best["sampled_standard_error"]
    return max(n for n in kept if accuracies[n]["sampled"] >= least)
