"""Forward passes over the probe sets: from models to pooled representations.

Shapes: an activation is (samples, features), (samples, tokens, features) or (samples, channels,
*spatial); a representation is (rows, features), where a row is a sample or, unpooled, a token.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from hrsa_lightning.distributed import Ranks
from hrsa_lightning.errors import ConfigError, DataError, check_counts
from hrsa_lightning.io import is_file
from hrsa_lightning.similarity.layers import LayerSelection, select_layers
from hrsa_lightning.similarity.pooling import LayerPooling, PoolingMethod
from hrsa_lightning.similarity.probes import (
    ProbeSet,
    Tokenizer,
    batch_size,
    load_probes,
    read_texts,
    tokenizer_of,
)

__all__ = [
    "Extractor",
    "Forward",
    "Representations",
    "Shares",
    "Snapshot",
    "call_module",
    "dtype_of",
    "is_sharded",
]

Forward = Callable[[nn.Module, Any], Any]
Snapshot = dict[str, Tensor]
"""Layer to (rows, features)."""
Representations = dict[str, dict[str, Snapshot]]
"""Probe set to model to layer to (rows, features)."""
Shares = dict[str, dict[str, dict[int, Tensor]]]
"""Probe set to layer to number of a batch to the rows of that batch."""

# Entries of a returned mapping that may be the model's result, in order of preference.
_RESULT_KEYS = ("embeddings", "sentence_embedding", "last_hidden_state", "logits")


class Extractor:
    """Runs models over the probe sets and pools chosen layers in their forward hooks.

    Its arguments are those of `SimilarityEvaluator`.

    Attributes:
        models: Models by name, as `prepare` got them.
        layers: Chosen layers of each model.
        probes: Probe sets by name; a single unnamed one is called ``""``.
        ranks: Processes that share the probes.
        device: Where models run.
        holder: Attribute that holds the models in a larger module, or an empty string.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    def __init__(
        self,
        probes: Any,
        layers: Sequence[str],
        *,
        forward: Forward | None = None,
        pooling: PoolingMethod | Mapping[str, PoolingMethod] = "mean",
        mask: str | Callable[[Any], Tensor] | None = None,
        exclude_first_token: bool = False,
        tokenizer: Tokenizer | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        label_key: str | int | None = None,
        limit_batches: int | None = None,
        keep_on_device: bool = False,
    ) -> None:
        if probes is None:
            raise ConfigError("probes: expected the inputs that models are compared on, got none")
        if isinstance(layers, str) or not layers:
            raise ConfigError(f"layers: expected a list of names or globs, got {layers!r}")
        check_counts(
            max_length=max_length, batch_size=batch_size, limit_probe_batches=limit_batches
        )
        self.patterns = list(layers)
        self.max_length = max_length
        self.models: dict[str, nn.Module] = {}
        self.layers: dict[str, LayerSelection] = {}
        self.probes: dict[str, ProbeSet] = {}
        self.ranks = Ranks(1, 0)
        self.device = torch.device("cpu")
        self.holder = ""
        self._sources = probes if isinstance(probes, Mapping) else {"": probes}
        self._forward = forward or call_module
        self._pooling = LayerPooling(pooling, mask, exclude_first_token)
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._label_key = label_key
        self._limit = limit_batches
        self._keep_on_device = keep_on_device
        self._context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def check(self) -> None:
        """Read probes of a recipe, and refuse bad ones before there is a model.

        Raises:
            DataError: The message begins with `probes`.
        """
        for source in self._sources.values():
            if isinstance(source, str) and source.isidentifier() and not is_file(source):
                continue  # it may be the name of a loader method
            try:
                if isinstance(source, (str, Path)):
                    read_texts(source)
                elif isinstance(source, (int, float, list, Mapping)):
                    load_probes(source, size=1, label_key=None, limit=None, shard=0, shards=1)
            except DataError as error:
                raise DataError(f"probes: {str(error).removeprefix('probes: ')}") from None

    def prepare(
        self,
        models: Mapping[str, nn.Module],
        *,
        ranks: Ranks,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        resolve: Callable[[Any], Any] = lambda source: source,
        holder: str = "",
    ) -> None:
        """Find layers and read the probes.

        Args:
            models: Models by name; a single unnamed one is called ``""``.
            ranks: See `SimilarityEvaluator.prepare`, as for the others.
            device: Where the models are.
            context: Makes the context of each forward pass.
            resolve: Turns what was given as a probe set into something that can be read.
            holder: Attribute that holds the models in a larger module.

        Raises:
            ConfigError: When a layer is wrong, or texts cannot be tokenized.
            DataError: When a probe set holds no samples.
        """
        self.models, self.ranks, self.device = dict(models), ranks, device
        self.holder, self._context = holder, context
        self.layers = {
            name: select_layers(model, self.patterns, owner=_called(name))
            for name, model in self.models.items()
        }
        self.probes = {
            name: load_probes(
                resolve(source),
                size=self._batch_size,
                label_key=self._label_key,
                limit=self._limit,
                shard=ranks.shard,
                shards=ranks.num_shards,
            )
            for name, source in self._sources.items()
        }
        if any(probes.texts is not None for probes in self.probes.values()):
            for name, model in self.models.items():
                if self.tokenizer_for(model) is None:
                    raise ConfigError(
                        "probes: texts need tokenizer=, or a method probe_batch(texts, max_length) "
                        f"of {_called(name)}"
                    )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hash of each probe set."""
        return {name: probes.fingerprint for name, probes in self.probes.items()}

    def extract(self) -> Representations:
        """Representations of all models, with one forward pass each; every rank has to call it."""
        with self.ranks.raise_on_all_ranks():  # tokenize first, so that no forward pass has to wait
            for name, model in self.models.items():
                for probes in self.probes.values():
                    for _ in probes.batches(self._rounds(probes), name, self.tokenizer_for(model)):
                        pass
        shares = {}
        for name, model in self.models.items():
            # Errors are exchanged before the next model, whose forward pass may have collectives.
            with self.ranks.raise_on_all_ranks():
                shares[name] = self.share(model, self.layers[name], name, self.tokenizer_for(model))
        gathered = {name: self.gather(share) for name, share in shares.items()}
        return {
            probes: {name: snapshots[probes] for name, snapshots in gathered.items()}
            for probes in self.probes
        }

    def share(
        self, module: nn.Module, layers: LayerSelection, owner: str, tokenize: Tokenizer | None
    ) -> Shares:
        """This rank's share of one model's representations; no collectives but the model's own.

        Forward passes of a model whose weights are spread over ranks contain collectives: every
        rank must run the same number. A rank with fewer batches re-runs its first and drops the
        result, and an error is raised after the last pass.

        Args:
            module: The model, in evaluation mode.
            layers: Which of its layers.
            owner: Whose tokens the text probes become.
            tokenize: Turns texts into a batch.
        """
        sharded = is_sharded(module)
        failure: Exception | None = None
        shares: Shares = {}
        for name, probes in self.probes.items():
            own = self._own(probes)
            rounds = self._rounds(probes) if sharded else own
            share: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers.names}
            for turn, batch in enumerate(probes.batches(rounds, owner, tokenize)):
                try:
                    snapshot = self.extract_batch(module, batch, layers)
                except Exception as error:
                    if not sharded:
                        raise
                    failure = failure or error
                    continue
                for layer, rows in snapshot.items() if turn < len(own) else ():
                    share[layer][own[turn]] = rows
            shares[name] = share
        if failure is not None:
            raise failure
        return shares

    def gather(self, shares: Shares) -> dict[str, Snapshot]:
        """Representations by probe set, the same on every rank, all of which have to call it."""
        return {
            name: {
                layer: self.ranks.gather_rows(rows, self.probes[name].order)
                for layer, rows in share.items()
            }
            for name, share in shares.items()
        }

    def extract_batch(self, module: nn.Module, batch: Any, layers: LayerSelection) -> Snapshot:
        """Pooled representations of one batch; of a layer called several times, the last call.

        Hooks live only while the batch is in flight. What cannot be pooled is an error after the
        forward pass: one that ends early on one rank would leave the others waiting where weights
        are spread over ranks.

        Returns:
            Short name to (rows, features), float32 (float64 stays).

        Raises:
            DataError: When a layer was not called or returned nothing that can be compared.
        """
        batch = _to_module(batch, self.device, dtype_of(module))
        num_samples = cache(lambda: batch_size(batch))
        mask = cache(lambda: self._pooling.mask_of(batch))
        found: dict[str, Tensor | Exception] = {}

        def keep(name: str, result: Any, key: str | None = None) -> None:
            try:
                activation = _output(result, key)
                with torch.autocast(activation.device.type, enabled=False):
                    found[name] = self._pooling.rows(name, activation, num_samples(), mask())
            except Exception as error:
                found[name] = error

        with _hooked(layers.modules, keep), self._context():
            result = self._forward(module, batch)
        for name, key in layers.outputs.items():
            keep(name, result, key)
        missing = [name for name in layers.modules if name not in found]
        if missing:
            raise DataError(
                f"layers: {', '.join(missing)} took no part in the forward pass; "
                "choose layers that it calls, or give forward="
            )
        store_on = self.device if self._keep_on_device else torch.device("cpu")
        snapshot: Snapshot = {}
        for name in layers.names:
            rows = found[name]
            if isinstance(rows, Exception):
                raise rows
            snapshot[name] = rows.to(store_on)
        return snapshot

    def tokenizer_for(self, module: nn.Module) -> Tokenizer | None:
        """The user's tokenizer, or the module's own."""
        return self._tokenizer or tokenizer_of(module, self.max_length)

    def text_split_differently(self, owner: str, other: str) -> str | None:
        """A text of which two owners have other tokens, where rows are tokens; else `None`."""
        selections = self.layers.values()
        if not any(self._pooling.method_of(name) == "none" for s in selections for name in s.names):
            return None
        found = (
            probes.text_split_differently(owner, other, self._pooling.mask_of)
            for probes in self.probes.values()
        )
        return next((text for text in found if text is not None), None)

    def _own(self, probes: ProbeSet) -> list[int]:
        """Numbers of the batches of this rank."""
        return [n for n in probes.order if n % self.ranks.num_shards == self.ranks.shard]

    def _rounds(self, probes: ProbeSet) -> list[int]:
        """The same, repeating the first batch until they are as many as on every other rank."""
        own = self._own(probes)
        return own + [0] * (-(-len(probes.order) // self.ranks.num_shards) - len(own))


def call_module(module: nn.Module, batch: Any) -> Any:
    """Call a module with a batch in the way that its `forward` can take it.

    A mapping is passed by keyword, without the keys that `forward` does not name (or as one
    argument when `forward` names none of them); a tuple or list fills the parameters that have no
    default, so that the labels of `(inputs, labels)` are left out; anything else is the argument.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    if isinstance(batch, Mapping):
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return module(**batch)
        known = {p.name for p in parameters} & set(batch)
        return (
            module(**{key: batch[key] for key in batch if key in known}) if known else module(batch)
        )
    if isinstance(batch, (tuple, list)):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [p for p in parameters if p.kind in positional and p.default is p.empty]
        return module(*batch[: max(1, len(required))])
    return module(batch)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point weight; float32 where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are spread over ranks, so that a forward pass needs all of them."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters()) or any(
        "FullyShardedDataParallel" in type(part).__name__ for part in module.modules()
    )


