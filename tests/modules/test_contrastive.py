import math
import os
import weakref
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

from hrsa_lightning.errors import HRSAWarning
from hrsa_lightning.losses import InfoNCELoss
from hrsa_lightning.modules import ContrastiveModule, PairedContrastiveModule
from hrsa_lightning.modules.checkpoints import newest_checkpoint
from hrsa_lightning.modules.gradient_sync import FullyShardedStrategy
from tests.allocations import peak_bytes
from tests.contrastive_runs import GradientLog, fit, make_arm, trained_weights, write_pairs
from tests.tiny import make_backbone


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    write_pairs(folder / "pairs.jsonl")
    make_arm(folder / "backbone")
    return folder


def _module(place, arms=("base", "other"), dropout=0.2, lr=1e-2, lora=(), **options):
    seeds = {"base": 1, "other": 2}
    own = {} if lora == () else {"lora": lora}
    built = {name: make_arm(place / "backbone", seeds[name], dropout, **own) for name in arms}
    return PairedContrastiveModule(built, seeds=seeds, lr=lr, **options)


def _gradients(place, folder, *, trainer=None, **options):
    log = GradientLog()
    module = _module(place, **options)
    fit(module, place / "pairs.jsonl", folder, callbacks=(log,), **(trainer or {"max_steps": 1}))
    return log.steps


def _worst_difference(a, b):
    """Largest absolute difference, relative to the largest gradient of the run."""
    assert a.keys() == b.keys()
    scale = max(value.abs().max() for value in a.values())
    assert scale > 0
    return max(float((a[name] - b[name]).abs().max() / scale) for name in a)


def test_an_arm_ends_with_the_same_bits_alone_and_beside_others(place, tmp_path):
    together = _module(place)
    fit(together, place / "pairs.jsonl", tmp_path, gradient_clip_val=0.1)
    for name in ("base", "other"):
        alone = _module(place, arms=(name,))
        fit(alone, place / "pairs.jsonl", tmp_path, gradient_clip_val=0.1)
        expected = trained_weights(alone, name)
        found = trained_weights(together, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        start = dict(make_arm(place / "backbone", {"base": 1, "other": 2}[name]).named_parameters())
        assert any(not torch.equal(found[key], start[key]) for key in expected)


def test_an_arms_graph_is_gone_before_the_next_arm_begins(place, tmp_path):
    earlier = []

    class Watched(InfoNCELoss):
        def forward(self, queries, *others):
            assert all(graph() is None for graph in earlier)
            earlier.append(weakref.ref(queries))
            return super().forward(queries, *others)

    module = _module(place, loss=Watched())
    fit(module, place / "pairs.jsonl", tmp_path, max_steps=2)
    assert len(earlier) == 4


def test_the_regularizer_is_added_with_its_weight_and_the_step(place, tmp_path):
    steps = []

    class Size(torch.nn.Module):
        def forward(self, embeddings, step):
            steps.append(step)
            assert embeddings.shape[0] == 8 * (1 + 3)
            return embeddings.square().sum() / len(embeddings)  # 1, since they are normalized

    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    for options in ({}, {"regularizer": Size(), "regularizer_weight": 0.25}):
        module = _module(place, arms=("base",), lr=0.0, **options)
        fit(module, place / "pairs.jsonl", tmp_path, max_steps=2, callbacks=(Losses(),))
    assert steps == [0, 1]
    assert losses[2] - losses[0] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"lora": None, "dropout": 0.0}])
def test_seeds_make_arms_of_one_backbone_differ(place, tmp_path, options):
    module = _module(place, **options)
    fit(module, place / "pairs.jsonl", tmp_path)
    base, other = trained_weights(module, "base"), trained_weights(module, "other")
    assert any(not torch.equal(base[name], other[name]) for name in base)


@pytest.mark.parametrize("budget", [0, 60_000, 10**12, "auto"])
def test_any_budget_gives_the_plain_gradient_with_dropout_on(place, tmp_path, budget):
    plain = _gradients(place, tmp_path, max_tokens_per_chunk=64)
    cached = _gradients(place, tmp_path, max_tokens_per_chunk=64, activation_budget=budget)
    assert _worst_difference(plain[0], cached[0]) < 1e-5


@pytest.mark.parametrize("max_tokens", [1, 50, 200])
def test_any_chunking_gives_the_full_batch_gradient(place, tmp_path, max_tokens):
    whole = _gradients(place, tmp_path, dropout=0.0)
    chunked = _gradients(
        place, tmp_path, dropout=0.0, max_tokens_per_chunk=max_tokens, activation_budget=0
    )
    assert _worst_difference(whole[0], chunked[0]) < 1e-5


