"""Second moments of a pair of representations: exact, streaming, mergeable.

Shape legend: n samples, h halves (1, or 2 when the samples are split for held-out values),
d_x and d_y features.

Rows are shifted by a center near their mean before any product, products run in float32 (float64
for float64 input), and their sums are kept in float64. That is what keeps the moments right to
float32 rounding when the mean is a thousand times the standard deviation. The few rows whose norm
towers above the others (massive activations) are multiplied in float64, because debiased CKA
subtracts their squares again.

Sums are of rows divided by a power of two, the unit. It is 1 unless rows are so large or so small
that products of them would leave the range of float32.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hrsa_lightning.functional._numerics import in_units, row_chunks, slices, unit_of

MASSIVE = 16.0
"""A row is multiplied in float64 when its squared norm is this many times the median."""

OFF_CENTER = 4.0
"""The center is moved when a batch lies this many variances away from it."""

FEATURES_PER_PRODUCT = 256

ROWS_AT_ONCE = 2048
"""Rows shifted together at most on a CPU: as fast as more of them, in less memory."""

CENTER_ROWS = 256
"""A center is found from about this many rows of a batch."""


@dataclass
class PairMoments:
    """Sums over samples of x and y around a center, with k = |x|^2 and l = |y|^2 per row.

    Attributes:
        count: (h,) samples.
        rounding: () eps of the dtype of the rows, the largest where it changed.
        unit: (2,) powers of two that rows of x and y, and their centers, were divided by.
        center_x: (d_x,) subtracted from every row of x, in its unit.
        center_y: (d_y,) subtracted from every row of y, in its unit.
        sum_x: (h, d_x) of x.
        sum_y: (h, d_y) of y.
        trace: (2, h) of k and l.
        cross: (h, d_x, d_y) of x y'.
        self_x: (d_x, d_x) of x x'.
        self_y: (d_y, d_y) of y y'.
        quartic: (3,) of k k, l l, k l.
        weighted_x: (2, d_x) of k x and l x.
        weighted_y: (2, d_y) of k y and l y.
    """

    count: Tensor
    rounding: Tensor
    unit: Tensor
    center_x: Tensor
    center_y: Tensor
    sum_x: Tensor
    sum_y: Tensor
    trace: Tensor
    cross: Tensor
    self_x: Tensor
    self_y: Tensor
    quartic: Tensor
    weighted_x: Tensor
    weighted_y: Tensor

    summed = (
        "count", "sum_x", "sum_y", "trace", "cross", "self_x", "self_y", "quartic", "weighted_x",
        "weighted_y",
    )  # fmt: skip
    """Fields that are added up over samples."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all sums, in order."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def zeros(
        cls, d_x: int, d_y: int, num_halves: int, device: torch.device, *, own: bool = True
    ) -> "PairMoments":
        """Moments of no sample at all; without ``own``, x x', y y' and quartic sums are left out.

        Left out sums have no elements, and such moments cannot be recentered.
        """
        h, own_x, own_y = num_halves, d_x * own, d_y * own
        shapes = {
            "count": (h,),
            "rounding": (),
            "unit": (2,),
            "center_x": (d_x,),
            "center_y": (d_y,),
            "sum_x": (h, d_x),
            "sum_y": (h, d_y),
            "trace": (2, h),
            "cross": (h, d_x, d_y),
            "self_x": (own_x, own_x),
            "self_y": (own_y, own_y),
            "quartic": (3 * own,),
            "weighted_x": (2, own_x),
            "weighted_y": (2, own_y),
        }
        sums = {k: torch.zeros(s, dtype=torch.float64, device=device) for k, s in shapes.items()}
        sums["unit"] += torch.finfo(torch.float64).tiny  # less than that of any rows
        return cls(**sums)

    def half(self, index: int) -> "PairMoments":
        """A view of one half, without quartic sums; x x' and y y' stay those of all samples."""
        chosen = slice(index, index + 1)
        return replace(
            self,
            count=self.count[chosen],
            sum_x=self.sum_x[chosen],
            sum_y=self.sum_y[chosen],
            trace=self.trace[:, chosen],
            cross=self.cross[chosen],
            quartic=self.quartic[:0],
        )

    @property
    def widths(self) -> tuple[int, int]:
        """(d_x, d_y)."""
        return self.center_x.shape[0], self.center_y.shape[0]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What `zeros` needs to make others of the same shapes: (d_x, d_y, h)."""
        return *self.widths, len(self.count)

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows: float32 or float64."""
        double = torch.finfo(torch.float64).eps
        return torch.float64 if float(self.rounding) == double else torch.float32

    def change_unit(self, unit: Tensor) -> None:
        """Divide by another unit, not smaller than before, in place and exactly.

        Args:
            unit: (2,) powers of two, for x and y.
        """
        factor = self.unit / unit
        if bool((factor == 1).all()):
            return
        a, b = factor
        for name, by in (
            ("center_x", a), ("center_y", b), ("sum_x", a), ("sum_y", b), ("cross", a * b),
            ("self_x", a * a), ("self_y", b * b), ("trace", factor[:, None].square()),
            ("quartic", torch.stack((a**4, b**4, (a * b) ** 2))),
            ("weighted_x", a * factor[:, None].square()),
            ("weighted_y", b * factor[:, None].square()),
        ):  # fmt: skip
            if getattr(self, name).numel() and bool(self.count.any()):
                getattr(self, name).mul_(by)
        self.unit.copy_(unit)

    def recenter(self, center_x: Tensor, center_y: Tensor) -> None:
        """Move the center in place; the sums become those of the rows shifted to the new one."""
        a, b = center_x - self.center_x, center_y - self.center_y
        self.quartic.copy_(self._shifted_quartic(a, b))
        cross, s_x, s_y = self.cross.sum(0), self.sum_x.sum(0), self.sum_y.sum(0)
        trace = self.shifted_trace(a, b)
        total = trace.sum(1)
        for weighted, own, other, shift, total_sum in (
            (self.weighted_x, self.self_x, cross, a, s_x),
            (self.weighted_y, cross.mT, self.self_y, b, s_y),
        ):
            weighted[0] += a.dot(a) * total_sum - 2 * own @ a - total[0] * shift
            weighted[1] += b.dot(b) * total_sum - 2 * other @ b - total[1] * shift
        self.trace.copy_(trace)
        for h in range(self.count.shape[0]):
            left = self.sum_x[h] - self.count[h] * a
            self.cross[h].addr_(left, b, alpha=-1).addr_(a, self.sum_y[h], alpha=-1)
        n = self.count.sum()
        self.self_x.addr_(s_x - n * a, a, alpha=-1).addr_(a, s_x, alpha=-1)
        self.self_y.addr_(s_y - n * b, b, alpha=-1).addr_(b, s_y, alpha=-1)
        self.sum_x -= self.count[:, None] * a
        self.sum_y -= self.count[:, None] * b
        self.center_x.add_(a)
        self.center_y.add_(b)

    def shifted_trace(self, a: Tensor, b: Tensor) -> Tensor:
        """`trace` after a further shift of x by a and y by b."""
        return torch.stack(
            (
                self.trace[0] - 2 * self.sum_x @ a + self.count * a.dot(a),
                self.trace[1] - 2 * self.sum_y @ b + self.count * b.dot(b),
            )
        )

    def _shifted_quartic(self, a: Tensor, b: Tensor) -> Tensor:
        n, cross = self.count.sum(), self.cross.sum(0)
        s_x, s_y, (k, ell) = self.sum_x.sum(0), self.sum_y.sum(0), self.trace.sum(1)
        aa, bb = a.dot(a), b.dot(b)
        kk, ll, kl = self.quartic
        kx, lx = self.weighted_x
        ky, ly = self.weighted_y
        kk = kk - 4 * a.dot(kx) + 2 * aa * k + 4 * a.dot(self.self_x @ a)
        kk = kk - 4 * aa * a.dot(s_x) + n * aa * aa
        ll = ll - 4 * b.dot(ly) + 2 * bb * ell + 4 * b.dot(self.self_y @ b)
        ll = ll - 4 * bb * b.dot(s_y) + n * bb * bb
        kl = kl - 2 * a.dot(lx) - 2 * b.dot(ky) + bb * k + aa * ell + 4 * a.dot(cross @ b)
        kl = kl - 2 * bb * a.dot(s_x) - 2 * aa * b.dot(s_y) + n * aa * bb
        return torch.stack((kk, ll, kl))

    def mean_sums(self) -> list[Tensor]:
        """What divided by the number of samples are the means, for sums over ranks."""
        n = self.count.sum()
        return [n * self.center_x + self.sum_x.sum(0), n * self.center_y + self.sum_y.sum(0)]

    def mean_offsets(self) -> tuple[Tensor, Tensor]:
        """Means of x and of y, measured from the center."""
        n = self.count.sum()
        return self.sum_x.sum(0) / n, self.sum_y.sum(0) / n

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and of y, in their units."""
        offset_x, offset_y = self.mean_offsets()
        return self.center_x + offset_x, self.center_y + offset_y

    def centered_quartic(self) -> Tensor:
        """`quartic` around the means."""
        return self._shifted_quartic(*self.mean_offsets())

    def centered_trace(self) -> Tensor:
        """Sums of k and l around the means of all samples, shape (2,)."""
        return self.shifted_trace(*self.mean_offsets()).sum(1)

    def centered_square_norms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared Frobenius norms of xx', yy' and xy' around the means, scalars."""
        s_x, s_y, n = self.sum_x.sum(0), self.sum_y.sum(0), self.count.sum()
        return (
            _centered_square_norm(self.self_x[None], s_x, s_x / n),
            _centered_square_norm(self.self_y[None], s_y, s_y / n),
            _centered_square_norm(self.cross, s_x, s_y / n),
        )

    def centered_cross(self) -> Tensor:
        """xy' around the means, (d_x, d_y)."""
        s_x, s_y, n = self.sum_x.sum(0), self.sum_y.sum(0), self.count.sum()
        cross = self.cross[0] if self.cross.shape[0] == 1 else self.cross.sum(0)
        return torch.addr(cross, s_x, s_y / n, alpha=-1)

    def centered_inner(self, rotation: Tensor) -> Tensor:
        """<rotation, xy' around the means> for a rotation (d_x, d_y), without a copy of xy'."""
        s_x, s_y, n = self.sum_x.sum(0), self.sum_y.sum(0), self.count.sum()
        inner = torch.stack([rotation.flatten().dot(part.flatten()) for part in self.cross]).sum()
        return inner - (s_x @ rotation).dot(s_y) / n

    def far_from_origin(self, deviations: float) -> bool:
        """Whether a center lies this many root mean square deviations away from the origin."""
        squares = torch.stack((self.center_x.square().sum(), self.center_y.square().sum()))
        return bool((self.count.sum() * squares > deviations**2 * self.trace.sum(1)).any())

    def merge(self, other: "PairMoments") -> None:
        """Add the samples of another set of moments in place; ``other`` is moved to our center."""
        unit = torch.maximum(self.unit, other.unit)
        self.change_unit(unit)
        other.change_unit(unit)
        self.rounding.copy_(torch.maximum(self.rounding, other.rounding))
        if not self.count.any():
            self.center_x.copy_(other.center_x)
            self.center_y.copy_(other.center_y)
        other.recenter(self.center_x, self.center_y)
        for name in self.summed:
            getattr(self, name).add_(getattr(other, name))

    def add(
        self,
        x: Tensor,
        y: Tensor,
        judged: Tensor | None,
        chunk_bytes: int,
        *,
        dtype: torch.dtype | None = None,
        known_y: "PairMoments | None" = None,
    ) -> None:
        """Add rows in place.

        Args:
            x: (n, d_x), float32 or float64.
            y: (n, d_y), same dtype and device.
            judged: (n,) bool, the half of each row; None when there is one half.
            chunk_bytes: bound of the working memory for shifted copies of the rows.
            dtype: of the products; that of ``x`` by default.
            known_y: moments of ``y`` beside a matrix without features, which are taken over
                instead of computed; only for moments that are still empty.
        """
        if x.shape[0] == 0:
            return
        dtype = x.dtype if dtype is None else dtype
        new = torch.tensor([unit_of(x), unit_of(y)], dtype=torch.float64, device=x.device)
        self.change_unit(torch.maximum(self.unit, new))
        self.rounding.clamp_(min=torch.finfo(x.dtype).eps)
        self._choose_center(x, y)
        if known_y is not None:
            self.center_y.copy_(known_y.center_y)
        bytes_per_row = 2 * sum(self.widths) * dtype.itemsize
        unit_x, unit_y = self.unit.tolist()
        parts = row_chunks(x, bytes_per_row, chunk_bytes, ROWS_AT_ONCE)
        shifted_x, shifted_y = (x.new_empty(parts[0].stop, d, dtype=dtype) for d in self.widths)
        for part in parts:
            self._add_chunk(
                _shifted(x[part], unit_x, self.center_x, shifted_x),
                _shifted(y[part], unit_y, self.center_y, shifted_y),
                None if judged is None else judged[part],
                known_y is None,
            )
        if known_y is not None:
            self.self_y.copy_(known_y.self_y)
            self.quartic[1] = known_y.quartic[1]
            self.weighted_y[1] = known_y.weighted_y[1]

    def _choose_center(self, x: Tensor, y: Tensor) -> None:
        n = self.count.sum()
        unit_x, unit_y = self.unit.tolist()
        new = (location(x, unit_x), location(y, unit_y))
        if n == 0:
            self.center_x.copy_(new[0])
            self.center_y.copy_(new[1])
            return
        spread = self.centered_trace() / n
        offset = torch.stack(
            ((new[0] - self.center_x).square().sum(), (new[1] - self.center_y).square().sum())
        )
        if bool((offset > OFF_CENTER * spread).any()):
            self.recenter(*new)

    def _add_chunk(self, x: Tensor, y: Tensor, judged: Tensor | None, own_y: bool) -> None:
        k, ell = row_norms(x), row_norms(y)
        massive = (k > MASSIVE * k.median()) | (ell > MASSIVE * ell.median())
        halves = [None] if judged is None else [~judged, judged]
        for h, half in enumerate(halves):
            for rows, dtype in ((~massive, x.dtype), (massive, torch.float64)):
                chosen = rows if half is None else rows & half
                if bool(chosen.all()):
                    self._add_products(x, y, h, own_y)
                elif bool(chosen.any()):
                    self._add_products(x[chosen].to(dtype), y[chosen].to(dtype), h, own_y)

    def _add_products(self, x: Tensor, y: Tensor, h: int, own_y: bool) -> None:
        k, ell = row_norms(x), row_norms(y)
        self.count[h] += x.shape[0]
        self.sum_x[h] += x.sum(0)
        self.sum_y[h] += y.sum(0)
        self.trace[:, h] += torch.stack((k.sum(), ell.sum()))
        _add_product(self.cross[h], x, y)
        if self.quartic.numel():
            weights = torch.stack((k, ell)).to(x.dtype)
            _add_self_product(self.self_x, x)
            if own_y:
                _add_self_product(self.self_y, y)
            self.quartic += torch.stack((k.dot(k), ell.dot(ell), k.dot(ell)))
            self.weighted_x += weights @ x
            self.weighted_y += weights @ y


