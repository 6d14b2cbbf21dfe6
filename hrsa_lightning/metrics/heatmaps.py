"""Maps of all pairs of layers as metrics: linear CKA, and dimension-wise correlation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import SampleIds, check_ids, check_layers, compute_dtype
from hrsa_lightning.functional._numerics import full_precision
from hrsa_lightning.functional.cka_heatmap import MIN_SAMPLES, linear_cka_heatmap
from hrsa_lightning.functional.dimension_correlation import (
    MIN_SAMPLES as MIN_CORRELATED,
)
from hrsa_lightning.functional.dimension_correlation import (
    CorrelationSums,
    correlation_heatmap,
    dimension_correlation_heatmap,
)
from hrsa_lightning.metrics._base import PairMetric
from hrsa_lightning.metrics._drawing import pictures
from hrsa_lightning.metrics._exchange import Exchange

WIDTHS = ("widths_x", "widths_y")

HEATMAPS: dict[str, Callable[..., Tensor]] = {
    "cka": linear_cka_heatmap,
    "cka_standardized": partial(linear_cka_heatmap, standardize=True),
    "dimension_correlation": dimension_correlation_heatmap,
}
"""Maps that monitors and `compare` draw, by the name of their metric."""


def layer_heatmaps(
    xs: Sequence[Tensor], ys: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """Some of `HEATMAPS`; that of dimension correlation only where all layers have one width."""
    one_width = len({layer.shape[1] for layer in (*xs, *ys)}) == 1
    return {
        name: HEATMAPS[name](xs, ys) for name in names if one_width or "correlation" not in name
    }


class LayerHeatmap(PairMetric):
    """Base of the metrics that set every layer of one model against every layer of another.

    Args:
        kwargs: see `PairMetric`.
    """

    scalar = True
    label: str
    """What the colors of a picture mean."""

    widths_x: Tensor
    widths_y: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in WIDTHS:
            self.add_state(name, default=torch.zeros(0, dtype=torch.int64), dist_reduce_fx="max")

    def update(  # type: ignore[override]
        self,
        xs: Tensor | Sequence[Tensor],
        ys: Tensor | Sequence[Tensor],
        *,
        x_ids: SampleIds | None = None,
        y_ids: SampleIds | None = None,
    ) -> None:
        """Add samples.

        Args:
            xs: (layers_x, n, d_x), or a list of (n, d_l), of the live model.
            ys: (layers_y, n, d_y), or a list, of the same samples by the reference.
            x_ids: ids of the rows of every layer in ``xs``, int or str.
            y_ids: ids of the rows of every layer in ``ys``; must equal ``x_ids``.
        """
        left, right = check_layers(xs, ys, equal_width=self.equal_width)
        self._check_device(left[0])
        ids = check_ids(x_ids, y_ids, len(left[0]))
        for name, layers in (("widths_x", left), ("widths_y", right)):
            widths = torch.tensor([layer.shape[1] for layer in layers], device=self.device)
            known = getattr(self, name)
            if known.numel() and known.tolist() != widths.tolist():
                raise ValueError(
                    f"Expected layers of widths {known.tolist()} as before, got {widths.tolist()}."
                )
            setattr(self, name, widths)
        with torch.inference_mode(False), full_precision(self.device):
            if "moments" in self.parts:
                sums = self._sums_of(len(left), len(right), left[0].shape[1])
                sums.add(left, right, self.chunk_bytes)
            if "rows" in self.parts:
                dtype = compute_dtype(*left, *right)
                x, y = (torch.cat(layers, 1).to(dtype) for layers in (left, right))
                self._keep_rows(x, y, ids)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value of ``compute`` or ``forward`` as a map of layers; needs matplotlib.

        Args:
            val: the value; the default is that of ``compute``.
            ax: where to draw; the default is a figure of its own.

        Returns:
            Figure and axes, with the first layers at the bottom left.
        """
        value = self.compute() if val is None else val
        heatmap: Tensor = value[self._names()[0]] if isinstance(value, dict) else value
        rows, columns = ([str(layer) for layer in range(count)] for count in heatmap.shape)
        title = type(self).__name__
        if ax is None:
            sides = {"row_label": "layer of x", "column_label": "layer of y"}
            figure = pictures().heatmap_figure(
                heatmap, rows, columns, title=title, label=self.label, pyplot=True, **sides
            )
            return figure, figure.axes[0]
        pictures().draw_heatmap(ax, heatmap, rows, columns, title=title, label=self.label)
        ax.set(xlabel="layer of y", ylabel="layer of x")
        return ax.get_figure(root=True), ax

    def _by_layer(
        self, function: Callable[..., Tensor], x: Tensor, y: Tensor, **options: Any
    ) -> Tensor:
        """The map of kept rows, in which the layers lie side by side."""
        left = torch.split(x, self.widths_x.tolist(), dim=1)
        right = torch.split(y, self.widths_y.tolist(), dim=1)
        return function(left, right, chunk_bytes=self.chunk_bytes, **options)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        for name in WIDTHS:
            if incoming_state[name].numel():
                setattr(self, name, incoming_state[name])

    def _synchronize(self, exchange: Exchange) -> None:
        super()._synchronize(exchange)
        for name in WIDTHS:
            known = getattr(self, name).tolist()
            (count,) = exchange.largest([len(known)])
            widths = exchange.largest([*known, *[0] * (count - len(known))])
            setattr(self, name, torch.tensor(widths, device=self.device))


