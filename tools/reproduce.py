"""Write `docs/reproduce.md`: every table and figure of the paper, with commands and values.

    python tools/reproduce.py           run the commands of the embedded backbones, keep what they
                                        give in `tools/reproduce.json`, draw figures, write the page
    python tools/reproduce.py --page    write the page from the values that are kept
    python tools/reproduce.py --check   run them again, and fail where values or page differ

Commands run in --work (build/reproduce), one after the other; there a stopped run goes on.
"""

import argparse
import csv
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hrsa_lightning.io.files import read_json, write_json, write_text  # noqa: E402

PAGE = ROOT / "docs" / "reproduce.md"
IMAGES = ROOT / "docs" / "images"
VALUES = Path(__file__).with_suffix(".json")
RUN = "runs/reproduce/LAST"
PAIRS = ("sft", "rlvr", "prorl")
KINDS = {"sft": "SFT", "rlvr": "RLVR", "prorl": "prolonged RLVR"}
TEXTS = "cot=preset:tiny_tokens general=preset:tiny_general"
PROTOCOL = "--protocol paper --k 5,10,50"
METRICS = "--metrics cka,knn_overlap,procrustes,dimension_correlation"
ARMS = " ".join(f"{arm}={RUN}:{arm}" for arm in ("base", *PAIRS))
GPU = "needs a GPU"

COMMANDS = {
    "backbones": (
        f"python -m hrsa_lightning.compare --pairs tiny --texts {TEXTS} --level token "
        f"--max-tokens 2048 {PROTOCOL} {METRICS} --null 0 --out backbones"
    ),
    "probes": (
        "python -m hrsa_lightning.compare --pairs tiny --texts preset:tiny_labels "
        "--metrics probe_transfer --null 0 --out probes"
    ),
    "train": (
        "python -m hrsa_lightning.train recipe=quickstart-prorl name=reproduce "
        "arms.base_seed2=null callbacks.similarity.reference=arm:base "
        "'callbacks.similarity.probes={tokens: {preset: tiny_tokens}}' "
        "callbacks.similarity.null=0"
    ),
    "full": (
        "python -m hrsa_lightning.train recipe=quickstart name=full arms.rlvr=null arms.sft=null "
        "arms.base_seed2=null model.lora=null callbacks.similarity=null"
    ),
    "evaluate": f"python -m hrsa_lightning.evaluate {RUN} --out scores",
    "embeddings": (
        f"python -m hrsa_lightning.compare {ARMS} --texts {TEXTS} --level token "
        f"--max-tokens 2048 {PROTOCOL} {METRICS} --null 0 --out embeddings"
    ),
    "embedding_probes": (
        f"python -m hrsa_lightning.compare {ARMS} --texts preset:tiny_labels "
        "--metrics probe_transfer --null 0 --out embedding_probes"
    ),
    "traces": (
        f"python {ROOT / 'tools' / 'traces.py'} embedded:tiny/traces.jsonl --question prompt "
        "--model embedded:tiny/prorl --user '{problem}\\n' --max-tokens 40 --batch-size 112 "
        "--out traces.jsonl"
    ),
    "invariances": f"python {Path(__file__).resolve()} --invariances",
}
"""By name, in the order in which they run; all but the second to last need no other."""

TOLERANCES = {"backbones": 0.005, "probes": 0.02, "traces": 0.1, "invariances": 0.0}
TRAINED = 0.1
"""How far a value may be on another machine: training carries rounding on."""

METRIC_KEYS = (
    "inverse_row_entropy",
    "dimension_correlation",
    "cka_plain",
    *(f"knn_overlap_{k}" for k in (5, 10, 50)),
)


class Pair(NamedTuple):
    """What the paper says of one pair; None where it says nothing.

    Attributes:
        name: As in `pairs.yaml`.
        kind: SFT or RLVR.
        scores: Difference of means and its deviation on the three benchmarks of table 1.
        entropy: CoT and MMLU-Pro, backbones and then embedding models (tables 12 and 13).
    """

    name: str
    kind: str
    scores: tuple[str, str, str] | None
    entropy: tuple[float | None, float | None, float | None, float | None]


