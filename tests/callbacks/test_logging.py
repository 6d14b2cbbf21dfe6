"""Loggers are told apart by what they can do, in either flavor."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hrsa_lightning.callbacks import RetrievalMonitor, SimilarityMonitor
from hrsa_lightning.callbacks.logging import (
    log_embeddings,
    log_settings,
    log_text,
    values_by_tag,
)
from hrsa_lightning.callbacks.tensorboard import ArmsLogger, Card, cards_of, log_cards
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.similarity import Measurement
from tests.callbacks import projects
from tests.callbacks.projects import FLAVORS, fit, flavor
from tests.callbacks.test_similarity import arms_module


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka", "knn_overlap_10"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 2,
    }
    return SimilarityMonitor("initial", **{**defaults, **options})


def steps_in(folder):
    """Tag to steps of the scalars of a run, its sub folders left out."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("name", FLAVORS)
def test_tensorboard_shows_scalars_pictures_and_chance(tmp_path, name):
    pl = flavor(name)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit([monitor()], tmp_path, pl=pl, logger=logger)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert [e.step for e in events.Scalars("similarity/cka/output")] == [0, 2, 4, 6]
    assert "similarity_layers/cka/layer_0" in events.Tags()["scalars"]
    heatmaps = [e.step for e in events.Images("visuals/similarity/heatmap")]
    assert heatmaps == [0, 4, 6], "every second evaluation and the end"
    for metric in ("cka", "knn_overlap_10"):
        assert [e.step for e in events.Images(f"visuals/similarity/curves/{metric}")] == [6]
    chance = EventAccumulator(f"{logger.log_dir}/chance").Reload()
    levels = [e.value for e in chance.Scalars("similarity/knn_overlap_10/output")]
    assert levels == pytest.approx([levels[0]] * 4)
    assert 0 < levels[0] < 0.3


def test_each_comparison_is_a_run_and_an_arm_is_one(tmp_path):
    """In all TensorBoard loggers; others have the comparison in the tag."""
    pl = flavor()
    boards = [pl.loggers.TensorBoardLogger(tmp_path / each) for each in "ab"]
    csv = pl.loggers.CSVLogger(tmp_path)
    pairs = [{"query": f"q{n}", "pos": [f"right {n}"], "neg": [f"wrong {n}"]} for n in range(4)]
    ranking = RetrievalMonitor(pairs, "arms", encode=lambda _, texts: torch.ones(len(texts), 2))
    watch = SimilarityMonitor(
        ["initial", "arm:x"],
        projects.probe_batches(),
        ["0", "output"],
        "arms",
        metrics=["cka", "cka_plain"],
        every_n_train_steps=1,
    )
    loggers = [*boards, csv]
    trainer = fit([watch, ranking], tmp_path, logger=loggers, make=arms_module, max_steps=2)
    for board in boards:
        folder = Path(board.log_dir)
        runs = {path.parent.name for path in folder.glob("*/events*")}
        assert runs == {"x", "y", "z", "y_vs_x", "z_vs_x", "chance"}
        assert len([*folder.glob("*/events*")]) == len(runs), "one file for each"
        assert steps_in(folder / "y_vs_x") == {
            f"similarity{rest}": [0, 1, 2]
            for rest in ("/cka/output", *(f"_layers/{m}/0" for m in ("cka", "cka_plain")))
        } | {"similarity_layers/cka_plain/output": [0, 1, 2]}
        for run in ("x", "chance"):
            found = steps_in(folder / run)
            assert found["similarity_initial/cka/output"] == [0, 1, 2]
            assert found["task/retrieval/mrr@10"] == [0, 2]
        assert steps_in(folder).keys() == {"similarity/seconds", "task/retrieval/seconds"}
    names = {"similarity/cka/y_vs_x/output", "similarity/cka/x_vs_initial/0", "retrieval/x/mrr@10"}
    header = Path(csv.log_dir, "metrics.csv").read_text().splitlines()[0]
    assert names <= {*header.split(",")}
    assert names <= trainer.callback_metrics.keys()


