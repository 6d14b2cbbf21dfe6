"""What a recipe says, read from YAML and `key=value` overrides. Imports no torch.

`config.build` turns a `Config` into models, data, callbacks and a trainer; import it by name.
"""

from hrsa_lightning.config.load import (
    describe_presets,
    describe_recipes,
    flat_settings,
    flatten,
    load_config,
    load_settings,
    read_yaml,
    to_yaml,
)
from hrsa_lightning.config.schema import Config

__all__ = [
    "Config",
    "describe_presets",
    "describe_recipes",
    "flat_settings",
    "flatten",
    "load_config",
    "load_settings",
    "read_yaml",
    "to_yaml",
]
