import json

import pytest
import torch

from hrsa_lightning.errors import DataError
from hrsa_lightning.similarity.trace import RepresentationTrace, TraceWriter

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


def resume(folder, source, fingerprint="abc", until=4):
    writer = TraceWriter(folder, {"": fingerprint})
    taken = writer.take_over(source, until=until)
    writer.add(5, recording(5.0))
    return taken


def test_a_resumed_run_forgets_what_came_later(folder):
    assert resume(folder, folder)
    assert RepresentationTrace(folder).steps == [0, 5]


def test_a_resumed_run_takes_its_trace_to_another_folder(folder, tmp_path):
    assert resume(tmp_path / "new", folder)
    new = RepresentationTrace(tmp_path / "new")
    assert new.steps == [0, 5]
    assert torch.equal(new.at(0)[""]["base"]["layer_0"], ROWS)
    assert RepresentationTrace(folder).steps == [0, 10], "as it was"


def test_files_are_copied_where_they_cannot_be_shared(folder, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("another device")

    monkeypatch.setattr(type(tmp_path), "hardlink_to", refuse)
    assert resume(tmp_path / "new", folder)
    assert torch.equal(RepresentationTrace(tmp_path / "new").at(0)[""]["base"]["layer_0"], ROWS)


def test_a_trace_of_other_probes_or_none_is_not_taken_over(folder, tmp_path):
    assert not resume(tmp_path / "new", folder, fingerprint="abd")
    assert not resume(tmp_path / "newer", tmp_path / "nowhere")
    assert RepresentationTrace(tmp_path / "new").steps == [5]


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
