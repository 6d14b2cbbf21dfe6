"""Every key of a recipe has a rule, and what breaks it is one line that names the key."""

import dataclasses
import math
import sys
import typing

import pytest
from torch import nn

from hrsa_lightning.config import load_config, to_yaml
from hrsa_lightning.config.build import build_callbacks, build_trainer
from hrsa_lightning.config.load import _dataclass_in
from hrsa_lightning.config.schema import NO_ARM, Config, within
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.files import is_name


def keys_of(schema=Config, prefix=""):
    """Every key with its field, arms under the name `base`."""
    for item in dataclasses.fields(schema):
        inner, is_mapping = _dataclass_in(item.type)
        if inner is not None:
            yield from keys_of(inner, f"{prefix}{item.name}." + "base." * is_mapping)
        elif prefix + item.name != "callbacks":
            yield prefix + item.name, item


KEYS = dict(keys_of())


def _kinds(annotation):
    return {part for part in (annotation, *typing.get_args(annotation)) if part is not None}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_but_a_switch_declares_its_rule(key):
    assert ("rule" in KEYS[key].metadata) == (KEYS[key].type is not bool)


NUMBERS = [k for k, f in KEYS.items() if {int, float, list[int], list[float]} & _kinds(f.type)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1" + "0" * 22, "-2"])
def test_no_number_is_without_end(key, value):
    if value == "-2" and key == "loss.false_negative_margin":
        return  # the least cosine margin there is
    in_list = typing.get_origin(KEYS[key].type) is list or "list" in str(KEYS[key].type)
    section = key.rpartition(".")[0]
    switch = [f"{section}={{}}"] if section in ("loss.sigreg", "loss.alignment") else []
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [*switch, f"{key}={f'[{value}]' if in_list else value}"])
    assert str(caught.value).startswith(key)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_more_than_forty_keys_hold_numbers():
    assert len(NUMBERS) > 35


def test_ends_of_intervals():
    rule = within("[0, 1)")
    assert [rule.problem(value) is None for value in (0, 0.5, 1, -1e-9, math.nan)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_attributes_of_module_dicts_are_no_names_of_arms():
    assert {name for name in dir(nn.ModuleDict()) if name[0] != "_"} <= NO_ARM
    free = nn.ModuleDict()
    for name in ("base", "rlvr_2", "sft-1b", "größe"):
        assert is_name(name, dots=False)
        free[name] = nn.Linear(1, 1)


@pytest.mark.parametrize(
    "name", ["keys", "training", "__class__", "a" * 300, "../x", ".a", "-a", "a b", "", "initial"]
)
def test_names_of_arms(name, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"defaults: quickstart\narms:\n  '{name}': {{backbone: 'embedded:tiny/base'}}"
    )
    with pytest.raises(ConfigError, match=r"^arms\.") as caught:
        load_config(str(recipe))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["../../x", "a/b", ".", "..", "a" * 5000, "''", '"a\\0"', "~"])
