import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import controls, evaluate, lm, sft
from tiny.tasks import Problem
from tiny.tokenizer import save_tokenizer, train_tokenizer

CONFIG = lm.PretrainConfig(
    num_tokens=4 * 2 * 16,
    batch_size=2,
    length=16,
    num_warmup_steps=1,
    num_threads=1,
    checkpoint_every=3,
)


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 4096, CONFIG.num_tokens).astype(np.uint16)


def test_resumed_pretraining_ends_at_the_same_weights(stream: np.ndarray, tmp_path: Path) -> None:
    whole = lm.pretrain(stream, CONFIG, tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    resumed = lm.pretrain(stream, CONFIG, tmp_path)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_learning_rate_warms_up_and_decays_to_the_final_rate() -> None:
    config = dataclasses.replace(CONFIG, num_tokens=100 * 32, num_warmup_steps=10)
    rates = [lm.learning_rate(config, step) for step in range(config.num_steps + 1)]
    assert rates[0] == pytest.approx(config.learning_rate / 10)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[-1] == pytest.approx(config.final_learning_rate)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random backbone, and one a little away from it."""
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    model = lm.Qwen2ForCausalLM(lm.model_config())
    lm.save_model(model, root / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * parameter.abs().mean() * torch.randn_like(parameter).sign()
    lm.save_model(model, root / "target")
    return root / "base", root / "target"


def test_controls_move_as_far_as_the_target(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = folders
    wanted = controls.relative_change(controls.read_weights(base), controls.read_weights(target))
    noise = controls.noise_control(base, target, tmp_path / "noise", seed=1)
    torch.manual_seed(1)
    lm.save_model(lm.Qwen2ForCausalLM(lm.model_config()), tmp_path / "sft")
    scaled = controls.scaled_control(base, tmp_path / "sft", target, tmp_path / "scaled")
    for folder in (noise, scaled):
        moved = controls.relative_change(controls.read_weights(base), controls.read_weights(folder))
        assert moved == pytest.approx(wanted, rel=1e-2)
        assert lm.load_model(folder).num_parameters() == lm.num_parameters()


def test_noise_control_repeats_with_its_seed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, target = folders
    first, again, other = (
        controls.read_weights(controls.noise_control(base, target, tmp_path / name, seed))
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tokenizer_reads_digits_one_by_one_and_sft_learns_completions_only(tmp_path: Path) -> None:
    texts = ["Question: what is 12 + 30?\nWork: 42\nAnswer: 42", "def f(x):\n    return x"]
    save_tokenizer(train_tokenizer(texts), tmp_path)
    tokenizer = evaluate.load_tokenizer(tmp_path)
    assert [tokenizer.decode(i) for i in tokenizer("123")["input_ids"]] == ["1", "2", "3"]
    assert tokenizer.decode(tokenizer(texts[1])["input_ids"]) == texts[1]
    problems = [
        Problem("sum", "what is 1 + 2?", ("1 + 2 = 3",), "3", ()),
        Problem("sum", "what is 12 + 2?", ("12 + 2 = 14",), "14", ()),
    ]
    ids, mask, labels = sft.collate(tokenizer, problems)
    for row, problem in enumerate(problems):
        learned = tokenizer.decode(ids[row][labels[row] != -100])
        assert learned == f"Work: {problem.steps[0]}\nAnswer: {problem.answer}<|endoftext|>"
        assert tokenizer.decode(ids[row][mask[row] == 1]) == problem.prompt + learned
