"""What mining costs: time at 100,000 passages, and memory from 10,000 to 200,000.

    python benchmarks/mining.py speed
    python benchmarks/mining.py memory

Embeddings are drawn beforehand, around 1 of 200 centers, and looked up by the number in a text, so
that no model is in the figures. Every case runs in a process of its own. Memory is the peak of what
the process holds itself (RssAnon), above what it held before mining; the embeddings are
memory-mapped files and not in it. The negatives of some pairs are compared with those of a search
through all passages in float64.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"\d+")
CENTERS = 200
CHECKED_PAIRS = 40
ROWS_AT_ONCE = 4096
MOST_BYTES = 250  # of memory for each passage more


def number_of(text: str) -> int:
    found = NUMBER.search(text)
    assert found is not None
    return int(found[0])


class NumberedEncoder:
    """Looks up the embedding of a text's number; a query is near the passage of its number."""

    identity = "numbered"

    def __init__(self, file: Path, num_passages: int, dim: int) -> None:
        draw = np.random.default_rng(0)
        centers = draw.normal(size=(CENTERS, dim)).astype(np.float32)
        with file.open("wb") as rows:
            for begin in range(0, num_passages, ROWS_AT_ONCE):
                numbers = np.arange(begin, min(begin + ROWS_AT_ONCE, num_passages))
                noise = draw.standard_normal((len(numbers), dim), dtype=np.float32)
                rows.write((centers[numbers % CENTERS] + noise).tobytes())
        self.rows = np.memmap(file, dtype=np.float32, mode="r", shape=(num_passages, dim))

    def encode_queries(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        numbers = self._numbers([text for _, text in texts])
        draw = np.random.default_rng(numbers[0])
        noise = draw.standard_normal((len(numbers), self.rows.shape[1]), dtype=np.float32)
        return np.asarray(self.rows[numbers] + np.float32(0.3) * noise)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self.rows[self._numbers(texts)])

    def _numbers(self, texts: Sequence[str]) -> list[int]:
        return [number_of(text) for text in texts]


def write_pairs(path: Path, num_passages: int, num_negatives: int) -> int:
    """Pairs over so many passages, each of about 300 characters; returns how many pairs."""
    filler = "some words that make it as long as a passage is " * 6
    num_pairs = num_passages // (1 + num_negatives)
    with path.open("w") as file:
        for pair in range(num_pairs):
            first = pair * (1 + num_negatives)
            texts = [f"passage {first + i} {filler}" for i in range(1 + num_negatives)]
            record = {"query": ["Find it", f"query {first}"], "pos": texts[:1], "neg": texts[1:]}
            file.write(json.dumps(record) + "\n")
    return num_pairs


def anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


