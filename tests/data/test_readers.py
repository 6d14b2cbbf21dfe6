"""Pairs, texts and probes are read alike: the same files are taken, and the same refused."""

import codecs
import gzip
import os
from pathlib import Path

import pytest

from hrsa_lightning.callbacks.retrieval import read_retrieval_pairs
from hrsa_lightning.data import read_pairs
from hrsa_lightning.errors import DataError
from hrsa_lightning.io.sources import TextEntry
from hrsa_lightning.similarity.probes import load_probes

ODD = ["line\u2028separator", "next\u0085line", "form\x0cfeed", "größer"]
ORDER = {text: number for number, text in enumerate(ODD)}  # probes are ordered by length


def _pairs_of(path):
    return [pair.query for source in read_pairs([path]) for pair in source]


def _probes_of(path):
    probes = load_probes(path, size=4, label_key=None, limit=None, shard=0, shards=1)
    return sorted(probes.texts, key=lambda text: ORDER.get(text, 0))


READERS = {
    "pairs": _pairs_of,
    "held-out pairs": lambda path: [pair.query for pair in read_retrieval_pairs(path)],
    "probes": _probes_of,
    "comparison": lambda path: TextEntry.of(path).read().texts,
}


def _line(text: str) -> str:
    escaped = text.replace("\x0c", "\\f")
    return f'{{"query": "{escaped}", "pos": ["a"], "text": "{escaped}"}}\n'


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson"])
def test_lines_of_any_script_with_a_mark(tmp_path, reader, name):
    path = tmp_path / name
    path.write_bytes(codecs.BOM_UTF8 + "".join(map(_line, ODD)).encode())
    assert READERS[reader](path) == ODD


BAD = {
    "latin-1": (_line("größer").encode("latin-1"), ":1: not UTF-8 at byte 14 of the line"),
    "utf-16": (_line("a").encode("utf-16"), "expected text in UTF-8, got UTF-16"),
    "gzip": (gzip.compress(_line("a").encode()), "expected text in UTF-8, got a gzip file"),
    "deep": (b"[" * 100_000, ":1: not valid JSON: nested too deeply"),
    "surrogate": (_line("\\ud800").encode(), "has half of a surrogate pair"),
    "digits": (b'{"text": ' + b"9" * 5000 + b"}", ":1: not valid JSON"),
    "empty": (b"\n", "no "),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_text_is_said(tmp_path, reader, kind):
    content, message = BAD[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    if (kind, reader) == ("empty", "held-out pairs"):
        assert READERS[reader](path) == []  # the monitor says what it needs
        return
    with pytest.raises(DataError) as caught:
        READERS[reader](path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl.gz", "a.npz"])
def test_other_files_are_never_taken_for_plain_text(tmp_path, reader, name):
    path = tmp_path / name
    path.write_text("query,pos\n")
    with pytest.raises(DataError, match=r"expected a file|not valid JSON|cannot be unpacked"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_not_waited_for(tmp_path, reader):
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match="expected a file, got a pipe or a device"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a" * 5000 + ".jsonl", "none/a.jsonl", "there/a.jsonl"])
def test_files_that_are_not_there(tmp_path, reader, name):
    (tmp_path / "there").write_text("")
    with pytest.raises(DataError, match="no such file or folder"):
        READERS[reader](Path(tmp_path / name))


def test_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF8 + "first\r\n\nse\u2028cond\n".encode())
    for reader in ("probes", "comparison"):
        assert READERS[reader](path) == ["first", "se\u2028cond"]
