"""The programs in examples/ run as they stand; watching them changes no weight."""

import importlib
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.io.resources import resource_folder
from tests.histories import read_tags
from tests.tiny import make_backbone

QUICK = {"heatmap_every_n_evaluations": 0, "null": 0}
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning"),
    # What Lightning says of a run without settings: no logger chosen, a GPU that is not used.
    pytest.mark.filterwarnings("ignore:.*TensorBoard.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Lightning's calls of jsonargparse
]


class Nothing(pl.Callback):
    """Takes the place of the monitor."""

    def __init__(self, *args, **options):
        pass


def example(name):
    return importlib.import_module(f"examples.{name}")


def weights(trainer):
    return {k: v.clone() for k, v in trainer.lightning_module.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def histories(trainer):
    monitors = [c for c in trainer.callbacks if isinstance(c, SimilarityMonitor)]
    return {watch.name: read_tags(watch.history_path) for watch in monitors}


def run(name, folder, monkeypatch, **options):
    """Histories of an example's monitors; its weights are as they are without them."""
    module = example(name)
    quick = partial(SimilarityMonitor, **QUICK)
    monkeypatch.setattr(module, "SimilarityMonitor", quick)
    watched = module.main(folder=folder / "with", **options)
    monkeypatch.setattr(module, "SimilarityMonitor", Nothing)
    alone = module.main(folder=folder / "without", **options)
    assert same(weights(watched), weights(alone))
    return histories(watched)


GALLERY = {
    # Options, and the series that move from 1.
    "digits_cnn": ({"max_epochs": 1}, ["similarity/cka/feature_2", "similarity/cka/output"]),
    "graph_network": ({"max_steps": 20}, ["similarity/cka/conv_0", "similarity/cka/output"]),
    "audio_tagger": ({"max_steps": 20}, ["similarity/cka/encoder_0", "similarity/cka/output"]),
    "text_classifier": ({"max_steps": 10}, ["similarity/cka/layer_0", "similarity/cka/layer_2"]),
    "language_model": ({"max_steps": 10}, ["similarity/cka/layer_11", "similarity/cka/output"]),
    "gan": ({"max_epochs": 1}, ["generator/cka/output", "discriminator/cka/discriminator.1"]),
    "detector": ({"max_steps": 20}, ["similarity/cka/backbone_0", "similarity/cka/objectness"]),
    "autoencoder": ({"max_epochs": 1}, ["similarity/cka/live_vs_initial/output.latent"]),
}


@pytest.mark.parametrize("name", GALLERY)
def test_an_example_is_watched_and_unchanged(name, tmp_path, monkeypatch):
    options, series = GALLERY[name]
    found = run(name, tmp_path, monkeypatch, **options)
    for tag in series:
        values = [record["values"][tag] for record in found[tag.partition("/")[0]]]
        assert values[0] == pytest.approx(1.0, abs=1e-5)
        assert values[-1] < 0.99999


def test_the_gallery_is_complete():
    programs = {path.stem for path in EXAMPLES.glob("*.py")}
    loops = {"own_loop", "fabric_loop", "transformers_trainer"}
    assert programs == GALLERY.keys() | loops
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+?)(?:\.py|/)?` \|", readme, re.MULTILINE))
    assert listed == programs | {"lightning_cli", "hydra_template"}


def test_lightning_cli(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    monkeypatch.setattr("sys.argv", ["main.py"])  # it warns of arguments beside `args`
    config = yaml.safe_load((EXAMPLES / "lightning_cli/config.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"max_steps": 10, "enable_progress_bar": False}
    config["trainer"]["callbacks"][0]["init_args"] |= QUICK

    def trained(**trainer):
        return example("lightning_cli.main").main(
            {"fit": {**config, "trainer": {**config["trainer"], **trainer}}, "subcommand": "fit"}
        )

    watched = trained(default_root_dir=str(tmp_path / "with"))
    alone = trained(default_root_dir=str(tmp_path / "without"), callbacks=[])
    assert same(weights(watched), weights(alone))
    assert histories(watched)["similarity"][-1]["values"]["similarity/cka/net_2"] < 0.99999


def composed(folder, name):
    """What Hydra makes of a file: `group: option` and `file@package` of its defaults, in order."""
    content = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    merged = OmegaConf.create()
    for entry in [*content.pop("defaults", []), "_self_"]:
        if entry == "_self_":
            merged = OmegaConf.merge(merged, content)
        elif isinstance(entry, dict):
            ((group, option),) = entry.items()
            merged = OmegaConf.merge(merged, {group: composed(folder / group, f"{option}.yaml")})
        else:
            file, _, package = entry.partition("@")
            part = composed(folder, f"{file}.yaml")
            merged = OmegaConf.merge(merged, {package: part} if package else part)
    return merged


def instantiate(config, **arguments):
    module, _, name = config["_target_"].rpartition(".")
    given = {key: config[key] for key in config if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**given, **arguments)


def test_hydra_template(tmp_path, monkeypatch):
    utils = SimpleNamespace(instantiate=instantiate)
    stub = SimpleNamespace(utils=utils, main=lambda **_: lambda function: function)
    monkeypatch.setitem(sys.modules, "hydra", stub)
    folder = EXAMPLES / "hydra_template/configs"
    trained = {}
    for name in ("with", "without"):
        config = composed(folder, "train.yaml")
        config.trainer.merge_with(
            {
                "max_steps": 24,  # an epoch: the checkpoint wants a validation loss
                "default_root_dir": str(tmp_path / name),
                "enable_progress_bar": False,
            }
        )
        config.callbacks.similarity.merge_with(QUICK)
        if name == "without":
            del config.callbacks["similarity"]
        trained[name] = example("hydra_template.main").train(config)
    assert same(*map(weights, trained.values()))
    found = histories(trained["with"])["similarity"]
    assert found[-1]["values"]["similarity/cka/net_2"] < 0.99999
    preset = (resource_folder("callbacks") / "drift_from_start.yaml").read_text(encoding="utf-8")
    assert (folder / "callbacks/drift_from_start.yaml").read_text(encoding="utf-8") == preset


@pytest.mark.filterwarnings("ignore::UserWarning")  # of hydra 1.3 with a newer OmegaConf
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_names_of_callbacks_are_those_that_hydra_gives():
    hydra = pytest.importorskip("hydra", reason="the real one, where it is installed")
    with hydra.initialize_config_dir(str(EXAMPLES / "hydra_template/configs"), version_base="1.3"):
        config = hydra.compose("train.yaml")
    assert config == composed(EXAMPLES / "hydra_template/configs", "train.yaml")


def drift(history, layer="output"):
    return [m.value for m in history if (m.metric, m.layer) == ("cka", layer)]


@pytest.mark.parametrize("name", ["own_loop", "fabric_loop"])
def test_own_loops(name):
    module = example(name)
    options = {"steps": 20, "every": 10} if name == "own_loop" else {"epochs": 1}
    train = module.train if name == "own_loop" else module.main
    model, history = train(**options)
    assert drift(history)[0] == pytest.approx(1.0, abs=1e-4)
    assert drift(history)[-1] < 0.999
    assert same(model.state_dict(), train(**options, watch=False)[0].state_dict())


def _on_a_rank(rank, world_size):
    module = example("own_loop")
    model, history = module.train(steps=6, every=3)
    alone, _ = module.train(steps=6, watch=False)
    assert same(model.state_dict(), alone.state_dict())
    return drift(history)


@pytest.mark.ddp
def test_an_own_loop_on_two_ranks(ddp_pool):
    first, second = ddp_pool.run(_on_a_rank)
    assert first == second
    assert first[0] == pytest.approx(1.0)
    assert first[-1] < 0.9999


def test_the_trainer_of_transformers(tmp_path):
    module = example("transformers_trainer")
    trainer = module.main(max_steps=20, folder=tmp_path / "with")
    alone = module.main(max_steps=20, folder=tmp_path / "without", watch=False)
    assert same(trainer.model.state_dict(), alone.model.state_dict())
    (callback,) = (
        c for c in trainer.callback_handler.callbacks if isinstance(c, module.SimilarityCallback)
    )
    found = [m.step for m in callback.history if (m.metric, m.layer) == ("cka", "output")]
    assert found == [0, 10, 20]
    assert drift(callback.history)[-1] < 0.9999
    assert any("similarity/cka/layer_0" in record for record in trainer.state.log_history)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_trainer_of_sentence_transformers(tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    folder = make_backbone(tmp_path / "backbone")
    texts = [f"{word} {number} times" for word in ("add", "read", "raise") for number in range(16)]
    pairs = Dataset.from_dict({"anchor": texts, "positive": [text[::-1] for text in texts]})
    states = []
    for watch in (True, False):
        torch.manual_seed(0)
        model = SentenceTransformer(str(folder), device="cpu")
        callback = example("transformers_trainer").SimilarityCallback(
            texts, ["0.**.layers.*", "output"], tokenizer=model.preprocess
        )
        trainer = SentenceTransformerTrainer(
            model,
            Arguments(
                str(tmp_path / str(watch)),
                max_steps=4,
                learning_rate=1e-2,
                logging_steps=2,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            pairs,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[callback] if watch else [],
        )
        trainer.train()
        states.append(model.state_dict())
        if watch:
            assert {m.layer for m in callback.history} >= {"layer_0", "layer_1", "output"}
            assert drift(callback.history)[-1] < 0.9999
    assert same(*states)
