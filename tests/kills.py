"""Kills a training run at random moments and starts it again: does it end with the same weights?

    python -m tests.kills --kills 10 --seed 1

The run is `python -m hrsa_lightning.train` on a tiny backbone, 12 steps, a checkpoint every second
step. SIGKILL comes at a random moment of the training, and once while a checkpoint is being
written. When a run gets to its end, another one begins, until all kills are done.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = (
    "recipe=quickstart",
    "arms={base: {backbone: 'embedded:tiny/base'}}",
    "callbacks=null",
    "data.batch_size=8",
    "model.lora.lora_dropout=0.1",
    "trainer.max_steps=12",
    "trainer.enable_progress_bar=false",
    "checkpoint.every_n_train_steps=2",
)
PATIENCE = 300.0
"""Seconds after which a run that does not get on is a failure."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        kills: Runs that were killed before their end.
        in_write: How many of them while a checkpoint was being written.
        restarts: Starts that went on from a checkpoint.
        runs: Runs that were begun anew, each carried to its end.
        different: Folders whose final weights are not those of the undisturbed run.
    """

    kills: int = 0
    in_write: int = 0
    restarts: int = 0
    runs: int = 0
    different: list[Path] = field(default_factory=list)


def kill_and_compare(folder: Path, kills: int, seed: int) -> Outcome:
    """Train once undisturbed and then under `kills` kills, the first of them in a write."""
    draw = random.Random(seed)
    assert _start(folder / "whole").wait(PATIENCE) == 0
    whole = _run_folder(folder / "whole")
    span = (whole / "summary.json").stat().st_mtime - (whole / "environment.json").stat().st_mtime
    expected = _weights(whole)
    outcome = Outcome()
    while outcome.kills < kills:
        output = folder / f"killed_{outcome.runs}"
        outcome.runs += 1
        while not _finished(output):
            outcome.restarts += bool(list(output.glob("*/*/checkpoints/step_*")))
            process = _start(output)
            if outcome.kills == kills:
                assert process.wait(PATIENCE) == 0
            elif outcome.in_write == 0:
                _wait_for_write(process, output)
                if _kill(process):
                    outcome.kills += 1
                    outcome.in_write += bool(list(output.glob("*/*/checkpoints/.partial-*")))
            else:
                _wait_for_training(process, output)
                time.sleep(draw.uniform(0, span))
                outcome.kills += _kill(process)
        if _weights(_run_folder(output)) != expected:
            outcome.different.append(output)
    return outcome


def _start(output: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "hrsa_lightning.train", *SETTINGS, f"output_dir={output}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(process: "subprocess.Popen[bytes]") -> bool:
    """Whether the process was still running, and is no more."""
    process.send_signal(signal.SIGKILL)
    return process.wait(PATIENCE) == -signal.SIGKILL


def _wait_for_training(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """What a start runs on is written, or written again, before the model is loaded."""
    begun = time.time()
    while process.poll() is None and not any(
        path.stat().st_mtime >= begun for path in output.glob("*/*/environment.json")
    ):
        assert time.time() < begun + PATIENCE
        time.sleep(0.01)


def _wait_for_write(process: "subprocess.Popen[bytes]", output: Path) -> None:
    begun = time.time()
    while process.poll() is None and not list(output.glob("*/*/checkpoints/.partial-*")):
        assert time.time() < begun + PATIENCE


def _finished(output: Path) -> bool:
    return any(output.glob("*/*/summary.json"))


def _run_folder(output: Path) -> Path:
    """The run that got to its end; those killed before their first checkpoint are left behind."""
    (summary,) = output.glob("*/*/summary.json")
    return summary.parent


def _weights(folder: Path) -> bytes:
    return (folder / "adapters" / "base" / "adapter_model.safetensors").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_and_compare(Path(folder), arguments.kills, arguments.seed)
    print(outcome)
    return 1 if outcome.different else 0


if __name__ == "__main__":
    sys.exit(main())
