import json

import pytest

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.files import read_json, replacing, write_json, write_text
from hrsa_lightning.io.json_lines import read_json_lines


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"a": [1, None]}
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match=r"list\.json: expected a JSON object, got list"):
        read_json(tmp_path / "list.json")
    with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")


def test_lines_end_at_line_breaks_only(tmp_path):
    # U+2028 and form feed end a line for `str.splitlines`, and are plain characters in JSON.
    texts = ["one\u2028two", "a\u0085b"]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\n\n{lines[1]}\n".encode())
    read = list(read_json_lines(path))
    assert [line.value["text"] for line in read] == texts
    assert [line.number for line in read] == [1, 3]
    content = path.read_bytes()
    assert [json.loads(content[line.start : line.end])["text"] for line in read] == texts


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    steps = [line.value["step"] for line in read_json_lines(path, ended_only=True)]
    assert steps == [1, 2]
    with pytest.raises(DataError, match=r"history\.jsonl:3: not valid JSON"):
        list(read_json_lines(path))


def test_problems_may_be_collected(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nnone\n"\xff"\n' + b"[" * 100_000 + b"\n2\n")
    found = []
    values = [line.value for line in read_json_lines(path, lambda *problem: found.append(problem))]
    assert values == [{"a": 1}, 2]
    assert [where.rpartition(":")[2] for where, _ in found] == ["2", "3", "4"]
    assert "not UTF-8 at byte 2" in found[1][1]
