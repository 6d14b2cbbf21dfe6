"""Short word problems of arithmetic: questions, worked traces, and the check of an answer."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from tiny.splits import unit_hash

HELD_OUT_SHARE = 0.2
_NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Max", "Zoe")
_THINGS = ("apples", "books", "coins", "pens", "cards", "stamps", "shells", "cups")


EXAMPLES = """\
Question: Ann has 3 pens and finds 4 more. How many pens does Ann have?
Answer: 3 + 4 = 7
Question: Tom has 9 cups and gives 5 cups to Eva. How many cups does Tom have left?
Answer: 9 - 5 = 4
Question: Sam has 2 boxes with 4 books in each box. How many books does Sam have?
Answer: 2 * 4 = 8
"""


@dataclass(frozen=True)
class Problem:
    """A question with its worked steps and its answer.

    Attributes:
        question: What is asked.
        steps: Equations, the last of which ends in the answer.
        answer: A whole number.
    """

    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What the model is given; the completion is the rest of the line.

        Without the examples, the base talks on and is hardly ever right.
        """
        return f"{EXAMPLES}Question: {self.question}\nAnswer:"

    @property
    def trace(self) -> str:
        """The worked answer that supervised fine-tuning imitates."""
        return f" {'. '.join(self.steps)}. The answer is {self.answer}."

    @property
    def is_held_out(self) -> bool:
        """Whether the problem belongs to the held-out share, by its text."""
        return unit_hash(f"smollm2:{self.question}") < HELD_OUT_SHARE


def _give(rng: random.Random, one: str, other: str, things: str) -> Problem:
    has = rng.randint(4, 20)
    gives = rng.randint(1, has - 1)
    left = has - gives
    question = (
        f"{one} has {has} {things} and gives {gives} {things} to {other}."
        f" How many {things} does {one} have left?"
    )
    return Problem(question, (f"{has} - {gives} = {left}",), str(left))


def _find(rng: random.Random, one: str, other: str, things: str) -> Problem:
    has, finds = rng.randint(2, 20), rng.randint(2, 12)
    total = has + finds
    question = (
        f"{one} has {has} {things} and finds {finds} more. How many {things} does {one} have?"
    )
    return Problem(question, (f"{has} + {finds} = {total}",), str(total))


def _boxes(rng: random.Random, one: str, other: str, things: str) -> Problem:
    boxes, each = rng.randint(2, 9), rng.randint(2, 9)
    total = boxes * each
    question = (
        f"{one} has {boxes} boxes with {each} {things} in each box."
        f" How many {things} does {one} have?"
    )
    return Problem(question, (f"{boxes} * {each} = {total}",), str(total))


def _get_and_lose(rng: random.Random, one: str, other: str, things: str) -> Problem:
    has, gets = rng.randint(2, 12), rng.randint(2, 9)
    middle = has + gets
    loses = rng.randint(1, middle - 1)
    left = middle - loses
    question = (
        f"{one} has {has} {things}, gets {gets} more from {other} and loses {loses} {things}."
        f" How many {things} does {one} have?"
    )
    steps = (f"{has} + {gets} = {middle}", f"{middle} - {loses} = {left}")
    return Problem(question, steps, str(left))


FAMILIES: tuple[Callable[[random.Random, str, str, str], Problem], ...] = (
    _give,
    _find,
    _boxes,
    _get_and_lose,
)


def draw_problems(rng: random.Random, count: int, *, held_out: bool) -> list[Problem]:
    """Draw problems of one side of the split, of random families."""
    problems: list[Problem] = []
    while len(problems) < count:
        one, other = rng.sample(_NAMES, 2)
        problem = rng.choice(FAMILIES)(rng, one, other, rng.choice(_THINGS))
        if problem.is_held_out is held_out:
            problems.append(problem)
    return problems


def held_out_problems(count: int, seed: int = 60221) -> list[Problem]:
    """Return distinct held-out problems."""
    drawn = draw_problems(random.Random(seed), 2 * count, held_out=True)
    return list({problem.question: problem for problem in drawn}.values())[:count]


def is_correct(answer: str, completion: str) -> bool:
    """Whether the last whole number of a completion is the answer.

    >>> is_correct("7", "12 - 5 = 7 apples"), is_correct("7", "7 of 12"), is_correct("7", "seven")
    (True, False, False)
    """
    numbers = re.findall(r"\d+", completion.replace(",", ""))
    return bool(numbers) and numbers[-1] == answer
