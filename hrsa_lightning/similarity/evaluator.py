"""`SimilarityEvaluator`: models x references x layers x metrics -> measurements, in any loop."""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from hrsa_lightning.errors import ConfigError, HRSAWarning
from hrsa_lightning.functional.permutation import NUM_PERMUTATIONS
from hrsa_lightning.io.distributed import Ranks
from hrsa_lightning.similarity.comparer import (
    DOMINATED,
    Comparer,
    LabeledComparer,
    is_dominated,
    variance_shares,
)
from hrsa_lightning.similarity.comparisons import Comparison, comparisons_of, parse_references
from hrsa_lightning.similarity.extraction import (
    ExtractionArguments,
    Extractor,
    Representations,
    Snapshot,
    with_extraction_arguments,
)
from hrsa_lightning.similarity.isolation import preserve_training_state
from hrsa_lightning.similarity.layers import Layers
from hrsa_lightning.similarity.measurement import Measurement, listed, means_over_layers
from hrsa_lightning.similarity.references import (
    INITIAL,
    InitialReference,
    Reference,
    no_common_layer,
)


class ComparedPair(NamedTuple):
    """Both sides of one comparison on one probe set, all layers."""

    probes: str
    arm: str
    reference: str
    live: Snapshot
    other: Snapshot


class SimilarityEvaluation(NamedTuple):
    """What one evaluation found, the same on all ranks.

    Attributes:
        measurements: All values.
        live: Representations of the models.
        pairs: Both sides of every comparison.
    """

    measurements: list[Measurement]
    live: Representations
    pairs: list[ComparedPair]


class _Job(NamedTuple):
    """One pair of matrices to compare."""

    place: Measurement  # all but metric and value
    x: Tensor
    y: Tensor
    key: tuple[Hashable, ...] | None  # of y, where the same y will come again


