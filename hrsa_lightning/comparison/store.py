"""Representations on disk: one safetensors file per layer, written in any order, read by mapping.

```
<name>-<hash>/
  layer_0.safetensors …   a tensor `rows` of shape (rows, features), float32
  representations.json    written last: complete
```
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from hrsa_lightning.similarity.extraction import Snapshot

__all__ = ["RepresentationWriter", "Representations"]

_INDEX = "representations.json"
_HEADER_BYTES = 256
_LENGTH_BYTES = 8


class Representations:
    """What one model made of the texts, layer by layer; nothing is held in memory.

    Args:
        folder: Where `RepresentationWriter` wrote it.

    Attributes:
        layers: Names in the order of depth.
        num_rows: Rows of every layer, by its name.
        widths: Features of every layer, by its name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        self.layers: list[str] = content["layers"]
        self.num_rows: dict[str, int] = {}
        self.widths: dict[str, int] = {}
        for layer in self.layers:
            self.num_rows[layer], self.widths[layer] = self.rows(layer).shape

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether a model was run to its end there."""
        return (folder / _INDEX).is_file()

    def rows(self, layer: str) -> Tensor:
        """(rows, features) of a layer, float32, on the CPU; pages are read when they are used."""
        with safe_open(_file(self._folder, layer), "pt") as content:
            rows: Tensor = content.get_tensor("rows")
        return rows


class RepresentationWriter:
    """Writes batches of rows as they come; a folder that was begun and not finished is replaced.

    Args:
        folder: Made new.
        layers: Names of the layers.
    """

    def __init__(self, folder: Path, layers: Sequence[str]) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {}
        self._shapes = {layer: [0, 0] for layer in layers}
        for layer in layers:
            self._files[layer] = _file(folder, layer).open("wb")
            self._files[layer].write(b" " * _HEADER_BYTES)

    def add(self, snapshot: Snapshot, spans: Sequence[tuple[int, int]]) -> None:
        """Put rows in their places.

        Args:
            snapshot: Layer to (rows, features), the rows of one text after those of another.
            spans: Of each of these texts the first row in the file, and the number of rows.
        """
        for layer, tensor in snapshot.items():
            rows, file, shape = _as_floats(tensor), self._files[layer], self._shapes[layer]
            taken = 0
            for start, count in spans:
                file.seek(_HEADER_BYTES + start * rows[0].nbytes)
                file.write(rows[taken : taken + count].data)
                taken += count
            shape[:] = shape[0] + len(rows), rows.shape[1]

    def finish(self, about: dict[str, Any]) -> None:
        """Write the headers and, last, the index with what else is to be known."""
        for layer, file in self._files.items():
            file.seek(0)
            file.write(_header(self._shapes[layer]))
            file.close()
        content = {"layers": list(self._files), **about}
        (self._folder / _INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def abandon(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk cannot take what is still in the buffer
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _as_floats(rows: Tensor) -> NDArray[np.float32]:
    floats: NDArray[np.float32] = rows.to("cpu", torch.float32).contiguous().numpy()
    return floats


def _header(shape: Sequence[int]) -> bytes:
    """Header of a safetensors file with one tensor, padded to a fixed size as the format allows."""
    end = 4 * shape[0] * shape[1]
    entry = {"rows": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, end]}}
    size = _HEADER_BYTES - _LENGTH_BYTES
    return size.to_bytes(_LENGTH_BYTES, "little") + json.dumps(entry).encode().ljust(size)


def _file(folder: Path, layer: str) -> Path:
    return folder / f"{layer.replace('/', '_')}.safetensors"
