"""The monitor in public Lightning projects: their own modules and loaders, on made-up data.

    pip install chemprop pytorch-forecasting neuralforecast darts gluonts pytorch-tabular deeptab \
        mlcolvar pina-mathlab asteroid scvi-tools
    python -m benchmarks.projects chemprop --rounds 3

Each project is trained with and without a monitor, in turns, with the logger that it has by itself.
Printed: whether the weights are the same to the bit; how many evaluations there were, and how long
one takes (median); CPU seconds of the fit without the monitor, on one thread, and how many times as
long it takes with it (median of the rounds). Validation, loggers, pictures, and the permutations of
the first and the last evaluation are included.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.similarity.history import read_evaluations

Options = dict[str, Any]
"""Arguments of a trainer."""


def series(num_series: int = 24, length: int = 120) -> Tensor:
    """Noisy waves, (series, time)."""
    speed = torch.linspace(0.5, 2, num_series)[:, None]
    return torch.sin(torch.arange(length) / 8 * speed) + 0.1 * torch.randn(num_series, length)


def table(values: Tensor) -> pd.DataFrame:
    """The same as rows of series, time and value."""
    num_series, length = values.shape
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"s{n}" for n in range(num_series)], length),
            "ds": np.tile(np.arange(length), num_series),
            "y": values.flatten().numpy(),
        }
    )


def chemprop(options: Options) -> nn.Module:
    """Message passing over molecules."""
    from chemprop import data, models
    from chemprop import nn as parts

    smiles = [
        f"{'C' * n}{group}{'C' * m}"
        for n in range(1, 17)
        for m in range(1, 9)
        for group in ("O", "N", "C(=O)", "c1ccccc1")
    ]
    points = [data.MoleculeDatapoint.from_smi(s, [len(s) / 10]) for s in smiles]
    order = torch.randperm(len(points)).tolist()
    train, val = (
        data.MoleculeDataset([points[n] for n in part]) for part in (order[:448], order[448:])
    )
    model = models.MPNN(parts.BondMessagePassing(), parts.MeanAggregation(), parts.RegressionFFN())
    loaders = (data.build_dataloader(train, 32), data.build_dataloader(val, 32, shuffle=False))
    pl.Trainer(**options).fit(model, *loaders)
    return model


def pytorch_forecasting(options: Options) -> nn.Module:
    """Temporal fusion transformer."""
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet

    frame = table(series())
    names: Options = {"time_idx": "ds", "target": "y", "group_ids": ["unique_id"]}
    past: Options = {"max_encoder_length": 24, "max_prediction_length": 6}
    train = TimeSeriesDataSet(
        frame[frame.ds < 100],
        **names,
        **past,
        time_varying_known_reals=["ds"],
        time_varying_unknown_reals=["y"],
        static_categoricals=["unique_id"],
    )
    val = TimeSeriesDataSet.from_dataset(train, frame, predict=True, stop_randomization=True)
    model = TemporalFusionTransformer.from_dataset(
        train, hidden_size=16, attention_head_size=2, loss=QuantileLoss(), log_interval=-1
    )
    loaders = [
        each.to_dataloader(train=each is train, batch_size=64, num_workers=0)
        for each in (train, val)
    ]
    pl.Trainer(**options).fit(model, *loaders)
    return model


def neuralforecast(options: Options) -> nn.Module:
    """NHITS, whose training step cuts its windows out of whole series."""
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    options = {**options}
    model = NHITS(
        h=6,
        input_size=24,
        max_steps=options.pop("max_steps"),
        windows_batch_size=128,
        mlp_units=3 * [[64, 64]],
        val_check_steps=50,
        random_seed=0,
        **options,
    )
    frame = NeuralForecast(models=[model], freq=1)
    frame.fit(table(series()), val_size=12)
    trained = frame.models[0]
    options["callbacks"][:] = trained.trainer_kwargs["callbacks"]  # it trains copies of them
    return trained


def darts(options: Options) -> nn.Module:
    """Its transformer."""
    from darts import TimeSeries
    from darts.models import TransformerModel

    model = TransformerModel(
        24,
        6,
        d_model=32,
        nhead=4,
        dim_feedforward=64,
        n_epochs=1000,
        random_state=0,
        pl_trainer_kwargs=options,
    )
    values = [TimeSeries.from_values(row.numpy()) for row in series(12).float()]
    model.fit([v[:100] for v in values], val_series=[v[76:] for v in values])
    return model.model


def gluonts(options: Options) -> nn.Module:
    """PatchTST on an endless stream of windows."""
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.torch import PatchTSTEstimator

    frame = table(series()).assign(
        ds=lambda f: pd.Timestamp("2020-01-01") + pd.to_timedelta(f.ds, "D")
    )
    data = PandasDataset.from_long_dataframe(
        frame, item_id="unique_id", timestamp="ds", target="y", freq="D"
    )
    estimator = PatchTSTEstimator(
        6, patch_len=6, context_length=24, num_batches_per_epoch=100, trainer_kwargs=options
    )
    return estimator.train_model(data, data).trained_net


def pytorch_tabular(options: Options) -> nn.Module:
    """A transformer over columns."""
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import FTTransformerConfig

    values = torch.randn(1024, 6)
    frame = pd.DataFrame(values.numpy(), columns=list("abcdef"))
    frame["kind"] = (values[:, 0] > 0).int().numpy().astype(str)
    frame["label"] = (values.sum(1) > 0).int().numpy()
    model = TabularModel(
        data_config=DataConfig(
            target=["label"], continuous_cols=list("abcdef"), categorical_cols=["kind"]
        ),
        model_config=FTTransformerConfig(
            task="classification", input_embed_dim=16, num_attn_blocks=2
        ),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=64,
            max_epochs=1000,
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            progress_bar="none",
            accelerator="cpu",
            trainer_kwargs={
                "max_steps": options["max_steps"],
                "enable_model_summary": False,
                "default_root_dir": options["default_root_dir"],
            },
        ),
        verbose=False,
    )
    model.fit(frame[:896], frame[896:], callbacks=options["callbacks"])
    return model.model


def mlcolvar(options: Options) -> nn.Module:
    """Collective variables of molecular dynamics."""
    from mlcolvar.cvs import DeepTDA
    from mlcolvar.data import DictDataset, DictModule

    data = torch.cat([torch.randn(1000, 12), torch.randn(1000, 12) + 1])
    labels = torch.arange(2.0).repeat_interleave(1000)
    model = DeepTDA(2, 1, [-7.0, 7.0], [0.2, 0.2], [12, 48, 24, 1])
    loaders = DictModule(
        DictDataset({"data": data, "labels": labels}),
        lengths=[0.8, 0.2],
        batch_size=100,
        shuffle=True,
    )
    pl.Trainer(**options).fit(model, loaders)
    return model


def asteroid(options: Options) -> nn.Module:
    """Conv-TasNet separates two voices."""
    from asteroid.engine.system import System
    from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
    from asteroid.models import ConvTasNet

    voices = torch.randn(64, 2, 1600)
    data = TensorDataset(voices.sum(1), voices)
    model = ConvTasNet(
        2, n_filters=64, bn_chan=32, hid_chan=64, skip_chan=32, n_blocks=3, n_repeats=2
    )
    system = System(
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx"),
        DataLoader(data, 8, shuffle=True),
        DataLoader(data, 8),
    )
    import pytorch_lightning

    pytorch_lightning.Trainer(**options).fit(system)
    return system


def scvi(options: Options) -> nn.Module:
    """Gene expression of single cells."""
    from anndata import AnnData
    from scvi import settings
    from scvi.model import SCVI

    settings.seed = 0  # splits the cells
    counts = torch.poisson(torch.rand(1024, 1) * torch.rand(100) * 20)
    cells = AnnData(counts.numpy())
    SCVI.setup_anndata(cells)
    model = SCVI(cells, n_hidden=64, n_latent=8)
    model.train(1000, batch_size=64, **options)
    return model.module


def deeptab(options: Options) -> nn.Module:
    """A residual network over columns, in the manner of scikit-learn."""
    from deeptab.models import ResNetClassifier

    values = torch.randn(1024, 6)
    frame = pd.DataFrame(values.numpy(), columns=list("abcdef"))
    labels = (values.sum(1) > 0).int().numpy()
    model = ResNetClassifier()
    model.fit(
        frame[:896],
        labels[:896],
        X_val=frame[896:],
        y_val=labels[896:],
        max_epochs=1000,
        patience=1000,
        batch_size=64,
        **options,
    )
    return model._task_model


def pina(options: Options) -> nn.Module:
    """A supervised solver."""
    from pina import Trainer
    from pina.model import FeedForward
    from pina.problem.zoo import SupervisedProblem
    from pina.solver import SupervisedSingleModelSolver

    inputs = torch.rand(1024, 4)
    problem = SupervisedProblem(inputs, torch.sin(6 * inputs.sum(1, keepdim=True)))
    solver = SupervisedSingleModelSolver(
        problem, FeedForward(4, 1, inner_size=32, n_layers=3), use_lt=False
    )
    Trainer(solver, batch_size=64, train_size=0.8, val_size=0.2, **options).train()
    return solver


class Project(NamedTuple):
    """A fit, the arguments that the monitor needs beyond the two lines, and how long to train."""

    fit: Callable[[Options], nn.Module]
    added: Options | None = None
    steps: int = 100


PROJECTS = {
    "chemprop": Project(chemprop, steps=150),
    "pytorch-forecasting": Project(pytorch_forecasting, steps=150),
    "neuralforecast": Project(
        neuralforecast,
        {
            "forward": lambda module, batch: module.validation_step(batch, 0),
            "layers": ["blocks.*"],
            "pooling": {"*": lambda activation, mask: activation},
        },
        steps=900,
    ),
    "darts": Project(
        darts,
        {
            "forward": lambda module, batch: module(batch.to_module_input()),
            "pooling": {"layer_*": lambda activation, mask: activation.mean(0)},
        },
        steps=180,
    ),
    "gluonts": Project(
        gluonts,
        {
            "forward": lambda module, batch: module(
                batch["past_target"], batch["past_observed_values"]
            )
        },
        steps=500,
    ),
    "pytorch-tabular": Project(pytorch_tabular, steps=300),
    "deeptab": Project(deeptab, {"forward": lambda module, batch: module(*batch[0])}, steps=1200),
    "mlcolvar": Project(
        mlcolvar, {"forward": lambda module, batch: module(batch["data"])}, steps=1700
    ),
    "pina-mathlab": Project(
        pina, {"forward": lambda module, batch: module(batch[0][1]["input"])}, steps=2000
    ),
    "asteroid": Project(asteroid, steps=90),
    "scvi-tools": Project(scvi, {"forward": lambda module, batch: module(batch)}, steps=1000),
}


class Timer(pl.Callback):
    """CPU seconds of the fit, from the first hook of a trainer to the last."""

    seconds = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.seconds = -time.process_time()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.seconds < 0:
            self.seconds += time.process_time()


class Fit(NamedTuple):
    """What a fit took and left."""

    seconds: float
    weights: dict[str, Tensor]
    evaluations: int
    seconds_per_evaluation: float


def run(project: Project, folder: Path, **options: Any) -> Fit:
    """Train; with arguments of the monitor, watched."""
    pl.seed_everything(0, verbose=False)
    callbacks: list[Any] = [Timer()]
    if options:
        callbacks.append(SimilarityMonitor(**options))
    module = project.fit(
        {
            "max_steps": project.steps,
            "accelerator": "cpu",
            "default_root_dir": folder,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
        }
    )
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    found = read_evaluations(callbacks[1].history_path) if options else []
    taken = [evaluation.seconds for evaluation in found]
    return Fit(
        callbacks[0].seconds, weights, len(found), statistics.median(taken) if taken else 0.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=PROJECTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of each fit; by default its own number")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        project = PROJECTS[name]._replace(**({"steps": given.steps} if given.steps else {}))
        lines: Options = {"reference": "initial", "probes": "val_dataloader", "log_spaced": 2}
        lines |= project.added or {}
        pairs = []
        with tempfile.TemporaryDirectory() as folder:
            run(project._replace(steps=40), Path(folder, "first"), **lines)  # imports
            for n in range(given.rounds):
                watched = run(project, Path(folder, f"with_{n}"), **lines)
                pairs.append((watched, run(project, Path(folder, f"without_{n}"))))
        is_same = all(
            a.weights.keys() == b.weights.keys()
            and all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
            for a, b in pairs
        )
        watched = pairs[-1][0]
        ratios = [a.seconds / b.seconds for a, b in pairs]
        print(
            f"{name}: weights {'the same' if is_same else 'DIFFER'}, "
            f"{watched.evaluations} evaluations of {watched.seconds_per_evaluation * 1e3:.0f} ms, "
            f"{statistics.median(b.seconds for _, b in pairs):.2f} s without, "
            f"x{statistics.median(ratios):.2f} with ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
