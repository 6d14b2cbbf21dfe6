"""The plan command."""

import json
import socket

import pytest

from hrsa_lightning.plan.__main__ import main


def test_every_part_is_printed(capsys):
    settings = ["recipe=quickstart", "arms.sft=null", "trainer.devices=2", "activation_budget=auto"]
    assert main([*settings, "--memory", "80"]) == 0
    said = capsys.readouterr().out
    for text in (
        "155.65 k trained",
        "weights",
        "optimizer",
        "kept graphs",
        "gradients",
        "monitor",
        "80 steps",
        "550 probes, 5 layers",
        "of 80 GB",
    ):
        assert text in said, text
    assert max(map(len, said.splitlines())) <= 100


def test_json_has_the_same_figures(capsys):
    arms = ["arms.sft=null", "arms.base_seed2=null", "arms.rlvr=null", "callbacks.similarity=null"]
    assert main(["recipe=quickstart", *arms, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["total_memory"] == pytest.approx(sum(plan["memory"].values()))
    assert plan["arms"]["base"]["num_trained"] == 155_648
    assert plan["monitoring"]["device_bytes"] > 0  # of the retrieval monitor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one recipe=NAME"),
        (["recipe=quikstart"], "Did you mean 'quickstart'"),
        (["recipe=quickstart", "--examples", "0"], "--examples: expected a value above 0"),
        (["recipe=quickstart", "trainer.devices=5"], "do not divide over 5 processes"),
        (["recipe=quickstart", "trainer.devices=-1"], "trainer.devices"),
        (["recipe=quickstart", "arms.base.backbone=no-one/nothing"], "none of those known offline"),
    ],
)
def test_mistakes_end_with_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


@pytest.fixture
def cut(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_recipes_are_planned_without_a_network(cut, capsys):
    settings = ["callbacks.similarity=null", "data.query_length=32", "data.passage_length=32"]
    assert main(["recipe=qwen3-4b-psr", "trainer.devices=1", *settings]) == 0
    said = capsys.readouterr().out
    assert "rlvr         ./path/of/your/Qwen3-4B-PSR: " in said
    assert "not here: as base" in said
    assert "the run: 811 steps" in said  # of the pairs that recipe=public records
    assert main(["recipe=solo", "arms.model.backbone=no-one/nothing", *settings]) == 2
    assert "(--online asks the hub)" in capsys.readouterr().err


def test_on_a_cpu_everything_is_in_one_memory(capsys):
    assert main(["recipe=quickstart", "activation_budget=auto", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["runtime"] > 2e8  # of this process
    assert memory["representations"] > 0
    assert memory["checkpoint copy"] > 3 * memory["gradients"]
    assert memory["kept graphs"] > 0  # from what is free now
    assert main(["recipe=quickstart"]) == 0
    assert "GPU" not in capsys.readouterr().out


def test_pairs_of_any_kind_are_counted(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = [{"query": "q", "pos": "a", "neg": "b"}] * 70
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    entries = f"[{tmp_path}/a.parquet, {{path: {tmp_path}/*.parquet, limit: 30}}]"
    settings = [f"data.train={entries}", "data.batch_size=10", "trainer.max_steps=-1"]
    assert main(["recipe=quickstart", *settings, "callbacks.similarity=null"]) == 0
    said = capsys.readouterr().out
    assert "the run: 10 steps" in said
    assert "over 100 pairs of the files" in said
