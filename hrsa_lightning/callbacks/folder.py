"""The folder of a run's files: which one, and where the files of an interrupted run are now."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

from hrsa_lightning.io.files import lock_folder, make_first_free

_MARK = "run_id"
"""File with the id of the run that a folder belongs to; it is made exclusively."""

_WITHOUT_LOGGER = "lightning_logs"

_OPEN: WeakKeyDictionary[Trainer, "RunFolder"] = WeakKeyDictionary()


class RunFolder(NamedTuple):
    """Where the monitors of a fit write.

    Attributes:
        path: Of this run alone.
        run: Id of the run; a run that resumes keeps it.
        previous: Where the files are that a run that resumes goes on with; it may be `path`.
        displaced: The folder that `path` would have been, had it not been another run's.
    """

    path: Path
    run: str
    previous: Path | None = None
    displaced: Path | None = None


def close_run_folder(trainer: Trainer) -> None:
    """Let the next `open_run_folder` decide anew; at the start of a fit."""
    _OPEN.pop(trainer, None)


def open_run_folder(
    trainer: Trainer, states: Iterable[Mapping[str, Any]], histories: Iterable[Path | str]
) -> RunFolder:
    """Find or make the folder of a run, the same one for all monitors of a fit; on rank 0.

    It is that of the first logger, as for `ModelCheckpoint`: save_dir/name/version. Without a
    logger, it is a new `lightning_logs/version_N` under `default_root_dir`, or that of the run that
    is resumed. Where it belongs to another run, or another process writes there, the folder is
    `run_2`, `run_3`, … in it.

    Args:
        trainer: Whose monitors write.
        states: What monitors remember of the run that resumes; of a new run, nothing.
        histories: Names of the files of which a new run may overwrite none.
    """
    if trainer not in _OPEN:
        known = [state for state in states if state.get("run") or state.get("history")]
        state = max(known, key=lambda state: bool(state.get("run")), default=None)
        _OPEN[trainer] = _open(trainer, state, list(histories))
    return _OPEN[trainer]


def _open(
    trainer: Trainer, state: Mapping[str, Any] | None, histories: list[Path | str]
) -> RunFolder:
    run = (state or {}).get("run") or uuid4().hex[:12]
    wanted = _folder_of_logger(trainer)
    previous = None if state is None else _find_previous(trainer, state, wanted)
    if wanted is None and previous is not None and lock_folder(previous):
        return RunFolder(previous, run, previous)
    wanted = wanted or _new_version(Path(trainer.default_root_dir, _WITHOUT_LOGGER))
    for count in itertools.count(1):
        path = wanted if count == 1 else wanted / f"run_{count}"
        if _claim(path, run, [] if state else histories):
            break
    return RunFolder(path, run, previous, None if path == wanted else wanted)


def _folder_of_logger(trainer: Trainer) -> Path | None:
    if not trainer.loggers:
        return None
    logger: Any = trainer.loggers[0]
    if (folder := getattr(logger, "log_dir", None)) is not None:  # TensorBoard, CSV
        return Path(folder)
    _ = getattr(logger, "experiment", None)  # which gives W&B and MLflow their ids
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def _new_version(runs: Path) -> Path:
    """Make the next `version_N`, which no other process gets."""
    taken = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    first = max([int(number) for number in taken if number.isdecimal()], default=-1) + 1
    return make_first_free(runs / f"version_{number}" for number in itertools.count(first))


def _claim(folder: Path, run: str, histories: list[Path | str]) -> bool:
    """Mark a folder as that of a run, and lock it; whether it is neither another's nor in use."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if any((folder / name).exists() for name in histories):
            return False  # of a version that made no mark
        with (folder / _MARK).open("x", encoding="utf-8") as file:
            file.write(f"{run}\n")
    except FileExistsError:
        pass
    return _mark_of(folder) == run and lock_folder(folder)


def _mark_of(folder: Path) -> str | None:
    mark = folder / _MARK
    return mark.read_text(encoding="utf-8").strip() if mark.is_file() else None


def _find_previous(trainer: Trainer, state: Mapping[str, Any], wanted: Path | None) -> Path | None:
    """The folder of the run that is resumed, also where it was moved, renamed or copied."""
    run = state.get("run")
    if not run:  # of a version that made no mark
        history = Path(state["history"])
        places = [history.parent] if wanted is None else [history.parent, wanted]
        return next((place for place in places if (place / history.name).is_file()), None)
    stored = Path(state["folder"])
    bases = [wanted, getattr(trainer, "ckpt_path", None), trainer.default_root_dir, Path.cwd()]
    places = [] if wanted is None else [wanted]
    moved = _moved(stored, [Path(base).absolute() for base in bases if base])
    return next((place for place in (*places, stored, *moved) if _mark_of(place) == run), None)


def _moved(folder: Path, bases: list[Path]) -> Iterator[Path]:
    """Where a folder may be after one above it was moved or renamed, nearest first."""
    parts = folder.parts[1:]
    for base in bases:
        for parent in (base, *base.parents):
            yield parent
            for begin in range(len(parts)):
                yield parent.joinpath(*parts[begin:])
