"""Public names: `__all__` is sorted, complete and importable."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import hrsa_lightning
import hrsa_lightning.similarity

PACKAGES = [
    "callbacks",
    "config",
    "data",
    "functional",
    "losses",
    "metrics",
    "mine",
    "models",
    "modules",
    "plots",
    "report",
    "similarity",
]
INNER = {"compare", "evaluate", "export", "fetch", "io", "plan", "runs", "train"}
"""Packages that offer their modules to the others and no names of their own."""


def isort_order(name: str) -> tuple[bool, bool, str]:
    """CONSTANTS, then Classes, then functions; the order that the linter writes."""
    return (not name.isupper(), not name[0].isupper(), name)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_names_what_is_there(name):
    package = importlib.import_module(f"hrsa_lightning.{name}")
    assert package.__all__ == sorted(package.__all__, key=isort_order)
    for public in package.__all__:
        value = getattr(package, public)
        assert not isinstance(value, ModuleType), public


@pytest.mark.parametrize("name", ["callbacks", "functional", "losses", "metrics", "modules"])
def test_nothing_public_is_left_out_of_all(name):
    package = importlib.import_module(f"hrsa_lightning.{name}")
    visible = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, ModuleType)
    }
    assert visible == set(package.__all__)


@pytest.mark.parametrize("package", [hrsa_lightning, hrsa_lightning.similarity])
def test_lazy_names_are_where_they_are_said_to_be(package):
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        if name != "__version__":
            assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Monitors'"):
        _ = package.Monitors


def test_every_package_of_the_house_is_checked():
    found = {m.name for m in pkgutil.iter_modules(hrsa_lightning.__path__) if m.ispkg}
    assert found - set(PACKAGES) == INNER


def test_commands_are_modules_with_a_main():
    done = subprocess.run(
        [sys.executable, "-m", "hrsa_lightning.train", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    assert len(done.stdout.splitlines()) < 50
