"""Misuses that a newcomer meets: the first message names the argument and the cure."""

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.errors import HRSAError
from tests.callbacks import projects
from tests.callbacks.projects import INPUTS, TARGETS, classifier, fit

LOADER = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=16)


def project(**members):
    """Makes the classifier with other members."""

    def make(pl):
        return type("Project", (type(classifier(pl)),), members)()

    return make


def without_forward(pl):
    made = classifier(pl)
    plain = pl.LightningModule.forward
    return type(
        "Project", (type(made),), {"forward": plain, "loss": lambda self, b: self.head.weight.sum()}
    )()


def whole(self, x):
    return self.head(self.encoder(x))


LOGITS = project(
    forward=lambda self, x: {"logits": whole(self, x)},
    loss=lambda self, b: self(b[0])["logits"].sum(),
)
CLASSES = project(
    forward=lambda self, x: whole(self, x).argmax(1), loss=lambda self, b: whole(self, b[0]).sum()
)
VIEWS = project(
    forward=lambda self, x: whole(self, torch.cat([x, x])),
    loss=lambda self, b: whole(self, b[0]).sum(),
)
SEVERAL = project(val_dataloader=lambda self: [LOADER, LOADER])
NO_SUCH = {"reference": "folder/of/nothing"}

# What is done, and what the message begins with and says.
MISUSES = {
    "a layer by a wrong name": (
        {"layers": ["encoder.layer.*"]},
        "layers: ",
        "nearest names: encoder.layers",
    ),
    "one layer and no list": ({"layers": "output"}, "layers: ", "expected a list of names"),
    "a layer that is not called": (
        {"layers": ["encoder"], "forward": lambda m, b: m.head(torch.ones(len(b[0]), 8))},
        "layers: ",
        "choose layers that it calls, or give forward=",
    ),
    "no probes": ({"probes": None}, "probes: ", "expected the inputs"),
    "a loader by a wrong name": (
        {"probes": "valid_loader"},
        "probes: ",
        "got 'valid_loader'; there is train_dataloader",
    ),
    "one of several loaders": (
        {"probes": "val_dataloader"},
        "probes: ",
        "choose one of 'val_dataloader:0', 'val_dataloader:1'",
        SEVERAL,
    ),
    "a combined loader": (
        {"probes": CombinedLoader([LOADER, LOADER])},
        "probes: ",
        "give a mapping of names to loaders",
    ),
    "a dataset": (
        {"probes": TensorDataset(INPUTS, TARGETS)},
        "probes: ",
        "give DataLoader(dataset, batch_size=32)",
    ),
    "nothing in the probes": ({"probes": []}, "probes: ", "expected at least one batch"),
    "texts without tokenizer": ({"probes": ["a", "b"]}, "probes: ", "texts need tokenizer="),
    "a module without forward": (
        {},
        "forward: ",
        "give forward=lambda module, batch:",
        without_forward,
    ),
    "inputs of another width": (
        {"probes": torch.randn(8, 5)},
        "forward: ",
        "mat1 and mat2 shapes",
        None,
        "give forward=lambda module, batch:",
    ),
    "views in a tuple": (
        {"probes": [((INPUTS, INPUTS), TARGETS)]},
        "forward: ",
        "for the probe batch [[Tensor (48, 6), Tensor (48, 6)], Tensor (48,)]; give forward=",
    ),
    "a forward of one's own that fails": (
        {"forward": lambda m, b: m(b["x"])},
        "forward: ",
        "mend the function that was given as forward=",
    ),
    "a pooling that there is not": (
        {"pooling": "average"},
        "pooling: ",
        "expected none, mean, cls, first, last, flatten or a function",
    ),
    "a pooling that fails": (
        {"pooling": lambda activation, mask: activation[mask.bool()]},
        "pooling: ",
        "(layer layer_0)",
    ),
    "more rows than samples": (
        {},
        "pooling: ",
        "got 20 of layer_0 for a batch with 10; for those that are none, give pooling=",
        VIEWS,
    ),
    "an entry that is not returned": (
        {"layers": ["output.latent"]},
        "layers: ",
        "'output.latent' is not in what forward returned (['logits'])",
        LOGITS,
    ),
    "classes instead of numbers": (
        {},
        "layers: ",
        "expected a floating-point tensor, or a structure with one, got Tensor (10,)",
        CLASSES,
    ),
    "a misspelled reference": (
        {"reference": "Initial"},
        "reference: ",
        "or 'initial', got 'Initial'",
    ),
    "an arm where there are none": (
        {"reference": "arm:base"},
        "reference: ",
        "no arm 'base'; the module has no arms",
    ),
    "a checkpoint that is gone": (
        {"reference": "gone.ckpt"},
        "reference: ",
        "no checkpoint file 'gone.ckpt'",
    ),
    "a folder that is gone": (
        {"reference": "./gone"},
        "reference: ",
        "expected a folder with a config.json, a checkpoint file or a trace",
    ),
    "arms that are none": (
        {"arms": "heads"},
        "arms: ",
        "expected 'heads' to name an nn.ModuleDict",
    ),
    "labels that are not there": (
        {"label_key": "label"},
        "label_key: ",
        "'label' is not in the probe batch [Tensor (10, 6), Tensor (10,)]",
    ),
    "a mask that is not there": ({"mask": "padding"}, "mask: ", "give a function of the batch"),
    "an unknown metric": ({"metrics": ["ckaa"]}, "metrics: ", "cka"),
    "a rhythm of nothing": (
        {"every_n_train_steps": 0},
        "every_n_train_steps: ",
        "expected a positive number",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
@pytest.mark.filterwarnings("ignore:.*but have no `validation_step`")
def test_a_misuse_is_answered_before_the_first_step(name, tmp_path):
    options, argument, cure, *rest = MISUSES[name]
    make, *more = rest or [None]
    steps = []

    def stepping(pl):
        module = (make or classifier)(pl)
        module.on_train_batch_end = lambda *_: steps.append(1)
        return module

    defaults = {"probes": projects.probe_batches(), "metrics": ["cka"], "every_n_train_steps": 2}
    with pytest.raises(HRSAError) as caught:
        fit([SimilarityMonitor(**{**defaults, **options})], tmp_path, make=stepping)
    said = str(caught.value)
    assert said.startswith(argument)
    assert all(text in said for text in (cure, *more)), said
    assert len(said.splitlines()) <= 2
    assert max(map(len, said.splitlines())) <= 400
    assert steps == []
