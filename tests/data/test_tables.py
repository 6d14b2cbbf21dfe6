import json
import sys

import pytest

from hrsa_lightning.data import ContrastivePair, read_pairs
from hrsa_lightning.data.pairs import TablePairs
from hrsa_lightning.errors import DataError
from tests.data.helpers import replace_builder

datasets = pytest.importorskip("datasets")

AUTHORS = {
    "query": [["do", "q0"], ["do", "q1"]],
    "pos": [["a0"], ["a1", "b1"]],
    "neg": [["c0", "d0"], []],
}
COLUMNS = {
    "anchor": ["q0", "q1"],
    "positive": ["a0", "a1"],
    "negative_1": ["c0", "c1"],
    "negative_2": ["d0", None],
}
EXPECTED = {
    "authors": [
        ContrastivePair(("do", "q0"), ("a0",), ("c0", "d0")),
        ContrastivePair(("do", "q1"), ("a1", "b1")),
    ],
    "columns": [
        ContrastivePair("q0", ("a0",), ("c0", "d0")),
        ContrastivePair("q1", ("a1",), ("c1",)),
    ],
}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _save(table, kind, folder):
    if kind == "folder":
        table.save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"pairs.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        path.write_text(json.dumps(table.to_list()))
    return path


@pytest.mark.parametrize("kind", ["folder", "parquet", "json"])
@pytest.mark.parametrize("form", ["authors", "columns"])
@pytest.mark.filterwarnings("ignore")  # of `datasets` itself while it reads and writes
def test_saved_tables(tmp_path, kind, form):
    table = datasets.Dataset.from_dict(AUTHORS if form == "authors" else COLUMNS)
    (source,) = read_pairs([_save(table, kind, tmp_path)])
    assert [source[row] for row in range(len(source))] == EXPECTED[form]
    assert source.negative_counts.tolist() == [len(p.negatives) for p in EXPECTED[form]]


@pytest.mark.parametrize("form", ["numpy", "pandas", "arrow"])
@pytest.mark.filterwarnings("ignore")
def test_a_saved_format_does_not_matter(tmp_path, form):
    table = datasets.Dataset.from_dict(AUTHORS).with_format(form)
    (source,) = read_pairs([_save(table, "folder", tmp_path)])
    assert [source[row] for row in range(len(source))] == EXPECTED["authors"]


def test_bad_rows_are_listed_from_zero():
    table = datasets.Dataset.from_dict({"query": ["q", "", "q"], "pos": [["a"], ["b"], [""]]})
    with pytest.raises(DataError) as caught:
        TablePairs(table, "mine")
    assert str(caught.value).splitlines() == [
        "2 problems in the data:",
        '  mine row 1: "query" is empty',
        '  mine row 2: "pos[0]" is empty',
    ]


def test_folder_of_splits_asks_for_one(tmp_path):
    table = datasets.Dataset.from_dict(COLUMNS)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"holds several splits, name one of them: .*train, .*test"):
        read_pairs([tmp_path / "both"])
    assert len(read_pairs([tmp_path / "both" / "test"])[0]) == 2


def test_unreadable_folder(tmp_path):
    (tmp_path / "stray").mkdir()
    with pytest.raises(DataError, match=r"stray: datasets cannot read it: "):
        read_pairs([tmp_path / "stray"])


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name@test", ("owner/name", None, "test")),
        ("hub:owner/name:triplet", ("owner/name", "triplet", "train")),
        ("hub:name:triplet@dev", ("name", "triplet", "dev")),
    ],
)
def test_hub_addresses(monkeypatch, address, expected):
    asked = replace_builder(monkeypatch, lambda *_: datasets.Dataset.from_dict(COLUMNS))
    (source,) = read_pairs([address])
    name, config, split = expected
    assert asked == [(name, {"name": config}, split)]
    assert (source.name, source[0]) == (address, EXPECTED["columns"][0])


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the datasets package: pip install"):
        read_pairs(["hub:owner/name"])
