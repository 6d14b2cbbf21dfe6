"""Does the order of neighbors say what their overlap does not? On the embedded tiny backbones.

    python -m benchmarks.neighbor_order        # under half a minute

For every layer of the RLVR, the prolonged RLVR and the SFT backbone beside the base model: k-NN
overlap, rank-biased overlap (Webber et al. 2010) and Kendall's tau of the neighbors in both lists.
"""

import json
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import hrsa_lightning
from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.functional.knn import nearest_neighbors

K, PERSISTENCE, TEXTS = 50, 0.9, 400
TINY = Path(hrsa_lightning.__file__).parent / "assets" / "tiny"


@torch.no_grad()
def layers(name: str, texts: list[str]) -> list[Tensor]:
    """Mean over tokens of each hidden state, one row for a text."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=32)
    model = AutoModelForCausalLM.from_pretrained(TINY / name).eval()
    weights = batch["attention_mask"][:, :, None].float()
    states = model(**batch, output_hidden_states=True).hidden_states
    return [(rows * weights).sum(1) / weights.sum(1) for rows in states]


def order_of(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Rank-biased overlap, and Kendall's tau of shared neighbors."""
    biased, tau = [], []
    weights = PERSISTENCE ** np.arange(K)
    lists = [nearest_neighbors(rows, (K,), "cosine", 2**27).indices.tolist() for rows in (x, y)]
    for left, right in zip(*lists, strict=True):
        shared = [len({*left[:k]} & {*right[:k]}) / k for k in range(1, K + 1)]
        biased.append(weights @ shared / weights.sum())
        both = [sample for sample in left if sample in right]
        if len(both) > 2:
            tau.append(scipy.stats.kendalltau(range(len(both)), [*map(right.index, both)])[0])
    return float(np.mean(biased)), float(np.mean(tau))


def main() -> None:
    torch.set_num_threads(1)
    lines = (TINY / "probes_wide.jsonl").read_text().splitlines()[:TEXTS]
    texts = [json.loads(line)["text"] for line in lines]
    base, table = layers("base", texts), []
    print("| backbone | layer | overlap 10 | overlap 50 | rank-biased | tau |")
    print("|---|---|---|---|---|---|")
    for name in ("rlvr", "prorl", "sft"):
        for number, (x, y) in enumerate(zip(layers(name, texts), base, strict=True)):
            overlaps = F.knn_overlap(x, y, (10, K))
            table.append([*(value.item() for value in overlaps.values()), *order_of(x, y)])
            print(f"| {name} | {number} | " + " | ".join(f"{v:.3f}" for v in table[-1]) + " |")
    pearson = np.corrcoef(np.array(table).T)[0]
    ranks = scipy.stats.spearmanr(table).statistic[0]
    print(f"with overlap 10: r {pearson.round(4)}, rank correlation {ranks.round(4)}")


if __name__ == "__main__":
    main()
