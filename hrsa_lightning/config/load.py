"""Recipes: YAML files and `key=value` overrides, checked against dataclasses.

This is the only module that knows OmegaConf, and it imports no torch: a mistake in a recipe is
answered at once. `build.py` turns the result into objects.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hrsa_lightning.config.schema import Config, check_together
from hrsa_lightning.errors import ConfigError, DataError, cut, first_line, nearest, shown
from hrsa_lightning.io.files import expand_user, is_file, is_text, read_text
from hrsa_lightning.io.resources import resource_files

_MOST_NODES = 20_000
"""Of a recipe with its aliases written out; the largest that is shipped has about 100."""

_MOST_LEVELS = 40
_MOST_BYTES = 1_000_000


def load_settings(settings: Sequence[str]) -> Config:
    """Read what a command was given: one `recipe=NAME` among `key=value` overrides.

    Raises:
        ConfigError: There is no recipe, or more than one; and as `load_config`.
    """
    chosen = [text.removeprefix("recipe=") for text in settings if text.startswith("recipe=")]
    if len(chosen) != 1:
        raise ConfigError(
            f"expected one recipe=NAME, got {len(chosen)}. Recipes: {', '.join(describe_recipes())}"
        )
    return load_config(chosen[0], [text for text in settings if not text.startswith("recipe=")])


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
    content.setdefault("name", re.sub(r"[^\w.-]+", "_", Path(recipe).stem).lstrip(".-")[:64])
    for override in overrides:
        _apply_override(content, override)
    for section in ("arms", "callbacks"):
        if content.get(section) is None:
            content[section] = {}
        elif isinstance(content[section], dict):
            content[section] = {k: v for k, v in content[section].items() if v is not None}
    if isinstance(content["callbacks"], dict):
        presets = content["callbacks"].items()
        content["callbacks"] = {name: _expand_preset(name, preset) for name, preset in presets}
    plain = _typed(content, Config, "")
    try:
        merged = OmegaConf.merge(_structured(), plain)
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from None
    _check_rules(config, "")
    check_together(config)
    config.output_dir = expand_user(config.output_dir)
    return config


@functools.cache
def _structured() -> Any:
    return OmegaConf.structured(Config)  # merging copies it


def to_yaml(config: Config) -> str:
    """The resolved recipe as YAML; loading it gives an equal `Config`."""
    content = dataclasses.asdict(config)
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=99))


def flat_settings(config: Config) -> dict[str, Any]:
    """The recipe as one row: dotted keys and their values, callbacks left out.

    Example:
        >>> flat_settings(Config(name="x"))["optimizer.lr"]
        2e-05
    """

    content = dataclasses.asdict(config)
    del content["callbacks"]
    return dict(flatten(content))


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings, and their values."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe_recipes() -> dict[str, str]:
    """Name and one-line description of each recipe that is shipped."""
    found = {}
    for name, path in resource_files("recipes").items():
        found[name] = str(read_yaml(path).get("description", ""))
    return found


def describe_presets() -> dict[str, str]:
    """Name and first line of each callback preset that is shipped."""
    files = resource_files("callbacks").items()
    return {name: read_text(path).partition("\n")[0].removeprefix("# ") for name, path in files}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: The file is not YAML or holds no mapping; with its name and line.
    """
    return typing.cast(dict[str, Any], _plain(_read_mapping(path), str(path)))


class _Scalar(typing.NamedTuple):
    """A number or a truth value of a recipe, for keys that hold text also as it was written."""

    value: Any
    written: str

    def __repr__(self) -> str:
        return self.written


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without the turns of version 1.1: `12:30:00` and `010` are texts, `1e-3` is a number."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}

    def _with_text(self, node: Any) -> _Scalar:
        convert = yaml.SafeLoader.yaml_constructors[node.tag]
        return _Scalar(convert(self, node), node.value)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes the texts that `_Loader` would take for something else."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}


_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": ("~nN", r"~|null|Null|NULL|"),
    "bool": ("yYnNtTfFoO", r"(?i:yes|no|true|false|on|off)"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+"),
    "float": (
        "-+0123456789.",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
    "merge": ("<", "<<"),
}
"""What a scalar without quotes is, by its first character and its form; else a text."""

for _kind, (_first, _form) in _PLAIN.items():
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(_TAG + _kind, re.compile(f"({_form})$"), [*_first, ""])
for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader._with_text)
_TAGS = {_TAG + kind for kind in (*_PLAIN, "str", "seq", "map")}


