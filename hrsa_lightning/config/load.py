"""Recipes: YAML files and `key=value` overrides, checked against dataclasses.

This is the only module that knows OmegaConf, and it imports no torch: a mistake in a recipe is
answered at once. `build.py` turns the result into objects.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hrsa_lightning.config.schema import Config, check_values
from hrsa_lightning.errors import ConfigError, nearest
from hrsa_lightning.resources import resource_files


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides.

    Args:
        recipe: Name of a recipe that is shipped, or the path of a YAML file.
        overrides: `key=value` strings; keys are dotted, values are YAML. `key=null` removes an
            entry of `arms` or `callbacks`, or switches an optional part (such as `model.lora`) off.

    Raises:
        ConfigError: The recipe is missing or not YAML, a key is unknown, a value has the wrong
            type or lies outside its range. The message names the key and the nearest known one.
    """
    content = _read_recipe(recipe)
    content.setdefault("name", Path(recipe).stem)
    for override in overrides:
        _apply_override(content, override)
    for section in ("arms", "callbacks"):
        if content.get(section) is None:
            content[section] = {}
        elif isinstance(content[section], dict):
            content[section] = {k: v for k, v in content[section].items() if v is not None}
    content["callbacks"] = {
        name: _expand_preset(name, preset) for name, preset in content.get("callbacks", {}).items()
    }
    _check_keys(content, Config, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), content)
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    check_values(config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved recipe as YAML; loading it gives an equal `Config`."""
    content = dataclasses.asdict(config)
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=99))


def flat_settings(config: Config) -> dict[str, Any]:
    """The recipe as one row: dotted keys and their values, callbacks left out.

    Example:
        >>> flat_settings(Config(name="x"))["optimizer.lr"]
        2e-05
    """

    def walk(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    content = dataclasses.asdict(config)
    del content["callbacks"]
    return dict(walk(content, ""))


def describe_recipes() -> dict[str, str]:
    """Name and one-line description of each recipe that is shipped."""
    found = {}
    for name, path in resource_files("recipes").items():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[name] = str(content.get("description", ""))
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is not YAML or holds no mapping; with its name and line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return content


def _read_recipe(recipe: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    recipes = resource_files("recipes")
    path = recipes.get(recipe, Path(recipe).expanduser())
    if not path.is_file():
        raise ConfigError(
            f"recipe={recipe}: no such recipe or file.{nearest(recipe, recipes)}"
            f" Known recipes: {', '.join(recipes)}."
        )
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: 'defaults' leads back to the recipe itself")
    content = read_yaml(path)
    base = content.pop("defaults", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: defaults: expected the name of one recipe, got {base!r}")
    beside = path.parent / f"{base}.yaml"
    named = str(beside) if base not in recipes and beside.is_file() else base
    inherited = _read_recipe(named, (*seen, path))
    inherited.pop("name", None)
    return _overlay(inherited, content)


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            value = _overlay(below, value)
        merged[key] = value
    return merged


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"'{override}': expected key=value, such as trainer.max_steps=100")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):
        value = _number_or_text(value)
    *parents, last = key.split(".")
    node = content
    for name in parents:
        child = node.get(name)
        if isinstance(child, str) and parents[0] == "callbacks":
            child = {"preset": child}
        if not isinstance(child, dict):
            child = {}
        node[name] = child
        node = child
    node[last] = value


def _number_or_text(text: str) -> Any:
    """YAML 1.1 takes `2e-5` for a string; people who type it mean a number."""
    try:
        return float(text) if text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


def _expand_preset(name: str, callback: Any) -> Any:
    """A callback entry is a mapping with `_target_`, or names a preset and may override parts."""
    if isinstance(callback, str):
        callback = {"preset": callback}
    if not isinstance(callback, dict):
        raise ConfigError(
            f"callbacks.{name}: expected a preset's name or a mapping with _target_ or preset,"
            f" got {callback!r}"
        )
    if "preset" in callback:
        presets = resource_files("callbacks")
        preset = callback["preset"]
        if preset not in presets:
            raise ConfigError(
                f"callbacks.{name}.preset: no preset '{preset}'.{nearest(str(preset), presets)}"
                f" Known presets: {', '.join(presets)}."
            )
        own = {key: value for key, value in callback.items() if key != "preset"}
        callback = _overlay(read_yaml(presets[preset]), own)
    if "_target_" not in callback:
        raise ConfigError(
            f"callbacks.{name}: expected '_target_' (a class) or 'preset' (one of"
            f" {', '.join(resource_files('callbacks'))}), got the keys"
            f" {', '.join(callback) or 'none'}"
        )
    return callback


def _dataclass_in(annotation: Any) -> Any:
    """The dataclass of `X`, `X | None` or `dict[str, X]`, with whether it is a mapping of them."""
    options = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for option in options:
        if dataclasses.is_dataclass(option):
            return option, False
        if typing.get_origin(option) is dict and dataclasses.is_dataclass(
            typing.get_args(option)[1]
        ):
            return typing.get_args(option)[1], True
    return None, False


def _all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(schema):
        yield prefix + item.name
        inner, is_mapping = _dataclass_in(item.type)
        if inner is not None and not is_mapping:
            yield from _all_keys(inner, f"{prefix}{item.name}.")


def _check_keys(content: Mapping[str, Any], schema: Any, prefix: str) -> None:
    fields = {item.name: item for item in dataclasses.fields(schema)}
    for key, value in content.items():
        if key not in fields:
            everywhere = {path.rsplit(".", 1)[-1]: path for path in _all_keys(Config)}
            hint = nearest(str(key), fields)
            moved = difflib.get_close_matches(str(key), everywhere, n=1, cutoff=0.75)
            if not hint and moved:
                hint = f" Did you mean '{everywhere[moved[0]]}'?"
            raise ConfigError(
                f"unknown key '{prefix}{key}'.{hint or ' Known here: ' + ', '.join(fields) + '.'}"
            )
        inner, is_mapping = _dataclass_in(fields[key].type)
        if inner is None or value is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{prefix}{key}: expected a mapping, got {value!r}")
        if not is_mapping:
            _check_keys(value, inner, f"{prefix}{key}.")
            continue
        for name, entry in value.items():
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{prefix}{key}.{name}: expected a mapping, got {entry!r}")
            _check_keys(entry, inner, f"{prefix}{key}.{name}.")


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or "recipe"
    reason = str(error).splitlines()[0]
    if "MissingMandatory" in type(error).__name__ or "mandatory" in reason.lower():
        return f"{key}: a value is required"
    return f"{key}: {reason[0].lower()}{reason[1:]}"
