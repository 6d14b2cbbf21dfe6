"""The train command under every launcher: every rank ends well, in one folder, with one result."""

import pytest

from tests.journeys.checks import check_all_ended_well, check_files, check_numbers, run_of
from tests.journeys.processes import train

pytestmark = pytest.mark.ddp


def test_one_process_leaves_what_it_should(one_process):
    check_files(one_process)
    check_numbers(one_process, one_process)


@pytest.mark.parametrize(
    ("launcher", "devices", "more"),
    [
        ("lightning", 2, ()),
        ("torchrun", 2, ("trainer.strategy=fsdp2",)),
        ("slurm", 4, ()),
    ],
)
def test_ranks_give_the_numbers_of_one_process(
    launcher, devices, more, settings, one_process, tmp_path
):
    with train(launcher, devices, tmp_path, *settings, *more, stagger=1.3) as ranks:
        check_all_ended_well(ranks.wait())
    run = run_of(tmp_path)
    check_files(run)
    check_numbers(run, one_process)
