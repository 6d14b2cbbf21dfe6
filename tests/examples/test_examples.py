"""The programs in examples/ run as they stand, and what they watch makes sense."""

import importlib.util
from pathlib import Path

import pytest

from tests.histories import read_tags

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning"),
    # What Lightning says of a run without settings: no logger chosen, a GPU that is not used.
    pytest.mark.filterwarnings("ignore:.*TensorBoard.*"),
]


def run(name, folder, **options):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = module.main(folder=folder, **options)
    (watch,) = (c for c in trainer.callbacks if type(c).__name__ == "SimilarityMonitor")
    return trainer, read_tags(watch.history_path)


def test_digits_cnn(tmp_path):
    trainer, history = run("digits_cnn", tmp_path, max_epochs=2)
    last = history[-1]["values"]
    assert trainer.callback_metrics["val/accuracy"] > 0.8
    assert history[0]["values"]["similarity/cka/feature_0"] == pytest.approx(1.0)
    assert last["similarity/cka/output"] < last["similarity/cka/feature_0"] < 1.0
    assert [record["step"] for record in history][:5] == [0, 1, 2, 3, 5]


def test_text_classifier(tmp_path):
    _, history = run("text_classifier", tmp_path, max_steps=10)
    last = history[-1]["values"]
    assert {f"similarity/cka/layer_{n}" for n in range(3)} <= set(last)
    assert last["similarity/cka/layer_2"] < 0.9999


def test_autoencoder(tmp_path):
    _, history = run("autoencoder", tmp_path, max_epochs=2)
    first, last = history[0]["values"], history[-1]["values"]
    start, pca = (f"similarity/cka/live_vs_{name}/output.latent" for name in ("initial", "pca"))
    assert first[start] == pytest.approx(1.0)
    assert last[start] < 1.0
    assert 0.0 < last[pca] < 1.0