def test_names_of_runs_and_monitors_stay_in_their_folder(name):
    with pytest.raises(ConfigError, match=r"^name: "):
        load_config("quickstart", [f"name={name}"])
    if name != "~":  # null
        with pytest.raises(ConfigError, match=r"^callbacks\.similarity"):
            build_callbacks(load_config("quickstart", [f"callbacks.similarity.name={name}"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.lora.target_modules=5"], "model.lora.target_modules: expected a name or"),
        (["model.lora.target_modules=[]"], "model.lora.target_modules: expected a name or"),
        (["model.trust_remote_code=-1"], "model.trust_remote_code: expected true or false, got -1"),
        (["resume=null"], "resume: expected true or false, got None"),
        (["data.weights=[[]]"], "data.weights: expected a value in [0, 1e9], got []"),
        (["data.train=[[]]"], "data.train"),
        (["data.weights={a: 1}"], "data.weights: expected a list, got {'a': 1}"),
        (["trainer.devices=0"], "trainer.devices: expected auto, -1, a number"),
        (["trainer.devices=null"], "trainer.devices: expected auto, -1, a number"),
        (["trainer.limit_train_batches=.nan"], "trainer.limit_train_batches: expected a share"),
        (["trainer.max_steps=0"], "trainer.max_steps: expected -1 or a number"),
        (["trainer.max_time=soon"], "trainer.max_time: expected DAYS:HOURS:MINUTES:SECONDS"),
        (["trainer.precision=13"], "trainer.precision: expected 32-true or"),
        (["activation_budget=-1"], "activation_budget: expected bytes or auto, got -1"),
        (["output_dir=''"], "output_dir: expected a path"),
        ([f"output_dir={'a' * 300}"], "output_dir: expected a path"),
        (['output_dir="a\\0b"'], "output_dir: expected text in Unicode without NUL"),
        (['description="\\ud800"'], "description: expected text in Unicode"),
        (["output_dir=${oc.env:HOME}"], "output_dir: expected a value, got '${oc.env:HOME}'"),
        (["callbacks.similarity.name=${oc.env:HOME}"], "callbacks.similarity.name: expected a val"),
        (["callbacks.a/b=realignment"], "callbacks.a/b: expected a name"),
        (["=".join([".".join("a" * 1000), "1"])], "unknown key 'a.a."),
    ],
)
def test_mistakes_are_answered_with_the_key(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", overrides)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("history", ["''", ".", "..", "/", "/tmp", "a" * 300])
def test_histories_are_files(history):
    with pytest.raises(ConfigError, match=r"history: expected the name or path of a file"):
        build_callbacks(load_config("quickstart", [f"callbacks.retrieval.history={history}"]))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.max_time=12:00:00:00", ("trainer", "max_time"), "12:00:00:00"),
        ("arms.base.revision=0123456", ("arms", "base", "revision"), "0123456"),
        ("arms.base.revision=1e3", ("arms", "base", "revision"), "1e3"),
        ("arms.base.revision=1.10", ("arms", "base", "revision"), "1.10"),
        ("description=no", ("description",), "no"),
        ("name=2024-05-06", ("name",), "2024-05-06"),
        ("data.batch_size=010", ("data", "batch_size"), 10),
        ("optimizer.lr=1e-3", ("optimizer", "lr"), 1e-3),
        ("callbacks.similarity.max_length=1e2", ("callbacks", "similarity", "max_length"), 100.0),
        ("trainer.enable_progress_bar=no", ("trainer", "enable_progress_bar"), False),
    ],
)
def test_values_are_taken_as_they_are_written(override, key, value, tmp_path):
    config = load_config("quickstart", [override])
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    for found in (config, load_config(str(saved))):
        for name in key:
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        assert found == value
        assert type(found) is type(value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nname: x\nseed: 2\n", "line 1: not valid YAML (the key 'seed' twice)"),
        (b"model: {lora: {r: 1, r: 2}}\n", "line 1: not valid YAML (the key 'r' twice)"),
        (BOMB.encode(), "not valid YAML (too many entries, aliases written out)"),
        (b"a: &a [*a]\n", "not valid YAML (nested too deeply)"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "not valid YAML (nested too deeply)"),
        (b"a: " + b"[" * 60 + b"]" * 60, "not valid YAML (nested too deeply)"),
        (b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML (the tag "),
        (b"a: !!binary aGk=\n", "not valid YAML (the tag "),
        (b"? [a, b]\n: 1\n", "not valid YAML (a key is no text)"),
        (b"seed: " + b"9" * 5000, "not valid YAML (Exceeds the limit"),
        ("name: größe".encode("latin-1"), ":1: not UTF-8 at byte 9 of the line"),
        ("name: x".encode("utf-16"), "expected text in UTF-8, got UTF-16"),
        (b"# " + b"x" * 2_000_000, "expected at most 1,000,000 bytes, got 2,000,002"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(recipe))
    assert str(caught.value).startswith(str(recipe))
    assert message in str(caught.value)


def test_a_mark_at_the_beginning_and_anchors_are_read(tmp_path):
    recipe = tmp_path / "Meine größte Idee.yaml"
    recipe.write_text(
        "\ufeffdefaults: quickstart\n"
        "arms:\n  base: &b {backbone: a/b}\n  other: {<<: *b, seed: 3}\n",
        encoding="utf-8",
    )
    config = load_config(str(recipe))
    assert config.name == "Meine_größte_Idee"
    assert (config.arms["other"].backbone, config.arms["other"].seed) == ("a/b", 3)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("quickstart", ["output_dir=~/runs"]).output_dir == str(tmp_path / "runs")
    (tmp_path / "own.yaml").write_text("defaults: quickstart\n")
    assert load_config("~/own.yaml").name == "own"


@pytest.mark.parametrize("recipe", ["a" * 5000, "~nobody/x", "a\0b"])
def test_odd_names_of_recipes(recipe):
    with pytest.raises(ConfigError, match=r"^recipe=.*: no such recipe or file"):
        load_config(recipe)


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "there").write_text("")
    folder = tmp_path / "there" / "runs"
    with pytest.raises(ConfigError, match=r"^output_dir: expected a folder .* got a file: .*there"):
        build_trainer(load_config("quickstart"), folder, [])


def test_foreign_modules_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "wild.py").write_text("open('imported', 'w'); raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config("quickstart", ["callbacks.similarity._target_=wild.Thing"])
    with pytest.raises(ConfigError, match=r"^callbacks.similarity._target_: cannot import 'wild"):
        build_callbacks(config)
    config = load_config("quickstart", ["trainer.strategy._target_=wild.Thing"])
    with pytest.raises(ConfigError, match=r"^trainer.strategy._target_: cannot import 'wild.Thing"):
        build_trainer(config, tmp_path, [])
    assert not (tmp_path / "imported").exists()
    assert "wild" not in sys.modules


def test_a_module_that_ends_the_program_is_an_error(monkeypatch):
    def leave(name):
        raise SystemExit(0)

    monkeypatch.setattr("hrsa_lightning.config.build.importlib.import_module", leave)
    with pytest.raises(ConfigError, match=r"_target_: cannot import 'lightning\.fabric\.x"):
        build_callbacks(
            load_config("quickstart", ["callbacks.similarity._target_=lightning.fabric.x.Y"])
        )