def test_a_resumed_run_goes_on_without_doubles(tmp_path):
    pl = flavor()

    class KilledError(Exception):
        pass

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 11:
                raise KilledError

    def run(*callbacks, **options):
        save = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="{step}")
        logger = pl.loggers.TensorBoardLogger(tmp_path, "", "")
        watch = monitor(heatmap_every_n_evaluations=0)
        options |= {"logger": logger, "enable_checkpointing": True, "max_steps": 12}
        fit([watch, *callbacks, save], tmp_path, **options)

    with pytest.raises(KilledError):
        run(Kill())
    (first,) = (tmp_path / "chance").iterdir()
    first.write_bytes(first.read_bytes()[:-3])  # a kill may come in the middle of a record
    run(ckpt_path=tmp_path / "step=6.ckpt")
    assert steps_in(tmp_path / "chance")["similarity/cka/output"] == [*range(0, 13, 2)]


def test_names_of_arms_become_folders_that_exist_everywhere(tmp_path):
    logger = flavor().loggers.TensorBoardLogger(tmp_path, prefix="mine")
    odd = ["../../up", "org/model:7b", "org/model?7b", "chance", "ä" * 300, "..", "fine-1.5b"]
    found = [Measurement("mrr@10", 0.5, 0.1, arm=arm) for arm in odd]
    log_cards(logger, cards_of("retrieval", found), 3)
    runs = {path.parent for path in tmp_path.rglob("events*")}
    assert {path.parent for path in runs} == {Path(logger.log_dir)}
    assert len(runs) == len(odd) + 1
    assert all(len(path.name.encode()) < 200 for path in runs)
    assert {"fine-1.5b", "chance"} < {path.name for path in runs}
    assert steps_in(Path(logger.log_dir) / "chance") == {"mine-task/retrieval/mrr@10": [3]}


def test_chance_is_the_level_that_is_hardest_to_tell_from_likeness():
    def two(metric, *levels):
        found = [
            Measurement(metric, 0.5, level, arm=arm, reference="r", layer="output")
            for arm, level in zip("ab", levels, strict=True)
        ]
        return {card: v for card, v in cards_of("s", found).items() if v != 0.5}

    assert two("cka", 0.1, 0.11) == {Card("chance", "s/cka/output"): 0.11}
    tag = "s_layers/procrustes_residual_chance/output"
    assert two("procrustes_residual", 2.0, 4400.0) == {
        Card("chance", "s/procrustes_residual/output"): 2.0,
        Card("a_vs_r", tag): 2.0,
        Card("b_vs_r", tag): 4400.0,
    }


def test_values_that_are_no_comparison_keep_their_group():
    found = [Measurement("norm", 0.5, layer="first"), Measurement("norm", 0.5, layer="second")]
    assert [*cards_of("norms", found)] == [("", "norms/norm/first"), ("", "norms/norm/second")]


def test_losses_of_arms_share_a_card_and_the_epoch_is_not_the_first_one(tmp_path):
    logger = ArmsLogger(tmp_path, ["a", "b"])
    for step in (0, 1):
        losses = {"train/loss/a": torch.tensor(1.0), "train/loss/b": 2.0, "train/tokens": 3.0}
        logger.log_metrics({**losses, "epoch": 0}, step=step)
    logger.finalize("success")
    for arm in "ab":
        assert steps_in(tmp_path / arm) == {"train/loss": [0, 1]}
    assert steps_in(tmp_path) == {"train/tokens": [0, 1], "train/epoch": [0, 1]}


def test_two_values_of_one_tag_are_refused():
    m = Measurement("cka", 0.5, arm="a", reference="b", layer="x", label="y", low=0.4, high=0.6)
    found = values_by_tag("similarity", [m])
    assert found == {
        "similarity/cka/a_vs_b/x/y": 0.5,
        "similarity/cka_low/a_vs_b/x/y": 0.4,
        "similarity/cka_high/a_vs_b/x/y": 0.6,
    }
    for other in (m._replace(layer="x/y", label=""), m._replace(metric="cka_low", low=None)):
        with pytest.raises(ConfigError, match="two values have the tag"):
            values_by_tag("similarity", [m, other])


def test_the_projector_holds_the_last_representations_with_labels(tmp_path):
    logger = flavor().loggers.TensorBoardLogger(tmp_path)
    watch = monitor(projector=True, label_key=1)
    fit([watch], tmp_path, logger=logger, max_steps=2)
    config = (Path(logger.log_dir) / "projector_config.pbtxt").read_text()
    assert 'tensor_name: "similarity/output:00002"' in config
    (folder,) = Path(logger.log_dir).glob("00002/*")
    labels = (folder / "metadata.tsv").read_text().split()
    assert labels == [str(int(target)) for target in projects.TARGETS]
    rows = [line.split("\t") for line in (folder / "tensors.tsv").read_text().splitlines()]
    assert torch.tensor([[float(v) for v in row] for row in rows]).shape == (48, 3)