def _parse_yaml(text: str) -> Any:
    """What YAML says; numbers and truth values as `_Scalar`.

    Raises:
        YAMLError: It is none; or a key is there twice, a tag is not a plain one, or it is larger or
            deeper than recipes are, its aliases written out.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # of a number with more digits than Python converts
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    pending, count = [(root, 0)], 0
    while pending:
        node, level = pending.pop()
        count += 1
        problem = ""
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key is no text"
                elif key.tag != f"{_TAG}merge":
                    key.tag = f"{_TAG}str"
                    problem = problem or (f"the key '{key.value}' twice" * (key.value in seen))
                    seen.add(key.value)
                children.append(value)
        if node.tag not in _TAGS:
            problem = f"the tag {node.tag}"
        elif level > _MOST_LEVELS:
            problem = "nested too deeply"
        elif count > _MOST_NODES:
            problem = "too many entries, aliases written out"
        if problem:
            raise yaml.MarkedYAMLError(problem=cut(problem), problem_mark=node.start_mark)
        pending += [(child, level + 1) for child in children]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(read_text(path, _MOST_BYTES))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{path}{line}: not valid YAML ({cut(problem, 100)})") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(content, dict):
        kind = type(getattr(content, "value", content)).__name__
        raise ConfigError(f"{path}: expected a mapping of keys, got {kind}")
    return content


def _plain(content: Any, key: str) -> Any:
    """Numbers and truth values as such; texts are checked."""
    if isinstance(content, _Scalar):
        return content.value
    if isinstance(content, Mapping):
        return {_plain(k, key): _plain(v, f"{key}.{cut(k)}") for k, v in content.items()}
    if isinstance(content, list):
        return [_plain(item, key) for item in content]
    if isinstance(content, str):
        if not is_text(content):
            raise ConfigError(f"{key}: expected text in Unicode without NUL, got {shown(content)}")
        if "${" in content:
            raise ConfigError(
                f"{key}: expected a value, got {shown(content)}; recipes hold no interpolations,"
                " the shell can fill in variables on the command line"
            )
    return content


def _read_recipe(recipe: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    recipes = resource_files("recipes")
    path = recipes.get(recipe, Path(expand_user(recipe)))
    if not is_file(path):
        raise ConfigError(
            f"recipe={cut(recipe)}: no such recipe or file.{nearest(recipe, recipes)}"
            f" Known recipes: {', '.join(recipes)}."
        )
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: 'defaults' leads back to the recipe itself")
    content = _read_mapping(path)
    if isinstance(callbacks := content.get("callbacks"), dict):
        for name in (name for name, preset in callbacks.items() if isinstance(preset, str)):
            callbacks[name] = {"preset": callbacks[name]}
    base = content.pop("defaults", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ConfigError(f"{path}: defaults: expected the name of one recipe, got {shown(base)}")
    beside = path.parent / f"{base}.yaml"
    named = str(beside) if base not in recipes and is_file(beside) else base
    inherited = _read_recipe(named, (*seen, path))
    inherited.pop("name", None)
    return _overlay(inherited, content)


def _overlay(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged; one that names a preset is a callback of its own and replaces."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict) and "preset" not in value:
            value = _overlay(below, value)
        merged[key] = value
    return merged


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"'{cut(override)}': expected key=value, such as trainer.max_steps=100")
    try:
        value = _parse_yaml(text) if text else ""
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    if len(parents) > _MOST_LEVELS:
        raise ConfigError(f"unknown key '{cut(key)}': it has {len(parents) + 1} parts")
    node = content
    for name in parents:
        child = node.get(name)
        if isinstance(child, str) and parents[0] == "callbacks":
            child = {"preset": child}
        if not isinstance(child, dict):
            child = {}
        node[name] = child
        node = child
    if parents[:1] == ["callbacks"] and last == "preset":
        node.clear()  # as where a recipe names one
    node[last] = value


def _expand_preset(name: str, callback: Any) -> Any:
    """A callback entry is a mapping with `_target_`, or names a preset and may override parts."""
    if isinstance(callback, str):
        callback = {"preset": callback}
    if not isinstance(callback, dict):
        raise ConfigError(
            f"callbacks.{cut(name)}: expected a preset's name or a mapping with _target_ or"
            f" preset, got {shown(callback)}"
        )
    if "preset" in callback:
        presets = resource_files("callbacks")
        preset = callback["preset"]
        if not isinstance(preset, str) or preset not in presets:
            raise ConfigError(
                f"callbacks.{cut(name)}.preset: no preset {shown(preset)}."
                f"{nearest(str(preset), presets)}"
                f" Known presets: {', '.join(presets)}."
            )
        own = {key: value for key, value in callback.items() if key != "preset"}
        callback = _overlay(read_yaml(presets[preset]), own)
    if "_target_" not in callback:
        raise ConfigError(
            f"callbacks.{cut(name)}: expected '_target_' (a class) or 'preset' (one of"
            f" {', '.join(resource_files('callbacks'))}), got the keys"
            f" {cut(', '.join(callback) or 'none')}"
        )
    return callback


def _container_in(annotation: Any) -> type | None:
    """`list` or `dict` where the values of a key are one; sections are mappings."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    for option in (annotation, *options):
        if typing.get_origin(option) in (list, dict):
            return typing.cast(type, typing.get_origin(option))
        if dataclasses.is_dataclass(option):
            return dict
    return None


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


