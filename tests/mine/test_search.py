import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_lightning.mine.search import nearest_passages, pair_scores

NOTHING = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def _unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)).astype("f4")


def _brute(queries, passages, depth, own):
    scores = np.stack(
        [(passages.astype(np.float64) * query.astype(np.float64)).sum(-1) for query in queries]
    )
    scores[own] = -np.inf
    rows = np.broadcast_to(np.arange(len(passages)), scores.shape)
    order = np.lexsort((rows, -scores), axis=1)[:, :depth]
    best = np.take_along_axis(scores, order, 1)
    return best, np.where(np.isfinite(best), order, -1)


def _check(queries, passages, depth, own, block):
    scores, rows = nearest_passages(queries, passages, depth, own, block)
    expected, expected_rows = _brute(queries, passages, depth, own)
    width = expected.shape[1]
    np.testing.assert_array_equal(rows[:, :width], expected_rows)
    np.testing.assert_array_equal(scores[:, :width], expected)
    assert scores.shape == rows.shape == (len(queries), depth)
    assert (rows[:, width:] == -1).all()
    assert np.isneginf(scores[:, width:]).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_brute_force_with_many_ties(data):
    seed = data.draw(st.integers(0, 10_000))
    draw = np.random.default_rng(seed)
    num_passages = data.draw(st.integers(1, 120))
    levels = data.draw(st.sampled_from([2, 3, 50]))
    queries = _unit(draw.integers(1, levels + 1, (data.draw(st.integers(1, 6)), 5)))
    passages = _unit(draw.integers(1, levels + 1, (num_passages, 5)))
    many = data.draw(st.integers(0, 12))
    own = (draw.integers(0, len(queries), many), draw.integers(0, num_passages, many))
    depth = data.draw(st.integers(1, 30))
    _check(queries, passages, depth, own, data.draw(st.sampled_from([1, 7, 64, 1000])))


@pytest.mark.parametrize("block", [100, 333, 5000])
def test_equals_brute_force_on_close_neighbors(block):
    draw = np.random.default_rng(0)
    center = draw.normal(size=(1, 64))
    queries = _unit(center + 0.1 * draw.normal(size=(9, 64)))
    passages = _unit(center + 0.02 * draw.normal(size=(1500, 64)))
    passages[300:1100] = passages[300]  # far more equal ones than are selected to spare
    passages[1100:1200] = _unit(passages[300:400] + 1e-6 * draw.normal(size=(100, 64)))
    own = (np.repeat(np.arange(9), 40), draw.integers(0, 1500, 360))
    _check(queries, passages, 25, own, block)


def test_all_equal_passages_come_in_their_order():
    ones = np.full((400, 8), 8**-0.5, dtype=np.float32)
    _, rows = nearest_passages(ones[:2], ones, 5, (np.array([0]), np.array([1])))
    assert rows.tolist() == [[0, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_everything_excluded_leaves_nothing():
    passages = _unit(np.random.default_rng(0).normal(size=(30, 4)))
    own = (np.zeros(30, dtype=np.int64), np.arange(30))
    scores, rows = nearest_passages(passages[:2], passages, 3, own)
    assert (rows[0] == -1).all()
    assert np.isneginf(scores[0]).all()
    assert rows[1].tolist()[0] == 1


def test_pair_scores_are_those_of_the_search():
    rows = _unit(np.random.default_rng(0).normal(size=(50, 16)))
    scores, nearest = nearest_passages(rows, rows, 7, NOTHING)
    again = pair_scores(rows, rows, np.repeat(np.arange(50), 7), nearest.ravel())
    np.testing.assert_array_equal(again, scores.ravel())


def test_equal_passages_take_no_more_memory_than_others():
    """Rounding hides none of them, so that all come into question for every query."""
    ones = np.full((8000, 4), 0.5, dtype=np.float32)
    tracemalloc.start()
    try:
        _, rows = nearest_passages(ones[:64], ones, 5, NOTHING, block=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (rows == np.arange(5)).all()
    assert peak < 64 * len(ones) * 8 / 2


def test_a_query_may_have_many_passages_of_its_own():
    draw = np.random.default_rng(0)
    passages = _unit(draw.normal(size=(900, 8)))
    own = (np.repeat([0, 1], [600, 3]), np.concatenate([np.arange(600), [5, 6, 7]]))
    _check(passages[:3], passages, 10, own, 200)


def test_settings_for_speed_make_no_difference():
    draw = np.random.default_rng(0)
    rows = _unit(1 + 0.01 * draw.normal(size=(300, 64)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        _check(rows[:9], rows, 20, NOTHING, 100)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
