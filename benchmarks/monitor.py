"""What watching costs: an evaluation against a bare forward pass over the same probes.

    python benchmarks/monitor.py --model tiny
    python benchmarks/monitor.py --model 100m --threads 2
    python benchmarks/monitor.py --model training

Counts CPU seconds of this process, so that a busy machine does not show in the ratio; every figure
is the median over repeats that alternate between the two. The monitor has the whole HRSA set of
metrics at every layer and at the output, against the start.

`--model training` times whole runs of 500 steps with and without a monitor of max_overhead=0.02.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


class Classifier(pl.LightningModule):
    """Enough work in a step that 500 of them take a while."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(768, 768) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def compare_runs(repeats: int) -> None:
    data = torch.randn(4096, 768, generator=torch.Generator().manual_seed(0))
    ratios = []
    for _ in range(repeats):
        seconds = []
        for watched in (True, False):
            monitor = SimilarityMonitor(
                "initial", data[:512, :], ["layers.0", "output"], metrics=["cka"], max_overhead=0.02
            )
            pl.seed_everything(0, verbose=False)
            with tempfile.TemporaryDirectory() as folder:
                trainer = pl.Trainer(
                    max_steps=500,
                    accelerator="cpu",
                    callbacks=[monitor] if watched else [],
                    default_root_dir=folder,
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                loader = DataLoader(TensorDataset(data), batch_size=256)
                started = time.process_time()
                trainer.fit(Classifier(), loader)
                seconds.append(time.process_time() - started)
                if watched:
                    steps = [r["step"] for r in read_history(monitor.history_path)]
        ratios.append(seconds[0] / seconds[1])
        print(f"with {seconds[0]:.2f} CPU s at steps {steps}, without {seconds[1]:.2f} CPU s")
    print(f"ratio, median of {repeats}: {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=["tiny", "100m", "training"], default="tiny")
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model == "training":
        compare_runs(arguments.repeats)
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
    bare()
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
