"""What watching costs: an evaluation against a bare forward pass over the same probes.

    python benchmarks/monitor.py --model tiny
    python benchmarks/monitor.py --model 100m --threads 2
    python benchmarks/monitor.py --model training --threads 2

The first two count CPU seconds of this process. Passes and evaluations alternate, and the ratio is
the median of those of neighbors. The monitor has the whole HRSA set of metrics at every layer and
at the output, against the start.

`--model training` times whole runs of a small decoder, with a monitor of max_overhead=0.02 that
evaluates as often as that allows, without, and once more without, which shows the noise. The three
take turns of a few steps in one process, so that all meet the same moods of the machine; each time
another one begins.
"""

import argparse
import logging
import math
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, PreTrainedModel, Qwen2Config, Qwen2Model

from hrsa_lightning.callbacks import SimilarityMonitor, schedule
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.report.statistics import t_quantile
from hrsa_lightning.similarity import Measurement, preserve_training_state

STEPS_PER_TURN = 5


class Pooled(nn.Module):
    """A decoder with the mean over its tokens as output."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        mask = attention_mask.unsqueeze(2)
        return (states * mask).sum(1) / mask.sum(1)


def make_model(name: str) -> Pooled:
    if name == "tiny":
        return Pooled(AutoModel.from_pretrained(resolve_path("embedded:tiny/base")).float())
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16_384,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        intermediate_size=2_432,
    )
    return Pooled(Qwen2Model(config))


def make_probes(count: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """Texts of 8 to 48 tokens, sorted by length into batches of 32, right padded."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 49, (count,), generator=generator).sort().values
    batches = []
    for part in lengths.split(32):
        ids = torch.randint(vocabulary, (len(part), int(part.max())), generator=generator)
        mask = (torch.arange(ids.shape[1]) < part.unsqueeze(1)).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
    return batches


