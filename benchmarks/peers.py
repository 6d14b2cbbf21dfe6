"""Other implementations of the metrics: what `benchmarks/metrics.py` measures ours beside.

Functions named "authors" follow, in our own words, what the scripts published with arXiv 2601.21192
do (github.com/HKUST-KnowComp/Reasoning-Embedding, folder hrsa/metrics, commit 761051b), in their
default float32. Those scripts collect garbage after every step, which takes the longer the more
objects are alive, and importing any of them imports all that they need together; so `as_published`
imports the same, and `without_collecting` shows what is left without either.
"""

import gc
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]

KS = (5, 10, 50)


def arrays(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.numpy(), y.numpy()) for x, y in pairs]


def pytorch_cka_heatmap(pairs: Pairs) -> Callable[[], Any]:
    from cka import cka_from_features

    xs, ys = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])
    return lambda: cka_from_features(xs, ys)


AUTHORS_IMPORTS = (
    "datasets",
    "matplotlib.pyplot",
    "pandas",
    "sentence_transformers",
    "sklearn.linear_model",
    "sklearn.decomposition",
    "transformers",
)


def import_theirs() -> None:
    """Import what their package imports, whichever of its programs is run."""
    for name in AUTHORS_IMPORTS:
        importlib.import_module(name)


def as_published(
    make: Callable[[Pairs], Callable[[], Any]],
) -> Callable[[Pairs], Callable[[], Any]]:
    """Their procedure in a process that has imported what their package imports."""

    def with_imports(pairs: Pairs) -> Callable[[], Any]:
        import_theirs()
        return make(pairs)

    return with_imports


def without_collecting(make: Callable[..., Callable[[], Any]]) -> Callable[[Pairs], Any]:
    """Their procedure where no garbage is collected."""
    return lambda pairs: make(pairs, collect=lambda: None)


def collect_garbage() -> None:
    """What their scripts do after every step."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def authors_heatmap(
    pairs: Pairs, collect: Callable[[], None] = collect_garbage
) -> Callable[[], Any]:
    """Their matrix over all pairs of layers, from features; garbage is collected after each."""

    def run() -> Tensor:
        xs, ys = [x - x.mean(0) for x, _ in pairs], [y - y.mean(0) for _, y in pairs]
        norms_x = [torch.linalg.norm(x.mT @ x) for x in xs]
        norms_y = [torch.linalg.norm(y.mT @ y) for y in ys]
        values = torch.zeros(len(xs), len(ys))
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):
                cross = torch.linalg.norm(x.mT @ y) ** 2
                values[i, j] = (cross / (norms_x[i] * norms_y[j] + 1e-12)).clamp(0, 1).item()
                collect()
        return values

    return run


def authors_matched(
    pairs: Pairs, collect: Callable[[], None] = collect_garbage
) -> Callable[[], Any]:
    """The same for matched layers alone."""
    parts = [authors_heatmap([pair], collect) for pair in pairs]
    return lambda: [part() for part in parts]


def numpy_debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Feature form with debiased norms (Kornblith et al. 2019) written out in NumPy."""
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


def scipy_distance(pairs: Pairs) -> Callable[[], Any]:
    from scipy.spatial import procrustes

    return lambda: [procrustes(x, y)[2] for x, y in arrays(pairs)]


def scipy_rotation(pairs: Pairs) -> Callable[[], Any]:
    from scipy.linalg import orthogonal_procrustes

    def run() -> Any:
        return [orthogonal_procrustes(x - x.mean(0), y - y.mean(0)) for x, y in arrays(pairs)]

    return run


def authors_rotations(
    pairs: Pairs, collect: Callable[[], None] = collect_garbage
) -> Callable[[], Any]:
    """`authors_procrustes` of every pair."""
    return lambda: [authors_procrustes(x, y, collect) for x, y in pairs]