def test_accumulation_is_the_mean_over_its_batches(place, tmp_path):
    options = {"max_steps": 1, "accumulate_grad_batches": 3}
    plain = _gradients(place, tmp_path, trainer=options, max_tokens_per_chunk=64)
    cached = _gradients(
        place, tmp_path, trainer=options, max_tokens_per_chunk=64, activation_budget=0
    )
    assert _worst_difference(plain[0], cached[0]) < 1e-5


def test_bf16_mixed_precision_agrees_between_modes(place, tmp_path):
    options = {"max_steps": 1, "precision": "bf16-mixed"}
    plain = _gradients(place, tmp_path, trainer=options, max_tokens_per_chunk=64)[0]
    cached = _gradients(
        place, tmp_path, trainer=options, max_tokens_per_chunk=64, activation_budget=60_000
    )[0]
    a = torch.cat([value.flatten() for value in plain.values()])
    b = torch.cat([cached[name].flatten() for name in plain])
    assert torch.cosine_similarity(a, b, dim=0) > 0.999


def test_frozen_weights_in_bfloat16_train_the_same_adapters(place, tmp_path):
    trained = []
    for cast in (False, True):
        module = _module(place)
        for arm in module.named_arms().values():
            if cast:
                arm.cast_frozen_weights(torch.bfloat16)
        fit(module, place / "pairs.jsonl", tmp_path, precision="bf16-mixed")
        module.arms["base"].save_adapter(tmp_path / f"adapter{cast}")
        trained.append(load_file(tmp_path / f"adapter{cast}" / "adapter_model.safetensors"))
    plain, same = trained
    assert {weight.dtype for weight in same.values()} == {torch.float32}
    assert all(torch.equal(plain[name], same[name]) for name in plain)


class _PoolEnvironment(ClusterEnvironment):
    """Processes that exist already and are joined already."""

    def __init__(self, rank, world_size):
        self._rank, self._world_size = rank, world_size

    @property
    def creates_processes_externally(self):
        return True

    @property
    def main_address(self):
        return "localhost"

    @property
    def main_port(self):
        return 0

    @staticmethod
    def detect():
        return False

    def world_size(self):
        return self._world_size

    def set_world_size(self, size):
        pass

    def global_rank(self):
        return self._rank

    def set_global_rank(self, rank):
        pass

    def local_rank(self):
        return self._rank

    def node_rank(self):
        return 0


def _pool_strategy(kind, rank, world_size):
    os.environ["HF_HUB_OFFLINE"] = "1"
    strategy = DDPStrategy() if kind == "ddp" else FullyShardedStrategy()
    strategy.cluster_environment = _PoolEnvironment(rank, world_size)
    return {"devices": world_size, "strategy": strategy}


def _gradients_on_rank(rank, world_size, place, folder, options, accumulate=1, kind="ddp"):
    trainer = {
        "max_steps": 1,
        "accumulate_grad_batches": accumulate,
        **_pool_strategy(kind, rank, world_size),
    }
    return _gradients(place, folder, trainer=trainer, **{"dropout": 0.0, **options})[0]


@pytest.mark.ddp
@pytest.mark.parametrize("options", [{}, {"max_tokens_per_chunk": 40, "activation_budget": 0}])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_give_the_gradient_of_one_process(ddp_pool, place, tmp_path, options, accumulate):
    single = {"max_steps": 1, "accumulate_grad_batches": accumulate}
    expected = _gradients(place, tmp_path, trainer=single, dropout=0.0)[0]
    for found in ddp_pool.run(_gradients_on_rank, place, tmp_path, options, accumulate):
        assert _worst_difference(expected, found) < 1e-4


@pytest.mark.ddp
def test_four_ranks_in_chunks_give_the_gradient_of_one_process(ddp_pool4, place, tmp_path):
    expected = _gradients(place, tmp_path, dropout=0.0)[0]
    options = {"max_tokens_per_chunk": 30, "activation_budget": 60_000}
    for found in ddp_pool4.run(_gradients_on_rank, place, tmp_path, options):
        assert _worst_difference(expected, found) < 1e-4


