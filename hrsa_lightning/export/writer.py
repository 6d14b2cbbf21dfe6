"""Merge, write, load again, compare, and only then move the folder into its place."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from hrsa_lightning.config.schema import ModelConfig
from hrsa_lightning.errors import BackboneError, ConfigError
from hrsa_lightning.export.checking import (
    Expected,
    Samples,
    collect_samples,
    expected_embeddings,
    largest_difference,
)
from hrsa_lightning.export.folder import (
    Form,
    WrittenTokenizer,
    write_card,
    write_description,
    write_model,
    write_tokenizer,
)
from hrsa_lightning.export.merging import Method, interpolate, merge_adapter
from hrsa_lightning.models.backbone import load_backbone
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.runs.loading import check_source, load_model
from hrsa_lightning.runs.resolve import Arm, Source

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest difference of a component of an embedding that counts as the same embedding.

In float32 that is the noise of another order of summation. In bfloat16, which keeps 8 bits of every
weight, it only tells a rounded model from a wrong one.
"""

_SPARE_BYTES = 64 * 2**20
"""What the tokenizer, the card and the pictures may need besides the weights."""


@dataclass(frozen=True)
class Mixing:
    """Interpolation with another model's weights."""

    other: Source
    weight: float
    method: Method


def export(
    source: Source,
    arm: Arm,
    out: Path,
    form: Form | None,
    dtype: Literal["float32", "bfloat16"],
    mixing: Mixing | None,
) -> list[str]:
    """Write one arm of a run as a model folder.

    Args:
        source: What to export, as an arm of a run.
        arm: That arm.
        out: Folder that does not exist; it appears complete or not at all.
        form: `None` for standard modules where these are exact on texts that are not empty, and
            else a module of this package.
        dtype: Of the weights.
        mixing: Another model to interpolate with.

    Returns:
        Lines that say what was written and how it was checked.

    Raises:
        BackboneError: The adapter does not fit, or the folder gives other embeddings.
        ConfigError: The disk is full.
    """
    _quieten()
    model = _load(source)
    if mixing is not None:
        merge_adapter(model)
        _mix(model, mixing)
    _check_space(out, model, form, dtype)
    data = arm.config.data
    samples = collect_samples(arm.config)
    length = max(data.query_length, data.passage_length)
    expected = expected_embeddings(model, samples, length)
    with _appearing(out) as folder:
        made = _Writer(folder, model, arm, samples, expected, dtype).write(form)
        statements = _statements(made, samples)
        if mixing is not None:
            statements.append(
                f"Weights are a {mixing.method} interpolation with `{mixing.other.spec}`, which has"
                f" a share of {mixing.weight:g}."
            )
        write_card(folder, arm, made.form, statements)
    trusted = "" if made.form == "standard" else ", trust_remote_code=True"
    return [
        f"{arm.run.name} {arm.label} -> {out}",
        *(f"  {line}" for line in made.lines),
        f'load it:  SentenceTransformer("{out}"{trusted})',
    ]


@dataclass
class _Made:
    form: Form
    passages: float
    queries: torch.Tensor
    empty: torch.Tensor
    tolerance: float
    is_kept: bool

    @property
    def num_differing(self) -> int:
        return int((self.queries > self.tolerance).sum())

    @property
    def exact(self) -> bool:
        """Whether it is the model; standard modules leave nothing of an empty query to pool."""
        whole = self.form == "standard" or self.encodes_empty
        return whole and self.passages <= self.tolerance and self.num_differing == 0

    @property
    def encodes_empty(self) -> bool:
        return float(self.empty.max()) <= self.tolerance

    @property
    def encodes_empty_passages(self) -> bool:
        return float(self.empty[0]) <= self.tolerance

    @property
    def lines(self) -> list[str]:
        differing = f"; {self.num_differing} differ" if self.num_differing else ""
        lines = [
            f"checked after loading it: passages within {self.passages:.1e} of the trained model",
            f"{len(self.queries)} queries with an instruction within"
            f" {float(self.queries.max()):.1e}{differing}",
        ]
        if not self.encodes_empty:
            kind = "queries" if self.encodes_empty_passages else "texts"
            lines.append(f"empty {kind} differ; --exact keeps them")
        return lines


