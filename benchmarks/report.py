"""How long a report of many long runs takes, and how much memory.

    python benchmarks/report.py
    python benchmarks/report.py --runs 4 --evaluations 50 --layers 4

Writes synthetic runs (four recipes, one seed after the other), reports them with the command in a
process of its own, and prints seconds, peak memory and the size of the page beside the goals:
20 runs of 1,000 evaluations, 28 layers and 6 metrics in under 30 s and 1 GB.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hrsa_lightning.similarity.metric_info import HEADLINE

RECIPES = 4
GOAL_SECONDS, GOAL_MEGABYTES = 30, 1000


def main() -> int:
    """Write the runs, report them, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--comparisons", nargs="+", default=["rlvr_vs_base"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for index in range(arguments.runs):
            write_run(Path(work, "runs", str(index)), index, arguments)
        size = sum(path.stat().st_size for path in Path(work, "runs").rglob("*.jsonl"))
        command = [sys.executable, "-m", "hrsa_lightning.report", f"{work}/runs"]
        started = time.perf_counter()
        subprocess.run([*command, "--out", f"{work}/report"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        page = Path(work, "report", "report.html").stat().st_size
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    megabytes = used.ru_maxrss / 1024
    print(
        f"{arguments.runs} runs x {arguments.evaluations} evaluations x {arguments.layers} layers "
        f"x {len(HEADLINE)} metrics x {len(arguments.comparisons)} comparisons, "
        f"{size / 1e6:.0f} MB of histories\n"
    )
    print("| | measured | goal | |\n|---|---|---|---|")
    for name, value, goal in (
        ("seconds", seconds, GOAL_SECONDS),
        ("peak memory, MB", megabytes, GOAL_MEGABYTES),
    ):
        print(f"| {name} | {value:.1f} | {goal} | {'met' if value < goal else 'NOT met'} |")
    print(f"| CPU seconds | {used.ru_utime + used.ru_stime:.1f} | | |")
    print(f"| page, MB | {page / 1e6:.2f} | | |")
    return 0


def write_run(folder: Path, index: int, arguments: argparse.Namespace) -> None:
    """One synthetic run: every value a random walk."""
    folder.mkdir(parents=True)
    places = [*(f"layer_{layer}" for layer in range(arguments.layers - 1)), "output"]
    tags = [
        f"similarity/{metric}/{comparison}/{place}"
        for metric in HEADLINE
        for comparison in arguments.comparisons
        for place in places
    ]
    chance = random.Random(index)
    values = dict.fromkeys(tags, 0.9)
    with (folder / "similarity.jsonl").open("w", encoding="utf-8") as file:
        for evaluation in range(arguments.evaluations):
            values = {tag: value + chance.uniform(-0.002, 0.0015) for tag, value in values.items()}
            record = {"step": evaluation * 10, "epoch": 0, "seconds": 1.0, "values": values}
            file.write(json.dumps(record) + "\n")
    backbones = {"base": "org/base", "rlvr": "org/rlvr", "seed2": "org/base"}
    recipe = {
        "name": f"recipe_{index % RECIPES}",
        "seed": index,
        "arms": {name: {"backbone": path, "seed": None} for name, path in backbones.items()},
    }
    (folder / "config.yaml").write_text(json.dumps(recipe), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
