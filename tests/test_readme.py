"""The README does what it says."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hrsa_lightning.cli import find_command
from hrsa_lightning.io.resources import resource_files

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("code", PYTHON[1:], ids=["tensors", "callback"])
def test_code_runs_as_it_stands(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "tensor(" in done.stdout


def test_the_five_lines_work_in_a_project(tmp_path, monkeypatch):
    """In that of the program further down."""
    monkeypatch.chdir(tmp_path)
    program = PYTHON[2].partition("monitor = ")[0] + "module = Project()\n"
    done = subprocess.run(
        [sys.executable, "-c", program + PYTHON[0]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    events = Path("lightning_logs").rglob("events.out.tfevents*")
    assert any(b"similarity/cka/output" in path.read_bytes() for path in events)


class Parsed(Exception):  # noqa: N818
    """A command understood its arguments; its work is tested elsewhere."""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m hrsa")])
def test_commands_are_understood(command, monkeypatch, capsys):
    """`train` has its settings resolved as well."""
    _, _, module, *arguments = shlex.split(command)
    main = find_command(module.removeprefix("hrsa_lightning.")).main
    if "--help" in arguments:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    elif module == "hrsa_lightning.train":
        assert main([*arguments, "--print-config"]) == 0
        recipe = next(text for text in arguments if text.startswith("recipe="))
        assert f"name: {recipe.removeprefix('recipe=')}\n" in capsys.readouterr().out
    else:
        parse = argparse.ArgumentParser.parse_intermixed_args

        def parse_and_stop(*given: Any) -> NoReturn:
            parse(*given)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", parse_and_stop)
        with pytest.raises(Parsed):
            main(arguments)


def test_scripts_that_are_named_exist():
    scripts = [c.split()[1] for c in COMMANDS if c.startswith("sh ")]
    assert scripts == ["scripts/quickstart", "scripts/test"]
    for script in scripts:
        assert subprocess.run(["sh", "-n", str(ROOT / script)]).returncode == 0


def test_links_and_pictures_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_every_recipe_is_in_the_table():
    assert set(re.findall(r"\(recipes/([\w.-]+)\.yaml\)", TEXT)) == set(resource_files("recipes"))