class Peak(threading.Thread):
    """Watches the memory of this process until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.value, self.stopped = 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.value = max(self.value, anonymous_mb())


def equal_to_brute_force(work: Path, out: Path, dim: int, options: Any) -> int:
    """How many of the `CHECKED_PAIRS` have the negatives that a plain search finds."""
    queries = np.fromfile(work / "queries.f32", dtype=np.float32).reshape(-1, dim)
    passages = np.memmap(work / "passages.f32", dtype=np.float32, mode="r").reshape(-1, dim)
    lines = [json.loads(line) for line in out.open()]
    written = {line["query"][1]: line["neg"] for line in lines}
    step = len(passages) // len(queries)
    equal = 0
    for pair in np.linspace(0, len(queries) - 1, CHECKED_PAIRS).astype(int):
        asked, right = queries[pair].astype(np.float64), pair * step
        scores = np.concatenate(
            [
                (passages[begin : begin + ROWS_AT_ONCE].astype(np.float64) * asked).sum(1)
                for begin in range(0, len(passages), ROWS_AT_ONCE)
            ]
        )
        order = np.argsort(-scores, kind="stable")
        ranked = order[order != right][slice(*options.rank_range)]
        allowed = ranked[scores[ranked] <= options.max_relative * scores[right]]
        found = [number_of(text) for text in written.get(f"query {right}", ())]
        equal += found == allowed[: options.num_negatives].tolist()
    return equal


def run_case(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mine once; figures of this process."""
    import torch

    from hrsa_lightning.mine import MiningOptions, mine
    from hrsa_lightning.mine.miner import Mining

    torch.set_num_threads(arguments.threads)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the threads and their buffers are there
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        encoder = NumberedEncoder(folder / "rows.f32", arguments.passages, arguments.dim)
        warm = folder / "warm.jsonl"
        write_pairs(warm, 400, arguments.negatives)
        options = MiningOptions()
        mine([warm], encoder, folder / "warm.out.jsonl", options)
        pairs, out, work = folder / "pairs.jsonl", folder / "out.jsonl", folder / "work"
        num_pairs = write_pairs(pairs, arguments.passages, arguments.negatives)
        before, peak = anonymous_mb(), Peak()
        peak.start()
        started, cpu = time.perf_counter(), time.process_time()
        mining = Mining([pairs], out, options, work=work, progress=arguments.progress)
        read = time.perf_counter()
        summary = mining.run(encoder)
        done, cpu_done = time.perf_counter(), time.process_time()
        peak.stopped.set()
        peak.join()
        return {
            "passages": arguments.passages,
            "pairs": num_pairs,
            "kept": summary["kept"],
            "read_s": read - started,
            "seconds": done - started,
            "cpu_s": cpu_done - cpu,
            "peak_mb": peak.value - before,
            "embeddings_mb": (num_pairs + arguments.passages) * arguments.dim * 4 / 2**20,
            "equal": equal_to_brute_force(work, out, arguments.dim, options),
        }


def in_its_own_process(arguments: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    values = {**vars(arguments), **changes, "what": "case"}
    command = [sys.executable, __file__, "case"]
    for name in ("passages", "negatives", "dim", "threads", "folder"):
        command += [f"--{name}", str(values[name])]
    command += ["--progress"] if arguments.progress else []
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": path
    }  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{figures['passages']:>9,} {figures['pairs']:>9,}"
        f" {figures['kept']:>9,} {figures['seconds']:>9.1f} {figures['cpu_s']:>9.1f}"
        f" {figures['peak_mb']:>9.1f} {figures['embeddings_mb']:>14.0f}"
        f" {figures['equal']:>8} of {CHECKED_PAIRS}",
        flush=True,
    )
    return figures


def verdict(what: str, met: bool) -> None:
    print(f"{what}: {'met' if met else 'NOT met'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "case"])
    parser.add_argument("--passages", type=int, help="speed: how many (100,000)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--negatives", type=int, help="that each pair comes with")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "case":
        print(json.dumps(run_case(arguments)))
        return
    print(
        " passages     pairs      kept   seconds     CPU s  peak MiB embeddings MiB as brute force"
    )
    if arguments.what == "speed":
        passages = arguments.passages or 100_000
        changes = {"passages": passages, "negatives": arguments.negatives or 0}
        case = in_its_own_process(arguments, **changes)
        verdict("in minutes (at most 300 s)", case["seconds"] <= 300)
    else:
        negatives = 7 if arguments.negatives is None else arguments.negatives
        cases = [
            in_its_own_process(arguments, passages=size, negatives=negatives)
            for size in arguments.sizes
        ]
        small, large = cases[0], cases[-1]
        growth = large["peak_mb"] - small["peak_mb"]
        added = large["passages"] - small["passages"]
        grown = growth * 2**20 / added
        share = growth / (large["embeddings_mb"] - small["embeddings_mb"])
        print(f"growth: {growth:.1f} MiB, {grown:.0f} bytes a passage, {share:.3f} of embeddings'")
        verdict(f"at most {MOST_BYTES} bytes a passage", grown <= MOST_BYTES)
    verdict("the same as brute force", all(case["equal"] == CHECKED_PAIRS for case in cases))


if __name__ == "__main__":
    main()
