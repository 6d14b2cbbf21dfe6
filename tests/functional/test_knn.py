import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from hrsa_lightning.functional import Reference, SimilarityWarning, chance_overlap, knn, knn_overlap
from hrsa_lightning.functional.knn import nearest_neighbors
from tests.functional import reference
from tests.functional.inputs import HOSTILE, pair

SIMILARITY = pytest.mark.parametrize("similarity", ["cosine", "euclidean"])


@SIMILARITY
@pytest.mark.parametrize("name", HOSTILE)
def test_neighbors_are_those_of_float64(name: str, similarity: str) -> None:
    for x in HOSTILE[name]():
        found = nearest_neighbors(x, (1, 5, 10), similarity, 2**20).indices  # type: ignore[arg-type]
        expected = torch.from_numpy(reference.neighbors(x, 10, similarity))
        for k in (1, 5, 10):
            assert torch.equal(found[:, :k].sort().values, expected[:, :k].sort().values)


@pytest.mark.parametrize("overlap", ["jaccard", "mutual"])
@SIMILARITY
@pytest.mark.parametrize("name", HOSTILE)
def test_agrees_with_sets(name: str, similarity: str, overlap: str) -> None:
    x, y = HOSTILE[name]()
    values = knn_overlap(x, y, (1, 5, 10), similarity, overlap)  # type: ignore[arg-type]
    for k, value in values.items():
        expected = reference.knn_overlap(x, y, k, similarity, overlap)
        assert value.item() == pytest.approx(expected, rel=1e-12)


@SIMILARITY
def test_agrees_with_scikit_learn(similarity: str) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    x, _ = pair(300, 24)
    finder = neighbors.NearestNeighbors(n_neighbors=11, metric=similarity).fit(x.double().numpy())
    expected = torch.from_numpy(finder.kneighbors(return_distance=False))[:, :10]
    found = nearest_neighbors(x, (10,), similarity, 2**20).indices  # type: ignore[arg-type]
    assert torch.equal(found, expected)


@SIMILARITY
@pytest.mark.parametrize("chunk_bytes", [1, 40_000, 400_000])
def test_chunks_do_not_change_the_value(similarity: str, chunk_bytes: int) -> None:
    x, y = HOSTILE["duplicates"]()
    whole = knn_overlap(x, y, (3, 7), similarity)  # type: ignore[call-overload]
    parts = knn_overlap(x, y, (3, 7), similarity, chunk_bytes=chunk_bytes)  # type: ignore[call-overload]
    assert {k: v.item() for k, v in parts.items()} == {k: v.item() for k, v in whole.items()}


@SIMILARITY
@pytest.mark.parametrize("order", ["as drawn", "nearest last", "nearest first"])
def test_neighbors_in_many_squares_are_those_of_float64(order: str, similarity: str) -> None:
    x, _ = pair(400, 12)
    if order != "as drawn":  # so that one square after the other is better for all earlier rows
        x *= torch.linspace(10, 0.01, 400)[:, None] ** (1 if order == "nearest last" else -1)
        x += x[-1].clone()
    expected = torch.from_numpy(reference.neighbors(x, 10, similarity))
    for side in (7, 50, 399):
        found = nearest_neighbors(x, (10,), similarity, 4 * 12 * side**2)  # type: ignore[arg-type]
        assert torch.equal(found.indices.sort().values, expected.sort().values)


def test_a_sample_is_never_its_own_neighbor_even_when_duplicated() -> None:
    x, _ = HOSTILE["duplicates"]()
    found = nearest_neighbors(x, (5,), "cosine", 2**20).indices
    assert not (found == torch.arange(len(x))[:, None]).any()


def test_ties_go_to_the_lower_row_in_both_spaces() -> None:
    x = torch.eye(2).repeat_interleave(4, 0)
    found = nearest_neighbors(x, (2,), "cosine", 2**20).indices
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [5, 6], [4, 6], [4, 5], [4, 5]]
    with pytest.warns(SimilarityWarning, match="100% of the rows have neighbors of one distance"):
        assert knn_overlap(x, x.flip(1), k=2).item() == 1


def exact_neighbors(x: torch.Tensor, k: int, similarity: str) -> list[list[int]]:
    """Of integer rows by arithmetic in fractions, ties by index."""
    rows = [[int(v) for v in row] for row in x.tolist()]
    found = []
    for i, a in enumerate(rows):
        scores = []
        for b in rows:
            inner = sum(p * q for p, q in zip(a, b, strict=True))
            square = sum(q * q for q in b)
            if similarity == "cosine":
                scores.append(Fraction(inner * abs(inner), square or 1))
            else:
                scores.append(Fraction(2 * inner - square))
        others = [j for j in range(len(rows)) if j != i]
        found.append(sorted(others, key=lambda j: (-scores[j], j))[:k])
    return found


@SIMILARITY
@pytest.mark.parametrize("values", [2, 3, 8])
@pytest.mark.parametrize("chunk_bytes", [2**20, 20_000])
def test_ties_of_unequal_integer_rows_go_to_the_lower_row(
    values: int, similarity: str, chunk_bytes: int
) -> None:
    generator = torch.Generator().manual_seed(values)
    x = torch.randint(values, (60, 12), generator=generator).float()
    for rows in (x, x.double(), 0.125 * x, 2.0**70 * x):
        found = nearest_neighbors(rows, (5,), similarity, chunk_bytes)  # type: ignore[arg-type]
        expected = [sorted(near) for near in exact_neighbors(x, 5, similarity)]
        assert found.indices.sort().values.tolist() == expected
        # Counted from the other end, ties go to other rows.
        reverse = [
            sorted(59 - j for j in near) for near in exact_neighbors(x.flip(0), 5, similarity)
        ]
        tied = sum(a != b for a, b in zip(expected, reverse[::-1], strict=True))
        assert found.tied.item() == pytest.approx(tied / 60)


