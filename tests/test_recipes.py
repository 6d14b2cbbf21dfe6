"""Every shipped recipe and preset loads, and its parts build."""

import re

import pytest

from hrsa_lightning.build import build_callbacks, instantiate
from hrsa_lightning.config import describe_recipes, load_config, read_yaml
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.shelf import shelf_files

RECIPES = shelf_files("recipes")
PRESETS = shelf_files("callbacks")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_builds_its_callbacks_and_says_how_to_launch(name):
    config = load_config(name)
    assert config.name == name
    assert 10 < len(config.description) < 100
    assert build_callbacks(config)
    first = RECIPES[name].read_text().splitlines()[0]
    assert re.match(rf"# .*-m hrsa_lightning\.train recipe={name}\b", first)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_only_what_its_class_takes(name):
    problem = ""
    try:
        instantiate(read_yaml(PRESETS[name]), f"callbacks.{name}")
    except ConfigError as error:  # a preset may leave open what only its user knows
        problem = str(error)
    assert "_target_" not in problem
    assert "unknown key" not in problem


def test_recipes_describe_themselves():
    assert set(describe_recipes()) == set(RECIPES)
    assert all(describe_recipes().values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.similarity.every_n_train_step=7", "Did you mean 'every_n_train_steps'"),
        ("callbacks.similarity._target_=os.system", "none of the allowed kinds"),
        ("callbacks.similarity._target_=no.such.Thing", "cannot import 'no.such.Thing'"),
        ("callbacks.similarity._target_=torch.nn.Linear", "none of the allowed kinds"),
    ],
)
def test_mistakes_in_callbacks_name_the_key(override, message):
    config = load_config("quickstart", [override])
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_callbacks(config)
    assert str(caught.value).startswith(("callbacks.similarity", "unknown key 'callbacks.simil"))
