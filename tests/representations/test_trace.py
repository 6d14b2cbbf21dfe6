import json

import pytest
import torch

from hrsa_lightning.errors import DataError
from hrsa_lightning.representations.trace import RepresentationTrace, TraceWriter

ROWS = torch.randn(4, 3)


def recording(value):
    return {"": {"base": {"layer_0": ROWS + value}, "sft": {"layer_0": ROWS - value}}}


@pytest.fixture
def folder(tmp_path):
    writer = TraceWriter(tmp_path / "trace", {"": "abc"})
    for step in (0, 10):
        writer.add(step, recording(float(step)))
    return tmp_path / "trace"


def test_steps_come_back_as_written(folder):
    trace = RepresentationTrace(folder)
    assert (trace.steps, trace.arms) == ([0, 10], ["base", "sft"])
    assert torch.equal(trace.at(10)[""]["sft"]["layer_0"], ROWS - 10)
    assert trace.at(5) is None


def test_a_chosen_step_serves_all(folder):
    assert torch.equal(RepresentationTrace(folder, step=0).at(77)[""]["base"]["layer_0"], ROWS)


def test_arms_are_paired(folder):
    assert RepresentationTrace(folder).arm_for("sft") == "sft"
    assert RepresentationTrace(folder, arm="base").arm_for("") == "base"
    with pytest.raises(DataError, match=r"no arm 'rlvr'; choose one of \['base', 'sft'\]"):
        RepresentationTrace(folder).arm_for("rlvr")


def test_a_resumed_run_forgets_what_came_later(folder):
    TraceWriter(folder, {"": "abc"}, keep_until=4).add(5, recording(5.0))
    assert RepresentationTrace(folder).steps == [0, 5]


def test_other_probes_are_refused(folder):
    RepresentationTrace(folder).check_probes({"": "abc"})
    with pytest.raises(DataError, match="other probes"):
        RepresentationTrace(folder).check_probes({"": "abd"})


def test_what_is_written_is_json_and_safetensors(folder):
    assert sorted(path.suffix for path in folder.iterdir()) == [
        ".json",
        ".safetensors",
        ".safetensors",
    ]
    assert json.loads((folder / "trace.json").read_text())["steps"] == [0, 10]


@pytest.mark.parametrize("options", [{"step": 3}, {"arm": "x"}])
def test_mistakes_are_named(folder, options):
    with pytest.raises(DataError, match="is not in the trace"):
        RepresentationTrace(folder, **options)
    with pytest.raises(DataError, match=r"trace\.json is missing"):
        RepresentationTrace(folder.parent)
