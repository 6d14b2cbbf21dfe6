import json

import pytest

from hrsa_lightning.compare.texts import load_texts
from hrsa_lightning.errors import DataError


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_reads_columns_and_labels_of_json_lines(tmp_path):
    records = [{"body": "one", "kind": 1}, {"body": "two", "kind": 2}, {"body": "three", "kind": 1}]
    source = write(tmp_path / "a.jsonl", records)
    texts = load_texts(source, column="body", label="kind", limit=2)
    assert (texts.texts, texts.labels) == (["one", "two"], ["1", "2"])
    assert load_texts(source, column="body").labels is None


def test_labels_are_taken_where_every_record_has_one(tmp_path):
    records = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    assert load_texts(write(tmp_path / "a.jsonl", records)).labels == ["a", "b"]
    del records[1]["label"]
    assert load_texts(write(tmp_path / "b.jsonl", records)).labels is None
    with pytest.raises(DataError, match=r'b.jsonl:2: "label" is missing'):
        load_texts(write(tmp_path / "b.jsonl", records), label="label")


def test_reads_plain_lines_and_json_strings(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert load_texts(str(tmp_path / "a.txt")).texts == ["one", "two"]
    assert load_texts(write(tmp_path / "a.jsonl", ["one", "two"])).texts == ["one", "two"]


def test_reads_tables(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"body": ["one", "two"], "label": [0, 1]})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        texts = load_texts(str(tmp_path / name), column="body")
        assert (texts.texts, texts.labels) == (["one", "two"], ["0", "1"])
    with pytest.raises(DataError, match='row 0: no column "text"'):
        load_texts(str(tmp_path / "a.parquet"))


def test_names_every_bad_line_in_one_error(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n{"text": ""}\n[1]\n{"text": 3}\nnot json\n')
    with pytest.raises(DataError) as caught:
        load_texts(str(source))
    for part in ("4 problems", ':2: "text" is empty', ":3: expected", ":4: ", ":5: not valid JSON"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nothing.txt", {}, "no such file.*hub:NAME"),
        ("embedded:tiny/probes.jsonl", {"split": "test"}, "--split test"),
        ("embedded:tiny/probes.jsonl", {"column": "content"}, "found id, text, label"),
        ("embedded:tiny/probes.jsonl", {"label": "kind"}, r'no column "kind" \(--label\)'),
    ],
)
def test_mistakes_are_named(source, options, message):
    with pytest.raises(DataError, match=message):
        load_texts(source, **options)
