from collections.abc import Callable
from typing import Any

import pytest
import torch

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional._inputs import check_ids, halves, sample_keys
from hrsa_lightning.functional._numerics import full_precision
from tests.functional.inputs import pair

PAIRWISE: dict[str, Callable[..., Any]] = {
    "linear_cka": F.linear_cka,
    "orthogonal_procrustes": F.orthogonal_procrustes,
    "knn_overlap": F.knn_overlap,
    "dimension_correlation": F.dimension_correlation,
    "linear_probe_transfer": lambda x, y, **kwargs: F.linear_probe_transfer(
        x, y, torch.arange(len(x)) % 2, **kwargs
    ),
}
EACH = pytest.mark.parametrize("name", PAIRWISE)


@EACH
def test_different_numbers_of_samples_are_refused(name: str) -> None:
    x, y = pair(40, 4)
    with pytest.raises(ValueError, match="same samples, got 40 and 39 rows"):
        PAIRWISE[name](x, y[1:])


@EACH
def test_integers_are_refused(name: str) -> None:
    x, y = pair(40, 4)
    with pytest.raises(TypeError, match=r"`y` to hold floating point values, got torch\.int64"):
        PAIRWISE[name](x, y.long())


@EACH
def test_wrong_ranks_are_refused(name: str) -> None:
    x, y = pair(40, 4)
    for bad in (x[None], x[:, 0], x[:, :0]):
        with pytest.raises(ValueError, match=r"`x` to have shape \(samples, features\)"):
            PAIRWISE[name](bad, y)


@EACH
def test_other_types_are_refused(name: str) -> None:
    x, y = pair(40, 4)
    with pytest.raises(TypeError, match=r"`x` to be a torch\.Tensor, got ndarray"):
        PAIRWISE[name](x.numpy(), y)


@EACH
def test_other_devices_are_refused(name: str) -> None:
    x, y = pair(40, 4)
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        PAIRWISE[name](x, y.to("meta"))


@EACH
def test_shuffled_rows_are_noticed_by_their_ids(name: str) -> None:
    x, y = pair(40, 4)
    ids = [f"s{i}" for i in range(40)]
    swapped = [*ids[:2], "s3", "s2", *ids[4:]]
    with pytest.raises(ValueError, match="id 's2' in `x_ids` and 's3' in `y_ids` at row 2"):
        PAIRWISE[name](x, y, x_ids=ids, y_ids=swapped)
    PAIRWISE[name](x, y, x_ids=ids, y_ids=ids)
    PAIRWISE[name](x, y, x_ids=torch.arange(40), y_ids=range(40))


@EACH
def test_inputs_are_left_alone_and_no_graph_is_kept(name: str) -> None:
    x, y = pair(40, 4)
    x.requires_grad_()
    before = x.detach().clone(), y.clone()
    result = PAIRWISE[name](x, y)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y, before[1])
    for value in result if isinstance(result, tuple) else [result]:
        assert value is None or value.requires_grad == (name == "linear_cka")


@EACH
def test_the_random_generator_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    PAIRWISE[name](*pair(40, 4))
    assert torch.equal(torch.get_rng_state(), state)


@EACH
def test_mixed_dtypes_are_raised_to_the_wider(name: str) -> None:
    x, y = pair(40, 4)
    mixed, whole = PAIRWISE[name](x.double(), y), PAIRWISE[name](x.double(), y.double())
    mixed = mixed if isinstance(mixed, tuple) else (mixed,)
    whole = whole if isinstance(whole, tuple) else (whole,)
    for a, b in zip(mixed, whole, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_ids_of_wrong_number_or_type_are_refused() -> None:
    with pytest.raises(ValueError, match="`x_ids` to have 3 entries, got 2"):
        check_ids([1, 2], None, 3)
    with pytest.raises(TypeError, match="`y_ids` to hold int or str, got float"):
        check_ids(None, [1.0], 1)  # type: ignore[list-item]
    assert check_ids(None, None, 3) is None
    assert check_ids(None, torch.tensor([4, 5]), 2) == [4, 5]


def test_keys_depend_on_content_alone() -> None:
    _, y = pair(50, 6)
    keys = sample_keys(y, None)
    order = torch.randperm(50)
    assert torch.equal(sample_keys(y[order], None), keys[order])
    assert torch.equal(sample_keys(y.double(), None), keys)
    assert keys.unique().numel() == 50
    assert torch.equal(sample_keys(torch.cat((y, y)), None), torch.cat((keys, keys)))
    zeros = torch.zeros(1, 6)
    assert torch.equal(sample_keys(zeros, None), sample_keys(-zeros, None))


def test_every_column_counts_for_the_key() -> None:
    row = torch.randn(1, 300)
    keys = {int(sample_keys(row, None))}
    for j in range(300):
        other = row.clone()
        other[0, j] += 1
        keys.add(int(sample_keys(other, None)))
    assert len(keys) == 301


def test_halves_are_even_and_the_same_everywhere() -> None:
    share = halves(sample_keys(torch.randn(4000, 3), None)).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.04)
    assert halves(sample_keys(torch.zeros(12, 1), list(range(12)))).int().tolist() == [
        *(1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0),
    ]
    for ids in (list(range(4000)), [f"doc-{i}" for i in range(4000)]):
        share = halves(sample_keys(torch.zeros(4000, 1), ids)).double().mean().item()
        assert share == pytest.approx(0.5, abs=0.04)


def test_full_precision_overrides_and_restores_every_setting() -> None:
    a = torch.randn(256, 256)
    exact = a.double() @ a.double()
    torch.set_float32_matmul_precision("medium")
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    try:
        with torch.autocast("cpu", torch.bfloat16):
            with full_precision(a.device):
                product = a @ a
            assert (a @ a).dtype == torch.bfloat16
        assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(product.double(), exact, rtol=1e-4, atol=1e-3)
    with pytest.raises(RuntimeError), full_precision(a.device):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.is_grad_enabled()
