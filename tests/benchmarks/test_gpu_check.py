"""`scripts/gpu-check` works where there is no GPU, and keeps to the time it is given."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.gpu_check import SECTIONS, run_until

ROOT = Path(__file__).resolve().parents[2]


def _gpu_check(*options):
    return subprocess.run(
        ["sh", str(ROOT / "scripts" / "gpu-check"), "--dry-run", *options],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_dry_run_measures_every_section():
    done = _gpu_check("--minutes", "15")
    assert done.returncode == 0, done.stdout + done.stderr
    title, blank, *table = done.stdout.splitlines()
    assert title.startswith("## GPU check (")
    assert blank == ""
    assert table[:2] == ["| What | Measured |", "|---|---|"]
    rows = [line.strip("| ").split(" | ") for line in table[2:]]
    assert all(len(row) == 2 for row in rows)
    assert {name.partition(":")[0] for name, _ in rows} == set(SECTIONS)
    assert not [row for row in rows if row[1].startswith(("failed", "stopped", "skipped", "exit"))]
    losses = {name: value.partition("losses ")[2] for name, value in rows if "ranks" in name}
    assert len(losses) == 2
    assert len({value.split()[0][:5] for value in losses.values()}) == 1  # of the first step


def test_no_time_is_no_section():
    started = time.monotonic()
    done = _gpu_check("--minutes", "0.05")
    assert time.monotonic() - started < 30
    assert done.stdout.count("skipped: no time left") == len(SECTIONS)


def test_a_section_ends_in_time_with_all_its_processes():
    forks = "import subprocess, time; subprocess.Popen(['sleep', '77.7']); time.sleep(77)"
    shown = 'print(\'gpu-check row: ["a", "1"]\', flush=True); '
    started = time.monotonic()
    rows, end = run_until([sys.executable, "-c", shown + forks], started + 3)
    assert time.monotonic() - started < 10
    assert rows == [["a", "1"]]
    assert end == "stopped: time is up"
    sleeping = [p.info["cmdline"] for p in psutil.process_iter(["cmdline", "status"])]
    assert ["sleep", "77.7"] not in sleeping


def test_a_failure_is_a_row():
    rows, end = run_until([sys.executable, "-c", "exit('no | luck')"], time.monotonic() + 20)
    assert rows == []
    assert end == "failed with exit code 1: no / luck"
