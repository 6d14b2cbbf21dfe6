"""The stages of the build, in order. Each returns its record for `build.json`."""

import hashlib
import json
import logging
import platform
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from tiny import BACKBONES, card, controls, corpus, evaluate, grpo, lm, prorl, sft
from tiny import pairs as pairs_module
from tiny.stdlib import Function, read_functions, stdlib_path
from tiny.tasks import FAMILY_WEIGHTS
from tiny.texts import draw_domains, draw_traces
from tiny.tokenizer import save_tokenizer, train_tokenizer
from tiny.wordnet import Synset, read_licence, read_synsets

logger = logging.getLogger(__name__)
RECORDED_STAGES = (
    "pairs",
    "tokenizer",
    "stream",
    "base",
    "rlvr",
    "prorl",
    "sft",
    "accuracy",
    "similarity",
    "repeatability",
)
RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "trl", "numpy", "datasets")
RECORDED_ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
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
    wide = pairs_module.widen_probes([*train["definition"], *train["code"]])
    pairs_module.write_jsonl(folders.out / "probes_wide.jsonl", wide)
    pairs_module.write_jsonl(folders.out / "traces.jsonl", draw_traces())
    trained = pairs_module.held_out_texts(line for lines in train.values() for line in lines)
    domains = draw_domains(folders.wordnet, trained)
    pairs_module.write_jsonl(folders.out / "domains.jsonl", domains)
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
    """Train the RLVR backbone and write it rounded to bf16."""
    config = grpo.GrpoConfig()
    model = grpo.train_grpo(folders.out / "base", config, folders.work / "grpo")
    lm.save_model(model, folders.out / "rlvr")
    return {**asdict(config), "family_weights": FAMILY_WEIGHTS}


def build_prorl(folders: Folders) -> dict[str, object]:
    """Train the ProRL backbone and write it rounded to bf16."""
    config = prorl.ProrlConfig()
    model, outcome = prorl.train_prorl(folders.out / "base", config, folders.work / "prorl")
    lm.save_model(model, folders.out / "prorl")
    return {**asdict(config), **outcome, "family_weights": FAMILY_WEIGHTS}


def build_sft(folders: Folders) -> dict[str, object]:
    """Train the SFT backbone and write it rounded to bf16."""
    config = sft.SftConfig()
    lm.save_model(sft.train_sft(folders.out / "base", config), folders.out / "sft")
    return asdict(config)


def build_accuracy(folders: Folders) -> dict[str, object]:
    """Measure the backbones, and refuse a tuned one that is no better on the test problems.

    Raises:
        RuntimeError: the sampled or the greedy accuracy of a tuned backbone does not rise over the
            base by more than two standard errors.
    """
    torch.set_num_threads(1)
    problems, chosen_on = evaluate.test_problems(), evaluate.selection_problems()
    tokenizer = evaluate.load_tokenizer(folders.out / "base")
    measured: dict[str, evaluate.Accuracies] = {}
    on_selection: dict[str, dict[str, float]] = {}
    for name in BACKBONES:
        model = lm.load_model(folders.out / name)
        measured[name] = evaluate.measure(model, tokenizer, problems)
        on_selection[name] = evaluate.measure(model, tokenizer, chosen_on).summary()
        logger.info("%s: %s", name, measured[name].summary())
    rises = {name: evaluate.rises(measured["base"], measured[name]) for name in BACKBONES[1:]}
    for name, rise in rises.items():
        logger.info("%s rises over the base: %s", name, rise)
        if not evaluate.is_beyond_noise(rise):
            raise RuntimeError(f"{name} is not accepted: its rise is not beyond noise: {rise}")
    return {
        "problem_seed": evaluate.TEST_SEED,
        "num_problems": len(problems),
        "num_samples": evaluate.NUM_SAMPLES,
        "backbones": {name: value.summary() for name, value in measured.items()},
        "selection": on_selection,
        "rise_over_base": rises,
        "by_family": {name: value.by_family(problems) for name, value in measured.items()},
    }


