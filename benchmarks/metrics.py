"""Time and memory of the similarity metrics beside other implementations, on the same inputs.

    python -m benchmarks.metrics                          # all, under 5 minutes on two idle cores
    python -m benchmarks.metrics --only knn --rounds 5
    python -m benchmarks.metrics --threads 1 --by cpu     # on a machine that does other work
    python -m benchmarks.metrics --n 256 --d 64           # a quick look whether everything runs
    python -m benchmarks.metrics --device cuda

Every case runs in a process of its own, and rounds go through all cases in turn, so that whatever
else the machine does hits all of them. Printed are the least wall and CPU seconds over the rounds,
the peak of resident memory above the inputs, the ratio of times to ours, which share of the rate of
a large float32 product (measured in the same rounds) the necessary products reach, and the goals
that these figures meet or do not. Peers that are not installed are left out; `peers.py` holds what
is not ours.

Inputs: A, 12 pairs of 2048 x 768, generator seeded 1000 + l, y = x Q + .25 (l + 1) noise with Q
from a QR; B, one pair of 8192 x 1536, seed 7, noise 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import KS, Pairs
from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional._numerics import DEFAULT_CHUNK_BYTES
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmaps

PRODUCT_SIZE = 2048

PRODUCTS = 5
"""In a row, about as long as the heatmap takes: a short one would miss the noise of the machine."""


def inputs(name: str, n: int, d: int) -> Pairs:
    """Inputs A of the given size, or B, four times the rows and twice the features."""
    if name == "B":
        return [_pair(4 * n, 2 * d, 1.0, torch.Generator().manual_seed(7))]
    pairs = []
    for layer in range(12 if name else 0):
        generator = torch.Generator().manual_seed(1000 + layer)
        pairs.append(_pair(n, d, 0.25 * (layer + 1), generator))
    return pairs


def _pair(n: int, d: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d, generator=generator)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return x, x @ rotation + noise * torch.randn(n, d, generator=generator)


# Ours. Each maker prepares what a user would keep and returns what is timed.


def heatmap(pairs: Pairs) -> Callable[[], Any]:
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    return lambda: linear_cka_heatmaps(xs, ys)


def correlation_map(pairs: Pairs) -> Callable[[], Any]:
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    return lambda: F.dimension_correlation_heatmap(xs, ys)


def each(function: Callable[..., Any], **options: Any) -> Callable[[Pairs], Callable[[], Any]]:
    return lambda pairs: lambda: [function(x, y, **options) for x, y in pairs]


def each_kept(function: Callable[..., Any], **options: Any) -> Callable[[Pairs], Callable[[], Any]]:
    def make(pairs: Pairs) -> Callable[[], Any]:
        kept = [(x, F.Reference(y)) for x, y in pairs]
        for x, reference in kept:
            function(x, reference, **options)
        return lambda: [function(x, reference, **options) for x, reference in kept]

    return make


def probe(pairs: Pairs) -> Callable[[], Any]:
    x, y = pairs[0]
    labels = y[:, :8].argmax(1)
    return lambda: F.linear_probe_transfer(x, y, labels)


class Case(NamedTuple):
    """One implementation of one piece of work; the first of a work is ours.

    ``gflop`` counts the products that the work needs, as a function of the sizes of inputs A.
    """

    work: str
    name: str
    inputs: str
    make: Callable[[Pairs], Callable[[], Any]]
    gflop: Callable[[int, int], float] | None = None
    needs: str = "torch"
    cuda: bool = False


def _half_grams(n: int, d: int) -> float:
    return 24 * n * n * d / 1e9


def _own_and_cross(n: int, d: int) -> float:
    """x'x and y'y in one half each, and x'y."""
    return 12 * 4 * n * d * d / 1e9


def _large_product(_: Pairs) -> Callable[[], Any]:
    return _gemm(torch.device("cpu"), PRODUCTS)


