"""Options of a comparison: which models, how they are run, what is measured. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from hrsa_lightning.config.load import read_yaml
from hrsa_lightning.errors import ConfigError, DataError, nearest, shown
from hrsa_lightning.io.files import exists
from hrsa_lightning.io.sources import HUB_PREFIX, PRESET_PREFIX, TextEntry, as_mapping
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.runs.resolve import Source, find_sources
from hrsa_lightning.similarity.metric_info import METRICS

PAIRS = ("paper", "tiny")
"""Groups of pairs that come with the package, in `pairs.yaml`."""

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
        max_tokens: Most rows at token level, taken evenly from each text; `None` takes all.
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
    max_tokens: int | None = None

    def of(self, entry: TextEntry) -> "ExtractionOptions":
        """These options, with what an entry of texts says of its own."""
        levels = {"pooled": "sentence", "token": "token", None: self.level}
        return replace(
            self,
            level=levels[entry.level],
            max_length=entry.max_length or self.max_length,
            max_tokens=entry.max_tokens,
        )


@dataclass(frozen=True)
class MetricOptions:
    """What is measured between two models.

    Attributes:
        metrics: Some of `METRICS` and `EXTRAS` of `hrsa_lightning.similarity.metric_info`.
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


def read_text_entries(given: Sequence[str], **options: Any) -> dict[str, TextEntry]:
    """Understand the texts of a command line, without reading them.

    Args:
        given: Each `[NAME=]SOURCE`, where SOURCE is what `TextEntry.of` takes, or a `.yaml` file
            of entries by name.
        options: Fields of all entries that do not say them.

    Returns:
        Entries by name; a single one may have an empty name.

    Raises:
        DataError: An entry has no meaning, or two have one name.
    """
    entries: dict[str, TextEntry] = {}
    chosen = {key: value for key, value in options.items() if value is not None}
    for text in given:
        named = None if exists(text) else _NAMED.fullmatch(text)
        name, source = (named[1], named[2]) if named else ("", text)
        several: Mapping[str, Any] = {name: source}
        if source.endswith((".yaml", ".yml")):
            several = _read_names("--texts", Path(source))
        for key, value in several.items():
            try:
                entry = TextEntry.of({**chosen, **as_mapping(value)})
            except DataError as error:
                raise DataError(f"--texts {key or source}: {error}") from None
            title = str(key) if key or len(given) == 1 else _title(source)
            if title in entries:
                raise DataError(f"--texts {title}: expected names that differ; write NAME=SOURCE")
            entries[title] = entry
    return entries


def _title(source: str) -> str:
    for prefix in (PRESET_PREFIX, HUB_PREFIX):
        if source.startswith(prefix):
            return _file_name(source.removeprefix(prefix))
    return _file_name(Path(source).stem)


@dataclass(frozen=True)
class ModelPair:
    """A model and what was made of it.

    Attributes:
        base: As `compare` takes it.
        tuned: As `compare` takes it.
        kind: How it was made, such as SFT or RLVR.
    """

    base: str
    tuned: str
    kind: str = ""


def read_model_pairs(given: str) -> dict[str, ModelPair]:
    """Pairs of models by name.

    Args:
        given: `paper` or `tiny` (those that come with the package), or a `.yaml` file; with `:NAME`
            behind it, that pair alone.

    Raises:
        ConfigError: There is no such file or pair, or an entry is none.
    """
    address, _, chosen = given.partition(":") if not exists(given) else (given, "", "")
    shipped = Path(__file__).with_name("pairs.yaml")
    content = _read_names("--pairs", shipped if address in PAIRS else Path(address))
    if address in PAIRS:
        content = content[address]
    known = {field.name for field in fields(ModelPair)}
    pairs = {}
    for name, entry in content.items():
        own = dict(entry) if isinstance(entry, Mapping) else {"": entry}
        for key in ("tables", "recipe"):
            own.pop(key, None)
        if not {"base", "tuned"} <= own.keys() <= known or not all(
            isinstance(value, str) for value in own.values()
        ):
            raise ConfigError(
                f"--pairs {name}: expected texts base, tuned and kind, got {shown(entry)}"
            )
        pairs[name] = ModelPair(**own)
    if chosen and chosen not in pairs:
        raise ConfigError(
            f"--pairs {given}: expected one of {', '.join(pairs)}.{nearest(chosen, pairs)}"
        )
    return {chosen: pairs[chosen]} if chosen else pairs


def _read_names(option: str, path: Path) -> dict[str, Any]:
    """What a file says of each name."""
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(f"{option} {error}") from None
    if not content:
        raise ConfigError(f"{option} {path}: expected a mapping of names, got an empty one")
    return content
