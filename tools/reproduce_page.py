"""The page and the figures of `tools/reproduce.py`."""

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce import (
    COMMANDS,
    GPU,
    KINDS,
    METRICS,
    NEIGHBORS,
    PAIRS,
    PAPER,
    PROTOCOL,
    ROOT,
    TRACES,
)

from hrsa_lightning.cli import markdown_table
from hrsa_lightning.io.files import read_json

Values = Mapping[str, float]

HEAD = """\
# Reproduce the paper

Every table and figure of [arXiv 2601.21192](https://arxiv.org/abs/2601.21192): the command, what it
needs, the published value, ours, and the same command on the backbones that ship with the package,
with what it gave here. "Needs a GPU" in the column of ours: nobody has run it yet.

This page is written by `tools/reproduce.py`, which runs the commands of the embedded backbones in
an order in which each finds what it needs, and keeps their values; `--check` runs them again and
compares. Full commands need a network, the models, and `traces.jsonl` of
[table 11](#table-11-traces).

The embedded backbones have 1.3 million weights, and their SFT moved them less than that of large
models does: they show that every command works and what it prints, not what the paper found.
Published values are those of the paper's tables; its figures have no numbers. Values over layers
are means over all layers before the output.

Full commands compare the texts of this file:

```yaml
# texts.yaml
cot: {preset: paper_tokens, path: traces.jsonl, filter: {correct: true}}
general: {preset: general, level: token, max_tokens: 8192}
```
"""

MODELS = (
    "a GPU for one model at a time, at most 7.6 B weights (30 GB in float32, 15 GB with "
    "`--dtype bfloat16`), and 3.4 GB of disk for the 8,192 rows of each of the largest"
)
TRAINING = "4 GPUs with 44 GB, as the paper; 782 steps a run"
RECIPES = ("qwen3-0.6b", "qwen2.5-1.5b", "qwen2.5-0.5b", "sft-1.5b", "qwen3-4b-psr")
AS_PAPER = "model.lora=null model.gradient_checkpointing=true trainer.max_steps=782"


def sections(values: Values) -> Iterator[str]:
    """The page, part by part."""
    yield HEAD
    yield from _table_1(values)
    yield from _entropy(values)
    yield from _neighbors(values)
    yield from _settings(values)
    yield from _invariances(values)
    yield from _traces(values)
    yield from _maps(values)
    yield from _probes(values)
    yield from _dynamics(values)


def _table_1(values: Values) -> Iterator[str]:
    yield "## Table 1, scores of embedding models\n"
    yield "The null effect: RLVR neither helps nor harms, SFT does. One run per recipe and seed:\n"
    yield from _full(
        *(f"python -m hrsa_lightning.train recipe={r} {AS_PAPER} seed=1" for r in RECIPES),
        "# and with seed=2 and seed=3, then of each recipe all three runs:",
        "python -m hrsa_lightning.evaluate runs/qwen3-0.6b/* --tasks paper",
        needs=f"{TRAINING}; the extra `eval`",
    )
    rows = [[pair.name, pair.kind, *pair.scores, GPU] for pair in PAPER if pair.scores is not None]
    header = ["tuned - base", "kind", "MTEB Multilingual v2", "MTEB Code v1", "BRIGHT", "ours"]
    yield from _table(header, rows)
    yield from _tiny(COMMANDS["train"], COMMANDS["evaluate"])
    base = values.get("train/base/mrr", math.nan)
    rows = [["base", "", _three(base), ""]]
    for arm in PAIRS:
        score = values.get(f"train/{arm}/mrr", math.nan)
        rows.append([arm, KINDS[arm], _three(score), _three(score - base, "+")])
    yield from _table(["", "kind", "MRR@10", "- base"], rows)


def _entropy(values: Values) -> Iterator[str]:
    yield "## Tables 3, 12 and 13, inverse row entropy of O*\n"
    yield _text(
        "1 where the rotation that aligns two models keeps their axes. Backbones (tables 3 and "
        "12), then embedding models (3 and 13); the paper does not say of which layer."
    )
    yield from _full(
        f"python -m hrsa_lightning.compare --pairs paper --texts texts.yaml {PROTOCOL} {METRICS} "
        "--null 0 --out backbones",
        "python -m hrsa_lightning.compare runs/sft-1.5b/LAST:base runs/sft-1.5b/LAST:sft "
        f"--texts texts.yaml {PROTOCOL} {METRICS} --null 0 --out embeddings",
        "# and so on, for the runs of table 1",
        needs=MODELS,
    )
    rows = [
        [p.name, p.kind, *("" if v is None else f"{v:.4f}" for v in p.entropy), GPU] for p in PAPER
    ]
    header = ["pair", "kind", "CoT", "MMLU-Pro", "CoT, embedding", "MMLU-Pro, embedding", "ours"]
    yield from _table(header, rows)
    yield from _tiny(COMMANDS["backbones"], COMMANDS["embeddings"])
    yield from _by_pair(values, "inverse_row_entropy")


