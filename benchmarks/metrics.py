"""Time and memory of the similarity metrics beside other implementations, on the same inputs.

    python benchmarks/metrics.py --threads 2
    python benchmarks/metrics.py --threads 2 --only knn --rounds 5
    python benchmarks/metrics.py --device cuda

Every case runs in a process of its own, and rounds go through all cases in turn, so that whatever
else the machine does hits all of them. Printed are the least CPU and wall seconds over the rounds,
the peak of resident memory above the inputs, the ratio of CPU seconds to ours, and which share of
the rate of a large float32 product (measured in the same rounds) the necessary products reach.
Peers that are not installed are left out. Formulas named "as published" are transcriptions of
definitions, not code of their authors.

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

import numpy as np
import torch
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional.cka_heatmap import linear_cka_heatmaps

KS = (5, 10, 50)
Pairs = list[tuple[Tensor, Tensor]]


def inputs_a() -> Pairs:
    pairs = []
    for layer in range(12):
        generator = torch.Generator().manual_seed(1000 + layer)
        pairs.append(_pair(2048, 768, 0.25 * (layer + 1), generator))
    return pairs


def inputs_b() -> Pairs:
    return [_pair(8192, 1536, 1.0, torch.Generator().manual_seed(7))]


def _pair(n: int, d: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d, generator=generator)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return x, x @ rotation + noise * torch.randn(n, d, generator=generator)


# Ours. Each maker prepares what a user would keep and returns what is timed.


def heatmap(pairs: Pairs) -> Callable[[], Any]:
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    return lambda: linear_cka_heatmaps(xs, ys)


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


# Peers and published formulas.


def arrays(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.numpy(), y.numpy()) for x, y in pairs]


def pytorch_cka_heatmap(pairs: Pairs) -> Callable[[], Any]:
    from cka import cka_from_features

    xs, ys = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
    return lambda: cka_from_features(xs, ys)


def plain_cka(x: Tensor, y: Tensor) -> Tensor:
    """Kornblith et al. 2019, as published: three products per pair."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.mT @ x).norm() ** 2 / ((x.mT @ x).norm() * (y.mT @ y).norm())


def plain_heatmap(pairs: Pairs) -> Callable[[], Any]:
    return lambda: [[plain_cka(x, y) for _, y in pairs] for x, _ in pairs]


def numpy_debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Feature form with the debiased norm, as published beside Kornblith et al. 2019 (NumPy)."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, ell, n = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y), len(x)

    def debiased(norm: float, a: np.ndarray, b: np.ndarray) -> float:
        return norm - n / (n - 2) * a.dot(b) + a.sum() * b.sum() / ((n - 1) * (n - 2))

    cross = debiased(np.linalg.norm(x.T.dot(y)) ** 2, k, ell)
    own_x = debiased(np.linalg.norm(x.T.dot(x)) ** 2, k, k)
    own_y = debiased(np.linalg.norm(y.T.dot(y)) ** 2, ell, ell)
    return float(cross / np.sqrt(own_x * own_y))


def numpy_cka(pairs: Pairs) -> Callable[[], Any]:
    return lambda: [numpy_debiased_cka(x, y) for x, y in arrays(pairs)]


def numpy_heatmap(pairs: Pairs) -> Callable[[], Any]:
    rows = arrays(pairs)
    return lambda: [[numpy_debiased_cka(x, y) for _, y in rows] for x, _ in rows]


def scipy_distance(pairs: Pairs) -> Callable[[], Any]:
    from scipy.spatial import procrustes

    return lambda: [procrustes(x, y)[2] for x, y in arrays(pairs)]


def scipy_rotation(pairs: Pairs) -> Callable[[], Any]:
    from scipy.linalg import orthogonal_procrustes

    def run() -> Any:
        return [orthogonal_procrustes(x - x.mean(0), y - y.mean(0)) for x, y in arrays(pairs)]

    return run


