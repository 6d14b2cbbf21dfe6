"""Every preset in callbacks/ names real arguments and gives a callback."""

import importlib

import pytest
import torch
import yaml

from hrsa_lightning.callbacks.base import Monitor
from hrsa_lightning.io.resources import resolve_path, resource_files, resource_folder
from hrsa_lightning.similarity.trace import TraceWriter

PRESETS = resource_files("callbacks")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds(name, tmp_path):
    content = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    module, _, cls = content.pop("_target_").rpartition(".")
    if str(content.get("reference", "")).startswith("trace:"):
        TraceWriter(tmp_path, {"": "abc"}).add(0, {"": {"": {"output": torch.ones(1, 1)}}})
        content["reference"] = f"trace:{tmp_path}"
    arguments = {k: resolve_path(v) if isinstance(v, str) else v for k, v in content.items()}
    built = getattr(importlib.import_module(module), cls)(**arguments)
    assert isinstance(built, Monitor)


def test_the_readme_names_every_preset():
    text = (resource_folder("callbacks") / "README.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if f"`{name}`" not in text] == []


def test_the_monitors_of_different_presets_go_into_one_trainer():
    names = [
        (content["_target_"], content.get("name"))
        for content in (yaml.safe_load(path.read_text()) for path in PRESETS.values())
        if "arms" not in content
    ]
    assert len(names) == len(set(names))
