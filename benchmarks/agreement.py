"""Values of every metric beside those of other libraries, on ordinary and on hostile data.

    python -m benchmarks.agreement            # a Markdown table, in under a minute
    python -m benchmarks.agreement ranx       # peers whose name has this in it

A cell is the absolute difference of the two values; where they differ by more than 1e-4, ours and
theirs. Data: 200 samples of 24 features. Peers that are not installed are left out (`pip install
pytorch-cka ckatorch seaborn pytorch-metric-learning pytrec-eval-terrier ranx`; ranx compiles for
minutes); where no library has a metric, or PyPI not the library, its formula is written out in
float64.
"""

import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional._inputs import split_halves
from hrsa_lightning.functional.ranking import ranking_scores
from hrsa_lightning.losses import InfoNCELoss

N, D, K = 200, 24, 10
SAME = 1e-4


def data() -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of representations by kind."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator) * torch.linspace(0.5, 2, D)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    y = x @ turn + 0.7 * torch.randn(N, D, generator=generator)
    massive_x, massive_y = x.clone(), y.clone()
    massive_x[:, 3] *= 1000
    massive_y[:, 7] *= 300
    twice = torch.arange(N) % 120
    return {
        "ordinary": (x, y),
        "offset": (x + 1000, y - 1000),
        "massive": (massive_x, massive_y),
        "tiny": (1e-12 * x, 1e-12 * y),
        "duplicates": (x[twice], y[twice]),
        "binary": ((x > 0).float(), (y > 0).float()),
        "low rank": (x[:, :4] @ x[:4], y[:, :4] @ y[:4]),
        "collapsed": (x[:1].expand(N, D) + 0, y),
    }