@SIMILARITY
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 0.0])
def test_rows_that_are_all_equal_have_no_neighbors(similarity: str, scale: float) -> None:
    x, y = pair()
    collapsed = scale * x[:1].expand(len(x), -1).contiguous()
    for one, other in ((x, collapsed), (collapsed, y), (collapsed, collapsed)):
        with pytest.warns(SimilarityWarning, match="the rows of a representation are equal"):
            value = knn_overlap(one, other, similarity=similarity)  # type: ignore[call-overload]
        assert math.isnan(value.item())


def test_rows_of_one_direction_have_no_cosine_neighbors() -> None:
    x, y = pair()
    with pytest.warns(SimilarityWarning, match="are equal up to their norm"):
        assert math.isnan(knn_overlap(x[:1] * torch.linspace(1, 9, 120)[:, None], y).item())


def test_an_int_gives_a_scalar_and_several_a_dict() -> None:
    x, y = pair()
    values = knn_overlap(x, y, k=(5, 10))
    assert list(values) == [5, 10]
    assert knn_overlap(x, y, k=5).item() == values[5].item()
    assert values[5].ndim == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_compared_in_float32(dtype: torch.dtype) -> None:
    x, y = (v.to(dtype) for v in pair())
    assert knn_overlap(x, y).item() == knn_overlap(x.float(), y.float()).item()


def test_a_bf16_cloud_with_a_mean_keeps_its_neighbors() -> None:
    torch.manual_seed(0)
    x = 1 + 0.1 * torch.randn(400, 64)
    assert knn_overlap(x, x.bfloat16()).item() > 0.8


def test_rows_of_zeros_are_unlike_everything() -> None:
    x, y = pair(30, 4)
    x[:2] = 0
    assert 0 <= knn_overlap(x, y, k=3).item() <= 1


def test_chance_is_what_random_data_reach() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 50), torch.randn(400, 50)
    for overlap in ("jaccard", "mutual"):
        value = knn_overlap(x, y, 20, overlap=overlap).item()  # type: ignore[call-overload]
        chance = chance_overlap(20, 400, overlap)  # type: ignore[arg-type]
        assert value == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 4), (5, 8), (3, 4)])
def test_chance_counts_all_pairs_of_sets(k: int, n: int) -> None:
    from itertools import combinations

    first = set(range(k))
    sets = [set(c) for c in combinations(range(n - 1), k)]
    jaccard = sum(len(first & s) / len(first | s) for s in sets) / len(sets)
    mutual = sum(len(first & s) / k for s in sets) / len(sets)
    assert chance_overlap(k, n) == pytest.approx(jaccard)
    assert chance_overlap(k, n, "mutual") == pytest.approx(mutual)


def test_non_finite_input_gives_nan_and_one_warning() -> None:
    x, y = pair()
    x[5, 5] = math.nan
    with pytest.warns(SimilarityWarning, match="k-NN overlap is NaN") as caught:
        values = knn_overlap(x, y, (5, 10))
    assert len(caught) == 1
    assert all(math.isnan(value.item()) for value in values.values())


def test_errors() -> None:
    x, y = pair(10, 4)
    with pytest.raises(ValueError, match="`k` to be below the number of samples, 10, got 10"):
        knn_overlap(x, y, k=10)
    with pytest.raises(ValueError, match="`k` to be at least 1, got 0"):
        knn_overlap(x, y, k=0)
    with pytest.raises(TypeError, match="`k` to be an int, got float"):
        knn_overlap(x, y, k=(2.0,))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="at least one number of neighbors"):
        knn_overlap(x, y, k=())
    with pytest.raises(ValueError, match="`similarity` to be one of cosine, euclidean"):
        knn_overlap(x, y, 3, similarity="dot")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="`overlap` to be one of jaccard, mutual"):
        knn_overlap(x, y, 3, overlap="dice")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="`chunk_bytes` to be positive, got 0"):
        knn_overlap(x, y, 3, chunk_bytes=0)


def test_a_reference_is_searched_once_and_gives_the_same_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = pair()
    reference = Reference(y)
    expected = knn_overlap(x, y, (5, 10))
    assert knn_overlap(x, reference, (5, 10)) == expected
    searched = []

    def counting(rows: torch.Tensor, *args: Any) -> torch.Tensor:
        searched.append(rows)
        return nearest_neighbors(rows, *args)

    monkeypatch.setattr(knn, "nearest_neighbors", counting)
    assert knn_overlap(x, reference, (5, 10)) == expected
    assert len(searched) == 1
    assert torch.equal(searched[0], x)


@pytest.mark.parametrize("columns", [96, 131, 400])
def test_the_largest_of_a_row_are_found_by_groups(columns: int) -> None:
    scores = torch.randn(50, columns, generator=torch.Generator().manual_seed(0))
    scores[:, ::3] = -math.inf
    values, found = knn._largest(scores, 3)
    expected = scores.topk(3)
    assert torch.equal(values, expected.values)
    assert torch.equal(found, expected.indices)
    across = scores.mT.contiguous().mT  # as strided as the products of earlier blocks
    assert torch.equal(knn._largest(across, 3)[1], expected.indices)
