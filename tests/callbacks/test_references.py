"""Every kind of reference, and that a frozen one is run once and let go."""

import gc
import json
import weakref

import pytest
import torch
from torch import nn

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from hrsa_lightning.errors import ConfigError, DataError, HRSAWarning
from hrsa_lightning.functional import linear_cka
from tests.callbacks import projects
from tests.callbacks.projects import INPUTS, classifier, fit, flavor
from tests.histories import read_tags
from tests.tiny import make_backbone


def monitor(reference, **options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor(reference, **{**defaults, **options})


def cka(watch, where="output", comparison=""):
    tag = "/".join(part for part in ("similarity/cka", comparison, where) if part)
    return [record["values"].get(tag) for record in read_tags(watch.history_path)]


@torch.no_grad()
def outputs(module):
    module.eval()
    return module(INPUTS)


def test_a_module_is_run_once_and_let_go(tmp_path):
    teacher = classifier(flavor())
    calls = []
    handle = teacher.register_forward_hook(lambda *args: calls.append(1))
    expected = outputs(teacher)
    handle.remove()
    teacher.train()
    calls.clear()
    teacher.register_forward_hook(lambda *args: calls.append(1))
    watch = monitor(teacher)
    trainer = fit([watch], tmp_path)
    assert len(calls) == len(projects.probe_batches())
    assert all(part.training for part in teacher.modules()), "as it was found"
    value = linear_cka(outputs(trainer.lightning_module), expected).item()
    assert cka(watch)[-1] == pytest.approx(value, abs=1e-5)
    before = cka(watch)[-1]
    alive = weakref.ref(teacher)
    del teacher
    gc.collect()
    assert alive() is None
    fit([watch], tmp_path / "again")
    assert cka(watch)[-1] == pytest.approx(before), "what was kept serves another fit"


def test_a_checkpoint_of_the_same_module(tmp_path):
    pl = flavor()
    other = classifier(pl)
    expected = outputs(other)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "other.ckpt")
    watch = monitor(str(tmp_path / "other.ckpt"))
    trainer = fit([watch], tmp_path)
    value = linear_cka(outputs(trainer.lightning_module), expected).item()
    assert cka(watch)[-1] == pytest.approx(value, abs=1e-5)
    assert cka(watch, "layer_0")[0] < 0.999


