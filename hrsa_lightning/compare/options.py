"""Options of a comparison: which models, how they are run, what is measured. Imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.runs.resolve import Source, find_sources

__all__ = ["EXTRAS", "METRICS", "ExtractionOptions", "MetricOptions", "name_models"]

METRICS = ("cka", "knn_overlap", "procrustes", "dimension_correlation", "probe_transfer")
"""The five metrics, as `--metrics` names them; `cka` has plain and standardized values, too."""

EXTRAS: tuple[Literal["cknna", "predictivity"], ...] = ("cknna", "predictivity")
"""More metrics for `--metrics`, which `all` leaves out."""

_NAMED = re.compile(r"([\w.-]+)=(.+)")


@dataclass(frozen=True)
class ExtractionOptions:
    """How a model turns texts into rows.

    Attributes:
        level: `sentence` has one row per text, `token` one per token.
        layers: `all` (every decoder layer, and the output), `last` (the last decoder layer, and the
            output), or globs over `EmbeddingModel.named_modules()`.
        pooling: Of layers at sentence level, and of the embedding of models that were not trained
            with another one: `mean`, `first` or `last`.
        max_length: Most tokens of a text.
        batch_size: Texts of full length per forward pass; more where they are shorter, and fewer on
            a CPU, where large batches gain nothing.
        exclude_first_token: Leave each text's first token out of the layers.
        attention: `causal`, `bidirectional` or `auto`: as a run trained it, else as the config says
            (`is_causal`), else causal, as decoders are pretrained.
        dtype: Of the weights; `None` takes that of the run, else float32.
    """

    level: Literal["sentence", "token"] = "sentence"
    layers: tuple[str, ...] = ("all",)
    pooling: Literal["mean", "first", "last"] = "mean"
    max_length: int = 128
    batch_size: int = 32
    exclude_first_token: bool = False
    attention: Literal["auto", "causal", "bidirectional"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None


@dataclass(frozen=True)
class MetricOptions:
    """What is measured between two models.

    Attributes:
        metrics: Some of `METRICS` and `EXTRAS`.
        protocol: See `hrsa_lightning.functional.orthogonal_procrustes`.
        k: Numbers of neighbors.
        by_label: Also measure within each label.
        standardize: Draw the map of CKA with every feature brought to unit variance.
        null: Permutations of the rows for 95 % levels and p-values; 0 for none.
    """

    metrics: tuple[str, ...] = METRICS
    protocol: Literal["held_out", "paper", "in_sample"] = "held_out"
    k: tuple[int, ...] = (10, 50)
    by_label: bool = False
    null: int = 200
    standardize: bool = False


def name_models(specs: Sequence[str], base: str | None = None) -> dict[str, Source]:
    """Understand the models of a command line.

    Args:
        specs: Each `[NAME=]MODEL`, where MODEL is as in `hrsa_lightning.runs.resolve`; the name of
            a run goes before those of its arms.
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
    same = [longer[:place].count(name) for place, name in enumerate(longer)]
    return [f"{name}_{n + 1}" if n else name for name, n in zip(longer, same, strict=True)]
