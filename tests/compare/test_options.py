import pytest
import yaml

from hrsa_lightning.compare.options import name_models
from hrsa_lightning.errors import BackboneError, ConfigError

BASE, RLVR = "embedded:tiny/base", "embedded:tiny/rlvr"


@pytest.fixture
def run(tmp_path):
    """A checkpoint of a run that trains all weights needs no files of its arms."""
    folder = tmp_path / "runs" / "monday"
    recipe = {
        "arms": {"base": {"backbone": BASE}, "rlvr": {"backbone": RLVR}},
        "data": {"train": ["pairs.jsonl"]},
        "model": {"lora": None},
    }
    for step in (10, 20):
        (folder / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
        (folder / "checkpoints" / f"step_{step:06d}" / "state.json").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "checkpoints"


def test_names_are_unique_and_can_be_given(run):
    first, second = run / "step_000010", run / "step_000020"
    assert list(name_models([f"{first}:base", f"{second}:base", BASE, RLVR])) == [
        "step_000010_base",
        "step_000020_base",
        "tiny_base",
        "rlvr",
    ]
    named = name_models([f"a={BASE}", f"b={BASE}", f"c={first}"])
    assert list(named) == ["a", "b", "c_base", "c_rlvr"]
    assert named["c_rlvr"].checkpoint == first
    assert list(name_models([BASE, BASE])) == ["tiny_base", "tiny_base_2"]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="at least two models, got embedded:tiny/base"):
        name_models([BASE])
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(BackboneError, match=r"has no config.json"):
        name_models([BASE, str(tmp_path)])
