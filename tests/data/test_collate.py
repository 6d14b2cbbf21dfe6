import pickle

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data._utils.pin_memory import pin_memory

from hrsa_lightning.data import ContrastiveCollator, ContrastiveExample, text_id
from tests.data.helpers import CodeTokenizer

EXAMPLES = [
    ContrastiveExample(("do", "q0"), ("p0", "n0", "n1")),
    ContrastiveExample("q1", ("n0", "p0", "n2")),
]


def test_passages_are_laid_out_by_query():
    batch = ContrastiveCollator({"base": CodeTokenizer()})(EXAMPLES)
    assert (len(batch), batch.group_size) == (2, 3)
    assert batch.queries["base"].texts == [("do", "q0"), "q1"]
    assert batch.passages["base"].texts == ["p0", "n0", "n1", "n0", "p0", "n2"]
    p0, n0, n1, n2 = (text_id(text) for text in ("p0", "n0", "n1", "n2"))
    assert batch.passage_ids.tolist() == [[p0, n0, n1], [n0, p0, n2]]
    assert batch.query_ids.tolist() == [text_id(("do", "q0")), text_id("q1")]
    assert batch.passage_ids.dtype == batch.query_ids.dtype == torch.int64


def test_lengths_of_queries_and_passages():
    tokenizer = CodeTokenizer()
    ContrastiveCollator({"base": tokenizer}, query_length=1, passage_length=9)(EXAMPLES)
    assert tokenizer.calls == [(2, 1), (6, 9)]


def test_equal_tokenizers_run_once_and_share():
    tokenizers = {"base": CodeTokenizer(), "rlvr": CodeTokenizer(), "other": CodeTokenizer(1)}
    batch = ContrastiveCollator(tokenizers)(EXAMPLES)
    assert [len(tokenizer.calls) for tokenizer in tokenizers.values()] == [2, 0, 2]
    assert batch.queries["base"] is batch.queries["rlvr"]
    assert batch.passages["base"] is batch.passages["rlvr"]
    assert not torch.equal(batch.queries["base"].ids, batch.queries["other"].ids)


def check_same(batch, other):
    assert torch.equal(batch.query_ids, other.query_ids)
    assert torch.equal(batch.passage_ids, other.passage_ids)
    for arm in batch.queries:
        assert torch.equal(batch.queries[arm].ids, other.queries[arm].ids)
        assert torch.equal(batch.passages[arm].ids, other.passages[arm].ids)
    assert other.queries["base"] is other.queries["rlvr"]
    assert other.passages["base"] is other.passages["rlvr"]


def test_pickle_keeps_sharing():
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    check_same(batch, pickle.loads(pickle.dumps(batch)))


def test_lightning_moves_everything_and_keeps_sharing():
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    check_same(batch, move_data_to_device(batch, torch.device("cpu")))
    moved = move_data_to_device(batch, torch.device("meta"))
    tensors = [moved.query_ids, moved.passage_ids, moved.queries["base"].ids]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.passages["base"] is moved.passages["rlvr"]


def test_the_data_loader_pins_everything(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    pinned = pin_memory(batch)
    check_same(batch, pinned)
    assert pinned.query_ids is not batch.query_ids
    assert pinned.queries["base"].texts[-1] == pinned.passages["base"].texts[-1] == "pinned"


def test_ids_are_the_same_everywhere():
    # A known value: ids must not depend on the process, as `hash` does.
    assert text_id("größer") == -5891862472606415594
    assert text_id(("do", "q")) != text_id("doq") != text_id(("d", "oq"))


def test_documents_are_named_or_known_by_their_text():
    examples = [
        ContrastiveExample("q0", ("p0", "n0"), ("doc", "other")),
        ContrastiveExample("q1", ("p1", "n0"), ("doc", None)),
        ContrastiveExample("q2", ("n0", "p2")),
    ]
    batch = ContrastiveCollator({"base": CodeTokenizer()})(examples)
    ids = batch.document_ids
    assert ids[0, 0] == ids[1, 0]
    assert len({ids[0, 1].item(), ids[1, 1].item(), ids[0, 0].item(), ids[2, 1].item()}) == 4
    assert ids[1, 1] == ids[2, 0] == batch.passage_ids[2, 0] == batch.passage_ids[0, 1]
    assert len({*batch.passage_ids[:2, 0].tolist()}) == 2
