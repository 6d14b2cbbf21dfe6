import json
import math
import subprocess
import sys

import pytest

from hrsa_lightning.errors import DataError
from hrsa_lightning.metrics.heatmaps import HEATMAPS
from hrsa_lightning.similarity import Measurement, read_history, summarize
from hrsa_lightning.similarity.history import (
    MAPS,
    Detail,
    Evaluation,
    append_record,
    cut_history,
    details_path,
    has_other_run,
    read_details,
    read_evaluations,
)


def evaluation(step, **values):
    measurements = [
        Measurement(name, value, layer="output", step=step) for name, value in values.items()
    ]
    return Evaluation(step, measurements, "similarity", 1, 2.0, 0.5)


FULL = Measurement(
    "cka", 0.5, 0.1, "math", "rlvr", "initial", "layer_1", "at@home", 7, 0.4, 0.6, 0.9, 0.2, 0.005
)


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    written = Evaluation(7, [FULL, FULL._replace(arm="a_vs_b")], "similarity", 1, 2.0, 0.5)
    append_record(path, written)
    assert read_evaluations(path) == [written]
    assert read_history(path) == written.measurements
    detail = Detail(3, "cka", [[1.0, 0.5]], "math", "a", "b", "", ["x"], ["x", "y"], "similarity")
    append_record(details_path(path), detail)
    assert read_details(details_path(path)) == [detail]


def test_nan_survives_as_valid_json(tmp_path):
    path = tmp_path / "history.jsonl"
    append_record(path, evaluation(0, cka=math.nan, knn=0.5))
    assert "null" in path.read_text()
    first, second = read_history(path)
    assert math.isnan(first.value)
    assert second.value == 0.5


def test_a_line_that_was_cut_off_is_left_out_and_others_are_named(tmp_path):
    path = tmp_path / "history.jsonl"
    append_record(path, evaluation(0, cka=1.0))
    with path.open("a") as file:
        file.write('{"step": 1, "val')
    assert [m.step for m in read_history(path)] == [0]
    for line, message in (("x", "not valid JSON"), ('{"step": 1}', "expected an evaluation")):
        path.write_text(f"{line}\n")
        with pytest.raises(DataError, match=rf"history\.jsonl:1: {message}"):
            read_history(path)


