import json
from pathlib import Path

import pytest
import yaml

from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.runs.resolve import find_sources, find_trained

BASE, RLVR = "embedded:tiny/base", "embedded:tiny/rlvr"


def adapter(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").touch()
    return folder


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "monday"
    recipe = {
        "arms": {"base": {"backbone": BASE}, "rlvr": {"backbone": RLVR}},
        "data": {"train": ["pairs.jsonl"], "query_length": 32},
        "model": {"pooling": "last"},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    for place in (folder, folder / "checkpoints" / "step_000010"):
        for arm in ("base", "rlvr"):
            adapter(place / "adapters" / arm)
    (folder / "checkpoints" / "step_000010" / "state.json").touch()
    return folder


def test_plain_models_have_no_settings():
    (base,) = find_sources(BASE)
    (pinned,) = find_sources("someone/Some-Model@step100")
    assert (base.place.name, base.revision, base.model) == ("base", None, None)
    assert Path(base.backbone).is_dir()
    assert (pinned.place.name, pinned.backbone) == ("Some-Model", "someone/Some-Model")
    assert pinned.revision == "step100"


def test_a_run_gives_all_arms_or_one(run):
    checkpoint = run / "checkpoints" / "step_000010"
    for place, step in ((run, None), (checkpoint, 10)):
        both = find_sources(str(place))
        assert [source.arm.name for source in both] == ["base", "rlvr"]
        assert [source.spec for source in both] == [f"{place}:base", f"{place}:rlvr"]
        assert both[1].adapter == place / "adapters" / "rlvr"
        assert both[1].model.pooling == "last"
        assert both[1].lengths == (32, 512)
        assert both[1].arm.step == step
        assert find_sources(f"{place}:rlvr") == [both[1]]
        assert find_sources(str(place / "adapters" / "base")) == [both[0]]
    assert both[0].arm.label == "base-step_10"


def test_an_adapter_names_its_backbone_or_base_does(tmp_path):
    own = adapter(tmp_path / "own", base_model_name_or_path=BASE)
    lost = adapter(tmp_path / "lost", base_model_name_or_path=str(tmp_path / "gone"))
    assert find_sources(str(own))[0].backbone == find_sources(BASE)[0].backbone
    with pytest.raises(BackboneError, match=r"no such folder.*--base names another place"):
        find_sources(str(lost))
    assert find_sources(str(lost), base=RLVR)[0].backbone.endswith("rlvr")


def test_full_weights_of_a_run_are_its_backbones(run):
    text = (run / "config.yaml").read_text().replace("pooling: last", "lora: null")
    (run / "config.yaml").write_text(text)
    checkpoint = run / "checkpoints" / "step_000010"
    source, _ = find_sources(str(checkpoint))
    assert source.checkpoint == checkpoint
    assert source.adapter is None
    with pytest.raises(BackboneError, match=r"has no config.json"):
        find_sources(str(run))


def test_identity_changes_with_the_files(run):
    (source, _) = find_sources(str(run))
    before = source.identity()
    assert before == find_sources(str(run))[0].identity()
    assert before != source.identity(commit="abc")
    (source.adapter / "adapter_model.safetensors").write_bytes(b"other")
    assert source.identity() != before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{run}:rlwr", "no arm 'rlwr'. Did you mean 'rlvr'"),
        ("./nowhere", "no such folder"),
        ("./nowhere:base", "no such folder"),
        ("embedded:tiny/bse", "expected one of: embedded:tiny/base"),
        ("{run}/checkpoints:base", "is no run of ours"),
        ("{run}/adapters", "the folder is neither a run"),
    ],
)
def test_mistakes_are_named(run, spec, message):
    with pytest.raises((BackboneError, ConfigError), match=message):
        find_sources(spec.format(run=run))


def test_an_unfinished_run_points_to_its_checkpoint(run):
    (run / "adapters").rename(run / "elsewhere")
    with pytest.raises(ConfigError, match=r"not finished.*step_000010"):
        find_sources(str(run))


def finished(runs, recipe, name):
    folder = runs / recipe / name
    folder.mkdir(parents=True)
    arms = {"base": {"backbone": BASE}}
    recipe = {"arms": arms, "data": {"train": ["pairs.jsonl"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "summary.json").write_text("{}")
    adapter(folder / "adapters" / "base")
    adapter(folder / "checkpoints" / "step_000010" / "adapters" / "base")
    (folder / "checkpoints" / "step_000010" / "state.json").touch()
    return folder


def test_a_folder_above_runs_is_its_newest_complete_run(tmp_path):
    runs = tmp_path / "runs"
    finished(runs, "a", "2026-01-01_00-00-00")
    newest = finished(runs, "b", "2026-01-02_00-00-00")
    unfinished = finished(runs, "b", "2026-01-03_00-00-00")
    (unfinished / "summary.json").unlink()
    for text in (runs, runs / "b", runs / "LAST", runs / "b" / "LAST", newest):
        assert find_sources(str(text))[0].arm.run == newest
        assert find_sources(f"{text}:base")[0].spec == f"{newest}:base"
        assert find_trained(text, None)[1].run == newest
    (checkpoint,) = find_sources(str(runs / "b" / "LAST" / "checkpoints" / "step_000010"))
    assert checkpoint.arm.checkpoint == newest / "checkpoints" / "step_000010"
    (newest / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"no run there is complete.*2026-01-03"):
        find_sources(str(runs / "b"))
    with pytest.raises(ConfigError, match="expected a folder with runs"):
        find_sources(str(newest / "adapters" / "LAST"))
