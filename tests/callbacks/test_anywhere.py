"""Projects as they come: lazy modules, batches that are objects, loaders given to fit."""

import logging
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, AutoTokenizer

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from hrsa_lightning.errors import ConfigError, DataError, HRSAWarning
from hrsa_lightning.similarity import RepresentationTrace, SimilarityEvaluator
from hrsa_lightning.similarity.history import read_history
from tests.callbacks import projects
from tests.callbacks.projects import INPUTS, TARGETS, classifier, fit, flavor, same, weights
from tests.tiny import make_backbone

pytestmark = [
    # A loader that only the monitor reads.
    pytest.mark.filterwarnings("ignore:.*but have no `validation_step`"),
    # Untrained dead units leave the alignment of so few features open.
    pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning"),
]


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka"],
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor(**{**defaults, **options})


def cka(watch, layer="output"):
    return [
        m.value for m in read_history(watch.history_path) if (m.metric, m.layer) == ("cka", layer)
    ]


def assert_unchanged(tmp_path, make, watch, **options):
    """The weights are those of a run without the monitor; returns the run with it."""
    watched = fit([watch], tmp_path / "with", make=make, **options)
    assert same(weights(watched), weights(fit([], tmp_path / "without", make=make, **options)))
    return watched


@pytest.mark.parametrize("seed", [3, 4])
def test_lazy_modules_are_drawn_by_the_users_own_first_step(tmp_path, seed):
    def make(pl):
        module = classifier(pl)
        module.encoder.layers[0] = nn.LazyLinear(8)
        module.head = nn.LazyLinear(3)
        return module

    watch = monitor(layers=["output", "encoder.layers.0"])
    assert_unchanged(tmp_path, make, watch, seed=seed)
    values = cka(watch)
    assert values[0] == pytest.approx(1.0)
    assert values[-1] < 0.9999
    assert [m.step for m in read_history(watch.history_path) if m.metric == "cka"][::2] == [
        0,
        2,
        4,
        6,
    ]


def test_what_stays_lazy_is_refused(tmp_path):
    def make(pl):
        module = classifier(pl)
        module.unused = nn.LazyLinear(3)
        return module

    with pytest.raises(ConfigError, match=r"'unused\.weight' of a lazy module"):
        fit([monitor()], tmp_path, make=make)


class Bag:
    """A batch as graph libraries have it: no mapping and no tuple, but it can be moved."""

    def __init__(self, **tensors):
        self.__dict__.update(tensors)

    def to(self, device):
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


@dataclass(slots=True)
class Slots:
    x: torch.Tensor
    y: torch.Tensor


BATCHES = {
    "dataclass with slots": lambda rows: Slots(
        torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    ),
    "object": lambda rows: Bag(
        x=torch.stack([r[0] for r in rows]), y=torch.stack([r[1] for r in rows])
    ),
    "dataclass": lambda rows: Record(
        torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_are_what_the_trainer_can_move(kind, tmp_path):
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), 8, shuffle=True, collate_fn=BATCHES[kind])

    def make(pl):
        class Project(type(classifier(pl))):
            def training_step(self, batch, batch_idx):
                return nn.functional.cross_entropy(self(batch), batch.y)

            def forward(self, batch):
                batch.x = batch.x * 2  # which graph networks do
                return super().forward(batch.x)

        return Project()

    watch = monitor(probes="train_dataloader")
    assert_unchanged(tmp_path, make, watch, loader=loader)
    assert cka(watch)[0] == pytest.approx(1.0)
    assert cka(watch)[-1] < 0.9999


def graphs(sizes=(3, 5, 2, 4)):
    counts = torch.tensor(sizes)
    batch = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return Bag(
        x=torch.randn(len(batch), 6), edge_index=torch.zeros(2, 7, dtype=torch.long), batch=batch
    )