PAPER = (
    Pair("qwen2.5-math-1.5b", "SFT", None, (0.1076, 0.2229, 0.1429, 0.7105)),
    Pair("qwen3-0.6b", "SFT", ("-12.03 ± .14", "+0.99 ± .05", "+0.65 ± .06"),
         (None, None, 0.4915, 0.9164)),
    Pair("qwen2.5-1.5b", "RLVR", ("-0.19 ± .07", "-0.26 ± .08", "+0.18 ± .04"),
         (0.9481, 0.9963, 0.8826, 0.9794)),
    Pair("qwen2.5-0.5b", "RLVR", ("+0.02 ± .09", "+0.12 ± .07", "-0.06 ± .05"),
         (0.9923, 0.9981, 0.9835, 0.9978)),
    Pair("prorl-1.5b", "RLVR", ("+0.06 ± .06", "+0.40 ± .07", "+0.45 ± .02"),
         (0.1613, 0.8336, 0.8637, 0.9814)),
    Pair("qwen3-4b-psr", "RLVR", ("-0.06 ± .05", "+0.67 ± .03", "+0.07 ± .03"),
         (0.8122, 0.9843, 0.5863, 0.9933)),
    Pair("polaris-4b", "RLVR", None, (0.4365, 0.9711, None, None)),
    Pair("polaris-7b", "RLVR", None, (0.6576, 0.9623, None, None)),
    Pair("zero-ppo-think-7b", "RLVR", None, (0.6338, 0.9922, None, None)),
)  # fmt: skip
NEIGHBORS = {
    "qwen2.5-math-1.5b": ((0.052, 0.068, 0.132), (0.069, 0.068, 0.091)),
    "prorl-1.5b": ((0.455, 0.484, 0.577), (0.451, 0.474, 0.531)),
}
"""Table 4: mean k-NN overlap over layers at k = 5, 10, 50, backbones and embedding models."""
TRACES = {"GSM8K": (500, 471), "NuminaMath": (161, 154), "MATH-500": (479, 364),
          "LiveMathBench": (57, 32)}  # fmt: skip
