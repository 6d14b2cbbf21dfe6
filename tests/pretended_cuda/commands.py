"""Runs commands on pretended devices, one after the other in one process, and writes what happened.

`python -m tests.pretended_cuda.commands SCENARIOS.json RESULTS.json`
"""

import importlib
import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

# Some libraries ask once and for all whether there is a device: better while it is not pretended.
import lightning.pytorch  # noqa: F401
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure

import hrsa_lightning.models.embedder
from hrsa_lightning.callbacks import progress
from hrsa_lightning.config import build
from tests.pretended_cuda.device import PretendedDevices, pretended_cuda

STEADY = 2
"""Optimizer steps after which nothing is made for the first time."""


class SteadySteps(Callback):
    """Counts what the host waits for from the end of one step to the end of a later one."""

    def __init__(self, devices: PretendedDevices) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._devices = devices

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == STEADY:
            self._devices.waits.clear()
        elif trainer.global_step > STEADY:
            self.counts = Counter(self._devices.waits)


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    """What one command returned, and what was seen meanwhile."""
    seen: dict[str, Any] = {"code": None, "error": "", "loaded_for": []}
    own_callbacks, load = build.build_callbacks, hrsa_lightning.models.embedder.load_backbone
    package = f"hrsa_lightning.{scenario['command']}"
    if importlib.util.find_spec(package).submodule_search_locations:  # type: ignore[union-attr]
        package += ".__main__"
    main = importlib.import_module(package).main

    def load_backbone(*args: Any, **options: Any) -> Any:
        seen["loaded_for"].append(str(options["device"]))
        return load(*args, **options)

    with pretended_cuda(scenario["devices"], nccl=scenario["nccl"]) as devices:
        steps = SteadySteps(devices)
        build.build_callbacks = lambda config: [*own_callbacks(config), steps]
        hrsa_lightning.models.embedder.load_backbone = load_backbone
        try:
            seen["code"] = main(scenario["arguments"])
        except BaseException:
            seen["error"] = traceback.format_exc()
        finally:
            build.build_callbacks = own_callbacks
            hrsa_lightning.models.embedder.load_backbone = load
            torch.use_deterministic_algorithms(False)
            torch.set_default_dtype(torch.float32)
    seen["waits"] = [[what, place, count] for (what, place), count in steps.counts.items()]
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    Figure.draw = lambda figure, renderer: None  # type: ignore[method-assign]  # a third of the time
    progress.SECONDS_BETWEEN_READINGS = 3600.0  # steps of a pretended device take seconds
    scenarios, results = map(Path, sys.argv[1:])
    found = {name: run(scenario) for name, scenario in json.loads(scenarios.read_text()).items()}
    results.write_text(json.dumps(found))
    os._exit(0)  # without waiting for what a failed command left running