class Language(nn.Module):
    """A live model that names its layers otherwise than the reference."""

    def __init__(self, path):
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.backbone = AutoModel.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def forward(self, input_ids, attention_mask):
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask.unsqueeze(2)
        return (states.last_hidden_state * mask).sum(1) / mask.sum(1)

    def probe_batch(self, texts, max_length):
        return dict(
            self.tokenizer(
                texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
        )


def language_module(path):
    def make(pl):
        class Project(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.model = Language(path)

            def forward(self, **batch):
                return self.model(**batch)

            def probe_batch(self, texts, max_length):
                return self.model.probe_batch(texts, max_length)

            def training_step(self, batch, batch_idx):
                return self(**self.probe_batch(["some text"], 8)).square().mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.5)

        return Project()

    return make


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_a_folder_of_transformers_with_its_own_tokenizer(tmp_path, pooling):
    make_backbone(tmp_path / "model", seed=1)
    texts = [f"text number {n} of {'many ' * (n % 5)}" for n in range(12)]
    watch = monitor(
        str(tmp_path / "model"),
        probes=texts,
        layers=["model.backbone.layers.*"],
        batch_size=5,
        pooling=pooling,
    )
    fit([watch], tmp_path / "run", make=language_module(tmp_path / "model"), max_steps=2)
    for where in ("layer_0", "layer_1"):
        assert cka(watch, where)[0] == pytest.approx(1.0, abs=1e-5)
        assert cka(watch, where)[-1] < 0.9999


def test_tokens_of_another_tokenizer_are_refused_even_where_there_are_as_many(tmp_path):
    """The other tokenizer gives as many tokens, but names them in another order."""
    make_backbone(tmp_path / "model", seed=1)
    swapped = make_backbone(tmp_path / "other", seed=1) / "tokenizer.json"
    content = json.loads(swapped.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["t"], vocabulary["e"] = vocabulary["e"], vocabulary["t"]
    swapped.write_text(json.dumps(content), encoding="utf-8")
    texts = [f"{'te'[n % 2]} {n}" for n in range(8)]
    options = {"probes": texts, "layers": ["model.backbone.layers.*"], "on_error": "warn"}
    watch = monitor(str(tmp_path / "other"), pooling="none", **options)
    with pytest.raises(ConfigError, match="of the module and other split 't 0' diff"):
        fit([watch], tmp_path / "run", make=language_module(tmp_path / "model"), max_steps=1)
    pooled = monitor(str(tmp_path / "other"), **options)
    fit([pooled], tmp_path / "run", make=language_module(tmp_path / "model"), max_steps=1)
    assert len(cka(pooled, "layer_0")) == 2


def test_other_layer_names_are_matched_in_order(tmp_path):
    teacher = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    watch = monitor(
        teacher,
        layers=["encoder.layers.*"],
        reference_layers=["0", "2"],
        metrics=["cka", "dimension_correlation"],
    )
    with pytest.warns(HRSAWarning, match="needs equal widths and is left out") as caught:
        fit([watch], tmp_path, max_steps=2)
    assert any("(8 against 4 features)" in str(w.message) for w in caught)
    assert None not in cka(watch, "layer_1")
    few = monitor(
        classifier(flavor()),
        layers=["encoder.layers.*"],
        reference_layers=["head"],
        on_error="warn",
    )
    with pytest.raises(
        ConfigError, match=r"reference_layers: expected one for each of 2 .* got 1 layers"
    ):
        fit([few], tmp_path, max_steps=1)


def test_a_recorded_run_is_followed_step_for_step(tmp_path):
    recorder = RepresentationRecorder(
        tmp_path / "trace",
        probes=projects.probe_batches(),
        layers=["encoder.layers.*", "output"],
        every_n_train_steps=2,
        on_error="raise",
    )
    fit([recorder], tmp_path / "a", seed=3)
    again = monitor(str(tmp_path / "trace"))
    fit([again], tmp_path / "b", seed=3)
    assert cka(again) == pytest.approx([1.0] * 4, abs=1e-6), "the same run again"
    other = monitor(f"trace:{tmp_path / 'trace'}", every_n_train_steps=3)
    with pytest.warns(HRSAWarning, match=r"nothing for some steps \(3\)"):
        fit([other], tmp_path / "c", seed=4)
    values = cka(other)
    assert values[1] is None, "step 3 was not recorded"
    assert values[0] < 0.999
    assert values[2] < 0.999
    with pytest.raises(DataError, match="recorded on other probes"):
        fit([monitor(str(tmp_path / "trace"), probes=INPUTS)], tmp_path / "d")


def test_several_references_are_named(tmp_path):
    watch = monitor({"start": "initial", "teacher": classifier(flavor())}, layers=["output"])
    fit([watch], tmp_path, max_steps=2)
    assert cka(watch, comparison="live_vs_initial")[0] == pytest.approx(1.0)
    assert cka(watch, comparison="live_vs_teacher")[0] < 0.999


@pytest.mark.parametrize("store", ["cpu", "device", "disk"])
def test_wherever_representations_are_kept_the_values_are_the_same(tmp_path, store):
    watch = monitor(["initial", classifier(flavor())], store=store)
    fit([watch], tmp_path, max_steps=2)
    files = list(watch.folder.glob("similarity_reference_*.safetensors"))
    assert len(files) == (2 if store == "disk" else 0)
    assert cka(watch, comparison="live_vs_initial")[0] == pytest.approx(1.0)


def test_token_rows_of_different_tokenizers_are_refused(tmp_path):
    class Shorter(nn.Module):
        def forward(self, x):
            return x[:, :-1]

    class Sequences(flavor().LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x)

        def training_step(self, batch, batch_idx):
            return self(batch[0].view(-1, 3, 2)).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    watch = monitor(
        Shorter(), probes=INPUTS.view(-1, 3, 2), layers=["output"], pooling="none", on_error="warn"
    )
    with pytest.raises(DataError, match=r"144 rows against 96.*same tokenizer"):
        fit([watch], tmp_path, make=lambda pl: Sequences(), max_steps=1)
