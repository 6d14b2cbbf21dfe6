"""From a `Config` to objects. The only place that imports a class by its name."""

import dataclasses
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, LearningRateMonitor
from lightning.pytorch.strategies import Strategy
from torch import nn

from hrsa_lightning.callbacks import Monitor, StepProgressBar
from hrsa_lightning.callbacks.tensorboard import ArmsLogger
from hrsa_lightning.config.schema import Config, LossConfig, is_backbone
from hrsa_lightning.data import ContrastiveDataModule, PairSource, read_pairs
from hrsa_lightning.errors import ConfigError, HRSAError, cut, first_line, nearest, shown
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.losses import (
    AlignmentLoss,
    DebiasedInfoNCELoss,
    InfoNCELoss,
    MatryoshkaLoss,
    SIGRegLoss,
)
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.lora import AUTOCAST_DTYPES, share_frozen_weights
from hrsa_lightning.modules import Alignment, PairedContrastiveModule
from hrsa_lightning.modules.checkpoints import SafetensorsCheckpointIO, TrainedAdapters
from hrsa_lightning.modules.gradient_sync import FullyShardedStrategy
from hrsa_lightning.modules.stopping import EndingFitLoop, StepCheckpoint

_PACKAGES = ("hrsa_lightning", "lightning", "pytorch_lightning")
"""Where a class is looked for; of other packages only what the program has imported itself."""


def build_callbacks(config: Config) -> list[Callback]:
    """The recipe's callbacks, in its order.

    Raises:
        ConfigError: A `_target_` cannot be imported, is not allowed, or an argument is unknown or
            refused by the class; the message names the recipe's key.
    """
    built = []
    for name, entry in config.callbacks.items():
        callback: Callback = instantiate(entry, f"callbacks.{name}", Callback)
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise ConfigError(
                f"callbacks.{name}._target_: expected no search that begins a resumed run anew, got"
                f" {entry['_target_']}"
            )
        if isinstance(callback, Monitor):
            try:
                callback.check(list(config.arms) if entry.get("arms") == "arms" else [""])
            except HRSAError as error:
                raise ConfigError(f"callbacks.{name}.{error}") from error
        built.append(callback)
    return built


def instantiate(entry: Mapping[str, Any], key: str, kind: type) -> Any:
    """Create the object of a subclass of `kind` that a mapping with `_target_` describes.

    Args:
        entry: `_target_` and the arguments.
        key: Of the recipe, for messages.
        kind: Anything else is refused.

    Raises:
        ConfigError: The class is not to be had or an argument is wrong.
    """
    cls = _import_class(entry["_target_"], f"{key}._target_", kind)
    arguments = {name: _resolve(value) for name, value in entry.items() if name != "_target_"}
    known, takes_any = arguments_of(cls)
    for name in arguments:
        if name not in known and not takes_any:
            raise ConfigError(
                f"unknown key '{key}.{cut(name)}'."
                f"{nearest(name, known) or ' Known here: ' + ', '.join(known) + '.'}"
            )
    for name, hint in known.items():
        if name in arguments and not _fits(arguments[name], hint):
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ConfigError(
                f"{key}.{name}: expected {cut(wanted, 100)}, got {shown(arguments[name])}"
            )
    try:
        return cls(**arguments)
    # The arguments are the user's, and classes raise what they like when they refuse one.
    except Exception as error:
        raise ConfigError(f"{key}: {cut(first_line(error), 300)}") from error


def arguments_of(cls: type) -> tuple[dict[str, Any], bool]:
    """A constructor's arguments with their types, as far as these can be resolved.

    Returns:
        Type by argument, and whether there may be any others.
    """
    try:
        hints = typing.get_type_hints(getattr(cls, "__init__"))  # noqa: B009 - mypy's rule
    except Exception:  # a name that only a type checker sees
        hints = {}
    known, takes_any = {}, False
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is not parameter.VAR_KEYWORD:
            known[name] = hint
        else:
            takes_any = True
    return known, takes_any


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type; a function or an object never is."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if origin is None:
        if isinstance(value, bool) or not isinstance(hint, type):
            return hint is bool or not isinstance(hint, type)
        of_number = isinstance(value, int) and hint is float
        return of_number or isinstance(value, str if hint is Path else hint)
    if isinstance(value, str) or not isinstance(value, list if origin is tuple else origin):
        return False
    items = list(value.values()) if isinstance(value, dict) else value
    return origin is tuple or not options or all(_fits(item, options[-1]) for item in items)


