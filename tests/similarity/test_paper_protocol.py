"""The paper's token-level protocol on stored hidden states: its formulas, layer by layer and in the
mean over layers (arXiv 2601.21192, tables 3 and 4)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from hrsa_lightning.functional import linear_probe_transfer
from hrsa_lightning.functional._inputs import split_halves
from hrsa_lightning.metrics import (
    DimensionCorrelation,
    KNNOverlap,
    LinearCKA,
    OrthogonalProcrustes,
)
from hrsa_lightning.similarity import SimilarityEvaluator
from hrsa_lightning.similarity.measurement import MEAN_OVER_LAYERS
from tests.functional.test_paper_protocol import authors_procrustes

KS = (5, 10, 50)
PROCRUSTES = (
    "procrustes_residual",
    "procrustes_global_cosine",
    "procrustes_mean_cosine",
    "inverse_row_entropy",
)


class Decoder(nn.Module):
    """Residual blocks over tokens and positions, each of which ends a layer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(60, 16), nn.Embedding(24, 16)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, input_ids, attention_mask):
        tokens = self.tokens(input_ids)
        # Rows differ by what came before them, so that none are equal.
        hidden = tokens + tokens.cumsum(1) / 4 + self.positions.weight[: input_ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden.tanh()) + 0.3
        return hidden


def batches():
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        lengths = torch.randint(8, 25, (6, 1), generator=generator)
        ids = torch.randint(0, 60, (6, 24), generator=generator)
        yield {"input_ids": ids, "attention_mask": (torch.arange(24) < lengths).long()}


@torch.no_grad()
def store(model, path):
    """Rows of tokens, layer by layer, as `output_hidden_states` would give them, in a file."""
    rows = {f"layers.{number}": [] for number in range(3)}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, found=found: found.append(out[mask.bool()] + 0)
        )
        for name, found in rows.items()
    ]
    for batch in batches():
        mask = batch["attention_mask"]
        model(**batch)
    for hook in hooks:
        hook.remove()
    save_file({name: torch.cat(found) for name, found in rows.items()}, path)


def authors_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return np.linalg.norm(y.T @ x) ** 2 / norms


def authors_overlap(x, y, k):
    sets = []
    for rows in (x, y):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -np.inf)
        sets.append(np.argsort(-cosines, axis=1)[:, :k])
    pairs = zip(*sets, strict=True)
    return np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs])


def authors_values(x, y):
    """Everything but the probe, of one layer."""
    a, b = (rows.double().numpy() for rows in (x, y))
    found = dict(zip(PROCRUSTES, authors_procrustes(x, y), strict=True))
    found["cka_plain"] = authors_cka(a, b)
    found |= {f"knn_overlap_{k}": authors_overlap(a, b, k) for k in KS}
    found["dimension_correlation"] = np.mean(
        [np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(a.shape[1])]
    )
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    models = {"base": Decoder(1), "rlvr": Decoder(1)}
    with torch.no_grad():
        for layer in models["rlvr"].layers:
            layer.weight += 0.06 * torch.randn(16, 16, generator=torch.Generator().manual_seed(9))
    for name, model in models.items():
        store(model, folder / f"{name}.safetensors")
    return models, {name: load_file(folder / f"{name}.safetensors") for name in models}


def test_token_level_values_are_the_authors_means_included(stored):
    models, states = stored
    evaluator = SimilarityEvaluator(
        models,
        probes=list(batches()),
        layers=["layers.*"],
        reference="arm:base",
        metrics={
            "cka_plain": LinearCKA(debiased=False),
            "knn": KNNOverlap(KS),
            "procrustes": OrthogonalProcrustes("paper"),
            "correlation": DimensionCorrelation(),
        },
        pooling="none",
    )
    found = {(m.layer, m.metric): m.value for m in evaluator.evaluate(0) if m.reference}
    expected = {
        f"layer_{number}": authors_values(
            *(states[arm][f"layers.{number}"] for arm in ("rlvr", "base"))
        )
        for number in range(3)
    }
    layers, metrics = list(expected), list(expected["layer_0"])
    expected[MEAN_OVER_LAYERS] = {
        metric: np.mean([expected[layer][metric] for layer in layers]) for metric in metrics
    }
    assert len(metrics) == 9
    for layer, values in expected.items():
        for metric, value in values.items():
            assert found[layer, metric] == pytest.approx(value, rel=1e-5), (layer, metric)
    assert 0.3 < found[MEAN_OVER_LAYERS, "cka_plain"] < 0.999
    assert found[MEAN_OVER_LAYERS, "knn_overlap_10"] > 0.1


def test_the_probe_agrees_with_the_authors_logistic_regression(stored):
    """Trained on the base model's rows, tested on both models' (function level)."""
    _, states = stored
    x, y = (states[name]["layers.2"] for name in ("rlvr", "base"))
    score = y @ torch.linspace(-1, 1, 16)
    labels = (score > score.median()).long()
    test = split_halves(y, None)
    probe = LogisticRegression(C=100, max_iter=2000).fit(y[~test].numpy(), labels[~test].numpy())
    own = LogisticRegression(C=100, max_iter=2000).fit(x[~test].numpy(), labels[~test].numpy())
    result = linear_probe_transfer(x, y, labels)
    for value, classifier, rows in (
        (result.source, probe, y),
        (result.transfer, probe, x),
        (result.ceiling, own, x),
    ):
        expected = classifier.score(rows[test].numpy(), labels[test].numpy())
        assert value.item() == pytest.approx(expected, abs=0.06)
        assert expected > 0.7
