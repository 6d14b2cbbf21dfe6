"""What watching costs: an evaluation against a bare forward pass over the same probes.

    python benchmarks/monitor.py --model tiny
    python benchmarks/monitor.py --model 100m --threads 2
    python benchmarks/monitor.py --model training --threads 2

The first two count CPU seconds of this process, so that a busy machine does not show in the ratio;
every figure is the median over repeats that alternate between the two. The monitor has the whole
HRSA set of metrics at every layer and at the output, against the start.

`--model training` times whole runs of a small decoder, with and without a monitor of
max_overhead=0.02 that evaluates as often as that allows; each pair of runs begins with the other
kind. Its wall times need a machine without other work.
"""

import argparse
import logging
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModel, PreTrainedModel, Qwen2Config, Qwen2Model

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.representations import read_history
from hrsa_lightning.representations.isolation import untouched
from hrsa_lightning.shelf import resolve_path


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
        global_step=0, precision_plugin=SimpleNamespace(forward_context=nullcontext)
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


class Run(NamedTuple):
    """Wall and CPU seconds of one fit, and when it was looked at."""

    wall: float
    cpu: float
    evaluations: list[int]


def run_project(monitor: SimilarityMonitor | None, data: Tensor, steps: int) -> Run:
    pl.seed_everything(0, verbose=False)
    module = Project()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[monitor] if monitor else [],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(TensorDataset(data), batch_size=48, shuffle=True)
        started = time.perf_counter(), time.process_time()
        trainer.fit(module, loader)
        seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        history = read_history(monitor.history_path) if monitor and monitor.history_path else []
        return Run(*seconds, [record["step"] for record in history])


def compare_runs(repeats: int, steps: int) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(1_000, (4_800, 32), generator=generator)
    probes = [{"input_ids": part} for part in data[:128].split(32)]
    run_project(None, data, min(steps, 20))  # what is slow once only
    ratios: dict[str, list[float]] = {"wall": [], "CPU": []}
    for pair in range(repeats):
        runs: dict[bool, Run] = {}
        for watched in (pair % 2 == 0, pair % 2 == 1):
            monitor = SimilarityMonitor(
                "initial", probes, ["**.layers.*", "output"], max_overhead=0.02
            )
            runs[watched] = run_project(monitor if watched else None, data, steps)
            if watched:
                share = monitor.budget.spent / monitor.budget.train_seconds
        print(f"evaluations at {runs[True].evaluations}, by its own count {share:.4f} of the time")
        for kind, with_it, without in zip(ratios, runs[True][:2], runs[False][:2], strict=True):
            ratios[kind].append(with_it / without)
            print(f"  {kind:4} seconds: {with_it:8.2f} with, {without:8.2f} without")
    for kind, values in ratios.items():
        print(f"{kind} ratio, median of {repeats} pairs: {statistics.median(values):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=["tiny", "100m", "training"], default="tiny")
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="of each run of training")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model == "training":
        compare_runs(arguments.repeats, arguments.steps)
        return
    model = make_model(arguments.model).eval()
    probes = make_probes(arguments.probes, model.decoder.config.vocab_size)
    monitor, trainer = make_monitor(model, probes)

    def bare() -> None:
        with torch.no_grad():
            for batch in probes:
                model(**batch)

    def evaluate() -> None:
        with untouched(model):
            monitor.measure(trainer, model)

    times: dict[str, list[float]] = {"bare": [], "evaluation": []}
    evaluate()
    for _ in range(arguments.repeats):
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
    print(f"ratio              {medians['evaluation'] / medians['bare']:8.2f}")


if __name__ == "__main__":
    main()
