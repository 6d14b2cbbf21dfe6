"""The model card: what was trained, on what, and what was measured on the way."""

import shutil
from pathlib import Path

from hrsa_lightning.config import to_yaml
from hrsa_lightning.export.folder import Form
from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.runs.directory import HISTORIES
from hrsa_lightning.runs.resolve import Arm
from hrsa_lightning.runs.summary import summary_lines

__all__ = ["write_card"]


def write_card(folder: Path, arm: Arm, form: Form, facts: list[str]) -> None:
    """Write README.md, and copy the run's curves beside it.

    Args:
        folder: The export.
        arm: What is exported.
        form: How it is loaded.
        facts: Sentences about this export, such as the differences that were measured.
    """
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
        *facts,
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
    parts = [f"```text\n{tables}\n```"] if tables else ["The run measured nothing."]
    if arm.step is not None and tables:
        parts.insert(0, "These are of the whole run, not of this checkpoint alone.")
    for history in HISTORIES:
        picture = (arm.run / history).with_suffix(".png")
        if picture.is_file():
            shutil.copyfile(picture, folder / picture.name)
            parts.append(f"![{picture.stem} over training steps]({picture.name})")
    return parts