def _typed(content: Mapping[str, Any], schema: Any, prefix: str) -> dict[str, Any]:
    """Plain values for every key, which the schema has to know; as written where it holds text."""
    fields = {item.name: item for item in dataclasses.fields(schema)}
    result: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            raise ConfigError(_unknown(key, fields, prefix))
        inner, is_mapping = _dataclass_in(fields[key].type)
        kind = _container_in(fields[key].type)
        if kind is not None and value is not None and not isinstance(value, kind):
            word = "list" if kind is list else "mapping"
            raise ConfigError(f"{prefix}{key}: expected a {word}, got {shown(value)}")
        if inner is None or value is None:
            if fields[key].type in (str, str | None) and isinstance(value, _Scalar):
                value = value.written
            result[key] = _plain(value, prefix + key)
            if fields[key].type is bool and not isinstance(result[key], bool):
                raise ConfigError(f"{prefix}{key}: expected true or false, got {shown(value)}")
            continue
        if not is_mapping:
            result[key] = _typed(value, inner, f"{prefix}{key}.")
            continue
        result[key] = {}
        for name, entry in value.items():
            where = f"{prefix}{key}.{cut(name)}"
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{where}: expected a mapping, got {shown(entry)}")
            result[key][name] = _typed(entry, inner, f"{where}.")
    return result


def _unknown(key: str, fields: Mapping[str, Any], prefix: str) -> str:
    everywhere = {path.rsplit(".", 1)[-1]: path for path in _all_keys(Config)}
    hint = nearest(key, fields)
    moved = difflib.get_close_matches(key[:100], everywhere, n=1, cutoff=0.75)
    if not hint and moved:
        hint = f" Did you mean '{everywhere[moved[0]]}'?"
    return f"unknown key '{prefix}{cut(key)}'.{hint or ' Known here: ' + ', '.join(fields) + '.'}"


def _check_rules(section: Any, prefix: str) -> None:
    """Hold every value of a section, and of the sections in it, against the rule of its key."""
    for item in dataclasses.fields(section):
        value, key = getattr(section, item.name), prefix + item.name
        rule = item.metadata.get("rule")
        if dataclasses.is_dataclass(value):
            _check_rules(value, f"{key}.")
        elif isinstance(value, dict) and _dataclass_in(item.type)[1]:
            for name, entry in value.items():
                _check_rules(entry, f"{key}.{cut(name)}.")
        elif value is None and (item.type is not Any or item.default is None):
            continue  # where null is not allowed, OmegaConf has said so
        elif rule is not None:
            in_list = isinstance(value, list) and item.type is not Any
            for entry in value if in_list else [value]:
                if problem := rule.problem(entry):
                    raise ConfigError(f"{key}: {problem}")


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or "recipe"
    reason = first_line(error)
    if "MissingMandatory" in type(error).__name__ or "mandatory" in reason.lower():
        return f"{cut(key)}: a value is required"
    return f"{cut(key)}: {cut(reason[0].lower() + reason[1:], 150)}"
