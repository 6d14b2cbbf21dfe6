"""Contrastive training of all backbones by `recipe=smollm2-135m`, once for each seed."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tiny.controls import noise_control

from smollm2.tables import METRICS

logger = logging.getLogger(__name__)

# Away from the run's seed, so that the seed control is another replicate in every run.
_CONTROL_OFFSET = 1000
_NOISE_SEED = 1
MEASURED = (
    # What was first and what was last. Ten places of 31 and 1,312 texts: with a tenth of them left
    # out, the half that Procrustes fits on is still more than the width of 576.
    "callbacks.similarity.every_n_train_steps=1000000",
    "callbacks.similarity.reference=arm:base",
    "callbacks.similarity.layers=['**.layers.*[258]', output]",
    "callbacks.similarity.limit_probe_batches=41",
    "callbacks.similarity.num_jackknife_groups=10",
    f"callbacks.similarity.metrics=[{','.join(METRICS)}]",
    "callbacks.retrieval.every_n_train_steps=1000000",
    "callbacks.retrieval.limit=256",
)


def study(work: Path, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Train every seed; `train` goes on where it was stopped, and reports.

    Args:
        work: Folder of the study, with the backbones `base`, `rlvr` and `sft`. `noise`, the
            displacement control, is made here: the base moved as far as `rlvr`, any way.
        seeds: One run each, in `WORK/runs/seed_SEED`.
        overrides: More settings of the recipe.

    Raises:
        CalledProcessError: A run fails.
    """
    if not (work / "noise").exists():
        partial = work / "noise.partial"
        noise_control(work / "base", work / "rlvr", partial, _NOISE_SEED).replace(work / "noise")
    arms = {"base_seed2": "base"} | {name: name for name in ("base", "rlvr", "sft", "noise")}
    settings = [f"arms.{arm}.backbone={(work / name).resolve()}" for arm, name in arms.items()]
    for seed in seeds:
        output = work / "runs" / f"seed_{seed}"
        if any(output.glob("*/*/summary.json")):
            logger.info("%s is complete", output)
            continue
        command = [
            *(sys.executable, "-m", "hrsa_lightning.train", "recipe=smollm2-135m"),
            *settings,
            *MEASURED,
            f"seed={seed}",
            f"arms.base_seed2.seed={seed + _CONTROL_OFFSET}",
            f"output_dir={output}",
            *overrides,
        ]
        logger.info("%s", " ".join(command))
        subprocess.run(command, check=True)
