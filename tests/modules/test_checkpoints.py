import json
import math
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import psutil
import pytest
import torch

from hrsa_lightning.modules.checkpoints import (
    ADAPTERS,
    SafetensorsCheckpointIO,
    TrainedAdapters,
    newest_checkpoint,
    prune,
)


def _checkpoint():
    return {
        "epoch": 3,
        "ratio": 0.1,
        "best": math.inf,
        "none": None,
        "state_dict": {"w": torch.randn(3, 2), "half": torch.randn(4).bfloat16()},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}
        ],
        "callbacks": {"ModelCheckpoint{'a': 1}": {"path": Path("x/y"), "done": True}},
        ADAPTERS: {"base": ({"r": 4}, {"lora_A": torch.randn(2, 2)})},
    }


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        same = type(a) is type(b) and len(a) == len(b)
        return same and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_round_trip_keeps_every_type(tmp_path):
    io = SafetensorsCheckpointIO()
    saved = _checkpoint()
    io.save_checkpoint(saved, tmp_path / "step_000001")
    assert _equal(io.load_checkpoint(tmp_path / "step_000001"), saved)


def test_folder_holds_json_and_safetensors_only(tmp_path):
    SafetensorsCheckpointIO().save_checkpoint(_checkpoint(), tmp_path / "step_000001")
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "step_000001/state.json",
        "step_000001/state.safetensors",
        "step_000001/adapters/base/adapter_config.json",
        "step_000001/adapters/base/adapter_model.safetensors",
    }
    assert json.loads((tmp_path / "step_000001/adapters/base/adapter_config.json").read_text())


def test_a_checkpoint_is_read_where_it_is_used(tmp_path):
    plugin = SafetensorsCheckpointIO()
    plugin.save_checkpoint({"a": torch.ones(2**24), "b": torch.ones(2)}, tmp_path / "step_1")
    resident = psutil.Process().memory_info().rss
    checkpoint = plugin.load_checkpoint(tmp_path / "step_1")
    assert checkpoint["a"][:2].sum() == 2
    assert psutil.Process().memory_info().rss - resident < 8 * 2**20  # of 64


def test_tensors_that_share_memory_are_saved(tmp_path):
    weight = torch.randn(4)
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"a": weight, "b": weight[:2]}, tmp_path / "c")
    assert torch.equal(io.load_checkpoint(tmp_path / "c")["b"], weight[:2])


def test_replacing_and_removing(tmp_path):
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"value": 1}, tmp_path / "c")
    io.save_checkpoint({"value": 2}, tmp_path / "c")
    assert io.load_checkpoint(tmp_path / "c") == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    io.remove_checkpoint(tmp_path / "c")
    io.remove_checkpoint(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_write_that_dies_leaves_the_previous_one(tmp_path, monkeypatch):
    io, folder = SafetensorsCheckpointIO(), tmp_path / "checkpoints"
    io.save_checkpoint({"value": 1}, folder / "step_000001")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        io.save_checkpoint({"value": 2}, folder / "step_000002")
    assert newest_checkpoint(tmp_path) == folder / "step_000001"
    monkeypatch.undo()
    io.save_checkpoint({"value": 3}, folder / "step_000003")
    assert sorted(path.name for path in folder.iterdir()) == ["step_000001", "step_000003"]


def test_newest_is_by_step_not_by_name(tmp_path):
    io = SafetensorsCheckpointIO()
    assert newest_checkpoint(tmp_path) is None
    for step in (999_999, 1_000_000):
        io.save_checkpoint({}, tmp_path / "checkpoints" / f"step_{step:06d}")
    assert newest_checkpoint(tmp_path).name == "step_1000000"


@pytest.mark.parametrize(("step", "newest"), [(3, "step_000004"), (5, "hpc_ckpt_2.ckpt")])
def test_what_lightning_saved_when_slurm_requeued_counts_by_its_step(tmp_path, step, newest):
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"global_step": 4}, tmp_path / "checkpoints" / "step_000004")
    io.save_checkpoint({"global_step": 2}, tmp_path / "hpc_ckpt_1.ckpt")
    io.save_checkpoint({"global_step": step}, tmp_path / "hpc_ckpt_2.ckpt")
    assert newest_checkpoint(tmp_path).name == newest


def test_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"tensors and plain data only .*got builtins.set"):
        SafetensorsCheckpointIO().save_checkpoint({"x": {1, 2}}, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_ordered_dicts_become_dicts(tmp_path):
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"x": OrderedDict(a=1)}, tmp_path / "c")
    assert io.load_checkpoint(tmp_path / "c") == {"x": {"a": 1}}


class _Arm:
    def __init__(self, text):
        self._text = text

    def save_adapter(self, folder):
        folder.mkdir(parents=True)
        if self._text is None:
            raise KeyboardInterrupt
        (folder / "weights").write_text(self._text)


class _Module:
    def __init__(self, *texts):
        self._texts = texts

    def named_arms(self):
        return {str(number): _Arm(text) for number, text in enumerate(self._texts)}


def test_trained_adapters_are_there_only_when_all_are_complete(tmp_path):
    folder = tmp_path / "adapters"
    with pytest.raises(KeyboardInterrupt):
        TrainedAdapters(folder).save(_Module("one", None))
    assert not folder.exists()
    for texts in (("two",), ("three", "four")):
        TrainedAdapters(folder).save(_Module(*texts))
        found = {path.parent.name: path.read_text() for path in tmp_path.rglob("weights")}
        assert found == dict(zip("01", texts, strict=False))
        assert [path.name for path in tmp_path.iterdir()] == ["adapters"]


_TENSORS = "state.safetensors"
_WEIGHTS = "adapters/base/adapter_model.safetensors"
_DAMAGES = {
    "cut": lambda path: os.truncate(path / _TENSORS, (path / _TENSORS).stat().st_size - 5),
    "empty": lambda path: os.truncate(path / _TENSORS, 0),
    "missing": lambda path: (path / _TENSORS).unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "edited": lambda path: (path / "state.json").write_text('{"dict": [["a", {"tensor": "t99"}]]}'),
    "no JSON": lambda path: (path / "state.json").write_text("{"),
    "no adapters": lambda path: shutil.rmtree(path / "adapters"),
    "cut adapters": lambda path: os.truncate(path / _WEIGHTS, 20),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, tmp_path):
    io = SafetensorsCheckpointIO()
    for step in (5, 54):
        io.save_checkpoint(_checkpoint(), tmp_path / "checkpoints" / f"step_{step:06d}")
    _DAMAGES[damage](tmp_path / "checkpoints" / "step_000054")
    said = []
    assert newest_checkpoint(tmp_path, said.append).name == "step_000005"
    (line,) = said
    assert "step_000054 is damaged (" in line
    _DAMAGES[damage](tmp_path / "checkpoints" / "step_000005")
    assert newest_checkpoint(tmp_path, said.append) is None


def test_names_that_are_no_step_are_skipped(tmp_path):
    for name in ("step_000005", "step_000054-v1", "step_x"):
        SafetensorsCheckpointIO().save_checkpoint(_checkpoint(), tmp_path / "checkpoints" / name)
    assert newest_checkpoint(tmp_path).name == "step_000005"


def test_pruning_keeps_the_newest_up_to_a_step(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"step_{step:06d}").mkdir()
    prune(tmp_path, 6, -1)
    assert len(list(tmp_path.iterdir())) == 4
    prune(tmp_path, 6, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000006"]
