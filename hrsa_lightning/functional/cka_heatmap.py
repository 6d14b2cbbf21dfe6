"""Linear CKA between all pairs of layers of two models."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_count,
    check_ids,
    check_layers,
    compute_dtype,
)
from hrsa_lightning.functional._moments import MASSIVE, location, row_norms
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    feature_spread,
    full_precision,
    rows_per_chunk,
    scalar_nan,
    slices,
    unit_of,
    warn_nan,
)

MIN_SAMPLES = 4

ROWS_PER_PRODUCT = 128

CPU_TILE_SIDE = 512
"""Rows of a block of Gram matrices that stays in a cache until its products are taken."""


def linear_cka_heatmap(
    xs: Tensor | Sequence[Tensor],
    ys: Tensor | Sequence[Tensor],
    debiased: bool = True,
    *,
    standardize: bool = False,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    """Linear CKA of every layer of one model against every layer of another.

    Uses the Gram form in square tiles: one half of a symmetric Gram matrix per layer, shared by all
    pairs the layer takes part in. Nothing of size n squared is kept.

    Args:
        xs: (layers_x, n, d_x), or a list of (n, d_l) with any widths.
        ys: (layers_y, n, d_y), or a list, of the same samples.
        debiased: whether to return the debiased form; see `linear_cka`.
        standardize: whether to bring every feature of every layer to unit variance first; see
            `linear_cka`.
        x_ids: ids of the rows of every layer in ``xs``, int or str.
        y_ids: ids of the rows of every layer in ``ys``; must equal ``x_ids``.
        chunk_bytes: bound of the working memory beside the inputs.

    Returns:
        (layers_x, layers_y), float64. NaN, with one warning, in rows and columns of layers that
        are not finite or have no variance.

    Raises:
        ValueError: if shapes or ids do not match or n < 4.
        TypeError: if an input is no floating point tensor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 5.0], [4.0, 3.0]])
        >>> linear_cka_heatmap([x, x[:, :1]], [x]).shape
        torch.Size([2, 1])
    """
    plain, unbiased = linear_cka_heatmaps(
        xs, ys, standardize=standardize, x_ids=x_ids, y_ids=y_ids, chunk_bytes=chunk_bytes
    )
    return unbiased if debiased else plain


def linear_cka_heatmaps(
    xs: Tensor | Sequence[Tensor],
    ys: Tensor | Sequence[Tensor],
    *,
    standardize: bool = False,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Both forms of `linear_cka_heatmap` from one pass: (plain, debiased)."""
    left, right = check_layers(xs, ys)
    n = left[0].shape[0]
    check_count(n, MIN_SAMPLES)
    check_ids(x_ids, y_ids, n)
    with full_precision(left[0].device):
        sums = _gram_sums(left, right, standardize, chunk_bytes)
        plain = _ratio(_hsic_biased(sums), len(left))
        unbiased = _ratio(_hsic_unbiased(sums), len(left))
    if not bool((plain + unbiased).isfinite().all()):
        finite = bool(sums.diagonal.isfinite().all())
        what = "a representation has no variance" if finite else "an input is not finite"
        warn_nan("linear CKA", what)
    return plain, unbiased


class _GramSums(NamedTuple):
    """Inner products of Gram matrices without their diagonals, and what completes them.

    Attributes:
        products: (layers, layers), sum over i != j of K_ij L_ij, filled for pairs of x and y and
            for each layer with itself.
        diagonal: (n, layers), K_ii.
        row: (n, layers), sum over j != i of K_ij.
    """

    products: Tensor
    diagonal: Tensor
    row: Tensor


def _hsic_biased(sums: _GramSums) -> Tensor:
    """<HKH, HLH>, n^2 times the biased HSIC, for all pairs of layers."""
    n = sums.row.shape[0]
    full = sums.row + sums.diagonal
    total = full.sum(0)
    whole = sums.products + sums.diagonal.mT @ sums.diagonal
    return whole - 2 / n * (full.mT @ full) + total[:, None] * total / n**2


def _hsic_unbiased(sums: _GramSums) -> Tensor:
    """n (n - 3) times the unbiased HSIC (Song et al. 2012, eq. 5), for all pairs of layers."""
    n = sums.row.shape[0]
    total = sums.row.sum(0)
    products = sums.products + total[:, None] * total / ((n - 1) * (n - 2))
    return products - 2 / (n - 2) * (sums.row.mT @ sums.row)


def _ratio(hsic: Tensor, num_x: int) -> Tensor:
    own = hsic.diagonal()
    norms = own.where(own > 0, scalar_nan(own)).sqrt()
    return hsic[:num_x, num_x:] / (norms[:num_x, None] * norms[num_x:])


