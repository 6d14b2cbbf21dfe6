"""Whether an exported folder gives the embeddings of the model it came from."""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrsa_lightning.config.schema import Config
from hrsa_lightning.data.pairs import sample_pairs
from hrsa_lightning.errors import DataError
from hrsa_lightning.io.pairs import ContrastivePair
from hrsa_lightning.models.embedder import EmbeddingModel

_ROWS_PER_FILE = 200
_TEXTS_PER_KIND = 12
_INSTRUCTION = "Given a question, retrieve passages that answer it"
# Texts whose first character joins the space before it in one tokenizer and not in another, and a
# text that is longer than any limit.
_TEXTS = (
    "2020 was a leap year",
    "(a + b) * c",
    "中文的句子",
    "Where does the river end?",
    "def add(first, second): return first + second",
    "zebra " * 600,
)


@dataclass
class Samples:
    """Texts to compare embeddings on, and the instructions that training used.

    Attributes:
        passages: Texts as passages are.
        queries: Texts as queries are.
        instructions: Instructions of the training data by their number of uses.
    """

    passages: list[str]
    queries: list[str]
    instructions: Counter[str] = field(default_factory=Counter)

    def prompts(self) -> list[str]:
        """The two most used instructions, or one that is usual."""
        return [text for text, _ in self.instructions.most_common(2)] or [_INSTRUCTION]


@dataclass
class Expected:
    """Embeddings by the trained model; `empty` is that of a text without a character, and of such
    queries behind each instruction."""

    passages: Tensor
    queries: dict[str, Tensor]
    empty: Tensor


def collect_samples(config: Config) -> Samples:
    """Texts of the run's training files where these are still there, and some hard ones."""
    samples = Samples([], [])
    for entry in config.data.train:
        with suppress(DataError):  # the file may have changed since the run, or be gone
            for pair in sample_pairs(entry, _ROWS_PER_FILE):
                _add(samples, pair)
    step = max(1, len(samples.passages) // _TEXTS_PER_KIND)
    samples.passages = [*samples.passages[::step][:_TEXTS_PER_KIND], *_TEXTS]
    samples.queries = [*samples.queries[::step][:_TEXTS_PER_KIND], *_TEXTS]
    return samples


def _add(samples: Samples, pair: ContrastivePair) -> None:
    instruction, query = ("", pair.query) if isinstance(pair.query, str) else pair.query
    if instruction:
        samples.instructions[instruction] += 1
    samples.queries.append(query)
    samples.passages.append(pair.positives[0])


def expected_embeddings(model: EmbeddingModel, samples: Samples, max_length: int) -> Expected:
    """What the trained model says, plain and behind each instruction."""
    return Expected(
        model.embed(samples.passages, max_length, batch_size=8),
        {
            text: model.embed([(text, query) for query in samples.queries], max_length, 8)
            for text in samples.prompts()
        },
        model.embed(["", *((text, "") for text in samples.prompts())], max_length, 8),
    )


def largest_difference(
    folder: Path, samples: Samples, expected: Expected, template: str
) -> tuple[float, Tensor, Tensor]:
    """Load the folder as any user would, and compare.

    Returns:
        The largest difference of any component over the passages; that of each query, over all
        instructions, shape (instructions x queries,); and that of an empty text, and of empty
        queries behind each instruction, shape (1 + instructions,). NaN and texts that cannot be
        encoded count as infinite.
    """
    loaded = _load(folder)
    passages = _encode(loaded, samples.passages, None)
    prompts = [template.format(instruction=text) for text in expected.queries]
    queries = [
        _rows(_encode(loaded, samples.queries, prompt), wanted)
        for prompt, wanted in zip(prompts, expected.queries.values(), strict=True)
    ]
    empty = [
        _empty(loaded, prompt, wanted)
        for prompt, wanted in zip((None, *prompts), expected.empty, strict=True)
    ]
    return float(_rows(passages, expected.passages).max()), torch.cat(queries), torch.cat(empty)


def _empty(model: Any, prompt: str | None, wanted: Tensor) -> Tensor:
    try:
        return _rows(_encode(model, ["", ""], prompt), wanted)[:1]
    except RuntimeError:  # where a text without tokens is a tensor without elements
        return torch.tensor([torch.inf])


def _rows(found: Tensor, wanted: Tensor) -> Tensor:
    difference = (found.float() - wanted).abs().amax(1)
    return difference.nan_to_num(nan=torch.inf)


def _encode(model: Any, texts: Sequence[str], prompt: str | None) -> Tensor:
    encoded: Tensor = model.encode(
        list(texts), prompt=prompt, batch_size=8, convert_to_tensor=True, show_progress_bar=False
    )
    return encoded.cpu()


def _load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    modules = (folder / "modules.json").read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves
        return SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            # The one class outside of sentence-transformers that we write there is our own.
            trust_remote_code="hrsa_lightning." in modules,
        )