def _import_class(target: Any, key: str, kind: type) -> type:
    """Import a class by its name, from packages that are known to be safe to import."""
    module_name, _, class_name = str(target).rpartition(".")
    if module_name not in sys.modules and module_name.partition(".")[0] not in _PACKAGES:
        raise ConfigError(
            f"{key}: cannot import {shown(target)}; expected a class of {', '.join(_PACKAGES)},"
            " or of a module that is imported already"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        raise ConfigError(f"{key}: cannot import {shown(target)} ({first_line(error)})") from None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}: expected a subclass of {kind.__name__}, got {shown(target)}")
    return found


def _resolve(value: Any) -> Any:
    if isinstance(value, str):
        return resolve_path(value)
    if isinstance(value, list):
        return [_resolve(item) for item in value]
    if isinstance(value, dict):
        return {name: _resolve(item) for name, item in value.items()}
    return value


def build_arms(config: Config, device: torch.device | None = None) -> dict[str, EmbeddingModel]:
    """Load every arm's backbone and put the recipe's adapters and pooling on it.

    In mixed precision, frozen weights are kept in the dtype that they are multiplied in. Arms of
    one backbone share those that are frozen.
    """
    model: Any = config.model  # its words were checked against the same choices
    dtype = AUTOCAST_DTYPES.get(str(config.trainer.precision))
    arms: dict[str, EmbeddingModel] = {}
    first: dict[tuple[str, str | None], EmbeddingModel] = {}
    for name, arm in config.arms.items():
        arms[name] = EmbeddingModel.from_pretrained(
            arm.backbone,
            revision=arm.revision,
            lora=dataclasses.asdict(model.lora) if model.lora else None,
            seed=config.seed_of(name),
            gradient_checkpointing=model.gradient_checkpointing,
            quantization=model.quantization,
            device=device,
            **config.model.loading_options(),
        )
        if dtype is not None and model.quantization is None:
            arms[name].cast_frozen_weights(dtype)
        twin = first.setdefault((arm.backbone, arm.revision), arms[name])
        if twin is not arms[name] and model.quantization is None:
            share_frozen_weights(arms[name], twin)
    return arms


def build_module(config: Config, arms: Mapping[str, EmbeddingModel]) -> PairedContrastiveModule:
    """The LightningModule that trains the arms with the recipe's loss and optimizer."""
    options = dataclasses.asdict(config.optimizer)
    narrowest = min(arms.values(), key=lambda arm: arm.embedding_dim).embedding_dim
    if max(config.loss.matryoshka or [0]) > narrowest:
        raise ConfigError(
            f"loss.matryoshka: expected sizes up to {narrowest}, the features of an embedding, got"
            f" {max(config.loss.matryoshka or [0])}"
        )
    loss, regularizer = build_loss(config.loss)
    return PairedContrastiveModule(
        arms,
        loss=loss,
        regularizer=regularizer,
        regularizer_weight=config.loss.sigreg.weight if config.loss.sigreg else 1.0,
        alignment=_build_alignment(config, arms),
        seeds={name: config.seed_of(name) for name in arms},
        max_tokens_per_chunk=config.max_tokens_per_chunk,
        activation_budget=config.activation_budget,
        **options,
    )


def build_loss(config: LossConfig) -> tuple[nn.Module, SIGRegLoss | None]:
    """The contrastive loss, at several sizes of embeddings if asked for, and its regularizer.

    Raises:
        ConfigError: A class refuses a value.
    """
    cls = {"infonce": InfoNCELoss, "debiased": DebiasedInfoNCELoss}[config.name]
    try:
        loss: nn.Module = cls(
            **{name: getattr(config, name) for name in inspect.signature(cls).parameters}
        )
        if config.matryoshka is not None:
            loss = MatryoshkaLoss(loss, config.matryoshka, config.matryoshka_weights)
        if config.sigreg is None:
            return loss, None
        options = dataclasses.asdict(config.sigreg)
        del options["weight"]
        return loss, SIGRegLoss(**options, gather_distributed=config.gather_distributed)
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error


def _build_alignment(config: Config, arms: Mapping[str, EmbeddingModel]) -> Alignment | None:
    if config.loss.alignment is None:
        return None
    options: dict[str, Any] = dataclasses.asdict(config.loss.alignment)
    reference, weight = options.pop("reference"), options.pop("weight")
    if is_backbone(reference):
        reference = EmbeddingModel.from_pretrained(reference, **config.model.loading_options())
    loss = AlignmentLoss(**options, gather_distributed=config.loss.gather_distributed)
    return Alignment(arms, reference, loss=loss, weight=weight)