def test_cutting_keeps_what_the_checkpoint_has_seen(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl"
    for step in (0, 5, 10):
        append_record(source, evaluation(step, cka=1.0))
    assert cut_history(source, target, 5) == [0, 5]
    assert [m.step for m in read_history(target)] == [0, 5]
    assert len(read_history(source)) == 3, "the other run's file stays"
    assert cut_history(tmp_path / "absent.jsonl", tmp_path / "none.jsonl", 5) == []
    assert not (tmp_path / "none.jsonl").exists()


def test_cutting_loses_no_line_that_it_cannot_read(tmp_path):
    path = tmp_path / "a.jsonl"
    append_record(path, evaluation(0, cka=1.0))
    content = path.read_text() + "damage\n[]\n"
    path.write_text(content)
    append_record(path, evaluation(5, cka=0.5))
    assert cut_history(path, path, 5) == [0, 5]
    assert [m.step for m in read_history(path)] == [0, 5]
    assert (tmp_path / "a.jsonl.damaged").read_text().startswith(content)


def test_cutting_takes_records_of_one_run(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for step, run in ((0, "mine"), (5, "yours"), (10, "mine")):
        append_record(source, evaluation(step, cka=1.0)._replace(run=run))
    assert has_other_run(source, "mine")
    assert cut_history(source, target, 20, "mine") == [0, 10]
    assert not has_other_run(target, "mine")
    assert {e.run for e in read_evaluations(target)} == {"mine"}


def test_summary_takes_first_and_last_where_a_value_exists():
    steps = [evaluation(0, cka=1.0), evaluation(5, cka=0.5, knn=0.3), evaluation(9, knn=0.2)]
    rows = summarize(m for step in steps for m in step.measurements)
    found = {row.series.metric: (row.first.value, row.last.value) for row in rows}
    assert found == {"cka": (1.0, 0.5), "knn": (0.3, 0.2)}


def old(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_evaluations(path)


def test_files_of_version_0_1(tmp_path):
    tags = {
        "similarity.math/cka/rlvr_vs_base/layer_1/noun": 0.5,
        "similarity.math/cka_low/rlvr_vs_base/layer_1/noun": 0.4,
        "similarity.math/cka_high/rlvr_vs_base/layer_1/noun": None,
        "similarity.math/variance_share_sample/rlvr/layer_1": 0.1,
        "similarity.math/variance_share_sample/a_vs_b/layer_1": 0.1,
        "similarity.math/cka/a_vs_b_vs_initial/output/at@home": 0.25,
        "similarity/seconds": 2.0,
    }
    floor = {"similarity.math/cka/rlvr_vs_base/layer_1/noun": 0.125}
    first, second = old(
        tmp_path / "similarity.jsonl",
        {"step": 0, "epoch": 0, "seconds": 2.0, "values": tags, "floors": floor},
        {"step": 4, "seconds": 1.0, "values": tags},
    )
    assert (first.monitor, first.seconds, second.step) == ("similarity", 2.0, 4)
    noun, share, _, home = second.measurements
    assert noun[:9] == ("cka", 0.5, 0.125, "math", "rlvr", "base", "layer_1", "noun", 4)
    assert noun.low == 0.4
    assert math.isnan(noun.high)
    expected = Measurement("variance_share_sample", 0.1, None, "math", "rlvr", layer="layer_1")
    assert share == expected._replace(step=4)
    assert home.series[1:] == ("math", "a_vs_b", "initial", "output", "at@home")


def test_single_comparisons_and_scores_of_version_0_1(tmp_path):
    (found,) = old(
        tmp_path / "similarity.jsonl", {"step": 0, "values": {"similarity/cka/output/x": 0.5}}
    )
    reference = Measurement("cka", 0.5, reference="reference", layer="output", label="x")
    assert found.measurements == [reference]
    scores = {"retrieval/mrr@10": 0.5, "retrieval/rlvr/mrr@10": 0.25, "retrieval/seconds": 1.0}
    (found,) = old(tmp_path / "retrieval.jsonl", {"step": 0, "values": scores})
    expected = [Measurement("mrr@10", 0.5), Measurement("mrr@10", 0.25, arm="rlvr")]
    assert found.measurements == expected


def test_a_resumed_run_of_version_0_1_has_one_curve(tmp_path):
    path = tmp_path / "similarity.jsonl"
    path.write_text(json.dumps({"step": 0, "values": {"similarity/cka/output": 1.0}}) + "\n")
    later = Measurement("cka", 0.5, reference="initial", layer="output", step=5)
    append_record(path, Evaluation(5, [later], "similarity"))
    assert read_history(path) == [later._replace(step=0, value=1.0), later]
    path.unlink()
    both = [later, later._replace(reference="reference")]
    append_record(path, Evaluation(5, both, "similarity"))
    assert read_history(path) == both, "a module of the user has that name by default"


def test_details_of_version_0_1(tmp_path):
    path = tmp_path / "similarity.details.jsonl"
    records = [
        {"step": 0, "group": "similarity", "comparison": "", "kind": "cka", "rows": ["a"],
         "columns": ["a", "b"], "values": [[1.0, None]]},
        {"step": 2, "group": "similarity.math", "comparison": "rlvr_vs_base", "where": "output",
         "kind": "row_entropy", "values": [0.5]},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    grid, entropy = read_details(path)
    assert (grid.arm, grid.reference, grid.rows, grid.columns) == (
        "",
        "reference",
        ["a"],
        ["a", "b"],
    )
    assert math.isnan(grid.values[0][1])
    expected = Detail(2, "row_entropy", [0.5], "math", "rlvr", "base", "output")
    assert entropy == expected._replace(monitor="similarity")


def test_the_maps_are_those_of_the_metrics():
    assert tuple(HEATMAPS) == MAPS


def test_histories_are_read_without_torch():
    code = "import sys, hrsa_lightning.similarity.history; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
