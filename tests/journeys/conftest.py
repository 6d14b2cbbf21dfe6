"""One tiny run on one process, which all others are compared with."""

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
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Both monitors on few texts, a checkpoint at every step, five steps."""
    folder = tmp_path_factory.mktemp("texts")
    for name, share in (("probes", 4), ("pairs_test", 10)):
        lines = Path(resolve_path(f"embedded:tiny/{name}.jsonl")).read_text().splitlines()
        (folder / f"{name}.jsonl").write_text("\n".join(lines[::share]) + "\n")
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
def one_process(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run on one process."""
    return _undisturbed(1, settings, tmp_path_factory)


@pytest.fixture(scope="session")
def two_processes(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run on two processes that Lightning starts."""
    return _undisturbed(2, settings, tmp_path_factory)


def _undisturbed(devices: int, settings: tuple[str, ...], places: pytest.TempPathFactory) -> Path:
    folder = places.mktemp(f"on_{devices}")
    with train("lightning", devices, folder, *settings) as ranks:
        check_all_ended_well(ranks.wait())
    return run_of(folder)
