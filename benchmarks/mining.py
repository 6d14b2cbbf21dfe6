"""What mining costs, beside a direct call of sentence-transformers' `mine_hard_negatives`.

    python benchmarks/mining.py
    python benchmarks/mining.py --pairs 2000 --negatives 499 --dim 64 --only ours

Embeddings are drawn beforehand, around 1 of 200 centers, and looked up by the number in a text, so
that no model is in the figures. Either way runs in a process of its own; memory is the peak of what
it holds itself (RssAnon), above what it held before. The second line has a million passages, of
which the direct call would hold all texts, and 65 GB of similarities, at its default
`faiss_batch_size`.
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

CENTERS = 200
FILLER = "some words that make it as long as a passage is " * 6


class NumberedEncoder:
    """Looks up the embedding of a text's number; a query is near the passage of its number."""

    identity = "numbered"

    def __init__(self, folder: Path) -> None:
        self.rows = {
            kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("query", "passage")
        }

    @staticmethod
    def draw(folder: Path, pairs: int, group: int, dim: int) -> None:
        draw = np.random.default_rng(0)
        centers = draw.normal(size=(CENTERS, dim)).astype(np.float32)
        passages = np.lib.format.open_memmap(
            folder / "passage.npy", "w+", np.float32, (pairs * group, dim)
        )
        for begin in range(0, len(passages), 4096):
            near = centers[np.arange(begin, min(begin + 4096, len(passages))) % CENTERS]
            passages[begin : begin + 4096] = near + draw.standard_normal(near.shape)
        noise = 0.3 * draw.standard_normal((pairs, dim), dtype=np.float32)
        np.save(folder / "query.npy", passages[::group] + noise)

    def encode_queries(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        return self._unit(texts)

    encode_passages = encode_queries

    def _unit(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
        kind = texts[0].split()[0]
        rows = self.rows[kind][[int(text.split()[1]) for text in texts]]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def write_pairs(path: Path, num_pairs: int, group: int) -> None:
    """Pairs whose passages have about 300 characters each."""
    with path.open("w") as file:
        for pair in range(num_pairs):
            numbers = range(pair * group, (pair + 1) * group)
            texts = [f"passage {number} {FILLER}" for number in numbers]
            record = {"query": f"query {pair}", "pos": texts[:1], "neg": texts[1:]}
            file.write(json.dumps(record) + "\n")


def mine_here(folder: Path, faiss: bool) -> dict[str, list[str]]:
    """Negatives of each query by this package."""
    from hrsa_lightning.mine import MiningOptions, mine

    out = folder / "out.jsonl"
    mine([folder / "pairs.jsonl"], NumberedEncoder(folder), out, MiningOptions(faiss=faiss))
    lines = [json.loads(line) for line in out.open()]
    return {line["query"]: line["neg"] for line in lines}


def mine_directly(folder: Path, faiss: bool) -> dict[str, list[str]]:
    """The same by the library, with the same settings."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    encoder = NumberedEncoder(folder)

    class Model:
        device = torch.device("cpu")
        encode_query = encode_document = staticmethod(encoder._unit)
        similarity = staticmethod(lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T)
        similarity_pairwise = staticmethod(
            lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(-1)
        )
        get_embedding_dimension = staticmethod(lambda: encoder.rows["query"].shape[1])

    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").open()]
    found = mine_hard_negatives(
        Dataset.from_list([{"query": pair["query"], "pos": pair["pos"][0]} for pair in pairs]),
        Model(),
        corpus=[text for pair in pairs for text in (*pair["pos"], *pair["neg"])],
        range_max=100,
        relative_margin=0.05,
        output_format="labeled-list",
        use_faiss=faiss,
        verbose=False,
    )
    return {query: texts[1:] for query, texts in zip(found["query"], found["pos"], strict=True)}


class Peak(threading.Thread):
    """Watches the memory of this process until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.value, self.stopped = self.now(), 0.0, threading.Event()

    @staticmethod
    def now() -> float:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            self.value = max(self.value, self.now() - self.before)


def run_case(way: str, folder: Path, faiss: bool) -> None:
    """Mine once; the figures of this process are its last line."""
    import datasets  # noqa: F401
    import sentence_transformers.util  # noqa: F401
    import torch

    torch.randn(512, 512) @ torch.randn(512, 512)  # the threads and their buffers are there
    peak = Peak()
    peak.start()
    started, cpu = time.perf_counter(), time.process_time()
    found = (mine_here if way == "ours" else mine_directly)(folder, faiss)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak.stopped.set()
    peak.join()
    (folder / f"{way}.json").write_text(json.dumps(found))
    print(f"| {way} | {len(found):,} | {wall:.1f} | {cpu:.1f} | {peak.value:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--negatives", type=int, default=0, help="that each pair comes with")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--faiss", action="store_true")
    parser.add_argument("--only", choices=["ours", "library"])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments.case[0], Path(arguments.case[1]), arguments.faiss)
        return
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as name:
        group = 1 + arguments.negatives
        NumberedEncoder.draw(Path(name), arguments.pairs, group, arguments.dim)
        write_pairs(Path(name) / "pairs.jsonl", arguments.pairs, group)
        print(f"{arguments.pairs:,} pairs, {arguments.pairs * group:,} passages of {arguments.dim}")
        print("| | pairs with negatives | wall s | CPU s | peak MiB |\n|---|---|---|---|---|")
        sys.stdout.flush()
        ways = [arguments.only] if arguments.only else ["ours", "library"]
        for way in ways:
            command = [sys.executable, __file__, "--case", way, name]
            command += ["--faiss"] * arguments.faiss
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
        if len(ways) == 2:
            ours, theirs = (json.loads((Path(name) / f"{w}.json").read_text()) for w in ways)
            same = sum(ours.get(query) == negatives for query, negatives in theirs.items())
            print(f"the same negatives: {same:,} of {len(ours | theirs):,} pairs")


if __name__ == "__main__":
    main()
