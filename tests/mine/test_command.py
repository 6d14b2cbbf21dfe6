"""The mine command as a user runs it, in this process."""

import json

import pytest

from hrsa_lightning.mine.__main__ import main
from tests.evaluate.runs import make_run, write_pairs
from tests.mine.brute import GridEncoder


@pytest.fixture
def grid(monkeypatch):
    """A model that needs no loading stands for what the user names."""
    monkeypatch.setattr(
        "hrsa_lightning.runs.encoder.ModelReference.load", lambda *_: GridEncoder(dim=8, levels=9)
    )


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_negatives_from_an_arm_of_a_run(tmp_path, capsys):
    (tmp_path / "backbones").mkdir()
    run = make_run(tmp_path / "run", tmp_path / "backbones", arms=("base",))
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    out = tmp_path / "mined.jsonl"
    command = [str(pairs), "--model", str(run), "--out", str(out), "--max-relative", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"{len(lines)} of 12 pairs -> {out}" in printed
    assert all(1 <= len(line["neg"]) <= 3 for line in lines)
    summary = json.loads((tmp_path / "mined.summary.json").read_text())
    assert summary["kept"] == len(lines)
    assert f"{summary['negatives_mined']}  mined" in printed
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err


def test_flags_reach_the_mining(tmp_path, grid):
    pairs = [write_pairs(tmp_path / "a.jsonl"), write_pairs(tmp_path / "b.jsonl", 8)]
    out, work = tmp_path / "out", tmp_path / "work"
    command = [*map(str, pairs), "--model", "some/model", "--out", str(out), "--work-dir"]
    command += [str(work), "--num-negatives", "2", "--rank-range", "1", "9", "--max-relative"]
    command += ["0.9", "--corpus", "shared", "--keep-existing", "--keep", "below", "--margin"]
    command += ["0.8", "--max-examples", "5", "--min-negatives", "2", "--faiss"]
    assert main(command) == 0
    assert json.loads((out / "summary.json").read_text())["options"] == {
        "num_negatives": 2,
        "rank_range": [1, 9],
        "max_relative": 0.9,
        "corpus": "shared",
        "keep_existing": True,
        "min_negatives": 2,
        "keep": "below",
        "margin": 0.8,
        "max_examples": 5,
        "faiss": True,
    }
    assert (out / "a.jsonl").is_file()
    assert [path.suffixes for path in work.glob("*.passages.f32")]


LINES = {
    "missing column": ('{"query": "q", "neg": ["n"]}', "none is a column"),
    "empty text": ('{"query": "q", "pos": [" "]}', '"pos[0]" is empty'),
    "ragged negatives": ('{"query": "q", "pos": ["p"], "neg": ["n", 3]}', '"neg[1]" must be'),
    "not UTF-8": (b'{"query": "\xff", "pos": ["p"]}', "not UTF-8 at byte 12"),
    "too few passages": ('{"query": "q", "pos": ["p"]}', "1 different passages are too few"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_pairs_are_one_line_and_nothing_is_written(case, tmp_path, capsys):
    line, message = LINES[case]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(line.encode() if isinstance(line, str) else line)
    code = main([str(file), "--model", "some/model", "--out", str(tmp_path / "out.jsonl")])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "pairs.jsonl" in error
    assert error.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "./missing"], "model './missing': no such folder"),
        (["--keep", "over"], "keep: expected one of below, above, got 'over'"),
        (["--margin", "0.5"], "--margin needs --keep below or --keep above"),
        (["--out", "missing/out.jsonl"], "out: expected a folder"),
        (["--rank-range", "5", "6"], "rank_range: expected ranks for 3 negatives, got 1"),
    ],
)
def test_mistakes_in_flags_are_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    code = main(["pairs.jsonl", "--model", "some/model", "--out", "out.jsonl", *flags])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
