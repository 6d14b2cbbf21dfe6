"""Training checkpoints as folders of safetensors and JSON: no pickle, and never half-written.

```
step_000100/
  state.json           the structure of Lightning's checkpoint, tensors named
  state.safetensors    those tensors (optimizer moments, full weights where all are trained)
  adapters/<arm>/      the arm's LoRA weights in peft's own format
```
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hrsa_lightning.io.distributed import rank
from hrsa_lightning.io.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json

ADAPTERS = "hrsa_adapters"
"""Key of Lightning's checkpoint under which a module leaves `{arm: (peft config, tensors)}`."""

_STATE = "state.json"
_TENSORS = "state.safetensors"
_PARTIAL = ".partial-"
_STEP = re.compile(r"step_([0-9]+)")


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning plugin that writes each checkpoint as one folder, moved into place when complete.

    A process that dies while writing leaves only a folder that starts with `.partial-`; the next
    save in the same place removes it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to the folder `path`, replacing what stands there.

        Raises:
            TypeError: The checkpoint holds something that is neither a tensor nor plain data.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
        content = dict(checkpoint)
        adapters = content.pop(ADAPTERS, {})
        for arm, (peft_config, weights) in adapters.items():
            write_adapter(partial / "adapters" / arm, peft_config, weights)
        content[ADAPTERS] = list(adapters)
        tensors: dict[str, torch.Tensor] = {}
        structure = _encode(content, tensors)
        save_file(_without_sharing(tensors), partial / _TENSORS)
        (partial / _STATE).write_text(json.dumps(structure), encoding="utf-8")
        _flush(partial)
        if target.exists():
            stale = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
            target.replace(stale / "old")
            partial.replace(target)
            shutil.rmtree(stale)
        else:
            partial.replace(target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; tensors arrive on `map_location` (default: CPU)."""
        folder = Path(path)
        device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
        tensors = load_file(folder / _TENSORS, device=device)
        content: dict[str, Any] = _decode(_read_structure(folder), tensors)
        present = [arm.name for arm in sorted(folder.glob("adapters/*"))]
        adapters = {
            arm: (
                read_json(folder / "adapters" / arm / ADAPTER_CONFIG),
                load_file(folder / "adapters" / arm / ADAPTER_WEIGHTS, device=device),
            )
            for arm in content.pop(ADAPTERS, present)
        }
        if adapters:
            content[ADAPTERS] = adapters
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint's folder; one that is not there is no error."""
        shutil.rmtree(path, ignore_errors=True)


def write_adapter(
    folder: Path, peft_config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    """Write LoRA weights so that `peft.PeftModel.from_pretrained(backbone, folder)` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(peft_config, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def newest_checkpoint(
    run: Path, on_damage: Callable[[str], None] = lambda text: None
) -> Path | None:
    """The complete checkpoint of a run with the most steps, if there is one.

    It is one of `checkpoints/step_N`, or one that Lightning saved when SLURM queued the job again
    (`hpc_ckpt_N.ckpt`).

    Args:
        run: The folder of the run.
        on_damage: Called with what is wrong with a newer one that cannot be read.
    """
    found = []
    for path in [*run.glob("checkpoints/step_*"), *run.glob("hpc_ckpt_*.ckpt")]:
        if path.name.startswith("step_") and not _STEP.fullmatch(path.name):
            continue
        try:
            found.append((step_of(path), path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            on_damage(f"{path} is damaged ({error})")
    for _, path in sorted(found, reverse=True):
        try:
            _check(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            on_damage(f"{path} is damaged ({error})")
        else:
            return path
    return None


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step at which a checkpoint was saved; 0 without a checkpoint."""
    if checkpoint is None:
        return 0
    if (name := _STEP.fullmatch(checkpoint.name)) is not None:
        return int(name[1])
    step: int = dict(_read_structure(checkpoint)["dict"])["global_step"]
    return step


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to a step; a negative number keeps all."""
    found = {step_of(path): path for path in folder.glob("step_*") if _STEP.fullmatch(path.name)}
    if keep < 0:
        return
    kept = sorted(number for number in found if number <= step)[-keep:]
    for number, path in found.items():
        if number not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _check(checkpoint: Path) -> None:
    """Raise unless the files of a checkpoint are whole and belong together; reads no tensor."""
    structure = _read_structure(checkpoint)
    with safe_open(checkpoint / _TENSORS, framework="pt") as file:
        names: dict[str, Any] = dict.fromkeys(file.keys())
    content = _decode(structure, names)
    if not isinstance(content, dict):
        raise TypeError(f"{_STATE} holds no checkpoint")
    for arm in content.get(ADAPTERS, ()):
        read_json(checkpoint / "adapters" / arm / ADAPTER_CONFIG)
        with safe_open(checkpoint / "adapters" / arm / ADAPTER_WEIGHTS, framework="pt"):
            pass


def _read_structure(checkpoint: Path) -> Any:
    return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))


def _flush(folder: Path) -> None:
    """Force file contents to disk before the folder's new name is."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _without_sharing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of views and of tied weights, which safetensors refuses; all else as it is."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shares = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        seen.add(storage.data_ptr())
        result[name] = tensor.clone() if shares else tensor
    return result


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain JSON for `value`; tensors move to `tensors`, other containers are tagged by kind."""
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint holds tensors and plain data only (promise: no pickle),"
        f" got {type(value).__module__}.{type(value).__qualname__}"
    )


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return Path(content)


class TrainedAdapters(Callback):
    """Writes each arm's adapter, or its whole backbone, when training ends.

    It does so before the strategy is torn down: weights that are shared out over ranks cannot be
    gathered afterwards.

    Args:
        folder: Gets one folder per arm; it is there once all of them are complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(pl_module)

    def save(self, module: Any) -> None:
        """Write the arms of a module that has `named_arms()`; on all ranks, of which 0 writes."""
        partial = self.folder.with_name(f"{_PARTIAL}{self.folder.name}")
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        for name, arm in module.named_arms().items():
            arm.save_adapter(partial / name)
        if rank() == 0:
            _flush(partial)
            shutil.rmtree(self.folder, ignore_errors=True)
            partial.replace(self.folder)
