"""Measure the tiny backbones against each other and write the tables into their card.

    python tools/measure_tiny.py [--seeds 1016 1017 1018] [--work build/tiny]

For each seed it runs the recipe `quickstart-prorl` with three more arms, the displacement controls:
the base plus Gaussian noise, moved as far from the base as RLVR and as far as ProRL moved it, and
the base plus a share of the SFT change, as far as RLVR. The tables hold mean and standard deviation
over seeds, before and after training. Finished seeds are not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from tiny import BACKBONES
from tiny.controls import noise_control, read_weights, relative_change, scaled_control

ASSETS = Path(__file__).resolve().parent.parent / "hrsa_lightning" / "assets" / "tiny"
BEGIN, END = "<!-- similarity:begin -->", "<!-- similarity:end -->"
COMPARISONS = {
    "rlvr_vs_base": "RLVR",
    "prorl_vs_base": "ProRL",
    "sft_vs_base": "SFT",
    "base_seed2_vs_base": "base, other seed (control)",
    "noise_vs_base": "base + noise (control)",
    "scaled_sft_vs_base": "base + scaled SFT change (control)",
    "noise_prorl_vs_base": "base + noise as far as ProRL (control)",
}
METRICS = {
    "cka": "linear CKA, debiased",
    "cka_plain": "linear CKA, plain",
    "knn_overlap_10": "k-NN overlap, k = 10",
    "knn_overlap_50": "k-NN overlap, k = 50",
    "procrustes_residual": "Procrustes residual (held out)",
    "inverse_row_entropy": "inverse row entropy",
    "dimension_correlation": "dimension correlation",
    "probe_transfer_accuracy": "linear-probe transfer accuracy",
}
Values = Mapping[tuple[str, str], Sequence[tuple[float, float]]]


def main() -> int:
    """Make the controls, run every seed, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1016, 1017, 1018])
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    arguments = parser.parse_args()
    controls = arguments.work / "controls"
    arms = {
        "noise": noise_control(ASSETS / "base", ASSETS / "rlvr", controls / "noise", seed=1),
        "noise_prorl": noise_control(
            ASSETS / "base", ASSETS / "prorl", controls / "noise_prorl", seed=1
        ),
        "scaled_sft": scaled_control(
            ASSETS / "base", ASSETS / "sft", ASSETS / "rlvr", controls / "scaled_sft"
        ),
    }
    summaries = [measure(seed, arms, arguments.work / "measured") for seed in arguments.seeds]
    base = read_weights(ASSETS / "base")
    changes = {
        name: relative_change(base, read_weights(folder))
        for name, folder in {**{name: ASSETS / name for name in BACKBONES[1:]}, **arms}.items()
    }
    text = tables(collect(summaries), arguments.seeds, changes)
    card = ASSETS / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    card.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    print(text)
    return 0


def measure(seed: int, controls: Mapping[str, Path], work: Path) -> list[dict[str, object]]:
    """Run the recipe under one seed, unless it has been, and return its summary's values."""
    output = work / str(seed)
    if not list(output.glob("*/*/summary.json")):
        settings = [
            "recipe=quickstart-prorl",
            f"seed={seed}",
            f"arms.base_seed2.seed={seed + 1000}",
            f"output_dir={output}",
            # The tables hold what was first and what was last.
            "callbacks.similarity.every_n_train_steps=1000000",
            "callbacks.similarity.heatmap_every_n_evaluations=1000000",
            "callbacks.similarity.null=0",
            "callbacks.retrieval.every_n_train_steps=1000000",
            *(f"arms.{name}.backbone={folder}" for name, folder in controls.items()),
        ]
        command = [sys.executable, "-m", "hrsa_lightning.train", *settings]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    (summary,) = output.glob("*/*/summary.json")
    values: list[dict[str, object]] = json.loads(summary.read_text(encoding="utf-8"))["values"]
    return values


def collect(summaries: Sequence[Sequence[Mapping[str, object]]]) -> Values:
    """(first, last) of each seed, by comparison (or arm) and metric, at the embedding."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for values in summaries:
        for row in values:
            if row["where"] in ("output", "held_out"):
                key = (str(row["comparison"]), str(row["metric"]))
                found[key].append(tuple(row[end] for end in ("first", "last")))  # type: ignore[arg-type]
    return found


def tables(values: Values, seeds: Sequence[int], changes: Mapping[str, float]) -> str:
    """The card's section as Markdown."""
    lines = [
        "Embeddings of the 512 probes under `recipe=quickstart-prorl`, seeds"
        f" {', '.join(map(str, seeds))}: mean ± standard deviation over seeds,"
        " before → after contrastive training. Before training nothing depends on the seed.",
        "",
        "| against the base | " + " | ".join(COMPARISONS.values()) + " |",
        "|---|" + "---|" * len(COMPARISONS),
    ]
    for metric, title in METRICS.items():
        cells = [_cell(values[comparison, metric]) for comparison in COMPARISONS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    arms = ["base", *(name.removesuffix("_vs_base") for name in COMPARISONS)]
    lines += ["", "| retrieval | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    lines.append("| MRR@10 | " + " | ".join(_cell(values[arm, "mrr@10"]) for arm in arms) + " |")
    moved = ", ".join(f"{name} {change:.4f}" for name, change in changes.items())
    return "\n".join([*lines, "", f"Relative weight change from the base: {moved}."])


def _cell(pairs: Sequence[tuple[float, float]]) -> str:
    before, after = zip(*pairs, strict=True)
    return f"{_spread(before)} → {_spread(after)}"


def _spread(values: Sequence[float]) -> str:
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.3f}" + (f" ± {spread:.3f}" if spread >= 0.0005 else "")


if __name__ == "__main__":
    sys.exit(main())
