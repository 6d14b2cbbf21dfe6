"""Contrastive training of all backbones by `recipe=smollm2-135m`, once for each seed."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

# Away from the run's seed, so that the seed control is another replicate in every run.
_CONTROL_OFFSET = 1000


def study(work: Path, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Train every seed; `train` goes on where it was stopped, and reports.

    Args:
        work: Folder of the study, with the backbones that are ready: `base`, `rlvr`, `sft`.
        seeds: One run each, in `WORK/runs/seed_SEED`.
        overrides: More settings of the recipe.

    Raises:
        CalledProcessError: A run fails.
    """
    arms = {"base": "base", "base_seed2": "base"}
    arms |= {name: name for name in ("rlvr", "sft") if (work / name).exists()}
    settings = [f"arms.{arm}.backbone={(work / name).resolve()}" for arm, name in arms.items()]
    if "sft" not in arms:
        settings.append("arms.sft=null")
    for seed in seeds:
        output = work / "runs" / f"seed_{seed}"
        if any(output.glob("*/*/summary.json")):
            logger.info("%s is complete", output)
            continue
        command = [
            *(sys.executable, "-m", "hrsa_lightning.train", "recipe=smollm2-135m"),
            *settings,
            f"seed={seed}",
            f"arms.base_seed2.seed={seed + _CONTROL_OFFSET}",
            f"output_dir={output}",
            *overrides,
        ]
        logger.info("%s", " ".join(command))
        subprocess.run(command, check=True)
