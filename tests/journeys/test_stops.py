"""Runs that are stopped: no rank hangs, and the same command goes on to the same weights."""

import os
import re
import shutil
import signal

import pytest

from tests.journeys.checks import (
    ARMS,
    check_all_ended_well,
    check_files,
    check_history,
    check_weights,
    run_of,
    steps_of,
)
from tests.journeys.processes import train

pytestmark = pytest.mark.ddp

_WEIGHTS = [f"adapters/{arm}/adapter_model.safetensors" for arm in ARMS]

WITHIN = 60.0
"""Seconds after the death of one rank in which the others end."""


def _at_step(folder, step):
    """Whether the checkpoint of a step is there, or a later one."""
    found = folder.glob("runs/*/*/checkpoints/step_*/state.json")
    return any(int(path.parent.name.removeprefix("step_")) >= step for path in found)


def _check_the_rest(launcher, folder, settings, expected, devices=2):
    """The same command once more: it goes on, and ends as an undisturbed run does."""
    with train(launcher, devices, folder, *settings) as ranks:
        ended = ranks.wait()
    check_all_ended_well(ended)
    assert "going on from step_00000" in ended[0].text
    run = run_of(folder)
    check_files(run)
    check_weights(run, expected)
    check_history(run, expected)


def test_sigterm_to_the_first_process_stops_all_after_the_same_step(
    settings, two_processes, tmp_path
):
    with train("lightning", 2, tmp_path, *settings) as ranks:
        ranks.wait_until(lambda: _at_step(tmp_path, 1))
        ranks.processes[0].send_signal(signal.SIGTERM)
        (ended,) = ranks.wait()
    assert ended.code == 128 + signal.SIGTERM, ended.text
    assert "Traceback" not in ended.text
    assert "the same command goes on from step" in ended.text
    _check_the_rest("lightning", tmp_path, settings, two_processes)


def test_time_that_is_up_an_interrupt_and_damaged_checkpoints_change_nothing(
    micro_recipe, tmp_path
):
    settings = (f"recipe={micro_recipe}", "checkpoint.keep=-1", "callbacks.retrieval=null")
    with train("lightning", 1, tmp_path, *settings, "trainer.max_time=00:00:00:00") as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 124, ended.text
    assert (
        "max_time is up: stopped at step 1; the same command goes on from step 1 in" in ended.text
    )
    with train("lightning", 1, tmp_path, *settings) as ranks:
        ranks.wait_until(lambda: _at_step(tmp_path, 2))
        ranks.processes[0].send_signal(signal.SIGINT)
        (ended,) = ranks.wait()
    assert ended.code == 128 + signal.SIGINT, ended.text
    assert "stopping after this step" in ended.text
    stopped_at = int(re.search(r"stopped at step (\d)", ended.text)[1])
    assert f"goes on from step {stopped_at} in" in ended.text
    with train("lightning", 1, tmp_path, *settings) as ranks:
        check_all_ended_well(ranks.wait())
    run = run_of(tmp_path)
    weights = [(run / file).read_bytes() for file in _WEIGHTS]
    shutil.rmtree(run / "report")
    for step in range(6, 2, -1):
        if (checkpoint := run / f"checkpoints/step_00000{step}").is_dir():
            shutil.rmtree(checkpoint / "adapters")
    os.truncate(run / "checkpoints/step_000002/state.safetensors", 100)
    (run / "summary.json").unlink()
    with train("lightning", 1, tmp_path, *settings) as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 0, ended.text
    assert "Traceback" not in ended.text
    assert ended.text.count("is damaged (") >= 3
    assert "going on from step_000001" in ended.text
    assert [(run / file).read_bytes() for file in _WEIGHTS] == weights
    assert steps_of(run) == [0, 3, 6]


@pytest.mark.slow
def test_the_same_command_twice_at_once_makes_two_runs(settings, one_process, tmp_path):
    same = (*settings, f"output_dir={tmp_path / 'runs'}")
    with (
        train("lightning", 1, tmp_path / "a", *same) as first,
        train("lightning", 1, tmp_path / "b", *same) as second,
    ):
        for ranks in (first, second):
            check_all_ended_well(ranks.wait())
    runs = [*tmp_path.glob("runs/*/*")]
    assert len(runs) == 2
    for run in runs:
        check_files(run)
        check_weights(run, one_process)
        check_history(run, one_process)


def test_slurms_signal_to_one_rank_queues_the_job_again(settings, tmp_path, monkeypatch):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    with train("slurm", 2, tmp_path, *settings) as ranks:
        ranks.wait_until(lambda: _at_step(tmp_path, 1))
        ranks.processes[1].send_signal(signal.SIGUSR1)
        ended = ranks.wait()
    assert [rank.code for rank in ended] == [128 + signal.SIGUSR1] * 2, str(ranks)
    assert "Traceback" not in str(ranks)
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("requeue 77")
    assert _at_step(tmp_path, 2)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_do_not_outlive_a_rank_that_is_killed(killed, settings, two_processes, tmp_path):
    with train("torchrun", 2, tmp_path, *settings) as ranks:
        ranks.wait_until(lambda: _at_step(tmp_path, 2))
        ranks.processes[killed].kill()
        ended = ranks.wait(WITHIN)
    assert ended[killed].code == -signal.SIGKILL
    assert ended[1 - killed].code == 1, str(ranks)
    assert "another process of this run has ended" in ended[1 - killed].text
    assert "Traceback" not in str(ranks)
    if killed == 0:
        _check_the_rest("torchrun", tmp_path, settings, two_processes)