class Half(nn.Module):
    def forward(self, x):
        return x[: len(x) // 2]


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(6, 8)

    def forward(self, x, edge_index, batch):
        nodes = torch.relu(self.conv(x))
        return torch.zeros(int(batch.max()) + 1, 8).index_add(0, batch, nodes)


class TestSamplesAreTheRowsOfPooling:
    """Counted where they come out of pooling, whatever the batch looks like."""

    def rows(self, module, batch, layers=("output",), **options):
        evaluator = SimilarityEvaluator(module, [batch], layers, metrics=["cka"], null=0, **options)
        evaluator.evaluate(0)
        return {layer: len(rows) for layer, rows in evaluator.run(1).live[""][""].items()}

    def test_a_list_of_images(self):
        class Detector(nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = nn.Conv2d(3, 4, 3)

            def forward(self, images):
                return self.backbone(torch.stack(images)).mean((2, 3))

        images = [torch.randn(3, 9, 9) for _ in range(8)]
        assert self.rows(Detector(), (images, [{}] * 8), ["backbone", "output"]) == {
            "backbone": 8,
            "output": 8,
        }

    def test_a_mapping_whose_first_tensor_is_no_sample(self):
        batch = {"scale": torch.ones(1), "x": torch.randn(6, 3)}
        assert self.rows(nn.Sequential(), batch, forward=lambda _, b: b["x"]) == {"output": 6}

    def test_graphs_by_their_batch_vector(self):
        assert self.rows(GraphNetwork(), graphs(), ["conv", "output"]) == {"conv": 4, "output": 4}
        assert self.rows(GraphNetwork(), graphs(), ["conv"], pooling="none") == {"conv": 14}

    def test_a_pooling_function_is_trusted(self):
        found = self.rows(nn.Linear(3, 2), torch.randn(5, 3), pooling=lambda a, _: a.repeat(2, 1))
        assert found == {"output": 10}

    def test_what_stays_ambiguous_is_asked(self):
        class Views(nn.Module):
            def forward(self, x):
                return torch.cat([x, -x])

        with pytest.raises(
            DataError, match=r"got 10 of output for a batch with 5; .*pooling=\{'out"
        ):
            self.rows(Views(), torch.randn(5, 3))
        net = nn.Sequential(nn.Linear(3, 2), Views())
        with pytest.raises(DataError, match=r"got 5 of 0 and 10 of output for one.*=\{'output'"):
            self.rows(net, torch.randn(5, 3), ["0", "output"])
        net = nn.Sequential(Views(), Half())
        with pytest.raises(DataError, match=r"got 10 of 0 and 5 of output for one.*=\{'0'"):
            self.rows(net, torch.randn(5, 3), ["0", "output"])


class TestLoadersByName:
    def loader(self, size):
        return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=size)

    def fit(self, watch, tmp_path, *loaders, datamodule=None, make=classifier):
        pl = flavor()
        trainer = pl.Trainer(
            max_steps=1,
            accelerator="cpu",
            callbacks=[watch],
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(make(pl), *loaders, datamodule=datamodule)
        return [len(b[0]) for b in watch.evaluator.extractor.probes[""].held.values()]

    def test_given_to_fit(self, tmp_path):
        given = (projects.train_loader(), self.loader(16))
        assert self.fit(monitor(probes="val_dataloader"), tmp_path, *given) == [16] * 3
        assert self.fit(monitor(probes="train_dataloader"), tmp_path, *given) == [8] * 6

    @pytest.mark.parametrize(
        ("several", "name"),
        [
            (lambda one, two: [one, two], "val_dataloader:1"),
            (lambda one, two: {"iid": one, "ood": two}, "val_dataloader:ood"),
        ],
    )
    def test_one_of_several(self, tmp_path, several, name):
        loaders = several(self.loader(16), self.loader(24))
        given = (projects.train_loader(), loaders)
        assert self.fit(monitor(probes=name), tmp_path, *given) == [24, 24]
        with pytest.raises(DataError, match=f"one of several loaders; choose one of .*'{name}'"):
            self.fit(monitor(probes="val_dataloader"), tmp_path, *given)

    def test_of_a_datamodule(self, tmp_path):
        class Data(flavor().LightningDataModule):
            train_dataloader = staticmethod(projects.train_loader)
            probe_loader = staticmethod(lambda: DataLoader(TensorDataset(INPUTS), batch_size=12))

        assert self.fit(monitor(probes="probe_loader"), tmp_path, datamodule=Data()) == [12] * 4
        with pytest.raises(DataError, match="got 'probe_lodaer'; there is train_dataloader"):
            self.fit(monitor(probes="probe_lodaer"), tmp_path, datamodule=Data())

    def test_a_combined_loader(self, tmp_path):
        from lightning.pytorch.utilities import CombinedLoader

        one = monitor(probes=CombinedLoader([self.loader(16)]))
        assert self.fit(one, tmp_path, projects.train_loader()) == [16] * 3
        two = CombinedLoader({"a": self.loader(16), "b": self.loader(8)})
        with pytest.raises(DataError, match="got a CombinedLoader of a, b; give a mapping"):
            self.fit(monitor(probes=two), tmp_path, projects.train_loader())

    def test_batches_pass_the_transfer_hooks(self, tmp_path):
        def make(pl):
            class Project(type(classifier(pl))):
                def on_after_batch_transfer(self, batch, dataloader_idx):
                    assert self.trainer.validating or self.trainer.training
                    return [batch[0] * 0 + (3 if self.trainer.validating else 1), batch[1]]

            return Project()

        watch = monitor(probes="val_dataloader")
        self.fit(watch, tmp_path, projects.train_loader(), self.loader(16), make=make)
        assert {float(b[0].mean()) for b in watch.evaluator.extractor.probes[""].held.values()} == {
            3.0
        }
        taken_as_they_are = monitor()
        self.fit(taken_as_they_are, tmp_path, projects.train_loader(), make=make)
        held = taken_as_they_are.evaluator.extractor.probes[""].held
        assert torch.equal(held[0][0], INPUTS[:10])


class TestFailures:
    def test_what_cannot_ever_work_ends_the_fit(self, tmp_path):
        def make(pl):
            module = classifier(pl)
            module.encoder.layers.append(nn.Linear(8, 8))
            module.encoder.forward = lambda x: module.encoder.layers[0](x)
            return module

        with pytest.raises(DataError, match="layer_1, layer_2 took no part in the forward pass"):
            fit([monitor()], tmp_path, make=make)

    def test_later_failures_warn_once_per_cause(self, tmp_path):
        def forward(module, batch):
            if module.trainer.global_step > 1:
                raise RuntimeError(
                    "out of " + ("luck" if module.trainer.global_step < 6 else "time")
                )
            return module(batch[0])

        with pytest.warns(HRSAWarning) as caught:
            fit([monitor(forward=forward, every_n_train_steps=1)], tmp_path)
        said = [str(w.message) for w in caught if "no values" in str(w.message)]
        assert [text.rpartition("out of ")[2] for text in said] == [
            "luck), first at step 2",
            "time), first at step 6",
        ]


def test_python_state_of_a_forward_pass_is_put_back(tmp_path):
    def make(pl):
        class Project(type(classifier(pl))):
            def __init__(self):
                super().__init__()
                self.calls, self.is_first, self.seen = 0, True, {"sizes": []}

            def forward(self, x):
                self.calls += 1
                self.seen["sizes"].append(len(x))
                if not hasattr(self, "scale"):
                    self.scale = nn.Parameter(torch.rand(1))
                if self.is_first:
                    self.is_first, self.mean = False, x.mean()
                return super().forward(x - self.mean) * self.calls * self.scale

        return Project()

    watched = assert_unchanged(tmp_path, make, monitor())
    module = watched.lightning_module
    assert module.calls == 6
    assert module.seen == {"sizes": [8] * 6}


@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
def test_a_step_that_prepares_its_batch_serves_as_forward_and_logs_nothing(tmp_path):
    def make(pl):
        class Project(type(classifier(pl))):
            def validation_step(self, batch, batch_idx):
                self.log("val_loss", self(batch[0] * 2).sum())

        return Project()

    watch = monitor(
        forward=lambda module, batch: module.validation_step(batch, 0),
        layers=["encoder.layers.*"],
        on_error="raise",
    )
    watched = assert_unchanged(tmp_path, make, watch)
    assert cka(watch, "layer_1")[-1] < 0.9999
    assert "val_loss" not in watched.callback_metrics


def test_a_trace_without_a_common_layer_is_refused(tmp_path):
    record = RepresentationRecorder(tmp_path / "trace", projects.probe_batches(), ["head"])
    fit([record], tmp_path, max_steps=1)
    trace = RepresentationTrace(tmp_path / "trace")
    with pytest.raises(
        ConfigError, match="layers: expected one that 'trace' has, such as head; got out"
    ):
        fit([monitor(reference=trace, layers=["output"])], tmp_path)
    renamed = monitor(reference=trace, layers={"head": "output"})
    fit([renamed], tmp_path, max_steps=1)
    assert cka(renamed, "head")[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("reference", "meant"),
    [("Initial", "initial"), ("initail", "initial"), ("pair", "pairs"), ("arms:base", "arm:base")],
)
def test_a_misspelled_reference_does_not_ask_the_hub(reference, meant):
    with pytest.raises(
        ConfigError, match=f"reference: expected .* or '{meant}', got '{reference}'"
    ):
        monitor(reference=reference)


def test_two_monitors_of_one_name_are_told_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"name: two monitors .*such as name='similarity_2'"):
        fit([monitor(), monitor()], tmp_path)
    fit([monitor(), monitor(name="similarity_2")], tmp_path, max_steps=1)


def test_names_of_ones_own(tmp_path):
    watch = monitor(
        layers={"first": "encoder.layers.0", "all": "encoder.layers.*", "end": "output"}
    )
    trainer = fit([watch], tmp_path, max_steps=1)
    names = {tag.split("/")[2] for tag in trainer.callback_metrics if "/cka/" in tag}
    assert names == {"first", "all_0", "all_1", "end", "mean_over_layers"}


def test_no_rhythm_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit([monitor(every_n_train_steps=None)], tmp_path, max_steps=1)
        fit([monitor(name="other")], tmp_path, max_steps=1)
    said = [
        r.message
        for r in caplog.records
        if "evaluates before the first step and at the" in r.message
    ]
    assert len(said) == 1
    assert "every_n_train_steps=" in said[0]


@pytest.mark.parametrize("takes_positions", [True, False])
def test_padding_on_the_left_shifts_no_positions(takes_positions, tmp_path):
    """A model with a table of positions is compared with itself, under two tokenizers."""
    folder = make_backbone(tmp_path, "llama", model_type="gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModel.from_pretrained(folder)
    if not takes_positions:
        model = Wrapped(model)
    texts = [text * n for n in range(1, 9) for text in ("a b c ", "de f ", "return first ")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluator = SimilarityEvaluator(
            model,
            texts,
            ["output"],
            str(folder),
            ["cka"],
            tokenizer=lambda texts: tokenizer(texts, padding=True, return_tensors="pt"),
        )
        value = next(m.value for m in evaluator.evaluate(0) if m.metric == "cka")
    if takes_positions:
        assert value == pytest.approx(1.0, abs=1e-5)
    else:
        assert value < 0.999
        assert any("padding_side = 'right'" in str(w.message) for w in caught)


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
