"""A training step of ours beside that of sentence-transformers' own trainer, in one run.

Every peer is a process of its own with the same random Qwen2 backbone, the same LoRA weights, the
same batches in the same order, lengths and loss; they take turns, one step each. Data are functions
of the standard library: a docstring's first sentence, the code, and three other functions.

    python -m benchmarks.train_throughput                       # the goals, at full size
    python -m benchmarks.train_throughput --dropout 0           # loss curves must be equal
    python -m benchmarks.train_throughput --batch 8 --hidden 64 --layers 2 --rounds 1
"""

import argparse
import ctypes
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TEMPERATURE = 0.02
LEARNING_RATE = 1e-4
SEED = 5
MAX_CHARACTERS = 2_000
OURS_CACHED, OURS_BUDGET, OURS_PLAIN = "ours, budget 0", "ours, budget", "ours, no limit"
THEIRS_CACHED, THEIRS_PLAIN = "Cached…RankingLoss", "…RankingLoss"
GOALS = (
    # ours, theirs, least speed ratio, largest share of their memory
    (OURS_CACHED, THEIRS_CACHED, 2.0, 0.6),
    (OURS_BUDGET, THEIRS_CACHED, 2.3, 1.0),
    (OURS_PLAIN, THEIRS_PLAIN, 3.7, 0.6),
)


