"""One tiny run on one process, which all others are compared with."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hrsa_lightning.resources import resolve_path
from tests.contrastive_runs import write_recipe
from tests.journeys.checks import check_all_ended_well, run_of
from tests.journeys.processes import train

SETTINGS = (
    "recipe=quickstart",
    # Arms of two seeds, and so of two orders of batches.
    "arms={base: {backbone: 'embedded:tiny/base'}, "
    "rlvr: {backbone: 'embedded:tiny/rlvr', seed: 2017}}",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=5",
    "trainer.enable_progress_bar=false",
    "checkpoint.every_n_train_steps=1",
    "checkpoint.keep=2",
    "callbacks.similarity.every_n_train_steps=2",
    "callbacks.retrieval.every_n_train_steps=2",
)


@pytest.fixture(scope="session")
def settings(make_once: Callable[..., Path]) -> tuple[str, ...]:
    """Both monitors on few texts, a checkpoint at every step, five steps."""

    def write_texts(folder: Path) -> None:
        for name, share in (("probes", 4), ("pairs_test", 10)):
            lines = Path(resolve_path(f"embedded:tiny/{name}.jsonl")).read_text().splitlines()
            (folder / f"{name}.jsonl").write_text("\n".join(lines[::share]) + "\n")

    folder = make_once("texts", write_texts)
    return (
        *SETTINGS,
        f"callbacks.similarity.probes={folder / 'probes.jsonl'}",
        f"callbacks.retrieval.pairs={folder / 'pairs_test.jsonl'}",
    )


@pytest.fixture(scope="session")
def micro_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose run takes a few seconds."""
    return write_recipe(tmp_path_factory.mktemp("micro"))


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
