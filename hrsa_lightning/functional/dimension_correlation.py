"""Correlation of equal dimensions: is the coordinate basis kept?

Shape legend: n samples, L layers of both models together, L_x and L_y of each, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_count,
    check_ids,
    check_layers,
    check_pair,
    compute_dtype,
)
from hrsa_lightning.functional._moments import CENTER_ROWS, OFF_CENTER, PairMoments, location
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    is_constant,
    row_chunks,
    scalar_nan,
    slices,
    unit_of,
    warn_nan,
)

MIN_SAMPLES = 2
QUANTILES = (0.05, 0.25, 0.75, 0.95)

WIDE = 2.0**24
"""Dimensions whose spread differs by more from that of their layer have units of their own."""

ROWS_AT_ONCE = 128
"""Rows of all layers that are multiplied at once on a CPU: their products stay in its cache."""

ROWS_IN_CACHE = 64
"""Likewise, where no products per dimension are kept."""

PARTS_OF_A_SUM = 64
"""Parts whose sums are added up in float32 before they go to float64."""

FEW_ROWS = 16
"""Rows whose mean is near enough to that of all to add up squares around it."""

REMOTE = 1e3
"""Means this many deviations off the origin cost standardized float32 rows digits that count."""


class DimensionCorrelationResult(NamedTuple):
    """Values of `dimension_correlation`, float64.

    Attributes:
        values: (d,) Pearson r per dimension, NaN where degenerate.
        mean: over dimensions that are not degenerate.
        median: likewise.
        quantiles: (4,), at .05, .25, .75 and .95, likewise.
        degenerate_share: share of dimensions without variance in either representation.
    """

    values: Tensor
    mean: Tensor
    median: Tensor
    quantiles: Tensor
    degenerate_share: Tensor


def dimension_correlation(
    x: Tensor,
    y: Tensor,
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> DimensionCorrelationResult:
    """Pearson correlation over samples of each dimension of ``x`` with the same one of ``y``.

    1 means that the coordinate basis is kept, 0 is what unrelated representations have on average
    (arXiv 2601.21192). Invariant to translation and positive scaling of each dimension, not to
    rotation: that is its purpose.

    Args:
        x: (n, d) representations, floating point.
        y: (n, d) representations of the same samples.
        x_ids: ids of the rows of ``x``, int or str.
        y_ids: ids of the rows of ``y``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside the inputs.

    Returns:
        A `DimensionCorrelationResult`. NaN, with a warning, if an input is not finite or every
        dimension is degenerate.

    Raises:
        ValueError: if shapes or ids do not match or n < 2.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> y = torch.stack((2 * x[:, 0], -x[:, 1]), dim=1)
        >>> dimension_correlation(x, y).values.round().tolist()
        [1.0, -1.0]
    """
    x, y = check_pair(x, y, min_samples=MIN_SAMPLES, equal_width=True)
    check_ids(x_ids, y_ids, x.shape[0])
    with full_precision(x.device):
        sums = CorrelationSums.zeros(1, 1, x.shape[1], x.device)
        sums.add([x], [y], chunk_bytes, dtype=torch.float64)
        squares, constant = sums.centered_squares()
        return summarize_correlation(
            sums.centered_cross(0)[0], squares[0], squares[1], constant.any(0)
        )


def dimension_correlation_heatmap(
    xs: Tensor | Sequence[Tensor],
    ys: Tensor | Sequence[Tensor],
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    """Mean `dimension_correlation` of every layer of one model with every layer of another.

    The layer-by-layer map of arXiv 2601.21192 (figures 3, 6 and 7). Every value is read twice, or
    once where sums of x y per dimension and pair of layers are needed for its digits, and nothing
    of the size of the inputs is kept.

    Args:
        xs: (layers_x, n, d), or a list of (n, d).
        ys: (layers_y, n, d), or a list, of the same samples.
        x_ids: ids of the rows of every layer in ``xs``, int or str.
        y_ids: ids of the rows of every layer in ``ys``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside inputs and sums.

    Returns:
        (layers_x, layers_y), float64, the mean over dimensions that are not degenerate in either
        layer. NaN, with one warning, in rows and columns of layers that are not finite or have no
        dimension left.

    Raises:
        ValueError: if shapes, widths or ids do not match or n < 2.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> dimension_correlation_heatmap([x, -x], [2 * x]).round().tolist()
        [[1.0], [-1.0]]
    """
    left, right = check_layers(xs, ys, equal_width=True)
    n, d = left[0].shape
    check_count(n, MIN_SAMPLES)
    check_ids(x_ids, y_ids, n)
    with full_precision(left[0].device):
        if (heatmap := _quick_heatmap(left, right, chunk_bytes)) is not None:
            return heatmap
        sums = CorrelationSums.zeros(len(left), len(right), d, left[0].device)
        sums.add(left, right, chunk_bytes)
        return correlation_heatmap(sums)


def _quick_heatmap(xs: Sequence[Tensor], ys: Sequence[Tensor], chunk_bytes: int) -> Tensor | None:
    """The map of float32 rows without constant, tiny, huge or remote features; else None.

    A mean over dimensions of correlations is one inner product of standardized layers, which is
    taken of a few rows of all layers at a time, after a pass for means and deviations.
    """
    layers, (n, d) = [*xs, *ys], xs[0].shape
    if compute_dtype(*layers) == torch.float64:
        return None
    device, dtype = xs[0].device, torch.float32
    parts = row_chunks(xs[0], (len(layers) + 2) * d * dtype.itemsize, chunk_bytes, ROWS_IN_CACHE)
    room = torch.empty(len(layers), parts[0].stop, d, dtype=dtype, device=device)
    ones, squared = torch.ones(1, parts[0].stop, dtype=dtype, device=device), room[0] * 0
    means, squares = torch.zeros(2, len(layers), d, dtype=torch.float64, device=device)
    for layer, mean, square in zip(layers, means, squares, strict=True):
        center = layer[:: max(1, n // FEW_ROWS)].to(dtype).mean(0)
        total = torch.zeros_like(mean)
        for block in slices(len(parts), PARTS_OF_A_SUM):
            sums = torch.zeros(1, d, dtype=dtype, device=device)
            squared.zero_()
            for part in parts[block]:
                rows = torch.sub(layer[part], center, out=room[0, : part.stop - part.start])
                squared[: len(rows)].addcmul_(rows, rows)
                sums.addmm_(ones[:, : len(rows)], rows)
            total += sums[0]
            square += squared.sum(0, dtype=torch.float64)
        square -= total * total / n
        mean += center + total / n
    spread = (squares / n).sqrt()
    usual = (spread > 1 / WIDE) & (spread < WIDE) & (means.abs() < REMOTE * spread)
    if not bool(usual.all()):
        return None
    weights = squares.rsqrt()
    shifts, weights = (-means * weights).to(dtype), weights.to(dtype)
    heatmap = torch.zeros(len(xs), len(ys), dtype=torch.float64, device=device)
    for part in parts:
        for index, layer in enumerate(layers):
            rows = room[index, : part.stop - part.start]
            torch.addcmul(shifts[index], layer[part].to(dtype), weights[index], out=rows)
        rows = room[:, : part.stop - part.start].flatten(1)
        heatmap += rows[: len(xs)] @ rows[len(xs) :].mT
    return heatmap / d


@dataclass
class CorrelationSums:
    """Sums over samples of each dimension of many layers around a center; those of x come first.

    Attributes:
        count: () samples.
        rounding: () eps of the dtype of the rows, the largest where it changed.
        unit: (L, d) powers of two that rows and centers were divided by.
        center: (L, d) subtracted from every row, in the unit of its layer.
        total: (L, d) of the rows.
        squares: (L, d) of their squares.
        cross: (L_x, L_y, d) of x y.
    """

    count: Tensor
    rounding: Tensor
    unit: Tensor
    center: Tensor
    total: Tensor
    squares: Tensor
    cross: Tensor

    summed = ("count", "total", "squares", "cross")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all fields, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def zeros(cls, num_x: int, num_y: int, d: int, device: torch.device) -> "CorrelationSums":
        """Sums of no sample at all."""
        num = num_x + num_y
        shapes = [(), (), *[(num, d)] * 4, (num_x, num_y, d)]
        sums = cls(*(torch.zeros(s, dtype=torch.float64, device=device) for s in shapes))
        sums.unit += torch.finfo(torch.float64).tiny  # less than that of any rows
        return sums

    @property
    def sizes(self) -> tuple[int, ...]:
        """What `zeros` needs to make others of the same shapes: (L_x, L_y, d)."""
        return tuple(self.cross.shape)

    def change_unit(self, unit: Tensor) -> None:
        """Divide by other units (L, d), not smaller than before, in place and exactly."""
        factor, num_x = self.unit / unit, len(self.cross)
        if bool((factor == 1).all()):
            return
        self.center *= factor
        self.total *= factor
        self.squares *= factor.square()
        self.cross *= factor[:num_x, None] * factor[num_x:]
        self.unit.copy_(unit)

    def mean_sums(self) -> list[Tensor]:
        """What divided by the number of samples is their mean, (L, d), for sums over ranks."""
        return [self.count * self.center + self.total]

    def recenter(self, center: Tensor) -> None:
        """Move the centers in place; the sums become those of rows around the new ones."""
        shift = center - self.center
        n, num_x = self.count, len(self.cross)
        # In this order, since each line takes the totals around the old centers.
        self.cross -= shift[:num_x, None] * self.total[num_x:]
        self.cross -= (self.total - n * shift)[:num_x, None] * shift[num_x:]
        self.squares += shift * (n * shift - 2 * self.total)
        self.total -= n * shift
        self.center += shift

    def merge(self, other: "CorrelationSums") -> None:
        """Add the samples of others in place; ``other`` is moved to our centers."""
        unit = torch.maximum(self.unit, other.unit)
        self.change_unit(unit)
        other.change_unit(unit)
        self.rounding.copy_(torch.maximum(self.rounding, other.rounding))
        if not self.count:
            self.center.copy_(other.center)
        other.recenter(self.center)
        for name in self.summed:
            getattr(self, name).add_(getattr(other, name))

    def add(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        chunk_bytes: int,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add rows in place.

        Args:
            xs: L_x layers (n, d), floating point.
            ys: L_y layers of the same samples, on the same device.
            chunk_bytes: bound of the working memory.
            dtype: of the products; float64 where an input has it, else float32 by default.
        """
        layers = [*xs, *ys]
        (n, d), given = layers[0].shape, compute_dtype(*layers)
        dtype = given if dtype is None else dtype
        if n == 0:
            return
        self.change_unit(torch.maximum(self.unit, torch.stack([_units(x, dtype) for x in layers])))
        self.rounding.clamp_(min=torch.finfo(given).eps)
        self._choose_center(
            torch.stack(
                [location(_few(x, dtype) / unit) for x, unit in zip(layers, self.unit, strict=True)]
            )
        )
        # Samples come last: their products are then sums along memory, one matrix for a dimension.
        bytes_per_row = (len(layers) + 2) * d * dtype.itemsize
        parts = row_chunks(layers[0], bytes_per_row, chunk_bytes, ROWS_AT_ONCE)
        room = torch.empty(len(layers), d, parts[0].stop, dtype=dtype, device=self.center.device)
        centers, units = self.center.to(dtype), self.unit.to(dtype)
        scaled = [bool((unit != 1).any()) for unit in units]
        for part in parts:
            rows = room[:, :, : part.stop - part.start]
            for index, layer in enumerate(layers):
                chunk = layer[part].to(dtype)
                chunk = chunk / units[index] if scaled[index] else chunk
                rows[index].copy_((chunk - centers[index]).mT)
            self.count += part.stop - part.start
            self.total += rows.sum(2)
            self.squares += torch.linalg.vector_norm(rows, dim=2).double().square_()
            left, right = torch.split(rows.transpose(0, 1), [len(xs), len(ys)], dim=1)
            self.cross += torch.bmm(left, right.mT).permute(1, 2, 0)

    def _choose_center(self, center: Tensor) -> None:
        """Move to new centers where those are none yet or far away for the spread of a layer."""
        if self.count:
            squares, _ = self.centered_squares()
            offset = (center - self.center).square()
            if not bool((self.count * offset > OFF_CENTER * squares).any()):
                return
        self.recenter(center)

    def centered_squares(self) -> tuple[Tensor, Tensor]:
        """`squares` around the means, (L, d), and whether a dimension is constant, bool (L, d)."""
        offset = self.total / self.count
        squares = self.squares - self.total * offset
        dtype = torch.float64 if self.rounding == torch.finfo(torch.float64).eps else torch.float32
        return squares, is_constant(self.center + offset, squares, int(self.count), dtype)

    def centered_cross(self, index: int) -> Tensor:
        """`cross` of one layer of x around the means, (L_y, d)."""
        return self.cross[index] - self.total[index] / self.count * self.total[len(self.cross) :]


