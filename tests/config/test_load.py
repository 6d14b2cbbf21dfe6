import subprocess
import sys

import pytest
import yaml

from hrsa_lightning.config import load as config_module
from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.config.schema import Config
from hrsa_lightning.errors import ConfigError


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A recipes of our own: recipe `plain`, and `child` on top of it; callback preset `watch`."""
    recipes, callbacks = tmp_path / "recipes", tmp_path / "callbacks"
    recipes.mkdir()
    callbacks.mkdir()
    (recipes / "plain.yaml").write_text(
        "description: A plain recipe.\n"
        "arms: {base: {backbone: some/model}, other: {backbone: some/other, seed: 7}}\n"
        "data: {train: [pairs.jsonl], batch_size: 64}\n"
        "callbacks:\n  similarity: watch\n  extra: {_target_: a.B, depth: 1}\n"
    )
    (recipes / "child.yaml").write_text("defaults: plain\noptimizer: {lr: 1e-3}\n")
    (callbacks / "watch.yaml").write_text("_target_: some.Monitor\nevery_n_train_steps: 50\n")
    (callbacks / "see.yaml").write_text("_target_: some.Other\nwidth: 3\n")
    files = {
        name: {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        for name, folder in (("recipes", recipes), ("callbacks", callbacks))
    }
    monkeypatch.setattr(config_module, "resource_files", files.__getitem__)
    return tmp_path


def test_recipe_and_overrides(recipes):
    config = load_config("plain", ["data.batch_size=8", "optimizer.lr=2e-5", "model.lora.r=4"])
    assert config.name == "plain"
    assert config.data.batch_size == 8
    assert config.optimizer.lr == 2e-5
    assert config.model.lora.r == 4
    assert config.model.lora.lora_alpha == 32
    assert config.arms["other"].seed == 7


def test_recipe_inherits_from_its_defaults(recipes):
    config = load_config("child")
    assert config.name == "child"
    assert config.optimizer.lr == 1e-3
    assert config.data.batch_size == 64


def test_recipe_may_be_a_path(recipes, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: plain\nseed: 5\n")
    config = load_config(str(mine))
    assert (config.name, config.seed) == ("mine", 5)


def test_null_removes_all_callbacks(recipes):
    assert load_config("plain", ["callbacks=null"]).callbacks == {}


def test_null_removes_arms_callbacks_and_adapters(recipes):
    config = load_config("plain", ["arms.other=null", "callbacks.extra=null", "model.lora=null"])
    assert list(config.arms) == ["base"]
    assert list(config.callbacks) == ["similarity"]
    assert config.model.lora is None


def test_presets_are_expanded_and_overridden(recipes):
    assert load_config("plain").callbacks["similarity"] == {
        "_target_": "some.Monitor",
        "every_n_train_steps": 50,
    }
    changed = load_config("plain", ["callbacks.similarity.every_n_train_steps=7"])
    assert changed.callbacks["similarity"]["every_n_train_steps"] == 7


def test_a_preset_replaces_what_was_inherited(recipes, tmp_path):
    wanted = {"_target_": "some.Other", "width": 3, "height": 2}
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: plain\ncallbacks: {extra: {preset: see, height: 2}}\n")
    assert load_config(str(mine)).callbacks["extra"] == wanted
    settings = ["callbacks.extra.preset=see", "callbacks.extra.height=2"]
    assert load_config("plain", settings).callbacks["extra"] == wanted


def test_a_mapping_changes_an_inherited_preset(recipes, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: plain\ncallbacks: {similarity: {every_n_train_steps: 7}}\n")
    similarity = load_config(str(mine)).callbacks["similarity"]
    assert similarity == {"_target_": "some.Monitor", "every_n_train_steps": 7}


def test_resolved_yaml_loads_to_the_same_config(recipes, tmp_path):
    config = load_config("plain", ["optimizer.lr=3e-4", "model.lora.target_modules=[q_proj]"])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(str(saved)) == config


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("plane", [], r"recipe=plane: no such recipe or file\. Did you mean 'plain'\?"),
        ("plain", ["dta.batch_size=3"], r"unknown key 'dta'\. Did you mean 'data'\?"),
        ("plain", ["batch_size=3"], r"unknown key 'batch_size'\. Did you mean 'data.batch_size'\?"),
        ("plain", ["data.batchsize=3"], r"unknown key 'data.batchsize'. Did you mean 'batch_size'"),
        ("plain", ["arms.base.sead=3"], r"unknown key 'arms.base.sead'\. Did you mean 'seed'"),
        ("plain", ["data.batch_size=abc"], r"data.batch_size: value 'abc' .*Integer"),
        ("plain", ["data.batch_size=0"], r"data.batch_size: expected a value in \[1, 1e9\], got 0"),
        ("plain", ["trainer.max_steps=1.5"], r"trainer.max_steps: value '1.5'"),
        ("plain", ["model.pooling=men"], r"model.pooling: .*got 'men'\. Did you mean 'mean'\?"),
        (
            "plain",
            ["optimizer.warmup_ratio=1"],
            r"optimizer.warmup_ratio: expected a value in \[0, 1\), got 1.0",
        ),
        ("plain", ["optimizer.betas=[0.9]"], r"optimizer.betas: expected two values"),
        ("plain", ["trainer.precision=16-true"], r"optimizer.eps: expected at least 0.008 .*1e-08"),
        ("plain", ["model.dtype=float16", "model.lora=null"], r"optimizer.eps: expected at least"),
        ("plain", ["arms.third.seed=3"], r"arms.third.backbone: a value is required"),
        ("plain", ["arms.base.2=x"], r"unknown key 'arms.base.2'"),
        ("plain", ["arms.base=null", "arms.other=null"], r"arms: at least one arm"),
        ("plain", ["data.train=[]"], r"data.train: at least one file"),
        ("plain", ["data=3"], r"data: expected a mapping, got 3"),
        ("plain", ["arms.base=3"], r"arms.base: expected a mapping, got 3"),
        ("plain", ["callbacks.x=wach"], r"no preset 'wach'\. Did you mean 'watch'\?"),
        ("plain", ["callbacks.x=3"], r"callbacks.x: expected a preset's name"),
        ("plain", ["callbacks.x.depth=3"], r"callbacks.x: expected '_target_'"),
        ("plain", ["nonsense"], r"'nonsense': expected key=value"),
    ],
)
def test_mistakes_get_one_clear_line(recipes, recipe, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(recipe, overrides)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", r"bad.yaml line 2: not valid YAML"),
        ("- 1\n", r"bad.yaml: expected a mapping of keys, got list"),
        ("defaults: [plain]\n", r"defaults: expected the name of one recipe"),
        ("defaults: bad\n", r"'defaults' leads back to the recipe itself"),
    ],
)
def test_broken_files_are_named(recipes, tmp_path, text, message):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(bad))


def test_reading_a_recipe_imports_no_torch():
    code = (
        "import sys; from hrsa_lightning import train; "
        "assert train.main(['recipe=quickstart', 'dta.x=1']) == 2; "
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: unknown key 'dta'. Did you mean 'data'?\n"


def test_defaults_are_the_shared_recipe():
    """Figures of the paper's recipe that users rely on when they leave a key out."""
    shared = yaml.safe_load(to_yaml(Config(arms={})))
    assert shared["loss"]["temperature"] == 0.02
    assert shared["data"]["train_group_size"] == 4
    assert shared["model"]["lora"] == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": "all-linear",
        "use_rslora": False,
    }
    optimizer = shared["optimizer"]
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["warmup_ratio"]) == (
        2e-5,
        0.05,
        0.03,
    )