class _Writer:
    """Writes a form, loads it and measures; moves on to our own module where standard ones fail."""

    def __init__(
        self,
        folder: Path,
        model: EmbeddingModel,
        arm: Arm,
        samples: Samples,
        expected: Expected,
        dtype: Literal["float32", "bfloat16"],
    ) -> None:
        self._folder = folder
        self._model = model
        self._arm = arm
        self._samples = samples
        self._expected = expected
        self._dtype = dtype
        self._tokenizer = WrittenTokenizer()

    def write(self, form: Form | None) -> _Made:
        """The folder in the wished form, or in the first that is exact."""
        if form == "adapter":
            return self._checked(self._describe("adapter"))
        merge_adapter(self._model)
        dtype = torch.float32 if self._dtype == "float32" else torch.bfloat16
        self._tokenizer = write_model(self._folder, self._model, self._arm, dtype)
        if form != "module":
            made = self._describe("standard")
            if made.exact or (form == "standard" and made.passages <= made.tolerance):
                return made
            if form == "standard":
                return self._checked(made)
            for name in ("1_Pooling", "2_Normalize"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
        # Our module finds the first word by itself, and knows where a text ends.
        write_tokenizer(self._folder, self._model.tokenizer, standalone=False)
        return self._checked(self._describe("module"))

    def _describe(self, form: Form) -> _Made:
        template = self._model.tokenizer.template
        tokenizer = self._tokenizer if form == "standard" else WrittenTokenizer()
        prompts = {"document": tokenizer.passage_prompt}
        for number, text in enumerate(text for text, _ in self._common_instructions()):
            name = "query" if number == 0 else f"query_{number + 1}"
            prompts[name] = template.format(instruction=text)
        write_description(self._folder, form, self._model, self._arm, prompts)
        found = largest_difference(self._folder, self._samples, self._expected, template)
        return _Made(form, *found, TOLERANCE[self._dtype], tokenizer.is_kept)

    def _common_instructions(self) -> list[tuple[str, int]]:
        return self._samples.instructions.most_common(20)

    def _checked(self, made: _Made) -> _Made:
        if made.exact:
            return made
        largest = max(made.passages, float(made.queries.max()), float(made.empty.max()))
        raise BackboneError(
            "the exported folder gives other embeddings than the trained model (by up to"
            f" {largest:.1e}, more than {made.tolerance:.0e}); nothing is written"
        )


def _statements(made: _Made, samples: Samples) -> list[str]:
    largest = max(made.passages, float(made.queries.max()))
    statements = []
    if not made.encodes_empty_passages:
        statements.append(
            "An empty text is not encoded as in training, where it is one end-of-sequence token;"
            " where it has no token, sentence-transformers fails on a batch of nothing else."
        )
    elif not made.encodes_empty:
        statements.append(
            "An instruction without a query behind it is not encoded as in training, where it is"
            " the mean over the instruction: sentence-transformers leaves that out and gives zeros."
        )
    if not made.is_kept:
        statements.append(
            "Publish these files as they are (`hf upload`): `save` and `push_to_hub` of"
            " sentence-transformers leave out `processor_kwargs`, without which transformers reads"
            " queries by rules of its own instead of those in tokenizer.json."
        )
    if made.exact:
        return [
            "Loaded again after the export, it gave the trained model's embeddings to"
            f" {largest:.0e} on {len(samples.passages)} passages and {len(made.queries)} queries.",
            *statements,
        ]
    return [
        *statements,
        f"Passages are encoded as in training (to {made.passages:.0e}). Of {len(made.queries)}"
        f" queries with an instruction {made.num_differing} differed, by up to"
        f" {float(made.queries.max()):.2f} in a component: sentence-transformers counts the"
        " instruction's tokens without the text behind it, and weights of positions from the"
        " instruction on.",
    ]


def _load(source: Source) -> EmbeddingModel:
    """In float32, with an attention that any machine has."""
    model = source.model or ModelConfig()
    check_source(source, trust_remote_code=model.trust_remote_code)
    eager = model.attn_implementation == "eager"
    wanted = replace(model, dtype="float32", attn_implementation="eager" if eager else "sdpa")
    return load_model(source, wanted)


def _mix(model: EmbeddingModel, mixing: Mixing) -> None:
    other = mixing.other
    if other.model is None and other.adapter is None:
        target = load_backbone(other.backbone, revision=other.revision, attention="causal")
    else:
        trained = _load(other)
        merge_adapter(trained)
        target = trained.transformer
    interpolate(model.transformer, target, mixing.weight, mixing.method)


def _check_space(out: Path, model: EmbeddingModel, form: Form | None, dtype: str) -> None:
    size = 4 if dtype == "float32" or form == "adapter" else 2
    counted = [p for p in model.parameters() if form != "adapter" or p.requires_grad]
    needed = size * sum(p.numel() for p in counted) + _SPARE_BYTES
    existing = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(
            f"--out: {existing} has {free / 1e9:.2f} GB free; the export needs {needed / 1e9:.2f}"
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name in the end, or is removed on any failure."""
    made = [path for path in out.parents if not path.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out.parent} ({error.strerror})") from None
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for path in made:
            path.rmdir()
        if isinstance(error, OSError):
            raise ConfigError(f"--out: cannot write {out} ({error.strerror or error})") from None
        raise


def _quieten() -> None:
    """Leave the screen to the result."""
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
