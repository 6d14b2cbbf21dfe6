"""The files that sentence-transformers reads, and a model card beside them."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers.normalizers import NFC
from torch import nn
from transformers import AutoTokenizer

from hrsa_lightning.config import to_yaml
from hrsa_lightning.io.files import write_json
from hrsa_lightning.io.pairs import DEFAULT_TEMPLATE
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.models.tokenization import EmbeddingTokenizer
from hrsa_lightning.report import summary_lines
from hrsa_lightning.runs.directory import histories_of
from hrsa_lightning.runs.resolve import EXPORT_SETTINGS, EXPORTED_ADAPTER, Arm

Form = Literal["standard", "module", "adapter"]
"""Modules of sentence-transformers only; our module on whole weights; our module on an adapter."""

_BASE = "sentence_transformers.base.modules"
_OWN = "hrsa_lightning.export.modules.TrainedEmbedding"
_POOLING_MODES = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "first": "cls",
}
_VERBATIM_FAMILY = "granite"
"""A model family for which AutoTokenizer takes tokenizer.json as it is written. For others, such
as qwen2, it puts rules of its own in the place of those in the file; it is told by
`processor_kwargs`, which sentence-transformers leaves out where it saves a model."""


_MARK = "\u2060"
"""Goes before passages where a tokenizer has no token for an empty text, on which
sentence-transformers fails. The rules of `_empty_text_rules` take it away again."""


class WrittenTokenizer(NamedTuple):
    """How sentence-transformers has to use a tokenizer that was written.

    Attributes:
        passage_prompt: What it has to put before a passage, so that every text has a token.
        is_kept: The rules of tokenizer.json are still there after its `save`.
    """

    passage_prompt: str = ""
    is_kept: bool = True


def write_model(
    folder: Path, model: EmbeddingModel, arm: Arm, dtype: torch.dtype
) -> WrittenTokenizer:
    """Write the merged backbone and its tokenizer; config.json says which attention it has."""
    transformer: Any = model.transformer
    nn.Module.to(transformer, dtype)
    transformer.config.dtype = dtype
    transformer.save_pretrained(folder)
    nn.Module.to(transformer, torch.float32)
    left_out = not _includes_prompt(model)
    by_offsets = left_out and arm.config.model.instruction_mask == "offsets"
    write_tokenizer(folder, model.tokenizer, standalone=True, by_offsets=by_offsets)
    is_kept = _is_read_as_written(folder)
    if not _needs_mark(model.tokenizer):
        return WrittenTokenizer("", is_kept)
    write_tokenizer(folder, model.tokenizer, standalone=True, by_offsets=by_offsets, marked=True)
    if _is_read_as_written(folder):
        return WrittenTokenizer(_MARK)
    # The mark would be a token of every passage once sentence-transformers has saved the model.
    write_tokenizer(folder, model.tokenizer, standalone=True, by_offsets=by_offsets)
    return WrittenTokenizer("", is_kept)


def write_tokenizer(
    folder: Path,
    tokenizer: EmbeddingTokenizer,
    *,
    standalone: bool,
    by_offsets: bool = False,
    marked: bool = False,
) -> None:
    """Write the tokenizer.

    Args:
        folder: Where to.
        tokenizer: That of training.
        standalone: Make what training did around the tokenizer part of tokenizer.json; without it,
            the file says what the backbone's did.
        by_offsets: The instruction of a query is left out of the pooling, and training found the
            first word behind it by character offsets.
        marked: A mark goes before passages, which alone is an empty text.
    """
    backend = tokenizer.tokenizer
    backend.padding_side = "right"
    backend.chat_template = None  # whose names in the backbone's files would become names of files
    backend.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = content["padding"] = None
    rules = [_lone_space_rule()] if standalone and by_offsets else []
    if marked:
        end = str(backend.eos_token or backend.pad_token)
        rules += _empty_text_rules(end)
        for token in content["added_tokens"]:
            if token["content"] == end:
                token["normalized"] = True  # it is looked for behind these rules too
    content["normalizer"] = _sequence("normalizers", [*rules, content["normalizer"]])
    if standalone and tokenizer.add_eos:
        processors = [content["post_processor"], _eos_rule(backend)]
        content["post_processor"] = _sequence("processors", processors)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _needs_mark(tokenizer: EmbeddingTokenizer) -> bool:
    """Whether an empty text has no token, and the mark can stand for it.

    A normalizer that changes characters might make an end-of-sequence token of others, once that is
    looked for behind it.
    """
    backend: Any = tokenizer.tokenizer
    has_token = tokenizer.add_eos or backend("")["input_ids"]
    return not has_token and isinstance(backend.backend_tokenizer.normalizer, NFC | None)


def _is_read_as_written(folder: Path) -> bool:
    """Whether transformers keeps to tokenizer.json without being told, see `_VERBATIM_FAMILY`."""
    backend: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    found = json.loads(backend.to_str())
    written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return all(found[rule] == written[rule] for rule in ("normalizer", "post_processor"))


def write_description(
    folder: Path, form: Form, model: EmbeddingModel, arm: Arm, prompts: Mapping[str, str]
) -> None:
    """Write what makes the folder a model of sentence-transformers: modules, prompts, pooling."""
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)
    if form == "standard":
        _write_standard_modules(folder, model, arm)
    else:
        _write_own_module(folder, form, model, arm)
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": dict(prompts),
        "default_prompt_name": "document" if prompts.get("document") else None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", settings)


def _write_standard_modules(folder: Path, model: EmbeddingModel, arm: Arm) -> None:
    pooling = {
        "embedding_dimension": model.embedding_dim,
        "pooling_mode": _POOLING_MODES[model.pooling],
        "include_prompt": _includes_prompt(model),
    }
    modules = [("", f"{_BASE}.transformer.Transformer")]
    modules.append(
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling")
    )
    if model.normalize:
        modules.append(("2_Normalize", f"{_BASE}.normalize.Normalize"))
    for path, _ in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
        write_json(folder / path / "config.json", pooling if path == "1_Pooling" else {})
    data = arm.config.data
    transformer = {
        "transformer_task": "feature-extraction",
        "max_seq_length": max(data.query_length, data.passage_length),
        "query_length": data.query_length,
        "document_length": data.passage_length,
        "processor_kwargs": {"tokenizer_type": _VERBATIM_FAMILY},
    }
    write_json(folder / "sentence_bert_config.json", transformer)
    _write_modules(folder, modules)


def _includes_prompt(model: EmbeddingModel) -> bool:
    return model.pooling in ("last", "first")


def _write_own_module(folder: Path, form: Form, model: EmbeddingModel, arm: Arm) -> None:
    settings: dict[str, Any] = {
        "backbone": None,
        "dtype": "auto",
        "attention": arm.config.model.attention,
        "pooling": model.pooling,
        "normalize": model.normalize,
        "instruction_mask": arm.config.model.instruction_mask,
        "query_length": arm.config.data.query_length,
        "passage_length": arm.config.data.passage_length,
    }
    if form == "adapter":
        assert isinstance(model.backbone, PeftModel)
        peft: Any = model.backbone.peft_config["default"]
        names = ("r", "lora_alpha", "use_rslora")
        targets = peft.target_modules
        settings["backbone"] = _kept_path(arm.backbone, resolve_backbone(arm.backbone))
        settings["revision"] = arm.config.arms[arm.name].revision
        settings["dtype"] = "float32"
        settings["lora"] = {name: getattr(peft, name) for name in names} | {
            "lora_dropout": 0.0,
            "target_modules": targets if isinstance(targets, str) else sorted(targets),
        }
        weights = get_peft_model_state_dict(model.backbone, save_embedding_layers=False)
        plain = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(plain, folder / EXPORTED_ADAPTER, metadata={"format": "pt"})
    write_json(folder / EXPORT_SETTINGS, settings)
    _write_modules(folder, [("", _OWN)])


def _kept_path(named: str, resolved: str) -> str:
    """Embedded names and hub ids mean the same everywhere; folders are written out in full."""
    return resolved if Path(resolved).is_dir() and not named.startswith("embedded:") else named


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)


def _lone_space_rule() -> dict[str, Any]:
    """Drops the template's last space where nothing follows it.

    sentence-transformers counts a prompt's tokens on the prompt alone. Its last space is a token of
    its own there, but part of the first word when a text follows; without the rule that word would
    be left out of the mean.
    """
    tail = DEFAULT_TEMPLATE.partition("{instruction}")[2]
    kept = tail.rstrip(" ")
    before = re.escape(kept).replace("\\\n", "\\n")
    pattern = f"(?<={before}){' ' * (len(tail) - len(kept))}\\z"
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}


def _eos_rule(tokenizer: Any) -> dict[str, Any]:
    """Ends every text, also a truncated one, with the end-of-sequence token."""
    eos = {"SpecialToken": {"id": tokenizer.eos_token, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    known = {"id": tokenizer.eos_token, "ids": [tokenizer.eos_token_id]}
    return {
        "type": "TemplateProcessing",
        "single": [text, eos],
        "pair": [text, second, eos],
        "special_tokens": {tokenizer.eos_token: {**known, "tokens": [tokenizer.eos_token]}},
    }


def _empty_text_rules(end: str) -> list[dict[str, Any]]:
    """Reads the mark alone as the end-of-sequence token, and drops it before any character.

    A tokenizer.json has no rule for a text without a character: it is not even normalized.
    """
    return [
        {"type": "Replace", "pattern": {"Regex": f"\\A{_MARK}\\z"}, "content": end},
        {"type": "Replace", "pattern": {"Regex": f"\\A{_MARK}"}, "content": ""},
    ]


def _sequence(key: str, rules: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    given = [rule for rule in rules if rule is not None]
    if len(given) < 2:
        return given[0] if given else None
    return {"type": "Sequence", key: given}


def write_card(folder: Path, arm: Arm, form: Form, statements: list[str]) -> None:
    """Write README.md, and copy the run's curves beside it."""
    config = arm.config
    title = f"{config.name}: {arm.label}"
    attention = config.model.attention
    parts = [
        _front_matter(arm),
        f"# {title}",
        f"An embedding model made of `{arm.backbone}` by contrastive training with"
        " `hrsa_lightning`. Attention is"
        f" {attention}, pooling is {config.model.pooling}"
        f"{', embeddings have length 1' if config.model.normalize else ''}.",
        "## Use",
        _usage(form),
        *statements,
        "## Training",
        _training(arm),
        "## Measured while it trained",
        *_measurements(folder, arm),
        "## The whole recipe",
        f"```yaml\n{to_yaml(config).rstrip()}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(arm: Arm) -> str:
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += ["tags:", "- sentence-transformers", "- feature-extraction", "- hrsa-lightning"]
    named = arm.backbone
    on_hub = not named.startswith("embedded:") and not Path(resolve_backbone(named)).is_dir()
    if on_hub:
        lines.append(f"base_model: {named}")
    return "\n".join([*lines, "---"])


def _usage(form: Form) -> str:
    trusted = "" if form == "standard" else ", trust_remote_code=True"
    text = f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder"{trusted})
queries = model.encode_query(["..."])
passages = model.encode_document(["..."])
scores = model.similarity(queries, passages)
```"""
    if form == "standard":
        return text
    return (
        f"{text}\n\nThe module that runs is `hrsa_lightning.export.modules.TrainedEmbedding` of"
        " the installed package hrsa-lightning; this folder holds no code."
    )


def _training(arm: Arm) -> str:
    config = arm.config
    lora = config.model.lora
    trained = f"LoRA, r {lora.r}, alpha {lora.lora_alpha}" if lora else "all weights"
    if config.model.quantization:
        trained += f", beside frozen weights in {config.model.quantization}; here on the full ones"
    step = "the end of the run" if arm.step is None else f"step {arm.step}"
    rows = [
        ("backbone", f"`{arm.backbone}`"),
        ("trained", trained),
        ("weights of", step),
        ("data", ", ".join(f"`{name}`" for name in config.data.train)),
        ("queries in a batch", config.data.batch_size),
        ("passages per query", config.data.train_group_size),
        ("temperature", config.loss.temperature),
        ("learning rate", f"{config.optimizer.lr:g}, {config.optimizer.schedule}"),
        ("most tokens", f"{config.data.query_length} (queries), {config.data.passage_length}"),
        ("seed", config.seed),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _measurements(folder: Path, arm: Arm) -> list[str]:
    tables = "\n".join(summary_lines(arm.run)).strip("\n")
    parts = [tables] if tables else ["The run measured nothing."]
    if arm.step is not None and tables:
        parts.insert(0, "These are of the whole run, not of this checkpoint alone.")
    for history in histories_of(arm.run):
        picture = history.with_suffix(".png")
        if picture.is_file():
            shutil.copyfile(picture, folder / picture.name)
            parts.append(f"![{picture.stem} over training steps]({picture.name})")
    return parts
