"""Metrics and losses on a CUDA device: they stay there, and give what they give on the CPU."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from hrsa_lightning import functional
from hrsa_lightning.functional.ranking import query_scores
from hrsa_lightning.losses import candidates
from hrsa_lightning.metrics import hrsa_metrics
from tests.losses.losses import LOSSES
from tests.pretended_cuda.device import pretended_cuda


def samples(n, d):
    """Two matrices of which the first has a massive row, as hidden states of LLMs have."""
    x, y = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0))
    x[3] *= 1000
    return x, y


def collected(x, y):
    collection = hrsa_metrics().to(x.device)
    collection.update(x[:30], y[:30])
    collection.update(x[30:], y[30:])
    copied = collection.clone().cpu()
    return {name: value.cpu() for name, value in collection.compute().items()}, copied.compute()


FUNCTIONS = {
    "linear_cka": functional.linear_cka,
    "linear_cka, reference": lambda x, y: functional.linear_cka(x, functional.Reference(y)),
    "linear_cka_heatmap": lambda x, y: functional.linear_cka_heatmap([x, y], [y]),
    "knn_overlap": lambda x, y: functional.knn_overlap(x, y, k=5),
    "orthogonal_procrustes": functional.orthogonal_procrustes,
    "alignment_spectrum": functional.alignment_spectrum,
    "dimension_correlation": functional.dimension_correlation,
    "linear_probe_transfer": lambda x, y: functional.linear_probe_transfer(
        x, y, torch.arange(len(x), device=x.device) % 3
    ),
    "jackknife": lambda x, y: functional.jackknife(functional.linear_cka, x, y, num_groups=5),
    "query_scores": lambda x, y: query_scores(x, y, [[i, 7] for i in range(len(x))], [1, 5]),
}


def found(result, on_device):
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    assert all(tensor.is_cuda == on_device for tensor in tensors)
    return [tensor.cpu() for tensor in tensors] + [
        leaf for leaf in tree_leaves(result) if isinstance(leaf, float)
    ]


@pytest.mark.filterwarnings(
    "ignore:.*unique rotation:hrsa_lightning.functional._numerics.SimilarityWarning"
)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("shape", [(120, 16), (40, 64)])
@pytest.mark.parametrize("name", [*FUNCTIONS, "collection"])
def test_metrics_give_on_a_device_what_they_give_on_the_cpu(
    name, shape, deterministic, monkeypatch
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning does
    function = FUNCTIONS.get(name, collected)
    expected = found(function(*samples(*shape)), on_device=False)
    with pretended_cuda(num_devices=2):
        torch.use_deterministic_algorithms(deterministic)
        try:
            on_device = [part.to("cuda:1") for part in samples(*shape)]
            result = found(function(*on_device), on_device=name != "collection")
        finally:
            torch.use_deterministic_algorithms(False)
    assert len(result) == len(expected) > 0
    for mine, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("scores_at_once", [2**18, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32-true", "bf16-true"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_give_on_a_device_what_they_give_on_the_cpu(
    name, dtype, scores_at_once, monkeypatch
):
    monkeypatch.setattr(candidates, "SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(candidates, "SCORES_AT_ONCE_ON_DEVICE", scores_at_once)
    loss = LOSSES[name]

    def with_gradients(device):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(shape, generator=generator, dtype=torch.float32).to(device)
            for shape in ((6, 16), (6, 3, 16))
        ]
        queries, passages = (leaf.requires_grad_() for leaf in leaves)
        ids = (torch.arange(18) % 13).view(6, 3).to(device)
        value = loss(queries, passages, ids, ids[:, 0])
        value.backward()
        return value, queries.grad

    expected = found(with_gradients("cpu"), on_device=False)
    torch.set_default_dtype(dtype)  # as Lightning does in a training step under bf16-true
    try:
        with pretended_cuda() as devices:
            result = found(with_gradients("cuda"), on_device=True)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    waiting = {place for _, place in devices.waits if place.startswith("hrsa_lightning")}
    assert not waiting, "losses leave the host free to go on"
