import pickle
import subprocess
import sys
import textwrap

import pytest

from hrsa_lightning.data import ContrastivePair, check_pairs, read_pairs
from hrsa_lightning.errors import DataError
from tests.data.helpers import pair, write_lines, write_pairs


def test_each_file_is_a_source_and_every_line_comes_back(tmp_path):
    paths = write_pairs(tmp_path, {"a": 3, "b": 2})
    sources = read_pairs(paths)
    assert [source.name for source in sources] == [str(path) for path in paths]
    assert [len(source) for source in sources] == [3, 2]
    assert sources[1][1] == ContrastivePair(
        ("find it", "b query 1"),
        ("b positive 1 0", "b positive 1 1"),
        tuple(f"b negative 1 {which}" for which in range(4)),
    )


def test_lines_of_any_ending_and_script(tmp_path):
    texts = ["ascii", "größer", "漢字", "🙂", "line\u2028separator", "tab\tnew\nline"]
    lines = [b"\xef\xbb\xbf" + b'{"query": "first", "pos": ["a"]}\r', "", "   "]
    path = write_lines(
        tmp_path / "a.jsonl", [*lines, *({"query": text, "pos": [text]} for text in texts)]
    )
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # no newline at the end
    (source,) = read_pairs([path])
    assert [pair.query for pair in source] == ["first", *texts]
    assert source.negative_counts.tolist() == [0] * 7


def test_sources_pickle_after_use(tmp_path):
    (source,) = read_pairs(write_pairs(tmp_path, {"a": 3}))
    assert source[2] == pickle.loads(pickle.dumps(source))[2]


def test_open_sources_pass_through(tmp_path):
    sources = read_pairs(write_pairs(tmp_path, {"a": 1}))
    assert read_pairs(sources) == sources


def test_all_problems_of_all_files_in_one_error(tmp_path):
    bad = write_lines(
        tmp_path / "bad.jsonl",
        [
            pair("bad", 0),
            "{not json",
            b'{"query": "caf\xe9", "pos": ["a"]}',
            {"query": "q"},
            "",
            {"query": "q", "pos": ["a", " "]},
            "[" * 100_000,
            "\x00",
        ],
    )
    worse = write_lines(tmp_path / "worse.jsonl", ["{", pair("worse", 1)])
    with pytest.raises(DataError) as caught:
        read_pairs([bad, tmp_path / "worst.jsonl", worse])
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "8 problems in the data:"
    assert lines[1].startswith(f"{bad}:2: not valid JSON: Expecting property name")
    assert lines[2] == f"{bad}:3: not UTF-8 at byte 15 of the line"
    assert lines[3].startswith(f'{bad}:4: "pos", "positive", "positive_passages"')
    assert lines[4].startswith("write columns: {query: NAME, pos: NAME")
    assert lines[5] == f'{bad}:6: "pos[1]" is empty'
    assert lines[6] == f"{bad}:7: not valid JSON: nested too deeply"
    assert lines[7].startswith(f"{bad}:8: not valid JSON")
    assert lines[8] == (
        f"{tmp_path / 'worst.jsonl'}: no such file or folder, did you mean {worse}?"
    )
    assert lines[9].startswith(f"{worse}:1: not valid JSON")
    assert len(lines) == 10


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["nonsense"] * 250)
    with pytest.raises(DataError) as caught:
        read_pairs([path])
    lines = str(caught.value).splitlines()
    assert lines[0] == "250 problems in the data:"
    assert lines[-1] == "  ... and 240 more"
    assert len(lines) == 12


def test_a_single_problem_is_a_single_line(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair("a", 0), {"query": "q", "pos": []}])
    with pytest.raises(DataError) as caught:
        read_pairs([path])
    assert str(caught.value) == f'{path}:2: "pos" has no text'


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"^no pairs in .*empty\.jsonl$"):
        read_pairs([tmp_path / "empty.jsonl"])


def test_no_file():
    with pytest.raises(DataError, match="no file of contrastive pairs"):
        read_pairs([])


def test_unknown_kind_of_file(tmp_path):
    (tmp_path / "pairs.tsv").write_text("query,pos\n")
    with pytest.raises(
        DataError, match=r"pairs\.tsv: expected a file \(\.jsonl, \.ndjson, \.parquet, \.j"
    ):
        read_pairs([tmp_path / "pairs.tsv"])


def test_check_answers_what_training_would(tmp_path):
    paths = write_pairs(tmp_path, {"a": 5}, num_negatives=0)
    check_pairs(paths, train_group_size=1, batch_size=5)
    with pytest.raises(DataError, match="needs hard negatives"):
        check_pairs(paths, train_group_size=4)
    with pytest.raises(DataError, match="batch_size is 6, but there are only 5 examples"):
        check_pairs(paths, batch_size=6)


def test_reading_and_checking_import_no_torch(tmp_path):
    (path,) = write_pairs(tmp_path, {"a": 5})
    program = f"""
        import sys
        from hrsa_lightning.data import (
            ContrastiveDataset, check_pairs, read_pairs, read_retrieval_set
        )
        check_pairs([{str(path)!r}], train_group_size=4, batch_size=2)
        assert len(ContrastiveDataset(read_pairs([{str(path)!r}]))[0, 0, 0].passages) == 4
        heavy = {{"torch", "lightning", "transformers", "datasets", "pyarrow"}} & set(sys.modules)
        sys.exit(f"imported: {{heavy}}" if heavy else 0)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
