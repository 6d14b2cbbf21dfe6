"""What mining costs: time at 100,000 passages, and memory from 10,000 to 200,000.

    python benchmarks/mining.py speed
    python benchmarks/mining.py memory

Texts are numbered and their embeddings are drawn from the number, around 1 of 200 centers, so that
no model's time is in the figures. Every case runs in a process of its own. Memory is the peak of
what the process holds itself (RssAnon), above what it held before mining; the embeddings are
memory-mapped files and not in it. `speed` runs every back end and compares what they write.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(r"\d+")
CENTERS = 200


class NumberedEncoder:
    """Embeddings drawn from the number in a text; a query is close to the passage of its number."""

    identity = "numbered"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.centers = np.random.default_rng(0).normal(size=(CENTERS, dim))

    def encode_queries(self, texts: list[Any]) -> NDArray[np.float32]:
        return self._encode([text for _, text in texts], noise=0.3)

    def encode_passages(self, texts: list[str]) -> NDArray[np.float32]:
        return self._encode(texts, noise=0.0)

    def _encode(self, texts: list[str], noise: float) -> NDArray[np.float32]:
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            found = NUMBER.search(text)
            assert found is not None
            number = int(found[0])
            draw = np.random.default_rng(number)
            rows[row] = self.centers[number % CENTERS] + draw.normal(size=self.dim)
            if noise:
                rows[row] += noise * draw.normal(size=self.dim)
        return rows


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
        while not self.stopped.wait(0.02):
            self.value = max(self.value, anonymous_mb())


def run_case(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mine once; figures of this process."""
    import torch

    from hrsa_lightning.mining import MiningOptions, mine
    from hrsa_lightning.mining.miner import Mining

    torch.set_num_threads(arguments.threads)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the threads and their buffers are there
    if arguments.backend == "faiss":
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
    encoder = NumberedEncoder(arguments.dim)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        warm = folder / "warm.jsonl"
        write_pairs(warm, 400, arguments.negatives)
        options = MiningOptions(backend=arguments.backend)
        mine([warm], encoder, folder / "warm.out.jsonl", options)
        pairs = folder / "pairs.jsonl"
        num_pairs = write_pairs(pairs, arguments.passages, arguments.negatives)
        before, peak = anonymous_mb(), Peak()
        peak.start()
        started, cpu = time.perf_counter(), time.process_time()
        mining = Mining([pairs], folder / "out.jsonl", options, progress=arguments.progress)
        read = time.perf_counter()
        mining.run(encoder)
        done = time.perf_counter()
        peak.stopped.set()
        peak.join()
        written = hashlib.sha256((folder / "out.jsonl").read_bytes()).hexdigest()
    return {
        "passages": arguments.passages,
        "pairs": num_pairs,
        "backend": arguments.backend,
        "read_s": read - started,
        "seconds": done - started,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": peak.value - before,
        "embeddings_mb": (num_pairs + arguments.passages) * arguments.dim * 4 / 2**20,
        "sha256": written,
    }


def in_its_own_process(arguments: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    values = {**vars(arguments), **changes, "what": "case"}
    command = [sys.executable, __file__, "case"]
    for name in ("passages", "negatives", "dim", "threads", "backend", "folder"):
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
        f"{figures['backend']:>6} {figures['passages']:>9,} {figures['pairs']:>9,}"
        f" {figures['seconds']:>9.1f} {figures['cpu_s']:>9.1f} {figures['peak_mb']:>9.0f}"
        f" {figures['embeddings_mb']:>9.0f}",
        flush=True,
    )
    return figures


def verdict(what: str, met: bool) -> None:
    print(f"{what}: {'met' if met else 'NOT met'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "case"])
    parser.add_argument("--passages", type=int, help="speed: how many (100,000)")
    parser.add_argument("--sizes", type=int, nargs=2, default=[10_000, 200_000])
    parser.add_argument("--negatives", type=int, help="that each pair comes with")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--backends", nargs="+", default=["torch", "faiss"])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "case":
        print(json.dumps(run_case(arguments)))
        return
    print("backend passages     pairs   seconds     CPU s  peak MiB embedding MiB")
    if arguments.what == "speed":
        passages = arguments.passages or 100_000
        changes = {"passages": passages, "negatives": arguments.negatives or 0}
        cases = [
            in_its_own_process(arguments, backend=backend, **changes)
            for backend in arguments.backends
        ]
        verdict("all back ends write the same file", len({case["sha256"] for case in cases}) == 1)
        for case in cases:
            verdict(f"{case['backend']}: in minutes (at most 300 s)", case["seconds"] <= 300)
        return
    negatives = 7 if arguments.negatives is None else arguments.negatives
    small, large = (
        in_its_own_process(arguments, passages=size, negatives=negatives)
        for size in arguments.sizes
    )
    growth = large["peak_mb"] - small["peak_mb"]
    added = large["passages"] - small["passages"]
    print(f"growth: {growth:.0f} MiB, {growth * 2**20 / added:.0f} bytes a passage more")
    verdict(
        "memory is flat (grows by at most a tenth of the embeddings' own)",
        growth <= 0.1 * (large["embeddings_mb"] - small["embeddings_mb"]),
    )


if __name__ == "__main__":
    main()