def _neighbors(values: Values) -> Iterator[str]:
    yield "## Table 4 and figures 10 and 11, k-NN overlap\n"
    yield "Jaccard index of the k nearest tokens by cosine, mean over layers. The same commands:\n"
    yield from _full(
        f"python -m hrsa_lightning.compare --pairs paper:prorl-1.5b --texts texts.yaml {PROTOCOL} "
        "--metrics knn_overlap --null 0 --out neighbors",
        needs=MODELS,
    )
    rows = []
    for name, groups in NEIGHBORS.items():
        for kind, group in zip(("backbones", "embedding models"), groups, strict=True):
            rows.append([name, kind, *(f"{value:.3f}" for value in group), GPU])
    yield from _table(["pair", "", "k = 5", "k = 10", "k = 50", "ours"], rows)
    yield "On the embedded backbones, of the same calls as above, on the traces:\n"
    rows = [
        [
            f"{arm} vs base",
            words,
            *(_three(values.get(f"{part}/cot/{arm}/knn_overlap_{k}")) for k in (5, 10, 50)),
        ]
        for arm in PAIRS
        for part, words in (("backbones", "backbones"), ("embeddings", "embedding models"))
    ]
    yield from _table(["pair", "", "k = 5", "k = 10", "k = 50"], rows)
    yield from _picture(values, "![k-NN overlap by layer](images/reproduce_neighbors.png)\n")


def _settings(values: Values) -> Iterator[str]:
    yield "## Tables 5, 6 and 7, settings, LoRA, data\n"
    yield "Settings (table 5) and data (table 7) are those of `recipe=paper`, and printed by\n"
    yield from _full("python -m hrsa_lightning.train recipe=paper --print-config", needs="nothing")
    yield "All weights against LoRA (table 6, MTEB Multilingual v2):\n"
    yield from _full(
        f"python -m hrsa_lightning.train recipe=sft-1.5b {AS_PAPER}",
        "python -m hrsa_lightning.train recipe=sft-1.5b name=lora trainer.max_steps=782",
        "python -m hrsa_lightning.evaluate runs/sft-1.5b/LAST runs/lora/LAST --tasks paper",
        needs=TRAINING,
    )
    rows = [
        ["DeepSeek-R1-Distill-Qwen-1.5B", "42.450", "46.185", GPU],
        ["Nemotron-Research-Reasoning-Qwen-1.5B", "42.064", "46.247", GPU],
    ]
    yield from _table(["", "LoRA", "all weights", "ours"], rows)
    yield from _tiny(COMMANDS["full"])
    row = ["base, MRR@10", *(_three(values.get(f"{run}/base/mrr")) for run in ("train", "full"))]
    yield from _table(["", "LoRA (the run of table 1)", "all weights"], [row])


def _invariances(values: Values) -> Iterator[str]:
    yield "## Table 8, invariances\n"
    yield _text(
        "The levels of HRSA are defined by what a metric must not see; `invariance_profile` "
        "measures it. Needs nothing, and is exact (`tests/metrics/test_invariance.py`)."
    )
    yield from _full(
        'python -c "from hrsa_lightning.metrics import *; print(invariance_profile(LinearCKA()))"',
        needs="nothing",
    )
    asked = {
        "representation": ("changes under rotation", "dimension correlation, Procrustes (O*)"),
        "geometry": ("keeps under rotation, changes under anisotropic maps", "CKA, k-NN overlap"),
        "function": ("keeps where the decision boundary is kept", "cross-model linear probe"),
    }
    rows = []
    for level, (words, theirs) in asked.items():
        ours = [
            key.split("/")[1]
            for key in values
            if key.startswith("invariances/") and key.endswith(f"/{level}")
        ]
        rows.append([level, words, theirs, ", ".join(f"`{name}`" for name in sorted(ours))])
    yield from _table(["level", "what it asks", "the paper's metrics", "ours, measured"], rows)