def _called(name: str) -> str:
    return f"arm {name!r}" if name else "the module"


def _to_module(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    def move(value: Tensor) -> Tensor:
        # Under true half precision the weights are cast, and the inputs have to follow.
        if value.is_floating_point() and dtype in (torch.float16, torch.bfloat16, torch.float64):
            return value.to(device, dtype)
        return value.to(device)

    return apply_to_collection(batch, Tensor, move)


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], keep: Callable[[str, Any], None]) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(name, output)

        return hook

    handles = [part.register_forward_hook(hook_of(name)) for name, part in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(result: Any, key: str | None) -> Tensor:
    if key is not None:
        if not isinstance(result, Mapping) or key not in result:
            has = list(result) if isinstance(result, Mapping) else f"a {type(result).__name__}"
            raise DataError(f"layers: 'output.{key}' is not in what forward returned ({has})")
        result = result[key]
    if isinstance(result, Mapping):
        named = [result[name] for name in _RESULT_KEYS if name in result]
        candidates: Sequence[Any] = [*named, *result.values()]
    else:
        candidates = result if isinstance(result, (tuple, list)) else [result]
    for value in candidates:
        # A zero-dimensional first entry is a loss, not a representation.
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0:
            return value.detach()
    raise DataError(
        f"layers: expected a floating-point tensor, or a tuple or mapping with one, "
        f"got {type(result).__name__}"
    )
