"""Folders such as runs leave behind, with values that a test chooses."""

import json
from pathlib import Path

ARMS = {
    "base": {"backbone": "embedded:tiny/base", "revision": None, "seed": None},
    "rlvr": {"backbone": "embedded:tiny/rlvr", "revision": None, "seed": None},
    "base_seed2": {"backbone": "embedded:tiny/base", "revision": None, "seed": 2017},
    "noise": {"backbone": "build/controls/noise", "revision": None, "seed": None},
}
COMPARISONS = {"rlvr_vs_base": 0.0, "base_seed2_vs_base": 0.2, "noise_vs_base": 0.01}


STEADY = {**COMPARISONS, "base_seed2_vs_base": -0.19}
"""Rates at which comparisons fall, with a seed control that hardly moves."""


def value(seed, step, metric, comparison, layer, rates=COMPARISONS):
    """Similarity falls with steps, more in later layers, and a little differently per seed."""
    start = 0.9 if comparison == "rlvr_vs_base" else 1.0
    fall = step / 100 * (1 + rates[comparison] * 5) * (1 + layer / 10)
    similarity = start - fall - seed % 7 / 1000 * step - len(metric) / 1e4
    return 1 - similarity if metric == "procrustes_residual" else similarity


def scores(seed, step):
    """The arms differ by what seeds do, but for one that is always worse."""
    chance = {"base": 0.0, "rlvr": 0.01 * (-1) ** seed, "noise": -0.1 - 0.001 * (seed % 3)}
    return {f"retrieval/{arm}/mrr@10": step / 100 + shift for arm, shift in chance.items()}


def write_run(
    folder: Path,
    *,
    seed=1016,
    steps=(0, 10, 20, 40),
    metrics=("cka", "knn_overlap_10", "procrustes_residual"),
    comparisons=tuple(COMPARISONS),
    layers=3,
    lr=0.004,
    config=True,
    summary=True,
    bands=False,
    details=False,
    rates=COMPARISONS,
):
    """Write a run; returns its folder."""
    folder.mkdir(parents=True)
    lines = []
    for step in steps:
        values = {
            f"similarity/{metric}/{comparison}/{place}": value(
                seed, step, metric, comparison, i, rates
            )
            for metric in metrics
            for comparison in comparisons
            for i, place in enumerate([*(f"layer_{j}" for j in range(layers)), "output"])
        }
        if bands:
            values |= {
                f"{tag.replace('/cka/', f'/cka_{end}/')}": v + shift
                for tag, v in list(values.items())
                if "/cka/" in tag
                for end, shift in (("low", -0.02), ("high", 0.02))
            }
        values |= {
            "similarity/cka/rlvr_vs_initial/output": 1 - step / 50,
            "similarity/inverse_row_entropy/rlvr_vs_base/output": None,
            "similarity/variance_share_sample/rlvr/output": 0.1,
            "similarity/seconds": 0.5,
        }
        record = {"step": step, "epoch": 0, "time": 1.0, "seconds": 0.5, "values": values}
        if step == 0:
            record["floors"] = {tag: 0.01 for tag in values if "/cka/" in tag}
        lines.append(json.dumps(record) + "\n")
    (folder / "similarity.jsonl").write_text("".join(lines))
    (folder / "retrieval.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "seconds": 2.0, "values": scores(seed, s)}) + "\n"
            for s in (steps[0], steps[-1])
        )
    )
    if config:
        recipe = {
            "name": "tiny",
            "description": "A | trial <of> ours.",
            "seed": seed,
            "output_dir": str(folder),
            "arms": ARMS,
            "optimizer": {"lr": lr},
            "data": {"train": ["pairs.jsonl"], "batch_size": 8},
        }
        # JSON is YAML
        (folder / "config.yaml").write_text(json.dumps(recipe))
        git = {"commit": "0123456789abcdef", "dirty": True}
        environment = {"packages": {"torch": "2.0"}, "git": git, "threads": 2, "python": "3.11"}
        (folder / "environment.json").write_text(json.dumps(environment))
    if summary:
        control = {"arm": "base_seed2", "twin": "base", "identical": False}
        control["varied"] = ["order of batches", "adapters"]
        content = {"steps": steps[-1], "seconds": 10.0, "controls": [control]}
        (folder / "summary.json").write_text(json.dumps(content))
    if details:
        write_details(folder, steps)
    return folder


def write_details(folder, steps):
    """Layer-by-layer maps, singular values and row entropies."""
    about = {"group": "similarity", "comparison": "rlvr_vs_base"}
    lines = []
    for step in steps:
        layers = ["layer_0", "layer_1"]
        maps = {"rows": layers, "columns": layers, "values": [[1.0, 0.5], [None, 0.9]]}
        lines.append({"step": step, "kind": "cka", **about, **maps})
        for kind, values in (("singular_values", [1.0, 0.1, 0.01]), ("row_entropy", [0.1, 0.3])):
            lines.append({"step": step, "kind": kind, **about, "where": "output", "values": values})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "similarity.details.jsonl").write_text(text)
