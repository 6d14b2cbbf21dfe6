"""Names of the models of a comparison, for tables and files. Imports no torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.sources import Source, find_sources

__all__ = ["name_models"]

_NAMED = re.compile(r"([\w.-]+)=(.+)")


def name_models(specs: Sequence[str], base: str | None = None) -> dict[str, Source]:
    """Understand the models of a command line.

    Args:
        specs: Each `[NAME=]MODEL`, where MODEL is as in `hrsa_lightning.sources`; the name of a run
            goes before those of its arms.
        base: Backbone of the adapters; by default the one that their own config names.

    Returns:
        At least two models by different names, in their order.

    Raises:
        ConfigError: There are fewer than two, or a run has no such arm.
        BackboneError: A folder is missing or holds no model.
    """
    names: list[str] = []
    sources: list[Source] = []
    for spec in specs:
        named = None if Path(spec).exists() else _NAMED.fullmatch(spec)
        given, text = (named[1], named[2]) if named else (None, spec)
        found = find_sources(text, base)
        for source in found:
            resolve_backbone(source.backbone)
            own = _file_name(source.place.name)
            parts = [given, own] if len(found) > 1 else [given or own]
            names.append("_".join(part for part in parts if part))
        sources += found
    if len(sources) < 2:
        raise ConfigError(
            f"expected at least two models, got {', '.join(source.spec for source in sources)}"
        )
    return dict(zip(_unique(names, sources), sources, strict=True))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text) or "model"


def _unique(names: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """Models of one name get that of their owner as well, and where that is shared, a number."""
    longer = [
        _file_name(f"{source.place.parent.name}_{name}") if names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]
    unique: list[str] = []
    for place, name in enumerate(longer):
        same = longer[:place].count(name)
        unique.append(f"{name}_{same + 1}" if same else name)
    return unique
