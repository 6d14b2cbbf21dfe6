"""Small tasks whose answers can be checked: problems, worked traces, grading.

A completion is either direct (`Answer: 5`) or worked (`Work: 3 + 4 = 7, 7 - 2 = 5` and then
`Answer: 5`). The base model's data mix both, with mistakes in some, so that reinforcement learning
has something to sharpen; supervised fine-tuning sees correct worked traces only.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny.splits import unit_hash

HELD_OUT_SHARE = 0.2
WRONG_SHARE = 0.3
WORKED_SHARE = 0.4
# How much more often than another family reinforcement learning draws these: the base fails at them
# most. Drawn evenly, the easy families teach it to answer at once, and its greedy accuracy does not
# rise.
FAMILY_WEIGHTS = {"arithmetic": 4, "parity": 4, "counting": 4}
_DRAWS_PER_PROBLEM = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Problem:
    """A question with its worked steps and its answer.

    Attributes:
        family: name of the task family.
        question: what is asked, on one line.
        steps: intermediate steps, each a short text; the last one leads to the answer.
        answer: the exact answer.
        distractors: plausible wrong answers.
    """

    family: str
    question: str
    steps: tuple[str, ...]
    answer: str
    distractors: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"Question: {self.question}\n"

    @property
    def is_held_out(self) -> bool:
        """Whether the problem belongs to the held-out share of its family, by its text."""
        return unit_hash(f"task:{self.question}") < HELD_OUT_SHARE


def _arithmetic(rng: random.Random) -> Problem:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    total = a + b
    c = rng.randint(0, min(total, 9))
    result = total - c
    wrong = {result - 1, result + 1, result + 2, total} - {-1, result}
    return Problem(
        "arithmetic",
        f"what is {a} + {b} - {c}?",
        (f"{a} + {b} = {total}", f"{total} - {c} = {result}"),
        str(result),
        tuple(str(value) for value in sorted(wrong)),
    )


def _parity(rng: random.Random) -> Problem:
    a, b = rng.randint(10, 99), rng.randint(0, 9)
    last = a % 10 + b
    answer, other = ("odd", "even") if last % 2 else ("even", "odd")
    steps = (f"{a % 10} + {b} = {last}", f"{last % 10} is {answer}")
    return Problem("parity", f"is {a} + {b} even or odd?", steps, answer, (other,))


def _comparison(rng: random.Random) -> Problem:
    a, b = rng.sample(range(10, 100), 2)
    larger, smaller = max(a, b), min(a, b)
    if a // 10 == b // 10:
        steps = (f"both {a // 10}", f"{larger % 10} beats {smaller % 10}")
    else:
        steps = (f"{larger // 10} beats {smaller // 10}",)
    return Problem(
        "comparison", f"which is larger, {a} or {b}?", steps, str(larger), (str(smaller),)
    )


def _next_letter(rng: random.Random) -> Problem:
    letters = [rng.choice(_LETTERS[:-1]) for _ in range(3)]
    last = letters[-1]
    answer = chr(ord(last) + 1)
    wrong = {chr(ord(first) + 1) for first in letters[:-1]} | {last} - {answer}
    return Problem(
        "next letter",
        f"which letter follows the last of {' '.join(letters)}?",
        (f"the last is {last}", f"after {last} comes {answer}"),
        answer,
        tuple(sorted(wrong - {answer})),
    )


def _reversal(rng: random.Random) -> Problem:
    letters = rng.sample(_LETTERS, rng.choice((3, 4)))
    answer = " ".join(reversed(letters))
    steps = tuple(f"{place} {letter}" for place, letter in enumerate(reversed(letters), 1))
    swapped = [*reversed(letters)]
    swapped[0], swapped[1] = swapped[1], swapped[0]
    return Problem(
        "reversal",
        f"write {' '.join(letters)} backwards.",
        steps,
        answer,
        (" ".join(letters), " ".join(swapped)),
    )


def _counting(rng: random.Random) -> Problem:
    letters = [rng.choice("abc") for _ in range(rng.choice((4, 5, 6)))]
    target = rng.choice("abc")
    count, steps = 0, []
    for letter in letters:
        count += letter == target
        steps.append(f"{letter} {count}")
    wrong = {count - 1, count + 1, count + 2} - {-1}
    return Problem(
        "counting",
        f"how many {target} are in {' '.join(letters)}?",
        tuple(steps),
        str(count),
        tuple(str(value) for value in sorted(wrong)),
    )


def _largest(rng: random.Random) -> Problem:
    numbers = [rng.randint(0, 9) for _ in range(4)]
    best, steps = numbers[0], []
    for number in numbers[1:]:
        best = max(best, number)
        steps.append(f"{number} gives {best}")
    wrong = sorted(set(numbers) - {best}) or [(best + 1) % 10]
    return Problem(
        "largest",
        f"what is the largest of {' '.join(map(str, numbers))}?",
        tuple(steps),
        str(best),
        tuple(map(str, wrong)),
    )


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    "arithmetic": _arithmetic,
    "parity": _parity,
    "comparison": _comparison,
    "next letter": _next_letter,
    "reversal": _reversal,
    "counting": _counting,
    "largest": _largest,
}


def draw_problem(rng: random.Random, *, held_out: bool, family: str | None = None) -> Problem:
    """Draw a problem of the wanted side of the split, of one family or of a random one."""
    name = family or rng.choice(list(FAMILIES))
    while True:
        problem = FAMILIES[name](rng)
        if problem.is_held_out is held_out:
            return problem


def draw_training_problems(rng: random.Random, count: int) -> list[Problem]:
    """Draw problems for reinforcement learning, the hard families more often."""
    weights = [FAMILY_WEIGHTS.get(family, 1) for family in FAMILIES]
    return [
        draw_problem(rng, held_out=False, family=family)
        for family in rng.choices(list(FAMILIES), weights, k=count)
    ]


def held_out_problems(max_per_family: int, seed: int) -> list[Problem]:
    """Draw distinct held-out problems: as many of each family as asked for, or as there are."""
    rng = random.Random(seed)
    problems = []
    for family in FAMILIES:
        draws = (
            draw_problem(rng, held_out=True, family=family)
            for _ in range(_DRAWS_PER_PROBLEM * max_per_family)
        )
        distinct = {problem.question: problem for problem in draws}
        problems += list(distinct.values())[:max_per_family]
    return problems


def worked(problem: Problem, answer: str | None = None) -> str:
    """Return the worked completion, ending in the answer (or in a given wrong one)."""
    return f"Work: {', '.join(problem.steps)}\nAnswer: {answer or problem.answer}"


def direct(problem: Problem, answer: str | None = None) -> str:
    """Return the direct completion."""
    return f"Answer: {answer or problem.answer}"


def noisy_completion(problem: Problem, rng: random.Random) -> str:
    """Return a completion as the base model's data has it: direct or worked, sometimes wrong."""
    answer = rng.choice(problem.distractors) if rng.random() < WRONG_SHARE else None
    style = worked if rng.random() < WORKED_SHARE else direct
    return style(problem, answer)


def extract_answer(completion: str) -> str | None:
    """Return the text after the first `Answer:` up to the line's end, or `None`.

    >>> extract_answer("Work: 3 + 4 = 7\\nAnswer: 7")
    '7'
    """
    _, marker, rest = completion.partition("Answer:")
    return rest.split("\n", 1)[0].strip() if marker else None


def is_correct(problem_answer: str, completion: str) -> bool:
    """Whether a completion states exactly the right answer."""
    return extract_answer(completion) == problem_answer