MAP, LOOP = "A correlation map 12 x 12", "the authors' loop over pairs"
HEATMAP, MATCHED, ROTATION = "A CKA heatmap 12 x 12", "A CKA x 12", "A Procrustes x 12"
KNN, CORRELATION, PROBE, PRODUCT = "A k-NN x 12", "A correlation x 12", "A probe", "product"
OURS, KEPT = "ours", "ours, reference kept"
AUTHORS, LEAN = "the authors' way, as published", "the authors' way, no garbage collected"
THEIRS = "sentence_transformers"
NUMPY = "NumPy, debiased, written out"
IN_SAMPLE = each(F.orthogonal_procrustes, protocol="in_sample")
IN_SAMPLE_NAME = "ours, in sample, all values"
CASES = [
    Case(HEATMAP, "ours, plain and debiased", "A", heatmap, _half_grams, cuda=True),
    Case(HEATMAP, "pytorch-cka, debiased", "A", peers.pytorch_cka_heatmap, needs="cka"),
    Case(HEATMAP, AUTHORS, "A", peers.as_published(peers.authors_heatmap), needs=THEIRS,
         cuda=True),
    Case(HEATMAP, LEAN, "A", peers.without_collecting(peers.authors_heatmap), cuda=True),
    Case(MATCHED, OURS, "A", each(F.linear_cka), _own_and_cross, cuda=True),
    Case(MATCHED, KEPT, "A", each_kept(F.linear_cka),
         lambda n, d: 0.75 * _own_and_cross(n, d), cuda=True),
    Case(MATCHED, NUMPY, "A", peers.numpy_cka),
    Case(MATCHED, LEAN, "A", peers.without_collecting(peers.authors_matched), cuda=True),
    Case(ROTATION, IN_SAMPLE_NAME, "A", IN_SAMPLE, _own_and_cross, cuda=True),
    Case(ROTATION, "ours, held out, all values", "A", each(F.orthogonal_procrustes),
         lambda n, d: 0.75 * _own_and_cross(n, d), cuda=True),
    Case(ROTATION, "scipy, distance only", "A", peers.scipy_distance, needs="scipy"),
    Case(ROTATION, AUTHORS, "A", peers.as_published(peers.authors_rotations), needs=THEIRS,
         cuda=True),
    Case(ROTATION, LEAN, "A", peers.without_collecting(peers.authors_rotations), cuda=True),
    Case(KNN, OURS, "A", each(F.knn_overlap, k=KS), _half_grams, cuda=True),
    Case(KNN, KEPT, "A", each_kept(F.knn_overlap, k=KS), lambda n, d: _half_grams(n, d) / 2,
         cuda=True),
    Case(KNN, LEAN, "A", peers.authors_knn, cuda=True),
    Case(KNN, "faiss, exact", "A", peers.faiss_knn, needs="faiss"),
    Case(KNN, "scikit-learn, sets", "A", peers.sklearn_knn, needs="sklearn"),
    Case(CORRELATION, OURS, "A", each(F.dimension_correlation), cuda=True),
    Case(CORRELATION, "loops over dimensions, written out", "A", peers.numpy_correlation),
    Case(MAP, OURS, "A", correlation_map, cuda=True),
    Case(MAP, "NumPy, standardized at once", "A", peers.numpy_correlation_map),
    Case(MAP, LOOP, "A", peers.authors_correlations, cuda=True),
    Case(PROBE, "ours, ridge, three accuracies", "A", probe, cuda=True),
    Case(PROBE, "scikit-learn, logistic", "A", peers.logistic_probe, needs="sklearn"),
    Case("B CKA", OURS, "B", each(F.linear_cka),
         lambda n, d: 4 * 4 * n * 4 * d * d / 1e9, cuda=True),
    Case("B CKA", KEPT, "B", each_kept(F.linear_cka),
         lambda n, d: 3 * 4 * n * 4 * d * d / 1e9, cuda=True),
    Case("B CKA", NUMPY, "B", peers.numpy_cka),
    Case("B Procrustes", IN_SAMPLE_NAME, "B", IN_SAMPLE,
         lambda n, d: 4 * 4 * n * 4 * d * d / 1e9, cuda=True),
    Case("B Procrustes", "scipy, rotation and nuclear norm", "B", peers.scipy_rotation,
         needs="scipy"),
    Case("B k-NN", OURS, "B", each(F.knn_overlap, k=KS),
         lambda n, d: 2 * 16 * n * n * 2 * d / 1e9, cuda=True),
    Case("B k-NN", KEPT, "B", each_kept(F.knn_overlap, k=KS),
         lambda n, d: 16 * n * n * 2 * d / 1e9, cuda=True),
    Case("B k-NN", "faiss, exact", "B", peers.faiss_knn, needs="faiss"),
    Case("B correlation", OURS, "B", each(F.dimension_correlation), cuda=True),
    Case("B correlation", "loops over dimensions, written out", "B", peers.numpy_correlation),
    Case("B probe", "ours, ridge, three accuracies", "B", probe, cuda=True),
    Case("B probe", "scikit-learn, logistic", "B", peers.logistic_probe, needs="sklearn"),
    Case(PRODUCT, f"{PRODUCTS} x {PRODUCT_SIZE} cubed", "", _large_product,
         lambda n, d: PRODUCTS * 2 * PRODUCT_SIZE**3 / 1e9, cuda=True),
]  # fmt: skip


