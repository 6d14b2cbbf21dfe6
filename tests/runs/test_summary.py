import json
from types import SimpleNamespace

import numpy as np
import pytest

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.report import summary_lines, write_report
from hrsa_lightning.runs.summary import (
    Control,
    find_controls,
    read_controls,
    write_summary,
)
from hrsa_lightning.similarity.history import Evaluation, append_record
from hrsa_lightning.similarity.measurement import Measurement


def _record(step, values, **extras):
    return json.dumps({"step": step, "values": values, **extras}) + "\n"


def _write(folder):
    floors = {"similarity/cka/rlvr_vs_base/output": 0.0}
    (folder / "similarity.jsonl").write_text(
        _record(
            0,
            {
                "similarity/cka/rlvr_vs_base/output": 0.5,
                "similarity/cka/rlvr_vs_base/layer_1": 0.1,
                "similarity/cka/rlvr_vs_initial/output": 1.0,
                "similarity/inverse_row_entropy/rlvr_vs_base/output": None,
                "similarity/seconds": 1.0,
            },
            floors=floors,
        )
        + _record(
            9,
            {
                "similarity/cka/rlvr_vs_base/output": 0.75,
                "similarity/cka/rlvr_vs_initial/output": 0.25,
                "similarity/inverse_row_entropy/rlvr_vs_base/output": None,
            },
        )
    )
    (folder / "retrieval.jsonl").write_text(
        _record(0, {"retrieval/rlvr/mrr@10": 0.125}) + _record(9, {"retrieval/rlvr/mrr@10": 0.5})
    )


def test_tables_and_answer_in_the_words_of_the_report(tmp_path):
    _write(tmp_path)
    assert summary_lines(tmp_path) == [
        "",
        "similarity at output, before → after",
        "",
        "|     | rlvr vs base  | chance |",
        "|-----|---------------|--------|",
        "| cka | 0.500 → 0.750 | 0.000  |",
        "",
        "each arm against its own start at output, at the end",
        "",
        "|     | rlvr  |",
        "|-----|-------|",
        "| cka | 0.250 |",
        "",
        "retrieval on held-out pairs, before → after",
        "",
        "|        | rlvr          |",
        "|--------|---------------|",
        "| mrr@10 | 0.125 → 0.500 |",
        "",
        "Realignment (training brings two models together) was seen: rlvr vs base.",
        "",
        "rlvr and base moved together.",
        "    linear CKA 0.500 → 0.750",
        "",
        "Retrieval: MRR@10 before and after training",
        "    rlvr 0.125 → 0.500",
        "",
        "How sure: one seed, so no interval. This is what one run shows; another seed may differ.",
        "No seed control stands beside rlvr vs base: nothing tells a move from what a seed alone",
        "does.",
        "",
        "For scale: training takes rlvr away from its start, to",
        "    linear CKA 0.250",
    ]
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    for words in ("rlvr and base moved together**.", "Retrieval**: MRR@10 before and after"):
        assert words in page


def test_summary_file_holds_every_value(tmp_path):
    _write(tmp_path)
    write_summary(tmp_path, steps=9, seconds=12.34)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["seconds"]) == (9, 12.3)
    values = {(v["comparison"], v["where"], v["metric"]): v for v in summary["values"]}
    assert values["rlvr_vs_base", "output", "cka"]["last"] == 0.75
    assert values["rlvr_vs_base", "output", "inverse_row_entropy"]["last"] is None
    assert values["rlvr", "held_out", "mrr@10"]["first"] == 0.125


def test_a_run_without_histories_has_no_tables(tmp_path):
    assert summary_lines(tmp_path) == []


def test_monitors_of_other_names_have_tables_too(tmp_path):
    """As in the recipe `solo`, whose only monitor is called `against_other`."""
    values = {"against_other/cka/base_vs_other/output": 0.5}
    (tmp_path / "against_other.jsonl").write_text(_record(0, values) + _record(9, values))
    (tmp_path / "against_other.details.jsonl").write_text("")
    text = "\n".join(summary_lines(tmp_path))
    assert "against_other at output, before → after" in text
    assert "0.500 → 0.500" in text
    write_summary(tmp_path, steps=9, seconds=1.0)
    (value,) = json.loads((tmp_path / "summary.json").read_text())["values"]
    assert (value["metric"], value["comparison"]) == ("cka", "base_vs_other")


def _controls(folder, overrides=(), *, dropout=False, negatives=(2, 3)):
    config = load_config(
        "quickstart",
        ["arms.rlvr.seed=7", "data.train_group_size=3", *overrides],
    )
    sources = [SimpleNamespace(negative_counts=np.array(negatives))]
    return find_controls(config, sources, dropout=dropout, folder=folder)


def _write_control(folder, last):
    for step, value in enumerate((1.0, last)):
        record = Measurement(
            "cka",
            value,
            arm="base_seed2",
            reference="base",
            layer="output",
            identity=1.0,
            step=step,
        )
        append_record(folder / "similarity.jsonl", Evaluation(step, [record]))


@pytest.mark.parametrize(
    ("options", "varied"),
    [
        ({}, ("order of batches", "drawn negatives", "adapters")),
        # Two negatives of two, or of one: nothing is drawn.
        ({"negatives": (2, 1)}, ("order of batches", "adapters")),
        (
            {"overrides": ["model.lora=null"], "dropout": True},
            ("order of batches", "drawn negatives", "dropout"),
        ),
    ],
)
def test_a_control_says_what_its_seed_varied(tmp_path, options, varied):
    assert _controls(tmp_path, **options) == [Control("base_seed2", "base", varied)]
    assert _controls(tmp_path, ["arms.base_seed2.seed=1016"]) == []


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (0.9999, "base_seed2 is base with its own order of batches, drawn negatives and adapters"),
        (1 - 1e-15, "base_seed2 is no control of base: the two never differed"),
    ],
)
def test_a_control_that_ends_identical_is_none_in_words_and_in_the_file(tmp_path, last, words):
    _write_control(tmp_path, last)
    (tmp_path / "config.yaml").write_text(to_yaml(load_config("quickstart")))
    controls = _controls(tmp_path)
    assert words in " ".join(summary_lines(tmp_path, controls))
    write_summary(tmp_path, steps=1, seconds=1.0, controls=controls)
    assert read_controls(json.loads((tmp_path / "summary.json").read_text())) == controls
    assert words in " ".join(summary_lines(tmp_path))
    assert read_controls({"steps": 1}) == []