def array(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def labels_of(y: Tensor) -> Tensor:
    return (y @ torch.linspace(-1, 1, D) > (y @ torch.linspace(-1, 1, D)).median()).long()


def plain_cka(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019, eq. 5."""
    a, b = (array(v) - array(v).mean(0) for v in (x, y))
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(b.T @ a) ** 2 / norms)


def ckatorch_plain(x: Tensor, y: Tensor) -> float:
    from ckatorch.core import cka_base

    return float(cka_base(x, y))


def ckatorch_debiased(x: Tensor, y: Tensor) -> float:
    from ckatorch.core import cka_batch

    return float(cka_batch(x[None], y[None]))


def pytorch_cka(x: Tensor, y: Tensor) -> float:
    from cka import cka_from_features

    return float(cka_from_features(x, y))


def anatome_debiased(x: Tensor, y: Tensor) -> float:
    """anatome 0.0.5, `linear_cka_distance(reduce_bias=True)`: inner products without their bias."""
    a, b = (array(v) - array(v).mean(0) for v in (x, y))

    def debiased(a: np.ndarray, b: np.ndarray) -> float:
        k, ell = (a**2).sum(1), (b**2).sum(1)
        return float(
            np.linalg.norm(b.T @ a) ** 2
            - N / (N - 2) * (k @ ell)
            + k.sum() * ell.sum() / ((N - 1) * (N - 2))
        )

    return debiased(a, b) / math.sqrt(debiased(a, a) * debiased(b, b))


def overlap(near: Callable[[np.ndarray], np.ndarray], x: Tensor, y: Tensor) -> float:
    lists = [near(array(rows)) for rows in (x, y)]
    pairs = ((set(a), set(b)) for a, b in zip(*lists, strict=True))
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def sklearn_neighbors(rows: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    finder = NearestNeighbors(n_neighbors=K + 1, metric="cosine").fit(rows)
    return finder.kneighbors(rows, return_distance=False)[:, 1:]


def faiss_neighbors(rows: np.ndarray) -> np.ndarray:
    import faiss

    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(unit)
    return index.search(unit, K + 1)[1][:, 1:]


def cknna(x: Tensor, y: Tensor) -> float:
    """Huh et al. 2024: unbiased HSIC of cosines of mutual neighbors."""
    kernels, near = [], []
    for rows in (array(x), array(y)):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        kernel = unit @ unit.T
        np.fill_diagonal(kernel, -np.inf)
        near.append(np.zeros_like(kernel, dtype=bool))
        np.put_along_axis(near[-1], np.argsort(-kernel, 1, kind="stable")[:, :K], True, 1)
        np.fill_diagonal(kernel, 0)
        kernels.append(kernel)

    def hsic(a: int, b: int) -> float:
        k, ell = (kernels[i] * near[a] * near[b] for i in (a, b))
        total = np.sum(k * ell.T) + k.sum() * ell.sum() / ((N - 1) * (N - 2))
        return float(total - 2 / (N - 2) * (k.sum(0) @ ell.sum(1)))

    return hsic(0, 1) / math.sqrt(hsic(0, 0) * hsic(1, 1))


def scipy_cosine(x: Tensor, y: Tensor) -> float:
    from scipy.spatial import procrustes

    return math.sqrt(max(0.0, 1 - procrustes(array(x), array(y))[2]))


def unit_centered(x: Tensor, y: Tensor) -> list[np.ndarray]:
    rows = [array(v) - array(v).mean(0) for v in (x, y)]
    return [v / np.linalg.norm(v) for v in rows]


def netrep_cosine(x: Tensor, y: Tensor) -> float:
    """netrep, `LinearMetric(alpha=1, score_method="angular")`: arc cosine of the aligned rows."""
    a, b = unit_centered(x, y)
    u, _, v = np.linalg.svd(a.T @ b)
    angle = math.acos(np.clip(np.sum(a @ u @ v * b), -1, 1))
    return math.cos(angle)


def anatome_cosine(x: Tensor, y: Tensor) -> float:
    """anatome 0.0.5, `orthogonal_procrustes_distance` of unit norms: 2 - 2 nuclear norm."""
    a, b = unit_centered(x, y)
    distance = np.sum(a**2) + np.sum(b**2) - 2 * np.linalg.norm(a.T @ b, "nuc")
    return float(1 - distance / 2)


def torchmetrics_cosine(x: Tensor, y: Tensor) -> float:
    from torchmetrics.functional.shape import procrustes_disparity

    return math.sqrt(max(0.0, 1 - float(procrustes_disparity(x[None], y[None])[0])))


def scipy_residual(x: Tensor, y: Tensor) -> float:
    from scipy.linalg import orthogonal_procrustes

    a, b = (array(v) - array(v).mean(0) for v in (x, y))
    return float(np.sum((a @ orthogonal_procrustes(a, b)[0] - b) ** 2) / np.sum(b**2))


def scipy_entropy(x: Tensor, y: Tensor) -> float:
    from scipy.linalg import orthogonal_procrustes
    from scipy.stats import entropy

    a, b = (array(v) - array(v).mean(0) for v in (x, y))
    shares = orthogonal_procrustes(a, b)[0] ** 2
    return float(1 - entropy(shares, axis=1).mean() / math.log(D))


def scipy_pearson(x: Tensor, y: Tensor) -> float:
    from scipy.stats import pearsonr

    return float(
        np.mean([pearsonr(a, b).statistic for a, b in zip(array(x).T, array(y).T, strict=True)])
    )


def torchmetrics_pearson(x: Tensor, y: Tensor) -> float:
    from torchmetrics.functional import pearson_corrcoef

    return float(pearson_corrcoef(x, y).mean())


def sklearn_ridge(x: Tensor, y: Tensor, weight: float, targets: np.ndarray) -> Any:
    """A ridge map from the fitted half of ``x``, with the penalty that ours has."""
    from sklearn.linear_model import Ridge

    fitted = ~split_halves(y, None).numpy()
    rows = array(x)[fitted]
    penalty = weight / D * np.sum((rows - rows.mean(0)) ** 2)
    return Ridge(alpha=penalty, solver="svd").fit(rows, targets[fitted])


def sklearn_predictivity(x: Tensor, y: Tensor) -> float:
    from sklearn.metrics import r2_score

    judged = split_halves(y, None).numpy()
    outputs = sklearn_ridge(x, y, 1e-5, array(y)).predict(array(x)[judged])
    return float(r2_score(array(y)[judged], outputs, multioutput="variance_weighted"))


def sklearn_probe(x: Tensor, y: Tensor) -> float:
    judged, labels = split_halves(y, None).numpy(), labels_of(y).numpy()
    probe = sklearn_ridge(y, y, 1e-3, np.eye(2)[labels])
    return float(np.mean(probe.predict(array(x)[judged]).argmax(1) == labels[judged]))


def ours_ranking(x: Tensor, y: Tensor) -> float:
    return ranking_scores(x[:50], y, [[i] for i in range(50)], [10])["ndcg@10"]


def scores_by_name(x: Tensor, y: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    a, b = (array(v) / np.linalg.norm(array(v), axis=1, keepdims=True) for v in (x[:50], y))
    run = {
        f"q{i}": {f"d{j}": float(s) for j, s in enumerate(line)} for i, line in enumerate(a @ b.T)
    }
    return {f"q{i}": {f"d{i}": 1} for i in range(50)}, run


def pytrec_ndcg(x: Tensor, y: Tensor) -> float:
    import pytrec_eval

    relevant, run = scores_by_name(x, y)
    found = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"}).evaluate(run)
    return float(np.mean([each["ndcg_cut_10"] for each in found.values()]))


def ranx_ndcg(x: Tensor, y: Tensor) -> float:
    from ranx import Qrels, Run, evaluate

    relevant, run = scores_by_name(x, y)
    return float(evaluate(Qrels(relevant), Run(run), "ndcg@10"))


def sentence_transformers_loss(x: Tensor, y: Tensor) -> float:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / 0.5)
    return float(loss.compute_loss_from_embeddings([x, y], torch.empty(0)))


def metric_learning_loss(x: Tensor, y: Tensor) -> float:
    from pytorch_metric_learning.losses import NTXentLoss

    pairs = torch.arange(len(x)).repeat(2)
    return float(NTXentLoss(0.5)(torch.cat((x, y)), pairs))


def loss(**options: bool) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: InfoNCELoss(0.5, mask_duplicates=False, **options)(x, y[:, None])


class Peer(NamedTuple):
    """One value, ours and another's."""

    metric: str
    name: str
    ours: Callable[[Tensor, Tensor], Any]
    theirs: Callable[[Tensor, Tensor], float]
    needs: str = "torch"


def in_sample(field: str) -> Callable[[Tensor, Tensor], Any]:
    return lambda x, y: getattr(F.orthogonal_procrustes(x, y, "in_sample"), field)


def plain(x: Tensor, y: Tensor) -> Tensor:
    return F.linear_cka(x, y, debiased=False)


def knn(x: Tensor, y: Tensor) -> Tensor:
    return F.knn_overlap(x, y, K)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    return F.dimension_correlation(x, y).mean


def probe_transfer(x: Tensor, y: Tensor) -> Tensor:
    return F.linear_probe_transfer(x, y, labels_of(y)).transfer


PEERS = [
    Peer("CKA, plain", "NumPy, written out", plain, plain_cka),
    Peer("CKA, plain", "ckatorch", plain, ckatorch_plain, "ckatorch"),
    Peer("CKA, debiased", "ckatorch", F.linear_cka, ckatorch_debiased, "ckatorch"),
    Peer("CKA, debiased", "pytorch-cka", F.linear_cka, pytorch_cka, "cka"),
    Peer("CKA, debiased", "anatome, written out", F.linear_cka, anatome_debiased),
    Peer("k-NN overlap", "scikit-learn", knn, partial(overlap, sklearn_neighbors), "sklearn"),
    Peer("k-NN overlap", "faiss", knn, partial(overlap, faiss_neighbors), "faiss"),
    Peer("CKNNA", "NumPy, written out", lambda x, y: F.cknna(x, y, K), cknna),
    Peer("Procrustes cosine", "scipy.spatial", in_sample("global_cosine"), scipy_cosine, "scipy"),
    Peer("Procrustes cosine", "torchmetrics", in_sample("global_cosine"), torchmetrics_cosine,
         "torchmetrics"),
    Peer("Procrustes cosine", "netrep, written out", in_sample("global_cosine"), netrep_cosine),
    Peer("Procrustes cosine", "anatome, written out", in_sample("global_cosine"), anatome_cosine),
    Peer("Procrustes residual", "scipy.linalg", in_sample("residual_variance_ratio"),
         scipy_residual, "scipy"),
    Peer("inverse row entropy", "scipy", in_sample("inverse_row_entropy"), scipy_entropy, "scipy"),
    Peer("dimension correlation", "scipy.stats", correlation, scipy_pearson, "scipy"),
    Peer("dimension correlation", "torchmetrics", correlation, torchmetrics_pearson,
         "torchmetrics"),
    Peer("linear predictivity", "scikit-learn", lambda x, y: F.linear_predictivity(x, y).forward,
         sklearn_predictivity, "sklearn"),
    Peer("probe transfer", "scikit-learn", probe_transfer, sklearn_probe, "sklearn"),
    Peer("nDCG@10", "pytrec_eval", ours_ranking, pytrec_ndcg, "pytrec_eval"),
    Peer("nDCG@10", "ranx", ours_ranking, ranx_ndcg, "ranx"),
    Peer("InfoNCE", "sentence-transformers", loss(), sentence_transformers_loss,
         "sentence_transformers"),
    Peer("NT-Xent", "pytorch-metric-learning", loss(symmetric=True, same_side_negatives=True),
         metric_learning_loss, "pytorch_metric_learning"),
]  # fmt: skip


def cell(peer: Peer, x: Tensor, y: Tensor) -> str:
    """The difference of both values, or both."""
    ours = float(peer.ours(x, y))
    try:
        theirs = float(peer.theirs(x, y))
    except Exception as error:  # a peer that refuses the data says so in its own way
        return f"{ours:.4f} / {type(error).__name__}"
    if math.isnan(ours) and math.isnan(theirs):
        return "both undefined"
    difference = abs(ours - theirs)
    return f"{difference:.0e}" if difference <= SAME else f"**{ours:.4f} / {theirs:.4f}**"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # undefined values are in the table
    kinds = data()
    print("| Metric | Peer | " + " | ".join(kinds) + " |")
    print("|---" * (2 + len(kinds)) + "|")
    for peer in PEERS:
        if find_spec(peer.needs) is not None and all(word in peer.name for word in sys.argv[1:]):
            cells = [cell(peer, x.clone(), y.clone()) for x, y in kinds.values()]
            print(f"| {peer.metric} | {peer.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
