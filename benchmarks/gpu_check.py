"""What a GPU changes, in the minutes it is lent for: `sh scripts/gpu-check --minutes 15`.

Every section is a process of its own, is ended when its time is up, and prints rows as it measures
them: what was measured before stays in the table. No network is used. `--dry-run` runs everything
on the CPU in tiny sizes, so that the script is tested where there is no GPU.

    sh scripts/gpu-check --minutes 15 >> benchmarks/RESULTS.md
    sh scripts/gpu-check --dry-run
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROW = "gpu-check row: "
RESERVE = 5.0
"""Seconds kept back to end processes and to print."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--minutes", type=float, default=15.0, help="never runs longer")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        measure, _ = SECTIONS[arguments.section]
        measure(arguments.dry_run)
        return 0
    deadline = time.monotonic() + 60 * arguments.minutes - RESERVE
    print(f"## GPU check ({time.strftime('%Y-%m-%d')}, {_title(arguments.dry_run)})\n")
    print("| What | Measured |\n|---|---|", flush=True)
    failed = False
    for name, (_, share) in SECTIONS.items():
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--section", name]
        command += ["--dry-run"] if arguments.dry_run else []
        limit = min(deadline, time.monotonic() + share * 60 * arguments.minutes)
        rows, end = run_until(command, limit)
        for row in rows:
            print(f"| {name}: {row[0]} | {row[1]} |")
        if end:
            failed = failed or end.startswith("failed")
            print(f"| {name} | {end} |")
        sys.stdout.flush()
    return int(failed)


def run_until(command: list[str], deadline: float) -> tuple[list[list[str]], str]:
    """Run a section, and end it with all the processes it started when its time is up.

    Args:
        command: Prints rows as `add_row` does.
        deadline: Of `time.monotonic()`.

    Returns:
        The rows that it printed, and a word on how it ended: empty if all went well.
    """
    seconds = deadline - time.monotonic()
    if seconds < 1:
        return [], "skipped: no time left"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            end = f"failed with exit code {code}: " if code else ""
        except subprocess.TimeoutExpired:
            end = "stopped: time is up"
        with suppress(ProcessLookupError):  # all of the section's processes have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        lines = output.read().splitlines()
    rows = [json.loads(line.removeprefix(ROW)) for line in lines if line.startswith(ROW)]
    if end.startswith("failed"):
        said = [line for line in lines if line.strip() and not line.startswith(ROW)]
        end += (said[-1] if said else "it said nothing").replace("|", "/")[:200]
    return rows, end


def add_row(what: str, value: str) -> None:
    """A line of the table."""
    print(ROW + json.dumps([what, value]), flush=True)


def _title(dry_run: bool) -> str:
    """The device in words, without loading torch into this process."""
    if dry_run:
        return "dry run on the CPU: the figures mean nothing"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "no nvidia-smi"
    return "; ".join(found.stdout.splitlines()) or "no GPU"


def _device(dry_run: bool) -> str:
    import torch

    if not dry_run and not torch.cuda.is_available():
        sys.exit("no CUDA device; --dry-run tries the script on the CPU")
    return "cpu" if dry_run else "cuda"


def environment(dry_run: bool) -> None:
    """Versions and devices."""
    import torch

    names = ("torch", "lightning", "transformers", "peft", "sentence-transformers", "bitsandbytes")
    for name in (*names, "flash-attn"):
        if importlib.util.find_spec(name.replace("-", "_")):
            add_row(name, importlib.metadata.version(name))
    add_row("Python", platform.python_version())
    add_row("CPU cores", str(os.cpu_count()))
    if _device(dry_run) == "cuda":
        add_row("CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            add_row(f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
        add_row("bfloat16", str(torch.cuda.is_bf16_supported()))


def tests(dry_run: bool) -> None:
    """`tests/gpu`, whose tests need a device of their own."""
    some = ["-k", "metrics"] if dry_run else []
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", *some],
        env={**os.environ, "HRSA_GPU_TESTS_ON": _device(dry_run)},
        capture_output=True,
        text=True,
    )
    lines = found.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            add_row("test", line.replace("|", "/")[:200])
    add_row("tests", lines[-1].strip("= "))
    sys.exit(found.returncode)


def metrics(dry_run: bool) -> None:
    """The matrix functions of Procrustes, k-NN and the heatmap, beside the same on the CPU."""
    import torch

    from hrsa_lightning.functional import knn_overlap, linear_cka_heatmap, orthogonal_procrustes

    device = _device(dry_run)
    samples, features, layers = (64, 16, 2) if dry_run else (8192, 1536, 12)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=generator)
    y = x + torch.randn(samples, features, generator=generator)
    cross = x.T @ y / samples
    for place in dict.fromkeys((device, "cpu")):
        seconds = timed(partial(torch.linalg.svd, cross.to(place)))
        add_row(f"SVD {features} x {features}, {place}", seconds)
    u, _, v = torch.linalg.svd(cross.double())
    add_row("polar factor by products only", timed(lambda: polar_by_products(cross.to(device))))
    error = (polar_by_products(cross.to(device)).cpu().double() - u @ v).abs().max()
    add_row("its largest error against SVD in float64", f"{error:.1e}")
    work: dict[str, Callable[[Any, Any], Any]] = {
        "Procrustes, held out": lambda a, b: orthogonal_procrustes(a, b),
        "k-NN overlap": lambda a, b: knn_overlap(a, b),
        f"CKA heatmap {layers} x {layers}": lambda a, b: linear_cka_heatmap(
            [a] * layers, [b] * layers
        ),
    }
    for name, function in work.items():
        for place in dict.fromkeys((device, "cpu")):
            seconds = timed(partial(function, x.to(place), y.to(place)))
            add_row(f"{name}, {samples} x {features}, {place}", seconds)


