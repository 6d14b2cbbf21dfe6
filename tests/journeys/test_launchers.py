"""The train command under every launcher: every rank ends well, in one folder, with one result."""

import shutil

import pytest

from tests.journeys.checks import (
    check_all_ended_well,
    check_files,
    check_numbers,
    check_weights,
    run_of,
    steps_of,
)
from tests.journeys.processes import train

pytestmark = pytest.mark.ddp


def test_two_processes_give_the_numbers_of_one(one_process, two_processes):
    for run in (one_process, two_processes):
        check_files(run)
        check_numbers(run, one_process)


def test_four_ranks_that_start_one_after_the_other(settings, one_process, tmp_path):
    with train("slurm", 4, tmp_path, *settings, stagger=1.3) as ranks:
        check_all_ended_well(ranks.wait())
    run = run_of(tmp_path)
    check_files(run)
    check_numbers(run, one_process)


def test_shards_and_their_end_after_a_kill_in_the_last_seconds(settings, one_process, tmp_path):
    sharded = (*settings, "trainer.strategy=fsdp2")
    with train("torchrun", 2, tmp_path, *sharded, stagger=1.3) as ranks:
        check_all_ended_well(ranks.wait())
    run = run_of(tmp_path)
    check_files(run)
    check_numbers(run, one_process)

    # What is there when the last checkpoint is, but not yet the last evaluation.
    finished = shutil.copytree(run, tmp_path / "finished")
    for name in ("adapters", "report"):
        shutil.rmtree(run / name)
    for path in (run / "summary.json", *run.glob("*.png")):
        path.unlink()
    for name in ("similarity.jsonl", "retrieval.jsonl"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[:-1]))
    with train("torchrun", 2, tmp_path, *sharded) as ranks:
        check_all_ended_well(ranks.wait())
    check_files(run)
    check_weights(run, finished)
    assert steps_of(run) == [0, 2, 4, 5]


def test_a_rank_that_never_comes_is_not_waited_for(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_CONNECT_SECONDS", "3")
    with train("torchrun", 2, tmp_path, *settings, only=[0]) as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 1
    assert "the other processes have not started within 3 s" in ended.text
    assert "Traceback" not in ended.text
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_named_once(settings, tmp_path):
    with train(
        "torchrun", 2, tmp_path, *settings, "callbacks.similarity.layers=[nothing.*]"
    ) as ranks:
        first, second = ranks.wait()
    assert [first.code, second.code] == [2, 2], str(ranks)
    assert "nothing.*" in first.text
    assert len(first.text.strip().splitlines()) <= 8
    assert not second.text
    assert not list(tmp_path.glob("runs/*/*"))