def test_texts_and_labels_are_two_titled_columns(tmp_path):
    logger = flavor().loggers.TensorBoardLogger(tmp_path)
    columns = {"label": ["a", "b"], "text": ["one\ttwo", "three\n"]}
    log_embeddings(SimpleNamespace(loggers=[logger]), "x", torch.eye(2), columns, 3)
    (metadata,) = Path(logger.log_dir).glob("00003/x/metadata.tsv")
    assert metadata.read_text() == "label\ttext\na\tone two\nb\tthree\n"


def test_settings_and_a_card_go_into_the_run_itself(tmp_path):
    logger = flavor().loggers.TensorBoardLogger(tmp_path)
    trainer = fit([monitor()], tmp_path, logger=logger)
    settings = {"optimizer.lr": 0.1, "arms": ["a", "b"], "model.lora": None, "data.weights": []}
    log_settings(trainer, settings, [Card("", "similarity/cka/output"), Card("a", "task/mrr@10")])
    log_text(trainer, "summary", "cka   0.5\nknn  0.25", 6)
    assert [path.name for path in Path(logger.log_dir).iterdir() if path.is_dir()] == ["chance"]
    events = EventAccumulator(logger.log_dir).Reload()
    assert [e.step for e in events.Scalars("similarity/cka/output")] == [0, 2, 4, 6], "no more"
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(start).session_start_info.hparams
    assert sorted(settings) == ["arms", "optimizer.lr"], "what is unset is left out"
    assert settings["optimizer.lr"].number_value == 0.1
    assert settings["arms"].string_value == "['a', 'b']"
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(experiment).experiment.metric_infos
    names = [(metric.name.group, metric.name.tag) for metric in metrics]
    assert names == [("", "similarity/cka/output"), ("a", "task/mrr@10")]
    (card,) = events.Tensors("summary/text_summary")
    assert card.tensor_proto.string_val[0] == b"    cka   0.5\n    knn  0.25"


def offline_logger(pl, base):
    class Offline(pl.loggers.logger.Logger, base):
        name = "offline"
        version = 0

        def __init__(self):
            super().__init__()
            self.pictures = []

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            self.last = metrics

    return Offline()


class LikeWandb:
    save_dir = None

    @property
    def experiment(self):
        return object()

    def log_image(self, key, images, step):
        self.pictures.append((key, images[0].shape[2], step))


class LikeMLflow:
    run_id = "r1"

    @property
    def experiment(self):
        logger = self

        class Client:
            def log_figure(self, run_id, figure, artifact_file):
                figure.savefig("/dev/null", format="png")
                logger.pictures.append((run_id, artifact_file))

        return Client()


def test_loggers_with_log_image_and_with_log_figure(tmp_path):
    pl = flavor()
    wandb, mlflow = offline_logger(pl, LikeWandb), offline_logger(pl, LikeMLflow)
    fit([monitor()], tmp_path, logger=[wandb, mlflow], max_steps=2)
    assert wandb.pictures[0] == ("similarity/heatmap", 3, 0)
    assert mlflow.pictures[0] == ("r1", "similarity_heatmap_00000000.png")
    assert "similarity/cka/output" in wandb.last


def test_without_a_logger_every_fit_has_a_folder_of_its_own(tmp_path):
    for version in range(2):
        fit([monitor()], tmp_path)
        names = {path.name for path in (tmp_path / f"lightning_logs/version_{version}").iterdir()}
        data = {"similarity.jsonl", "similarity.details.jsonl"}
        pictures = {"similarity.png", "similarity_heatmap.png"}
        assert data | pictures <= names


def test_a_history_elsewhere_takes_its_pictures_along(tmp_path):
    fit([monitor(history=tmp_path / "deep" / "mine.jsonl")], tmp_path / "root", max_steps=2)
    names = {path.name for path in Path(tmp_path / "deep").iterdir()}
    data = {"mine.jsonl", "mine.details.jsonl"}
    assert names == {*data, "similarity.png", "similarity_heatmap.png"}


def test_what_was_measured_is_drawn_even_when_a_run_breaks(tmp_path):
    class Break(flavor().Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit([monitor(), Break()], tmp_path)
    assert (tmp_path / "lightning_logs/version_0/similarity.png").is_file()
