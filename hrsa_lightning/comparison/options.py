"""What a comparison can be told: how models are looked at, and what is measured."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Look", "Measures"]

METRICS = ("cka", "knn_overlap", "procrustes", "dimension_correlation", "probe_transfer")
"""The five metrics, as `--metrics` names them; `cka` has the plain value beside it."""


@dataclass(frozen=True)
class Look:
    """How a model turns texts into rows.

    Attributes:
        level: `sentence` has one row per text, `token` one per token.
        layers: `all` (every decoder layer, and the output), `last` (the last decoder layer, and the
            output), or globs over `EmbeddingModel.named_modules()`.
        pooling: Of layers at sentence level, and of the embedding of models that were not trained
            with another one: `mean`, `first` or `last`.
        max_length: Most tokens of a text.
        batch_size: Texts of full length per forward pass; more where they are shorter, and fewer on
            a CPU, where large batches gain nothing.
        exclude_first_token: Leave each text's first token out of the layers.
        attention: `causal`, `bidirectional` or `auto`: as a run trained it, else as the config says
            (`is_causal`), else causal, as decoders are pretrained.
        dtype: Of the weights; `None` takes that of the run, else float32.
    """

    level: Literal["sentence", "token"] = "sentence"
    layers: tuple[str, ...] = ("all",)
    pooling: Literal["mean", "first", "last"] = "mean"
    max_length: int = 128
    batch_size: int = 32
    exclude_first_token: bool = False
    attention: Literal["auto", "causal", "bidirectional"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None


@dataclass(frozen=True)
class Measures:
    """What is measured between two models.

    Attributes:
        metrics: Some of `METRICS`.
        protocol: See `hrsa_lightning.functional.orthogonal_procrustes`.
        k: Numbers of neighbors.
        by_label: Also measure within each label.
    """

    metrics: tuple[str, ...] = METRICS
    protocol: Literal["held_out", "paper", "in_sample"] = "held_out"
    k: tuple[int, ...] = (10, 50)
    by_label: bool = False
