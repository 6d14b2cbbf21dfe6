"""What the metrics share: streamed moments, stored rows, their exchange between ranks, errors."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_choice,
    check_count,
    check_ids,
    check_pair,
    halves,
    id_words,
    sample_keys,
)
from hrsa_lightning.functional._moments import PairMoments
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES, full_precision
from hrsa_lightning.functional.permutation import (
    PERMUTED,
    by_key,
    check_num_permutations,
    compare,
    permutations,
    recomputed,
)
from hrsa_lightning.functional.probe_transfer import check_labels
from hrsa_lightning.functional.uncertainty import check_num_groups, jackknife
from hrsa_lightning.metrics._drawing import draw
from hrsa_lightning.metrics._exchange import Exchange

PARTS = ("moments", "exact", "rows", "labels")
ROW_STATES = ("rows_x", "rows_y", "row_ids")
NO_ID = 0


@contextmanager
def shared_by(metrics: Collection["PairMetric"]) -> Iterator[None]:
    """Let metrics of one state share what they find of its rows, besides that state."""
    kept: dict[Any, Any] = {}
    for metric in metrics:
        metric._kept = kept
    try:
        yield
    finally:
        for metric in metrics:
            metric._kept = None


class PairMetric(Metric):
    """Base of the metrics that compare two representations of the same samples.

    A metric keeps the parts of state it needs: ``"moments"`` (sums, `PairMoments`), ``"exact"``
    (those of float64 products, always), ``"rows"`` (the samples themselves) and ``"labels"``.
    Metrics of one `torchmetrics.MetricCollection` that keep the same parts form one compute group,
    updated once; ``state`` names parts to keep in
    addition so that they do.

    Unlike torchmetrics' default, sums are exchanged between ranks in place: after ``compute`` the
    first rank holds the totals and the others hold zeros, which a later exchange adds up to the
    same totals. Sums stay float64 whatever the module around the metric is cast to.

    Args:
        state: parts to keep in addition to those the metric needs.
        num_jackknife_groups: if given, ``compute`` also gives the standard error of each value
            under ``{key}_se``, from that many groups of samples; the value is then a dict, and the
            rows are kept until ``reset``. See `hrsa_lightning.functional.jackknife`. The value of
            one batch in ``forward`` has NaN there.
        null: if given, ``compute`` also gives what permuted samples give in so many permutations:
            the 95 % level under ``{key}_null`` and the p-value under ``{key}_p``, NaN for keys that
            have none. See `hrsa_lightning.functional.permutation_null`; otherwise as above.
        chunk_bytes: bound of the working memory beside inputs and state.
        kwargs: see `torchmetrics.Metric`; ``dist_sync_fn`` is not used.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = True
    full_state_update: bool | None = False
    plot_upper_bound: float | None = 1.0

    needs: tuple[str, ...]
    min_samples: int
    scalar = False
    """Whether the value is one tensor (without standard errors) instead of a dict."""
    equal_width: ClassVar[bool] = False
    sums: ClassVar[Any] = PairMoments
    """Class of the sums that ``"moments"`` are; its fields are states."""

    function: ClassVar[Any] = None
    """The function of the same subject, a `staticmethod`: gives the value of some rows."""
    fields: tuple[str, ...] = ("",)
    """What of its result stands under the metric's keys, in their order; all of it by default."""

    count: Tensor
    rows_x: list[Tensor]
    rows_y: list[Tensor]
    row_ids: list[Tensor]
    row_labels: list[Tensor]

    def __init__(
        self,
        *,
        state: Collection[str] = (),
        num_jackknife_groups: int | None = None,
        null: int | None = None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for part in state:
            check_choice(part, "state", PARTS)
        if num_jackknife_groups is not None:
            check_num_groups(num_jackknife_groups)
            state = (*state, "rows")
        if null is not None:
            check_num_permutations(null)
            state = (*state, "rows")
        self.num_jackknife_groups = num_jackknife_groups
        self.null = null
        self._kept: dict[Any, Any] | None = None
        self.parts = tuple(part for part in PARTS if part in self.needs or part in state)
        self.chunk_bytes = chunk_bytes
        self._chance: dict[str, float] = {}
        self._local_rows: dict[str, Any] | None = None
        if "moments" in self.parts:
            for name in self.sums.names():
                empty = torch.zeros(0, dtype=torch.float64)
                self.add_state(name, default=empty, dist_reduce_fx="sum")
        if "exact" in self.parts:  # a state, so that metrics with other sums do not share ours
            self.add_state("exact", default=torch.ones(()), dist_reduce_fx="max")
        for name in self._row_states():
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _row_states(self) -> tuple[str, ...]:
        rows = ROW_STATES if "rows" in self.parts else ()
        return (*rows, "row_labels") if "labels" in self.parts else rows

    def update(
        self,
        x: Tensor,
        y: Tensor,
        labels: Tensor | None = None,
        *,
        x_ids: SampleIds | None = None,
        y_ids: SampleIds | None = None,
    ) -> None:
        """Add samples; any number, also none.

        Args:
            x: (n, d_x) representations of the live model, floating point.
            y: (n, d_y) representations of the same samples by the reference.
            labels: (n,), for metrics that use them.
            x_ids: ids of the rows of ``x``, int or str.
            y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        """
        x, y = check_pair(x, y, equal_width=self.equal_width)
        ids = check_ids(x_ids, y_ids, x.shape[0])
        self._check_device(x)
        if "labels" in self.parts:
            check_labels(labels, x.shape[0])
        # States made in inference mode could not be updated outside of it.
        with torch.inference_mode(False), full_precision(x.device):
            self._check_widths(x, y)
            if "moments" in self.parts:
                judged = halves(sample_keys(y, ids))
                dtype = torch.float64 if "exact" in self.parts else None
                sums = self._sums_of(x.shape[1], y.shape[1], 2)
                sums.add(x, y, judged, self.chunk_bytes, dtype=dtype)
            if "rows" in self.parts:
                self._keep_rows(x, y, ids)
            if "labels" in self.parts:
                self.row_labels.append(cast(Tensor, labels).detach().to(x.device))

    def _check_device(self, x: Tensor) -> None:
        if x.device != self.device:
            raise ValueError(
                f"Expected inputs on {self.device}, where the metric is, got {x.device}; "
                f"move the metric with `.to`."
            )

    def _check_widths(self, x: Tensor, y: Tensor) -> None:
        if "moments" in self.parts and self.count.numel():
            widths = self._moments().widths
        elif "rows" in self.parts and self.rows_x:
            widths = self.rows_x[0].shape[1], self.rows_y[0].shape[1]
        else:
            return
        for value, name, width in zip((x, y), "xy", widths, strict=True):
            if value.shape[1] != width:
                raise ValueError(
                    f"Expected `{name}` to have width {width} as before, got {value.shape[1]}."
                )

    def _keep_rows(self, x: Tensor, y: Tensor, ids: list[int | str] | None) -> None:
        self.rows_x.append(x)
        self.rows_y.append(y)
        words = torch.full_like(x[:, 0], NO_ID, dtype=torch.int64)
        self.row_ids.append(words if ids is None else id_words(ids, x.device))

    def _sums_of(self, *sizes: int) -> Any:
        """The sums so far; those of no sample at first."""
        if self.count.numel() == 0:
            self._set_moments(self.sums.zeros(*sizes, self.device))
        return self._moments()

    def _moments(self) -> Any:
        return self.sums(**{name: getattr(self, name) for name in self.sums.names()})

    def _set_moments(self, moments: Any) -> None:
        for name in self.sums.names():
            setattr(self, name, getattr(moments, name))

    def _rows(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """All rows of x and y, their ids (None if not given) and the order of the ids."""
        batches = [getattr(self, name) for name in ROW_STATES]
        x, y, ids = (rows[0] if len(rows) == 1 else torch.cat(rows) for rows in batches)
        order = torch.arange(x.shape[0], device=x.device)
        if not bool((ids != NO_ID).any()):
            return x, y, None, order
        if not bool((ids.diff() >= 0).all()):
            order = ids.argsort(stable=True)
            x, y, ids = x[order], y[order], ids[order]
        return x, y, ids, order

    def num_samples(self) -> int:
        """Number of samples seen (of all ranks, while synchronized)."""
        if "moments" in self.parts:
            return int(self.count.sum())
        return sum(batch.shape[0] for batch in self.rows_x)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Value over all samples of all ranks.

        As the value of one batch in ``forward`` it is NaN when the batch is too small.

        Raises:
            ValueError: if there are fewer samples than the metric is defined for.
        """
        in_forward = self._enable_grad
        nan = torch.full((), torch.nan, dtype=torch.float64, device=self.device)
        keys = self.keys()
        if in_forward and self.num_samples() < self.min_samples:
            return nan if keys is None else dict.fromkeys(keys, nan)
        check_count(self.num_samples(), self.min_samples, self._described())
        with full_precision(self.device):
            value = self._value()
            if keys is None or (self.num_jackknife_groups is None and self.null is None):
                return value
            values = found = self._by_key(value)
            if self.num_jackknife_groups is not None:
                errors = dict.fromkeys(found, nan) if in_forward else self._standard_errors()
                values = values | {f"{key}_se": error for key, error in errors.items()}
            if self.null is not None:
                null = {} if in_forward else self._permuted(*self._all_rows(), self.null)
                levels, p_values = compare(dict(found), null)
                values = values | {f"{key}_null": level for key, level in levels.items()}
                values = values | {f"{key}_p": p for key, p in p_values.items()}
            return values

    def keys(self) -> tuple[str, ...] | None:
        """Keys of the value; None for a metric whose value is one tensor."""
        names = self._names()
        endings = [] if self.num_jackknife_groups is None else ["_se"]
        endings += [] if self.null is None else ["_null", "_p"]
        if self.scalar and not endings:
            return None
        return (*names, *(f"{name}{ending}" for ending in endings for name in names))

    @abstractmethod
    def _names(self) -> tuple[str, ...]:
        """Keys of the values and their chance levels; a single one if the value is one tensor."""

    def _by_key(self, value: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._names()[0]: value} if isinstance(value, Tensor) else value

    def _described(self) -> str:
        return type(self).__name__

    @abstractmethod
    def _value(self) -> Tensor | dict[str, Tensor]:
        """Compute the value and record the chance levels."""

    def _arguments(
        self, ids: Tensor | None, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `function` takes beside rows and `chunk_bytes`, by place and by name."""
        return (), {}

    def _value_of(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None
    ) -> Tensor | dict[str, Tensor]:
        """Compute the value of some rows, in the order of their ids."""
        others, options = self._arguments(ids, labels)
        found = by_key(self.function(x, y, *others, chunk_bytes=self.chunk_bytes, **options))
        return found[""] if self.fields == ("",) else self._under_keys(found)

    def _under_keys(self, found: Mapping[str | int, Tensor]) -> dict[str, Tensor]:
        places = zip(self._names(), self.fields, strict=True)
        return {key: found[field] for key, field in places if field in found}

    def _all_rows(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What `_value_of` takes of all samples."""
        x, y, ids, order = self._rows()
        return x, y, ids, torch.cat(self.row_labels)[order] if "labels" in self.parts else None

    def _permuted(
        self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None, null: int
    ) -> Mapping[str, Tensor]:
        """Permuted values (p,) of some rows under the keys of the value."""
        orders = permutations(len(x), null, x.device)
        if (permuted := PERMUTED.get(self.function)) is not None:
            others, options = self._arguments(ids, labels)
            options["chunk_bytes"] = self.chunk_bytes
            return self._under_keys(permuted(x, y, orders, *others, **options))

        def value(x: Tensor, y: Tensor) -> dict[str | int, Tensor]:
            return by_key(self._by_key(self._value_of(x, y, ids, labels)))

        found = recomputed(value, x, y, orders)
        return {str(key): values for key, values in found.items()}

    def _standard_errors(self) -> dict[str, Tensor]:
        """Standard error under each key of the value."""
        x, y, ids, labels = self._all_rows()
        given = [part for part in (ids, labels) if part is not None]

        def value(x: Tensor, y: Tensor, *rest: Tensor) -> dict[str, Tensor]:
            some_ids = None if ids is None else rest[0]
            some_labels = None if labels is None else rest[-1]
            return self._by_key(self._value_of(x, y, some_ids, some_labels))

        groups = cast(int, self.num_jackknife_groups)
        found = jackknife(value, x, y, *given, num_groups=groups, y_ids=ids)
        return cast(dict[str, Tensor], found.standard_error)

    def chance(self) -> dict[str, float]:
        """Value of unrelated representations under each key, where one is known.

        For the numbers of samples and features of the last ``compute``; calls it if need be, so
        that under several processes every rank must take part.
        """
        if self._computed is None:
            self.compute()
        return dict(self._chance)

    def identity(self) -> dict[str, float]:
        """Value of a representation and itself, with these samples, where one is known.

        What is 1 in theory (0 for the Procrustes residual) is not always within reach: a rotation
        of more features than fitted samples stays partly open. Every rank must take part.
        """
        if self._computed is None:
            self.compute()
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._identity()

    def permuted(self, num_permutations: int) -> dict[str, tuple[float, float]]:
        """95 % level and p-value under each key, as ``null=`` gives them, where both are defined.

        Empty for a metric that keeps no rows. Every rank must take part.

        Args:
            num_permutations: number of permutations, at least 19 for a 95 % level.
        """
        if "rows" not in self.parts:
            return {}
        value = self._by_key(self.compute())
        values = {key: value[key] for key in self._names() if key in value}
        with (
            self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync),
            full_precision(self.device),
        ):
            null = self._permuted(*self._all_rows(), num_permutations)
        levels, p_values = compare(values, null)
        return {
            key: (float(level), float(p_values[key]))
            for key, level in levels.items()
            if bool(level.isfinite())
        }

    def _identity(self) -> dict[str, float]:
        return dict.fromkeys(self._names(), 1.0)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value of ``compute`` or ``forward``, or a list of them; needs matplotlib.

        Args:
            val: the value or values; the default is that of ``compute``.
            ax: where to draw; the default is a figure of its own.

        Returns:
            Figure and axes. Several keys are several lines; standard errors are bands around them.
            A single line has its chance level, where ``val`` is left out.
        """
        names = self._names()
        value = self.compute() if val is None else val
        chance = self._chance.get(names[0]) if val is None and len(names) == 1 else None
        return draw(value, type(self).__name__, chance, ax)

    def reset(self) -> None:
        """Forget all samples; lists of rows that a wrapper kept, as `Running` does, stay whole."""
        for name in self._row_states():
            setattr(self, name, [])
        super().reset()

    def set_dtype(self, dst_type: str | torch.dtype) -> "PairMetric":
        """Return the metric unchanged: its sums are float64 on purpose."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def keep_dtype(value: Tensor) -> Tensor:
            return value.to(fn(value).device)

        return super()._apply(keep_dtype, exclude_state)

    @contextmanager
    def synchronized_for(self, members: Sequence["PairMetric"]) -> Iterator[None]:
        """Exchange the state once for ``members`` that share it, this metric among them."""
        if not self.distributed_available_fn():
            yield
            return
        to_sync = self._to_sync
        self.sync(should_sync=to_sync)
        for member in members:
            for name in self._defaults:
                setattr(member, name, getattr(self, name))
            member._to_sync, member._should_unsync = False, False
        try:
            yield
        finally:
            for member in members:
                member._to_sync, member._should_unsync = to_sync, True
            self.unsync(should_unsync=self._is_synced)
            for member in members:
                for name in self._defaults:
                    setattr(member, name, getattr(self, name))

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        if "moments" in self.parts:
            incoming = {name: incoming_state[name] for name in self.sums.names()}
            if incoming["count"].numel():
                theirs = self.sums(**{k: v.clone() for k, v in incoming.items()})
                if self.count.numel():
                    theirs.merge(self._moments())
                self._set_moments(theirs)
        for name in self._row_states():
            setattr(self, name, [*incoming_state[name], *getattr(self, name)])

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Exchange the state between ranks; see the class for how this differs."""
        if self._is_synced and should_sync:
            raise TorchMetricsUserError("The Metric has already been synced.")
        available = distributed_available or self.distributed_available_fn
        if not should_sync or not available():
            return
        with torch.no_grad():
            self._synchronize(Exchange(process_group or self.process_group, self.device))
        self._is_synced = True

    def _synchronize(self, exchange: Exchange) -> None:
        if "moments" in self.parts:
            self._sync_moments(exchange)
        names = self._row_states()
        self._local_rows = {name: getattr(self, name) for name in names}
        for name in names:
            setattr(self, name, [exchange.gather_rows(getattr(self, name))])

    def _sync_moments(self, exchange: Exchange) -> None:
        empty = self.count.numel() == 0
        moments = self._sums_of(*exchange.largest([0] * 3 if empty else self._moments().sizes))
        moments.change_unit(exchange.largest_values(moments.unit))
        moments.rounding.copy_(exchange.largest_values(moments.rounding))
        total = exchange.add(moments.count.sum()).clamp(min=1)
        means = [exchange.add(part) / total for part in moments.mean_sums()]
        # Centers are subtracted from float32 rows, so they must be float32 values.
        moments.recenter(*(mean.float().double() for mean in means))
        for name in moments.summed:
            exchange.add(getattr(moments, name))

    def unsync(self, should_unsync: bool = True) -> None:
        """Give back the rows of this rank; the sums stay with the first rank."""
        if not should_unsync:
            return
        if not self._is_synced:
            raise TorchMetricsUserError("The Metric has already been un-synced.")
        if "moments" in self.parts and dist.get_rank(self.process_group) != 0:
            for name in self.sums.summed:
                getattr(self, name).zero_()
        for name, rows in (self._local_rows or {}).items():
            setattr(self, name, rows)
        self._local_rows = None
        self._is_synced = False

    @property
    def update_called(self) -> bool:
        """Whether there is anything to compute; a rank without samples is no mistake."""
        seen = self._update_count > 0 or self.num_samples() > 0
        return seen or bool(self.distributed_available_fn())