@pytest.mark.ddp
@pytest.mark.parametrize("budget", [0, 60_000])
def test_with_dropout_any_budget_gives_the_plain_gradient_of_as_many_ranks(
    ddp_pool, place, tmp_path, budget
):
    # Ranks draw masks of their own, so that dropout differs between numbers of ranks.
    plain, cached = (
        ddp_pool.run(
            _gradients_on_rank, place, tmp_path, {"dropout": 0.2, "max_tokens_per_chunk": 40, **own}
        )
        for own in ({}, {"activation_budget": budget})
    )
    for rank in range(2):
        assert _worst_difference(plain[rank], cached[rank]) < 1e-4


@pytest.mark.ddp
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens_per_chunk": 40, "activation_budget": 0},
        {"max_tokens_per_chunk": 40, "activation_budget": 60_000},
        {"max_tokens_per_chunk": 40, "activation_budget": 0, "arms": ("base",), "lora": None},
    ],
)
def test_sharded_ranks_give_the_gradient_of_one_process(ddp_pool, place, tmp_path, options):
    own = {key: value for key, value in options.items() if key in ("arms", "lora")}
    expected = _gradients(place, tmp_path, dropout=0.0, **own)[0]
    for found in ddp_pool.run(_gradients_on_rank, place, tmp_path, options, 1, "fsdp2"):
        assert _worst_difference(expected, found) < 1e-4


def _bf16_gradients(place, folder, trainer):
    log = GradientLog()
    module = _module(place, dropout=0.0, arms=("base",))
    module.arms["base"].cast_frozen_weights(torch.bfloat16)
    options = {"max_steps": 1, "precision": "bf16-mixed", **trainer}
    fit(module, place / "pairs.jsonl", folder, callbacks=(log,), **options)
    return torch.cat([value.flatten() for value in log.steps[0].values()])


def _bf16_gradients_on_rank(rank, world_size, place, folder):
    return _bf16_gradients(place, folder, _pool_strategy("fsdp2", rank, world_size))


@pytest.mark.ddp
def test_sharded_ranks_take_frozen_weights_in_bfloat16(ddp_pool, place, tmp_path):
    expected = _bf16_gradients(place, tmp_path, {})
    for found in ddp_pool.run(_bf16_gradients_on_rank, place, tmp_path):
        assert torch.cosine_similarity(expected, found, dim=0) > 0.999


def test_clipping_is_per_arm(place, tmp_path):
    log = GradientLog()
    module = _module(place)
    fit(module, place / "pairs.jsonl", tmp_path, callbacks=(log,), max_steps=1)
    norms = {
        arm: math.sqrt(
            sum(float(g.square().sum()) for n, g in log.steps[0].items() if f"arms.{arm}." in n)
        )
        for arm in ("base", "other")
    }
    limit = min(norms.values()) / 2
    module = _module(place)

    class Clipped(GradientLog):
        def on_before_zero_grad(self, trainer, module, optimizer):
            self.on_before_optimizer_step(trainer, module, optimizer)

    clipped = Clipped()
    fit(
        module,
        place / "pairs.jsonl",
        tmp_path,
        callbacks=(clipped,),
        max_steps=1,
        gradient_clip_val=limit,
    )
    for arm in ("base", "other"):
        norm = math.sqrt(
            sum(
                float(p.grad.square().sum())
                for p in module.arms[arm].parameters()
                if p.grad is not None
            )
        )
        assert norm == pytest.approx(limit, rel=1e-3)


def _saver(folder):
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="step_{step:06d}",
        auto_insert_metric_name=False,
        every_n_train_steps=2,
        save_top_k=-1,
    )
    saver.FILE_EXTENSION = ""
    return saver


def _whole_and_resumed(place, folder, trainer=dict, **module_options):
    """Trained weights after five steps, undisturbed and resumed from the second."""
    checkpoints = folder / "checkpoints"
    trained = []
    for start in (None, checkpoints / "step_000002"):
        module = _module(place, **module_options)
        fit(
            module,
            place / "pairs.jsonl",
            folder,
            callbacks=(_saver(checkpoints),),
            ckpt_path=start,
            max_steps=5,
            max_epochs=-1,
            enable_checkpointing=True,
            **trainer(),
        )
        trained.append({arm: trained_weights(module, arm) for arm in module.arms})
        if start is None:
            assert newest_checkpoint(folder) == checkpoints / "step_000004"
    return trained


def test_resuming_gives_the_weights_of_an_undisturbed_run(place, tmp_path):
    whole, resumed = _whole_and_resumed(place, tmp_path)
    for arm, expected in whole.items():
        assert all(torch.equal(resumed[arm][key], expected[key]) for key in expected)


