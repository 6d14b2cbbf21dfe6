"""The folder of a run: what is written there, and which earlier run a command goes on with.

```
runs/<recipe>/<time>/
  config.yaml            the resolved recipe
  environment.json       versions, git state, command line, hardware
  events.out.tfevents…   TensorBoard
  similarity.jsonl …     histories, details (layer maps, spectra) and pictures of the callbacks
  checkpoints/step_N/    what resuming needs
  adapters/<arm>/        the trained LoRA weights, in peft's format
  summary.json           the run is complete
  report/                the run on one page
```
"""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hrsa_lightning.config import to_yaml
from hrsa_lightning.config.schema import Config

SUMMARY = "summary.json"
_PACKAGES = ("hrsa-lightning", "torch", "lightning", "transformers", "peft", "torchmetrics")


def find_unfinished(config: Config) -> Path | None:
    """The newest run of the same resolved recipe that has a checkpoint and no summary."""
    wanted = to_yaml(config)
    runs = Path(config.output_dir, config.name)
    for folder in sorted(runs.glob("*"), reverse=True):
        saved = folder / "config.yaml"
        if not saved.is_file() or (folder / SUMMARY).exists():
            continue
        same = saved.read_text(encoding="utf-8") == wanted
        if same and any(folder.glob("checkpoints/step_*/state.json")):
            return folder
    return None


def new_folder(config: Config) -> Path:
    """A folder name of this moment that no run has yet; nothing is created."""
    runs = Path(config.output_dir, config.name)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    candidates = [runs / stamp, *(runs / f"{stamp}_{count}" for count in range(2, 1000))]
    return next(folder for folder in candidates if not folder.exists())


def record_start(folder: Path, config: Config) -> None:
    """Write the resolved recipe and the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    text = json.dumps(_environment(), indent=2)
    (folder / "environment.json").write_text(text + "\n", encoding="utf-8")


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
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and dirtiness of the package's own checkout; `None` for an installed wheel."""
    root = Path(__file__).resolve().parent.parent

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
