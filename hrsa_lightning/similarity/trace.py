"""Recorded representations of a run, for comparing another run with it step for step.

A trace is a folder: `trace.json` names the probe sets, arms and steps, and each step has one
safetensors file. Nothing in it is executed when it is read.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.files import lock_folder, read_json, replacing, write_json
from hrsa_lightning.similarity.extraction import Representations

_INDEX = "trace.json"
_SEPARATOR = "|"


def flatten(representations: Representations) -> dict[str, Tensor]:
    """Representations by one key each, as safetensors files hold them."""
    return {
        _SEPARATOR.join((probes, arm, layer)): rows
        for probes, arms in representations.items()
        for arm, snapshot in arms.items()
        for layer, rows in snapshot.items()
    }


def write_representations(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one move; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file({key: rows.cpu().contiguous() for key, rows in tensors.items()}, partial)


class RepresentationTrace:
    """A trace that is read one step at a time.

    Args:
        folder: Where `RepresentationRecorder` wrote it.
        step: Always compare with this recorded step; `None` compares step for step.
        arm: Which arm of the recorded run; `None` takes the arm of the same name, or its only one.

    Raises:
        DataError: When the folder holds no trace, or not this step or arm.
    """

    def __init__(
        self, folder: str | Path, *, step: int | None = None, arm: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.step = step
        self.arm = arm
        index = self.folder / _INDEX
        if not index.is_file():
            raise DataError(f"no recorded trace in {str(self.folder)!r}: {_INDEX} is missing")
        description = read_json(index)
        self.steps: list[int] = description["steps"]
        self.arms: list[str] = description["arms"]
        self.fingerprints: dict[str, str] = description["probes"]
        if step is not None and step not in self.steps:
            raise DataError(f"step {step} is not in the trace {str(self.folder)!r}: {self.steps}")
        if arm is not None and arm not in self.arms:
            raise DataError(f"arm {arm!r} is not in the trace {str(self.folder)!r}: {self.arms}")

    def check_probes(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse probes other than the recorded ones.

        Args:
            fingerprints: Of the content of each probe set, by its name.

        Raises:
            DataError: When a probe set is missing or its content differs.
        """
        for name, fingerprint in fingerprints.items():
            if self.fingerprints.get(name) != fingerprint:
                raise DataError(
                    f"the trace {str(self.folder)!r} was recorded on other probes"
                    + (f" (set {name!r})" if name else "")
                )

    def layers(self, arm: str) -> list[str]:
        """Layers of a recorded arm; none where no step was recorded."""
        if not self.steps:
            return []
        step = self.steps[0] if self.step is None else self.step
        with safe_open(self.folder / _file_name(step), framework="pt") as file:
            keys = [key.split(_SEPARATOR, 2) for key in file.keys()]  # noqa: SIM118
        return list(dict.fromkeys(layer for _, owner, layer in keys if owner == arm))

    def at(self, step: int) -> Representations | None:
        """The representations to compare with at a step, `None` when none were recorded then."""
        step = step if self.step is None else self.step
        if step not in self.steps:
            return None
        recording: Representations = {}
        for key, rows in load_file(self.folder / _file_name(step)).items():
            probes, arm, layer = key.split(_SEPARATOR, 2)
            recording.setdefault(probes, {}).setdefault(arm, {})[layer] = rows
        return recording

    def arm_for(self, arm: str) -> str:
        """The recorded arm that a live arm is compared with.

        Raises:
            DataError: When the choice is not clear.
        """
        if self.arm is not None:
            return self.arm
        if arm in self.arms:
            return arm
        if len(self.arms) == 1:
            return self.arms[0]
        raise DataError(
            f"the trace {str(self.folder)!r} has no arm {arm!r}; choose one of {self.arms}"
        )


def can_record(folder: Path, run: str, *, resumes: bool) -> bool:
    """Make a folder and lock it; whether no other run has a trace there, or is writing one.

    Args:
        folder: Of a trace.
        run: Id of the run that wants to write.
        resumes: Whether a trace without an id may be its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / _INDEX
    owner = read_json(index).get("run", run if resumes else "") if index.is_file() else run
    return owner == run and lock_folder(folder)


class TraceWriter:
    """Writes a trace step by step; what is on disk is complete after every step.

    Args:
        folder: Made when missing. A trace that is already there is begun anew, unless it is taken
            over.
        fingerprints: Hash of each probe set.
        run: Id of the run that is recorded.
    """

    def __init__(
        self, folder: str | Path, fingerprints: Mapping[str, str], run: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._fingerprints = dict(fingerprints)
        self._steps: list[int] = []

    def take_over(self, source: Path, until: int) -> bool:
        """Go on with a trace, for a run that resumes.

        Files are shared with a trace in another folder where the file system allows it, which is
        safe since a step's file is replaced and never changed.

        Args:
            source: The folder of the trace, which may be this one.
            until: Later steps are left out: the run has yet to make them again.

        Returns:
            Whether there was a trace of the same probes.
        """
        index = source / _INDEX
        if not index.is_file():
            return False
        description = read_json(index)
        if description["probes"] != self._fingerprints:
            return False
        self._steps = [step for step in description["steps"] if step <= until]
        if source.resolve() != self.folder.resolve():
            for step in self._steps:
                share_file(source / _file_name(step), self.folder / _file_name(step))
        return True

    def add(self, step: int, recording: Representations) -> None:
        """Write one step; the index is replaced last and in one move."""
        write_representations(self.folder / _file_name(step), flatten(recording))
        self._steps = sorted({*self._steps, step})
        arms = sorted({arm for arms in recording.values() for arm in arms})
        description: dict[str, Any] = {
            "probes": self._fingerprints,
            "arms": arms,
            "steps": self._steps,
            **({} if self._run is None else {"run": self._run}),
        }
        write_json(self.folder / _INDEX, description)


def share_file(source: Path, target: Path) -> None:
    """Put a file that is never changed in a second place, a copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _file_name(step: int) -> str:
    return f"step_{step:08d}.safetensors"
