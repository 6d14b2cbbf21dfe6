"""The page that reproduces the paper is what its script writes, and its values are measured."""

import re

import pytest
import reproduce

from hrsa_lightning.compare.options import read_model_pairs
from hrsa_lightning.io.files import read_json


def test_the_page_is_what_the_script_writes():
    assert reproduce.page(read_json(reproduce.VALUES)) == reproduce.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_table_and_figure_that_has_values():
    headings = " ".join(re.findall(r"^## (.*)$", reproduce.PAGE.read_text(), re.MULTILINE))
    numbers = {"table": set(), "figure": set()}
    for kind, words in re.findall(r"(table|figure)s? ([\d, andto]+)", headings.lower()):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", words):
            numbers[kind] |= set(range(int(first), int(last or first) + 1))
    assert numbers["table"] >= {1, 3, 4, 5, 6, 7, 8, 11, 12, 13}
    assert numbers["figure"] >= set(range(3, 14))


def test_published_pairs_are_those_that_compare_knows():
    pairs = read_model_pairs("paper")
    assert {(pair.name, pair.kind) for pair in reproduce.PAPER} == {
        (name, pair.kind) for name, pair in pairs.items()
    }


@pytest.mark.slow
def test_its_commands_give_the_values_again(tmp_path, capsys):
    assert reproduce.main(["--check", "--work", str(tmp_path)]) == 0, capsys.readouterr().out
