"""One tiny run on one process, which all others are compared with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.contrastive_runs import write_recipe
from tests.journeys.checks import check_all_ended_well, run_of
from tests.journeys.processes import train


@pytest.fixture(scope="session")
def micro_recipe(make_once: Callable[..., Path]) -> Path:
    """A recipe whose run takes a second beside imports and pictures."""
    return make_once("micro", write_recipe) / "micro.yaml"


@pytest.fixture(scope="session")
def settings(micro_recipe: Path) -> tuple[str, ...]:
    """Arms of two seeds, and so of two orders of batches; a checkpoint at every step, five steps.

    A metric of each kind is enough: every rank of every run draws its curves.
    """
    return (
        f"recipe={micro_recipe}",
        "arms.other.seed=2017",
        "model.lora.lora_dropout=0",  # ranks have random numbers of their own
        "optimizer.lr=2e-3",
        "trainer.max_steps=5",
        "checkpoint={every_n_train_steps: 1, keep: 2}",
        "callbacks.similarity.metrics=[cka,knn_overlap_10,procrustes_residual]",
        "callbacks.similarity.every_n_train_steps=2",
        "callbacks.retrieval.every_n_train_steps=2",
    )


@pytest.fixture(scope="session")
def one_process(settings: tuple[str, ...], make_once: Callable[..., Path]) -> Path:
    """The folder of an undisturbed run on one process."""
    return run_of(make_once("on_1", partial(_train_undisturbed, 1, settings)))


@pytest.fixture(scope="session")
def two_processes(settings: tuple[str, ...], make_once: Callable[..., Path]) -> Path:
    """The folder of an undisturbed run on two processes that Lightning starts."""
    return run_of(make_once("on_2", partial(_train_undisturbed, 2, settings)))


def _train_undisturbed(devices: int, settings: tuple[str, ...], folder: Path) -> None:
    with train("lightning", devices, folder, *settings) as ranks:
        check_all_ended_well(ranks.wait())