def _centered_square_norm(parts: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """||sum of parts - left right'||_F^2 for parts (h, d_x, d_y), without a copy of that size."""
    norms = [
        torch.addr(parts[:, rows].sum(0), left[rows], right, alpha=-1).square_().sum()
        for rows in slices(left.shape[0], FEATURES_PER_PRODUCT)
    ]
    return torch.stack(norms).sum()


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add x'y in place, a few features of x at a time."""
    for rows in slices(x.shape[1], FEATURES_PER_PRODUCT):
        total[rows] += x[:, rows].mT @ y


def _add_self_product(total: Tensor, x: Tensor) -> None:
    """Add x'x in place, computing the blocks above the diagonal only."""
    for rows in slices(x.shape[1], FEATURES_PER_PRODUCT):
        block = x[:, rows].mT @ x[:, rows.start :]
        total[rows, rows.start :] += block
        total[rows.stop :, rows] += block[:, rows.stop - rows.start :].mT


def _shifted(rows: Tensor, unit: float, center: Tensor, room: Tensor) -> Tensor:
    """``rows / unit - center`` in the first rows of ``room``, which has the dtype to compute in."""
    shifted = room[: rows.shape[0]].copy_(rows)
    if unit != 1:
        shifted *= 1 / unit
    return shifted.sub_(center.to(rows.dtype))


def row_norms(x: Tensor) -> Tensor:
    """Squared norms of rows, float64 (n,)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms.double().square()


def location(x: Tensor, unit: float = 1) -> Tensor:
    """A center for rows: the mean of a few, or their median when massive rows pull the mean.

    Measured from one row, so that a constant feature is centered to exactly zero, and rounded to
    the dtype of ``x``, so that the shift itself adds no error for rows near it.

    Returns:
        (d,), float64, in the given unit.
    """
    few = in_units(x[:: max(1, x.shape[0] // CENTER_ROWS)], unit)
    origin = few[0]
    few = few - origin
    mean = few.mean(0)
    norms = row_norms(few - mean)
    if few.shape[0] > 2 and bool(norms.max() > MASSIVE * norms.median()):
        # Their median, but `median(0)` has no deterministic implementation on CUDA.
        mean = few.sort(0).values[(few.shape[0] - 1) // 2]
    return (origin + mean).double()
