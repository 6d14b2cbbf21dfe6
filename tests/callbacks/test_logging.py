"""Loggers are told apart by what they can do, in either flavor."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hrsa_lightning.callbacks import RetrievalMonitor, SimilarityMonitor
from hrsa_lightning.callbacks.logging import (
    chart_layout,
    log_embeddings,
    log_settings,
    log_text,
    tag_of,
    values_by_tag,
)
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.similarity import Measurement
from tests.callbacks import projects
from tests.callbacks.projects import FLAVORS, fit, flavor


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


@pytest.mark.parametrize("name", FLAVORS)
def test_tensorboard_shows_scalars_pictures_and_a_layout(tmp_path, name):
    pl = flavor(name)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit([monitor()], tmp_path, pl=pl, logger=logger)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert [e.step for e in events.Scalars("similarity/cka/output")] == [0, 2, 4, 6]
    heatmaps = [e.step for e in events.Images("similarity/heatmap")]
    assert heatmaps == [0, 4, 6], "every second evaluation and the end"
    for metric in ("cka", "knn_overlap_10"):
        assert [e.step for e in events.Images(f"similarity/curves/{metric}")] == [6]
    layout = events.SummaryMetadata("custom_scalars__config__").plugin_data
    assert layout.plugin_name == "custom_scalars"
    floor = [e.value for e in events.Scalars("similarity/knn_overlap_10/floor/output")]
    assert floor == pytest.approx([floor[0]] * 4)
    assert 0 < floor[0] < 0.3


def charts(folder):
    """Section to chart to patterns, as TensorBoard would show them: the last layout of a run."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    return {
        section.title: {chart.title: list(chart.multiline.tag) for chart in section.chart}
        for section in Layout.FromString(content).category
    }


def test_monitors_of_one_trainer_share_a_layout(tmp_path):
    pairs = [{"query": f"q{n}", "pos": [f"right {n}"], "neg": [f"wrong {n}"]} for n in range(4)]
    ranking = RetrievalMonitor(pairs, encode=lambda module, texts: torch.ones(len(texts), 2))
    logger = flavor().loggers.TensorBoardLogger(tmp_path)
    fit([monitor(), monitor(name="other"), ranking], tmp_path, logger=logger, max_steps=2)
    found = charts(logger.log_dir)
    knn = found["similarity at output"]["knn_overlap_10"]
    assert knn == ["similarity/knn_overlap_10/output$", "similarity/knn_overlap_10/floor/output$"]
    assert "cka" in found["other at layer_0"]
    ranks = found["retrieval on held-out pairs"]["recall@1"]
    assert ranks == ["retrieval/recall@1$", "retrieval/floor/recall@1$"]


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


def test_a_chart_shows_its_own_place_only():
    found = [Measurement("cka", 0.5, arm="a", reference="b", layer=f"layer_{n}") for n in (1, 10)]
    tags = [tag_of("similarity", m) for m in found]
    layout = chart_layout("similarity", found)
    (pattern,) = layout["similarity at layer_1, against b"]["cka"][1]
    assert [bool(re.match(pattern, tag)) for tag in tags] == [True, False]


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
    log_settings(trainer, settings, ["similarity/cka/output"])
    log_text(trainer, "summary", "cka   0.5\nknn  0.25", 6)
    assert [path for path in Path(logger.log_dir).iterdir() if path.is_dir()] == []
    events = EventAccumulator(logger.log_dir).Reload()
    assert [e.step for e in events.Scalars("similarity/cka/output")] == [0, 2, 4, 6], "no more"
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(start).session_start_info.hparams
    assert sorted(settings) == ["arms", "optimizer.lr"], "what is unset is left out"
    assert settings["optimizer.lr"].number_value == 0.1
    assert settings["arms"].string_value == "['a', 'b']"
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    (metric,) = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert metric.name.tag == "similarity/cka/output"
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
