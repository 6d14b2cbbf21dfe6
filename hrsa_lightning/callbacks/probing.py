"""The part that monitors and recorders share: probes, layers and arms of the module in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.representations.capture import CaptureOptions, Forward, Snapshot
from hrsa_lightning.representations.exchange import Exchange
from hrsa_lightning.representations.isolation import untouched
from hrsa_lightning.representations.layers import LayerSelection, select_layers
from hrsa_lightning.representations.observer import Observer, Shares
from hrsa_lightning.representations.pooling import POOLINGS, PoolingMethod
from hrsa_lightning.representations.probes import ProbeSet, Tokenizer, load_probes, tokenizer_of

__all__ = ["Probing", "find_arms"]


class Probing:
    """Looks at the module in training, or at each of its arms, through the probe sets.

    Its arguments are those that `SimilarityMonitor` and `RepresentationRecorder` share.

    Args:
        probes: See `SimilarityMonitor`, as for all but the last.
        layers: Patterns of `select_layers`.
        arms: Attribute of the LightningModule that holds several models by name; `None` looks at
            the LightningModule itself.
        forward: Forward call.
        pooling: From activations to rows.
        mask: Which tokens count.
        exclude_first_token: Whether each sample's first token does not.
        tokenizer: Turns texts into a batch; `None` asks each model for its `probe_batch`.
        max_length: Most tokens of a text.
        batch_size: Samples per batch of texts.
        label_key: Where batches hold labels.
        limit_batches: At most so many batches of each probe set.
        keep_on_device: Keep representations where the model is and not on the CPU.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    def __init__(
        self,
        probes: Any,
        layers: Sequence[str],
        arms: str | None,
        *,
        forward: Forward | None,
        pooling: PoolingMethod | Mapping[str, PoolingMethod],
        mask: str | Callable[[Any], Tensor] | None,
        exclude_first_token: bool,
        tokenizer: Tokenizer | None,
        max_length: int,
        batch_size: int,
        label_key: str | int | None = None,
        limit_batches: int | None,
        keep_on_device: bool = False,
    ) -> None:
        if probes is None:
            raise ConfigError("probes: expected the inputs to look at models through, got none")
        if isinstance(layers, str) or not layers:
            raise ConfigError(f"layers: expected a list of names or globs, got {layers!r}")
        if batch_size < 1 or (limit_batches is not None and limit_batches < 1):
            raise ConfigError("batch_size and limit_probe_batches: expected positive numbers")
        for method in pooling.values() if isinstance(pooling, Mapping) else [pooling]:
            if not (callable(method) or method in POOLINGS):
                raise ConfigError(
                    f"pooling: expected {', '.join(POOLINGS)} or a function, got {method!r}"
                )
        self.patterns = list(layers)
        self.arms = arms
        self.modules: dict[str, nn.Module] = {}
        self.layers: dict[str, LayerSelection] = {}
        self.observer: Observer
        self.device = torch.device("cpu")
        self._probes = probes
        self._options = CaptureOptions(forward, pooling, mask, exclude_first_token)
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
        self.modules = find_arms(pl_module, self.arms)
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
        options = replace(self._options, context=trainer.precision_plugin.forward_context)
        store_on = self.device if self._keep_on_device else torch.device("cpu")
        self.observer = Observer(loaded, options, exchange, store_on)

    def look(self) -> dict[str, dict[str, Snapshot]]:
        """Representations of all arms, one forward pass each: probe set to arm to layer to rows."""
        exchange = self.observer.exchange
        with exchange.together():
            for arm, module in self.modules.items():
                self.observer.make_ready(arm, self.tokenizer_for(module))
        shares = {}
        for arm, module in self.modules.items():
            with exchange.together():  # before the next arm, whose weights may be spread over ranks
                shares[arm] = self.observer.look(
                    module, self.layers[arm], self.device, arm, self.tokenizer_for(module)
                )
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

    @property
    def compares_tokens(self) -> bool:
        """Whether the rows of a layer are tokens."""
        return any(
            self._options.pooling_of(name) == "none"
            for selection in self.layers.values()
            for name in selection.names
        )

    def text_cut_differently(self, owner: str, other: str) -> str | None:
        """A text of which two owners have other tokens; `None` when there is none known."""
        found = (
            probes.text_cut_differently(owner, other, self._options.mask_of)
            for probes in self.probes.values()
        )
        return next((text for text in found if text is not None), None)

    def tokenizer_for(self, module: nn.Module) -> Tokenizer | None:
        """The user's tokenizer, or the module's own."""
        return self._tokenizer or tokenizer_of(module, self._max_length)

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return self._max_length


def find_arms(pl_module: LightningModule, holder: str | None) -> dict[str, nn.Module]:
    """The models to look at: the LightningModule as a whole, or several that it holds by name.

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
    raise DataError(
        f"probes: {source!r} is neither a file nor a loader method of the datamodule or module"
    )
