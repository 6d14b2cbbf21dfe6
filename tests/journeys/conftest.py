"""One tiny run on one process, which all others are compared with."""

from pathlib import Path

import pytest

from hrsa_lightning.resources import resolve_path
from tests.journeys.processes import train

SETTINGS = (
    "recipe=quickstart",
    "arms={base: {backbone: 'embedded:tiny/base'}, rlvr: {backbone: 'embedded:tiny/rlvr'}}",
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
def one_process(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the undisturbed run on one process."""
    folder = tmp_path_factory.mktemp("one")
    with train("lightning", 1, folder, *settings) as ranks:
        (ended,) = ranks.wait()
    assert ended.code == 0, ended.text
    (run,) = folder.glob("runs/quickstart/*")
    return run
