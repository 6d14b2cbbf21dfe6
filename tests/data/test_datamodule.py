import multiprocessing
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from hrsa_lightning.data import ContrastiveDataModule
from hrsa_lightning.errors import DataError
from tests.data.helpers import CodeTokenizer, write_pairs

# Lightning 2.6 builds its loaders with a name of torch's pytree that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

SIZES = {"a": 9, "b": 14}  # 23 examples: 5 batches of 4
NUM_BATCHES = 5


class Recorder(LightningModule):
    """Learns nothing to speak of; records what each batch held, and random numbers beside it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        _, tokens = batch.tokens("base")
        assert tokens.ids.device == self.device
        self.seen.append((batch.query_ids.tolist(), batch.passage_ids.tolist()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def stub_trainer(rank, world_size, device="cpu"):
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)


def make_data(folder, **options):
    defaults = {"batch_size": 4, "train_group_size": 3, "seed": 5}
    return ContrastiveDataModule(
        write_pairs(folder, SIZES),
        {"base": CodeTokenizer(), "rlvr": CodeTokenizer()},
        **(defaults | options),
    )


def make_trainer(folder, callbacks=(), **options):
    defaults = {"max_epochs": 3}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **(defaults | options),
    )


def fit(folder, num_workers=0, checkpoint=None, callbacks=(), **options):
    module = Recorder()
    trainer = make_trainer(folder, callbacks, **options)
    trainer.fit(module, make_data(folder, num_workers=num_workers), ckpt_path=checkpoint)
    return module.seen


class Saver(Callback):
    """Saves as ModelCheckpoint does and when it does, but has no state that must be restored."""

    def __init__(self, folder, when="step"):
        self.folder, self.when = folder / "checkpoints", when

    def on_train_batch_end(self, trainer, *_):
        if self.when == "step":
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, *_):
        if self.when == "epoch":
            trainer.save_checkpoint(self.folder / f"epoch={trainer.current_epoch}.ckpt")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Everything an undisturbed run saw, and the folder of its checkpoints, one per step."""
    folder = tmp_path_factory.mktemp("run")
    return fit(folder, callbacks=[Saver(folder)]), folder / "checkpoints"


def test_loader_alone_gives_what_the_trainer_saw(tmp_path, whole_run):
    seen, _ = whole_run
    loader = make_data(tmp_path).train_dataloader()
    alone = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        alone += [(b.query_ids.tolist(), b.passage_ids.tolist()) for b in loader]
    assert len(loader) == NUM_BATCHES
    assert alone == seen
    epochs = [seen[start : start + NUM_BATCHES] for start in range(0, len(seen), NUM_BATCHES)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_workers_change_nothing(tmp_path, whole_run):
    assert fit(tmp_path, num_workers=2) == whole_run[0]


@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 14])
def test_resume_after_any_step(tmp_path, whole_run, step):
    seen, checkpoints = whole_run
    assert fit(tmp_path, checkpoint=checkpoints / f"step={step}.ckpt") == seen[step:]


def test_resume_with_workers(tmp_path, whole_run):
    seen, checkpoints = whole_run
    checkpoint = checkpoints / "step=7.ckpt"
    assert fit(tmp_path, num_workers=2, checkpoint=checkpoint) == seen[7:]


def test_resume_from_a_run_with_workers(tmp_path, whole_run):
    # Workers prefetch four batches; those are not in the trainer's hands yet.
    fit(tmp_path, num_workers=2, callbacks=[Saver(tmp_path)], max_epochs=1)
    assert (
        fit(tmp_path, checkpoint=tmp_path / "checkpoints" / "step=2.ckpt", max_epochs=3)
        == whole_run[0][2:]
    )


@pytest.mark.parametrize("step", [3, 5, 7])
def test_resume_when_steps_are_counted_instead_of_epochs(tmp_path, whole_run, step):
    seen, checkpoints = whole_run
    options = {"max_epochs": -1, "max_steps": 12, "checkpoint": checkpoints / f"step={step}.ckpt"}
    assert fit(tmp_path, **options) == seen[step:12]


def test_resume_from_the_end_of_an_epoch(tmp_path, whole_run):
    # Only without max_steps: with it, Lightning 2.6 takes one batch more in the finished epoch.
    fit(tmp_path, callbacks=[Saver(tmp_path, "epoch")])
    checkpoint = tmp_path / "checkpoints" / "epoch=0.ckpt"
    assert fit(tmp_path, checkpoint=checkpoint) == whole_run[0][NUM_BATCHES:]


def test_a_run_stopped_twice_in_one_epoch(tmp_path, whole_run):
    seen, checkpoints = whole_run
    fit(
        tmp_path,
        checkpoint=checkpoints / "step=6.ckpt",
        callbacks=[Saver(tmp_path)],
        max_epochs=2,
    )
    assert fit(tmp_path, checkpoint=tmp_path / "checkpoints" / "step=8.ckpt") == seen[8:]


def test_loading_draws_no_global_random_numbers(tmp_path):
    loader = make_data(tmp_path).train_dataloader()
    before = torch.random.get_rng_state()
    list(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_is_plain_and_names_what_changed(tmp_path):
    loader = make_data(tmp_path).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    assert state["batches"] == 1
    torch.save(state, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    with pytest.raises(DataError, match=r"nothing here: seed was 5 and is 6; batch_size was 4 and"):
        make_data(tmp_path, seed=6, batch_size=2).train_dataloader().load_state_dict(state)


def test_state_between_two_epochs_starts_the_next_one(tmp_path):
    loader = make_data(tmp_path).train_dataloader()
    list(loader)
    loader.sampler.set_epoch(1)
    resumed = make_data(tmp_path).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == NUM_BATCHES


def test_teardown_stops_the_workers(tmp_path):
    before = multiprocessing.active_children()  # a pool of ranks, if other tests started one
    data = make_data(tmp_path, num_workers=1)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(Recorder(), data)
    assert set(multiprocessing.active_children()) <= set(before)


def test_batch_size_is_checked_before_and_when_ranks_are_known(tmp_path):
    with pytest.raises(DataError, match="batch_size is 24, but there are only 23"):
        make_data(tmp_path, batch_size=24)
    data = make_data(tmp_path, batch_size=3)
    data.trainer = stub_trainer(0, 2)
    with pytest.raises(DataError, match="multiple of their number, 2, got 3"):
        data.train_dataloader()


def test_datamodule_pickles(tmp_path):
    data = make_data(tmp_path)
    copy = pickle.loads(pickle.dumps(data))
    first, second = (next(iter(d.train_dataloader())) for d in (data, copy))
    assert torch.equal(first.passage_ids, second.passage_ids)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_have_the_batches_of_one_process(tmp_path, whole_run, world_size):
    ranks = []
    for rank in range(world_size):
        data = make_data(tmp_path)
        data.trainer = stub_trainer(rank, world_size)
        ranks.append(list(data.train_dataloader()))
    for batches, (query_ids, passage_ids) in zip(
        zip(*ranks, strict=True), whole_run[0][:NUM_BATCHES], strict=True
    ):
        assert torch.cat([batch.query_ids for batch in batches]).tolist() == query_ids
        assert torch.cat([batch.passage_ids for batch in batches]).tolist() == passage_ids


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_a_few_batches_sees_the_same_ones_in_each_epoch(tmp_path):
    module = Recorder()
    trainer = Trainer(
        overfit_batches=2,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=make_data(tmp_path))
    assert module.seen[:2] == module.seen[2:4] == module.seen[4:]
    assert module.seen[0] != module.seen[1]