class SimilarityEvaluator:
    """Compares the representations of models in training with those of references.

    It knows no trainer: call it in any loop, with or without `torch.distributed`.

    ```python
    evaluator = SimilarityEvaluator(
        {"base": base, "rlvr": rlvr},
        probes=probe_loader,
        layers=["encoder.layers.*", "output"],
        reference=["initial", "arm:base"],
    )
    for step, batch in enumerate(train_loader):
        train(batch)
        if step % 100 == 0:
            for m in evaluator.evaluate(step):
                print(m.metric, m.arm, m.reference, m.layer, m.value, m.chance)
    ```

    The first evaluation is the start that `"initial"` stands for. Every model makes one forward
    pass over the probes per evaluation; references that do not train are run once.

    Args:
        models: One module, or several by name, also as `DistributedDataParallel` or Fabric wraps
            them; `None` where `prepare` will get them.
        probes: The fixed inputs: a `DataLoader` or list of batches (read once), a tensor, texts,
            records with `text` and `label`, where texts lie (a path, `hub:NAME`, `preset:NAME` or a
            mapping, see `hrsa_lightning.io.sources.TextEntry`), or a mapping from names to these.
        layers: Names or globs over `named_modules()`, and `"output"` (or `"output.KEY"`) for what
            the forward call returns. `*` stays between dots, `**` crosses them. A mapping gives
            them short names of your own. The default is the output and, of the largest stack of
            equal layers, at most eight evenly spread.
        reference: What to compare with: `"initial"` (the models at the first evaluation), an
            `nn.Module`, a folder or hub id that transformers' `AutoModel` loads, a checkpoint file,
            a folder that `RepresentationRecorder` wrote (compared step for step), and with several
            models also `"arm:NAME"` or `"pairs"` (every model with every other); or a sequence of
            these, or a mapping from names to these.
        metrics: Names of HRSA metrics, or torchmetrics metrics with `update(x, y)`; the default is
            the whole HRSA set.
        by_label: Also compare within each label of the probes.
        num_jackknife_groups: 5 or more gives 95 % bands by leaving out so many groups in turn.
        null: Permutations of the samples, for the 95 % level and p-value of a calibrated
            evaluation; 0 for none.
        reference_layers: Layers of the reference, one for each of `layers` as matched, where it
            names them otherwise.
        forward: `forward(module, batch)`; the default calls the module with a mapping's matching
            keys, or with the first entries of a tuple, as many as `forward` requires.
        pooling: `"mean"`, `"first"` (`"cls"`), `"last"`, `"flatten"`, `"none"` (tokens as rows), a
            function of activation and mask, or a mapping from layer names to these. Where channels
            come first or last is read off the layers; where nothing tells, three dimensions are
            (samples, tokens, features), and more are images with channels first.
        mask: Key or attribute of a batch, or a function of it, for the mask of the tokens or the
            graph of each node; the default takes `pool_mask`, `attention_mask` or `batch`.
        exclude_first_token: Leave out each sample's first token, which in LLMs often outweighs all.
        tokenizer: `tokenizer(texts) -> batch`, for text probes; the default is the models' own
            method `probe_batch(texts, max_length)`.
        max_length: Most tokens of a text, for models that tokenize themselves.
        batch_size: Samples per batch, for texts and tensors.
        label_key: Key or position of the labels in a probe batch.
        limit_probe_batches: At most so many batches of each probe set.
        keep_on_device: Keep representations where the models are and not on the CPU.

    Attributes:
        extractor: Models, layers and probe sets.
        comparisons: What is compared with what.
        history: All that `evaluate` has found.

    Raises:
        ConfigError: When an argument has no meaning, or a layer, arm or reference does not exist.
        DataError: When a probe set holds no samples, or a trace was recorded on others.
    """

    @with_extraction_arguments
    def __init__(
        self,
        models: nn.Module | Mapping[str, nn.Module] | None,
        probes: Any,
        layers: Layers = None,
        reference: Any = INITIAL,
        metrics: Any = None,
        *,
        by_label: bool = False,
        num_jackknife_groups: int = 0,
        null: int = NUM_PERMUTATIONS,
        reference_layers: Sequence[str] | None = None,
        keep_on_device: bool = False,
        **extraction: Unpack[ExtractionArguments],
    ) -> None:
        self.extractor = Extractor(probes, layers, keep_on_device=keep_on_device, **extraction)
        self.comparisons: list[Comparison] = []
        self.history: list[Measurement] = []
        self._given = parse_references(reference, reference_layers)
        self._references: list[Reference] = []
        self._metrics = metrics
        self._by_label = by_label
        self._num_groups = num_jackknife_groups
        self._null = null
        self._comparer = Comparer(metrics, num_groups=num_jackknife_groups, num_permutations=null)
        self._comparers: dict[str, LabeledComparer] = {}
        self._is_first = self._is_new = True
        self._has_checked_tokens = False
        self._warned: set[str] = set()
        self._warn: Callable[[str, str], None] = self._warn_once
        if models is not None:
            self.prepare(models)
            self.start()

    def check(self, names: Sequence[str]) -> None:
        """Refuse what needs no model to be refused; `names` are those that the models will have.

        Raises:
            ConfigError: A reference names a model that is not there.
            DataError: A file of probes is not there or holds bad lines.
        """
        comparisons_of(self._given, names)
        self.extractor.check()

    def prepare(
        self,
        models: nn.Module | Mapping[str, nn.Module],
        *,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        resolve: Callable[[Any], Any] = lambda source: source,
        receive: Callable[[Any], Any] | None = None,
        holder: str = "",
        warn: Callable[[str, str], None] | None = None,
    ) -> None:
        """Find layers, read the probes, and say what there is to compare.

        Args:
            models: See the class.
            ranks: Processes that share the probes; the default is those of `torch.distributed`.
            device: Where the models are; the default is that of their first parameter.
            context: Makes the context of each forward pass, such as a trainer's autocast.
            resolve: Turns what was given as a probe set into something that can be read.
            receive: What a trainer does to a batch of a loader before its step.
            holder: Attribute that holds the models in the module whose checkpoints may be
                references.
            warn: Called with what a reader has to know and its details; the default warns once.

        Raises:
            ConfigError: See the class.
            DataError: See the class.
        """
        named = models if isinstance(models, Mapping) else {"": models}
        named = {name: _unwrapped(model) for name, model in named.items()}
        if device is None:
            parameters = (p for model in named.values() for p in model.parameters())
            device = next((p.device for p in parameters), torch.device("cpu"))
        self.extractor.prepare(
            named,
            ranks=ranks or Ranks(device=device),
            device=device,
            context=context,
            resolve=resolve,
            receive=receive,
            holder=holder,
            warn=warn or self._warn_once,
        )
        self._warn = warn or self._warn_once
        self._has_checked_tokens = False
        self.comparisons = comparisons_of(self._given, list(named))
        self._references = list(dict.fromkeys(c.reference for c in self.comparisons))
        for reference in self._references:
            reference.prepare(self.extractor)
        for name, probes in self.extractor.probes.items():
            labels, labeled = probes.labels, None
            if (num_classes := len(set(labels or ()))) > 1:
                labeled = Comparer(
                    self._metrics,
                    num_classes=num_classes,
                    num_groups=self._num_groups,
                    num_permutations=self._null,
                )
            self._comparers[name] = LabeledComparer(
                self._comparer, labels, labeled, by_label=self._by_label
            )

    def start(
        self,
        state: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        prefix: str = "similarity",
        previous: Path | None = None,
    ) -> None:
        """Begin a run: the next evaluation is its first.

        Args:
            state: What `state_dict` returned before a restart.
            folder: Keep representations of references in files there and not in memory.
            prefix: Begins the names of the files.
            previous: Where the files of before the restart are now, if they were moved.
        """
        self._is_first, self._is_new = True, not state
        for reference in self._references:
            reference.start(folder, prefix)
            if isinstance(reference, InitialReference) and state and state.get(INITIAL) is not None:
                reference.restore(state[INITIAL], state["fingerprints"], previous)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `start`: the start cannot be computed again."""
        for reference in self._references:
            if isinstance(reference, InitialReference) and reference.state() is not None:
                fingerprints = self.extractor.fingerprints
                return {INITIAL: reference.state(), "fingerprints": fingerprints}
        return {}

    @property
    def calibration_seconds(self) -> float:
        """Time that calibrations have taken so far, on this rank."""
        used = {self._comparer, *(c for each in self._comparers.values() for c in each.comparers)}
        return sum(comparer.calibration_seconds for comparer in used)

    @property
    def device(self) -> torch.device:
        """Where metrics are computed: not on MPS, which lacks the float64 that they need."""
        device = self.extractor.device
        return torch.device("cpu") if device.type == "mps" else device

    def evaluate(self, step: int, *, calibrate: bool | None = None) -> list[Measurement]:
        """Compare all models with all references; every rank has to call it.

        Training state is as before afterwards: see `preserve_training_state`.

        Args:
            step: Optimizer step, for the measurements, and for references that were recorded.
            calibrate: Find `identity`, `null_95` and `p_value` as well, which takes the time of
                two or three evaluations; the default is at the first evaluation of a run.

        Raises:
            ConfigError: When tokens are to be compared that two tokenizers split differently.
            DataError: When two sides have different numbers of rows, or too few.
        """
        with preserve_training_state(*self.extractor.models.values()):
            found = self.run(step, calibrate=calibrate).measurements
        self.history += found
        return found

    def run(self, step: int, *, calibrate: bool | None = None) -> SimilarityEvaluation:
        """`evaluate` for callers who preserve the training state; with the representations.

        Args:
            step: See `evaluate`.
            calibrate: See `evaluate`.

        Returns:
            Measurements and the representations that they came from.
        """
        ranks = self.extractor.ranks
        first, self._is_first = self._is_first, False
        live = self.extractor.extract()
        for reference in self._references:
            reference.update(live, step, first=first)
        with ranks.raise_on_all_ranks():
            if not self._has_checked_tokens:
                self._check_tokens()
                self._has_checked_tokens = True
            pairs = self._pairs(live)
            jobs = self._jobs(pairs, step)
            calibrate = first and self._is_new if calibrate is None else calibrate
            share = jobs[ranks.rank :: ranks.world_size]
            own: list[tuple[list[Measurement], list[tuple[str, Measurement]]]] = []
            for number, job in enumerate(share, 1):
                self.extractor.progress(f"comparison {number} of {len(share)}")
                own.append(self._compare(job, calibrate))
        per_rank = ranks.gather_objects(own)
        measurements: list[Measurement] = []
        places: dict[str, list[str]] = {}
        for index in range(len(jobs)):
            values, notes = per_rank[index % len(per_rank)][index // len(per_rank)]
            measurements += values
            for note, place in notes:
                where = _words(place, named=len(self.comparisons) > 1)
                places.setdefault(note, []).append(where)
        for note, found in places.items():
            self._warn(note, f" (at {listed(found)}, step {step})")
        measurements += means_over_layers(measurements)
        measurements += self._variance(live, step)
        return SimilarityEvaluation(measurements, live, pairs)

    def _check_tokens(self) -> None:
        """Refuse to compare token by token what two tokenizers split differently.

        Where only one side has token ids, the number of rows has to tell.
        """
        for arm, reference in ((c.arm, c.reference) for c in self.comparisons):
            if (owner := reference.owner()) is None:
                continue
            text = self.extractor.text_split_differently(arm, owner)
            if text is not None:
                raise ConfigError(
                    "pooling: 'none' compares token by token, and the tokenizers of "
                    f"{arm or 'the module'} and {reference.name} split {text[:40]!r} differently; "
                    "choose another pooling, such as 'mean'"
                )

    def _pairs(self, live: Representations) -> list[ComparedPair]:
        """Both sides of every comparison that has two now."""
        pairs = []
        for arm, reference in ((c.arm, c.reference) for c in self.comparisons):
            for probes, models in live.items():
                left, right = models[arm], reference.rows(live, probes, arm)
                if right is None:
                    self._warn(*reference.absence)
                    continue
                if not any(layer in right for layer in left):
                    raise ConfigError(no_common_layer(reference.name, left, right))
                sides = [(reference.name, left, right)]
                if reference.owner() is not None:  # not a trace, which may hold what nobody asked
                    sides.append((arm or "the module", right, left))
                for name, these, those in sides:
                    if missing := [layer for layer in these if layer not in those]:
                        self._warn(
                            f"{name!r} has no {', '.join(missing)}; left out, of means over layers "
                            "as well",
                            "",
                        )
                pairs.append(ComparedPair(probes, arm, reference.name, left, right))
        return pairs

    def _jobs(self, pairs: Sequence[ComparedPair], step: int) -> list[_Job]:
        """All pairs of matrices to compare, the same on every rank, place by place.

        Models that are compared with the same one so come one after another, and metrics keep what
        they found of a reference while it stays the same.
        """
        references = {c.reference.name: c.reference for c in self.comparisons}
        by_place: dict[tuple[str, str], list[_Job]] = {}
        for probes, arm, name, left, right in pairs:
            key = references[name].key(arm)
            for layer in (layer for layer in left if layer in right):
                place = Measurement("", 0.0, None, probes, arm, name, layer, step=step)
                kept = (probes, *key, layer) if key else None
                job = _Job(place, left[layer], right[layer], kept)
                by_place.setdefault((probes, layer), []).append(job)
        return [job for jobs in by_place.values() for job in jobs]

    def _compare(
        self, job: _Job, calibrate: bool
    ) -> tuple[list[Measurement], list[tuple[str, Measurement]]]:
        x, y = job.x.to(self.device), job.y.to(self.device)
        comparer = self._comparers[job.place.probes]
        return comparer.compare(job.place, x, y, job.key, calibrate=calibrate)

    def _variance(self, live: Representations, step: int) -> list[Measurement]:
        """How much of the variance depends on one sample or one dimension, per model and layer."""
        found: list[Measurement] = []
        dominated: dict[str, float] = {}
        for probes, models in live.items():
            for arm, snapshot in models.items():
                for layer, rows in snapshot.items():
                    shares = variance_shares(rows)
                    for metric, value in shares.items():
                        found.append(
                            Measurement(metric, value, None, probes, arm, "", layer, step=step)
                        )
                    share = shares["variance_share_dimension"]
                    if is_dominated(share, rows.shape[1]):
                        dominated[layer] = max(share, dominated.get(layer, 0.0))
        if dominated:
            self._warn(DOMINATED, f" (up to {max(dominated.values()):.0%}, at {listed(dominated)})")
        return found

    def _warn_once(self, message: str, details: str = "") -> None:
        if message not in self._warned and self.extractor.ranks.rank == 0:
            self._warned.add(message)
            warnings.warn(f"similarity: {message}{details}", HRSAWarning, stacklevel=2)


def _unwrapped(model: Any) -> Any:
    """The module inside wrappers whose forward passes would need all ranks, or hide its layers."""
    while type(model).__name__ in ("DistributedDataParallel", "DataParallel", "_FabricModule"):
        model = model.module
    return model


def _words(place: Measurement, *, named: bool) -> str:
    where = "/".join(part for part in (place.layer, place.label) if part)
    return f"{where} of {place.comparison}" if named or place.arm else where