class Goal(NamedTuple):
    """``ours`` at least ``factor`` times as fast as ``other`` at the same work."""

    work: str
    ours: str
    other: str
    factor: float


GOALS = [
    Goal(HEATMAP, "ours, plain and debiased", "pytorch-cka, debiased", 2),
    Goal(HEATMAP, "ours, plain and debiased", AUTHORS, 20),
    Goal(MAP, OURS, LOOP, 20),
    Goal(MATCHED, OURS, NUMPY, 1),
    Goal(ROTATION, IN_SAMPLE_NAME, "scipy, distance only", 1.8),
    Goal(ROTATION, IN_SAMPLE_NAME, AUTHORS, 3.4),
    Goal(KNN, OURS, "faiss, exact", 1),
    Goal(KNN, KEPT, "faiss, exact", 2),
]
PRODUCT_SHARE = 1.3
"""The heatmap may take this many times as long as the products it needs."""

CHUNKS = 1.2
"""Memory above the inputs may be this many times the chunk budget."""

REPEATS = 4
"""Runs of a case in its process; the first ones also pay for memory that is new to it."""

SLOW = 5.0
"""No further run begins after this many seconds."""


def _gemm(device: torch.device, times: int = 1) -> Callable[[], Any]:
    a = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device)

    def run() -> None:
        for _ in range(times):
            a @ a

    return run


