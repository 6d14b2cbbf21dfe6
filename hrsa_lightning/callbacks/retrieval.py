"""`RetrievalMonitor`: ranks held-out passages for held-out queries while a model trains."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hrsa_lightning.callbacks.base import Monitor, OnError
from hrsa_lightning.callbacks.figures import finish_curves
from hrsa_lightning.callbacks.inputs import find_arms
from hrsa_lightning.callbacks.schedule import Schedule
from hrsa_lightning.errors import ConfigError, DataError, check_counts
from hrsa_lightning.functional.ranking import chance_scores, ranking_scores
from hrsa_lightning.io.json_lines import Problems, read_json_lines
from hrsa_lightning.io.pairs import ContrastivePair, Query, RetrievalSet, parse_pair
from hrsa_lightning.similarity.extraction import is_sharded
from hrsa_lightning.similarity.history import read_history
from hrsa_lightning.similarity.measurement import Measurement

Encode = Callable[[nn.Module, list[Query]], Tensor]
Context = Callable[[], AbstractContextManager[Any]]


class RetrievalMonitor(Monitor):
    """Logs MRR, nDCG and recall of held-out queries against all held-out passages.

    Values are `retrieval/<arm>/mrr@10`, `retrieval/<arm>/ndcg@10`, `retrieval/<arm>/recall@1`, ….
    Passages are ranked by cosine similarity; of passages that score the same, the wrong ones count
    as found first.

    Args:
        pairs: Path of a JSONL file, or a list, of `query` (a text or [instruction, text]), and
            `pos` and `neg` (lists of texts). The corpus is every `pos` and `neg` once.
        arms: Attribute of the LightningModule that holds an `nn.ModuleDict` of models; `None` takes
            the LightningModule itself.
        ks: Depths of recall; MRR and nDCG are taken at the largest.
        encode: `encode(module, texts) -> (texts, features)`; the default is the model's own
            `embed(texts, max_length=…, batch_size=…)`, or its two halves where it has them,
            `tokenize(texts, max_length)` and `encode_texts(tokens, max_tokens)`, of which the first
            is called once in a fit.
        max_length: Most tokens of a text, for the default encoding.
        batch_size: Texts per batch, for the default encoding.
        limit: Use at most so many queries; the corpus is that of these.
        every_n_train_steps: See `SimilarityMonitor`, as for the next three.
        every_n_epochs: How often, in epochs.
        log_spaced: Evaluate at steps that are further and further apart.
        max_overhead: Largest share of the training time.
        history: File of the values; `None` writes none.
        on_error: See `SimilarityMonitor`.
        name: First part of the tags.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: When the pairs are missing or malformed.
    """

    def __init__(
        self,
        pairs: str | Path | Sequence[Mapping[str, Any]],
        arms: str | None = None,
        *,
        ks: Sequence[int] = (1, 10),
        encode: Encode | None = None,
        max_length: int = 128,
        batch_size: int = 64,
        limit: int | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        log_spaced: bool | int | None = False,
        max_overhead: float | None = None,
        history: str | Path | None = "retrieval.jsonl",
        on_error: OnError = "warn",
        name: str = "retrieval",
    ) -> None:
        check_counts(max_length=max_length, batch_size=batch_size, limit=limit)
        if not ks or any(k < 1 for k in ks):
            raise ConfigError(f"ks: expected positive numbers, got {list(ks)}")
        if history == "retrieval.jsonl" and name != "retrieval":
            history = f"{name}.jsonl"
        records = read_retrieval_pairs(pairs) if isinstance(pairs, (str, Path)) else _parse(pairs)
        if not records:
            raise DataError("pairs: expected at least one query, got none")
        self._task = RetrievalSet.from_pairs(records[:limit])
        self._arms = arms
        self._ks = sorted(ks)
        counts = [*map(len, self._task.relevance)]
        self._chance = chance_scores(counts, len(self._task.corpus), self._ks)
        self._encode = encode
        self._max_length = max_length
        self._batch_size = batch_size
        schedule = Schedule(every_n_train_steps, every_n_epochs, log_spaced, max_overhead)
        super().__init__(name, schedule, history, on_error)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._modules = find_arms(pl_module, self._arms)
        self._tokens: dict[tuple[str, str], Any] = {}
        for arm, module in self._modules.items():
            if self._encode is None and not callable(getattr(module, "embed", None)):
                raise ConfigError(
                    f"encode: {f'arm {arm!r}' if arm else 'the module'} has no method embed(texts, "
                    "max_length, batch_size); give encode="
                )

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        measurements: list[Measurement] = []
        context = trainer.precision_plugin.forward_context
        for arm, module in self._modules.items():
            self.say(arm or "queries and corpus")
            queries = self._encode_texts(arm, module, "queries", self._task.queries, context)
            corpus = self._encode_texts(arm, module, "corpus", self._task.corpus, context)
            with self.ranks.raise_on_all_ranks():
                scores = ranking_scores(queries, corpus, self._task.relevance, self._ks)
            if any(math.isnan(score) for score in scores.values()):
                self.warn_once(
                    f"embeddings of {arm or 'the module'} are not finite, values are NaN"
                )
            measurements += [
                Measurement(metric, score, self._chance.get(metric), arm=arm)
                for metric, score in scores.items()
            ]
        return measurements

    def finish(self, trainer: Trainer) -> None:
        if self.history_path is None or not self.history_path.is_file():
            return
        finish_curves(trainer, read_history(self.history_path), self.name, self.history_path.parent)

    def _encode_texts(
        self, arm: str, module: nn.Module, which: str, texts: Sequence[Query], context: Context
    ) -> Tensor:
        """Embeddings of all texts on the CPU, each rank having encoded its share."""
        # Weights that are spread over ranks need every rank in every forward pass.
        shards = 1 if is_sharded(module) else self.ranks.num_shards
        with self.ranks.raise_on_all_ranks():
            share = list(texts[self.ranks.shard % shards :: shards])
            own = {}
            if share:
                # As in a training step: weights may be 16 bits wide, or cast to them on the way.
                with context():
                    rows = self._encode_share(arm, module, which, share)
                own[self.ranks.shard % shards] = rows.detach().float().cpu()
        used = list(range(min(shards, len(texts))))
        rows = self.ranks.gather_rows(own, used)
        order = torch.cat([torch.arange(shard, len(texts), shards) for shard in used])
        return rows[order.argsort()]

    def _encode_share(self, arm: str, module: Any, which: str, texts: list[Query]) -> Tensor:
        if self._encode is not None:
            return self._encode(module, texts)
        embeddings: Tensor
        if not (hasattr(module, "tokenize") and hasattr(module, "encode_texts")):
            embeddings = module.embed(
                texts, max_length=self._max_length, batch_size=self._batch_size
            )
            return embeddings
        if (arm, which) not in self._tokens:
            self._tokens[arm, which] = module.tokenize(texts, self._max_length)
        embeddings = module.encode_texts(
            self._tokens[arm, which], self._max_length * self._batch_size
        )
        return embeddings


def read_retrieval_pairs(path: str | Path) -> list[ContrastivePair]:
    """Read held-out pairs from JSON lines.

    Raises:
        DataError: The file is missing, or lines hold no pair; all of them in one error.
    """
    problems = Problems()
    pairs = []
    for number, _, _, record in read_json_lines(path, problems.add):
        try:
            pairs.append(parse_pair(record))
        except DataError as error:
            problems.add(f"{path}:{number}", str(error))
    problems.raise_if_any()
    return pairs


def _parse(records: Iterable[Mapping[str, Any]]) -> list[ContrastivePair]:
    pairs = []
    for number, record in enumerate(records, start=1):
        try:
            pairs.append(parse_pair(record))
        except DataError as error:
            raise DataError(f"pairs: record {number}: {error}") from None
    return pairs