def _few(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Some rows, evenly spaced, which tell where the others lie."""
    return x[:: max(1, len(x) // CENTER_ROWS)].to(dtype)


def _units(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Powers of two to divide the dimensions of a layer by, float64 (d,); mostly all the same.

    Products of rows must stay within the range of the dtype in every dimension, also in one that is
    many orders smaller than others.
    """
    unit = unit_of(x)
    low, high = torch.aminmax(_few(x, dtype).double() / unit, dim=0)
    spread = high - low
    if not bool(((spread > 0) & ((spread < 1 / WIDE) | ~(spread < WIDE))).any()):
        return torch.full_like(spread, unit)
    low, high = torch.aminmax(x, dim=0)
    largest = torch.maximum(-low, high).double()
    exponent = torch.frexp(largest).exponent
    # Its inverse must be a normal number of the dtype as well.
    most = 126 if dtype == torch.float32 else 1022
    exponent = exponent.where(largest > 0, -most).clamp(-most, most)
    return torch.ldexp(torch.ones_like(largest), exponent)


def correlation_heatmap(sums: CorrelationSums) -> Tensor:
    """Map of means over dimensions; see `dimension_correlation_heatmap`."""
    squares, constant = sums.centered_squares()
    num_x = len(sums.cross)
    lengths, lines = squares.sqrt(), []
    for index in range(num_x):
        values = sums.centered_cross(index) / (lengths[index] * lengths[num_x:])
        out = constant[index] | constant[num_x:]
        lines.append(values.masked_fill(out, 0).sum(1) / (~out).sum(1))
    heatmap = torch.stack(lines)
    if not bool(heatmap.isfinite().all()):
        finite = bool(squares.isfinite().all())
        reason = "every dimension of a layer is constant" if finite else "an input is not finite"
        warn_nan("dimension correlation", reason)
    return heatmap


def correlation_from_moments(moments: PairMoments) -> DimensionCorrelationResult:
    """Dimension-wise correlation of streamed moments; see `dimension_correlation`."""
    sum_x, sum_y, n = moments.sum_x.sum(0), moments.sum_y.sum(0), int(moments.count.sum())
    offset_x, offset_y = moments.mean_offsets()
    squares_x = moments.self_x.diagonal() - sum_x * offset_x
    squares_y = moments.self_y.diagonal() - sum_y * offset_y
    cross = moments.cross.diagonal(dim1=1, dim2=2).sum(0) - sum_x * offset_y
    mean_x, mean_y = moments.means()
    constant = is_constant(mean_x, squares_x, n, moments.dtype)
    constant |= is_constant(mean_y, squares_y, n, moments.dtype)
    return summarize_correlation(cross, squares_x, squares_y, constant)


def summarize_correlation(
    cross: Tensor, squares_x: Tensor, squares_y: Tensor, constant: Tensor
) -> DimensionCorrelationResult:
    """Correlation per dimension and its summary, from centered sums per dimension (d,)."""
    finite = bool((squares_x + squares_y).isfinite().all())
    nan = scalar_nan(cross)
    values = torch.where(constant, nan, cross / (squares_x.sqrt() * squares_y.sqrt()))
    kept = values[~constant]
    share = constant.double().mean()
    if not finite or kept.numel() == 0:
        reason = "every dimension is constant" if finite else "an input is not finite"
        warn_nan("dimension correlation", reason)
        return DimensionCorrelationResult(values, nan, nan, nan.expand(len(QUANTILES)), share)
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=cross.device)
    return DimensionCorrelationResult(
        values, kept.mean(), kept.quantile(0.5), kept.quantile(levels), share
    )
