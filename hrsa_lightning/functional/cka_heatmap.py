"""Linear CKA between all pairs of layers of two models."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hrsa_lightning.functional._inputs import (
    SampleIds,
    check_count,
    check_ids,
    check_matrix,
    compute_dtype,
)
from hrsa_lightning.functional._numerics import (
    DEFAULT_CHUNK_BYTES,
    full_precision,
    rows_per_chunk,
    scalar_nan,
    warn_nan,
)
from hrsa_lightning.functional.cka import MIN_SAMPLES, hsic_unbiased

ROWS_PER_PRODUCT = 128


def linear_cka_heatmap(
    xs: Tensor | Sequence[Tensor],
    ys: Tensor | Sequence[Tensor],
    debiased: bool = True,
    *,
    x_ids: SampleIds | None = None,
    y_ids: SampleIds | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Tensor:
    """Linear CKA of every layer of one model against every layer of another.

    Uses the Gram form in blocks of rows: one half of a symmetric Gram matrix per layer, shared by
    all pairs the layer takes part in. Nothing of size n squared is kept.

    Args:
        xs: (layers_x, n, d_x), or a list of (n, d_l) with any widths.
        ys: (layers_y, n, d_y), or a list, of the same samples.
        debiased: whether to return the debiased form; see `linear_cka`.
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
    plain, unbiased = linear_cka_heatmaps(xs, ys, x_ids=x_ids, y_ids=y_ids, chunk_bytes=chunk_bytes)
    return unbiased if debiased else plain


def linear_cka_heatmaps(
    xs: Tensor | Sequence[Tensor],
    ys: Tensor | Sequence[Tensor],
    *,
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
        cross, own_x, own_y, k, ell = _gram_sums(left, right, chunk_bytes)
        plain = _ratio(cross, own_x, own_y)
        trace_x, trace_y = k.sum(0), ell.sum(0)
        unbiased = _ratio(
            hsic_unbiased(cross, k.mT @ ell, trace_x[:, None], trace_y, n),
            hsic_unbiased(own_x, k.square().sum(0), trace_x, trace_x, n),
            hsic_unbiased(own_y, ell.square().sum(0), trace_y, trace_y, n),
        )
    if not bool(torch.isfinite(plain).all()):
        warn_nan("linear CKA heatmap", "a layer is not finite or has no variance")
    return plain, unbiased


def _ratio(cross: Tensor, own_x: Tensor, own_y: Tensor) -> Tensor:
    own_x, own_y = (own.where(own > 0, scalar_nan(own)) for own in (own_x, own_y))
    return cross / (own_x.sqrt()[:, None] * own_y.sqrt())


def check_layers(
    xs: Tensor | Sequence[Tensor], ys: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Check the layers of both models: matrices of the same samples on one device."""
    left, right = _layer_list(xs, "xs"), _layer_list(ys, "ys")
    for name, layers in (("xs", left), ("ys", right)):
        for index, layer in enumerate(layers):
            if layer.shape[0] != left[0].shape[0] or layer.device != left[0].device:
                raise ValueError(
                    f"Expected `{name}[{index}]` to hold {left[0].shape[0]} samples on "
                    f"{left[0].device} like `xs[0]`, got {layer.shape[0]} on {layer.device}."
                )
    return left, right


def _layer_list(layers: Tensor | Sequence[Tensor], name: str) -> list[Tensor]:
    if isinstance(layers, Tensor) and layers.ndim != 3:
        raise ValueError(
            f"Expected `{name}` to have shape (layers, samples, features), "
            f"got {tuple(layers.shape)}."
        )
    if len(layers) == 0:
        raise ValueError(f"Expected `{name}` to hold at least one layer, got none.")
    return [check_matrix(layer, f"{name}[{i}]") for i, layer in enumerate(layers)]


def _gram_sums(
    xs: Sequence[Tensor], ys: Sequence[Tensor], chunk_bytes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inner products of centered Gram matrices and the squared norms of centered rows.

    Returns:
        <K, L> (layers_x, layers_y), <K, K> (layers_x,), <L, L> (layers_y,), and the squared row
        norms (n, layers_x), (n, layers_y); all float64.
    """
    layers = [*xs, *ys]
    n, num_x, num = xs[0].shape[0], len(xs), len(layers)
    device, dtype = xs[0].device, compute_dtype(*layers)
    centers = [_center(layer.to(dtype)) for layer in layers]
    cross = torch.zeros(num_x, num - num_x, dtype=torch.float64, device=device)
    own = torch.zeros(num, dtype=torch.float64, device=device)
    norms = torch.zeros(n, num, dtype=torch.float64, device=device)
    step = rows_per_chunk(num * n * dtype.itemsize, chunk_bytes)
    for start in range(0, n, step):
        rows = min(step, n - start)
        gram = torch.empty(num, rows, n - start, dtype=dtype, device=device)
        for index, (layer, center) in enumerate(zip(layers, centers, strict=True)):
            tail = layer[start:].to(dtype) - center
            norms[start : start + rows, index] = tail[:rows].double().square().sum(1)
            for top in range(0, rows, ROWS_PER_PRODUCT):
                end = min(top + ROWS_PER_PRODUCT, rows)
                torch.matmul(tail[top:end], tail[top:].mT, out=gram[index, top:end, top:])
        for top in range(0, rows, ROWS_PER_PRODUCT):
            end = min(top + ROWS_PER_PRODUCT, rows)
            for columns, weight in ((slice(top, end), 1), (slice(end, None), 2)):
                block = gram[:, top:end, columns].transpose(0, 1)
                pairs = torch.bmm(block[:, :num_x], block[:, num_x:].mT)
                cross += weight * pairs.sum(0, dtype=torch.float64)
                squares = torch.linalg.vector_norm(block, dim=2).double().square()
                own += weight * squares.sum(0)
    return cross, own[:num_x], own[num_x:], norms[:, :num_x], norms[:, num_x:]


def _center(x: Tensor) -> Tensor:
    """Mean of the rows, measured from the first so that a constant feature is centered to zero."""
    return x[0] + (x - x[0]).mean(0)