@dataclass(frozen=True)
class Setup:
    """What all peers have in common."""

    folder: str
    batch: int
    length: int
    rounds: int
    threads: int
    chunk: int
    budget: int
    mini_batch: int

    @property
    def steps(self) -> int:
        return 1 + self.rounds

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
class Gate:
    """The end of a peer's step: it reports, then waits for its next turn."""

    pipe: Connection
    loss: float = float("nan")
    started: float = field(default_factory=time.process_time)
    base: float = field(default_factory=lambda: _status_mib("VmRSS"))

    def __post_init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here

    def close_step(self) -> None:
        seconds = time.process_time() - self.started
        self.pipe.send((seconds, self.loss, _status_mib("VmHWM") - self.base))
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # leave the memory to whoever is next
        self.pipe.recv()
        self.started = time.process_time()


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def write_inputs(folder: Path, arguments: argparse.Namespace) -> None:
    """A random backbone with its attention made bidirectional, LoRA weights, and pairs."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    from hrsa_lightning.models import EmbeddingModel, resolve_backbone

    # By the family's own class, which theirs would put in the place of any other.
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone("embedded:tiny/base"))
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(2, arguments.hidden // 64),
        num_key_value_heads=max(2, arguments.hidden // 64),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.is_causal = False
    Qwen2Model(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": arguments.dropout}
    EmbeddingModel.from_pretrained(folder / "backbone", lora=lora, seed=SEED).save_adapter(
        folder / "adapter"
    )
    write_pairs(folder / "pairs.jsonl", num_pairs=(2 + arguments.rounds) * arguments.batch)


def write_pairs(path: Path, num_pairs: int) -> None:
    """Docstrings, their functions, and other functions; no text comes twice as a positive."""
    from tools.tiny.stdlib import read_functions, stdlib_path

    found = {
        function.source: function.summary
        for function in read_functions(stdlib_path())
        if function.summary and 40 < len(function.source) < MAX_CHARACTERS
    }
    draw = random.Random(SEED)
    sources = sorted(found)
    if len(sources) < num_pairs:
        sys.exit(f"error: {num_pairs} pairs are needed, the standard library gives {len(sources)}")
    chosen = draw.sample(sources, num_pairs)
    records = [
        {"query": found[source], "pos": [source], "neg": draw.sample(sources, 3)}
        for source in chosen
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n")


def run_ours(setup: Setup, name: str, pipe: Connection) -> None:
    """Our module under Lightning's Trainer, as the train command sets it up."""
    from lightning.pytorch import Callback, Trainer

    from hrsa_lightning.data import ContrastiveDataModule
    from hrsa_lightning.losses import InfoNCELoss
    from hrsa_lightning.models import EmbeddingModel
    from hrsa_lightning.modules import ContrastiveModule

    model = EmbeddingModel.from_pretrained(setup.backbone, adapter=setup.adapter)
    budget = {OURS_CACHED: 0, OURS_BUDGET: setup.budget * 2**20, OURS_PLAIN: None}[name]
    module = ContrastiveModule(
        model,
        loss=InfoNCELoss(temperature=TEMPERATURE, mask_duplicates=False),  # as theirs
        lr=LEARNING_RATE,
        weight_decay=0.0,
        warmup_ratio=0.0,
        schedule="constant",
        max_tokens_per_chunk=setup.chunk,
        activation_budget=budget,
    )
    data = ContrastiveDataModule(
        [setup.pairs],
        tokenizers={"model": model.tokenizer},
        batch_size=setup.batch,
        query_length=setup.length,
        passage_length=setup.length,
        seed=SEED,
    )
    gate = Gate(pipe)

    class Report(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            gate.loss = float(outputs["loss"])
            gate.close_step()

    Trainer(
        accelerator="cpu",
        max_steps=setup.steps,
        callbacks=[Report()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=setup.folder,
    ).fit(module, data)


def run_theirs(setup: Setup, name: str, pipe: Connection) -> None:
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
    model = SentenceTransformer(modules=[transformer, Pooling(width), Normalize()], device="cpu")
    scale = 1 / TEMPERATURE
    loss = (
        losses.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_size=setup.mini_batch
        )
        if name == THEIRS_CACHED
        else losses.MultipleNegativesRankingLoss(model, scale=scale)
    )
    gate = Gate(pipe)

    def keep(module: Any, inputs: Any, output: Any) -> None:
        gate.loss = float(output)

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            gate.close_step()

    loss.register_forward_hook(keep)
    settings = SentenceTransformerTrainingArguments(
        setup.folder,
        per_device_train_batch_size=setup.batch,
        max_steps=setup.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        batch_sampler=lambda data, batch_size, drop_last, **_: DefaultBatchSampler(
            SequentialSampler(data), batch_size=batch_size, drop_last=drop_last
        ),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(drawn_examples(setup))
    SentenceTransformerTrainer(model, settings, data, loss=loss, callbacks=[Report()]).train()


def drawn_examples(setup: Setup) -> list[dict[str, str]]:
    """All examples of the epoch in the order in which our loader draws them."""
    from hrsa_lightning.data import ContrastiveDataset, GlobalBatchSampler, read_pairs

    dataset = ContrastiveDataset(read_pairs([setup.pairs]), train_group_size=4, seed=SEED)
    sampler = GlobalBatchSampler(dataset.sizes, setup.batch, seed=SEED)
    columns = ["positive", "negative_1", "negative_2", "negative_3"]
    return [
        {"anchor": str(example.query), **dict(zip(columns, example.passages, strict=True))}
        for batch in sampler
        for example in map(dataset.__getitem__, batch)
    ]


def serve(setup: Setup, name: str, pipe: Connection) -> None:
    """Body of a peer's process."""
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(setup.threads)
    torch.manual_seed(SEED)
    (run_theirs if name in (THEIRS_CACHED, THEIRS_PLAIN) else run_ours)(setup, name, pipe)


def measure(setup: Setup, names: list[str]) -> dict[str, list[tuple[float, float, float]]]:
    """(CPU seconds, loss, peak MiB above the loaded model) of every step, by peer."""
    context = get_context("spawn")
    pipes, processes = {}, []
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for name in names:  # one after the other: the first step of each is its warm-up
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(setup, name, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        results[name].append(pipes[name].recv())
    for number in range(setup.rounds):
        for name in names if number % 2 else reversed(names):
            pipes[name].send("next")
            results[name].append(pipes[name].recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()
    return results


def report(results: dict[str, list[tuple[float, float, float]]], dropout: float) -> None:
    """Print the table, the goals and, without dropout, how far the loss curves lie apart."""
    seconds = {n: statistics.median(step[0] for step in rows[1:]) for n, rows in results.items()}
    peaks = {name: max(row[2] for row in rows) for name, rows in results.items()}
    print(f"{'':22} {'CPU-s/step':>10} {'peak MiB':>9}  loss of each step")
    for name, rows in results.items():
        losses = " ".join(f"{row[1]:.4f}" for row in rows)
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
        curves = [[row[1] for row in rows] for rows in results.values()]
        apart = max(max(at) - min(at) for at in zip(*curves, strict=True))
        verdict = "equal to rounding" if apart < 1e-3 else "NOT equal"
        print(f"loss curves lie at most {apart:.1e} apart: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--dropout", type=float, default=0.1, help="of LoRA")
    parser.add_argument("--rounds", type=int, default=2, help="measured steps of each peer")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--chunk", type=int, default=2048, help="our max_tokens_per_chunk")
    parser.add_argument("--budget", type=int, default=600, help="our activation budget, MiB")
    parser.add_argument("--mini-batch", type=int, default=16, help="of their cached loss")
    peers = [OURS_CACHED, OURS_BUDGET, OURS_PLAIN, THEIRS_CACHED, THEIRS_PLAIN]
    parser.add_argument("--only", nargs="+", choices=range(len(peers)), type=int, help="peers")
    arguments = parser.parse_args()
    names = peers if arguments.only is None else [peers[index] for index in arguments.only]
    print(f"train_throughput {vars(arguments)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), arguments)
        setup = Setup(
            folder=folder,
            **{key: getattr(arguments, key) for key in Setup.__annotations__ if key != "folder"},
        )
        report(measure(setup, names), arguments.dropout)


_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
