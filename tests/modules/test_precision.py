"""Every loss, the regularizer and both monitors under every precision of the trainer."""

import math
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from hrsa_lightning.callbacks import RetrievalMonitor, SimilarityMonitor
from hrsa_lightning.modules import PairedContrastiveModule
from tests.contrastive_runs import WORDS, fit, make_arm, write_pairs
from tests.losses.losses import LOSSES
from tests.losses.reference import make_batch

PRECISIONS = {"bf16-true": 2e-2, "bf16-mixed": 2e-2, "16-true": 2e-3}
"""With the largest relative difference of the first loss from that in float32.

`16-mixed` needs a CUDA device, see `tests/pretended_cuda`.
"""


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    write_pairs(folder / "pairs.jsonl")
    make_arm(folder / "backbone")
    return folder


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_follow_the_default_dtype(name, default):
    """True half precision makes 16 bits the default of all that is made within a step."""
    queries, passages, *ids = make_batch()
    queries.requires_grad_()

    def loss_and_gradient():
        value = LOSSES[name](queries, passages, *ids)
        return value.detach(), *torch.autograd.grad(value, queries)

    expected = loss_and_gradient()
    with default_dtype(default):
        found = loss_and_gradient()
    assert found[0].dtype == torch.float32
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


class Forwards(Callback):
    """Counts forward passes of the first backbone by (training or not, dtype of what it gives)."""

    def __init__(self):
        self.seen = set()
        self.logged = []

    def setup(self, trainer, module, stage):
        layer = next(iter(module.arms.values())).transformer.layers[0].self_attn.q_proj

        def note(_module, _inputs, output):
            self.seen.add((module.arms.training, output.dtype))

        layer.register_forward_hook(note)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def run(place, folder, precision, loss="infonce", **options):
    """Two arms of which each keeps some graphs; returns what was logged and the forward passes."""
    pairs = [{"query": ["find", word], "pos": [word], "neg": [WORDS[0]]} for word in WORDS[1:7]]
    monitors = (
        SimilarityMonitor(
            arms="arms",
            probes=[f"{one} {other}" for one in WORDS for other in WORDS[:5]],
            layers=["**.layers.*", "output"],
            reference=["initial", "arm:base"],
            metrics=["cka", "knn_overlap_10"],
            every_n_train_steps=2,
            on_error="raise",
        ),
        RetrievalMonitor(pairs, arms="arms", on_error="raise"),
    )
    forwards = Forwards()
    module = PairedContrastiveModule(
        {name: make_arm(place / "backbone", seed) for seed, name in enumerate(("base", "other"))},
        loss=LOSSES[loss],
        max_tokens_per_chunk=128,
        activation_budget=100_000,
        lr=1e-3,
        **options,
    )
    fit(
        module,
        place / "pairs.jsonl",
        folder,
        max_steps=2,
        precision=precision,
        callbacks=(*monitors, forwards),
    )
    return forwards


@pytest.fixture(scope="module")
def in_float32(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float32")
    return {name: run(place, folder / name, "32-true", name).logged[0] for name in LOSSES}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_loss_trains_under_every_precision(place, tmp_path, in_float32, precision, loss):
    options = {"eps": 1e-2} if precision == "16-true" else {}
    forwards = run(place, tmp_path, precision, loss, **options)
    first, last = forwards.logged
    for arm in ("base", "other"):
        tag = f"train/loss/{arm}"
        assert first[tag] == pytest.approx(in_float32[loss][tag], rel=PRECISIONS[precision])
        assert math.isfinite(last[tag])
        assert math.isfinite(last[f"retrieval/{arm}/mrr@10"])
    assert math.isfinite(last["similarity/cka/other_vs_base/output"])
    # Megabytes and rates of tokens have more digits than 16 bits hold.
    memory = last["train/peak_memory_mb"]
    assert memory != torch.tensor(memory).bfloat16().item()
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    assert forwards.seen == {(True, dtype), (False, dtype)}, "monitors compute as training does"
