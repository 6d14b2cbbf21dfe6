"""Scores of a ranking against their definitions, and against all orders there are."""

import itertools
import math

import pytest
import torch

from hrsa_lightning.functional.ranking import chance_scores, query_scores, ranking_scores


def slow_scores(queries, corpus, relevant, depth):
    """By the definitions, one query at a time, wrong passages first among equals."""
    mrr = ndcg = recall = 0.0
    for query, answers in zip(queries, relevant, strict=True):
        scores = [
            float(torch.cosine_similarity(query.double(), passage.double(), dim=0))
            for passage in corpus
        ]
        order = sorted(range(len(corpus)), key=lambda p: (-round(scores[p], 12), p in answers))
        hits = [place for place, passage in enumerate(order[:depth]) if passage in answers]
        mrr += 1 / (1 + hits[0]) if hits else 0.0
        ideal = sum(1 / math.log2(2 + place) for place in range(min(depth, len(answers))))
        ndcg += sum(1 / math.log2(2 + place) for place in hits) / ideal
        recall += len(hits) / len(answers)
    return [total / len(queries) for total in (mrr, ndcg, recall)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_follow_their_definitions(seed):
    torch.manual_seed(seed)
    queries, corpus = torch.randn(9, 4), torch.randn(30, 4)
    relevant = [torch.randperm(30)[: 1 + n % 3].tolist() for n in range(9)]
    found = ranking_scores(queries, corpus, relevant, [1, 5])
    expected = slow_scores(queries, corpus, relevant, 5)
    assert [found["mrr@5"], found["ndcg@5"], found["recall@5"]] == pytest.approx(expected)
    assert found["recall@1"] <= found["recall@5"]


def test_collapsed_embeddings_score_as_the_last():
    scores = ranking_scores(torch.ones(2, 3), torch.ones(20, 3), [[0], [1]], [10])
    assert set(scores.values()) == {0.0}


def test_nearly_collapsed_embeddings_keep_their_order():
    """Cosines that differ by 1e-8, which float32 embeddings tell apart."""
    torch.manual_seed(0)
    corpus = 1 + 1e-4 * torch.randn(40, 8)
    scores = ranking_scores(corpus, corpus, [[row] for row in range(40)], [10])
    assert set(scores.values()) == {1.0}


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_no_score(scale):
    torch.manual_seed(1)
    queries, corpus = torch.randn(9, 4), torch.randn(30, 4)
    relevant = [[row] for row in range(9)]
    found = ranking_scores(scale * queries, scale * corpus, relevant, [1, 5])
    assert found == ranking_scores(queries, corpus, relevant, [1, 5])


def test_an_answer_named_twice_counts_once():
    queries = corpus = torch.eye(3)
    assert ranking_scores(queries, corpus, [[0, 0], [1], [2]], [1])["recall@1"] == 1


@pytest.mark.parametrize("answers", [[], [3], [0, -1]])
def test_queries_without_an_answer_in_the_corpus_are_refused(answers):
    with pytest.raises(ValueError, match=r"`relevant\[1\]` to name rows of `corpus`, from 0 to 2"):
        ranking_scores(torch.eye(3)[:2], torch.eye(3), [[1], answers], [1])


def test_chance_is_the_mean_over_all_orders():
    relevant, passages = [[0], [1, 3]], 4
    found = []
    for order in itertools.permutations(range(passages)):
        # The embedding of a passage is as near to every query as its place in the order says.
        angles = torch.tensor([0.3 * place for place in order])
        corpus = torch.stack([angles.cos(), angles.sin()], dim=1)
        queries = torch.tensor([[1.0, 0.0]] * 2)
        found.append(ranking_scores(queries, corpus, relevant, [1, 3]))
    means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    assert chance_scores([1, 2], passages, [1, 3]) == pytest.approx(means)


def test_embeddings_that_are_not_finite_score_nan():
    spoiled = torch.ones(2, 3)
    spoiled[0, 0] = math.nan
    assert all(map(math.isnan, ranking_scores(spoiled, torch.ones(4, 3), [[0], [1]], [1]).values()))


def test_each_query_is_scored_as_if_alone():
    torch.manual_seed(5)
    queries, corpus = torch.randn(7, 4), torch.randn(600, 4)
    relevant = [torch.randperm(600)[: 1 + 100 * (n % 3)].tolist() for n in range(7)]
    together = query_scores(queries, corpus, relevant, [1, 10])
    for row, right in enumerate(relevant):
        alone = ranking_scores(queries[row : row + 1], corpus, [right], [1, 10])
        assert {name: values[row] for name, values in together.items()} == alone
