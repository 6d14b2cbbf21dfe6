"""Entries of `data.train`: every layout that is recognized, every mapping, and what is refused."""

import gzip
import json

import pytest

from hrsa_lightning.config import load_config
from hrsa_lightning.data import ContrastivePair, check_pairs, pairs, read_pairs
from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.errors import ConfigError, DataError
from tests.data.helpers import replace_builder

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # of `datasets` itself while it reads and writes

QA = ContrastivePair("q", ("a",))
HARD = ContrastivePair("q", ("a",), ("b", "c"))
PASSAGES = {
    "query_id": "1",
    "query": "q",
    "positive_passages": [{"docid": "7", "title": "", "text": "a"}],
    "negative_passages": [
        {"docid": "8", "title": "T", "text": "b"},
        {"docid": "9", "title": "", "text": "c"},
    ],
}
LAYOUTS = {
    "authors": ({"query": ["do", "q"], "pos": ["a"], "neg": ["b"]}, ("do", "q"), ("b",)),
    "triplet": ({"anchor": "q", "positive": "a", "negative": "b"}, "q", ("b",)),
    "triplet-2": ({"anchor": "q", "positive": "a", "negative_2": "c", "negative_1": "b"}, "q", 2),
    "lists": ({"query": "q", "positive": ["a"], "negative": ["b", "c"]}, "q", 2),
    "question": ({"question": "q", "answer": "a"}, "q", ()),
    "answer": ({"query": "q", "answer": "a"}, "q", ()),
    "sentences": ({"sentence1": "q", "sentence2": "a"}, "q", ()),
    "inference": ({"premise": "q", "hypothesis": "a"}, "q", ()),
    "document": ({"query": "q", "document": "a", "negatives": ["b", "c"]}, "q", 2),
    "numbered": ({"query": "q", "pos": "a", "neg_1": "b", "neg_2": "c"}, "q", 2),
    "instruction": ({"instruction": "do", "query": "q", "pos": "a"}, ("do", "q"), ()),
    "passages": (PASSAGES, "q", ("T b", "c")),
}


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_have(layout, kind, tmp_path):
    record, query, negatives = LAYOUTS[layout]
    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        _write(path, record)
    else:
        datasets.Dataset.from_list([record]).to_parquet(path)
    (source,) = read_pairs([path])
    pair = source[0]
    expected = ("b", "c") if negatives == 2 else negatives
    assert (pair.query, pair.positives, pair.negatives) == (query, ("a",), expected)
    assert source.negative_counts.tolist() == [len(expected)]
    if layout == "passages":
        assert (pair.positive_ids, pair.negative_ids) == (("7",), ("8", "9"))


def test_the_start_says_what_was_recognized(tmp_path):
    path = _write(tmp_path / "a.jsonl", LAYOUTS["triplet-2"][0], LAYOUTS["question"][0])
    (source,) = read_pairs([{"path": str(path), "name": "mixed"}])
    assert source.describe() == (
        "mixed: 2 pairs, query anchor, pos positive, neg negative_1 ... negative_2 or "
        "query question, pos answer"
    )


