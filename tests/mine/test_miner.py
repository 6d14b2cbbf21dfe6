import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

from hrsa_lightning.data import read_pairs
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.mine import MiningOptions, mine, miner
from hrsa_lightning.mine.miner import Mining
from tests.mine.brute import GridEncoder, brute_force


def _pairs(folder, name, count, seed, words="abcdefgh"):
    """Short texts over few words: repeated queries and passages, in several spellings."""
    draw = random.Random(seed)

    def text(length):
        letters = draw.choices(words, k=length)
        return draw.choice([" ".join(letters), "  ".join(letters).upper()])

    lines = []
    for number in range(count):
        instruction = draw.choice(["find", "look up"])
        query = draw.choice([text(2), [instruction, text(2)]])
        pair = {"query": query, "pos": [text(4) for _ in range(draw.choice([1, 1, 2]))]}
        pair["neg"] = [text(4) for _ in range(draw.choice([0, 1, 3]))]
        lines.append(json.dumps({"id": f"{name}{number}", **pair}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


CASES = {
    "as the authors": MiningOptions(rank_range=(0, 20)),
    "no limit, later ranks": MiningOptions(rank_range=(5, 12), max_relative=None),
    "loose limit": MiningOptions(rank_range=(0, 40), max_relative=1.0, num_negatives=5),
    "shared": MiningOptions(corpus="shared", rank_range=(1, 30)),
    "existing": MiningOptions(keep_existing=True, rank_range=(0, 10)),
    "whole negatives": MiningOptions(min_negatives=3, rank_range=(0, 90)),
    "below": MiningOptions(keep="below", margin=0.3, rank_range=(0, 90)),
    "above": MiningOptions(keep="above", margin=0.1, rank_range=(0, 90), corpus="shared"),
    "cap": MiningOptions(max_examples=11, keep="below", margin=0.8, rank_range=(0, 90)),
}


@pytest.mark.parametrize("case", CASES)
def test_same_negatives_as_brute_force(case, tmp_path, monkeypatch):
    monkeypatch.setattr("hrsa_lightning.mine.texts.TEXTS_PER_BLOCK", 32)
    monkeypatch.setattr(miner, "SCORE_BYTES", 4 * 16 * 20)
    options = CASES[case]
    files = [_pairs(tmp_path, "first", 50, 1), _pairs(tmp_path, "second", 30, 2, "abcd")]
    summary = mine(files, GridEncoder(), tmp_path / "out.jsonl", options)
    expected = brute_force([str(file) for file in files], GridEncoder(), options)
    assert _lines(tmp_path / "out.jsonl") == expected
    assert summary["kept"] == len(expected) > 0
    assert summary["pairs"] == 80 == len(expected) + sum(summary["dropped"].values())
    total = sum(len(pair["neg"]) for pair in expected)
    assert summary["negatives_mined"] + summary["negatives_kept"] == total
    assert not (tmp_path / "out.jsonl.work").exists()


class NumberedEncoder(GridEncoder):
    """Puts passages `2 n` and `2 n + 1` near query `n`, which has some others around it."""

    def vector(self, text):
        kind, number = text.split()
        near = int(number) // (1 if kind == "query" else 2)
        center, own = (GridEncoder.vector(self, f"{near // 10}"), GridEncoder.vector(self, text))
        return center + 0.5 * GridEncoder.vector(self, f"{near}") + 0.3 * own


class TextModel:
    """The same with the face that `mine_hard_negatives` asks of a SentenceTransformer."""

    device = torch.device("cpu")
    encode_query = encode_document = lambda self, texts, **_: np.float32(
        [v / np.linalg.norm(v) for v in map(NumberedEncoder().vector, texts)]
    )
    similarity = staticmethod(lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T)
    similarity_pairwise = staticmethod(
        lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(-1)
    )
    get_embedding_dimension = staticmethod(lambda: 8)


@pytest.mark.parametrize("faiss", [False, True])
def test_same_negatives_as_a_direct_call_of_the_library(faiss, tmp_path):
    rows = [{"query": f"query {n // 2}", "pos": f"passage {n}"} for n in range(120)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = MiningOptions(num_negatives=4, rank_range=(2, 30), max_relative=0.9, faiss=faiss)
    mine([file], NumberedEncoder(), tmp_path / "out.jsonl", options)
    found = mine_hard_negatives(
        Dataset.from_list(rows), TextModel(), range_min=2, range_max=30, relative_margin=0.1,
        num_negatives=4, output_format="labeled-list", use_faiss=faiss, verbose=False,
    )  # fmt: skip
    expected = {
        (query, texts[0]): texts[1:]
        for query, texts in zip(found["query"], found["pos"], strict=True)
    }
    ours = {(line["query"], line["pos"][0]): line["neg"] for line in _lines(tmp_path / "out.jsonl")}
    assert ours == expected
    assert len(ours) > 50


def test_summary_says_what_was_dropped(tmp_path):
    file = _pairs(tmp_path, "first", 60, 3)
    options = MiningOptions(rank_range=(0, 90), keep="below", margin=0.9, max_examples=5)
    summary = mine([file], GridEncoder(), tmp_path / "out.jsonl", options)
    assert json.loads((tmp_path / "out.summary.json").read_text()) == json.loads(
        json.dumps(summary)
    )
    without = mine([file], GridEncoder(), tmp_path / "all.jsonl", MiningOptions(rank_range=(0, 90)))
    dropped = list(summary["dropped"].values())
    assert dropped[0] == next(iter(without["dropped"].values()))
    assert dropped[2] > 0
    assert summary["kept"] == 5
    assert summary["similarity_of_positives"] > summary["similarity_of_hardest_negatives"]


def test_output_trains(tmp_path):
    file = _pairs(tmp_path, "first", 40, 4)
    options = MiningOptions(rank_range=(0, 30), min_negatives=2)
    mine([file], GridEncoder(), tmp_path / "mined", options)
    (source,) = read_pairs([tmp_path / "mined" / "first.jsonl"])
    assert (source.negative_counts >= 2).all()
    original = {pair["id"]: pair for pair in _lines(file)}
    for row in range(len(source)):
        pair = source[row]
        assert list(pair.positives) == original[pair.id]["pos"]
        assert len(set(pair.negatives)) == len(pair.negatives)


def test_folder_has_one_file_per_source(tmp_path):
    files = [_pairs(tmp_path, "first", 20, 1), _pairs(tmp_path, "second", 20, 2)]
    both = mine(files, GridEncoder(), tmp_path / "both")
    one = mine(files, GridEncoder(), tmp_path / "one.jsonl")
    parts = [_lines(tmp_path / "both" / file.name) for file in files]
    assert parts[0] + parts[1] == _lines(tmp_path / "one.jsonl")
    assert [part["kept"] for part in both["files"].values()] == list(map(len, parts))
    assert both == one
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "first.jsonl",
        "second.jsonl",
        "summary.json",
    ]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("hrsa_lightning.mine.texts.TEXTS_PER_BLOCK", 16)


@pytest.mark.parametrize("stop_after", [0, 3, 9])
def test_interrupted_embedding_goes_on_at_its_block(stop_after, tmp_path, small_blocks):
    file = _pairs(tmp_path, "first", 60, 5)
    whole = GridEncoder()
    mine([file], whole, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        mine([file], GridEncoder(stop_after=stop_after), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    # what a kill in the middle of a write would leave behind
    for path in (tmp_path / "out.jsonl.work").glob("*.f32"):
        path.write_bytes(path.read_bytes() + b"half a row")
    again = GridEncoder()
    mine([file], again, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # both times one call finds the number of features
    assert again.calls - 1 == whole.calls - 1 - max(0, stop_after - 1)


def test_documents_are_kept_and_never_each_others_negatives(tmp_path):
    records = [
        {"query": f"q{n}", "pos": [f"p{n}"], "pos_ids": [n // 4], "neg": [f"n{n}"], "neg_ids": [n]}
        for n in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = MiningOptions(num_negatives=20, rank_range=(0, 24), max_relative=None)
    mine([file], GridEncoder(), tmp_path / "out.jsonl", options)
    documents = {f"p{n}": str(n // 4) for n in range(12)} | {f"n{n}": str(n) for n in range(12)}
    for line in _lines(tmp_path / "out.jsonl"):
        (right,) = line["pos_ids"]
        assert right == documents[line["pos"][0]]
        assert line["neg_ids"] == [documents[text] for text in line["neg"]]
        others = {text for text, document in documents.items() if document != right}
        assert set(line["neg"]) <= others
        assert len(line["neg"]) == min(20, len(others))


def test_kept_work_serves_other_options_but_no_other_model_or_text(tmp_path):
    file, work = _pairs(tmp_path, "first", 30, 6), tmp_path / "work"
    mine([file], GridEncoder(), tmp_path / "a.jsonl", work=work)
    other = MiningOptions(rank_range=(2, 9), max_relative=None)
    mine([file], GridEncoder(stop_after=1), tmp_path / "b.jsonl", other, work=work)
    mine([file], GridEncoder(), tmp_path / "b2.jsonl", other)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "b2.jsonl").read_bytes()
    changed = GridEncoder(levels=199, identity="other")
    mine([file], changed, tmp_path / "c.jsonl", other, work=work)
    mine([file], changed, tmp_path / "c2.jsonl", other)
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "c2.jsonl").read_bytes()
    file.write_text(file.read_text().replace("a", "z"))
    mine([file], changed, tmp_path / "d.jsonl", other, work=work)
    shutil.rmtree(work)
    mine([file], changed, tmp_path / "d2.jsonl", other, work=work)
    assert (tmp_path / "d.jsonl").read_bytes() == (tmp_path / "d2.jsonl").read_bytes()


class Broken(GridEncoder):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def encode_passages(self, texts):
        return self.result(np.stack([self.vector(text) for text in texts]))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda rows: rows * np.nan, "passages: the model gives embeddings that are not finite"),
        (lambda rows: rows * 0, "not finite or zero"),
        (lambda rows: rows[:, :2], r"expected an array of shape \(\d+, 8\), got \(\d+, 2\)"),
        (lambda rows: rows[0], "expected an array"),
    ],
)
def test_a_model_that_gives_no_embeddings_is_refused(result, message, tmp_path):
    with pytest.raises(DataError, match=message):
        mine([_pairs(tmp_path, "first", 20, 1)], Broken(result), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_mistakes_are_answered_before_a_model_is_needed(tmp_path, monkeypatch):
    file = _pairs(tmp_path, "first", 20, 1)
    few = tmp_path / "few.jsonl"
    few.write_text('{"query": "q", "pos": ["a"], "neg": ["b", "c"]}\n')
    with pytest.raises(DataError, match=r"few\.jsonl: 3 different passages are too few for 3"):
        Mining([file, few], tmp_path / "out.jsonl")
    Mining([file, few], tmp_path / "out.jsonl", MiningOptions(corpus="shared"))
    with pytest.raises(ConfigError, match="out: expected a folder"):
        Mining([file], tmp_path / "missing" / "out.jsonl")
    with pytest.raises(ConfigError, match=r"first\.jsonl exists already"):
        Mining([few], file)
    with pytest.raises(ConfigError, match="several inputs would be written"):
        Mining([file, file], tmp_path / "folder")
    with pytest.raises(DataError, match="no such file"):
        Mining([tmp_path / "firsd.jsonl"], tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match=r"work: expected a folder to make.*missing"):
        Mining([file], tmp_path / "out.jsonl", work=tmp_path / "missing" / "work")
    with pytest.raises(ConfigError, match=r"work: expected a folder.*first\.jsonl"):
        Mining([file], tmp_path / "out.jsonl", work=file)
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path)
    with pytest.raises(ConfigError, match="out: expected a folder that can be written into"):
        Mining([file], tmp_path / "out.jsonl")
    # and before the pairs are read, which takes a while
    with pytest.raises(ConfigError, match="can be written into"):
        Mining([tmp_path / "firsd.jsonl"], tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives: expected at least 1"),
        ({"rank_range": (5, 5)}, "rank_range: expected a first rank"),
        ({"rank_range": (5, 7)}, "expected ranks for 3 negatives, got 2"),
        ({"max_relative": 1.5}, "max_relative: expected above 0"),
        ({"min_negatives": 4}, "min_negatives: expected 1 to num_negatives"),
        ({"max_examples": 0}, "max_examples: expected at least 1"),
        ({"keep": "under"}, "keep: expected one of below, above, got 'under'"),
        ({"corpus": "all"}, "corpus: expected one of file, shared"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        MiningOptions(**options)


def test_nothing_is_written_when_no_pair_is_left_or_the_disk_is_full(tmp_path, monkeypatch):
    file = _pairs(tmp_path, "first", 20, 1)
    with pytest.raises(DataError, match="no pair is left, and nothing is written"):
        mine([file], GridEncoder(), tmp_path / "out.jsonl", MiningOptions(keep="above", margin=3))
    assert not list(tmp_path.glob("out*partial"))

    def full(*_):
        raise OSError(28, "No space left on device", "out.jsonl")

    monkeypatch.setattr(miner, "pair_line", full)
    with pytest.raises(DataError, match="No space left"):
        mine([file], GridEncoder(), tmp_path / "out.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"first.jsonl", "out.jsonl.work"}
    with pytest.raises(DataError, match="No space left"):
        mine([file], GridEncoder(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
