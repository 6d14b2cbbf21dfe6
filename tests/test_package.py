"""What is shipped: a wheel that works on its own, and imports that do nothing."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_resources_assets_and_marker(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("recipes", "callbacks"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"hrsa_lightning/_resources/{folder}/{path.name}" in names
    for name in ("report.html", "report.css"):
        assert f"hrsa_lightning/report/templates/{name}" in names
    assert "hrsa_lightning/py.typed" in names
    for backbone in ("base", "rlvr", "prorl", "sft"):
        assert f"hrsa_lightning/assets/tiny/{backbone}/model.safetensors" in names
    assert not any(name.startswith(("recipes/", "callbacks/", "tests/")) for name in names)


def test_wheel_runs_from_elsewhere(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "hrsa_lightning.train", "recipe=quickstart", "--print-config"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "backbone: embedded:tiny/base" in done.stdout


def test_importing_the_package_is_light_and_silent():
    code = (
        "import sys, logging, os\n"
        "before, handlers = dict(os.environ), list(logging.root.handlers)\n"
        "import hrsa_lightning\n"
        "assert 'torch' not in sys.modules\n"
        "assert dict(os.environ) == before and logging.root.handlers == handlers\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
