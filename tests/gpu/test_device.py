"""What a GPU computes is what a CPU computes. Skipped without one; `scripts/gpu-check` runs it.

`HRSA_GPU_TESTS_ON=cpu` runs the same tests on the CPU.
"""

import importlib.util
import os

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from hrsa_lightning.metrics import hrsa_metrics
from hrsa_lightning.models import EmbeddingModel
from hrsa_lightning.modules import PairedContrastiveModule
from tests.contrastive_runs import fit, make_arm, write_pairs

DEVICE = os.environ.get("HRSA_GPU_TESTS_ON") or ("cuda" if torch.cuda.is_available() else "")
pytestmark = pytest.mark.skipif(not DEVICE, reason="no GPU")
ON_CUDA = pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA")


@pytest.mark.parametrize("deterministic", [False, True])
def test_metrics_are_those_of_the_cpu(deterministic, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 48, generator=generator)
    x[0] *= 500  # a massive row, as large models have
    y = x + torch.randn(600, 48, generator=generator)
    labels = torch.arange(600) % 3
    found = {}
    torch.use_deterministic_algorithms(deterministic)
    try:
        for place in ("cpu", DEVICE):
            metrics = hrsa_metrics(num_classes=3).to(place)
            metrics.update(x.to(place), y.to(place), labels.to(place))
            found[place] = {name: float(value) for name, value in metrics.compute().items()}
    finally:
        torch.use_deterministic_algorithms(False)
    for name, expected in found["cpu"].items():
        assert found[DEVICE][name] == pytest.approx(expected, abs=1e-4), name


class _Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def _losses(folder, accelerator, precision, budget):
    losses = _Losses()
    arms = {name: make_arm(folder / "backbone", seed, 0.0) for name, seed in (("a", 1), ("b", 2))}
    module = PairedContrastiveModule(
        arms, lr=1e-3, max_tokens_per_chunk=64, activation_budget=budget
    )
    pairs = write_pairs(folder / "pairs.jsonl")
    options = {"accelerator": accelerator, "devices": 1, "precision": precision}
    fit(module, pairs, folder, callbacks=(losses,), **options)
    return losses.values


@pytest.mark.parametrize("budget", [0, "auto", None])
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("32-true", 1e-3),
        ("bf16-mixed", 0.05),
        pytest.param("16-mixed", 0.02, marks=ON_CUDA),
        ("bf16-true", 0.1),
    ],
)
def test_losses_are_those_of_the_cpu(tmp_path, precision, tolerance, budget):
    expected = _losses(tmp_path, "cpu", "32-true", None)
    found = _losses(tmp_path, DEVICE, precision, budget)
    assert found == pytest.approx(expected, rel=tolerance)


@ON_CUDA
@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("bitsandbytes", {"quantization": "nf4", "lora": {"r": 4}}),
        ("flash_attn", {"attn_implementation": "flash_attention_2", "dtype": "bfloat16"}),
    ],
)
def test_what_only_cuda_has_gives_the_embeddings_of_the_cpu(tmp_path, package, options):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    make_arm(tmp_path / "backbone")
    texts = ["river stone", "cloud paper green seven", "window"]
    expected = EmbeddingModel.from_pretrained(tmp_path / "backbone").embed(texts)
    device = torch.device("cuda", 0)
    model = EmbeddingModel.from_pretrained(tmp_path / "backbone", device=device, **options)
    found = model.to(device).embed(texts).cpu().float()
    assert torch.cosine_similarity(found, expected, dim=1).min() > 0.9
