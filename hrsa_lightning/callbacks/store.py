"""Where representations of references are kept: in memory, or in files read layer by layer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrsa_lightning.representations.capture import Snapshot

__all__ = ["ReferenceStore", "StoreOn"]

StoreOn = Literal["cpu", "device", "disk"]
_SEPARATOR = "|"


class ReferenceStore:
    """Representations by (reference, arm, probe set).

    Args:
        folder: Write one file per reference here; `None` keeps tensors in memory.
        prefix: Begins the file names.
    """

    def __init__(self, folder: Path | None = None, prefix: str = "") -> None:
        self._folder = folder
        self._prefix = prefix
        self._kept: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}

    def __contains__(self, reference: str) -> bool:
        return reference in self._files or any(
            key.split(_SEPARATOR)[0] == reference for key in self._kept
        )

    def put(
        self, reference: str, snapshots: dict[str, dict[str, Snapshot]], *, write: bool = True
    ) -> None:
        """Keep the representations of one reference.

        Args:
            reference: Its name.
            snapshots: Probe set to arm to layer to rows.
            write: Whether this process writes the file (rank 0), or will only read it.
        """
        tensors = {
            _SEPARATOR.join((reference, probes, arm, layer)): rows
            for probes, arms in snapshots.items()
            for arm, snapshot in arms.items()
            for layer, rows in snapshot.items()
        }
        if self._folder is None:
            self._kept |= tensors
            return
        path = self._folder / f"{self._prefix}_reference_{reference}.safetensors"
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file({key: rows.cpu().contiguous() for key, rows in tensors.items()}, partial)
            partial.replace(path)
        self._files[reference] = path

    def snapshot(self, reference: str, probes: str, arm: str) -> Snapshot:
        """Layer to rows of one arm; empty when nothing is kept for it."""
        start = _SEPARATOR.join((reference, probes, arm, ""))
        return {key.removeprefix(start): rows for key, rows in self._read(reference, start)}

    def state(self, reference: str) -> dict[str, Tensor] | str | None:
        """What a checkpoint has to hold: the tensors, or the path of the file."""
        if reference in self._files:
            return str(self._files[reference])
        start = reference + _SEPARATOR
        kept = {key: rows for key, rows in self._kept.items() if key.startswith(start)}
        return kept or None

    def restore(self, reference: str, state: dict[str, Tensor] | str | None) -> bool:
        """Go on with what `state` remembers; false when its file is gone."""
        if isinstance(state, str):
            if not Path(state).is_file():
                return False
            self._files[reference] = Path(state)
        elif state:
            self._kept |= state
        return True

    def adopt(self, other: "ReferenceStore", reference: str) -> None:
        """Take over what another store keeps of a reference."""
        self.restore(reference, other.state(reference))

    def _read(self, reference: str, start: str) -> Iterator[tuple[str, Tensor]]:
        if reference not in self._files:
            yield from ((key, rows) for key, rows in self._kept.items() if key.startswith(start))
            return
        with safe_open(self._files[reference], framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, no mapping
                if key.startswith(start):
                    yield key, torch.as_tensor(file.get_tensor(key))
