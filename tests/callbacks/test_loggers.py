"""Loggers are told apart by what they can do, in either flavor."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hrsa_lightning.callbacks import SimilarityMonitor
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
    assert [e.step for e in events.Images("similarity/curves")] == [6]
    layout = events.SummaryMetadata("custom_scalars__config__").plugin_data
    assert layout.plugin_name == "custom_scalars"
    chance = [e.value for e in events.Scalars("similarity/knn_overlap_10/chance/output")]
    assert chance == pytest.approx([chance[0]] * 4)
    assert 0 < chance[0] < 0.3


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


def test_without_a_logger_files_go_to_the_root_folder(tmp_path):
    watch = monitor()
    fit([watch], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"similarity.jsonl", "similarity.png", "similarity_heatmap.png"}


def test_a_history_elsewhere_takes_its_pictures_along(tmp_path):
    fit([monitor(history=tmp_path / "deep" / "mine.jsonl")], tmp_path / "root", max_steps=2)
    names = {path.name for path in Path(tmp_path / "deep").iterdir()}
    assert names == {"mine.jsonl", "similarity.png", "similarity_heatmap.png"}


def test_what_was_measured_is_drawn_even_when_a_run_breaks(tmp_path):
    class Break(flavor().Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit([monitor(), Break()], tmp_path)
    assert (tmp_path / "similarity.png").is_file()
