"""Estimates against what training really holds, on small models."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer

from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import build_arms, build_data, build_module
from hrsa_lightning.models import EmbeddingModel
from hrsa_lightning.models.chunks import length_sorted_chunks
from hrsa_lightning.modules import gradcache
from hrsa_lightning.plan.backbone import KNOWN, backbone_config, measure_backbone
from hrsa_lightning.plan.estimate import RUNTIME_BYTES, estimate, workload_of
from tests.allocations import peak_bytes
from tests.tiny import make_backbone

BASE = ["arms.rlvr=null", "arms.sft=null", "arms.base_seed2=null", "callbacks.retrieval=null"]
TEXTS, WIDTH = 6, 40

# Weights and those outside of embeddings, in billions, as the model cards state them.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": (0.49, 0.36),
    "Qwen/Qwen2.5-1.5B": (1.54, 1.31),
    "Qwen/Qwen3-0.6B-Base": (0.6, 0.44),
    "Qwen/Qwen3-4B": (4.0, 3.6),
    "HuggingFaceTB/SmolLM2-135M": (0.1345, 0.1062),
    "allenai/OLMo-2-0425-1B": (1.4849, 1.0739),
    "Qwen/Qwen2.5-7B": (7.61, 6.53),
    "Qwen/Qwen2.5-14B": (14.7, 13.1),
    "Qwen/Qwen2.5-32B": (32.5, 31.0),
    "Qwen/Qwen2.5-72B": (72.7, 70.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_shapes_have_the_published_numbers_of_weights(name):
    config = backbone_config(name)
    total = measure_backbone(config, dtype=torch.float32, lora=None, width=2).num_weights
    embedding = config.vocab_size * config.hidden_size
    published, without_embedding = PUBLISHED[name]
    assert (total - embedding) / 1e9 == pytest.approx(without_embedding, rel=0.015)
    # A head of its own, which we leave out, is the size of the embedding.
    tied = published < 1.2 or name in ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-4B")
    with_head = total if tied else total + embedding
    assert with_head / 1e9 == pytest.approx(published, rel=0.015)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone"), hidden=64, layers=3)


@pytest.mark.parametrize(
    ("lora", "autocast"),
    [
        (None, None),
        (None, torch.bfloat16),
        ({"r": 4, "lora_dropout": 0.0}, torch.bfloat16),
        ({"r": 4, "lora_dropout": 0.1}, None),
    ],
)
def test_counted_activations_are_those_of_a_real_chunk(backbone, lora, autocast):
    """To 4 %: pooling and normalization are not counted, which weigh little beside layers."""
    model = EmbeddingModel.from_pretrained(backbone, lora=lora, seed=0)
    if autocast is not None:
        model.cast_frozen_weights(autocast)
    tokens = torch.ones(TEXTS, WIDTH, dtype=torch.long)
    mask = torch.ones_like(tokens)
    mask[0, WIDTH // 2 :] = 0
    with (
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None),
        gradcache._saved_bytes(list(model.parameters())) as saved,
    ):
        output = model(tokens, mask)
    measured = sum(saved.values())
    del output
    sizes = measure_backbone(
        backbone_config(str(backbone)),
        dtype=torch.float32,
        lora=lora,
        width=WIDTH,
        autocast=autocast,
    )
    assert sizes.graph_bytes(TEXTS) == pytest.approx(measured, rel=0.04)
    assert sizes.num_weights == sum(p.numel() for p in model.parameters())
    assert sizes.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_weights_gradients_and_optimizer_are_those_of_a_real_step(backbone):
    config = load_config("quickstart", [*BASE, f"arms.base.backbone={backbone}"])
    plan = estimate(config, workload_of(config))
    assert config.model.lora is not None
    model = EmbeddingModel.from_pretrained(backbone, lora=dataclasses.asdict(config.model.lora))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert plan.memory["weights"] == sum(p.nbytes for p in model.parameters())
    assert plan.memory["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert plan.memory["optimizer"] == sum(t.nbytes for t in moments)


def _plan(*overrides, **options):
    config = load_config("quickstart", [*BASE, *overrides])
    return estimate(config, workload_of(config, **options))


def test_a_budget_bounds_kept_graphs_and_costs_forward_passes():
    free = _plan()
    tight = _plan("activation_budget=0")
    half = _plan(f"activation_budget={int(free.memory['kept graphs'] / 2)}")
    assert tight.memory["kept graphs"] == 0
    assert half.memory["kept graphs"] == pytest.approx(free.memory["kept graphs"] / 2, rel=1e-6)
    assert "graph of a chunk" not in free.memory
    assert tight.memory["graph of a chunk"] > 0
    checkpointed = _plan("activation_budget=0", "model.gradient_checkpointing=true")
    assert checkpointed.memory["graph of a chunk"] < tight.memory["graph of a chunk"]


def test_an_automatic_budget_takes_half_of_what_is_free():
    config = load_config("quickstart", [*BASE, "activation_budget=auto"])
    everything = _plan().memory["kept graphs"]
    memory = _plan().memory
    config.trainer.accelerator = "gpu"
    held = sum(memory[name] for name in ("weights", "gradients", "optimizer")) + RUNTIME_BYTES
    plan = estimate(config, workload_of(config), held + everything)
    assert plan.memory["kept graphs"] == pytest.approx(everything / 2, rel=1e-6)
    assert estimate(config, workload_of(config)).memory["kept graphs"] == 0
    config.trainer.accelerator = "cpu"  # where nothing is said, what is free now
    assert estimate(config, workload_of(config)).memory["kept graphs"] == everything
    assert estimate(config, workload_of(config), 1e12).memory["kept graphs"] == everything


def test_more_processes_share_the_work_and_shards_the_weights():
    one, four = _plan(), _plan("trainer.devices=2", "trainer.num_nodes=2")
    # The smaller a batch, the more of it is padding.
    assert four.memory["kept graphs"] == pytest.approx(one.memory["kept graphs"] / 4, rel=0.1)
    assert four.memory["weights"] == one.memory["weights"]
    assert four.memory["gradients"] == 2 * one.memory["gradients"]  # and DDP's buckets
    sharded = _plan("trainer.devices=4", "trainer.strategy=fsdp2")
    assert sharded.memory["optimizer"] == one.memory["optimizer"] / 4
    assert sharded.memory["gathered layers"] > 0


def test_graphs_are_those_of_one_arm_at_a_time_but_where_forward_passes_are_collective():
    one, two = _plan(), _plan("arms.base_seed2.backbone=embedded:tiny/base")
    assert two.memory["weights"] == one.memory["weights"] + one.memory["gradients"]
    assert two.memory["kept graphs"] == one.memory["kept graphs"]
    sharded = _plan("arms.base_seed2.backbone=embedded:tiny/base", "trainer.strategy=fsdp2")
    assert sharded.memory["kept graphs"] == 2 * one.memory["kept graphs"]
    assert sharded.memory["weights"] == 2 * one.memory["weights"]


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ("['**.layers.*', output]", 5),
        ("['**.layers.[13]', output]", 3),
        ("{early: '**.layers.1', late: output}", 2),
        ("null", 5),
        ("['**.layers.*.mlp']", 4),
    ],
)
def test_layers_are_counted_as_the_monitor_finds_them(layers, count):
    whole = _plan("trainer.accelerator=cpu").memory["representations"]
    plan = _plan("trainer.accelerator=cpu", f"callbacks.similarity.layers={layers}")
    assert plan.monitoring.layers == count
    assert plan.memory["representations"] == pytest.approx(whole * count / 5)


def test_only_references_that_are_kept_take_memory():
    start = _plan("trainer.accelerator=cpu", "callbacks.similarity.reference=initial")
    live = _plan("trainer.accelerator=cpu", "callbacks.similarity.reference=arm:base")
    assert live.memory["representations"] == start.memory["representations"] / 2
    assert live.monitoring.start_bytes == 0 < start.monitoring.start_bytes


def test_all_weights_have_moments_where_all_are_trained():
    whole = _plan("model.lora=null")
    assert whole.memory["optimizer"] == 2 * whole.memory["weights"]


def test_four_bits_leave_embeddings_and_adapters_as_they_are():
    whole, quantized = _plan(), _plan("model.quantization=nf4")
    arm = whole.arms["base"]
    frozen = arm.num_weights - arm.num_trained - arm.num_embedding_weights
    saved = frozen * (32 - 4.127) / 8
    assert quantized.memory["weights"] == pytest.approx(whole.memory["weights"] - saved)


def test_steps_and_tokens():
    plan = _plan("trainer.max_steps=-1", "data.batch_size=16", examples=1000, text_tokens=20)
    assert plan.workload.steps == 62
    assert plan.workload.tokens == 16 * 3 * 20
    assert _plan("data.train=[somewhere.jsonl]", "trainer.max_steps=-1").workload.steps is None


def test_memory_is_that_of_the_source_with_the_longest_texts():
    """Batches come from one source each: the mean over all would hide the largest."""
    sources = {
        name: f"data.train=[embedded:tiny/pairs_train.{name}.jsonl]"
        for name in ("definition", "code")
    }
    alone = {name: _plan(source).workload for name, source in sources.items()}
    both = _plan(
        "data.train=[embedded:tiny/pairs_train.definition.jsonl,"
        "embedded:tiny/pairs_train.code.jsonl]"
    ).workload
    assert both.padded_tokens == pytest.approx(alone["code"].padded_tokens, rel=0.1)
    assert both.padded_tokens > 1.5 * alone["definition"].padded_tokens
    assert alone["code"].padded_tokens > alone["code"].tokens


def test_names_of_recipes_backbones_are_known():
    assert all(backbone_config(name).num_hidden_layers for name in KNOWN)


def test_the_graphs_of_a_real_batch_are_those_that_are_planned(backbone):
    """To 5 %: the texts of a step as the recipe draws, tokenizes and chunks them, for one arm."""
    config = load_config("quickstart", [*BASE, f"arms.base.backbone={backbone}"])
    models = build_arms(config)
    data = build_data(config, models)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    arm, outputs, padded_tokens = models["base"].train(), [], 0
    with gradcache._saved_bytes(list(arm.parameters())) as saved:
        which = batch.tokenizers["base"]
        for tokens in (batch.queries[which], batch.passages[which]):
            limit = config.max_tokens_per_chunk or sys.maxsize
            for chunk in length_sorted_chunks(tokens.lengths, limit):
                outputs.append(arm(**tokens.pad(arm.tokenizer.pad_token_id, chunk)))
                padded_tokens += int(tokens.lengths[chunk].max()) * len(chunk)
        kept = sum(saved.values())
    texts = config.data.batch_size * (1 + config.data.train_group_size)
    mean = padded_tokens / texts  # each distinct text is encoded once
    plan = estimate(config, workload_of(config, text_tokens=mean))
    assert sum(map(len, outputs)) <= plan.workload.texts == texts
    assert plan.memory["kept graphs"] == pytest.approx(kept, rel=0.05)


@pytest.mark.slow
def test_a_real_step_takes_the_memory_that_is_planned(tmp_path):
    """Resident memory after a forward pass, to 5 %, and at its most in the backward pass, to 10 %.

    With glibc's threshold held low, freed blocks go back to the system at once; by default it keeps
    them, and the resident memory of the same step is twice what is in use.
    """
    folder = make_backbone(tmp_path, hidden=256, layers=6)
    program = f"""
