"""Forward passes over the probe sets: from models to pooled representations.

A representation is (rows, features), where a row is a sample or, unpooled, a token.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError, DataError, HRSAError, check_counts, cut, first_line
from hrsa_lightning.io.distributed import Ranks
from hrsa_lightning.io.files import is_file
from hrsa_lightning.io.sources import is_entry
from hrsa_lightning.similarity.batches import (
    activation_of,
    call_module,
    copied,
    described,
    sizes_of,
)
from hrsa_lightning.similarity.layers import Layers, LayerSelection, default_layers, select_layers
from hrsa_lightning.similarity.pooling import LayerPooling, Pooling, has_channels_first
from hrsa_lightning.similarity.probes import (
    ProbeSet,
    Tokenizer,
    load_probes,
    tokenizer_of,
)

Forward = Callable[[nn.Module, Any], Any]
Snapshot = dict[str, Tensor]
"""Layer to (rows, features)."""
Representations = dict[str, dict[str, Snapshot]]
"""Probe set to model to layer to (rows, features)."""
Tokenizers = Callable[[int], Tokenizer | None]
"""Most tokens of a text to a tokenizer; to `None` where texts cannot be tokenized."""
Shares = dict[str, dict[str, dict[int, Tensor]]]
"""Probe set to layer to number of a batch to the rows of that batch."""


_POSITIONS = re.compile(r"(^|\.|_)(positions?|wpe)(_|\.|$)")


_Init = TypeVar("_Init", bound=Callable[..., None])


class ExtractionArguments(TypedDict, total=False):
    """How models are run and activations become rows; arguments of `SimilarityEvaluator`."""

    forward: Forward | None
    pooling: Pooling
    mask: str | Callable[[Any], Tensor] | None
    exclude_first_token: bool
    tokenizer: Tokenizer | None
    max_length: int
    batch_size: int
    label_key: str | int | None
    limit_probe_batches: int | None


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
        pooling: Of probe sets without a level of their own.
        progress: Called with how far an evaluation has come.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    def __init__(
        self,
        probes: Any,
        layers: Layers = None,
        *,
        forward: Forward | None = None,
        pooling: Pooling = "mean",
        mask: str | Callable[[Any], Tensor] | None = None,
        exclude_first_token: bool = False,
        tokenizer: Tokenizer | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        label_key: str | int | None = None,
        limit_probe_batches: int | None = None,
        keep_on_device: bool = False,
    ) -> None:
        if probes is None:
            raise ConfigError("probes: expected the inputs that models are compared on, got none")
        if isinstance(layers, str) or (layers is not None and not layers):
            raise ConfigError(f"layers: expected a list of names or globs, got {layers!r}")
        check_counts(
            max_length=max_length, batch_size=batch_size, limit_probe_batches=limit_probe_batches
        )
        self.patterns: Sequence[str] | Mapping[str, str] = layers or ()
        self.are_default = layers is None
        self.max_length = max_length
        self.models: dict[str, nn.Module] = {}
        self.layers: dict[str, LayerSelection] = {}
        self.probes: dict[str, ProbeSet] = {}
        self.ranks = Ranks(1, 0)
        self.device = torch.device("cpu")
        self.holder = ""
        is_one = not isinstance(probes, Mapping) or is_entry(probes)
        self._sources: Mapping[str, Any] = {"": probes} if is_one else probes
        self._forward = forward or call_module
        self.pooling = LayerPooling(pooling, mask, exclude_first_token)
        self._poolings: dict[str, LayerPooling] = {}
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._label_key = label_key
        self._limit = limit_probe_batches
        self._keep_on_device = keep_on_device
        self._context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._warn: Callable[[str, str], None] = lambda message, details: None
        self.progress: Callable[[str], None] = lambda detail: None

    def check(self) -> None:
        """Read probes of a recipe, and refuse bad ones before there is a model.

        Raises:
            DataError: The message begins with `probes`.
        """
        for name, source in self._sources.items():
            if isinstance(source, str) and source.isidentifier() and not is_file(source):
                continue  # it may be the name of a loader method
            try:
                if is_entry(source) or isinstance(source, (int, float, list, Mapping)):
                    load_probes(source, size=1, label_key=None, limit=None, shard=0, shards=1)
            except DataError as error:
                where = f"probes.{name}" if name else "probes"
                raise DataError(f"{where}: {str(error).removeprefix('probes: ')}") from None

    def prepare(
        self,
        models: Mapping[str, nn.Module],
        *,
        ranks: Ranks,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        resolve: Callable[[Any], Any] = lambda source: source,
        receive: Callable[[Any], Any] | None = None,
        holder: str = "",
        warn: Callable[[str, str], None] = lambda message, details: None,
    ) -> None:
        """Find layers and read the probes; arguments are those of `SimilarityEvaluator.prepare`.

        Raises:
            ConfigError: When a layer is wrong, or texts cannot be tokenized.
            DataError: When a probe set holds no samples.
        """
        self.models, self.ranks, self.device = dict(models), ranks, device
        self.holder, self._context, self._warn = holder, context, warn
        if self.are_default:
            self.patterns, left_out = default_layers(next(iter(self.models.values())))
            if left_out:
                warn(left_out, "")
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
                receive=receive,
                max_length=self.max_length,
            )
            for name, source in self._sources.items()
        }
        self._poolings = {
            name: self.pooling.at_level(probes.level, probes.max_rows)
            for name, probes in self.probes.items()
        }
        if any(probes.texts is not None for probes in self.probes.values()):
            for name, model in self.models.items():
                if self.tokenizer_for(model)(self.max_length) is None:
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
                    tokenize = self.tokenizer_for(model)(probes.max_length or self.max_length)
                    for _ in probes.batches(self._rounds(probes), name, tokenize):
                        pass
        shares = {}
        for name, model in self.models.items():
            # Errors are exchanged before the next model, whose forward pass may have collectives.
            with self.ranks.raise_on_all_ranks():
                shares[name] = self.share(model, self.layers[name], name, self.tokenizer_for(model))
        gathered = {name: self.gather(share) for name, share in shares.items()}
        self._check_labels(next(iter(gathered.values())))
        return {
            probes: {name: snapshots[probes] for name, snapshots in gathered.items()}
            for probes in self.probes
        }

    def share(
        self, module: nn.Module, layers: LayerSelection, owner: str, tokenizer: Tokenizers
    ) -> Shares:
        """This rank's share of one model's representations; no collectives but the model's own.

        Forward passes of a model whose weights are spread over ranks contain collectives: every
        rank must run the same number. A rank with fewer batches re-runs its first and drops the
        result, and an error is raised after the last pass.

        Args:
            module: The model, in evaluation mode.
            layers: Which of its layers.
            owner: Whose tokens the text probes become.
            tokenizer: See `tokenizer_for`.
        """
        sharded = is_sharded(module)
        failure: Exception | None = None
        shares: Shares = {}
        for name, probes in self.probes.items():
            own = self._own(probes)
            rounds = self._rounds(probes) if sharded else own
            share: dict[str, dict[int, Tensor]] = {layer: {} for layer in layers.names}
            tokenize = tokenizer(probes.max_length or self.max_length)
            for turn, batch in enumerate(probes.batches(rounds, owner, tokenize)):
                self.progress(f"{owner or 'probes'} {turn} of {len(rounds)}")
                try:
                    snapshot = self.extract_batch(module, batch, layers, self._poolings[name])
                except Exception as error:
                    if not sharded:
                        raise
                    failure = failure or error
                    continue
                for layer, rows in snapshot.items() if turn < len(own) else ():
                    share[layer][own[turn]] = rows
            shares[name] = share
            if failure is None:
                _check_widths(share)
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

    def extract_batch(
        self,
        module: nn.Module,
        batch: Any,
        layers: LayerSelection,
        pooling: LayerPooling | None = None,
    ) -> Snapshot:
        """Pooled representations of one batch; of a layer called several times, the last call.

        Hooks live only while the batch is in flight. What cannot be pooled is an error after the
        forward pass: one that ends early on one rank would leave the others waiting where weights
        are spread over ranks.

        Returns:
            Short name to (rows, features), float32 (float64 stays).

        Raises:
            DataError: When a layer was not called or returned nothing that can be compared.
        """
        batch = copied(batch, self.device, dtype_of(module))
        sizes = sizes_of(batch)
        pooling = pooling or self.pooling
        mask = cache(lambda: pooling.mask_of(batch))
        found: dict[str, Tensor | Exception] = {}

        def keep(name: str, part: nn.Module, result: Any, key: str | None = None) -> None:
            try:
                activation = activation_of(result, key, sizes)
                channels_first = None
                if isinstance(activation, Tensor):
                    channels_first = has_channels_first(module, part, activation.shape)
                with torch.autocast(self.device.type, enabled=False):
                    found[name] = pooling.rows(name, activation, mask(), channels_first)
            except Exception as error:
                found[name] = error

        with _hooked(layers.modules, keep), self._context():
            result = self._call(module, batch)
        for name, key in layers.outputs.items():
            keep(name, module, result, key)
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
        own = {n: len(rows) for n, rows in snapshot.items() if pooling.counts_samples(n)}
        self._check_rows(own, sizes)
        return snapshot

    def _call(self, module: nn.Module, batch: Any) -> Any:
        """The forward call; its errors say what the batch is, and how to call otherwise."""
        described_batch = described(batch)
        try:
            return self._forward(module, batch)
        except (HRSAError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            cause = error
        reason = f"{type(cause).__name__}: {cut(first_line(cause), 120)}"
        cure = "give forward=lambda module, batch: ... with a call that the module understands"
        if self._forward is not call_module:
            cure = "mend the function that was given as forward="
        raise DataError(
            f"forward: {reason}\nfor the probe batch {described_batch}; {cure}"
        ) from cause

    def _check_labels(self, gathered: Mapping[str, Snapshot]) -> None:
        for name, snapshot in gathered.items():
            labels = self.probes[name].labels
            for layer, rows in snapshot.items():
                counts = self._poolings[name].counts_samples(layer)
                if labels and counts and len(rows) != len(labels):
                    raise DataError(
                        f"label_key: expected a label for each of {len(rows)} samples, "
                        f"got {len(labels)}"
                    )

    def _check_rows(self, own: Mapping[str, int], sizes: set[int] | None) -> None:
        """Ask what a sample is where the layers, or a layer and the batch, do not agree on it.

        Rows of a pooling function, and tokens as rows, are taken as they are.
        """
        if not own:
            return
        (first, expected), *others = own.items()
        other = next((name for name, count in others if count != expected), None)
        asked = other or first
        if other is not None:
            question = f"got {expected} of {first} and {own[other]} of {other} for one batch"
            if sizes and own[other] in sizes and expected not in sizes:
                asked = first
        elif sizes is not None and expected not in sizes:
            question = f"got {expected} of {first} for a batch with {_numbers(sizes)}"
        else:
            return
        raise DataError(
            f"pooling: expected a row for each sample, {question}; for those that are none, give "
            f"pooling={{{asked!r}: lambda activation, mask: ...}}"
        )

    def tokenizer_for(self, module: nn.Module, own: Tokenizers | None = None) -> Tokenizers:
        """What turns texts into batches of a module: `own`, or else the user's, or its method.

        Padding on the left shifts the positions of a model with a table of them: it gets the
        positions of the tokens themselves where it takes them.

        Returns:
            A tokenizer for texts of so many tokens at most, or `None` where there is none.
        """

        def tokenizer(max_length: int) -> Tokenizer | None:
            found = own(max_length) if own else None
            found = found or self._tokenizer or tokenizer_of(module, max_length)
            return found and self._positioned(module, found)

        return tokenizer

    def _positioned(self, module: nn.Module, tokenize: Tokenizer) -> Tokenizer:
        table = position_table(module)
        if table is None:
            return tokenize

        def positioned(texts: list[str]) -> Mapping[str, Any]:
            batch = dict(tokenize(texts))
            mask = batch.get("attention_mask")
            if mask is None or "position_ids" in batch or bool(mask[:, 0].all()):
                return batch
            if "position_ids" in inspect.signature(module.forward).parameters:
                return {**batch, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
            self._warn(
                "probes: padding on the left shifts the positions of a model with a table of them "
                f"({table}); set tokenizer.padding_side = 'right'",
                "",
            )
            return batch

        return positioned

    def text_split_differently(self, owner: str, other: str) -> str | None:
        """A text of which two owners have other tokens, where rows are tokens; else `None`."""
        names = [name for selection in self.layers.values() for name in selection.names]
        found = (
            probes.text_split_differently(owner, other, self.pooling.mask_of)
            for name, probes in self.probes.items()
            if any(self._poolings[name].method_of(layer) == "none" for layer in names)
        )
        return next((text for text in found if text is not None), None)

    def _own(self, probes: ProbeSet) -> list[int]:
        """Numbers of the batches of this rank."""
        return [n for n in probes.order if n % self.ranks.num_shards == self.ranks.shard]

    def _rounds(self, probes: ProbeSet) -> list[int]:
        """The same, repeating the first batch until they are as many as on every other rank."""
        own = self._own(probes)
        return own + [0] * (-(-len(probes.order) // self.ranks.num_shards) - len(own))


def with_extraction_arguments(init: _Init) -> _Init:
    """Spell the arguments of an `Extractor` in the signature of what takes them as keywords."""
    signature = inspect.signature(init)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = ExtractionArguments.__annotations__
    taken = inspect.signature(Extractor.__init__).parameters
    parameters = [*own, *(taken[name] for name in types)]
    setattr(init, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 - mypy's rule
    init.__annotations__ = {p.name: p.annotation for p in parameters if p.name != "self"}
    return init


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first floating-point weight; float32 where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def position_table(module: nn.Module) -> str | None:
    """Name of a table of absolute positions, unless it finds a token's own under any padding."""
    for name, part in module.named_modules():
        # Where one number means padding, as in RoBERTa, positions are counted from the tokens.
        if type(part) is nn.Embedding and part.padding_idx is None and _POSITIONS.search(name):
            return str(name)
    return None


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are spread over ranks, so that a forward pass needs all of them."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters()) or any(
        "FullyShardedDataParallel" in type(part).__name__ for part in module.modules()
    )


def _check_widths(share: Mapping[str, Mapping[int, Tensor]]) -> None:
    for layer, batches in share.items():
        widths = sorted({rows.shape[1] for rows in batches.values()})
        if len(widths) > 1:
            raise DataError(
                f"pooling: rows of layer {layer} are {widths[0]} wide in one batch and {widths[1]} "
                f"in another; give a function, pooling={{{layer!r}: lambda activation, mask: ...}}"
            )


def _numbers(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def _called(name: str) -> str:
    return f"arm {name!r}" if name else "the module"


@contextmanager
def _hooked(
    modules: Mapping[str, nn.Module], keep: Callable[[str, nn.Module, Any], None]
) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, _inputs: Any, output: Any) -> None:
            keep(name, part, output)

        return hook

    handles = [part.register_forward_hook(hook_of(name)) for name, part in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
