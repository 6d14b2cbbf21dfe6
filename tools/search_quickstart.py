"""Choose the quickstart's training settings by retrieval on held-out training pairs.

    python tools/search_quickstart.py [--work build/search] [--seeds 1016 ... 1020] [--best 2]

Trains the base arm of the quickstart under each candidate with the first seed, and the best ones
with every seed. A tenth of the embedded training pairs, whole groups of siblings, is held out: no
candidate trains on it, and its MRR@10 and the spread of that over seeds are all that is looked at,
never a similarity. Finished trainings are not run again; the table goes to
`tools/quickstart_search.md`.
"""

import argparse
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from lightning.pytorch import seed_everything

from hrsa_lightning.callbacks import RetrievalMonitor
from hrsa_lightning.config import build, load_settings
from hrsa_lightning.io.files import read_json, write_json
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.similarity import read_history

TABLE = Path(__file__).with_name("quickstart_search.md")
SOURCES = ("definition", "example", "code")
HELD_OUT_QUERIES = 400

CANDIDATES = {
    f"{method}, lr {lr:g}, {negatives} negatives, batch {batch}, {steps} steps": [
        "model.lora=null" if method == "full" else f"model.lora.r={method.split()[-1]}",
        f"optimizer.lr={lr}",
        f"data.train_group_size={1 + negatives}",
        f"data.batch_size={batch}",
        f"trainer.max_steps={steps}",
    ]
    for method, lr, negatives, batch, steps in (
        ("LoRA r 16", 2e-3, 1, 32, 80),
        ("full", 1e-3, 1, 32, 80),
        ("LoRA r 16", 1e-3, 1, 32, 80),
        ("LoRA r 16", 4e-3, 1, 32, 80),
        ("full", 2e-3, 1, 32, 80),
        ("full", 5e-4, 1, 32, 80),
        ("LoRA r 16", 2e-3, 3, 32, 50),
        ("LoRA r 16", 1e-3, 1, 32, 100),
        ("LoRA r 16", 2e-3, 1, 32, 100),
        ("full", 1e-3, 1, 32, 100),
    )
}
"""Lengths that four arms take two and a half minutes for on two cores, or somewhat more."""


def main() -> int:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/search"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1016, 1021)))
    parser.add_argument("--best", type=int, default=2, help="candidates that get every seed")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.work)
    first, *others = arguments.seeds
    for name in CANDIDATES:
        results.train(name, first)
        results.write_table()
    ranked = sorted(CANDIDATES, key=lambda name: -results.scores(name)[0])
    for seed in others:
        for name in ranked[: arguments.best]:
            results.train(name, seed)
            results.write_table()
    print(TABLE.read_text(encoding="utf-8"))
    return 0


class Results:
    """Trainings by candidate and seed, in a file.

    Args:
        work: Folder for the file, the split pairs and what trainings leave behind.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._file = work / "results.json"
        self._done: dict[str, dict[str, Any]] = (
            read_json(self._file) if self._file.is_file() else {}
        )
        self._train_files, self._held_out = split_pairs(work)

    def train(self, name: str, seed: int) -> None:
        """Train a candidate, unless it has been."""
        key = f"{name}, seed {seed}"
        if key not in self._done:
            self._done[key] = self._trained(CANDIDATES[name], seed)
            write_json(self._file, self._done, indent=2)
            print(key, self._done[key], flush=True)

    def scores(self, name: str) -> list[float]:
        """MRR@10 after training, for each seed that was trained."""
        return [done["last"] for done in self._of(name)]

    def write_table(self) -> None:
        """Write the table of what was trained so far, the best of the first seed first."""
        trained = [name for name in CANDIDATES if self._of(name)]
        ranked = sorted(trained, key=lambda name: -self.scores(name)[0])
        lines = [
            "# Settings of the quickstart",
            "",
            f"MRR@10 of the base arm on {HELD_OUT_QUERIES} training pairs that were held out,"
            " before → after training, mean ± standard deviation over seeds; CPU-seconds of the"
            " training steps. Written by `python tools/search_quickstart.py`.",
            "",
            "The quickstart takes the best candidate whose spread over seeds is at most .02 and"
            " whose four arms take two and a half minutes, which 80 steps do.",
            "",
            "| candidate | seeds | MRR@10 | CPU-s |",
            "|---|---|---|---|",
        ]
        for name in ranked:
            scores, done = self.scores(name), self._of(name)
            spread = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
            cost = fmean(each["cpu_seconds"] for each in done)
            cells = f"{done[0]['first']:.3f} → {fmean(scores):.3f}{spread} | {cost:.0f}"
            lines.append(f"| {name} | {len(scores)} | {cells} |")
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _of(self, name: str) -> list[Mapping[str, Any]]:
        return [done for key, done in self._done.items() if key.startswith(f"{name}, seed ")]

    def _trained(self, settings: Sequence[str], seed: int) -> dict[str, Any]:
        config = load_settings(
            [
                "recipe=quickstart",
                *(f"arms.{name}=null" for name in ("rlvr", "sft", "base_seed2")),
                f"data.train=[{','.join(map(str, self._train_files))}]",
                "callbacks.similarity=null",
                f"callbacks.retrieval.pairs={self._held_out}",
                f"callbacks.retrieval.limit={HELD_OUT_QUERIES}",
                "callbacks.retrieval.every_n_train_steps=100000",
                "trainer.enable_progress_bar=false",
                f"seed={seed}",
                *settings,
            ]
        )
        seed_everything(seed, verbose=False)
        folder = self._work / "runs" / str(len(self._done))
        (monitor,) = build.build_callbacks(config)
        trainer = build.build_trainer(config, folder, [monitor])
        arms = build.build_arms(config)
        module = build.build_module(config, arms)
        started = time.process_time()
        trainer.fit(module, build.build_data(config, module.encoders()))
        seconds = time.process_time() - started
        history = read_history(cast(RetrievalMonitor, monitor).history_path or folder)
        found = [m for m in history if m.metric == "mrr@10"]
        return {"first": found[0].value, "last": found[-1].value, "cpu_seconds": round(seconds, 1)}


def split_pairs(work: Path) -> tuple[list[Path], Path]:
    """Files of the pairs to train on, one per source, and the file of those held out."""
    kept: dict[str, list[str]] = {source: [] for source in SOURCES}
    held_out: list[str] = []
    for source in SOURCES:
        path = Path(resolve_path(f"embedded:tiny/pairs_train.{source}.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines():
            group = json.loads(line)["id"].rpartition("/")[0]
            tenth = hashlib.sha256(group.encode()).digest()[0] % 10 == 0
            (held_out if tenth else kept[source]).append(line)
    # All sources in each part of the file, since the first queries are taken.
    held_out.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    files = {work / f"pairs_train.{source}.jsonl": lines for source, lines in kept.items()}
    for path, lines in (files | {work / "held_out.jsonl": held_out}).items():
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(files), work / "held_out.jsonl"


if __name__ == "__main__":
    raise SystemExit(main())
