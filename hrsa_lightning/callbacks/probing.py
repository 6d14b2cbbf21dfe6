"""The part that monitors and recorders share: probes, layers and arms of the module in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.representations.capture import CaptureOptions, Snapshot
from hrsa_lightning.representations.exchange import Exchange
from hrsa_lightning.representations.isolation import untouched
from hrsa_lightning.representations.layers import LayerSelection, select_layers
from hrsa_lightning.representations.observer import Observer, Shares
from hrsa_lightning.representations.probes import ProbeSet, Tokenizer, load_probes, tokenizer_of

__all__ = ["Probing"]


class Probing:
    """Looks at the module in training, or at each of its arms, through the probe sets.

    Args:
        probes: See `SimilarityMonitor`.
        layers: Patterns of `select_layers`.
        arms: Attribute of the LightningModule that holds several models by name; `None` looks at
            the LightningModule itself.
        options: Forward call, pooling and mask.
        tokenizer: Turns texts into a batch; `None` asks each model for its `probe_batch`.
        max_length: Most tokens of a text.
        batch_size: Samples per batch of texts.
        label_key: Where batches hold labels.
        limit_batches: At most so many batches of each probe set.
        keep_on_device: Keep representations where the model is and not on the CPU.
    """

    def __init__(
        self,
        probes: Any,
        layers: Sequence[str],
        arms: str | None,
        options: CaptureOptions,
        tokenizer: Tokenizer | None,
        max_length: int,
        batch_size: int,
        label_key: str | int | None,
        limit_batches: int | None,
        keep_on_device: bool,
    ) -> None:
        if isinstance(layers, str) or not layers:
            raise ConfigError(f"layers: expected a list of names or globs, got {layers!r}")
        if batch_size < 1 or (limit_batches is not None and limit_batches < 1):
            raise ConfigError("batch_size and limit_probe_batches: expected positive numbers")
        self.patterns = list(layers)
        self.arms = arms
        self.modules: dict[str, nn.Module] = {}
        self.layers: dict[str, LayerSelection] = {}
        self.observer: Observer
        self.device = torch.device("cpu")
        self._probes = probes
        self._options = options
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size
        self._label_key = label_key
        self._limit = limit_batches
        self._keep_on_device = keep_on_device

    @property
    def probes(self) -> dict[str, ProbeSet]:
        """The probe sets of the current fit by name; a single unnamed one is called ``""``."""
        return self.observer.probes

    def prepare(self, trainer: Trainer, pl_module: LightningModule, exchange: Exchange) -> None:
        """Find arms and layers and read the probes.

        Raises:
            ConfigError: When an arm attribute, layer or loader name is wrong.
            DataError: When a probe set holds no samples.
        """
        self.device = pl_module.device
        self.modules = self._find_arms(pl_module)
        self.layers = {
            arm: select_layers(module, self.patterns, owner=f"arm {arm!r}" if arm else "the module")
            for arm, module in self.modules.items()
        }
        named = self._probes if isinstance(self._probes, Mapping) else {"": self._probes}
        loaded = {
            name: load_probes(
                _resolve(source, trainer, pl_module),
                size=self._batch_size,
                label_key=self._label_key,
                limit=self._limit,
                shard=exchange.shard,
                shards=exchange.num_shards,
            )
            for name, source in named.items()
        }
        if any(probes.texts is not None for probes in loaded.values()):
            for arm, module in self.modules.items():
                if self.tokenizer_for(module) is None:
                    raise ConfigError(
                        "probes: texts need tokenizer=, or a method probe_batch(texts, max_length) "
                        f"of {f'arm {arm!r}' if arm else 'the module'}"
                    )
        options = self._options
        if options.context is CaptureOptions.context:
            options = CaptureOptions(
                options.forward,
                options.pooling,
                options.mask,
                options.exclude_first_token,
                trainer.precision_plugin.forward_context,
            )
        store_on = self.device if self._keep_on_device else torch.device("cpu")
        self.observer = Observer(loaded, options, exchange, store_on)

    def look(self) -> dict[str, dict[str, Snapshot]]:
        """Representations of all arms, one forward pass each: probe set to arm to layer to rows."""
        exchange = self.observer.exchange
        with exchange.together():
            shares = {
                arm: self.observer.look(
                    module, self.layers[arm], self.device, arm, self.tokenizer_for(module)
                )
                for arm, module in self.modules.items()
            }
        gathered = {arm: self.observer.gather(share) for arm, share in shares.items()}
        return {
            name: {arm: snapshots[name] for arm, snapshots in gathered.items()}
            for name in self.probes
        }

    def look_at(
        self,
        module: nn.Module,
        layers: LayerSelection,
        owner: str,
        tokenize: Tokenizer | None,
        live: nn.Module,
    ) -> Shares:
        """This rank's share of the representations of a model that is not in training.

        Args:
            module: The model.
            layers: Its layers.
            owner: Whose tokens text probes become.
            tokenize: Its own tokenizer; `None` takes that of `live`.
            live: The arm that it is compared with.
        """
        with untouched(module):
            return self.observer.look(
                module, layers, self.device, owner, tokenize or self.tokenizer_for(live)
            )

    def tokenizer_for(self, module: nn.Module) -> Tokenizer | None:
        """The user's tokenizer, or the module's own."""
        return self._tokenizer or tokenizer_of(module, self._max_length)

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return self._max_length

    def _find_arms(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        if self.arms is None:
            return {"": pl_module}
        holder = getattr(pl_module, self.arms, None)
        if not isinstance(holder, (nn.ModuleDict, Mapping)) or not len(holder):
            raise ConfigError(
                f"arms: expected {self.arms!r} to name an nn.ModuleDict of the LightningModule, "
                f"got {type(holder).__name__}"
            )
        return dict(holder.items())


def _resolve(source: Any, trainer: Trainer, pl_module: LightningModule) -> Any:
    """A loader that the user gave by name, made anew; anything else as it is."""
    if not isinstance(source, str) or Path(source).exists():
        return source
    for owner in (getattr(trainer, "datamodule", None), pl_module):
        make = getattr(owner, source, None)
        # The framework's own hooks of these names only say that they are missing.
        if not callable(make) or make.__module__.startswith(("lightning.", "pytorch_lightning.")):
            continue
        loader = make()
        if isinstance(loader, (list, tuple, Mapping)):
            raise DataError(
                f"probes: {source!r} gives several loaders; name them with probes={{...}}"
            )
        return loader
    return source
