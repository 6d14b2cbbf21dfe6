"""The study's tables: accuracies, hidden states, backbones against the base before and after."""

import json
from collections.abc import Sequence
from pathlib import Path

from hrsa_lightning.similarity.history import read_history
from hrsa_lightning.similarity.measurement import MEAN_OVER_LAYERS, OUTPUT, Measurement

REFERENCE = "base"
ARMS = {
    "rlvr": "RLVR",
    "sft": "SFT",
    "noise": "noise as far as RLVR (displacement control)",
    "base_seed2": "other seed (seed control)",
}
METRICS = {
    "cka": "linear CKA",
    "cka_standardized": "linear CKA, standardized",
    "knn_overlap_10": "k-NN overlap, k = 10",
    "knn_overlap_50": "k-NN overlap, k = 50",
    "procrustes_residual": "Procrustes residual (held out)",
    "inverse_row_entropy": "inverse row entropy",
    "dimension_correlation": "dimension correlation",
    "predictivity_forward": "linear predictivity, from the base",
    "predictivity_backward": "linear predictivity, to the base",
    "probe_transfer_accuracy": "probe transfer",
}
RETRIEVAL = "mrr@10"
LAYERS = (0, 2, 3, 9, 11, 12, 20, 28, 29, 30)
"""Of the hidden states, those of the embedding layer first."""
HIDDEN_STATES = {
    "mean_variance_share_1": "variance in one dimension",
    "mean_variance_share_3": "in three",
    "mean_participation_ratio": "participation ratio",
    "first_token_norm_over_median": "norm of the first token",
    "without_first_token_cka": "CKA without the first token",
    "without_first_token_cka_standardized": "standardized",
    "without_first_token_knn_overlap_10": "k-NN 10",
    "bidirectional_cka": "CKA of causal and bidirectional",
    "bidirectional_cka_standardized": "standardized",
    "bidirectional_knn_overlap_10": "k-NN 10",
    "first_8_tokens_cka": "CKA with the first 8 tokens",
    "first_8_tokens_knn_overlap_10": "k-NN 10",
}


def write_tables(work: Path) -> None:
    """Write `tables.md`: accuracies, the base's hidden states, and the runs of all seeds.

    Raises:
        FileNotFoundError: There is no complete run.
    """
    runs = sorted(path.parent for path in work.glob("runs/seed_*/*/*/summary.json"))
    if not runs:
        raise FileNotFoundError(f"{work / 'runs'}: no complete run")
    similarity = [read_history(run / "similarity.jsonl") for run in runs]
    retrieval = [read_history(run / "retrieval.jsonl") for run in runs]
    titles = {OUTPUT: "At the output", MEAN_OVER_LAYERS: "Means over the layers before the output"}
    parts = [_similarities(similarity, layer, title) for layer, title in titles.items()]
    if (work / f"activations.{REFERENCE}.json").exists():
        parts.insert(0, _hidden_states(work / f"activations.{REFERENCE}.json"))
    if (work / "accuracy.json").exists():
        parts.insert(0, _accuracies(work / "accuracy.json"))
    text = "\n\n".join([*parts, _retrieval(retrieval)]) + "\n"
    (work / "tables.md").write_text(text, encoding="utf-8")
    print(text)


def _similarities(runs: Sequence[list[Measurement]], layer: str, title: str) -> str:
    head = ["before → after", *ARMS.values(), "chance", "95 % of permutations"]
    rows = []
    for metric, name in METRICS.items():
        found = {arm: [_ends(run, metric, arm, layer) for run in runs] for arm in ARMS}
        ends = [end for pairs in found.values() for pair in pairs for end in pair]
        chance = {_number(m.chance) for m in ends if m.chance is not None}
        nulls = [m.null_95 for m in ends if m.null_95 is not None]
        rows.append(
            [
                name,
                *map(_cell, found.values()),
                " to ".join(sorted({min(chance), max(chance)})) if chance else "",
                _number(min(nulls)) + " to " + _number(max(nulls)) if nulls else "",
            ]
        )
    return f"{title}:\n\n{_markdown(head, rows)}"


def _retrieval(runs: Sequence[list[Measurement]]) -> str:
    arms = [REFERENCE, *ARMS]
    found = [[_ends(run, RETRIEVAL, arm) for run in runs] for arm in arms]
    chance = _number(found[0][0][0].chance)
    head = ["before → after", *(ARMS.get(arm, arm) for arm in arms), "chance"]
    return f"Retrieval:\n\n{_markdown(head, [['MRR@10', *map(_cell, found), chance]])}"


def _ends(
    run: list[Measurement], metric: str, arm: str, layer: str = ""
) -> tuple[Measurement, Measurement]:
    """First and last of a metric's values, of an arm alone where no layer is named."""
    wanted = (metric, arm, layer, REFERENCE if layer else "")
    found = [m for m in run if (m.metric, m.arm, m.layer, m.reference) == wanted]
    found.sort(key=lambda m: m.step)
    return found[0], found[-1]


def _cell(pairs: Sequence[tuple[Measurement, Measurement]]) -> str:
    """What was before, and after in each run; with half the width of the 95 % band."""
    return " → ".join(_values(end) for end in zip(*pairs, strict=True))


def _values(runs: Sequence[Measurement]) -> str:
    is_one = max(m.value for m in runs) - min(m.value for m in runs) < 1e-6  # before training
    values = [_number(m.value) for m in (runs[:1] if is_one else runs)]
    halves = [(m.high - m.low) / 2 for m in runs if m.low is not None and m.high is not None]
    band = f" ± {_number(max(halves))}" if halves else ""
    return " / ".join(values) + band


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _hidden_states(path: Path) -> str:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [
        [str(line["layer"]), *(_number(line[key]) for key in HIDDEN_STATES)]
        for line in lines
        if line["layer"] in LAYERS
    ]
    return f"Hidden states of the base:\n\n{_markdown(['layer', *HIDDEN_STATES.values()], rows)}"


def _accuracies(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for name, found in record["backbones"].items():
        rise = record.get("rises", {}).get(name, {})
        cells = [
            f"{found[kind]:.3f} ± {found[f'{kind}_standard_error']:.3f}"
            for kind in ("sampled", "greedy")
        ]
        cells += [
            f"{rise[kind]:+.3f} ± {rise[f'{kind}_standard_error']:.3f}" if rise else ""
            for kind in ("sampled", "greedy")
        ]
        rows.append([name, *cells])
    head = ["", "sampled", "greedy", "rise, sampled", "rise, greedy"]
    return f"Right answers:\n\n{_markdown(head, rows)}"
