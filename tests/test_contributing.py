"""CONTRIBUTING.md, followed to the letter in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## Add a metric in three files")[1].split("\n## ")[0]
ANCHORS = {"f": "\n\n", '"': "__all__ = [\n", "|": "|---|---|\n"}
"""Where a line goes by its first letter: to the imports, after the docstring; to `__all__`; to the
table."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contributed")
    skip = shutil.ignore_patterns("assets", "__pycache__")
    for name in ("hrsa_lightning", "docs", ".mypy_cache"):
        if (ROOT / name).is_dir():  # a first run has no cache
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in (
        "pyproject.toml",
        "tests/test_docs.py",
        "tests/test_exports.py",
        "CONTRIBUTING.md",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", SECTION, re.DOTALL):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name, line in re.findall(r"^(\S+/\S+) {2,}(.*)$", SECTION, re.MULTILINE):
        text, anchor = (folder / name).read_text(), ANCHORS[line[0]]
        assert anchor in text
        (folder / name).write_text(text.replace(anchor, f"{anchor}{line}\n", 1))
    run(folder, "ruff", "check", "--fix", "--select", "I,RUF022", ".")
    return folder


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_those_that_the_text_names(project):
    assert (project / "hrsa_lightning/functional/row_cosine.py").is_file()
    assert (project / "hrsa_lightning/metrics/row_cosine.py").is_file()
    assert (project / "tests/functional/test_row_cosine.py").is_file()
    for package, name in (("functional", "row_cosine"), ("metrics", "RowCosine")):
        text = (project / f"hrsa_lightning/{package}/__init__.py").read_text()
        assert len(re.findall(rf"\b{name}\b", text.replace(".row_cosine", ""))) == 2


@pytest.mark.parametrize(
    "check",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", "hrsa_lightning/functional", "hrsa_lightning/metrics"),
        (
            "pytest",
            "-q",
            "tests/functional",
            "hrsa_lightning/functional/row_cosine.py",
            "tests/test_exports.py::test_all_is_sorted_and_names_what_is_there",
            "tests/test_docs.py::test_the_reference_lists_every_public_name",
        ),
    ],
    ids=["lint", "format", "types", "tests"],
)
def test_every_check_passes(project, check):
    run(project, *check)