def _resume_on_rank(rank, world_size, place, folder, lora):
    return _whole_and_resumed(
        place,
        folder,
        lambda: _pool_strategy("fsdp2", rank, world_size),
        arms=("base",),
        lora=lora,
    )


@pytest.mark.ddp
@pytest.mark.parametrize("lora", [{"r": 4, "lora_dropout": 0.0}, None])
def test_sharded_runs_resume_to_the_weights_of_an_undisturbed_run(ddp_pool, place, tmp_path, lora):
    for whole, resumed in ddp_pool.run(_resume_on_rank, place, tmp_path, lora):
        expected, found = whole["base"], resumed["base"]
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    # What it wrote is of one piece: a run in one process goes on from it.
    module = _module(place, arms=("base",), lora=lora)
    fit(
        module,
        place / "pairs.jsonl",
        tmp_path,
        callbacks=(_saver(tmp_path / "checkpoints"),),
        ckpt_path=tmp_path / "checkpoints" / "step_000004",
        max_steps=5,
        max_epochs=-1,
        enable_checkpointing=True,
    )
    found = trained_weights(module, "base")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


class _CheckpointMemory(Callback):
    """Bytes that saving and resuming take beside the training state, and sizes to compare with."""

    def on_train_end(self, trainer, module):
        path = Path(trainer.default_root_dir) / "measured"
        self.saving = peak_bytes(lambda: trainer.save_checkpoint(path))
        checkpoint = trainer.strategy.load_checkpoint(path)  # maps the file, see test_checkpoints
        self.loading = peak_bytes(lambda: self._load(trainer, checkpoint))
        weights = list(module.parameters())
        self.largest = max(weight.nbytes for weight in weights)
        self.share = sum(weight.to_local().nbytes for weight in weights)

    def _load(self, trainer, checkpoint):
        trainer.strategy.load_model_state_dict(checkpoint)
        trainer.strategy.load_optimizer_state_dict(checkpoint)


def _checkpoint_memory_on_rank(rank, world_size, place, folder):
    memory = _CheckpointMemory()
    module = ContrastiveModule(make_arm(folder / "backbone", lora=None))
    strategy = _pool_strategy("fsdp2", rank, world_size)
    fit(module, place / "pairs.jsonl", folder, callbacks=(memory,), max_steps=1, **strategy)
    return {name: getattr(memory, name) for name in ("saving", "loading", "largest", "share")}


@pytest.mark.ddp
def test_sharded_checkpoints_take_a_rank_its_share_and_one_tensor(ddp_pool, place, tmp_path):
    make_backbone(tmp_path / "backbone", hidden=64, layers=4)
    first, other = ddp_pool.run(_checkpoint_memory_on_rank, place, tmp_path)
    assert other["share"] > 1.5 * other["largest"]  # or it would prove nothing
    assert other["saving"] < 1.1 * other["largest"]
    assert other["loading"] < 2 * other["share"] + 1.1 * other["largest"]  # the moments come anew
    # Rank 0 holds what it writes, weights and two moments of both ranks, once.
    assert first["saving"] < 3.1 * (first["share"] + other["share"]) + first["largest"]


def test_full_fine_tuning_saves_every_weight(place, tmp_path):
    model = make_arm(place / "backbone", lora=None)
    module = ContrastiveModule(model, loss=InfoNCELoss(0.1), lr=1e-3)
    trainer = fit(module, place / "pairs.jsonl", tmp_path, max_steps=1)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == trained
    assert trainer.global_step == 1


def test_unknown_schedule_is_refused(place):
    with pytest.raises(ValueError, match="schedule: expected one of cosine, constant, got 'lin'"):
        _module(place, schedule="lin")


def test_a_loss_that_is_not_finite_is_said_at_once_and_at_the_end(place, tmp_path):
    module = _module(place)

    class Spoiler(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 1:
                with torch.no_grad():
                    next(p for p in module.arms["other"].parameters() if p.requires_grad).fill_(
                        torch.nan
                    )

    with pytest.warns(HRSAWarning) as caught:
        fit(module, place / "pairs.jsonl", tmp_path, max_steps=4, callbacks=(Spoiler(),))
    said = [str(w.message) for w in caught if w.category is HRSAWarning]
    assert len(said) == 2
    assert said[0].startswith("loss of other: not finite at step 2")
    assert said[1].startswith("loss of other: not finite from step 2 on; discard this run")
