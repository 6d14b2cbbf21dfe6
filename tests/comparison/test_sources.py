import json
from pathlib import Path

import pytest
import yaml

from hrsa_lightning.comparison.sources import find_models
from hrsa_lightning.errors import BackboneError, ConfigError

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
        "data": {"train": ["pairs.jsonl"]},
        "model": {"pooling": "last"},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    for place in (folder, folder / "checkpoints" / "step_000010"):
        for arm in ("base", "rlvr"):
            adapter(place / "adapters" / arm)
    (folder / "checkpoints" / "step_000010" / "state.json").touch()
    return folder


def test_plain_models_are_named_by_their_last_part():
    base, pinned = find_models([BASE, "someone/Some-Model@step100"])
    assert (base.name, base.revision, base.trained) == ("base", None, None)
    assert Path(base.backbone).is_dir()
    assert (pinned.name, pinned.backbone) == ("Some-Model", "someone/Some-Model")
    assert pinned.revision == "step100"


def test_a_run_gives_all_arms_or_one(run):
    for text in (run, run / "checkpoints" / "step_000010"):
        both = find_models([str(text)])
        assert [source.name for source in both] == ["base", "rlvr"]
        assert both[1].adapter == text / "adapters" / "rlvr"
        assert both[1].trained.pooling == "last"
        one, other = find_models([f"{text}:rlvr", str(text / "adapters" / "base")])
        assert (one.adapter, other.adapter) == (both[1].adapter, both[0].adapter)
        assert other.trained is not None


def test_names_are_unique_and_can_be_given(run):
    checkpoint = run / "checkpoints" / "step_000010"
    names = [
        source.name for source in find_models([f"{run}:base", f"{checkpoint}:base", BASE, RLVR])
    ]
    assert names == ["monday_base", "step_000010_base", "tiny_base", "rlvr"]
    names = [source.name for source in find_models([f"a={BASE}", f"b={BASE}", f"c={run}"])]
    assert names == ["a", "b", "c_base", "c_rlvr"]
    names = [source.name for source in find_models([BASE, BASE])]
    assert names == ["tiny_base", "tiny_base_2"]


def test_an_adapter_names_its_backbone_or_base_does(tmp_path):
    own = adapter(tmp_path / "own", base_model_name_or_path=BASE)
    lost = adapter(tmp_path / "lost", base_model_name_or_path=str(tmp_path / "gone"))
    assert find_models([BASE, str(own)])[1].backbone == find_models([BASE, RLVR])[0].backbone
    with pytest.raises(BackboneError, match=r"no such folder.*--base names another place"):
        find_models([BASE, str(lost)])
    assert find_models([BASE, str(lost)], base=RLVR)[1].backbone.endswith("rlvr")


def test_full_weights_of_a_run_are_its_backbones(run):
    text = (run / "config.yaml").read_text().replace("pooling: last", "lora: null")
    (run / "config.yaml").write_text(text)
    checkpoint = run / "checkpoints" / "step_000010"
    (source, _) = find_models([str(checkpoint)])
    assert source.checkpoint == (checkpoint, "base")
    assert source.adapter is None
    with pytest.raises(BackboneError, match=r"has no config.json"):
        find_models([str(run)])


def test_identity_changes_with_the_files(run):
    source = find_models([str(run)])[0]
    before = source.identity(None)
    assert before == find_models([str(run)])[0].identity(None)
    (source.adapter / "adapter_model.safetensors").write_bytes(b"other")
    assert source.identity(None) != before


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([BASE], "at least two models, got embedded:tiny/base"),
        ([BASE, "{run}:rlwr"], "no arm 'rlwr'. Did you mean 'rlvr'"),
        ([BASE, "./nowhere"], "no such folder"),
        ([BASE, "embedded:tiny/bse"], "expected one of: embedded:tiny/base"),
        ([BASE, "{run}/checkpoints:base"], "is no run of ours"),
        ([BASE, "{run}/adapters"], "has no config.json"),
    ],
)
def test_mistakes_are_named(run, specs, message):
    with pytest.raises((BackboneError, ConfigError), match=message):
        find_models([spec.format(run=run) for spec in specs])


def test_an_unfinished_run_points_to_its_checkpoint(run):
    (run / "adapters").rename(run / "elsewhere")
    with pytest.raises(ConfigError, match=r"not finished.*step_000010"):
        find_models([str(run)])
