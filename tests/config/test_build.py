"""From the recipe's `loss` and `trainer.strategy` to objects, and the answers to what cannot be."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import SingleDeviceStrategy

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.config.build import (
    build_arms,
    build_callbacks,
    build_data,
    build_loss,
    build_module,
    build_trainer,
)
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.losses import DebiasedInfoNCELoss, InfoNCELoss, MatryoshkaLoss, SIGRegLoss
from hrsa_lightning.modules.gradient_sync import FullyShardedStrategy


def _config(*overrides):
    return load_config("quickstart", list(overrides))


def test_default_is_infonce_alone():
    loss, regularizer = build_loss(_config().loss)
    assert type(loss) is InfoNCELoss
    assert regularizer is None
    assert loss.temperature == 0.02


def test_every_key_reaches_its_class():
    config = _config(
        "loss.temperature=0.05",
        "loss.symmetric=true",
        "loss.same_side_negatives=true",
        "loss.false_negative_margin=0.1",
        "loss.hardness=9",
        "loss.mask_duplicates=false",
        "loss.gather_distributed=false",
        "loss.matryoshka=[128,64]",
        "loss.matryoshka_weights=[1,0.5]",
        "loss.sigreg.num_slices=8",
    )
    outer, regularizer = build_loss(config.loss)
    assert isinstance(outer, MatryoshkaLoss)
    assert (outer.dims, outer.weights) == ([128, 64], [1.0, 0.5])
    inner = outer.loss
    assert isinstance(inner, InfoNCELoss)
    assert (inner.temperature, inner.false_negative_margin, inner.hardness) == (0.05, 0.1, 9.0)
    assert inner.symmetric
    assert inner.same_side_negatives
    assert not inner.mask_duplicates
    assert not inner.gather_distributed
    assert isinstance(regularizer, SIGRegLoss)
    assert (regularizer.num_slices, regularizer.num_knots) == (8, 17)
    assert not regularizer.gather_distributed
    assert config.loss.sigreg.weight == 0.05


def test_debiased_loss_is_a_choice():
    loss, _ = build_loss(_config("loss.name=debiased", "loss.tau_plus=0.2").loss)
    assert isinstance(loss, DebiasedInfoNCELoss)
    assert loss.tau_plus == 0.2


def test_a_saved_recipe_gives_the_same_loss(tmp_path):
    config = _config("loss.matryoshka=[128]", "loss.sigreg.weight=0.1")
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(str(saved)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.name=infonse"], "loss.name: expected infonce or debiased, got 'infonse'"),
        (["loss.name=debiased", "loss.symmetric=true"], "loss.symmetric: belongs to loss.name=inf"),
        (["loss.tau_plus=0.3"], "loss.tau_plus: belongs to loss.name=debiased, got infonce"),
        (
            ["loss.name=debiased", "loss.tau_plus=1"],
            "loss.tau_plus: expected a value in [0, 1), got 1",
        ),
        (["loss.hardness=-1"], "loss.hardness: expected a value in [0, 1000], got -1"),
        (["loss.matryoshka=[0]"], "loss.matryoshka: expected a value in [1, 1e6], got 0"),
        (["loss.matryoshka_weights=[1]"], "loss.matryoshka_weights: expected one per size"),
        (["loss.sigreg.weight=0"], "loss.sigreg.weight: expected a value in (0, 1e6], got 0"),
        (["loss.joint=true"], "loss.joint: expected loss.symmetric=true beside it, got false"),
        (
            ["loss.alignment.reference=arm:bas"],
            "loss.alignment.reference: expected arm:base or arm:rlvr or arm:sft or arm:base_seed2,",
        ),
        (
            ["loss.alignment.direction=away"],
            "loss.alignment.direction: expected pull or push, got 'away'",
        ),
        (["loss.sigreg.num_slice=8"], "Did you mean 'num_slices'?"),
        (["model.quantization=nf8"], "model.quantization: expected nf4, got 'nf8'"),
        (["model.quantization=nf4", "model.lora=null"], "model.quantization: trains adapters only"),
        (["data.weights=[1]"], "data.weights: expected one per file of data.train, 3, got 1"),
        (["data.weights=[0,0,0]"], "data.weights: expected one above 0, got [0.0"),
        (["data.weights=[1,1,1]", "data.source_temperature=2"], "data.weights: expected null"),
        (
            ["data.source_temperature=0"],
            "data.source_temperature: expected a value in (0, 1e9], got 0",
        ),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(overrides, message):
    with pytest.raises(ConfigError) as caught:
        _config(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_arm_is_no_reference_of_a_single_one():
    single = [f"arms.{name}=null" for name in ("rlvr", "sft", "base_seed2")]
    with pytest.raises(ConfigError, match=r"alignment.reference: expected another arm, got 'arm:"):
        _config(*single, "loss.alignment.reference=arm:base")
    few = ["data.batch_size=1", "data.train_group_size=1", "loss.alignment={}"]
    with pytest.raises(ConfigError, match=r"loss\.alignment: expected 4 texts or more in a batch"):
        _config(*few)


@pytest.mark.parametrize("reference", ["initial", "arm:base", "embedded:tiny/sft"])
def test_alignment_with_each_kind_of_reference(reference):
    config = _config(
        *("arms.rlvr=null", "arms.base_seed2=null", f"loss.alignment.reference={reference}"),
        *("loss.alignment.weight=0.5", "loss.alignment.direction=push"),
    )
    arms = build_arms(config)
    module = build_module(config, arms)
    alignment = module.alignment
    assert (alignment.weight, alignment.loss.direction) == (0.5, "push")
    assert alignment.order(arms) == ["base", "sft"]
    assert set(module.encoders()) - set(arms) == (
        {"loss.alignment"} if reference.startswith("embedded") else set()
    )
    assert len(build_data(config, module.encoders()).train_dataloader()) > 0


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("trainer.strategy=ddd", "trainer: "),
        ("trainer.strategy.timeout=3", "trainer.strategy: expected a name or a mapping with _targ"),
    ],
)
def test_strategies_that_cannot_be_had(tmp_path, strategy, message):
    with pytest.raises(ConfigError, match=message):
        build_trainer(_config(strategy), tmp_path, [])


@pytest.mark.parametrize(
    "strategy",
    [
        "trainer.strategy=deepspeed",
        "trainer.strategy=deepspeed_stage_2",
        "trainer.strategy=deepspeed_stage_3_offload",
        "trainer.strategy._target_=lightning.pytorch.strategies.DeepSpeedStrategy",
        "trainer.strategy=fsdp",
        "trainer.strategy=fsdp_cpu_offload",
        "trainer.strategy._target_=lightning.pytorch.strategies.FSDPStrategy",
        "trainer.strategy._target_=pytorch_lightning.strategies.ModelParallelStrategy",
    ],
)
def test_other_sharding_is_refused_with_the_recipe(strategy):
    with pytest.raises(ConfigError, match=r"trainer\.strategy: expected fsdp2 to shard") as caught:
        _config(strategy)
    assert strategy.partition("=")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.bfloat16), ("16", torch.float16), ("32-true", torch.float32)],
)
def test_frozen_weights_have_the_dtype_they_are_multiplied_in(precision, dtype):
    config = load_config("quickstart", [f"trainer.precision={precision}"])
    for arm in build_arms(config).values():
        named = dict(arm.named_parameters())
        assert {p.dtype for n, p in named.items() if "base_layer.weight" in n} == {dtype}
        assert {p.dtype for n, p in named.items() if "lora_" in n} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (["trainer.strategy=fsdp2", "trainer.devices=1"], FullyShardedStrategy),
        (
            [
                "trainer.strategy._target_=lightning.pytorch.strategies.SingleDeviceStrategy",
                "trainer.strategy.device=cpu",
            ],
            SingleDeviceStrategy,
        ),
    ],
)
def test_strategies_by_name_and_by_class(tmp_path, settings, kind):
    trainer = build_trainer(_config(*settings), tmp_path, [])
    assert type(trainer.strategy) is kind


def test_time_is_up_for_a_start_and_not_for_the_run(tmp_path):
    trainer = build_trainer(_config("trainer.max_time=01:02:03:04"), tmp_path, [])
    assert not any(isinstance(callback, Timer) for callback in trainer.callbacks)
    (checkpoint,) = trainer.checkpoint_callbacks
    assert checkpoint.max_time == timedelta(days=1, hours=2, minutes=3, seconds=4)


@pytest.mark.parametrize("name", ["LearningRateFinder", "BatchSizeFinder"])
def test_callbacks_that_cannot_be_resumed_are_refused(name):
    config = _config(f"callbacks.search._target_=lightning.pytorch.callbacks.{name}")
    with pytest.raises(ConfigError, match=rf"callbacks.search._target_: expected .* got .*{name}"):
        build_callbacks(config)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_arms_of_one_backbone_share_what_is_frozen(precision):
    arms = build_arms(load_config("quickstart", [f"trainer.precision={precision}"]))
    base, twin, other = (dict(arms[a].named_parameters()) for a in ("base", "base_seed2", "rlvr"))
    frozen = {name for name, weight in base.items() if not weight.requires_grad}
    assert {name for name in base if base[name] is twin[name]} == frozen
    assert not any(base[name] is other[name] for name in base)
    assert any(not torch.equal(base[name], twin[name]) for name in base.keys() - frozen)
    torch.nn.ModuleDict(arms).to(torch.float64)  # as to a device
    moved = dict(arms["base_seed2"].named_parameters())
    assert all(
        moved[name] is weight for name, weight in arms["base"].named_parameters() if name in frozen
    )
