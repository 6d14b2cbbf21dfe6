"""The plan command."""

import json

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
        "100 steps",
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
