"""Starts that are stopped at any moment: the same command ends as an undisturbed run does.

Run by name: `pytest -m slow tests/journeys/test_kills.py`. A stop comes when a certain file is
being written, for each file that the end of a run writes, or at a random moment.
"""

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.journeys.processes import train

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MISSES = 8
"""Runs one after the other that may end before the moment of a stop."""
CODES = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM}
"""Ended before the signal, lost another rank, interrupted, told to stop, killed before training."""

WHILE_TRAINING = ("checkpoints/.partial-*/state.safetensors", "checkpoints/step_000002")
OF_TIME = re.compile(r"\| (runs|seconds|\w+: (similarity|retrieval)) ")
"""Lines of a report that tell how long things took, and the name of the run."""


class Stop(NamedTuple):
    """A signal, when a file appears or some time after a start, to all ranks or to one of them."""

    signum: int
    file: str | None
    share: float = 0.0
    rank: int | None = None


@pytest.mark.parametrize(
    ("launcher", "devices"), [("lightning", 1), ("lightning", 2), ("torchrun", 2)]
)
def test_stops_change_nothing(launcher, devices, micro_recipe, tmp_path):
    settings = (f"recipe={micro_recipe}",)
    with train(launcher, devices, tmp_path / "whole", *settings) as ranks:
        assert [rank.code for rank in ranks.wait()] == [0] * len(ranks.processes), str(ranks)
    (whole,) = _complete(tmp_path / "whole")
    span = _span(whole)
    trained = (whole / "checkpoints/step_000006/state.json").stat().st_mtime
    last = {
        path.relative_to(whole).as_posix(): path.stat().st_mtime
        for path in whole.rglob("*")
        if path.is_file() and path.stat().st_mtime >= trained and "events" not in path.name
    }
    files = [*WHILE_TRAINING, *sorted(last, key=last.__getitem__)]
    draw = random.Random(launcher)
    if devices == 2:
        files = [name for name in files if draw.random() < 0.3]
    stops = [Stop(SIGNALS[n % 3], name) for n, name in enumerate(files)]
    stops += [
        Stop(draw.choice(SIGNALS), None, draw.random()) for _ in range(7 if devices == 1 else 2)
    ]
    if launcher == "torchrun":
        stops = [stop._replace(rank=n % 2, signum=signal.SIGKILL) for n, stop in enumerate(stops)]
    number = done = missed = 0
    while done < len(stops):
        assert missed < MISSES, f"no moment for {stops[done]}"
        folder = tmp_path / str(number)
        number += 1
        while not _complete(folder):
            stop = stops[done] if done < len(stops) else None
            is_new = not folder.exists()
            with train(launcher, devices, folder, *settings) as ranks:
                if is_stopped := stop is not None and _wait(ranks, folder, stop, span):
                    _send(ranks, stop)
                    done += 1
                    missed = 0
                ended = ranks.wait()
            assert {rank.code for rank in ended} <= CODES, str(ranks)
            # What is sent to a process at its exit is answered by Python itself.
            assert "Traceback" not in str(ranks) or _complete(folder), (stop, str(ranks))
            if is_stopped:
                print(launcher, devices, stop, [rank.code for rank in ended], flush=True)
            else:
                assert {rank.code for rank in ended} == {0}, str(ranks)
                missed += 1
                if is_new and stop is not None:  # quicker than before, or too close to the end
                    span = min(span, _span(*_complete(folder)))
                    stops[done] = stop._replace(share=stop.share * 0.9)
        (run,) = _complete(folder)
        assert _left_behind(run) == _left_behind(whole)
        assert not list(run.rglob("*partial*"))


def _complete(folder):
    return [path.parents[1] for path in folder.glob("runs/*/*/report/report.html")]


def _span(run: Path) -> float:
    """Seconds from the beginning of a run to its end, which random moments are shares of."""
    begun, complete = (
        (run / name).stat().st_mtime for name in ("environment.json", "report/report.html")
    )
    return complete - begun


def _wait(ranks, folder: Path, stop: Stop, span: float) -> bool:
    """Wait for the moment of a stop; whether the processes were there until then."""
    begun = time.time()

    def is_written(name):
        head, _, tail = name.rpartition("/")
        names = (name, f"{name}.partial", f".partial-{name}", f"{head}/.partial-{tail}")
        paths = [path for each in names for path in folder.glob(f"runs/*/*/{each}")]
        try:
            return any(path.stat().st_mtime >= begun for path in paths)
        except FileNotFoundError:  # moved to its place between these two lines
            return True

    while not is_written(stop.file or "environment.json"):
        if any(process.poll() is not None for process in ranks.processes):
            return False
        time.sleep(0.002)  # the processes that are waited for need the cores
    time.sleep(stop.share * span)
    return all(process.poll() is None for process in ranks.processes)


def _send(ranks, stop: Stop) -> None:
    if stop.rank is None:
        ranks.send(stop.signum)
    else:
        ranks.processes[stop.rank].send_signal(stop.signum)


def _left_behind(run: Path) -> dict[str, object]:
    """What a run leaves, but for times and names."""
    left: dict[str, object] = {
        str(path.relative_to(run)): path.read_bytes()
        for pattern in ("adapters/*/*.safetensors", "report/*.csv", "report/figures/*")
        for path in run.glob(pattern)
    }
    for path in run.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        left[path.name] = [
            {key: value for key, value in record.items() if key not in ("time", "seconds", "run")}
            for record in records
        ]
    summary = json.loads((run / "summary.json").read_text())
    report = (run / "report/report.md").read_text().splitlines()
    left["summary.json"] = {key: summary[key] for key in ("steps", "values")}
    left["report.md"] = [line for line in report if not OF_TIME.match(line)]
    left["files"] = sorted(
        path.name for path in run.iterdir() if path.suffix and "events" not in path.name
    )
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    # A stop saves the step it comes after, which may be none of the rhythm.
    left["checkpoints"] = (len(checkpoints), checkpoints[-1])
    return left
