import math

import pytest
import torch

from hrsa_lightning.losses import InfoNCELoss

QUERIES, GROUP, FEATURES = 8, 3, 6


def slow_infonce(queries, passages, temperature, passage_ids=None, query_ids=None):
    """The formula written out with loops over the global batch, in float64."""
    queries, passages = queries.double(), passages.double()
    flat = [(i, j) for i in range(len(queries)) for j in range(passages.shape[1])]

    def score(i, owner, place):
        q, p = queries[i], passages[owner, place]
        return (q @ p) / (q @ q).sqrt() / (p @ p).sqrt() / temperature

    def is_false_negative(i, owner, place):
        if (owner, place) == (i, 0):
            return False
        if passage_ids is not None and passage_ids[owner, place] == passage_ids[i, 0]:
            return True
        return query_ids is not None and place == 0 and query_ids[owner] == query_ids[i]

    losses = []
    for i in range(len(queries)):
        kept = [place for place in flat if not is_false_negative(i, *place)]
        total = sum(torch.exp(score(i, *place)) for place in kept)
        losses.append(torch.log(total) - score(i, i, 0))
    return sum(losses) / len(losses)


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(QUERIES, FEATURES, generator=generator)
    passages = torch.randn(QUERIES, GROUP, FEATURES, generator=generator)
    # Few different ids, so that duplicates of the positive are in every place, on every rank.
    passage_ids = torch.randint(0, 7, (QUERIES, GROUP), generator=generator)
    query_ids = torch.randint(0, 4, (QUERIES,), generator=generator)
    return queries, passages, passage_ids, query_ids


@pytest.mark.parametrize("temperature", [0.02, 1.0])
@pytest.mark.parametrize("ids", ["none", "passages", "queries", "both"])
def test_equals_the_formula(temperature, ids):
    queries, passages, passage_ids, query_ids = make_batch()
    passage_ids = passage_ids if ids in ("passages", "both") else None
    query_ids = query_ids if ids in ("queries", "both") else None
    loss = InfoNCELoss(temperature)(queries, passages, passage_ids, query_ids)
    expected = slow_infonce(queries, passages, temperature, passage_ids, query_ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_masking_changes_the_loss_and_can_be_switched_off():
    queries, passages, passage_ids, query_ids = make_batch()
    plain = InfoNCELoss(0.1)(queries, passages)
    masked = InfoNCELoss(0.1)(queries, passages, passage_ids, query_ids)
    off = InfoNCELoss(0.1, mask_duplicates=False)(queries, passages, passage_ids, query_ids)
    assert masked < plain - 0.01
    assert off == plain


def test_all_passages_equal_to_the_positive_leave_no_negative():
    queries, passages, passage_ids, _ = make_batch()
    passages = passages.requires_grad_()
    loss = InfoNCELoss()(queries, passages, torch.zeros_like(passage_ids))
    loss.backward()
    assert loss == 0
    assert torch.equal(passages.grad, torch.zeros_like(passages))


def test_uninformed_embeddings_cost_the_log_of_the_number_of_passages():
    same = torch.ones(5, 4)
    loss = InfoNCELoss()(same, same[:, None].expand(5, 3, 4))
    assert math.isclose(loss.item(), math.log(15), rel_tol=1e-6)


def test_lengths_of_embeddings_do_not_matter():
    queries, passages, *_ = make_batch()
    loss = InfoNCELoss()
    torch.testing.assert_close(loss(queries * 7, passages * 0.3), loss(queries, passages))


def test_low_precision_is_scored_in_float32():
    queries, passages, *_ = make_batch()
    queries, passages = queries.bfloat16(), passages.bfloat16()
    loss = InfoNCELoss()(queries, passages)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), slow_infonce(queries, passages, 0.02), rtol=1e-5, atol=1e-5
    )


def test_autocast_does_not_round_the_scores():
    queries, passages, *_ = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = InfoNCELoss()(queries, passages)
    torch.testing.assert_close(
        loss.double(), slow_infonce(queries, passages, 0.02), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        InfoNCELoss(temperature)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 2, 3), (4, 2, 3), None, None), "queries must be"),
        (((4, 3), (4, 3), None, None), "passages must be"),
        (((4, 3), (5, 2, 3), None, None), "passages must be"),
        (((4, 3), (4, 2, 6), None, None), "passages must be"),
        (((4, 3), (4, 2, 3), (8,), None), "passage_ids must have shape"),
        (((4, 3), (4, 2, 3), None, (4, 1)), "query_ids must have shape"),
    ],
)
def test_shapes_are_checked(shapes, message):
    tensors = [None if shape is None else torch.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        InfoNCELoss()(*tensors)


def gradients_of_one_process(loss_fn):
    """Loss and gradient, with respect to a shared projection, of `loss_fn` on the whole batch."""
    queries, passages, *ids = make_batch()
    weight = torch.eye(FEATURES, dtype=torch.float64).requires_grad_()
    loss = loss_fn(queries.double() @ weight, passages.double() @ weight, *ids)
    loss.backward()
    return loss.item(), weight.grad


def _gradients_of_rank(rank, world_size, loss):
    """Loss of this rank's slice of the batch, and the gradient averaged over ranks as DDP does."""
    rows = slice(rank * QUERIES // world_size, (rank + 1) * QUERIES // world_size)
    queries, passages, *ids = (tensor[rows] for tensor in make_batch())
    weight = torch.eye(FEATURES).requires_grad_()
    value = loss(queries @ weight, passages @ weight, *ids)
    value.backward()
    torch.distributed.all_reduce(weight.grad)
    return value.item(), (weight.grad / world_size).tolist()


def check_against_one_process(pool, temperature):
    expected_loss, expected = gradients_of_one_process(
        lambda queries, passages, *ids: slow_infonce(queries, passages, temperature, *ids)
    )
    results = pool.run(_gradients_of_rank, InfoNCELoss(temperature))
    mean_loss = sum(loss for loss, _ in results) / len(results)
    assert math.isclose(mean_loss, expected_loss, rel_tol=1e-5)
    for _, gradient in results:
        gradient = torch.tensor(gradient, dtype=torch.float64)
        ratio = (gradient * expected).sum() / (expected * expected).sum()
        assert abs(ratio - 1) < 1e-4
        assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.ddp
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_two_ranks_have_the_full_batch_gradient(ddp_pool, temperature):
    check_against_one_process(ddp_pool, temperature)


@pytest.mark.ddp
def test_four_ranks_have_the_full_batch_gradient(ddp_pool4):
    check_against_one_process(ddp_pool4, 0.1)


def _loss_without_gather(rank, world_size):
    rows = slice(rank * QUERIES // world_size, (rank + 1) * QUERIES // world_size)
    queries, passages, *ids = (tensor[rows] for tensor in make_batch())
    return InfoNCELoss(0.1, gather_distributed=False)(queries, passages, *ids).item()


@pytest.mark.ddp
def test_without_gather_each_rank_has_its_own_negatives(ddp_pool):
    queries, passages, *ids = make_batch()
    for rank, loss in enumerate(ddp_pool.run(_loss_without_gather)):
        rows = slice(rank * 4, rank * 4 + 4)
        expected = slow_infonce(queries[rows], passages[rows], 0.1, *(i[rows] for i in ids))
        assert math.isclose(loss, expected.item(), rel_tol=1e-5)