def _traces(values: Values) -> Iterator[str]:
    yield "## Table 11, traces\n"
    yield _text(
        "Reasoning traces by Qwen3-32B, thinking, T = 0.6, top-p 0.95, up to 8,000 tokens; the "
        "paper let DeepSeek-V3.2 judge them, `tools/traces.py` compares answers. With `--url` a "
        "server such as vLLM's runs the model."
    )
    yield from _full(
        "python tools/traces.py hub:openai/gsm8k:main@test:500 --model Qwen/Qwen3-32B "
        "--out gsm8k.jsonl",
        "python tools/traces.py hub:HuggingFaceH4/MATH-500@test --question problem \\\n"
        "    --model Qwen/Qwen3-32B --out traces.jsonl",
        needs="66 GB of GPU memory for 32.8 B weights in bfloat16",
    )
    rows = [[name, str(total), str(right), GPU] for name, (total, right) in TRACES.items()]
    yield from _table(["", "asked", "right", "ours"], rows)
    yield from _tiny(COMMANDS["traces"])
    total, right = values.get("traces/total", 1), values.get("traces/right", math.nan)
    yield f"{total:.0f} traces, {right:.0f} right ({right / total:.1%}).\n"


def _maps(values: Values) -> Iterator[str]:
    yield "## Figures 3 and 6 to 9, all layers with all layers\n"
    yield _text(
        "Dimension-wise correlation and linear CKA of every pair of layers, drawn by every call of "
        "`compare` (`dimension_correlation_*.png`, `cka_*.png`), so by those of table 3. The paper "
        "gives no numbers: SFT keeps neither, RLVR both, prolonged RLVR the second; embedding "
        f"models come nearer in both. Ours: {GPU}."
    )
    yield "On the embedded backbones, means over matched layers on the traces, and the maps:\n"
    for metric in ("dimension_correlation", "cka_plain"):
        yield from _by_pair(values, metric)
    yield from _picture(
        values,
        "![Maps of the embedded backbones and embedding models](images/reproduce_maps.png)\n",
    )


def _probes(values: Values) -> Iterator[str]:
    yield "## Figures 4, 12 and 13, cross-model linear probe\n"
    yield _text(
        "A probe that is trained on the base and tested on both, with held-out texts of AG News. "
        f"The paper gives bars and no numbers: SFT loses accuracy, RLVR does not. Ours: {GPU}."
    )
    yield from _full(
        "python -m hrsa_lightning.compare --pairs paper --texts preset:labels "
        "--metrics probe_transfer --null 0 --out probes",
        needs=MODELS,
    )
    yield from _tiny(COMMANDS["probes"], COMMANDS["embedding_probes"])
    rows = []
    for arm in PAIRS:
        cells = [
            _three(values.get(f"{part}/{arm}/probe_{which}_accuracy"))
            for part in ("probes", "embedding_probes")
            for which in ("source", "transfer")
        ]
        rows.append([f"{arm} vs base", KINDS[arm], *cells])
    header = [
        "pair",
        "kind",
        "base, backbone",
        "tuned, backbone",
        "base, embedding",
        "tuned, embedding",
    ]
    yield from _table(header, rows)


def _dynamics(values: Values) -> Iterator[str]:
    yield "## Figure 5, dynamics\n"
    yield _text(
        "R1-Distill and ProRL while they become embedding models: the paper sees them realign "
        "within the first 200 of 781 steps, and local geometry keep moving apart. Curves of "
        f"`mean_over_layers`, live in TensorBoard and in the report. Ours: {GPU}."
    )
    yield from _full(
        f"python -m hrsa_lightning.train recipe=sft-1.5b {AS_PAPER} arms.base=null "
        "callbacks.similarity.reference=arm:sft "
        "'callbacks.similarity.probes={tokens: {preset: paper_tokens}}'",
        "python -m hrsa_lightning.report runs/sft-1.5b/LAST",
        needs=TRAINING,
    )
    yield "On the embedded backbones, in the run of table 1, `prorl` against `base`:\n"
    names = {
        "cka": "linear CKA, debiased",
        "dimension_correlation": "dimension correlation",
        "inverse_row_entropy": "inverse row entropy",
        "knn_overlap_10": "k-NN overlap, k = 10",
    }
    steps = sorted(
        {int(key.rpartition("/")[2]) for key in values if key.startswith("train/dynamics/cka/")}
    )
    rows = [
        [words, *(_three(values.get(f"train/dynamics/{metric}/{step}")) for step in steps)]
        for metric, words in names.items()
    ]
    yield from _table(["step", *map(str, steps)], rows)
    yield from _picture(
        values, "![Means over layers while training](images/reproduce_dynamics.png)\n"
    )


def _by_pair(values: Values, metric: str) -> Iterator[str]:
    """One metric of backbones and embedding models, on both texts."""
    rows = []
    for arm in PAIRS:
        keys = [
            f"{part}/{texts}/{arm}/{metric}"
            for part in ("backbones", "embeddings")
            for texts in ("cot", "general")
        ]
        rows.append([f"{arm} vs base", KINDS[arm], *(_three(values.get(key)) for key in keys)])
    header = ["traces", "general", "traces, embedding", "general, embedding"]
    yield from _table([metric.replace("_", " "), "kind", *header], rows)