class LinearCKAHeatmap(LayerHeatmap):
    """Linear CKA of every layer of one model against every layer of another.

    See `hrsa_lightning.functional.linear_cka_heatmap`. The rows are kept until ``reset``. The
    value has shape (layers_x, layers_y).

    Args:
        debiased: whether to compute the debiased form.
        standardize: whether to bring every feature to unit variance.
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = LinearCKAHeatmap()
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> metric.update([x, x[:, :1]], [x])
        >>> metric.compute().shape
        torch.Size([2, 1])
    """

    needs = ("rows",)
    min_samples = MIN_SAMPLES

    def __init__(self, debiased: bool = True, *, standardize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.debiased = debiased
        self.standardize = standardize
        form = "debiased" if debiased else "plain"
        self.label = f"linear CKA, {form}{', standardized' if standardize else ''}"

    def _names(self) -> tuple[str, ...]:
        ending = "_standardized" if self.standardize else ""
        return (f"cka{ending}",) if self.debiased else (f"cka_plain{ending}",)

    def _value(self) -> Tensor:
        x, y, _, _ = self._rows()
        self._chance = dict.fromkeys(self._names(), 0.0) if self.debiased else {}
        return self._value_of(x, y, None, None)

    def _value_of(self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None) -> Tensor:
        options = {"debiased": self.debiased, "standardize": self.standardize}
        return self._by_layer(linear_cka_heatmap, x, y, **options)


class DimensionCorrelationHeatmap(LayerHeatmap):
    """Mean dimension correlation of every layer of one model with every layer of another.

    See `hrsa_lightning.functional.dimension_correlation_heatmap`. Streamed: a sum per dimension and
    pair of layers is kept, and no rows. The value has shape (layers_x, layers_y).

    Args:
        kwargs: see `PairMetric`.

    Example:
        >>> import torch
        >>> metric = DimensionCorrelationHeatmap()
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> metric.update([x, -x], [x])
        >>> metric.compute().round().tolist()
        [[1.0], [-1.0]]
    """

    needs = ("moments",)
    min_samples = MIN_CORRELATED
    equal_width = True
    plot_lower_bound = -1.0
    label = "dimension correlation, mean"
    sums = CorrelationSums

    def _names(self) -> tuple[str, ...]:
        return ("dimension_correlation",)

    def _value(self) -> Tensor:
        self._chance = dict.fromkeys(self._names(), 0.0)
        return correlation_heatmap(self._moments())

    def _value_of(self, x: Tensor, y: Tensor, ids: Tensor | None, labels: Tensor | None) -> Tensor:
        return self._by_layer(dimension_correlation_heatmap, x, y)