"""Table 11: traces asked for, and those judged right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--invariances", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "reproduce")
    arguments = parser.parse_args(argv)
    if arguments.invariances:
        print(json.dumps(invariances()))
        return 0
    if not arguments.page:
        run_all(arguments.work)
        values = collect(arguments.work)
        if arguments.check:
            return check(values)
        write_json(VALUES, values)
        draw(arguments.work)
    write_text(PAGE, page(read_json(VALUES)))
    return 0


def run_all(work: Path) -> None:
    """Run every command that has not run in `work` before."""
    work.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        done = work / f"{name}.done"
        if done.exists() and done.read_text() == command:
            continue
        words = [sys.executable, *shlex.split(command)[1:]]
        print(f"{name}: {command}", flush=True)
        started = time.perf_counter()
        with (work / f"{name}.txt").open("w") as said:
            subprocess.run(words, cwd=work, stdout=said, check=True)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
        done.write_text(command)


def collect(work: Path) -> dict[str, float]:
    """Values of what the commands left, by `COMMAND/...`."""
    found: dict[str, float] = {}
    for name in ("backbones", "probes", "embeddings", "embedding_probes"):
        for row in _overview(work / name):
            arm, _, reference = row["comparison"].partition("_vs_")
            for metric in (*METRIC_KEYS, "probe_transfer_accuracy", "probe_source_accuracy"):
                if reference == "base" and _is_number(row.get(metric, "")):
                    key = "/".join(part for part in (name, row["texts"], arm, metric) if part)
                    found[key] = float(row[metric])
    for arm, score in _scores(work / "runs" / "reproduce").items():
        found[f"train/{arm}/mrr"] = score
    found["full/base/mrr"] = _scores(work / "runs" / "full")["base"]
    for m in _history(work):
        if (m.arm, m.reference, m.layer) == ("prorl", "base", "mean_over_layers"):
            found[f"train/dynamics/{m.metric}/{m.step}"] = round(m.value, 4)
    lines = [json.loads(line) for line in (work / "traces.jsonl").read_text().splitlines()]
    found["traces/total"] = len(lines)
    found["traces/right"] = sum(line["correct"] for line in lines)
    said = json.loads((work / "invariances.txt").read_text())
    found |= {f"invariances/{key}/{level}": 1.0 for key, level in said.items()}
    return found


def _overview(folder: Path) -> list[dict[str, str]]:
    """Rows of a call of compare; those of a single comparison are in its own results."""
    if (folder / "overview.csv").exists():
        with (folder / "overview.csv").open() as file:
            return list(csv.DictReader(file))
    rows = []
    for each in read_json(folder / "results.json")["comparisons"]:
        where = _headline(each["values"])
        cells = {v["metric"]: str(v["value"]) for v in each["values"] if v["layer"] == where}
        rows.append({"comparison": each["name"], "texts": "", **cells})
    return rows


def _headline(values: Sequence[Mapping[str, object]]) -> object:
    layers = [value["layer"] for value in values]
    return "mean_over_layers" if "mean_over_layers" in layers else layers[-1]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _newest(runs: Path) -> Path:
    return max(path.parent for path in runs.glob("*/summary.json"))


def _history(work: Path) -> list:
    from hrsa_lightning.similarity import read_history

    return list(read_history(_newest(work / "runs" / "reproduce") / "similarity.jsonl"))


def _scores(runs: Path) -> dict[str, float]:
    """MRR@10 of every arm at the end of the newest run."""
    from hrsa_lightning.similarity import read_history

    history = read_history(_newest(runs) / "retrieval.jsonl")
    return {m.arm: round(m.value, 4) for m in history if m.metric == "mrr@10" and not m.layer}


def invariances() -> dict[str, str]:
    """Level of every metric, by the maps that it does not see."""
    from hrsa_lightning.metrics import hrsa_metrics, invariance_profile

    profiles = invariance_profile(
        hrsa_metrics(num_classes=4, extra=("cknna", "predictivity")), num_samples=400
    )
    return {key: profile.level for key, profile in profiles.items() if profile.level}


def check(values: Mapping[str, float]) -> int:
    """Say where values differ from those that are kept, or the page from what they give."""
    kept = read_json(VALUES)
    wrong = [f"{key}: kept and not found" for key in sorted(kept.keys() - values.keys())]
    for key, value in values.items():
        tolerance = TOLERANCES.get(key.partition("/")[0], TRAINED)
        if key.startswith("traces"):
            tolerance *= kept.get("traces/total", 0)
        if key not in kept or abs(kept[key] - value) > tolerance:
            wrong.append(f"{key}: {value} now, {kept.get(key)} kept (within {tolerance})")
    if page(kept) != PAGE.read_text(encoding="utf-8"):
        wrong.append(f"{PAGE}: not what --page writes")
    print("\n".join(wrong) or f"{len(values)} values as kept")
    return bool(wrong)


def page(values: Mapping[str, float]) -> str:
    """The page."""
    from reproduce_page import sections

    return "\n".join(sections(values)).rstrip() + "\n"


def draw(work: Path) -> None:
    """Figures 3, 5 and 10 of the embedded backbones."""
    from reproduce_page import draw_dynamics, draw_maps, draw_neighbors

    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_maps(work, IMAGES / "reproduce_maps.png")
    draw_dynamics(_history(work), IMAGES / "reproduce_dynamics.png")
    draw_neighbors(work, IMAGES / "reproduce_neighbors.png")


if __name__ == "__main__":
    sys.exit(main())
