"""The figures of docs/planning.md are those that the command gives."""

import re
import shlex
from pathlib import Path

import pytest

from hrsa_lightning.config import load_config
from hrsa_lightning.plan.__main__ import main
from hrsa_lightning.plan.estimate import estimate, workload_of

PAGE = Path(__file__).parents[2].joinpath("docs", "planning.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|(.*)\| `recipe=(\S+) (.*)` \|$", PAGE, re.MULTILINE)


def test_printed_plan_is_that_of_its_command(capsys):
    command, printed = re.search(r"```sh\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL).groups()
    assert main(shlex.split(command.replace("\\\n", " "))[3:]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]} {row[2]} {row[3][-40:]}" for row in ROWS])
def test_rows_are_those_of_their_commands(row):
    gpus, cells, recipe, settings = row
    config = load_config(recipe, ["data.batch_size=4096", *settings.split()])
    plan = estimate(config, workload_of(config, 1_660_000, 120), 80e9)
    held = sum(plan.memory[name] for name in ("weights", "gradients", "optimizer"))
    graphs = sum(plan.memory.get(name, 0) for name in ("kept graphs", "graph of a chunk"))
    stated = [float(cell) for cell in cells.split("|")[2:]]
    assert plan.workload.processes == int(gpus)
    figures = (held, graphs, plan.total_memory)
    assert stated == pytest.approx([round(figure / 1e9, 1) for figure in figures])


def test_the_page_has_rows_up_to_512_processes():
    assert {int(row[0]) for row in ROWS} == {8, 64, 512}
