"""Runs that are killed at random moments end with the weights of an undisturbed one."""

import pytest

from tests.kills import kill_and_compare


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    outcome = kill_and_compare(tmp_path, kills=10, seed=0)
    assert outcome.kills == 10
    assert outcome.in_write >= 1
    assert outcome.restarts >= 3
    assert not outcome.different
