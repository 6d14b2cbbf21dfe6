"""Probe sets that are said by where they lie: levels, caps on tokens, memory."""

import json

import pytest
import torch
from torch import nn

from hrsa_lightning import EmbeddingModel
from hrsa_lightning.callbacks.inputs import resolve_probes
from hrsa_lightning.errors import DataError
from hrsa_lightning.similarity import SimilarityEvaluator
from hrsa_lightning.similarity.extraction import Extractor
from hrsa_lightning.similarity.probes import load_probes
from tests.allocations import peak_bytes

WIDTH = 16


class Reader(nn.Module):
    """Reads characters, each token by itself, and returns (texts, tokens, features)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids, attention_mask):
        return self.layer(self.embedding(input_ids))

    def probe_batch(self, texts, max_length):
        texts = [text.encode()[:max_length] for text in texts]
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture
def texts(tmp_path):
    """Ten texts of 10, 20, … 100 characters."""
    letters = "abcdefghij"
    records = [{"body": letters * n, "kind": n % 2} for n in range(1, 11)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"path": str(path), "text": "body", "label": "kind"}


def test_several_sets_each_at_its_level(texts):
    model = Reader()
    evaluator = SimilarityEvaluator(
        model,
        {
            "pooled": {**texts, "level": "pooled"},
            "tokens": {**texts, "level": "token", "max_length": 50},
            "capped": {**texts, "level": "token", "max_tokens": 70},
            "unsaid": texts,
        },
        layers=["layer"],
        metrics=["cka"],
        by_label=True,
        null=0,
        max_length=200,
    )
    found = evaluator.run(0)
    rows = {name: len(arms[""]["layer"]) for name, arms in found.live.items()}
    assert rows == {"pooled": 10, "tokens": 400, "capped": 70, "unsaid": 10}
    labels = {m.probes for m in found.measurements if m.label}
    assert labels == {"pooled", "unsaid"}


def test_capped_rows_are_evenly_taken_from_each_text(texts):
    whole, capped = ({**texts, "level": "token"}, {**texts, "level": "token", "max_tokens": 50})
    model = Reader()
    evaluator = SimilarityEvaluator(
        model, {"whole": whole, "capped": capped}, ["layer"], metrics=["cka"], null=0
    )
    live = evaluator.run(0).live
    rows, kept = live["whole"][""]["layer"], live["capped"][""]["layer"]
    lengths = range(10, 101, 10)
    for text, part in zip(rows.split(list(lengths)), kept.split(5), strict=True):
        step = len(text) // 5
        assert torch.equal(part, text[step - 1 :: step])


def test_every_rank_takes_the_same_rows(texts):
    entry = {**texts, "level": "token", "max_tokens": 50}
    options = {"size": 3, "label_key": None, "limit": None, "shards": 2}
    parts = [load_probes(entry, shard=shard, **options) for shard in range(2)]
    assert parts[0].fingerprint == parts[1].fingerprint
    assert parts[0].ends == parts[1].ends


def test_other_levels_and_caps_are_other_probes(texts):
    options = {"size": 4, "label_key": None, "limit": None, "shard": 0, "shards": 1}
    asked = [{}, {"level": "token"}, {"level": "token", "max_tokens": 50}, {"max_length": 9}]
    assert len({load_probes({**texts, **own}, **options).fingerprint for own in asked}) == 4


def test_a_cap_below_the_number_of_texts_is_refused(texts):
    with pytest.raises(DataError, match=r"probes\.a: max_tokens: expected at least one for each"):
        Extractor({"a": {**texts, "level": "token", "max_tokens": 9}}).check()


def test_batches_of_long_texts_hold_fewer(texts):
    options = {"label_key": None, "limit": None, "shard": 0, "shards": 1}
    probes = load_probes({**texts, "max_length": 100}, size=4, max_length=25, **options)
    sizes = [end - begin for begin, end in zip([0, *probes.ends], probes.ends, strict=False)]
    assert sizes == [3, 1, 1, 1, 1, 1, 1, 1]
    short = load_probes(texts, size=4, max_length=25, **options)
    assert short.ends == [4, 8, 10]


def test_memory_of_long_texts_does_not_grow_with_their_number(tmp_path):
    model = EmbeddingModel.from_pretrained("embedded:tiny/base", lora=None)
    peaks = []
    for count in (4, 8):
        path = tmp_path / f"{count}.txt"
        path.write_text("".join(f"{'a tree of a kind ' * 500}{n}\n" for n in range(count)))
        evaluator = SimilarityEvaluator(
            model,
            {"path": str(path), "level": "token", "max_length": 1024, "max_tokens": 120},
            ["**.layers.*"],
            metrics=["cka"],
            null=0,
        )
        extractor = evaluator.extractor
        assert len(extractor.probes[""].order) == count // 4
        peaks.append(peak_bytes(extractor.extract))
    # Four texts of 1,024 tokens are as large a batch as 32 of 128; a second one adds its rows only.
    assert peaks[1] < 1.1 * peaks[0]


def test_a_monitor_does_not_take_an_address_for_the_name_of_a_loader():
    for address in ("preset:tiny_labels", "hub:openai/gsm8k:main@test:4", "embedded:tiny/none"):
        assert resolve_probes(address, None, None) == address