def build_data(
    config: Config,
    arms: Mapping[str, EmbeddingModel],
    sources: Sequence[PairSource] | None = None,
) -> ContrastiveDataModule:
    """The datamodule that feeds arms of one seed the same texts, each in its own tokens.

    Args:
        config: The recipe.
        arms: From `build_arms`, with a reference of `loss.alignment` that has its own tokenizer.
        sources: What `check_pairs` opened; default: the files are read and checked here.
    """
    data = config.data
    for name, arm in arms.items():
        for key in ("query_length", "passage_length"):
            if arm.max_positions is not None and getattr(data, key) > arm.max_positions:
                owner = f"arms.{name}" if name in config.arms else name
                raise ConfigError(
                    f"data.{key}: expected at most {arm.max_positions}, the positions of "
                    f"{owner}, got {getattr(data, key)}"
                )
    first = next(iter(config.arms))  # a reference reads the batches of arms, and has none itself
    return ContrastiveDataModule(
        sources or read_pairs(data.train, data.limit),
        tokenizers={name: arm.tokenizer for name, arm in arms.items()},
        batch_size=data.batch_size,
        train_group_size=data.train_group_size,
        query_length=data.query_length,
        passage_length=data.passage_length,
        num_workers=data.num_workers,
        drop_last=data.drop_last,
        missing_negatives=data.missing_negatives,
        weights=data.source_weights(),
        source_temperature=data.source_temperature,
        seed=config.seed,
        seeds={name: config.seed_of(name if name in config.arms else first) for name in arms},
    )


def build_trainer(
    config: Config, folder: Path, callbacks: list[Callback], resumed_step: int = 0
) -> Trainer:
    """Lightning's Trainer, writing TensorBoard logs and checkpoints into the run's folder.

    Args:
        config: The recipe.
        folder: The run's folder.
        callbacks: From `build_callbacks`.
        resumed_step: Step of the checkpoint that the run goes on from; TensorBoard forgets what an
            interrupted run logged after it.

    Raises:
        ConfigError: Lightning refuses an argument, or the folder cannot be made.
    """
    _check_folder(folder)
    arguments = dataclasses.asdict(config.trainer)
    # Lightning's own timer would end a run that is out of time as if it were complete.
    max_time = arguments.pop("max_time")
    checkpoint = StepCheckpoint(
        folder / "checkpoints",
        config.checkpoint.every_n_train_steps,
        config.checkpoint.keep,
        max_time and _duration(max_time),
    )
    adapters = TrainedAdapters(folder / "adapters")
    if config.trainer.max_steps > 0:
        arguments["max_epochs"] = None  # steps decide; epochs would cut them short
    shown = [StepProgressBar()] if config.trainer.enable_progress_bar else []
    arguments["strategy"] = _strategy(config.trainer.strategy)
    try:
        trainer = Trainer(
            **arguments,
            callbacks=[*callbacks, *shown, checkpoint, LearningRateMonitor("step"), adapters],
            logger=ArmsLogger(folder, config.arms, resumed_step),
            plugins=[SafetensorsCheckpointIO()],
            use_distributed_sampler=False,  # our sampler already gives each rank its own slice
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
    # Lightning raises an exception of its own, others where a package is missing, and the same for
    # two callbacks of one name.
    except (
        TypeError,
        ValueError,
        ImportError,
        RuntimeError,
        MisconfigurationException,
    ) as error:
        raise ConfigError(f"trainer: {cut(first_line(error), 300)}") from error
    EndingFitLoop.replace(trainer)
    return trainer


def _duration(text: str) -> timedelta:
    """The duration that `DAYS:HOURS:MINUTES:SECONDS` stands for."""
    days, hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, before anything slow."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "a file" if not there.is_dir() else "a folder that cannot be written"
        raise ConfigError(f"output_dir: expected a folder for {folder}, got {problem}: {there}")


def _strategy(value: Any) -> Any:
    if value == FullyShardedStrategy.strategy_name:
        return FullyShardedStrategy()
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        raise ConfigError(
            f"trainer.strategy: expected a name or a mapping with _target_, got {shown(value)}"
        )
    return instantiate(value, "trainer.strategy", Strategy)
