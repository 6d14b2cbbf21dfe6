import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hrsa_lightning.callbacks import RetrievalMonitor
from hrsa_lightning.errors import ConfigError, DataError, HRSAWarning
from hrsa_lightning.models import EmbeddingModel
from tests.callbacks.projects import fit, same, weights
from tests.histories import read_tags
from tests.tiny import make_backbone

PAIRS = [
    {"query": ["find", f"query {n}"], "pos": [f"right {n}"], "neg": [f"wrong {n}", "right 0"]}
    for n in range(5)
]


class Arm(nn.Module):
    """Knows the right answers ever better: its weight grows with training."""

    def __init__(self):
        super().__init__()
        self.skill = nn.Parameter(torch.zeros(()))

    def embed(self, texts, max_length, batch_size):
        assert (max_length, batch_size) == (128, 64)
        assert not self.training
        rows = []
        for text in texts:
            number = int((text[1] if isinstance(text, tuple) else text).split()[1])
            known = nn.functional.one_hot(torch.tensor(number), 5) * self.skill
            noise = torch.tensor([float(ord(c)) for c in str(text)[:5].ljust(5)])
            wrong = "wrong" in text
            rows.append(torch.cat([known * (not wrong), noise / 100]))
        return torch.stack(rows)


def paired(pl):
    class Paired(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.arms = nn.ModuleDict({"a": Arm(), "b": Arm()})

        def training_step(self, batch, batch_idx):
            return -self.arms["a"].skill + 0 * self.arms["b"].skill

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=5.0)

    return Paired()


@pytest.mark.parametrize("given", ["list", "file"])
def test_arms_are_scored_while_they_train(tmp_path, given):
    pairs = PAIRS
    if given == "file":
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("\n".join(json.dumps(pair) for pair in PAIRS), encoding="utf-8")
    watch = RetrievalMonitor(pairs, arms="arms", every_n_train_steps=2, ks=(1, 3), on_error="raise")
    trainer = fit([watch], tmp_path / "run", make=paired, max_steps=4)
    records = read_tags(watch.history_path)
    assert [record["step"] for record in records] == [0, 2, 4]
    values = [record["values"] for record in records]
    assert values[-1]["retrieval/a/mrr@3"] == 1.0
    assert values[0]["retrieval/a/mrr@3"] < 1.0
    assert values[-1]["retrieval/b/ndcg@3"] == values[0]["retrieval/b/ndcg@3"]
    assert records[0]["chance"]["retrieval/a/recall@3"] == pytest.approx(0.3), "3 of 10 passages"
    assert set(trainer.callback_metrics) >= set(values[0])
    assert (watch.folder / "retrieval.png").stat().st_size > 5000
    assert same(weights(trainer), weights(fit([], tmp_path, make=paired, max_steps=4)))


class Halves(nn.Module):
    """An embedding model that tokenizes apart from encoding."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.calls = SimpleNamespace(tokenized=0)  # which no evaluation puts back

    def tokenize(self, texts, max_length):
        self.calls.tokenized += 1
        return self.model.tokenize(texts, max_length)

    def encode_texts(self, tokens, max_tokens):
        return self.model.encode_texts(tokens, max_tokens)

    def embed(self, texts, max_length, batch_size):
        raise AssertionError("the halves serve")


def test_texts_are_tokenized_once_and_scores_are_those_of_embed(tmp_path):
    model = EmbeddingModel.from_pretrained(make_backbone(tmp_path / "model"))
    model.requires_grad_(False)

    def project(arm):
        def make(pl):
            module = paired(pl)
            module.arms["b"] = arm
            type(module).training_step = lambda self, batch, i: -self.arms["a"].skill
            return module

        return make

    halves = Halves(model)
    monitors = [
        RetrievalMonitor(
            PAIRS,
            arms="arms",
            encode=encode,
            every_n_train_steps=1,
            on_error="raise",
        )
        for encode in (None, _embed)
    ]
    fit([monitors[0]], tmp_path / "a", make=project(halves), max_steps=2)
    fit([monitors[1]], tmp_path / "b", make=project(model), max_steps=2)
    assert halves.calls.tokenized == 2, "queries and corpus, in three evaluations"
    once, each_time = (
        [{t: v for t, v in r["values"].items() if "/b/" in t} for r in read_tags(m.history_path)]
        for m in monitors
    )
    assert once == each_time
    assert len(once) == 3


def _embed(module, texts):
    if isinstance(module, Arm):
        return Arm.embed(module, texts, 128, 64)
    return module.embed(texts, max_length=128, batch_size=64)


def test_an_encoder_of_ones_own_and_the_corpus(tmp_path):
    seen = []

    def encode(module, texts):
        seen.append(texts)
        return torch.randn(len(texts), 3)

    watch = RetrievalMonitor(PAIRS, encode=encode, limit=3, on_error="raise")
    fit([watch], tmp_path, max_steps=1)
    assert seen[0] == [("find", f"query {n}") for n in range(3)]
    corpus = ["right 0", "wrong 0", "right 1", "wrong 1", "right 2", "wrong 2"]
    assert seen[1] == corpus, "every passage once"


def test_nan_embeddings_warn_once(tmp_path):
    def encode(module, texts):
        return torch.full((len(texts), 3), math.nan)

    watch = RetrievalMonitor(PAIRS, encode=encode, every_n_train_steps=1)
    with pytest.warns(HRSAWarning, match="not finite") as caught:
        fit([watch], tmp_path, max_steps=3)
    assert len([w for w in caught if "finite" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one query"),
        ([{"query": "a", "pos": []}], 'record 1: "pos" has no text'),
        ([{"query": ["a", "b", "c"], "pos": ["d"]}], "record 1"),
        ("absent.jsonl", "absent.jsonl: no such file or folder"),
    ],
)
def test_mistakes_in_pairs(pairs, message):
    with pytest.raises(DataError, match=message):
        RetrievalMonitor(pairs)


def test_other_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="ks: expected positive"):
        RetrievalMonitor(PAIRS, ks=())
    with pytest.raises(ConfigError, match="has no method embed"):
        fit([RetrievalMonitor(PAIRS)], tmp_path)
    with pytest.raises(ConfigError, match="'heads' to name"):
        fit([RetrievalMonitor(PAIRS, arms="heads")], tmp_path)
    path = tmp_path / "broken.jsonl"
    path.write_text('{"query": "a"}\n{\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.jsonl:2: not valid JSON"):
        RetrievalMonitor(path)