def build_repeatability(folders: Folders) -> dict[str, object]:
    """Run a few steps of each training twice on one thread, and compare the weights."""
    stream = np.load(folders.work / "stream.npy", mmap_mode="r")
    base = folders.out / "base"

    def pretrained(steps: int) -> Qwen2ForCausalLM:
        config = lm.PretrainConfig()
        num_tokens = steps * config.batch_size * config.length
        short = replace(config, num_tokens=num_tokens, num_warmup_steps=1, num_threads=1)
        with TemporaryDirectory(dir=folders.work) as work:
            return lm.pretrain(stream, short, Path(work))

    def reinforced(steps: int) -> Qwen2ForCausalLM:
        return grpo.train_grpo(base, grpo.GrpoConfig(num_steps=steps), folders.work / "grpo")

    def prolonged(steps: int) -> Qwen2ForCausalLM:
        model, reference = lm.load_model(base), lm.load_model(base)
        short = prorl.ProrlConfig(num_steps_per_period=steps, num_warmup_steps=1)
        torch.set_num_threads(short.num_threads)
        prorl.train_period(model, reference, evaluate.load_tokenizer(base), short, 0)
        return model

    def tuned(steps: int) -> Qwen2ForCausalLM:
        return sft.train_sft(base, sft.SftConfig(num_steps=steps))

    record: dict[str, object] = {}
    for name, train, steps in (
        ("base", pretrained, 10),
        ("rlvr", reinforced, 3),
        ("prorl", prolonged, 3),
        ("sft", tuned, 10),
    ):
        first, second = (train(steps).state_dict() for _ in range(2))
        is_equal = all(torch.equal(first[key], second[key]) for key in first)
        logger.info("%s: %d steps twice, bit-identical: %s", name, steps, is_equal)
        record[name] = {"num_steps": steps, "is_bit_identical": is_equal}
    return record


def build_similarity(folders: Folders) -> dict[str, object]:
    """Compare every tuned backbone with the base on the probes, at the output, as shipped."""
    models = [f"{name}={folders.out / name}" for name in BACKBONES]
    options = {
        "--texts": folders.out / "probes.jsonl",
        "--layers": "output",
        "--metrics": "cka,knn_overlap,procrustes,dimension_correlation",
        "--null": 0,
        "--out": folders.work / "compared",
    }
    command = [sys.executable, "-m", "hrsa_lightning.compare", *models]
    for option, value in options.items():
        command += [option, str(value)]
    subprocess.run(command, check=True)
    results = json.loads((folders.work / "compared" / "results.json").read_text())
    return {
        comparison["model"]: {
            row["metric"]: round(row["value"], 4)
            for row in comparison["values"]
            if row["metric"] in card.SIMILARITIES
        }
        for comparison in results["comparisons"]
        if comparison["reference"] == "base"
    }


def build_card(folders: Folders) -> dict[str, object]:
    """Write `build.json`, the record of all stages, and the model card that quotes it."""
    base = controls.read_weights(folders.out / "base")
    record: dict[str, object] = {
        "packages": {name: version(name) for name in RECORDED_PACKAGES},
        "machine": platform.machine(),
        "num_parameters": lm.num_parameters(),
        "architecture": {name: getattr(lm.model_config(), name) for name in RECORDED_ARCHITECTURE},
        "relative_weight_change": {
            name: round(
                controls.relative_change(base, controls.read_weights(folders.out / name)), 5
            )
            for name in BACKBONES[1:]
        },
        "text_lengths": _text_lengths(folders),
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


def _text_lengths(folders: Folders) -> dict[str, int]:
    """Return the median and the largest number of tokens of the texts of pairs and probes."""
    tokenizer = Tokenizer.from_file(str(folders.out / "base" / "tokenizer.json"))
    texts: list[str] = []
    for path in sorted(folders.out.glob("*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            is_probe = "text" in line
            texts += [line["text"]] if is_probe else [line["query"][1], *line["pos"], *line["neg"]]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    return {"median": int(np.median(lengths)), "longest": max(lengths)}
