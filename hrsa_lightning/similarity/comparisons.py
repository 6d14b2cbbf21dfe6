"""What is compared with what: from the `reference=` of a user to an arm and its reference."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import nn

from hrsa_lightning.errors import ConfigError
from hrsa_lightning.similarity.measurement import comparison_name
from hrsa_lightning.similarity.references import (
    INITIAL,
    ArmReference,
    CheckpointReference,
    InitialReference,
    ModelReference,
    ModuleReference,
    PretrainedReference,
    Reference,
    TraceReference,
)
from hrsa_lightning.similarity.trace import RepresentationTrace

PAIRS = "pairs"

_CHECKPOINT_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}


@dataclass(frozen=True)
class Comparison:
    """One live arm against one reference."""

    arm: str
    reference: Reference

    @property
    def name(self) -> str:
        """Such as `rlvr_vs_base`."""
        return comparison_name(self.arm, self.reference.name)


def parse_references(reference: Any, layers: Sequence[str] | None = None) -> list[Reference | str]:
    """Understand the `reference=` of an evaluator.

    Args:
        reference: `"initial"`, `"pairs"`, `"arm:NAME"`, `"trace:FOLDER"`, a checkpoint file, a
            folder or hub id of transformers, a module, a `RepresentationTrace`, a `Reference`, a
            sequence of these, or a mapping from names to these.
        layers: Layers of models where they name them otherwise than the live models.

    Returns:
        The references, and `"pairs"` as it is.

    Raises:
        ConfigError: On anything else, when a file or folder is missing, or two have one name.
    """
    if isinstance(reference, Mapping):
        named: list[tuple[str | None, Any]] = [*reference.items()]
    elif isinstance(reference, Sequence) and not isinstance(reference, str):
        named = [(None, item) for item in reference]
    else:
        named = [(None, reference)]
    if not named:
        raise ConfigError("reference: expected at least one, got none")
    found: list[Reference | str] = []
    modules = 0
    for name, item in named:
        if isinstance(item, str) and item == PAIRS:
            found.append(item)
        elif isinstance(item, nn.Module):
            found.append(ModuleReference(name or f"reference{modules or ''}", item, layers))
            modules += 1
        else:
            found.append(_parse(name, item, layers))
    names = [each.name for each in found if isinstance(each, (ModelReference, TraceReference))]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"reference: two are called {name!r}; name them with a mapping of names to "
                "references"
            )
    return found


def comparisons_of(references: Sequence[Reference | str], arms: Sequence[str]) -> list[Comparison]:
    """All comparisons, arms against arms first.

    Args:
        references: What `parse_references` returned.
        arms: Names of the live models.

    Raises:
        ConfigError: When a named arm does not exist, or two comparisons have one name.
    """
    found: list[Comparison] = []
    if PAIRS in references:
        found += [
            Comparison(live, ArmReference(base, live)) for base, live in combinations(arms, 2)
        ]
    given = [reference for reference in references if isinstance(reference, Reference)]
    for reference in sorted(given, key=lambda reference: reference.order):
        for arm in reference.arms(arms):
            pair = {arm, reference.name}
            if isinstance(reference, ArmReference) and any(
                {c.arm, c.reference.name} == pair for c in found
            ):
                continue  # the same two arms, seen from the other side
            found.append(Comparison(arm, reference))
        source = reference.source if isinstance(reference, PretrainedReference) else ""
        if source in arms and not Path(source).exists():
            raise ConfigError(
                f"reference: {source!r} is a model in training; 'arm:{source}' compares with it"
            )
    names = [comparison.name for comparison in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"reference: two comparisons are called {name!r}; rename an arm, or name the "
                "references with a mapping of names to references"
            )
    return found


def _parse(name: str | None, item: Any, layers: Sequence[str] | None) -> Reference:
    if isinstance(item, Reference):
        return item
    if isinstance(item, RepresentationTrace):
        return TraceReference(name or _plain(item.folder.name), item)
    if not isinstance(item, (str, Path)):
        raise ConfigError(
            "reference: expected 'initial', 'pairs', 'arm:NAME', a path, a hub id, a module or a "
            f"trace, got {type(item).__name__}"
        )
    text = str(item)
    if text == INITIAL:
        return InitialReference()
    if text.startswith("arm:"):
        return ArmReference(text.removeprefix("arm:"))
    path = Path(text.removeprefix("trace:")).expanduser()
    if text.startswith("trace:") or (path / "trace.json").is_file():
        return TraceReference(name or _plain(path.name), RepresentationTrace(path))
    if not path.exists() and (meant := _meant(text)):
        raise ConfigError(f"reference: expected a folder, file, hub id or {meant!r}, got {text!r}")
    if path.suffix in _CHECKPOINT_SUFFIXES:
        return CheckpointReference(name or _plain(path.stem), text)
    return PretrainedReference(name or _plain(path.name), text, layers)


def _meant(text: str) -> str:
    """The word that a text is but for its letters' case or an ending; else an empty string."""
    word, colon, rest = text.partition(":")
    known = ("arm", "trace") if colon else (INITIAL, PAIRS)
    near = difflib.get_close_matches(word.strip().lower(), known, n=1, cutoff=0.75)
    return f"{near[0]}{colon}{rest.strip()}" if near else ""


def _plain(text: str) -> str:
    """A name that every logger takes in a tag."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text) or "reference"
