"""A module for sentence-transformers that is an `EmbeddingModel`: the same tokens, masks, pooling.

sentence-transformers' own modules count an instruction's tokens without the text behind it, and
weights of positions from the instruction on. Where that gives other embeddings, or the model is an
adapter on a backbone, an export's modules.json names this class, and sentence-transformers imports
it when it is asked to with `trust_remote_code=True`; the code is that of the installed package.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import EmbeddingTokenizer
from hrsa_lightning.runs.loading import load_model
from hrsa_lightning.runs.resolve import find_sources


class TrainedEmbedding(InputModule):
    """Encodes texts as they were encoded in training.

    Args:
        model: The embedding model.
        query_length: Most tokens of a query, the prompt included.
        passage_length: Most tokens of a passage; the larger of both where the task is not said.
        source: Folder that the model came from, which `save` copies.
    """

    def __init__(
        self, model: EmbeddingModel, query_length: int, passage_length: int, source: Path
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.query_length = query_length
        self.passage_length = passage_length
        self.max_seq_length = max(query_length, passage_length)
        self._source = source
        own = model.tokenizer
        # sentence-transformers hands prompts over as whole texts.
        self._encoder = EmbeddingTokenizer(
            own.tokenizer,
            "{instruction}",
            own.instruction_mask,
            own.characters_per_token,
            own.add_eos,
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # type: ignore[override]
        return self.model.tokenizer.tokenizer

    def get_embedding_dimension(self) -> int:
        return self.model.embedding_dim

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Texts to `input_ids`, `attention_mask` and `pool_mask`, each (texts, tokens)."""
        lengths = {"query": self.query_length, "document": self.passage_length}
        texts = [(prompt, text) for text in inputs] if prompt else list(inputs)
        length = min(self.max_seq_length, lengths.get(str(task), self.max_seq_length))
        tokens = self._encoder.encode(texts, length)
        return tokens.pad(self._encoder.pad_token_id)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "pool_mask")
        features["sentence_embedding"] = self.model(**{name: features[name] for name in names})
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copies the module's files; its weights are those it was loaded with."""
        for path in self._source.iterdir():
            if path.is_file() and path.name not in ("README.md", "modules.json"):
                shutil.copy2(path, output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        **_: Any,
    ) -> "TrainedEmbedding":
        """Loads what `hrsa_lightning.export` wrote, from a folder or from the hub."""
        found = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        (source,) = find_sources(str(found))
        assert source.model is not None
        assert source.lengths is not None
        trusting = replace(source.model, trust_remote_code=trust_remote_code)
        return cls(load_model(source, trusting), *source.lengths, Path(str(found)))
