import json

import pytest

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.sources import PRESETS, TextEntry
from tests.hub import make_dataset, replace_hub


def load_texts(source, **options):
    return TextEntry.of({"path": source, **options}).read()


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_reads_columns_and_labels_of_json_lines(tmp_path):
    records = [{"body": "one", "kind": 1}, {"body": "two", "kind": 2}, {"body": "three", "kind": 1}]
    source = write(tmp_path / "a.jsonl", records)
    texts = load_texts(source, text="body", label="kind", limit=2)
    assert (texts.texts, texts.labels) == (["one", "two"], ["1", "2"])
    assert load_texts(source, text="body").labels is None


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
        texts = load_texts(str(tmp_path / name), text="body")
        assert (texts.texts, texts.labels) == (["one", "two"], ["0", "1"])
    with pytest.raises(DataError, match='row 0: text: no column "text"'):
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
        ("nothing.txt", {}, "no such file"),
        ("embedded:tiny/probes.jsonl", {"split": "test"}, "split: expected beside a path hub:NAME"),
        ("embedded:tiny/probes.jsonl", {"text": "content"}, "found id, text, label"),
        ("embedded:tiny/probes.jsonl", {"label": "kind"}, r'label: no column "kind"'),
    ],
)
def test_mistakes_are_named(source, options, message):
    with pytest.raises(DataError, match=message):
        load_texts(source, **options)


# The columns that the cards of the data sets on the hub document, and two rows of them.
HUB = {
    "openai/gsm8k": {"question": "What is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "HuggingFaceH4/MATH-500": {
        "problem": "What is $1+1$?",
        "solution": "It is $\\boxed{2}$.",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "TIGER-Lab/MMLU-Pro": {
        "question_id": 70,
        "question": "Which?",
        "options": ["this", "that"],
        "answer": "A",
        "answer_index": 0,
        "cot_content": "",
        "category": "law",
        "src": "ori_mmlu",
    },
    "fancyzhx/ag_news": {"text": "Stocks rose.", "label": 2},
}
TEXTS = {
    "paper_tokens": ("What is $1+1$?\nIt is $\\boxed{2}$.", None),
    "general": ("Which?\nthis\nthat", "law"),
    "reasoning": ("What is 1 + 1?\n1 + 1 = <<1+1=2>>2\n#### 2", None),
    "reasoning_math": ("What is $1+1$?\nIt is $\\boxed{2}$.", "Algebra"),
    "labels": ("Stocks rose.", "2"),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folders of these names with the documented columns, in the place of the hub."""
    for name, row in HUB.items():
        config = "main" if name == "openai/gsm8k" else "default"
        file = f"{config}/test-00000-of-00001.parquet"
        make_dataset(tmp_path / name, [row] * 6, {config: file}, split="test")
    replace_hub(monkeypatch, tmp_path)


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("tiny")])
def test_presets_of_the_hub_read_the_documented_columns(name, hub):
    entry = TextEntry.of({"preset": name, "limit": 4})
    found = entry.read()
    text, label = TEXTS[name]
    assert found.texts == [text] * 4
    assert found.labels == (None if label is None else [label] * 4)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_presets_of_the_package_need_no_network(name):
    found = TextEntry.of(f"preset:{name}").read()
    assert len(found.texts) >= 128
    assert (len(set(found.labels or [])) > 1) == (name != "tiny_tokens")


def test_an_address_says_configuration_split_and_number(hub):
    entry = TextEntry.of("hub:openai/gsm8k:main@test:3")
    assert (entry.hub_name, entry.limit) == ("openai/gsm8k", 3)
    assert len(TextEntry.of({"path": entry.path, "text": "{question} {answer}"}).read().texts) == 3
    assert TextEntry.of("hub:a/b@train[:100]").limit is None
    for wrong in ("hub:openai/gsm8k:main@train", "hub:openai/gsm8k:socratic@test"):
        with pytest.raises(DataError, match="datasets cannot read it") as caught:
            TextEntry.of(wrong).read()
        assert len(str(caught.value).splitlines()) == 1


def test_numbers_of_classes_become_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sports"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    assert load_texts(str(tmp_path / "saved")).labels == ["Sports", "World"]


def test_spread_takes_texts_from_the_whole_of_a_sorted_source(tmp_path):
    records = [{"text": str(n), "kind": n // 5} for n in range(20)]
    source = write(tmp_path / "a.jsonl", records)
    assert load_texts(source, limit=4, spread=True).texts == ["0", "5", "10", "15"]
    kept = load_texts(source, limit=2, spread=True, filter={"kind": [2, 3]})
    assert kept.texts == ["10", "15"]


def test_a_preset_with_a_file_of_your_own_traces(tmp_path):
    traces = [{"prompt": "1+1?", "solution": "2", "answer": "2", "correct": right}
              for right in (True, False)]  # fmt: skip
    source = write(tmp_path / "traces.jsonl", traces)
    entry = TextEntry.of({"preset": "paper_tokens", "path": source, "filter": {"correct": True}})
    assert entry.read().texts == ["1+1?\n2"]
    assert (entry.level, entry.max_length, entry.limit) == ("token", 8000, None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preset": "reasonin"}, "preset: expected one of .* Did you mean 'reasoning'"),
        ({"path": "a.txt", "level": "word"}, "level: expected token or pooled, got 'word'"),
        ({"path": "a.txt", "max_tokens": 5}, "max_tokens: expected beside level: token"),
        ({"path": "a.txt", "max_length": 0}, "max_length: expected a whole number from 1, got 0"),
        ({"path": "a.txt", "spread": 3}, "spread: expected true or false, got 3"),
        ({"path": "a.txt", "colum": "x"}, "unknown key 'colum'"),
        ({"path": "embedded:tiny/probes.jsonl", "text": "{a}"}, 'text: no column "a"; found id'),
    ],
)
def test_mistakes_of_an_entry_get_one_line(entry, message):
    with pytest.raises(DataError, match=message) as caught:
        TextEntry.of(entry).read()
    assert len(str(caught.value).splitlines()) == 1
