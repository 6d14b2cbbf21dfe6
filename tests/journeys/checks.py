"""What every run has to leave behind, however many processes it had and who started them."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrsa_lightning.similarity.history import read_history
from tests.journeys.processes import Ended

ARMS = ("base", "other")
_FILES = (
    *("config.yaml", "environment.json", "summary.json", "similarity.jsonl", "retrieval.jsonl"),
    *(
        "similarity.png",
        "retrieval.png",
        "report/report.html",
        "checkpoints/step_000005/state.json",
    ),
    *(f"adapters/{arm}/adapter_model.safetensors" for arm in ARMS),
)


def run_of(folder: Path) -> Path:
    """The one run in a folder of `train`."""
    (run,) = folder.glob("runs/*/*")
    return run


def check_all_ended_well(ended: list[Ended]) -> None:
    """Every rank has exit code 0, only rank 0 speaks of results, and nobody of errors."""
    screens = "\n".join(rank.text for rank in ended)
    assert [rank.code for rank in ended] == [0] * len(ended), screens
    assert not re.search(r"Traceback|[Ee]rror|[Ww]arning", screens), screens
    assert screens.count("everything is in") == 1, screens
    assert "everything is in" in ended[0].text


def check_files(run: Path) -> None:
    missing = [name for name in _FILES if not (run / name).is_file()]
    assert not missing
    assert not list(run.rglob("*partial*"))


def losses(run: Path) -> dict[str, list[float]]:
    """The loss of each arm at every step, from TensorBoard."""
    return {
        arm: [e.value for e in EventAccumulator(str(run / arm)).Reload().Scalars("train/loss")]
        for arm in ARMS
    }


def check_numbers(run: Path, expected: Path) -> None:
    """Losses to 1e-4 and the similarity before training to 1e-5, those of another run."""
    for arm, values in losses(expected).items():
        assert len(values) == 5
        assert losses(run)[arm] == pytest.approx(values, abs=1e-4), arm
    assert steps_of(run) == steps_of(expected) == [0, 2, 4, 5]
    values = _first_similarities(expected)
    assert _first_similarities(run) == pytest.approx(values, abs=1e-5, nan_ok=True)


def steps_of(run: Path) -> list[int]:
    """Steps of the evaluations of similarity."""
    steps = [m.step for m in read_history(run / "similarity.jsonl")]
    return sorted(set(steps))


def check_history(run: Path, expected: Path) -> None:
    """Every evaluation of another run, once, with its values."""
    found, values = (
        [
            (m.step, m.metric, m.arm, m.reference, m.layer, m.value)
            for m in read_history(folder / "similarity.jsonl")
        ]
        for folder in (run, expected)
    )
    assert [each[:-1] for each in found] == [each[:-1] for each in values]
    assert [each[-1] for each in found] == pytest.approx([each[-1] for each in values], nan_ok=True)


def _first_similarities(run: Path) -> dict[tuple[str, ...], float]:
    history = read_history(run / "similarity.jsonl")
    return {(m.metric, m.arm, m.reference, m.layer): m.value for m in history if m.step == 0}


def check_weights(run: Path, expected: Path) -> None:
    """The trained weights are those of another run, bit for bit."""
    for arm in ARMS:
        file = f"adapters/{arm}/adapter_model.safetensors"
        found, weights = load_file(run / file), load_file(expected / file)
        assert found.keys() == weights.keys()
        assert all((found[name] == weights[name]).all() for name in weights), arm
