import pytest

from hrsa_lightning.data import ProbeText, read_texts
from hrsa_lightning.errors import DataError
from tests.data.helpers import write_lines


def test_json_lines(tmp_path):
    path = write_lines(
        tmp_path / "probes.jsonl",
        [
            {"id": "n/1", "text": "größer", "label": "noun"},
            "",
            {"text": "second", "label": None},
            {"text": "third", "label": 3, "id": 9},
        ],
    )
    assert read_texts(path) == [
        ProbeText("n/1", "größer", "noun"),
        ProbeText("3", "second"),
        ProbeText("9", "third", "3"),
    ]


def test_plain_lines(tmp_path):
    path = tmp_path / "probes.txt"
    path.write_bytes("\ufefffirst\r\n\n  größer \nlast".encode())
    assert read_texts(str(path)) == [
        ProbeText("1", "first"),
        ProbeText("3", "größer"),
        ProbeText("4", "last"),
    ]


def test_problems_are_listed(tmp_path):
    path = write_lines(
        tmp_path / "p.jsonl",
        [{"text": "a", "id": "x"}, {"txt": "a"}, "{", {"text": ""}, {"text": "b", "id": "x"}, "[]"],
    )
    with pytest.raises(DataError) as caught:
        read_texts(path)
    lines = sorted(line.strip() for line in str(caught.value).splitlines())
    assert len(lines) == 6
    assert f'{path}:2: "text" must be a text, got null' in lines
    assert any(line.startswith(f"{path}:3: not valid JSON") for line in lines)
    assert f'{path}:4: "text" is empty' in lines
    assert f'{path}:5: id "x" is already that of line 1' in lines
    assert f'{path}:6: expected an object with "text"' in lines


def test_plain_text_that_is_not_utf8(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"p\.txt:2: not UTF-8 at byte 4 of the line"):
        read_texts(tmp_path / "p.txt")


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: no such file or folder$"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: no texts in the file"):
        read_texts(tmp_path / "empty.txt")
