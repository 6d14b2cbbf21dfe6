"""The forms in callbacks/README.md: what LightningCLI and Hydra make of them is watched."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import (
    Monitor,
    RepresentationRecorder,
    Schedule,
    SimilarityMonitor,
)
from hrsa_lightning.io.resources import resolve_path, resource_files, resource_folder
from hrsa_lightning.similarity import Measurement, SimilarityEvaluator
from hrsa_lightning.similarity.trace import TraceWriter
from tests.callbacks import projects
from tests.callbacks.projects import classifier, fit, flavor, same, weights
from tests.histories import read_tags

PRESETS = resource_files("callbacks")

pytestmark = [
    # The command line of Lightning seeds where nobody did.
    pytest.mark.filterwarnings("ignore:No seed found"),
    # A loader that only the monitor reads.
    pytest.mark.filterwarnings("ignore:.*but have no `validation_step`"),
    # Untrained dead units leave the alignment of so few features open.
    pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning"),
]


def readme(language, heading):
    text = (resource_folder("callbacks") / "README.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)
    return block


class Project(type(classifier(flavor()))):
    """The classifier as the README's user has it, with a validation loader."""

    def train_dataloader(self):
        return projects.train_loader()

    def val_dataloader(self):
        return DataLoader(TensorDataset(projects.INPUTS, projects.TARGETS), batch_size=16)


def project(pl):
    return Project()


def tags(watch):
    return set(read_tags(watch.history_path)[-1]["values"])


def test_plain_lightning(tmp_path):
    names = {"SimilarityMonitor": SimilarityMonitor}
    lines = readme("python", "Plain Lightning").split("trainer =")[0]
    exec(lines, names)
    fit([names["monitor"]], tmp_path, make=project, max_steps=1)
    assert {"similarity/cka/layer_0", "similarity/cka/output"} <= tags(names["monitor"])


def test_a_monitor_of_ones_own(tmp_path):
    names = {"Monitor": Monitor, "Schedule": Schedule, "Measurement": Measurement}
    (lines,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(Monitor), flags=re.DOTALL)
    exec(lines, names)
    watch = names["NormMonitor"](2)
    trainer = fit([watch], tmp_path / "a", max_steps=3)
    assert [record["step"] for record in read_tags(watch.history_path)] == [0, 2, 3]
    norm = trainer.lightning_module.head.weight.norm().item()
    assert trainer.callback_metrics["norms/norm/head.weight"].item() == pytest.approx(norm)
    assert same(weights(trainer), weights(fit([], tmp_path / "b", max_steps=3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's calls of jsonargparse
def test_lightning_cli(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    monkeypatch.setattr("sys.argv", ["project"])  # it warns of arguments beside `args`
    from lightning.pytorch.cli import LightningCLI

    config = yaml.safe_load(readme("yaml", "LightningCLI"))
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    config["trainer"] |= dict.fromkeys(quiet, False)
    config["trainer"] |= {"max_steps": 1, "accelerator": "cpu", "default_root_dir": str(tmp_path)}
    config["trainer"]["callbacks"][0]["init_args"]["pooling"] = {"output": "flatten"}
    cli = LightningCLI(Project, args=config, run=False, save_config_callback=None)
    cli.trainer.fit(cli.model)
    (watch,) = (found for found in cli.trainer.callbacks if isinstance(found, SimilarityMonitor))
    assert watch.schedule.every_n_train_steps == 50
    assert watch.evaluator.extractor.pooling.method_of("output") == "flatten"
    assert watch.evaluator.extractor.pooling.method_of("layer_0") == "mean"
    assert {"similarity/cka/layer_1", "similarity/cka/output"} <= tags(watch)


def as_hydra_does(config):
    """What `hydra.utils.instantiate` calls: the target with the nodes of the config as they are."""
    config = OmegaConf.create(config)
    module, _, name = config["_target_"].rpartition(".")
    arguments = {key: config[key] for key in config if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**arguments)


def test_the_lines_for_the_hydra_template_are_those_of_its_example():
    """`tests/examples` composes and trains the example as the template does."""
    folder = Path(__file__).parents[2] / "examples/hydra_template/configs/callbacks"
    lines = [readme("yaml", "Hydra"), (folder / "default.yaml").read_text(encoding="utf-8")]
    ours = [{e for e in yaml.safe_load(text)["defaults"] if "drift" in e} for text in lines]
    assert ours == [{"drift_from_start@similarity"}] * 2


@pytest.mark.parametrize("name", PRESETS)
def test_hydra_instantiates_every_preset(name, tmp_path):
    content = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    if str(content.get("reference", "")).startswith("trace:"):
        TraceWriter(tmp_path, {"": "abc"}).add(0, {"": {"": {"output": torch.ones(1, 1)}}})
        content["reference"] = f"trace:{tmp_path}"
    paths = {"probes", "pairs"} & content.keys()
    content |= {key: resolve_path(content[key]) for key in paths}  # the user's own paths
    assert isinstance(as_hydra_does(content), Monitor)


def test_hydra_trains_with_a_preset(tmp_path):
    content = yaml.safe_load(PRESETS["drift_from_start"].read_text(encoding="utf-8"))
    content |= {
        "layers": ["encoder.layers.*", "output"],
        "metrics": ["cka"],
        "reference": ["initial"],
    }
    watch = as_hydra_does({**content, "pooling": {"output": "flatten"}, "on_error": "raise"})
    fit([watch], tmp_path, make=project, max_steps=1)
    assert {"similarity/cka/layer_0", "similarity/cka/output"} <= tags(watch)
    assert Path(watch.history_path).is_file()


@pytest.mark.parametrize("taker", [SimilarityMonitor, RepresentationRecorder, SimilarityEvaluator])
def test_signatures_spell_the_arguments_of_extraction(taker):
    parameters = inspect.signature(taker).parameters
    assert parameters["pooling"].default == "mean"
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