def _memory(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def run_case(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Time one case in this process."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    pairs = [(x.to(device), y.to(device)) for x, y in inputs(case.inputs, options.n, options.d)]
    run = _gemm(device, PRODUCTS) if case.work == PRODUCT else case.make(pairs)
    _gemm(device)()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak that the kernel keeps
        before = _memory("VmRSS")
    wall, cpu = [], []
    while len(wall) < REPEATS and sum(wall) < SLOW:
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        if cuda:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _memory("VmHWM")
    return {"wall": min(wall), "cpu": min(cpu), "memory": peak - before}


Results = dict[tuple[str, str], dict[str, float]]


def measure(cases: list[Case], options: argparse.Namespace) -> Results:
    """Run every case in processes of their own, in rounds; the least of each figure."""
    best: Results = {}
    for _ in range(options.rounds):
        for case in cases:
            command = [sys.executable, "-m", "benchmarks.metrics", "--case", str(CASES.index(case))]
            for name in ("threads", "device", "n", "d"):
                command += [f"--{name}", str(getattr(options, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            output = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            found = json.loads(output.splitlines()[-1])
            known = best.get((case.work, case.name), found)
            best[case.work, case.name] = {k: min(v, known[k]) for k, v in found.items()}
    return best


def table(best: Results, options: argparse.Namespace) -> str:
    """Results as a Markdown table."""
    rate = _rate(best, options)
    lines = [
        f"float32 product of {PRODUCT_SIZE} x {PRODUCT_SIZE} matrices: {rate:.0f} GFLOP/s "
        f"({options.threads} threads, by {options.by} seconds)",
        "",
        "| Work | Implementation | wall s | CPU s | memory MiB | time / ours | of product rate |",
        "|---|---|---|---|---|---|---|",
    ]
    ours: dict[str, float] = {}
    for case in CASES:
        found = best.get((case.work, case.name))
        if found is None or case.work == PRODUCT:
            continue
        base = ours.setdefault(case.work, found[options.by])
        needed = case.gflop(options.n, options.d) if case.gflop else None
        share = f"{needed / found[options.by] / rate:.0%}" if needed else ""
        lines.append(
            f"| {case.work} | {case.name} | {found['wall']:.3f} | {found['cpu']:.3f} "
            f"| {found['memory']:.0f} | {found[options.by] / base:.2f} | {share} |"
        )
    return "\n".join(lines)


def _rate(best: Results, options: argparse.Namespace) -> float:
    """GFLOP/s of the large product."""
    case = CASES[-1]
    assert case.gflop is not None
    return case.gflop(options.n, options.d) / best[case.work, case.name][options.by]


def goals(best: Results, options: argparse.Namespace) -> str:
    """Which goals the results meet, as a Markdown table."""
    lines = ["| Goal | wanted | measured | |", "|---|---|---|---|"]

    def line(text: str, wanted: str, measured: str, met: bool | None) -> None:
        verdict = "not measured" if met is None else "met" if met else "NOT met"
        lines.append(f"| {text} | {wanted} | {measured} | {verdict} |")

    heatmap_case = CASES[0]
    if found := best.get((HEATMAP, heatmap_case.name)):
        needed = _half_grams(options.n, options.d) / _rate(best, options)
        times = found[options.by] / needed
        wanted = f"at most {PRODUCT_SHARE} times"
        line(f"{HEATMAP}: {OURS} / its products", wanted, f"{times:.2f}", times <= PRODUCT_SHARE)
    for goal in GOALS:
        if all(work != goal.work for work, _ in best):
            continue
        one, other = (best.get((goal.work, name)) for name in (goal.ours, goal.other))
        factor = other[options.by] / one[options.by] if one and other else None
        line(
            f"{goal.work}: {goal.ours} against {goal.other}",
            f"at least {goal.factor} times as fast",
            "" if factor is None else f"{factor:.2f}",
            None if factor is None else factor >= goal.factor,
        )
    bound = CHUNKS * DEFAULT_CHUNK_BYTES / 2**20
    own = {key: found["memory"] for key, found in best.items() if key[1].startswith(OURS)}
    if own:
        work, name = max(own, key=own.__getitem__)
        most = own[work, name]
        text = f"memory above the inputs, most of all ours ({work}: {name})"
        line(text, f"at most {bound:.0f} MiB", f"{most:.0f}", most <= bound)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--by", default="wall", choices=["wall", "cpu"], help="seconds to judge by")
    parser.add_argument("--only", default="", help="run the works whose name contains this")
    parser.add_argument("--n", type=int, default=2048, help="samples of inputs A")
    parser.add_argument("--d", type=int, default=768, help="features of inputs A")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(run_case(CASES[options.case], options)))
        return
    chosen = [
        case
        for case in CASES
        if (options.only.lower() in case.work.lower() or case.work == PRODUCT)
        and find_spec(case.needs)
        and (options.device == "cpu" or case.cuda)
    ]
    best = measure(chosen, options)
    print(f"{table(best, options)}\n\n{goals(best, options)}")


if __name__ == "__main__":
    main()