def authors_procrustes(
    x: Tensor, y: Tensor, collect: Callable[[], None] = collect_garbage
) -> dict[str, float]:
    """Their fit on centered rows, judged on the rows as they are, and the entropy of its rows."""
    u, _, v = torch.linalg.svd((x - x.mean(0)).mT @ (y - y.mean(0)), full_matrices=False)
    rotation = u @ v
    collect()
    mapped = x @ rotation
    residual = torch.linalg.norm(mapped - y) ** 2 / (torch.linalg.norm(y) ** 2 + 1e-12)
    cosines = torch.nn.functional.cosine_similarity(mapped, y, dim=1, eps=1e-12)
    lengths = torch.linalg.norm(mapped) * torch.linalg.norm(y) + 1e-12
    values = {
        "residual_variance_ratio": residual.item(),
        "mean_cosine": cosines.mean().item(),
        "min_cosine": cosines.min().item(),
        "max_cosine": cosines.max().item(),
        "global_cosine": ((mapped * y).sum() / lengths).item(),
    }
    collect()
    shares = rotation.square()
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(1) / math.log(shares.shape[1])
    spread = {"mean": entropy.mean(), "min": entropy.min(), "max": entropy.max()}
    return values | {f"{name}_entropy": value.item() for name, value in spread.items()}


def authors_knn(pairs: Pairs) -> Callable[[], Any]:
    """Their search in chunks of 1024 rows, and overlaps by comparing all pairs of neighbors."""

    def near(x: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(x, dim=1)
        parts = []
        for start in range(0, len(unit), 1024):
            scores = unit[start : start + 1024] @ unit.mT
            rows = torch.arange(len(scores))
            scores[rows, rows + start] = -1e9
            parts.append(scores.topk(max(KS), dim=1).indices)
        return torch.cat(parts)

    def overlap(a: Tensor, b: Tensor) -> list[float]:
        means = []
        for k in KS:
            shared = (a[:, :k, None] == b[:, None, :k]).any(2).sum(1).float()
            means.append((shared / (2 * k - shared)).mean().item())
        return means

    return lambda: [overlap(near(x), near(y)) for x, y in pairs]


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


def sklearn_knn(pairs: Pairs) -> Callable[[], Any]:
    """arXiv 2601.21192 written out: brute-force neighbors of scikit-learn, Jaccard of sets."""
    from sklearn.neighbors import NearestNeighbors

    def near(x: np.ndarray) -> np.ndarray:
        finder = NearestNeighbors(n_neighbors=max(KS) + 1, metric="cosine").fit(x)
        return finder.kneighbors(x, return_distance=False)[:, 1:]

    def jaccard(a: np.ndarray, b: np.ndarray, k: int) -> float:
        rows = [(set(p[:k]), set(q[:k])) for p, q in zip(a, b, strict=True)]
        return float(np.mean([len(p & q) / len(p | q) for p, q in rows]))

    def run() -> Any:
        found = [(near(x), near(y)) for x, y in arrays(pairs)]
        return [[jaccard(a, b, k) for k in KS] for a, b in found]

    return run


def authors_correlations(pairs: Pairs) -> Callable[[], Any]:
    """Their mean correlation of all pairs of layers, feature by feature."""

    def one(x: Tensor, y: Tensor) -> float:
        x, y, n = x - x.mean(0), y - y.mean(0), len(x)
        covariance = (x * y).sum(0) / (n - 1)
        variances = (x * x).sum(0) / (n - 1), (y * y).sum(0) / (n - 1)
        spread = variances[0].sqrt() * variances[1].sqrt()
        values = (covariance / spread)[spread > 1e-12].clamp(-1, 1)
        torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        shares = (values >= 0).float(), values.abs(), values
        summary = [values.median(), values.std(), values.min(), values.max()]
        return [v.item() for v in (*summary, *(share.mean() for share in shares))][-1]

    return lambda: [[one(x, y) for _, y in pairs] for x, _ in pairs]


def numpy_correlation(pairs: Pairs) -> Callable[[], Any]:
    def one(x: np.ndarray, y: np.ndarray) -> list[float]:
        return [float(np.corrcoef(x[:, j], y[:, j])[0, 1]) for j in range(x.shape[1])]

    return lambda: [one(x, y) for x, y in arrays(pairs)]


def numpy_correlation_map(pairs: Pairs) -> Callable[[], Any]:
    """All layers standardized, and one product of the layers as long rows."""

    def standardized(layers: list[np.ndarray]) -> np.ndarray:
        rows = [(v - v.mean(0)) / v.std(0) for v in layers]
        return np.stack([v.ravel() for v in rows])

    def run() -> Any:
        xs, ys = zip(*arrays(pairs), strict=True)
        left, right = standardized(list(xs)), standardized(list(ys))
        return left @ right.T / left.shape[1]

    return run


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
