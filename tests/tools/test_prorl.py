"""The loop of prolonged reinforcement learning in the builder of the tiny backbones."""

import random
from pathlib import Path

import pytest
import torch
from tiny import prorl
from tiny.evaluate import load_tokenizer
from tiny.lm import load_model
from tiny.tasks import draw_training_problems

BASE = Path(__file__).resolve().parents[2] / "hrsa_lightning" / "assets" / "tiny" / "base"
TINY_RUN = prorl.ProrlConfig(
    num_periods=2, num_steps_per_period=2, num_prompts=2, num_generations=4, num_warmup_steps=1
)


@pytest.fixture(scope="module")
def model():
    return load_model(BASE).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE)


def test_samples_follow_the_models_distribution(model, tokenizer) -> None:
    problem = draw_training_problems(random.Random(3), 1)[0]
    prompts = ["Question: which is larger, 27 or 9?\n", problem.prompt]
    generator = torch.Generator().manual_seed(0)
    samples = prorl.sample(model, tokenizer, prompts, 600, generator)
    for prompt, of_prompt in zip(prompts, samples, strict=True):
        first = torch.tensor([completion[0] for completion in of_prompt])
        found = torch.bincount(first, minlength=len(tokenizer)) / len(first)
        with torch.no_grad():
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            expected = model(input_ids=ids).logits[0, -1].softmax(0)
        torch.testing.assert_close(found, expected, atol=0.07, rtol=0)
        assert expected.max() < 0.9
        ends = [tokenizer.eos_token_id in completion[:-1] for completion in of_prompt]
        assert not any(ends)


def test_shared_prompts_give_each_completion_its_own_log_probs(model, tokenizer) -> None:
    problems = draw_training_problems(random.Random(0), 3)
    generator = torch.Generator().manual_seed(0)
    completions = prorl.sample(model, tokenizer, [p.prompt for p in problems], 8, generator)
    groups, reward = prorl.graded(tokenizer, problems, completions)
    assert groups
    assert 0 < reward < 1
    with torch.no_grad():
        found, advantages = prorl.log_probs(model, groups)
        expected = []
        for group in groups:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt, *completion]])
                values = model(input_ids=ids).logits[0].log_softmax(1)[len(group.prompt) - 1 : -1]
                expected.append(values.gather(1, torch.tensor(completion)[:, None])[:, 0])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=0)
    lengths = [len(one) for group in groups for one in group.completions]
    each = torch.cat([group.advantages for group in groups])
    assert torch.equal(advantages, each.repeat_interleave(torch.tensor(lengths)))


def test_loss_raises_what_is_better_and_holds_on_to_the_reference() -> None:
    policy = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.0])
    reference = torch.tensor([-1.0, -2.0, -2.0])
    prorl.grpo_loss(policy, reference, advantages, beta=0.5).backward()
    drawn = 0.5 * (1 - torch.tensor(1.0).exp())
    torch.testing.assert_close(
        policy.grad, torch.stack([torch.tensor(-1.0), torch.tensor(1.0), drawn]) / 3
    )


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch) -> None:
    problems = draw_training_problems(random.Random(5), 4)
    monkeypatch.setattr(prorl, "selection_problems", lambda: problems)
    monkeypatch.setattr(prorl, "accepted_period", lambda accuracies: len(accuracies) - 1)
    whole, outcome = prorl.train_prorl(BASE, TINY_RUN, tmp_path / "whole")
    assert outcome["accepted_period"] == 2
    assert len(outcome["selection_accuracies"]) == 3

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    train_period = prorl.train_period
    monkeypatch.setattr(
        prorl,
        "train_period",
        lambda *given: (stop if given[-1] == 1 else train_period)(*given),
    )
    with pytest.raises(KeyboardInterrupt):
        prorl.train_prorl(BASE, TINY_RUN, tmp_path / "parts")
    monkeypatch.setattr(prorl, "train_period", train_period)
    resumed, _ = prorl.train_prorl(BASE, TINY_RUN, tmp_path / "parts")
    start = load_model(BASE).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert not torch.equal(whole.state_dict()["model.norm.weight"], start["model.norm.weight"])


@pytest.mark.parametrize(
    ("sampled", "greedy", "accepted"),
    [
        ((0.4, 0.60, 0.70, 0.695), (0.7, 0.7, 0.7, 0.7), 3),
        ((0.4, 0.60, 0.70, 0.68), (0.7, 0.7, 0.7, 0.7), 2),
        ((0.4, 0.60, 0.70, 0.695), (0.7, 0.7, 0.7, 0.69), 2),
        ((0.4, 0.60, 0.70, 0.60), (0.7, 0.7, 0.6, 0.7), 3),
    ],
)
def test_the_latest_period_as_good_as_the_best_is_accepted(sampled, greedy, accepted) -> None:
    accuracies = [
        {"sampled": s, "sampled_standard_error": 0.01, "greedy": g}
        for s, g in zip(sampled, greedy, strict=True)
    ]
    assert prorl.accepted_period(accuracies) == accepted


def test_no_period_is_accepted_where_greedy_accuracy_falls() -> None:
    accuracies = [
        {"sampled": 0.5, "sampled_standard_error": 0.01, "greedy": greedy} for greedy in (0.7, 0.6)
    ]
    with pytest.raises(RuntimeError, match="not accepted"):
        prorl.accepted_period(accuracies)
