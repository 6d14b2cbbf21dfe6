import pickle

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import HalfPrecision
from torch.utils.data._utils.pin_memory import pin_memory

from hrsa_lightning.data import ContrastiveCollator, ContrastiveExample, text_id
from tests.data.helpers import CodeTokenizer

EXAMPLES = [
    ContrastiveExample(("do", "q0"), ("p0", "n0", "n1")),
    ContrastiveExample("q1", ("n0", "p0", "n2")),
]


def test_each_distinct_text_is_there_once_in_order():
    batch = ContrastiveCollator({"base": CodeTokenizer()})([*EXAMPLES, EXAMPLES[0]])
    assert (len(batch), batch.group_size) == (3, 3)
    queries, passages = batch.tokens("base")
    assert queries.texts == [("do", "q0"), "q1"]
    assert passages.texts == ["p0", "n0", "n1", "n2"]
    assert batch.query_rows.tolist() == [0, 1, 0]
    assert batch.passage_rows.tolist() == [[0, 1, 2], [1, 0, 3], [0, 1, 2]]
    p0, n0, n1, n2 = (text_id(text) for text in ("p0", "n0", "n1", "n2"))
    assert batch.passage_ids.tolist() == [[p0, n0, n1], [n0, p0, n2], [p0, n0, n1]]
    query = text_id(("do", "q0"))
    assert batch.query_ids.tolist() == [query, text_id("q1"), query]
    assert batch.passage_ids.dtype == batch.query_ids.dtype == torch.int64


def test_lengths_of_queries_and_passages():
    tokenizer = CodeTokenizer()
    ContrastiveCollator({"base": tokenizer}, query_length=1, passage_length=9)(EXAMPLES)
    assert tokenizer.calls == [(2, 1), (4, 9)]


def test_equal_tokenizers_run_once_and_share():
    tokenizers = {"base": CodeTokenizer(), "rlvr": CodeTokenizer(), "other": CodeTokenizer(1)}
    batch = ContrastiveCollator(tokenizers)(EXAMPLES)
    assert [len(tokenizer.calls) for tokenizer in tokenizers.values()] == [2, 0, 2]
    assert_shared(batch)
    assert not torch.equal(batch.tokens("base")[0].ids, batch.tokens("other")[0].ids)


def assert_shared(batch):
    for ours, theirs in zip(batch.tokens("base"), batch.tokens("rlvr"), strict=True):
        assert ours is theirs


def check_same(batch, other):
    for field in ("query_rows", "passage_rows", "query_ids", "passage_ids", "document_ids"):
        assert torch.equal(getattr(batch, field), getattr(other, field))
    for ours, theirs in zip(batch.tokens("base"), other.tokens("base"), strict=True):
        assert torch.equal(ours.ids, theirs.ids)
    assert_shared(other)


def test_pickle_keeps_sharing():
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    check_same(batch, pickle.loads(pickle.dumps(batch)))


def test_lightning_moves_everything_and_keeps_sharing():
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    check_same(batch, move_data_to_device(batch, torch.device("cpu")))
    moved = move_data_to_device(batch, torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [tokens.ids for tokens in moved.tokens("base")]
    assert len(tensors) == 7
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert_shared(moved)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_true_half_precision_leaves_a_batch_as_it_is(precision):
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    check_same(batch, HalfPrecision(precision).convert_input(batch))


def test_the_data_loader_pins_everything(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    batch = ContrastiveCollator({"base": CodeTokenizer(), "rlvr": CodeTokenizer()})(EXAMPLES)
    pinned = pin_memory(batch)
    check_same(batch, pinned)
    for name, value in vars(batch).items():
        assert not isinstance(value, torch.Tensor) or getattr(pinned, name) is not value
    assert all(tokens.texts[-1] == "pinned" for tokens in pinned.tokens("base"))


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
