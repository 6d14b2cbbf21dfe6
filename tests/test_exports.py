"""Public names: `__all__` is sorted, complete and importable."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import hrsa_lightning

PACKAGES = ["callbacks", "data", "functional", "losses", "metrics", "models", "modules"]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_names_what_is_there(name):
    package = importlib.import_module(f"hrsa_lightning.{name}")
    assert package.__all__ == sorted(package.__all__, key=lambda n: (n.lower(), n)) or (
        package.__all__ == sorted(package.__all__)
    )
    for public in package.__all__:
        assert getattr(package, public) is not None
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    visible = {n for n in dir(package) if not n.startswith("_") and n not in submodules}
    assert set(package.__all__) <= visible


def test_every_package_of_the_house_is_checked():
    found = {m.name for m in pkgutil.iter_modules(hrsa_lightning.__path__) if m.ispkg}
    assert found - set(PACKAGES) == {"representations"}


def test_commands_are_modules_with_a_main():
    done = subprocess.run(
        [sys.executable, "-m", "hrsa_lightning.train", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert len(done.stdout.splitlines()) < 40
