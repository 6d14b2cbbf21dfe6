"""Checkpoints of transformers: whether their weights are whole, and tokenizers as they have them.

Importing this module imports no torch: a damaged folder is answered before the heavy imports.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, cast

from hrsa_lightning.errors import BackboneError, shown
from hrsa_lightning.io.files import read_json

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")
"""Of a model's repository: no pickles, and Python files only where remote code is allowed."""

_INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_GENERAL_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})


def check_weights(source: str | os.PathLike[str], revision: str | None = None) -> None:
    """Refuses weights that are cut off, in files of other formats, or not those of config.json.

    Of a folder the headers are read; of a hub model the index of its files, where it has one.

    Raises:
        BackboneError: The message names the file.
    """
    folder = Path(source)
    if not folder.is_dir():
        _check_hub_index(os.fspath(source), revision)
        return
    layers: set[int] = set()
    for path in _weight_files(folder):
        for name in _read_header(path):
            if match := _LAYER.search(name):
                layers.add(int(match[1]))
    config = read_json(folder / "config.json")
    stated = config.get("num_hidden_layers")
    if not isinstance(stated, int) or not layers or config.get("num_nextn_predict_layers"):
        return
    if max(layers) >= stated:
        raise BackboneError(
            f"{folder / 'config.json'}: num_hidden_layers: expected {max(layers) + 1} as there are "
            f"in the weights, got {stated}"
        )


def _check_hub_index(name: str, revision: str | None) -> None:
    from transformers.utils.hub import cached_file

    index = cached_file(
        name,
        _INDEX,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is not None:
        _names_in(Path(index))


def _names_in(path: Path) -> list[str]:
    """Names of the weight files in an index of shards.

    Raises:
        BackboneError: One is no safetensors file beside it: transformers reads such a file as a
            pickle, whoever asked for safetensors.
    """
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BackboneError(f"{path}: expected a mapping weight_map, got {shown(names)}")
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BackboneError(
                f"{path}: weight_map: expected names of .safetensors files beside it, got "
                f"{shown(name)}"
            )
    return sorted(set(names.values()))


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads, one or those of the index."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    for name in (names := _names_in(index)):
        if not (folder / name).is_file():
            raise BackboneError(f"{index}: weight_map: no file {shown(name)} beside it")
    return [folder / name for name in names]


def _read_header(path: Path) -> dict[str, Any]:
    """Names, dtypes, shapes and places of the weights in a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise BackboneError(f"{path}: no safetensors file, or cut off within its header")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            raise BackboneError(f"{path}: no safetensors file: its header is not valid") from None
    if size != 8 + length + end:
        raise BackboneError(f"{path}: expected {8 + length + end:,} bytes, got {size:,}: cut off?")
    return cast(dict[str, Any], header)


def read_tokenizer(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a tokenizer of transformers from a folder or the hub.

    Where tokenizer_config.json names no class of its own but the general one, tokenizer.json is
    taken as it is: AutoTokenizer would put the family's rules for splitting words in the place of
    the checkpoint's.

    Returns:
        The tokenizer, in whatever class transformers finds for it.

    Raises:
        OSError: As transformers raises it where files are missing; and likewise ValueError,
            ImportError and KeyError where they are not understood.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings = get_tokenizer_config(source, revision=revision)
    general = settings.get("tokenizer_class") in _GENERAL_CLASSES
    loader: Any = PreTrainedTokenizerFast if general else AutoTokenizer
    return loader.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
