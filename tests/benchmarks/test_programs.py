"""Every program in `benchmarks/` runs to its end, on inputs as small as it takes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = {
    "agreement": ["pytrec"],
    "compare": ["--layers", "2", "--width", "64", "--texts", "64"],
    "metrics": ["--n", "64", "--d", "16", "--rounds", "1"],
    "mining": ["--pairs", "300", "--dim", "16", "--only", "ours"],
    "monitor": ["--model", "tiny", "--probes", "64", "--repeats", "2"],
    "neighbor_order": [],
    "null": ["--n", "64", "--d", "16", "--rounds", "1"],
    "pairs": [],
    "report": ["--runs", "2", "--evaluations", "10", "--layers", "2"],
    "train_scaling": ["--batches", "4", "8", "--hidden", "64"],
    "train_throughput": ["--batch", "4", "--hidden", "64", "--layers", "2", "--rounds", "1"],
}
ELSEWHERE = {"__init__", "peers", "gpu_check", "projects"}
"""No programs, or one with tests of its own, or one that needs what no group of ours installs."""


def test_every_program_is_run_here():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - ELSEWHERE == set(SMALLEST)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_it_ends_well(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALLEST[name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(character.isdigit() for character in done.stdout)
