"""Fixtures shared by all tests. Nothing here may reach for a network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and several processes share cores
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from filelock import FileLock

from tests.ddp_pool import DDPPool


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make_once(name, fill)`: a folder that one of the workers of pytest-xdist fills for all."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = root / name, root / f"{name}.filled"
        with FileLock(root / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def quickstart(make_once: Callable[..., Path]) -> Path:
    """`runs/quickstart/TIME` and `screen.txt` of two steps of the quickstart, in a folder.

    The quickstart as a user starts it and as it is shipped, with a part of the held-out queries.
    """

    def start(folder: Path) -> None:
        command = [sys.executable, "-m", "hrsa_lightning.train", "recipe=quickstart"]
        with (folder / "screen.txt").open("w") as screen:
            subprocess.run(
                [*command, "trainer.max_steps=2", "callbacks.retrieval.limit=100"],
                cwd=folder,
                check=True,
                stdout=screen,
                timeout=1800,
            )

    return make_once("quickstart", start)


@pytest.fixture(scope="session")
def ddp_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DDPPool]:
    pool = DDPPool(2, tmp_path_factory.mktemp("ddp2") / "store")
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def ddp_pool4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DDPPool]:
    pool = DDPPool(4, tmp_path_factory.mktemp("ddp4") / "store")
    yield pool
    pool.close()
