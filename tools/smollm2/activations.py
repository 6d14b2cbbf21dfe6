"""What one backbone's hidden states are like, layer by layer, before any comparison of two.

Shares of the largest dimensions, and how far attention, the first token and length alone move the
similarities of a model with itself.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from tiny.evaluate import load_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hrsa_lightning.functional import knn_overlap, linear_cka
from hrsa_lightning.io.resources import resolve_path

logger = logging.getLogger(__name__)

PROBES = "embedded:tiny/probes.jsonl"
_BATCH_SIZE = 64
_NUM_LARGEST = 3
_SHORT = 8
_K = 10


def describe(work: Path, name: str) -> None:
    """Write `activations.NAME.json`: a line for each layer, the embedding layer first."""
    path = work / f"activations.{name}.json"
    if not path.exists():
        lines = Path(resolve_path(PROBES)).read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        causal = hidden_states(work / name, texts, is_causal=True)
        both = hidden_states(work / name, texts, is_causal=False)
        short = hidden_states(work / name, texts, is_causal=True, max_length=_SHORT)
        rows = [
            {
                "layer": layer,
                **_shares(causal["tokens"][layer], "token"),
                **_shares(causal["mean"][layer], "mean"),
                "first_token_norm_over_median": causal["norms"][layer],
                **_likeness(causal["mean"][layer], both["mean"][layer], "bidirectional"),
                **_likeness(causal["mean"][layer], causal["rest"][layer], "without_first_token"),
                **_likeness(causal["mean"][layer], short["mean"][layer], f"first_{_SHORT}_tokens"),
            }
            for layer in range(len(causal["mean"]))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in map(json.loads, path.read_text().splitlines()):
        print({key: round(value, 3) for key, value in row.items()})


@torch.no_grad()
def hidden_states(
    folder: Path, texts: list[str], *, is_causal: bool, max_length: int = 128
) -> dict[str, list[Any]]:
    """Run texts through a backbone.

    Returns:
        By layer: `tokens` (tokens, features), `mean` over the tokens of each text and `rest`, the
        mean without the first token, (texts, features) each; and `norms`, the mean norm of first
        tokens over the median norm of all others.
    """
    config = AutoConfig.from_pretrained(folder)
    config.is_causal = is_causal
    model = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    states: dict[str, list[list[Tensor]]] = {"tokens": [], "mean": [], "rest": [], "first": []}
    for start in range(0, len(texts), _BATCH_SIZE):
        batch = tokenizer(
            texts[start : start + _BATCH_SIZE],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        mask = batch["attention_mask"][..., None].float()
        rest = mask.clone()
        rest[:, 0] = 0
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        layers = output.hidden_states
        states["tokens"].append([layer[mask[..., 0] > 0] for layer in layers])
        states["mean"].append([(layer * mask).sum(1) / mask.sum(1) for layer in layers])
        states["rest"].append(
            [(layer * rest).sum(1) / rest.sum(1).clamp(min=1) for layer in layers]
        )
        states["first"].append([layer[:, 0] for layer in layers])
        logger.info("%s: %d of %d texts", folder.name, start + len(mask), len(texts))
    by_layer = {
        key: [torch.cat(parts) for parts in zip(*batches, strict=True)]
        for key, batches in states.items()
    }
    norms = [
        float(first.norm(dim=1).mean() / tokens.norm(dim=1).median())
        for first, tokens in zip(by_layer.pop("first"), by_layer["tokens"], strict=True)
    ]
    return {**by_layer, "norms": norms}


def _shares(rows: Tensor, name: str) -> dict[str, float]:
    """Shares of the largest dimensions in squared values and in variance; the effective rank."""
    squares, variances = rows.double().square().mean(0), rows.double().var(0)
    values = torch.linalg.eigvalsh(rows.double().T.cov())
    return {
        f"{name}_square_share_1": float(squares.max() / squares.sum()),
        f"{name}_square_share_{_NUM_LARGEST}": _largest(squares),
        f"{name}_variance_share_1": float(variances.max() / variances.sum()),
        f"{name}_variance_share_{_NUM_LARGEST}": _largest(variances),
        f"{name}_participation_ratio": float(values.sum() ** 2 / values.square().sum()),
    }


def _largest(values: Tensor) -> float:
    return float(values.topk(_NUM_LARGEST).values.sum() / values.sum())


def _likeness(x: Tensor, y: Tensor, name: str) -> dict[str, float]:
    """Similarity of the same texts' rows, taken in two ways."""
    return {
        f"{name}_cka": float(linear_cka(x, y)),
        f"{name}_cka_standardized": float(linear_cka(x, y, standardize=True)),
        f"{name}_knn_overlap_{_K}": float(knn_overlap(x, y, k=_K)),
    }
