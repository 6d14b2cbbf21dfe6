"""Commands of the README and the docs that go on from a quickstart run, as they stand."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    start = re.compile(r"(hrsa|python -m hrsa_lightning\.)(?! ?train)")
    return [one for one in lines if start.match(one) and "runs/quickstart" in one]


COMMANDS = [*commands("README.md"), *commands("docs/reference/commands.md")]


@pytest.fixture(scope="module")
def workplace(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/quickstart/<time>` in it, complete."""
    folder = tmp_path_factory.mktemp("after_the_quickstart")
    shutil.copytree(quickstart / "runs", folder / "runs")
    return folder


def test_the_documents_go_on_from_the_quickstart():
    assert {
        re.split(r"[ .]", one.replace("python -m hrsa_lightning.", "hrsa "))[1] for one in COMMANDS
    } == {
        "evaluate",
        "export",
        "report",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_as_it_stands(command, workplace):
    name, *arguments = shlex.split(command, comments=True)
    program = Path(sys.executable).with_name("hrsa" if name == "hrsa" else "python")
    done = subprocess.run(
        [program, *arguments], cwd=workplace, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout
