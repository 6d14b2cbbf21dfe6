"""The paper's set of metrics as one collection."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

from torchmetrics import Metric, MetricCollection

from hrsa_lightning.functional._inputs import check_choice
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES
from hrsa_lightning.functional.knn import Overlap, Similarity
from hrsa_lightning.functional.procrustes import Protocol
from hrsa_lightning.metrics._base import PairMetric, shared_by
from hrsa_lightning.metrics._drawing import draw, lines_of, pictures
from hrsa_lightning.metrics.cka import LinearCKA
from hrsa_lightning.metrics.cknna import CKNNA
from hrsa_lightning.metrics.dimension_correlation import DimensionCorrelation
from hrsa_lightning.metrics.knn import KNNOverlap
from hrsa_lightning.metrics.predictivity import LinearPredictivity
from hrsa_lightning.metrics.probe_transfer import LinearProbeTransfer
from hrsa_lightning.metrics.procrustes import OrthogonalProcrustes

Level = Literal["representation", "geometry", "function", "all"]
LEVELS = ("representation", "geometry", "function", "all")


class Member(NamedTuple):
    """A metric of the set.

    Attributes:
        metric: Its class.
        level: HRSA level that it is counted to.
        takes: Arguments of `hrsa_metrics` that it takes; without a `num_classes` it is left out.
        fixed: Its other arguments.
        extra: What `extra=` calls it where it is not there unasked.
    """

    metric: type[PairMetric]
    level: Level
    takes: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = {}
    extra: str = ""


MEMBERS = {
    "cka": Member(LinearCKA, "geometry"),
    "cka_plain": Member(LinearCKA, "geometry", fixed={"debiased": False}),
    "cka_standardized": Member(LinearCKA, "geometry", fixed={"standardize": True}),
    "knn_overlap": Member(
        KNNOverlap, "geometry", ("k", "similarity", "overlap"), {"skip_large_k": True}
    ),
    "procrustes": Member(OrthogonalProcrustes, "representation", ("protocol",)),
    "dimension_correlation": Member(DimensionCorrelation, "representation"),
    "probe_transfer": Member(LinearProbeTransfer, "function", ("num_classes",)),
    "cknna_10": Member(CKNNA, "geometry", extra="cknna"),
    "predictivity": Member(LinearPredictivity, "function", extra="predictivity"),
}
"""By the name in the collection; `similarity.metric_info` says what people read of their values."""

EXTRAS = tuple(member.extra for member in MEMBERS.values() if member.extra)


class HRSAMetrics(MetricCollection):
    """A collection of HRSA metrics that share one state; made by `hrsa_metrics`."""

    def _member(self, name: str) -> PairMetric:
        metric = self._modules[name]
        assert isinstance(metric, PairMetric)
        return metric

    def compute(self) -> dict[str, Any]:
        """Compute all metrics, with one exchange between ranks per shared state."""
        with ExitStack() as stack:
            for names in self._groups.values():
                members = [self._member(name) for name in names]
                if any(member._computed is None for member in members):
                    stack.enter_context(members[0].synchronized_for(members))
            stack.enter_context(shared_by([self._member(name) for name in self._modules]))
            return super().compute()

    def identity(self) -> dict[str, float]:
        """Value of a representation and itself under each key, where known; see `PairMetric`."""
        result: dict[str, float] = {}
        for name in self._modules:
            result |= self._member(name).identity()
        return {self._set_name(key): value for key, value in result.items()}

    def chance(self) -> dict[str, float]:
        """Value of unrelated representations under each key of ``compute``, where one is known."""
        result: dict[str, float] = {}
        for names in self._groups.values():
            for name in names:
                result |= self._member(name).chance()
        return {self._set_name(key): value for key, value in result.items()}

    def plot(self, val: Any = None, ax: Any = None, together: bool = False) -> Any:
        """Plot a value of ``compute`` or ``forward``, or a list of them; needs matplotlib.

        Args:
            val: the value or values; the default is that of ``compute``.
            ax: where to draw: axes, one for each key, or with ``together`` a single one; the
                default is a figure of its own.
            together: whether all keys share one panel.

        Returns:
            A list of figure and axes for each key, all in one figure where ``ax`` is left out; with
            ``together`` figure and axes. Standard errors are bands. Chance levels are drawn where
            ``val`` is left out and every key has its own panel.

        Raises:
            ValueError: if there are not as many axes as keys.
        """
        chance = self.chance() if val is None else {}
        value = self.compute() if val is None else val
        values = [
            self._plain_names(v) for v in (value if isinstance(value, (list, tuple)) else [value])
        ]
        title = type(self).__name__
        if together:
            return draw(values, title, None, ax)
        panels = []
        for line in lines_of(values):
            key = self._set_name(line.label)
            panels.append((key, [line], [chance[key]] if key in chance else []))
        if ax is None:
            figure = pictures().panels_figure(
                panels, title=f"{title}, by computation", legend=False, pyplot=True
            )
            return [(figure, axes) for axes in figure.axes[: len(panels)]]
        if len(ax) != len(panels):
            raise ValueError(f"Expected as many axes as keys, {len(panels)}, got {len(ax)}.")
        for axes, (key, lines, levels) in zip(ax, panels, strict=True):
            pictures().draw_lines(axes, lines, title=key, chance=levels)
        return [(axes.get_figure(root=True), axes) for axes in ax]

    def _plain_names(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A value of ``compute`` without prefix and postfix."""
        before, after = self.prefix or "", self.postfix or ""
        return {key.removeprefix(before).removesuffix(after): v for key, v in value.items()}


def hrsa_metrics(
    level: Level = "all",
    *,
    num_classes: int | None = None,
    k: Sequence[int] = (10, 50),
    similarity: Similarity = "cosine",
    overlap: Overlap = "jaccard",
    protocol: Protocol = "held_out",
    num_jackknife_groups: int | None = None,
    null: int | None = None,
    extra: Collection[str] = (),
    prefix: str | None = None,
    postfix: str | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> HRSAMetrics:
    """Build the metrics of arXiv 2601.21192 for one pair of representations.

    ``compute`` gives a flat dict of scalars: ``cka``, ``cka_plain``, ``cka_standardized``,
    ``knn_overlap_{k}`` for each k below the number of samples (level geometry);
    ``procrustes_residual``, ``procrustes_global_cosine``, ``procrustes_mean_cosine``,
    ``inverse_row_entropy``, ``dimension_correlation``, ``dimension_correlation_median``
    (representation);
    ``probe_transfer_accuracy``, ``probe_source_accuracy``, ``probe_ceiling_accuracy`` (function).

    Args:
        level: which of them; ``"all"`` has the probe only if ``num_classes`` is given.
        num_classes: number of classes of the labels, which ``update`` then needs.
        k: numbers of neighbors.
        similarity: see `KNNOverlap`.
        overlap: see `KNNOverlap`.
        protocol: see `OrthogonalProcrustes`.
        num_jackknife_groups: see `PairMetric`; adds ``{key}_se`` beside every key.
        null: see `PairMetric`; adds ``{key}_null`` and ``{key}_p`` beside every key.
        extra: more metrics, by name: ``"cknna"`` (`CKNNA`, geometry) and ``"predictivity"``
            (`LinearPredictivity`, function).
        prefix: put before every key.
        postfix: put after every key.
        chunk_bytes: see `PairMetric`.

    Returns:
        The collection, empty; it takes batches of two (n, d) tensors.

    Raises:
        ValueError: if an option is unknown, or ``level="function"`` comes without ``num_classes``.

    Example:
        >>> import torch
        >>> metrics = hrsa_metrics("geometry", k=(2,))
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> metrics.update(x, x)
        >>> sorted(metrics.compute())
        ['cka', 'cka_plain', 'cka_standardized', 'knn_overlap_2']
    """
    check_choice(level, "level", LEVELS)
    if level == "function" and num_classes is None:
        raise ValueError('Expected `num_classes` with level="function", got None.')
    for name in extra:
        check_choice(name, "extra", EXTRAS)
    given: dict[str, Any] = {"similarity": similarity, "overlap": overlap, "protocol": protocol}
    given |= {"k": tuple(k)} | ({} if num_classes is None else {"num_classes": num_classes})
    chosen = {
        name: (member.metric, {**member.fixed, **{key: given[key] for key in member.takes}})
        for name, member in MEMBERS.items()
        if (member.extra in extra if member.extra else level in ("all", member.level))
        and given.keys() >= {*member.takes}
    }
    parts = {part for cls, options in chosen.values() for part in cls(**options).parts}
    if num_jackknife_groups is not None or null is not None:
        parts.add("rows")
    metrics: dict[str, Metric | MetricCollection] = {
        name: cls(
            **options,
            state=parts,
            num_jackknife_groups=num_jackknife_groups,
            null=null,
            chunk_bytes=chunk_bytes,
        )
        for name, (cls, options) in chosen.items()
    }
    return HRSAMetrics(metrics, prefix=prefix, postfix=postfix, compute_groups=[sorted(metrics)])
