import json

import pytest
import torch

from hrsa_lightning.data import read_retrieval_set
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.evaluate.scoring import evaluate_models, read_tasks, score_retrieval
from hrsa_lightning.functional.ranking import ranking_scores
from hrsa_lightning.runs.encoder import EncoderOptions, ModelReference, find_models
from tests.evaluate.runs import write_pairs


class FixedEncoder:
    identity = "fixed"

    def __init__(self, bad=False):
        self.bad = bad

    def encode_queries(self, texts):
        return self._encode([text if isinstance(text, str) else text[1] for text in texts])

    def encode_passages(self, texts):
        return self._encode(texts)

    def _encode(self, texts):
        draws = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        rows = torch.stack([torch.randn(6, generator=draw) for draw in draws])
        return rows * float("nan") if self.bad else rows


def test_scores_are_the_monitors(tmp_path):
    task = read_retrieval_set([write_pairs(tmp_path / "p.jsonl")])
    encoder = FixedEncoder()
    scores = score_retrieval("p", task, encoder)
    expected = ranking_scores(
        encoder.encode_queries(task.queries), encoder.encode_passages(task.corpus),
        task.relevance, (1, 10),
    )  # fmt: skip
    assert scores.metrics == pytest.approx(expected)
    assert scores.score == expected["ndcg@10"]
    assert sum(scores.units) / len(task.queries) == pytest.approx(scores.score)
    assert len(scores.units) == len(task.queries)
    assert scores.chance["recall@10"] == pytest.approx(10 / len(task.corpus))
    with pytest.raises(DataError, match="task p: the model gives embeddings that are not finite"):
        score_retrieval("p", task, FixedEncoder(bad=True))


def test_nothing_is_computed_twice(runs, tmp_path, monkeypatch):
    models = find_models(str(runs[0]))[:2]
    files = [str(write_pairs(tmp_path / "p.jsonl")), str(write_pairs(tmp_path / "q.jsonl", 7))]
    first = evaluate_models(models, read_tasks([], files[:1]), tmp_path / "cache")
    loaded, load = [], ModelReference.load

    def counted(self, options):
        loaded.append(self.arm)
        return load(self, options)

    monkeypatch.setattr(ModelReference, "load", counted)
    again = evaluate_models(models, read_tasks([], files[:1]), tmp_path / "cache")
    assert again == first
    assert loaded == []
    both = evaluate_models(models, read_tasks([], files), tmp_path / "cache")
    assert loaded == ["base", "rlvr"]
    assert [scores[0] for scores in both.values()] == [scores[0] for scores in first.values()]
    assert [scores.task for scores in both[models[0].name]] == ["p", "q"]
    # other settings, and an adapter that changed, are another model
    evaluate_models(
        models[:1], read_tasks([], files), tmp_path / "cache", EncoderOptions(max_length=9)
    )
    assert loaded == ["base", "rlvr", "base"]


def test_a_damaged_cache_is_computed_again(runs, tmp_path):
    models = find_models(f"{runs[0]}:rlvr")
    tasks = read_tasks([], [str(write_pairs(tmp_path / "p.jsonl"))])
    first = evaluate_models(models, tasks, tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(json.dumps({"task": "p"})[:-3])
    assert evaluate_models(models, tasks, tmp_path / "cache") == first


def test_tasks_are_checked(tmp_path):
    assert len(read_tasks(["embedded"]).pairs["embedded"].queries) == 550
    file = str(write_pairs(tmp_path / "p.jsonl"))
    with pytest.raises(ConfigError, match="two files would give a task 'p'"):
        read_tasks([], [file, file])
    with pytest.raises(ConfigError, match="none is given"):
        read_tasks([])
    with pytest.raises(DataError, match="no such file"):
        read_tasks([], [str(tmp_path / "r.jsonl")])


def test_cache_that_cannot_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "cache").write_text("a file")
    tasks = read_tasks([], [str(write_pairs(tmp_path / "p.jsonl"))])
    with pytest.raises(DataError, match="cache"):
        evaluate_models(find_models(f"{runs[0]}:base"), tasks, tmp_path / "cache")