def _full(*commands: str, needs: str) -> Iterator[str]:
    yield "\n".join(["```sh", *map(_folded, commands), "```\n"])
    yield _text(f"Needs: {needs}.")


def _picture(values: Values, line: str) -> Iterator[str]:
    """A figure, once there is one."""
    if any(key.startswith("embeddings/") for key in values):
        yield line


def _text(words: str) -> str:
    return textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False) + "\n"


def _tiny(*commands: str) -> Iterator[str]:
    yield "On the embedded backbones:\n"
    shown = [_folded(command.replace(f"{ROOT}/", "")) for command in commands]
    yield "\n".join(["```sh", *shown, "```\n"])


def _folded(command: str, width: int = 100) -> str:
    """A command over several lines, cut between its words."""
    if len(command) <= width or "\n" in command or command.startswith("#"):
        return command
    lines, line = [], ""
    for word in map(shlex.quote, shlex.split(command)):
        if line and len(line) + len(word) > width - 3:
            lines.append(f"{line} \\")
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "\n".join(markdown_table([list(header), *map(list, rows)])) + "\n"


def _three(value: float | None, sign: str = "") -> str:
    return "" if value is None or math.isnan(value) else f"{value:{sign}.3f}"


def draw_maps(work: Path, path: Path) -> None:
    """Figure 3: columns are pairs and metrics, rows are backbones and embedding models."""
    from hrsa_lightning.plots import draw_heatmap, save_figure
    from hrsa_lightning.plots.notebook import new_figure

    kinds = {"dimension_correlation": "correlation", "plain": "linear CKA"}
    shown = [(arm, kind) for kind in kinds for arm in ("sft", "prorl")]
    figure = new_figure(False, figsize=(13, 6.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(shown))
    parts = {"backbones": "backbones", "embeddings": "embedding models"}
    for row, part in enumerate(parts):
        for column, (arm, kind) in enumerate(shown):
            folder = work / part / (f"{arm}/cot" if part == "backbones" else "cot")
            comparisons = read_json(folder / "results.json")["comparisons"]
            heatmap = next(c for c in comparisons if c["name"] == f"{arm}_vs_base")["heatmap"]
            title = f"{kinds[kind]}, {arm} vs base"
            draw_heatmap(
                axes[row, column],
                _nan(heatmap[kind]),
                heatmap["rows"],
                heatmap["columns"],
                title=title,
            )
            axes[row, column].set_ylabel(parts[part] if column == 0 else "", fontsize=9)
    save_figure(figure, path)


def _nan(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[math.nan if v is None else v for v in row] for row in values]


def draw_dynamics(history: Sequence[Any], path: Path) -> None:
    """Figure 5: means over layers against the base, by step."""
    from hrsa_lightning.plots import Line, panels_figure, save_figure

    panels = []
    for metric in ("dimension_correlation", "inverse_row_entropy", "cka", "knn_overlap_10"):
        lines = []
        for arm in PAIRS:
            found = [
                m
                for m in history
                if (m.metric, m.arm, m.reference, m.layer)
                == (metric, arm, "base", "mean_over_layers")
            ]
            lines.append(Line(f"{arm} vs base", [m.step for m in found], [m.value for m in found]))
        panels.append((metric.replace("_", " "), lines, ()))
    title = "Means over layers, token by token, by optimizer step"
    save_figure(panels_figure(panels, title=title), path)


def draw_neighbors(work: Path, path: Path) -> None:
    """Figures 10 and 11: k-NN overlap by layer."""
    from hrsa_lightning.plots import Line, panels_figure, save_figure

    panels = []
    for part in ("backbones", "embeddings"):
        for arm in PAIRS:
            folder = work / part / (f"{arm}/cot" if part == "backbones" else "cot")
            comparisons = read_json(folder / "results.json")["comparisons"]
            values = next(c for c in comparisons if c["name"] == f"{arm}_vs_base")["values"]
            lines = []
            for k in (5, 10, 50):
                found = [
                    v["value"]
                    for v in values
                    if v["metric"] == f"knn_overlap_{k}" and v["layer"].startswith("layer_")
                ]
                lines.append(Line(f"k = {k}", list(range(len(found))), found))
            panels.append((f"{arm} vs base, {part}", lines, ()))
    save_figure(panels_figure(panels, title="k-NN overlap by layer, on the traces"), path)