def timed(function: Callable[[], Any], rounds: int = 3) -> str:
    """Median seconds of a call after a first one."""
    import torch

    seconds = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return f"{statistics.median(seconds[1:]):.4f} s"


def polar_by_products(matrix: Any, iterations: int = 40) -> Any:
    """The polar factor by Newton-Schulz: X (3 I - X'X) / 2, for singular values below sqrt 3.

    Small singular values grow by 3 / 2 an iteration: forty reach 1 from 1e-6.
    """
    x = matrix / matrix.norm()
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    return x


def training(dry_run: bool) -> None:
    """Steps of ours beside sentence-transformers', of the shape of Qwen2.5-0.5B with LoRA."""
    from benchmarks import train_throughput as throughput
    from hrsa_lightning.io.pretrained import read_tokenizer
    from hrsa_lightning.models.tokenization import EmbeddingTokenizer
    from tools.tiny.stdlib import stdlib_path

    device = _device(dry_run)
    shape = Namespace(
        hidden=64 if dry_run else 896,
        layers=1 if dry_run else 24,
        intermediate=0 if dry_run else 4864,
        kv_heads=0 if dry_run else 2,
        vocab=0 if dry_run else 151_936,
        batch=4 if dry_run else 512,
        dropout=0.0,
        steps=1 if dry_run else 2,
    )
    with tempfile.TemporaryDirectory() as folder:
        library = stdlib_path() / "asyncio" if dry_run else stdlib_path()
        throughput.write_inputs(Path(folder), shape, library)
        setup = throughput.Setup(
            folder=folder,
            batch=shape.batch,
            length=32 if dry_run else 512,
            steps=shape.steps,
            threads=1 if dry_run else 8,
            chunk=128 if dry_run else 32_768,
            budgets=(0, 0),
            mini_batch=2 if dry_run else 64,
            device=device,
            precision="bf16-mixed",
        )
        tokenizer = EmbeddingTokenizer(read_tokenizer(setup.backbone))
        texts = [text for pair in throughput.drawn_examples(setup) for text in pair.values()]
        measured = texts[5 * setup.batch : 5 * setup.batch * setup.all_steps]
        tokens = int(tokenizer.encode(measured, setup.length).lengths.sum()) / setup.steps
        for name in (throughput.OURS_AUTO, throughput.OURS_CACHED, throughput.THEIRS_CACHED):
            if dry_run:  # in this process: a start takes longer than the steps
                turn = [throughput.take_turn(setup, name)]
            else:
                turn = throughput.measure(setup, [name], rounds=1)[name]
            seconds, peak = throughput.median_seconds(turn), throughput.peak_memory(turn)
            add_row(
                f"{name}, batch {setup.batch}",
                f"{tokens / seconds:,.0f} tokens/s, peak {peak:,.0f} MiB, {seconds:.2f} s a step",
            )


def ranks(dry_run: bool) -> None:
    """The train command on two devices, by DDP and FSDP2, beside one."""
    import torch

    _device(dry_run)
    if not dry_run and torch.cuda.device_count() < 2:
        add_row("two devices", "skipped: one GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        add_row("one", _train(Path(folder, "one"), [], dry_run))
        for strategy in ("fsdp2",) if dry_run else ("ddp", "fsdp2"):
            settings = ["trainer.devices=2", f"trainer.strategy={strategy}"]
            add_row(f"two, {strategy}", _train(Path(folder, strategy), settings, dry_run))


def _train(folder: Path, settings: list[str], dry_run: bool) -> str:
    """Exit code, time and losses of three steps."""
    accelerator = "cpu" if dry_run else "gpu"
    command = [sys.executable, "-m", "hrsa_lightning.train", "recipe=quickstart"]
    command += [f"output_dir={folder}", "trainer.max_steps=3", "trainer.devices=1"]
    command += [f"trainer.accelerator={accelerator}", "arms.sft=null", "arms.base_seed2=null"]
    command += ["callbacks.retrieval=null", *settings]
    similarity = "=null" if dry_run else ".every_n_train_steps=3"
    command += [f"callbacks.similarity{similarity}"]
    started = time.monotonic()
    found = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if found.returncode:
        return f"exit code {found.returncode}: {found.stderr.splitlines()[-1:]}"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.glob("*/*")
    read = EventAccumulator(str(run / "base"))
    read.Reload()
    losses = " ".join(f"{event.value:.5f}" for event in read.Scalars("train/loss"))
    return f"{seconds:.0f} s in all, losses {losses}"


SECTIONS: dict[str, tuple[Callable[[bool], None], float]] = {
    "environment": (environment, 0.1),
    "tests": (tests, 0.25),
    "metrics": (metrics, 0.2),
    "training": (training, 0.45),
    "ranks": (ranks, 1.0),
}
"""What measures each section, and the largest share of the time that it may take."""

_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    sys.exit(main())
