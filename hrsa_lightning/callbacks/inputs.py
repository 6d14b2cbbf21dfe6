"""What a trainer and its module hold for a monitor: the models, loaders of probes, batch hooks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hrsa_lightning.callbacks.base import Monitor
from hrsa_lightning.errors import ConfigError, DataError, cut, first_line
from hrsa_lightning.io.sources import is_address
from hrsa_lightning.similarity.batches import described
from hrsa_lightning.similarity.evaluator import SimilarityEvaluator
from hrsa_lightning.similarity.extraction import Extractor


def prepare_models(
    target: SimilarityEvaluator | Extractor,
    monitor: Monitor,
    trainer: Trainer,
    pl_module: LightningModule,
    arms: str | None,
) -> None:
    """Prepare an evaluator or extractor for the models in an attribute, see `find_arms`."""
    target.prepare(
        find_arms(pl_module, arms),
        ranks=monitor.ranks,
        device=pl_module.device,
        context=trainer.precision_plugin.forward_context,
        resolve=lambda source: resolve_probes(source, trainer, pl_module),
        receive=lambda batch: receive_batch(batch, trainer),
        holder=arms or "",
        warn=monitor.warn_once,
    )


def find_arms(pl_module: LightningModule, holder: str | None) -> dict[str, nn.Module]:
    """The models to evaluate: the LightningModule as a whole, or several that it holds by name.

    Args:
        pl_module: The module in training.
        holder: The attribute that holds them; `None` for the module itself, named ``""``.

    Raises:
        ConfigError: When the attribute holds no models.
    """
    if holder is None:
        return {"": pl_module}
    arms = getattr(pl_module, holder, None)
    if not isinstance(arms, (nn.ModuleDict, Mapping)) or not len(arms):
        raise ConfigError(
            f"arms: expected {holder!r} to name an nn.ModuleDict of the LightningModule, "
            f"got {type(arms).__name__}"
        )
    return dict(arms.items())


def resolve_probes(source: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """A loader that the user gave by name, found where the trainer has it; anything else as it is.

    `val_dataloader` is that of the fit, the datamodule or the module, any other name a method of
    the latter two; `NAME:1` or `NAME:key` is one of several.

    Raises:
        DataError: When there is no such loader, or there are several.
    """
    found, name, key = source, "", ""
    if isinstance(source, str) and not (Path(source).exists() or is_address(source)):
        name, _, key = source.partition(":")
        found = _loader(name, trainer, pl_module)
    if type(found).__name__ == "CombinedLoader":
        found = found.iterables  # its own batches are tuples with the numbers of batch and loader
    elif not (name and isinstance(found, (list, tuple, Mapping))):
        return found
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
    loaders = {str(which): loader for which, loader in pairs}
    if key in loaders:
        return loaders[key]
    if len(loaders) == 1 and not key:
        return next(iter(loaders.values()))
    if not name:
        raise DataError(
            f"probes: expected one loader, got a CombinedLoader of {', '.join(loaders)}; "
            "give a mapping of names to loaders"
        )
    choice = ", ".join(f"'{name}:{which}'" for which in loaders)
    raise DataError(f"probes: {source!r} is one of several loaders; choose one of {choice}")


def receive_batch(batch: Any, trainer: Trainer) -> Any:
    """What the trainer does to a batch before a validation step: the module's transfer hooks.

    Raises:
        DataError: When a hook cannot take the batch.
    """
    stage = trainer.state.stage
    trainer.validating = True
    try:
        return trainer.strategy.batch_to_device(batch)
    except Exception as error:
        raise DataError(
            f"probes: the batch hooks of the project fail ({cut(first_line(error), 100)})\n"
            f"for the batch {described(batch)}; probes=list(loader) does without them"
        ) from error
    finally:
        trainer.state.stage = stage


def _loader(name: str, trainer: Trainer, pl_module: LightningModule) -> Any:
    """What a loader method gives, or the loaders that were given to the fit in its place."""
    fit: Any = trainer.fit_loop
    sources = {
        "train_dataloader": fit._data_source,
        "val_dataloader": fit.epoch_loop.val_loop._data_source,
    }
    given = sources.get(name) or sources.get(name.removesuffix("s"))
    owners = (getattr(trainer, "datamodule", None), pl_module)
    if given is not None and given.is_defined():
        return given.dataloader()
    for owner in owners:
        make = getattr(owner, name, None)
        # The framework's own hooks of these names only say that they are missing.
        if callable(make) and not make.__module__.startswith(("lightning.", "pytorch_lightning.")):
            return make()
    has = [which for which, known in sources.items() if known.is_defined()]
    raise DataError(
        f"probes: expected a file, or a loader of fit, datamodule or module, got {name!r};"
        f" there is {' and '.join(has)}"
    )
