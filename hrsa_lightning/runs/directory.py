"""The folder of a run: what is written there, and which earlier run a command goes on with.

```
runs/<recipe>/<time>/
  config.yaml            the resolved recipe
  environment.json       versions, git state, command line, hardware
  events.out.tfevents…   TensorBoard; its runs of arms and comparisons in folders of their names
  similarity.jsonl …     histories, details (layer maps, spectra) and pictures of the callbacks
  checkpoints/step_N/    what resuming needs
  adapters/<arm>/        the trained LoRA weights, in peft's format
  summary.json           the run is complete
  report/                the run on one page
```
"""

import itertools
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from hrsa_lightning.config import to_yaml
from hrsa_lightning.config.schema import Config
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.files import lock_folder, make_first_free, write_json, write_text
from hrsa_lightning.io.resources import PACKAGE
from hrsa_lightning.similarity.history import DETAILS_SUFFIX

CONFIG = "config.yaml"
SUMMARY = "summary.json"
REPORT = "report/report.html"
NEWEST = "LAST"
HISTORIES = ("similarity.jsonl", "retrieval.jsonl")
_OF_ONE_START = re.compile(r"^(resume|  max_time): .*\n", re.MULTILINE)
"""Lines of a recipe that may be others when its run goes on."""

_PACKAGES = ("hrsa-lightning", "torch", "lightning", "transformers", "peft", "torchmetrics")


class Run(NamedTuple):
    """What rank 0 has decided, for all ranks.

    Attributes:
        folder: The run's own; no other run writes into it while this process lives.
        checkpoint: Where training goes on from.
        trained: Training is over and summarized, only the report is missing.
        made: Folders above it that were made for it, innermost first.
    """

    folder: Path
    checkpoint: Path | None = None
    trained: bool = False
    made: tuple[Path, ...] = ()


def take_run(config: Config) -> Run:
    """Go on with the newest unfinished run of the same resolved recipe, or begin a new one.

    The folder is locked for as long as the process lives. Only one process of a run may call this.
    """
    from hrsa_lightning.modules.checkpoints import newest_checkpoint

    if config.resume:
        for folder in _unfinished(config):
            if lock_folder(folder):
                trained = (folder / SUMMARY).is_file()
                return Run(folder, newest_checkpoint(folder, print), trained)
            print(f"{folder} is in use by another process: a new run begins")
    runs = Path(config.output_dir, config.name)
    made = tuple(path for path in (runs, *runs.parents) if not path.exists())
    folder = _new_folder(runs)
    lock_folder(folder)
    write_text(folder / CONFIG, to_yaml(config))
    return Run(folder, made=made)


def histories_of(folder: Path) -> list[Path]:
    """The histories that a run has: those of monitors that go by their own names come first."""
    found = [p for p in folder.glob("*.jsonl") if not p.name.endswith(DETAILS_SUFFIX)]
    names = [path.name for path in found]
    first = [name for name in HISTORIES if name in names]
    return [folder / name for name in (*first, *sorted({*names} - {*first}))]


def newest_run(path: Path) -> Path:
    """The folder that a path means where it leads through a folder of runs.

    Args:
        path: As it is, unless it is a folder above runs (such as `runs` or `runs/quickstart`), or
            `LAST` stands in it for one (`runs/quickstart/LAST/checkpoints/step_000050`): then the
            complete run there that started last, as the names of runs say.

    Raises:
        ConfigError: There are runs, and none is complete.
    """
    if NEWEST in path.parts and Path(*path.parts[: path.parts.index(NEWEST)]).is_dir():
        place = path.parts.index(NEWEST)
        above = Path(*path.parts[:place])
        return Path(_newest_complete(above, runs_below(above)), *path.parts[place + 1 :])
    found = runs_below(path)
    return _newest_complete(path, found) if found else path


def runs_below(folder: Path) -> list[Path]:
    """The runs in a folder and in the folders there, oldest first; none in a run itself."""
    if (folder / CONFIG).is_file():
        return []
    found = {path.parent for level in ("*", "*/*") for path in folder.glob(f"{level}/{CONFIG}")}
    return sorted(found, key=lambda run: (run.name, run))


def _newest_complete(above: Path, runs: Sequence[Path]) -> Path:
    if complete := [run for run in runs if (run / SUMMARY).is_file()]:
        return complete[-1]
    if not runs:
        raise ConfigError(f"{above}: expected a folder with runs in it, got none")
    raise ConfigError(
        f"{above}: no run there is complete; the same train command goes on with {runs[-1].name}"
    )


def _is_finished(folder: Path) -> bool:
    """Whether a run has its summary and, where there is something to report, its report."""
    reported = (folder / REPORT).is_file() or not histories_of(folder)
    return reported and (folder / SUMMARY).is_file()


def discard(run: Run) -> None:
    """Remove the folder of a run that got to no training step, unless it was there before."""
    if run.checkpoint is None:
        shutil.rmtree(run.folder)
        with suppress(OSError):  # another run is there by now
            for folder in run.made:
                folder.rmdir()


def _unfinished(config: Config) -> Iterator[Path]:
    """Runs of the same resolved recipe that left something to go on with, newest first."""
    from hrsa_lightning.modules.checkpoints import newest_checkpoint

    wanted = _OF_ONE_START.sub("", to_yaml(config))
    for folder in sorted(Path(config.output_dir, config.name).glob("*"), reverse=True):
        saved = folder / CONFIG
        try:
            found = saved.read_text(encoding="utf-8", errors="replace")
        except OSError:  # missing, or not to be read
            continue
        if _OF_ONE_START.sub("", found) != wanted or _is_finished(folder):
            continue
        if newest_checkpoint(folder) is not None or (folder / SUMMARY).is_file():
            yield folder


def _new_folder(runs: Path) -> Path:
    """Make a folder named after this moment."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    others = (runs / f"{stamp}_{count}" for count in itertools.count(2))
    return make_first_free(itertools.chain([runs / stamp], others))


def record_environment(folder: Path) -> None:
    """Write what this start of a run runs on."""
    write_json(folder / "environment.json", _environment(), indent=2)


def _environment() -> dict[str, Any]:
    import torch

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    cuda = torch.cuda.is_available()
    return {
        "command": [_command_name(), *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
    }


def _command_name() -> str:
    """Such as `hrsa` or `train`; a package that runs as a command has a file of another name."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _git_state() -> dict[str, Any] | None:
    """Commit and dirtiness of the package's own checkout; `None` for an installed wheel."""
    root = PACKAGE.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
