import random
import re

import pytest
from tiny import tasks


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_distractors_are_wrong_and_completions_grade_as_they_should(family: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        problem = tasks.draw_problem(rng, held_out=False, family=family)
        assert tasks.is_correct(problem.answer, tasks.direct(problem))
        assert tasks.is_correct(problem.answer, tasks.worked(problem))
        assert problem.distractors
        for wrong in problem.distractors:
            assert not tasks.is_correct(problem.answer, tasks.direct(problem, wrong))


def _solve(question: str) -> str | None:
    """Answer a question independently of how the families make theirs."""
    if found := re.fullmatch(r"what is (\d) \+ (\d) - (\d)\?", question):
        a, b, c = map(int, found.groups())
        return str(a + b - c)
    if found := re.fullmatch(r"is (\d+) \+ (\d) even or odd\?", question):
        return ["even", "odd"][sum(map(int, found.groups())) % 2]
    if found := re.fullmatch(r"which is larger, (\d+) or (\d+)\?", question):
        return max(found.groups(), key=int)
    if found := re.fullmatch(r"which letter follows the last of (.+)\?", question):
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        return alphabet[alphabet.index(found[1][-1]) + 1]
    if found := re.fullmatch(r"write (.+) backwards\.", question):
        return found[1][::-1]
    if found := re.fullmatch(r"how many (\w) are in (.+)\?", question):
        return str(found[2].count(found[1]))
    if found := re.fullmatch(r"what is the largest of (.+)\?", question):
        return max(found[1].split())
    return None


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_answers_are_right(family: str) -> None:
    rng = random.Random(1)
    for _ in range(100):
        problem = tasks.draw_problem(rng, held_out=False, family=family)
        assert problem.answer == _solve(problem.question)


def test_the_last_step_states_the_answer() -> None:
    rng = random.Random(2)
    for family in ("arithmetic", "parity", "next letter", "counting", "largest"):
        problem = tasks.draw_problem(rng, held_out=False, family=family)
        assert problem.steps[-1].split()[-1] == problem.answer


def test_held_out_problems_are_distinct_and_never_drawn_for_training() -> None:
    held_out = {problem.question for problem in tasks.held_out_problems(20, seed=3)}
    assert len(held_out) == 20 * len(tasks.FAMILIES)
    rng = random.Random(4)
    drawn = {tasks.draw_problem(rng, held_out=False).question for _ in range(3000)}
    assert drawn.isdisjoint(held_out)


def test_noisy_completions_are_wrong_about_as_often_as_stated() -> None:
    rng = random.Random(5)
    right = 0
    for _ in range(2000):
        problem = tasks.draw_problem(rng, held_out=False)
        right += tasks.is_correct(problem.answer, tasks.noisy_completion(problem, rng))
    assert abs(right / 2000 - (1 - tasks.WRONG_SHARE)) < 0.04


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("Answer: 5", "5"), ("Work: 2\nAnswer: 5\nAnswer: 6", "5"), ("5", None), ("Answer:", "")],
)
def test_the_first_stated_answer_counts(completion: str, answer: str | None) -> None:
    assert tasks.extract_answer(completion) == answer