def _gram_sums(
    xs: Sequence[Tensor], ys: Sequence[Tensor], standardize: bool, chunk_bytes: int
) -> _GramSums:
    """Sums over square tiles of all Gram matrices, those on and above the diagonal.

    Rows are measured from a center near them and diagonals kept apart: what is left after the
    corrections in `_hsic_unbiased` is then of the size of the sums, even where a few massive rows
    dominate the diagonals.
    """
    layers = [*xs, *ys]
    n, num_x, num = xs[0].shape[0], len(xs), len(layers)
    device, dtype = xs[0].device, compute_dtype(*layers)
    widest = max(layer.shape[1] for layer in layers)
    side = _tile_side(n, num, widest, dtype.itemsize, chunk_bytes, device)
    blocks = slices(n, side)
    gram = torch.empty(num * side * side, dtype=dtype, device=device)
    above, beside = torch.empty(2, side * widest, dtype=dtype, device=device)

    def centered(index: int, rows: slice, buffer: Tensor) -> Tensor:
        block = layers[index][rows]
        room = buffer[: block.numel()].view(block.shape)
        if units[index] != 1:
            block = torch.mul(block.to(dtype), 1 / units[index], out=room)
        block = torch.sub(block, centers[index], out=room)
        return block.div_(deviations[index]) if standardize else block

    units = [unit_of(layer) for layer in layers]
    # Not the mean: massive rows pull it away from all others.
    centers = [
        location(layer.to(dtype), unit).to(dtype) for layer, unit in zip(layers, units, strict=True)
    ]
    if standardize:
        deviations = [feature_spread(layer, chunk_bytes)[1].to(dtype) for layer in layers]
    totals = [
        torch.stack(
            [centered(index, rows, above).sum(0, dtype=torch.float64) for rows in blocks]
        ).sum(0)
        for index in range(num)
    ]
    products = torch.zeros(num, num, dtype=torch.float64, device=device)
    diagonal = torch.empty(n, num, dtype=torch.float64, device=device)
    row = torch.empty_like(diagonal)
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            size = (rows.stop - rows.start, columns.stop - columns.start)
            tile = gram[: num * size[0] * size[1]].view(num, *size)
            for index in range(num):
                left = centered(index, rows, above)
                if columns is rows:
                    diagonal[rows, index], row[rows, index] = _own_and_other(left, totals[index])
                    _upper_square(left, tile[index])
                    tile[index].diagonal().zero_()
                else:
                    torch.matmul(left, centered(index, columns, beside).mT, out=tile[index])
            if columns is rows:
                _add_upper_products(tile, num_x, products)
            else:
                _add_products(tile, num_x, 2, products)
    return _GramSums(products, diagonal, row)


def _own_and_other(rows: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Products of rows with themselves and with the sum of all others.

    For massive rows in float64: what others add is a small difference of large numbers.
    """
    norms = row_norms(rows)
    if bool(norms.max() > MASSIVE * norms.median()):
        rows = rows.double()
        norms = row_norms(rows)
    return norms, (rows @ total.to(rows)).double() - norms


def _tile_side(
    n: int, layers: int, width: int, itemsize: int, chunk_bytes: int, device: torch.device
) -> int:
    """Rows of a tile such that the tiles of all layers and two blocks of rows fit the chunk.

    On a CPU no more than stay in its cache until they are added up.
    """
    side = n if device.type != "cpu" else min(n, CPU_TILE_SIDE)
    room = rows_per_chunk(itemsize, chunk_bytes)
    # layers * side^2 + 2 * width * side = room
    side = min(side, int((math.sqrt(width**2 + layers * room) - width) / layers))
    if side > ROWS_PER_PRODUCT:
        side -= side % ROWS_PER_PRODUCT
    return max(1, side)


def _upper_square(rows: Tensor, out: Tensor) -> None:
    """Products of rows with each other, halved until few are left: the upper half is enough."""
    if len(rows) <= ROWS_PER_PRODUCT:
        torch.matmul(rows, rows.mT, out=out)
        return
    half = -(-len(rows) // (2 * ROWS_PER_PRODUCT)) * ROWS_PER_PRODUCT
    torch.matmul(rows[:half], rows[half:].mT, out=out[:half, half:])
    _upper_square(rows[:half], out[:half, :half])
    _upper_square(rows[half:], out[half:, half:])


def _add_upper_products(tile: Tensor, num_x: int, products: Tensor) -> None:
    """`_add_products` of tiles on the diagonal, of which the upper half is there."""
    for top in range(0, tile.shape[1], ROWS_PER_PRODUCT):
        end = min(top + ROWS_PER_PRODUCT, tile.shape[1])
        _add_products(tile[:, top:end, top:end], num_x, 1, products)
        _add_products(tile[:, top:end, end:], num_x, 2, products)


def _add_products(gram: Tensor, num_x: int, weight: int, products: Tensor) -> None:
    """Add weighted inner products of blocks of Gram matrices (layers, rows, columns).

    Rows are added up in the dtype of the blocks, sums of rows in float64.
    """
    block = gram.transpose(0, 1)
    pairs = torch.bmm(block[:, :num_x], block[:, num_x:].mT)
    products[:num_x, num_x:] += weight * pairs.sum(0, dtype=torch.float64)
    squares = torch.linalg.vector_norm(block, dim=2).double().square()
    products.diagonal().add_(weight * squares.sum(0))
