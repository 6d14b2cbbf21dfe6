"""The evaluate command as a user runs it, in this process."""

import json
import sys

import pytest

from hrsa_lightning.evaluate.__main__ import main
from tests.evaluate.runs import make_run, write_pairs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "backbones").mkdir()
    arms = ("base", "rlvr", "base_seed2")
    return [
        str(make_run(folder / name, folder / "backbones", arms, seed=seed))
        for name, seed in [("first", 1), ("second", 2)]
    ]


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_seeds_differences_and_the_null_effect(runs, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "own.jsonl")
    out = tmp_path / "out"
    assert main([*runs, "--pairs", str(pairs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "base (2 seeds)" in printed
    assert "| chance" in printed
    assert printed.count("null effect: same backbone, another seed") == 2
    assert (out / "results.md").read_text() in printed
    results = json.loads((out / "results.json").read_text())
    assert list(results["arms"]) == ["base", "rlvr", "base_seed2"]
    base = results["arms"]["base"]["tasks"]["own"]
    scores = [results["models"][f"{run}:base"]["own"]["ndcg@10"] for run in runs]
    assert base["mean"] == pytest.approx(sum(scores) / 2)
    assert base["num_seeds"] == 2
    rows = results["differences"]
    assert [row["control"] for row in rows] == [False, True, True]
    assert [row["arm"] for row in rows[:2]] == ["rlvr", "base_seed2"]
    assert all(row["num_pairs"] == 12 and row["unit"] == "query" for row in rows)
    rlvr = results["arms"]["rlvr"]["tasks"]["own"]["mean"]
    assert rows[0]["mean"] == pytest.approx(rlvr - base["mean"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # mteb's own
def test_tasks_of_mteb_through_the_command(runs, tmp_path, monkeypatch, capsys):
    """Per-task instructions, seeds, paired test, null effect and cache, with two local tasks."""
    pytest.importorskip("mteb", reason="the extra `eval` is not installed")
    from tests.evaluate.local_task import LocalRetrieval, SecondRetrieval

    tasks = [LocalRetrieval(), SecondRetrieval()]
    tasks[0].pairs = write_pairs(tmp_path / "first.jsonl", 9)
    tasks[1].pairs = write_pairs(
        tmp_path / "second.jsonl", 7, SecondRetrieval.metadata.prompt["query"]
    )
    names = [task.metadata.name for task in tasks]
    monkeypatch.setattr(
        "hrsa_lightning.evaluate.benchmarks.find_tasks",
        lambda asked: [task for task in tasks if task.metadata.name in asked],
    )
    out = tmp_path / "out"
    assert main([*runs, "--tasks", *names, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "base (2 seeds)" in printed
    assert "| SecondRetrieval (ndcg_at_10)" in printed
    assert "| mean of tasks" in printed
    assert printed.count("null effect: same backbone, another seed") == 2
    results = json.loads((out / "results.json").read_text())

    # the pairs have the tasks' instructions, and are scored without mteb
    own = ["--pairs", str(tasks[0].pairs), str(tasks[1].pairs), "--out", str(tmp_path / "own")]
    assert main([*runs, *own]) == 0
    expected = json.loads((tmp_path / "own" / "results.json").read_text())
    for model, scores in results["models"].items():
        for name, stem in zip(names, ("first", "second"), strict=True):
            right = expected["models"][model][stem]["ndcg@10"]
            assert scores[name]["ndcg_at_10"] == pytest.approx(right, abs=1e-5)
    for row, other in zip(results["differences"], expected["differences"], strict=True):
        assert (row["unit"], row["num_pairs"]) == ("task", 2)
        assert row["mean"] == pytest.approx(other["mean"], abs=1e-5)
        assert row["control"] == other["control"]
    assert results["arms"]["rlvr"]["tasks"]["mean of tasks"]["num_seeds"] == 2

    capsys.readouterr()
    monkeypatch.setattr("hrsa_lightning.runs.encoder.ModelReference.load", None)
    assert main([*runs, "--tasks", *names, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text()) == results
    assert main([*runs, "--tasks", names[0], "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| 1 subset " in printed
    assert "nan" not in printed


def test_default_task_is_the_embedded_one(tmp_path, capsys):
    command = ["embedded:tiny/base", "--out", str(tmp_path), "--max-length", "64"]
    assert main(command) == 0
    assert "embedded (ndcg@10)" in capsys.readouterr().out
    (scores,) = json.loads((tmp_path / "results.json").read_text())["models"].values()
    # far above chance, which finds one of 2,000 passages among ten in one query of 200
    assert 0.05 < scores["embedded"]["recall@10"] < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./missing"], "model './missing': no such folder"),
        (["{run}:ghost"], "has no arm 'ghost'"),
        (["{run}", "--baseline", "bsae"], "baseline: no arm 'bsae'. Did you mean 'base'?"),
        (["{run}", "{run}:base"], "is given twice"),
        (["{run}", "--pairs", "missing.jsonl"], "missing.jsonl: no such file"),
        (["{run}", "--out", __file__], "is a file; expected a folder"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    arguments, message, runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([text.replace("{run}", runs[0]) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_mteb_is_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mteb", None)
    assert main([runs[0], "--tasks", "SciFact", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'mteb>=2.26,<3'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
