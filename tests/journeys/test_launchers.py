"""The train command under every launcher: every rank ends well, in one folder, with one result."""

import pytest

from tests.journeys.checks import check_all_ended_well, check_files, check_numbers, run_of
from tests.journeys.processes import train

pytestmark = pytest.mark.ddp


def test_two_processes_give_the_numbers_of_one(one_process, two_processes):
    for run in (one_process, two_processes):
        check_files(run)
        check_numbers(run, one_process)


@pytest.mark.parametrize(
    ("launcher", "devices", "more"),
    [("torchrun", 2, ["trainer.strategy=fsdp2"]), ("slurm", 4, [])],
)
def test_ranks_that_start_one_after_the_other(
    launcher, devices, more, settings, one_process, tmp_path
):
    with train(launcher, devices, tmp_path, *settings, *more, stagger=1.3) as ranks:
        check_all_ended_well(ranks.wait())
    run = run_of(tmp_path)
    check_files(run)
    check_numbers(run, one_process)


def test_a_rank_that_never_comes_is_not_waited_for(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_MEETING_SECONDS", "3")
    with train("torchrun", 2, tmp_path, *settings, only=[0]) as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 1
    assert "the other processes have not started within 3 s" in ended.text
    assert "Traceback" not in ended.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loss.matryoshka=[100000]", "loss.matryoshka: expected sizes up to"),
        ("callbacks.similarity.layers=[nothing.*]", "nothing.*"),
    ],
)
def test_a_mistake_is_named_once(setting, message, settings, tmp_path):
    with train("torchrun", 2, tmp_path, *settings, setting) as ranks:
        first, second = ranks.wait()
    assert [first.code, second.code] == [2, 2], str(ranks)
    assert message in first.text
    assert len(first.text.strip().splitlines()) <= 8
    assert not second.text
    assert not list(tmp_path.glob("runs/*/*"))