def published_procrustes(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """arXiv 2601.21192, as published: fitted centered, judged uncentered."""
    u, _, v = torch.linalg.svd((x - x.mean(0)).double().mT @ (y - y.mean(0)).double())
    rotation = u @ v
    turned = x.double() @ rotation
    wide = y.double()
    residual = (turned - wide).square().sum() / wide.square().sum()
    flat = torch.nn.functional.cosine_similarity(turned.flatten(), wide.flatten(), dim=0)
    cosines = torch.nn.functional.cosine_similarity(turned, wide)
    shares = rotation.square()
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum(1) / np.log(len(rotation))
    return residual, flat, cosines.mean(), 1 - entropy.mean()


def faiss_knn(pairs: Pairs) -> Callable[[], Any]:
    import faiss

    def search(rows: np.ndarray) -> Tensor:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return torch.from_numpy(index.search(unit, max(KS) + 1)[1][:, 1:])

    from hrsa_lightning.functional.knn import overlap_of_neighbors

    def run() -> Any:
        return [overlap_of_neighbors(search(x), search(y), KS, "jaccard") for x, y in arrays(pairs)]

    faiss.omp_set_num_threads(torch.get_num_threads())
    return run


def published_knn(pairs: Pairs) -> Callable[[], Any]:
    """arXiv 2601.21192, as published: the whole similarity matrix and its top k, Jaccard."""

    def near(x: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(x)
        return (unit @ unit.mT).fill_diagonal_(-1).topk(max(KS)).indices

    def jaccard(a: Tensor, b: Tensor, k: int) -> Tensor:
        shared = (a[:, :k, None] == b[:, None, :k]).sum((1, 2)).double()
        return (shared / (2 * k - shared)).mean()

    def run() -> Any:
        found = [(near(x), near(y)) for x, y in pairs]
        return [[jaccard(a, b, k) for k in KS] for a, b in found]

    return run


def numpy_correlation(pairs: Pairs) -> Callable[[], Any]:
    def one(x: np.ndarray, y: np.ndarray) -> list[float]:
        return [float(np.corrcoef(x[:, j], y[:, j])[0, 1]) for j in range(x.shape[1])]

    return lambda: [one(x, y) for x, y in arrays(pairs)]


def logistic_probe(pairs: Pairs) -> Callable[[], Any]:
    from sklearn.linear_model import LogisticRegression

    x, y = arrays(pairs)[0]
    labels = y[:, :8].argmax(1)

    def run() -> Any:
        model = LogisticRegression(max_iter=200).fit(y[::2], labels[::2])
        own = LogisticRegression(max_iter=200).fit(x[::2], labels[::2])
        return [
            model.score(x[1::2], labels[1::2]),
            model.score(y[1::2], labels[1::2]),
            own.score(x[1::2], labels[1::2]),
        ]

    return run


class Case(NamedTuple):
    """One implementation of one piece of work; the first of a work is ours."""

    work: str
    name: str
    inputs: Callable[[], Pairs]
    make: Callable[[Pairs], Callable[[], Any]]
    gflop: float
    needs: str = "torch"


N, D, NB, DB = 2048, 768, 8192, 1536
HEATMAP = 24 * N * N * D / 1e9
MATCHED = 12 * 4 * N * D * D / 1e9
ROTATION = 12 * 4 * N * D * D / 1e9
SEARCH = 24 * N * N * D / 1e9
CASES = [
    Case("A heatmap 12x12", "ours, plain and debiased", inputs_a, heatmap, HEATMAP),
    Case("A heatmap 12x12", "pytorch-cka, debiased", inputs_a, pytorch_cka_heatmap, 0, "cka"),
    Case("A heatmap 12x12", "NumPy, debiased, as published", inputs_a, numpy_heatmap, 0),
    Case("A heatmap 12x12", "plain, as published", inputs_a, plain_heatmap, 0),
    Case("A CKA x 12", "ours", inputs_a, each(F.linear_cka), MATCHED),
    Case("A CKA x 12", "ours, reference kept", inputs_a, each_kept(F.linear_cka), MATCHED * 0.75),
    Case("A CKA x 12", "NumPy, debiased, as published", inputs_a, numpy_cka, 0),
    Case("A CKA x 12", "plain, as published", inputs_a, each(plain_cka), 0),
    Case("A Procrustes x 12", "ours, in sample, all values", inputs_a,
         each(F.orthogonal_procrustes, protocol="in_sample"), ROTATION),
    Case("A Procrustes x 12", "ours, held out, all values", inputs_a,
         each(F.orthogonal_procrustes), ROTATION * 0.75),
    Case("A Procrustes x 12", "scipy, distance", inputs_a, scipy_distance, 0, "scipy"),
    Case("A Procrustes x 12", "all values, as published", inputs_a, each(published_procrustes), 0),
    Case("A k-NN x 12", "ours", inputs_a, each(F.knn_overlap, k=KS), SEARCH),
    Case("A k-NN x 12", "ours, reference kept", inputs_a, each_kept(F.knn_overlap, k=KS),
         SEARCH / 2),
    Case("A k-NN x 12", "faiss", inputs_a, faiss_knn, 0, "faiss"),
    Case("A k-NN x 12", "as published", inputs_a, published_knn, 0),
    Case("A correlation x 12", "ours", inputs_a, each(F.dimension_correlation), 0),
    Case("A correlation x 12", "NumPy", inputs_a, numpy_correlation, 0),
    Case("A probe", "ours, ridge, three accuracies", inputs_a, probe, 0),
    Case("A probe", "scikit-learn, logistic", inputs_a, logistic_probe, 0, "sklearn"),
    Case("B CKA", "ours", inputs_b, each(F.linear_cka), 4 * NB * DB * DB / 1e9),
    Case("B CKA", "ours, reference kept", inputs_b, each_kept(F.linear_cka),
         3 * NB * DB * DB / 1e9),
    Case("B CKA", "NumPy, debiased, as published", inputs_b, numpy_cka, 0),
    Case("B Procrustes", "ours, in sample, all values", inputs_b,
         each(F.orthogonal_procrustes, protocol="in_sample"), 4 * NB * DB * DB / 1e9),
    Case("B Procrustes", "scipy, rotation and nuclear norm", inputs_b, scipy_rotation, 0, "scipy"),
    Case("B k-NN", "ours", inputs_b, each(F.knn_overlap, k=KS), 2 * NB * NB * DB / 1e9),
    Case("B k-NN", "ours, reference kept", inputs_b, each_kept(F.knn_overlap, k=KS),
         NB * NB * DB / 1e9),
    Case("B k-NN", "faiss", inputs_b, faiss_knn, 0, "faiss"),
    Case("GEMM", "2048 x 2048 x 2048", lambda: [],
         lambda _: _gemm(torch.device("cpu")), 2 * 2048**3 / 1e9),
]  # fmt: skip


def _gemm(device: torch.device) -> Callable[[], Any]:
    a = torch.randn(2048, 2048, device=device)
    return lambda: a @ a


def _memory(field: str) -> float:
    """A field of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def run_case(case: Case, threads: int, device: torch.device) -> dict[str, float]:
    """Time one case in this process."""
    torch.set_num_threads(threads)
    pairs = [(x.to(device), y.to(device)) for x, y in case.inputs()]
    run = _gemm(device) if case.work == "GEMM" else case.make(pairs)
    _gemm(device)()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak that the kernel keeps
        before = _memory("VmRSS")
    wall, cpu = [], []
    for _ in range(2):
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        if cuda:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _memory("VmHWM")
    return {"wall": min(wall), "cpu": min(cpu), "memory": peak - before}


def measure(cases: list[Case], options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Run every case in processes of their own, in rounds; the least of each figure."""
    best: dict[int, dict[str, float]] = {}
    for _ in range(options.rounds):
        for case in cases:
            index = CASES.index(case)
            command = [sys.executable, __file__, "--case", str(index)]
            command += ["--threads", str(options.threads), "--device", options.device]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            output = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout
            found = json.loads(output.splitlines()[-1])
            known = best.get(index, found)
            best[index] = {key: min(value, known[key]) for key, value in found.items()}
    return best


def report(best: dict[int, dict[str, float]], device: str) -> str:
    """Results as a Markdown table."""
    key = "wall" if device == "cuda" else "cpu"
    gemm = CASES[-1].gflop / best[len(CASES) - 1]["wall"]
    lines = [
        f"float32 product of 2048 x 2048 matrices: {gemm:.0f} GFLOP/s",
        "",
        "| Work | Implementation | CPU s | wall s | memory MB | time / ours | of GEMM rate |",
        "|---|---|---|---|---|---|---|",
    ]
    ours: dict[str, float] = {}
    for index, found in sorted(best.items()):
        case = CASES[index]
        if case.work == "GEMM":
            continue
        base = ours.setdefault(case.work, found[key])
        share = f"{case.gflop / found['wall'] / gemm:.0%}" if case.gflop else ""
        lines.append(
            f"| {case.work} | {case.name} | {found['cpu']:.3f} | {found['wall']:.3f} "
            f"| {found['memory']:.0f} | {found[key] / base:.2f} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="", help="run the works whose name contains this")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        device = torch.device(options.device)
        print(json.dumps(run_case(CASES[options.case], options.threads, device)))
        return
    chosen = [
        case
        for case in CASES
        if (options.only.lower() in case.work.lower() or case.work == "GEMM")
        and find_spec(case.needs)
        and (options.device == "cpu" or case.name.startswith("ours") or case.work == "GEMM")
    ]
    print(report(measure(chosen, options), options.device))


if __name__ == "__main__":
    main()
