import json
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.similarity.probes import (
    batch_probes,
    load_probes,
    text_probes,
    tokenizer_of,
)

DATA = torch.arange(20.0).reshape(10, 2)


@dataclass(slots=True)
class WithSlots:
    x: torch.Tensor


def load(source, **options):
    defaults = {"size": 4, "label_key": None, "limit": None, "shard": 0, "shards": 1}
    return load_probes(source, **{**defaults, **options})


def rows(probes):
    return torch.cat(
        [batch[0] if isinstance(batch, list) else batch for batch in probes.held.values()]
    )


@pytest.mark.parametrize(
    "source",
    [
        lambda: DATA,
        lambda: list(DATA.split(3)),
        lambda: iter(DATA.split(3)),
        lambda: DataLoader(TensorDataset(DATA), batch_size=3),
    ],
)
def test_sources_of_batches(source):
    probes = load(source())
    assert torch.equal(rows(probes), DATA)


def test_shards_hold_every_batch_once_and_the_first_too():
    parts = [load(list(DATA.split(2)), shard=shard, shards=2) for shard in range(2)]
    assert [sorted(part.held) for part in parts] == [[0, 2, 4], [0, 1, 3]]
    assert parts[0].fingerprint == parts[1].fingerprint


def test_a_shuffled_loader_gives_the_same_probes_each_time_and_on_each_rank():
    loader = DataLoader(TensorDataset(DATA), batch_size=3, shuffle=True)
    torch.manual_seed(1)
    first = load(loader)
    torch.manual_seed(2)
    second = load(loader)
    assert first.fingerprint == second.fingerprint
    assert not torch.equal(rows(first), DATA)


def test_persistent_workers_are_released():
    loader = DataLoader(TensorDataset(DATA), batch_size=5, num_workers=1, persistent_workers=True)
    load(loader)
    assert loader._iterator is None


def test_labels_of_batches():
    batches = [{"x": DATA[:4], "y": torch.tensor([1, 0, 1, 0])}]
    assert load(batches, label_key="y").labels == ["1", "0", "1", "0"]
    assert load([(DATA[:2], ["a", "b"])], label_key=1).labels == ["a", "b"]
    with pytest.raises(DataError, match="'z' is not in the probe batch"):
        load(batches, label_key="z")


def test_the_fingerprint_tells_content():
    changed = DATA.clone()
    changed[9, 1] += 1e-3
    assert load(DATA).fingerprint != load(changed).fingerprint
    assert load(["a", "b"]).fingerprint != load(["a", "c"]).fingerprint
    batches = [[(WithSlots(x), DATA[:1])] for x in (DATA, changed)]
    assert load(batches[0]).fingerprint != load(batches[1]).fingerprint


def test_limit():
    assert len(rows(load(DATA, limit=2))) == 8
    assert len(load(list("abcdefghijk"), limit=2).texts) == 8


def test_texts_are_ordered_by_length_with_their_labels():
    items = [
        {"text": "long text", "label": "b"},
        {"text": "a", "label": "c"},
        {"text": "mid", "label": "a"},
    ]
    probes = text_probes(items, size=2)
    assert probes.texts == ["a", "mid", "long text"]
    assert probes.labels == ["c", "a", "b"]
    assert probes.order == [0, 1]


def test_texts_are_tokenized_once_per_owner():
    calls = []

    def tokenize(texts):
        calls.append(texts)
        return {"input_ids": torch.zeros(len(texts), 2, dtype=torch.long)}

    probes = text_probes(["a", "bb", "ccc"], size=2)
    for _ in range(2):
        assert [len(b["input_ids"]) for b in probes.batches([0, 1], "arm", tokenize)] == [2, 1]
    assert calls == [["a", "bb"], ["ccc"]]
    with pytest.raises(ConfigError, match="tokenizer="):
        list(probes.batches([0], "other", None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": [[1, 2], [3]]}, r"a row for each of 2 texts, got none; .*return_tensors"),
        ({"input_ids": torch.zeros(3, 2)}, r"got \{'input_ids': \(3, 2\)\}"),
    ],
)
def test_a_tokenizer_that_gives_no_rows_is_named(given, message):
    with pytest.raises(DataError, match=message):
        list(text_probes(["a", "bb"]).batches([0], "", lambda texts: given))


def test_a_dataset_of_texts():
    """A dataset of Hugging Face can be indexed and iterated over, but is no `Sequence`."""

    class Records:
        rows = ({"text": "bb", "label": 1}, {"text": "a", "label": 0})

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

        def __iter__(self):
            return iter(self.rows)

    probes = load(Records())
    assert (probes.texts, probes.labels) == (["a", "bb"], ["0", "1"])


def test_a_models_own_tokenizer():
    class Model(torch.nn.Module):
        def probe_batch(self, texts, max_length):
            return {"input_ids": torch.zeros(len(texts), max_length)}

    tokenize = tokenizer_of(Model(), 7)
    assert tokenize(["a"])["input_ids"].shape == (1, 7)
    assert tokenizer_of(torch.nn.Identity(), 7) is None


def test_a_file_of_texts(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text('{"text": "one", "label": "x", "id": 1}\n\n"two"\n', encoding="utf-8")
    assert load(str(path)).texts == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n", r"probes\.jsonl:1: not valid JSON"),
        ('"a"\n{"id": 3}\n', r':2: "text" must be a text, got null'),
        ("\n", "no texts"),
    ],
)
def test_mistakes_in_a_file(tmp_path, content, message):
    path = tmp_path / "probes.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.jsonl", "absent.jsonl: no such file or folder"),
        ([], "at least one batch"),
        (3, "got int"),
        ({"text": "a"}, "got dict"),
        ([{"text": "a"}, {"text": " "}], 'item 2: "text" is empty'),
    ],
)
def test_mistakes_are_named(source, message):
    with pytest.raises(DataError, match=message):
        load(source)


def test_batches_may_hold_any_dtype():
    batches = [{"a": torch.ones(2, dtype=d)} for d in (torch.bfloat16, torch.bool, torch.int64)]
    assert json.dumps(batch_probes(batches).fingerprint)
