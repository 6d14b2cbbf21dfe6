import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hrsa_lightning.losses import InfoNCELoss, candidates
from tests.losses.reference import QUERIES, make_batch, slow_infonce


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


@pytest.mark.parametrize("scores_at_once", [2**18, 1])  # all rows together, or one after another
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.1}, {"temperature": 0.1}),
        ({"symmetric": True}, {"symmetric": True}),
        ({"same_side_negatives": True}, {"same_side": True}),
        (
            {"symmetric": True, "same_side_negatives": True, "hardness": 2.0},
            {"symmetric": True, "same_side": True, "hardness": 2.0},
        ),
        ({"symmetric": True, "joint": True}, {"symmetric": True, "joint": True}),
        (
            {"symmetric": True, "same_side_negatives": True, "joint": True},
            {"symmetric": True, "same_side": True, "joint": True},
        ),
        (
            {"symmetric": True, "joint": True, "hardness": 2.0, "false_negative_margin": -0.2},
            {"symmetric": True, "joint": True, "hardness": 2.0, "margin": -0.2},
        ),
        ({"false_negative_margin": 0.1}, {"margin": 0.1}),
        ({"false_negative_margin": -0.2, "hardness": 9.0}, {"margin": -0.2, "hardness": 9.0}),
    ],
)
def test_options_equal_their_formulas(ours, theirs, with_ids, scores_at_once, monkeypatch):
    monkeypatch.setattr(candidates, "SCORES_AT_ONCE", scores_at_once)
    queries, passages, *ids = make_batch()
    ids = ids if with_ids else [None, None]
    queries, passages = queries.requires_grad_(), passages.requires_grad_()
    loss = InfoNCELoss(**{"temperature": 0.3, **ours})(queries, passages, *ids)
    options = {"temperature": 0.3, **theirs}
    expected = slow_infonce(queries, passages, options.pop("temperature"), *ids, **options)
    plain = slow_infonce(queries, passages, 0.3, *ids)
    assert abs(expected - plain) > 1e-3  # the option does something here
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for leaf in (queries, passages):
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (expected_gradient,) = torch.autograd.grad(expected, leaf, retain_graph=True)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


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


def test_the_joint_form_is_equation_2_of_2308_03281():
    queries, passages, *_ = make_batch()
    q, d = (rows / rows.norm(dim=1, keepdim=True) for rows in (queries, passages[:, 0]))
    total = 0.0
    for i in range(QUERIES):
        others = [j for j in range(QUERIES) if j != i]
        z = sum(math.exp(q[i] @ d[j] / 0.3) for j in range(QUERIES))
        z += sum(math.exp(q[i] @ q[j] / 0.3) for j in others)
        z += sum(math.exp(q[j] @ d[i] / 0.3) for j in range(QUERIES))
        z += sum(math.exp(d[j] @ d[i] / 0.3) for j in others)
        total -= math.log(math.exp(q[i] @ d[i] / 0.3) / z) / QUERIES
    loss = InfoNCELoss(0.3, symmetric=True, same_side_negatives=True, joint=True)
    assert loss(queries, passages[:, :1]).item() == pytest.approx(total, rel=1e-5)
    # As sentence-transformers computes it, in whose partition the positive pair counts twice, too.
    theirs = MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=1 / 0.3,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        partition_mode="joint",
    )
    value = theirs.compute_loss_from_embeddings([queries, passages[:, 0]], torch.empty(0))
    assert value.item() == pytest.approx(total, rel=1e-5)


def test_joint_joins_two_directions():
    with pytest.raises(ValueError, match="joint: expected symmetric"):
        InfoNCELoss(joint=True)


def test_hardness_must_not_be_negative():
    with pytest.raises(ValueError, match="hardness must be at least 0"):
        InfoNCELoss(hardness=-1.0)


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


@pytest.mark.parametrize(("device", "pieces"), [("cpu", 256), ("meta", 2)])
def test_scores_come_in_few_pieces_where_memory_is_an_accelerators(device, pieces):
    queries = torch.zeros(4096, 1, device=device)
    batch = candidates.collect_candidates(queries, queries[:, None].expand(-1, 4, -1))
    rows = []

    def loss(some):
        rows.append(some)
        return batch.queries[some].sum()

    batch.mean_over_queries(loss)
    assert len(rows) == pieces
    assert sum(len(range(*some.indices(4096))) for some in rows) == 4096
