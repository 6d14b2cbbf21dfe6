"""The train command in every precision, with both monitors."""

import pytest

from tests.journeys.checks import check_files, losses, run_of
from tests.journeys.processes import train

pytestmark = pytest.mark.ddp


@pytest.mark.parametrize(
    ("precision", "devices", "warning"),
    [
        ("bf16-true", 2, ""),
        ("bf16-mixed", 2, ""),
        ("16-mixed", 1, "Using `precision='bf16-mixed'` instead"),  # Lightning's choice on a CPU
    ],
)
def test_losses_are_close_to_those_of_float32(
    precision, devices, warning, settings, one_process, tmp_path
):
    with train(
        "lightning", devices, tmp_path, *settings, f"trainer.precision={precision}"
    ) as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 0, ended.text
    assert "Traceback" not in ended.text
    assert "no values at step" not in ended.text, ended.text
    assert warning in ended.text
    run = run_of(tmp_path)
    check_files(run)
    for arm, expected in losses(one_process).items():
        assert losses(run)[arm] == pytest.approx(expected, rel=0.05), arm
