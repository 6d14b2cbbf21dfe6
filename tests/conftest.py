"""Fixtures shared by all tests. Nothing here may reach for a network."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and several processes share cores
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

from tests.ddp_pool import DDPPool


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


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
