"""A training step of ours beside that of sentence-transformers' own trainer, in one run.

Peers take turns. Every turn is a process of its own, alone on the machine as training is, with a
step to warm up; all have the same random Qwen2 backbone, the same LoRA weights, the same batches in
the same order, lengths and loss. Data are functions of the standard library: a docstring's first
sentence, the code, and three other functions.

    python -m benchmarks.train_throughput                       # the goals, at full size
    python -m benchmarks.train_throughput --dropout 0 --steps 3 # loss curves must be equal
    python -m benchmarks.train_throughput --batch 8 --hidden 64 --layers 2 --rounds 1
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from tools.tiny.stdlib import read_functions, stdlib_path

TEMPERATURE = 0.02
LEARNING_RATE = 1e-4
SEED = 5
MAX_CHARACTERS = 2_000
OURS_CACHED, OURS_PLAIN = "ours, budget 0", "ours, no limit"
OURS_SMALL, OURS_LARGE = "ours, small budget", "ours, large budget"
OURS_AUTO = "ours, budget auto"
THEIRS_CACHED, THEIRS_PLAIN = "Cached…RankingLoss", "…RankingLoss"
GOALS = (
    # ours, theirs, least speed ratio, largest share of their memory
    (OURS_CACHED, THEIRS_CACHED, 1.65, 0.35),
)


Step = tuple[float, float, float]
"""Seconds (on a CPU, CPU seconds), loss, peak memory in MiB (on a CPU, above the loaded model)."""


@dataclass(frozen=True)
class Setup:
    """What all peers of a round have in common."""

    folder: str
    batch: int
    length: int
    steps: int
    threads: int
    chunk: int
    budgets: tuple[int, int]
    mini_batch: int
    seed: int = SEED
    device: str = "cpu"
    precision: str = "32-true"

    @property
    def all_steps(self) -> int:
        return 1 + self.steps

    @property
    def backbone(self) -> str:
        return str(Path(self.folder, "backbone"))

    @property
    def adapter(self) -> str:
        return str(Path(self.folder, "adapter"))

    @property
    def pairs(self) -> str:
        return str(Path(self.folder, "pairs.jsonl"))


@dataclass
class StepLog:
    """Steps of one turn."""

    device: str
    steps: list[Step] = field(default_factory=list)
    loss: float = float("nan")

    def __post_init__(self) -> None:
        self.base = 0.0
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
            self.base = _status_mib("VmRSS")
        self.started = self._clock()

    def close_step(self) -> None:
        now = self._clock()
        self.steps.append((now - self.started, self.loss, self._peak() - self.base))
        self.started = self._clock()

    def _clock(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _peak(self) -> float:
        if self.device == "cpu":
            return _status_mib("VmHWM")
        return torch.cuda.max_memory_allocated() / 2**20


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def write_inputs(folder: Path, arguments: argparse.Namespace, library: Path | None = None) -> None:
    """A random backbone with its attention made bidirectional, LoRA weights, and pairs.

    Args:
        folder: Gets all of it.
        arguments: Those of `main`.
        library: Folder whose functions make the pairs; default: the standard library.
    """
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    from hrsa_lightning.models import EmbeddingModel, resolve_backbone

    # By the family's own class, which theirs would put in the place of any other.
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone("embedded:tiny/base"))
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=max(arguments.vocab, len(tokenizer)),
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate or 4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(2, arguments.hidden // 64),
        num_key_value_heads=arguments.kv_heads or max(2, arguments.hidden // 64),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.is_causal = False
    Qwen2Model(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": arguments.dropout}
    EmbeddingModel.from_pretrained(folder / "backbone", lora=lora, seed=SEED).save_adapter(
        folder / "adapter"
    )
    num_pairs = (2 + arguments.steps) * arguments.batch
    write_pairs(folder / "pairs.jsonl", num_pairs, library or stdlib_path())


def write_pairs(path: Path, num_pairs: int, library: Path) -> None:
    """Docstrings, their functions, and other functions; no text comes twice as a positive."""
    found = {
        function.source: function.summary
        for function in read_functions(library)
        if function.summary and 40 < len(function.source) < MAX_CHARACTERS
    }
    draw = random.Random(SEED)
    sources = sorted(found)
    if len(sources) < num_pairs:
        sys.exit(f"error: {num_pairs} pairs are needed, {library} gives {len(sources)}")
    chosen = draw.sample(sources, num_pairs)
    records = [
        {"query": found[source], "pos": [source], "neg": draw.sample(sources, 3)}
        for source in chosen
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n")


def run_ours(setup: Setup, name: str) -> list[Step]:
    """Our module under Lightning's Trainer, as the train command sets it up."""
    from lightning.pytorch import Callback, Trainer

    from hrsa_lightning.data import ContrastiveDataModule
    from hrsa_lightning.losses import InfoNCELoss
    from hrsa_lightning.models import EmbeddingModel
    from hrsa_lightning.models.lora import AUTOCAST_DTYPES
    from hrsa_lightning.modules import ContrastiveModule

    model = EmbeddingModel.from_pretrained(setup.backbone, adapter=setup.adapter)
    if setup.precision in AUTOCAST_DTYPES:  # as the train command does
        model.cast_frozen_weights(AUTOCAST_DTYPES[setup.precision])
    small, large = (budget * 2**20 for budget in setup.budgets)
    budgets: dict[str, int | str | None] = {
        OURS_CACHED: 0,
        OURS_SMALL: small,
        OURS_LARGE: large,
        OURS_AUTO: "auto",
        OURS_PLAIN: None,
    }
    module = ContrastiveModule(
        model,
        loss=InfoNCELoss(temperature=TEMPERATURE, mask_duplicates=False),  # as theirs
        lr=LEARNING_RATE,
        weight_decay=0.0,
        warmup_ratio=0.0,
        schedule="constant",
        max_tokens_per_chunk=setup.chunk,
        activation_budget=budgets[name],
    )
    data = ContrastiveDataModule(
        [setup.pairs],
        tokenizers={"model": model.tokenizer},
        batch_size=setup.batch,
        query_length=setup.length,
        passage_length=setup.length,
        seed=setup.seed,
    )
    log = StepLog(setup.device)

    class Report(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            log.loss = float(outputs["loss"])
            log.close_step()

    Trainer(
        accelerator=setup.device,
        devices=1,
        precision=setup.precision,  # type: ignore[arg-type]
        max_steps=setup.all_steps,
        callbacks=[Report()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=setup.folder,
    ).fit(module, data)
    return log.steps


def run_theirs(setup: Setup, name: str) -> list[Step]:
    """SentenceTransformerTrainer on the same examples in the same order."""
    from datasets import Dataset
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from sentence_transformers.sentence_transformer.training_args import (
        SentenceTransformerTrainingArguments,
    )
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    transformer = Transformer(setup.backbone, max_seq_length=setup.length)
    loaded = PeftModel.from_pretrained(transformer.model, setup.adapter, is_trainable=True)
    transformer.model = loaded
    assert not loaded.get_base_model().config.is_causal
    width = loaded.get_base_model().config.hidden_size
    model = SentenceTransformer(
        modules=[transformer, Pooling(width), Normalize()], device=setup.device
    )
    scale = 1 / TEMPERATURE
    loss = (
        losses.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_size=setup.mini_batch
        )
        if name == THEIRS_CACHED
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    log = StepLog(setup.device)

    def keep(module: Any, inputs: Any, output: Any) -> None:
        log.loss = float(output)

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            log.close_step()

    loss.register_forward_hook(keep)
    settings = SentenceTransformerTrainingArguments(
        setup.folder,
        per_device_train_batch_size=setup.batch,
        max_steps=setup.all_steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        batch_sampler=lambda data, batch_size, drop_last, **_: DefaultBatchSampler(
            SequentialSampler(data), batch_size=batch_size, drop_last=drop_last
        ),
        use_cpu=setup.device == "cpu",
        bf16=setup.precision == "bf16-mixed",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(drawn_examples(setup))
    SentenceTransformerTrainer(model, settings, data, loss=loss, callbacks=[Report()]).train()
    return log.steps


def drawn_examples(setup: Setup) -> list[dict[str, str]]:
    """All examples of the epoch in the order in which our loader draws them."""
    from hrsa_lightning.data import ContrastiveDataset, GlobalBatchSampler, read_pairs

    dataset = ContrastiveDataset(read_pairs([setup.pairs]), train_group_size=4)
    sampler = GlobalBatchSampler(dataset.sizes, setup.batch, seed=setup.seed)
    columns = ["positive", "negative_1", "negative_2", "negative_3"]
    return [
        {"anchor": str(example.query), **dict(zip(columns, example.passages, strict=True))}
        for batch in sampler
        for example in map(dataset.__getitem__, batch)
    ]


def take_turn(setup: Setup, name: str) -> list[Step]:
    """Body of a process."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(setup.threads)
    torch.manual_seed(SEED)
    return (run_theirs if name in (THEIRS_CACHED, THEIRS_PLAIN) else run_ours)(setup, name)


def measure(setup: Setup, names: list[str], rounds: int) -> dict[str, list[list[Step]]]:
    """Turns of every peer; the first step of a turn is its warm-up."""
    turns: dict[str, list[list[Step]]] = {name: [] for name in names}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
        for number in range(rounds):
            of_round = replace(setup, seed=SEED + number)
            for name in names if number % 2 == 0 else reversed(names):
                turns[name].append(alone.submit(take_turn, of_round, name).result())
    return turns


def median_seconds(turns: list[list[Step]]) -> float:
    """Of a measured step."""
    return statistics.median(step[0] for turn in turns for step in turn[1:])


def peak_memory(turns: list[list[Step]]) -> float:
    """Of all steps, MiB."""
    return max(step[2] for turn in turns for step in turn)


def report(results: dict[str, list[list[Step]]], dropout: float) -> None:
    """Print the table, the goals and, without dropout, how far the loss curves lie apart."""
    seconds = {name: median_seconds(turns) for name, turns in results.items()}
    peaks = {name: peak_memory(turns) for name, turns in results.items()}
    curves = {name: [step[1] for turn in turns for step in turn] for name, turns in results.items()}
    print(f"{'':22} {'s/step':>10} {'peak MiB':>9}  loss of each step")
    for name in results:
        losses = " ".join(f"{loss:.4f}" for loss in curves[name])
        print(f"{name:22} {seconds[name]:10.2f} {peaks[name]:9.0f}  {losses}")
    for ours, theirs, speed, share in GOALS:
        if ours in results and theirs in results:
            faster, part = seconds[theirs] / seconds[ours], peaks[ours] / peaks[theirs]
            verdict = "met" if faster >= speed and part <= share else "NOT met"
            print(
                f"{ours} against {theirs}: {faster:.2f} times as fast (goal {speed}) at "
                f"{part:.0%} of its memory (goal {share:.0%}): {verdict}"
            )
    if dropout == 0:
        apart = max(max(at) - min(at) for at in zip(*curves.values(), strict=True))
        verdict = "equal to rounding" if apart < 1e-3 else "NOT equal"
        print(f"loss curves lie at most {apart:.1e} apart: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=0, help="default: 4 x hidden")
    parser.add_argument("--kv-heads", type=int, default=0, help="default: as many as heads")
    parser.add_argument("--vocab", type=int, default=0, help="default: that of the tokenizer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--length", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--dropout", type=float, default=0.1, help="of LoRA")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each peer")
    parser.add_argument("--steps", type=int, default=1, help="measured steps of a turn")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--chunk", type=int, default=1024, help="our max_tokens_per_chunk")
    parser.add_argument(
        "--budgets",
        nargs=2,
        type=int,
        default=(700, 1300),
        metavar=("SMALL", "LARGE"),
        help="our activation budgets, MiB",
    )
    parser.add_argument("--mini-batch", type=int, default=16, help="of their cached loss")
    peers = [
        OURS_CACHED,
        OURS_SMALL,
        OURS_LARGE,
        OURS_PLAIN,
        THEIRS_CACHED,
        THEIRS_PLAIN,
        OURS_AUTO,
    ]
    parser.add_argument("--only", nargs="+", choices=range(len(peers)), type=int, help="peers")
    arguments = parser.parse_args()
    names = peers if arguments.only is None else [peers[index] for index in arguments.only]
    print(f"train_throughput {vars(arguments)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), arguments)
        common = set(Setup.__annotations__) - {"folder", "seed"}
        setup = Setup(folder=folder, **{key: getattr(arguments, key) for key in common})
        report(measure(setup, names, arguments.rounds), arguments.dropout)


_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
