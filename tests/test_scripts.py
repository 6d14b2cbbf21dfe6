"""scripts/, and the workflows that call them."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").iterdir())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_shell_and_says_what_it_does(script):
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    first, about, *rest = script.read_text().splitlines()
    assert first == "#!/bin/sh"
    assert about.startswith("# ")
    assert len(rest) < 32


def test_workflows_run_scripts_that_are_there():
    named = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        runs = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        named |= {name for run in runs for name in re.findall(r"sh scripts/([\w-]+)", run)}
    assert {"test", "test-lowest", "test-wheel", "docs", "gpu-check", "release-notes"} <= named
    assert named <= {script.name for script in SCRIPTS}


def test_the_lowest_versions_are_those_that_are_promised():
    text = (ROOT / "constraints-lowest.txt").read_text()
    lowest = dict(re.findall(r"^([\w-]+)==(\S+)$", text.lower(), re.MULTILINE))
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        least = next(one.version for one in requirement.specifier if one.operator == ">=")
        if requirement.name != "torch":  # see the file
            assert Version(lowest[requirement.name]).release[: least.count(".") + 1] == (
                Version(least).release
            ), requirement


def test_release_notes_need_version_and_changelog_to_agree(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "release-notes", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text('version = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.0 (today)\n\n- new\n\n## 1.1.0\n\n- old\n")

    def notes(version):
        command = ["sh", str(tmp_path / "scripts" / "release-notes"), version]
        return subprocess.run(command, capture_output=True, text=True)

    assert notes("1.2.0").stdout == "\n- new\n"
    assert notes("1.1.0").returncode == 2
    assert "version is not 1.1.0" in notes("1.1.0").stderr
    (tmp_path / "CHANGELOG.md").write_text("## Unreleased\n\n- new\n")
    assert "no section '## 1.2.0'" in notes("1.2.0").stderr
