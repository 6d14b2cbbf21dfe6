"""The stages of the build, in order. Each returns its record for `build.json`."""

import hashlib
import json
import logging
import platform
import random
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tiny import card, controls, corpus, evaluate, grpo, lm, sft
from tiny import pairs as pairs_module
from tiny.stdlib import Function, read_functions, stdlib_path
from tiny.tokenizer import save_tokenizer, train_tokenizer
from tiny.wordnet import Synset, read_licence, read_synsets

logger = logging.getLogger(__name__)
BACKBONES = ("base", "rlvr", "sft")
RECORDED_STAGES = ("pairs", "tokenizer", "stream", "base", "rlvr", "sft")
RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "trl", "numpy", "datasets")
TOKENIZER_SEED = 99
NUM_TASK_DOCUMENTS_FOR_TOKENIZER = 20_000


@dataclass(frozen=True)
class Folders:
    """Where the build reads and writes: WordNet, work files, shipped files."""

    wordnet: Path
    work: Path
    out: Path

    def texts(self) -> tuple[list[Synset], list[Function]]:
        """Read both text sources."""
        return read_synsets(self.wordnet), read_functions(stdlib_path())

    def held_out(self) -> set[str]:
        """Return the lower-cased texts of the shipped test pairs and probes."""
        lines = []
        for name in ("pairs_test.jsonl", "probes.jsonl"):
            text = (self.out / name).read_text(encoding="utf-8")
            lines += [json.loads(line) for line in text.splitlines()]
        return pairs_module.held_out_texts(lines)


def build_pairs(folders: Folders) -> dict[str, object]:
    """Write training pairs, test pairs, probes and the licence notices."""
    synsets, functions = folders.texts()
    train, test, probes = pairs_module.assemble(synsets, functions)
    for source, lines in train.items():
        pairs_module.write_jsonl(folders.out / f"pairs_train.{source}.jsonl", lines)
    pairs_module.write_jsonl(folders.out / "pairs_test.jsonl", test)
    pairs_module.write_jsonl(folders.out / "probes.jsonl", probes)
    (folders.out / "LICENSE.wordnet").write_text(read_licence(folders.wordnet), encoding="utf-8")
    python_licence = (stdlib_path() / "LICENSE.txt").read_text(encoding="utf-8")
    (folders.out / "LICENSE.python").write_text(python_licence, encoding="utf-8")
    return {
        "python": platform.python_version(),
        "num_synsets": len(synsets),
        "num_functions": len(functions),
        "functions_sha256": _fingerprint(functions),
        "synsets_sha256": _fingerprint(synsets),
        "num_train": {source: len(lines) for source, lines in train.items()},
        "num_test": len(test),
        "num_probes": len(probes),
    }


def _fingerprint(items: list[Synset] | list[Function]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()


def build_tokenizer(folders: Folders) -> dict[str, object]:
    """Train the shared tokenizer and write a copy beside each backbone."""
    synsets, functions = folders.texts()
    rng = random.Random(TOKENIZER_SEED)
    documents = corpus.text_documents(synsets, functions, folders.held_out(), rng)
    documents += islice(corpus.task_documents(rng), NUM_TASK_DOCUMENTS_FOR_TOKENIZER)
    tokenizer = train_tokenizer(documents)
    for name in BACKBONES:
        save_tokenizer(tokenizer, folders.out / name)
    return {"seed": TOKENIZER_SEED, "vocab_size": tokenizer.get_vocab_size()}


def build_stream(folders: Folders) -> dict[str, object]:
    """Write the token stream of the pretraining run."""
    synsets, functions = folders.texts()
    tokenizer = Tokenizer.from_file(str(folders.out / "base" / "tokenizer.json"))
    config = lm.PretrainConfig()
    stream, counts = corpus.token_stream(
        tokenizer, synsets, functions, folders.held_out(), config.num_tokens
    )
    np.save(folders.work / "stream.npy", stream)
    return {**counts, "sha256": hashlib.sha256(stream.tobytes()).hexdigest()}


def build_base(folders: Folders) -> dict[str, object]:
    """Pretrain the base model and write it rounded to bf16."""
    stream = np.load(folders.work / "stream.npy")
    config = lm.PretrainConfig()
    model = lm.pretrain(stream, config, folders.work)
    lm.save_model(model, folders.out / "base")
    return lm.describe(config)


def build_rlvr(folders: Folders) -> dict[str, object]:
    """Train the RLVR backbone, and keep it only if it answers better than the base."""
    config = grpo.GrpoConfig()
    lm.save_model(
        grpo.train_grpo(folders.out / "base", config, folders.work / "grpo"), folders.out / "rlvr"
    )
    return {**asdict(config), **_accepted(folders, "rlvr")}


def build_sft(folders: Folders) -> dict[str, object]:
    """Train the SFT backbone, and keep it only if it answers better than the base."""
    config = sft.SftConfig()
    lm.save_model(sft.train_sft(folders.out / "base", config), folders.out / "sft")
    return {**asdict(config), **_accepted(folders, "sft")}


def _accepted(folders: Folders, name: str) -> dict[str, object]:
    """Measure base and tuned backbone on the test problems, and check that both rises are real."""
    _, problems = evaluate.selection_and_test_problems()
    tokenizer = evaluate.load_tokenizer(folders.out / "base")
    measured = {
        backbone: evaluate.measure(lm.load_model(folders.out / backbone), tokenizer, problems)
        for backbone in ("base", name)
    }
    rise = evaluate.rises(measured["base"], measured[name])
    logger.info("%s: %s, rise %s", name, measured[name].summary(), rise)
    if not evaluate.is_beyond_noise(rise):
        raise RuntimeError(f"{name} is not accepted: accuracy does not rise beyond noise: {rise}")
    weights = {
        backbone: controls.read_weights(folders.out / backbone) for backbone in ("base", name)
    }
    return {
        "num_samples": evaluate.NUM_SAMPLES,
        "relative_weight_change": round(
            controls.relative_change(weights["base"], weights[name]), 5
        ),
        "rise_over_base": rise,
        "accuracy": {key: value.summary() for key, value in measured.items()},
        "accuracy_by_family": {key: value.by_family(problems) for key, value in measured.items()},
    }


def build_card(folders: Folders) -> dict[str, object]:
    """Write `build.json`, the record of all stages, and the model card that quotes it."""
    record: dict[str, object] = {
        "packages": {name: version(name) for name in RECORDED_PACKAGES},
        "machine": platform.machine(),
        "num_parameters": lm.num_parameters(),
    }
    for name in RECORDED_STAGES:
        record[name] = json.loads((folders.work / f"{name}.json").read_text())
    (folders.out / "build.json").write_text(json.dumps(record, indent=2) + "\n")
    readme = folders.out / "README.md"
    previous = readme.read_text(encoding="utf-8") if readme.exists() else ""
    readme.write_text(card.render(record, card.similarity_section(previous)), encoding="utf-8")
    files = [path for path in folders.out.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    return {"num_files": len(files), "num_bytes": sum(path.stat().st_size for path in files)}