import psutil, torch
from hrsa_lightning.modules.throughput import peak_memory
from hrsa_lightning.models import EmbeddingModel
model = EmbeddingModel.from_pretrained({str(folder)!r}, lora={{"r": 16, "lora_dropout": 0.0}})
tokens = torch.ones(48, 128, dtype=torch.long)
mask = tokens.clone()
mask[0, 64:] = 0
model(tokens[:1, :4], mask[:1, :4]).sum().backward()
before = psutil.Process().memory_info().rss  # loading may have taken more for a moment
loss = model(tokens, mask).sum()
print(psutil.Process().memory_info().rss - before)
loss.backward()
print(peak_memory(tokens.device) - before)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    sizes = measure_backbone(
        backbone_config(str(folder)),
        dtype=torch.float32,
        lora={"r": 16, "lora_dropout": 0.0},
        width=128,
    )
    kept, most = map(float, done.stdout.split())
    assert kept == pytest.approx(sizes.graph_bytes(48), rel=0.05)
    # The first layers of the backward pass hold gradients beside the whole graph.
    assert most == pytest.approx(sizes.graph_bytes(48), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_tensors_of_a_real_fit_take_the_memory_that_is_planned(tmp_path, lora):
    """To 15 %, of two arms on one device, by what PyTorch's allocator counts."""
    folder = make_backbone(tmp_path, hidden=256, layers=6)
    config = load_config(
        "quickstart",
        [
            *BASE,
            f"arms.base.backbone={folder}",
            f"arms.twin.backbone={folder}",
            "callbacks.similarity=null",
            *([] if lora else ["model.lora=null"]),
        ],
    )
    models = build_arms(config)
    module, data = build_module(config, models), build_data(config, models)
    data.setup("fit")
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, enable_progress_bar=False, **options)
    peak = peak_bytes(lambda: trainer.fit(module, train_dataloaders=data.train_dataloader()))
    plan = estimate(config, workload_of(config))
    parts = ("gradients", "optimizer", "kept graphs", "loss")
    assert peak == pytest.approx(sum(plan.memory[part] for part in parts), rel=0.15)