COLUMNS = {
    "names": (
        {"q": "q", "a": "a", "b": "b", "c": "c"},
        {"query": "q", "pos": "a", "neg": ["b", "c"]},
    ),
    "pattern": (
        {"q": "q", "a": "a", "hard_10": "c", "hard_2": "b"},
        {"query": "q", "pos": "a", "neg": "hard_*"},
    ),
    "paths": (
        {"q": {"text": "q"}, "hits": [{"t": "a"}], "miss": [{"t": "b"}, {"t": "c"}]},
        {"query": "q.text", "pos": "hits[].t", "neg": "miss[].t"},
    ),
    "medi": (
        {"query": ["do", "q"], "pos": ["Represent", "a"], "neg": ["Represent", "b"]},
        {"query": "query[1]", "pos": "pos[1]", "neg": "neg[1]"},
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_by_role(case, tmp_path):
    record, columns = COLUMNS[case]
    path = _write(tmp_path / "a.jsonl", record)
    (source,) = read_pairs([{"path": str(path), "columns": columns}])
    assert source[0].query == "q"
    assert source[0].positives == ("a",)
    assert source[0].negatives == (("b",) if case == "medi" else ("b", "c"))


def test_an_instruction_of_the_row_goes_before_the_columns_before_the_entrys(tmp_path):
    rows = [
        {"query": ["row", "q"], "instruction": "column", "pos": "a"},
        {"query": "q", "instruction": "column", "pos": "a"},
        {"query": "q", "instruction": None, "pos": "a"},
    ]
    path = _write(tmp_path / "a.jsonl", *rows)
    (source,) = read_pairs([{"path": str(path), "instruction": "entry"}])
    assert [source[row].query[0] for row in range(3)] == ["row", "column", "entry"]


def test_filter_and_limit(tmp_path):
    rows = [{"sentence1": f"q{n}", "sentence2": "a", "score": n / 10} for n in range(10)]
    path = _write(tmp_path / "a.jsonl", *rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    rules = [({"min": 0.5}, "56789"), ({"max": 0.25}, "012"), (0.3, "3"), ([0.1, 0.9], "19")]
    for name in ("a.jsonl", "a.parquet"):
        for rule, expected in rules:
            entry = {"path": str(tmp_path / name), "filter": {"score": rule}}
            (source,) = read_pairs([entry])
            assert "".join(source[n].query[1] for n in range(len(source))) == expected
            (limited,) = read_pairs([{**entry, "limit": 2}], limit=5)
            assert len(limited) == min(2, len(expected))
        assert len(read_pairs([{**entry, "filter": {"score": {"min": 0}}}], limit=4)[0]) == 4
    with pytest.raises(DataError, match='positives says the column "score"; expected a filter\n'):
        read_pairs([path])


def test_files_of_every_kind(tmp_path):
    _write(tmp_path / "one.jsonl", {"query": "q1", "pos": "a"})
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(b'{"query": "q2", "pos": "a"}\n'))
    (tmp_path / "t.csv").write_text('\ufeffquestion,answer\nq3,"NA"\n007,"1,5"\n')
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in (4, 5):
        table = datasets.Dataset.from_list([{"query": f"q{number}", "pos": "a"}])
        table.to_parquet(shards / f"{number}.parquet")
    entries = [f"{tmp_path}/*.jsonl*", tmp_path / "t.csv", shards, f"{shards}/*.parquet"]
    found = read_pairs(entries)
    texts = [[source[n].query for n in range(len(source))] for source in found]
    assert texts == [["q1", "q2"], ["q3", "007"], ["q4", "q5"], ["q4", "q5"]]
    assert [found[1][n].positives for n in range(2)] == [("NA",), ("1,5",)]
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"query": "q"}\n' * 99)[:-12])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be unpacked"):
        read_pairs([tmp_path / "cut.jsonl.gz"])


REFUSED = {
    "unknown": ({"a": "q", "b": "a"}, {}, "none is a column", "write columns: {query: NAME"),
    "wrong name": (
        {"title": "q", "body": "a"},
        {"columns": {"query": "title", "pos": "bdy"}},
        "columns.pos: no column 'bdy'. Did you mean 'body'?",
        "the columns are body, title",
    ),
    "wrong filter": (
        {"query": "q", "pos": "a", "kind": 1},
        {"filter": {"knd": 1}},
        "filter: no column 'knd'. Did you mean 'kind'?",
        "the columns are",
    ),
    "two positives": (
        {"query": "q", "pos": "a", "positive": "b"},
        {},
        'expected "pos" or "positive", got both',
        "write columns:",
    ),
    "MEDI": (
        {"query": ["do", "q"], "pos": ["Represent", "a"], "neg": ["Represent", "b"]},
        {},
        '"pos" and "neg" both begin with \'Represent\'',
        "write columns: {query: query, pos: 'pos[1]', neg: 'neg[1]'}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_the_cure_in_two_lines(case, tmp_path):
    record, options, first, second = REFUSED[case]
    count = 1 if case == "MEDI" else 50
    path = _write(tmp_path / "a.jsonl", *[record] * count)
    with pytest.raises(DataError) as caught:
        read_pairs([{"path": str(path), **options}])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert first in lines[0]
    assert second in lines[1]


def test_a_source_without_any_negatives_never_vanishes(tmp_path):
    bare = _write(tmp_path / "bare.jsonl", *[{"query": "q", "pos": "a"}] * 4)
    rows = [{"query": "q", "pos": "a", "neg": "b"}, {"query": "r", "pos": "a"}]
    some = _write(tmp_path / "some.jsonl", *rows)
    with pytest.raises(DataError, match=r"none: 4 of 4 in .*bare\.jsonl\n  mine some"):
        check_pairs([bare, some], train_group_size=2, missing_negatives="drop")
    with pytest.warns(UserWarning, match="dropped examples without negatives: 1 of 2"):
        check_pairs([{"path": str(some), "negatives": "drop"}], train_group_size=2)


BAD_ENTRIES = [
    (3, "expected a path or a mapping with path, got 3"),
    ({"pth": "a"}, "unknown key 'pth'. Did you mean 'path'?"),
    ({"name": "a"}, "path: expected a file, a folder or hub:NAME, got none"),
    ({"path": ""}, "path: expected a text, got ''"),
    ({"path": "a", "limit": 0}, "limit: expected a whole number from 1, got 0"),
    ({"path": "a", "weight": -1}, "weight: expected a value in [0, 1e9], got -1"),
    ({"path": "a", "negatives": "keep"}, "negatives: expected error or drop, got 'keep'"),
    ({"path": "a", "split": "test"}, "split: expected beside a path hub:NAME, got 'a'"),
    ({"path": "hub:a", "files": [1]}, "files: expected a pattern or a list, got [1]"),
    ({"path": "a", "columns": ["q"]}, "columns: expected a mapping such as"),
    ({"path": "a", "columns": {"query": "q", "posi": "a"}}, "got 'posi'. Did you mean 'pos'?"),
    ({"path": "a", "columns": {"query": "q"}}, "columns.pos: expected a column's name, got none"),
    ({"path": "a", "filter": {"x": {"mn": 1}}}, "filter.x: expected a value, a list, or numbers"),
]


@pytest.mark.parametrize(("entry", "message"), BAD_ENTRIES)
def test_entries_are_checked_before_anything_is_read(entry, message):
    with pytest.raises(DataError) as caught:
        PairEntry.of(entry)
    assert message in str(caught.value)
    override = f"data.train={json.dumps([entry])}"
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [override])
    assert str(caught.value).startswith(("data.train[0]", "data.train: expected a path"))


def test_entries_in_a_recipe(tmp_path):
    path = _write(tmp_path / "a.jsonl", *[{"query": "q", "pos": "a", "neg": "b"}] * 3)
    config = load_config(
        "quickstart",
        [f"data.train=[{path}, {{path: {path}, weight: 3, limit: 2}}]", "data.limit=1"],
    )
    assert config.data.source_weights() == [1.0, 3.0]
    assert [len(s) for s in read_pairs(config.data.train, config.data.limit)] == [1, 1]
    with pytest.raises(ConfigError, match="source_temperature"):
        load_config(
            "quickstart",
            [f"data.train=[{{path: {path}, weight: 3}}]", "data.source_temperature=2"],
        )


def test_only_the_files_that_are_named_are_asked_of_the_hub(monkeypatch):
    table = datasets.Dataset.from_list([{"query": "q", "pos": "a"}])
    asked = replace_builder(monkeypatch, lambda *_: table)
    read_pairs([{"path": "hub:a/b", "files": "x/train-*", "split": "train[:9]", "revision": "abc"}])
    options = {"data_files": {"train": "x/train-*"}, "revision": "abc"}
    assert asked == [("a/b", options, "train[:9]")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_large_source_is_checked_once(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "CACHED_BYTES", 0)
    rows = [{"query": f"q{n}", "pos": "a", "neg": ["b"] * (n % 3), "kind": n % 2} for n in range(9)]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        _write(path, *rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    entry = {"path": str(path), "filter": {"kind": 1}}
    (first,) = read_pairs([entry])

    def again(*_):
        raise AssertionError("checked again")

    with monkeypatch.context() as patched:
        patched.setattr(pairs.EntryPairs, "_check", again)
        (second,) = read_pairs([entry])
        with pytest.raises(AssertionError, match="checked again"):
            read_pairs([{**entry, "limit": 2}])
    assert second.describe() == first.describe()
    assert [second[n] for n in range(4)] == [first[n] for n in range(4)]
    assert second.negative_counts.tolist() == first.negative_counts.tolist() == [1, 0, 2, 1]
    if kind == "jsonl":
        _write(path, *rows, {"query": "", "pos": "a", "kind": 1})
        with pytest.raises(DataError, match='"query" is empty'):
            read_pairs([entry])
