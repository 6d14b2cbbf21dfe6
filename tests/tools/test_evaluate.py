import numpy as np
import pytest
from tiny import evaluate
from tiny.tasks import FAMILIES


def test_selection_and_test_problems_are_held_out_and_disjoint() -> None:
    selection, test = evaluate.selection_problems(), evaluate.test_problems()
    questions = [{problem.question for problem in problems} for problems in (selection, test)]
    assert questions[0].isdisjoint(questions[1])
    for problems in (selection, test):
        assert all(problem.is_held_out for problem in problems)
        assert {problem.family for problem in problems} == set(FAMILIES)


def test_rises_are_paired_over_problems() -> None:
    before = evaluate.Accuracies(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.0, 1.0]), 0.0)
    after = evaluate.Accuracies(np.array([0.25, 0.75, 1.25]), np.array([1.0, 1.0, 1.0]), 1.0)
    rise = evaluate.rises(before, after)
    assert rise["sampled"] == 0.25
    assert rise["sampled_standard_error"] == 0.0
    assert rise["greedy"] == pytest.approx(2 / 3, abs=1e-4)
    assert rise["greedy_standard_error"] == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("sampled", "greedy", "accepted"), [(0.1, 0.1, True), (0.1, 0.02, False), (-0.1, 0.1, False)]
)
def test_both_accuracies_must_rise_by_two_standard_errors(
    sampled: float, greedy: float, accepted: bool
) -> None:
    rise = {
        "sampled": sampled,
        "sampled_standard_error": 0.02,
        "greedy": greedy,
        "greedy_standard_error": 0.02,
    }
    assert evaluate.is_beyond_noise(rise) is accepted