def make_monitor(model: Pooled, probes: list[dict[str, Tensor]]) -> tuple[SimilarityMonitor, Any]:
    """A monitor that has evaluated once, and what stands for its trainer."""
    monitor = SimilarityMonitor(
        "initial", probes, ["**.layers.*", "output"], heatmap_every_n_evaluations=0
    )
    trainer = SimpleNamespace(
        global_step=0,
        max_steps=-1,
        max_epochs=None,
        should_stop=False,
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    monitor.prepare(trainer, model)  # type: ignore[arg-type]
    return monitor, trainer


class Project(pl.LightningModule):
    """A small decoder that learns to tell whose tokens are larger on average."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen2Config(
            vocab_size=1_000,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=384,
        )
        self.encoder = Pooled(Qwen2Model(config))
        self.head = nn.Linear(96, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.encoder(input_ids, torch.ones_like(input_ids))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        labels = (batch[0].float().mean(1) > 500).long()
        return nn.functional.cross_entropy(self.head(self(batch[0])), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Evaluations(SimilarityMonitor):
    """Records the steps of its evaluations."""

    def begin(self, restored: dict[str, Any]) -> None:
        super().begin(restored)
        self.steps: list[int] = []

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Measurement]:
        self.steps.append(trainer.global_step)
        return super().measure(trainer, pl_module)


class Turns:
    """Lets fits in several threads take turns: one runs, the others wait and take no time.

    Args:
        count: Number of fits.
        first: Which one begins.

    Attributes:
        wall: Seconds of each fit, in its own turns.
        cpu: The same in CPU seconds of the process.
    """

    def __init__(self, count: int, first: int) -> None:
        self.wall, self.cpu = [0.0] * count, [0.0] * count
        self._running = set(range(count))
        self._whose = first
        self._since = (0.0, 0.0)
        self._change = threading.Condition()

    def take(self, me: int) -> None:
        """Wait for the turn of a fit."""
        with self._change:
            self._change.wait_for(lambda: self._whose == me)
        self._since = time.perf_counter(), time.process_time()

    def give(self, me: int, *, ends: bool = False) -> None:
        """End the turn of a fit, or all of them."""
        self.wall[me] += time.perf_counter() - self._since[0]
        self.cpu[me] += time.process_time() - self._since[1]
        with self._change:
            if ends:
                self._running.remove(me)
            count = len(self.wall)
            later = [(me + shift) % count for shift in range(1, count + 1)]
            self._whose = next((fit for fit in later if fit in self._running), -1)
            self._change.notify_all()

    def clock(self, me: int) -> float:
        """Seconds of a fit so far."""
        running = time.perf_counter() - self._since[0] if self._whose == me else 0.0
        return self.wall[me] + running


class TakeTurns(pl.Callback):
    """Hands over every few steps."""

    def __init__(self, turns: Turns, me: int, steps: int) -> None:
        self._turns = turns
        self._me = me
        self._steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self._steps == 0:
            self._turns.give(self._me)
            self._turns.take(self._me)


def run_project(
    callbacks: list[pl.Callback], data: Tensor, steps: int, turns: Turns, me: int
) -> None:
    turns.take(me)
    try:
        pl.seed_everything(0, verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=steps,
                accelerator="cpu",
                callbacks=[*callbacks, TakeTurns(turns, me, STEPS_PER_TURN)],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Project(), DataLoader(TensorDataset(data), batch_size=48, shuffle=True))
    finally:
        turns.give(me, ends=True)


def run_in_turns(
    monitor: Evaluations, data: Tensor, steps: int, first: int
) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of a run with the monitor, one without, and another one without."""
    turns = Turns(3, first)
    # The others' turns are not its training time.
    schedule.time = SimpleNamespace(perf_counter=lambda: turns.clock(0))
    with ThreadPoolExecutor(3) as pool:
        fits = [
            pool.submit(run_project, callbacks, data, steps, turns, me)
            for me, callbacks in enumerate(([monitor], [], []))
        ]
    for fit in fits:
        fit.result()
    return turns.wall, turns.cpu


def compare_runs(repeats: int, steps: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(1_000, (4_800, 32), generator=generator)
    probes = [{"input_ids": part} for part in data[:128].split(32)]
    run_project([], data, min(steps, 20), Turns(1, 0), 0)  # what is slow once only
    ratios: dict[str, list[float]] = {}
    for repeat in range(repeats):
        monitor = Evaluations("initial", probes, ["**.layers.*", "output"], max_overhead=0.02)
        found = run_in_turns(monitor, data, steps, repeat % 3)
        share = monitor.budget.spent / monitor.budget.train_seconds
        print(f"evaluations at {monitor.steps}, by its own count {share:.4f} of the time")
        for kind, (with_it, without, again) in zip(("wall", "CPU"), found, strict=True):
            print(f"  {kind:4} s: {with_it:.2f} with, {without:.2f} and {again:.2f} without")
            ratios.setdefault(f"{kind} with / without", []).append(2 * with_it / (without + again))
            ratios.setdefault(f"{kind} without / without", []).append(again / without)
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.4f}{interval(values)}")


def interval(values: list[float]) -> str:
    """95 % interval of the mean, in words; nothing for a single value."""
    if len(values) < 2:
        return ""
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return f", mean {mean:.4f} (95 % interval {mean - half:.4f} to {mean + half:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=["tiny", "100m", "training"], default="tiny")
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--repeats", type=int, help="15 for the tiny model, else 3")
    parser.add_argument("--steps", type=int, default=500, help="of each run of training")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    repeats = arguments.repeats or (15 if arguments.model == "tiny" else 3)
    torch.set_num_threads(arguments.threads)
    if arguments.model == "training":
        compare_runs(repeats, arguments.steps)
        return
    model = make_model(arguments.model).eval()
    probes = make_probes(arguments.probes, model.decoder.config.vocab_size)
    monitor, trainer = make_monitor(model, probes)

    def bare() -> None:
        with torch.no_grad():
            for batch in probes:
                model(**batch)

    def evaluate() -> None:
        with preserve_training_state(model):
            monitor.measure(trainer, model)

    times: dict[str, list[float]] = {"bare": [], "evaluation": []}
    evaluate()
    for _ in range(repeats):
        for name, work in (("bare", bare), ("evaluation", evaluate)):
            started = time.process_time()
            work()
            times[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    size = sum(p.numel() for p in model.parameters())
    tokens = sum(int(batch["attention_mask"].sum()) for batch in probes)
    print(f"{Path(__file__).name}: {size:,} weights, {arguments.probes} probes, {tokens} tokens")
    print(f"bare forward pass  {medians['bare']:8.3f} CPU s")
    print(f"evaluation         {medians['evaluation']:8.3f} CPU s")
    ratios = [
        after / before for before, after in zip(times["bare"], times["evaluation"], strict=True)
    ]
    print(f"ratio: median {statistics.median(ratios):.3f}{interval(ratios)}")


if __name__ == "__main__":
    main()
