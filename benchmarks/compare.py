"""`compare` against the authors' way: five runs of both models, all activations in memory.

    python benchmarks/compare.py --threads 2
    python benchmarks/compare.py --layers 2 --width 64 --texts 64      (a trial, seconds)

The same two random decoders and the same texts for both. The authors' way is one process per metric
that runs both models over all texts in the order given, keeps the hidden states of all layers and
tokens of both, averages them over tokens at the end, and computes its metric by the plain formula:
CKA of all pairs of layers; for matched layers Procrustes (SVD, fitted on centered and judged on raw
rows), neighbor overlap from the whole similarity matrix, Pearson correlation feature by feature,
and a logistic probe. Ours is one call with its default set: all of these with floors, held-out
values, the debiased forms, pictures and the report. The formulas are transcriptions of definitions,
not code of their authors; scikit-learn is needed for the probe.

Printed are wall and CPU seconds, start of Python included, and the peak of resident memory above
that of a process that has only imported the same libraries.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

METRICS = ("cka", "procrustes", "knn", "correlation", "probe")
GOAL_SPEED, GOAL_MEMORY = 5.0, 1 / 3
BATCH_SIZE = 32
MAX_LENGTH = 128
TEXTS_JOINED = 6
MEBIBYTE = 1024  # ru_maxrss counts KiB


class Cost(NamedTuple):
    """What a process took: seconds, seconds of CPU, MiB at its peak."""

    wall: float
    cpu: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=320, help="a multiple of 8")
    parser.add_argument("--texts", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("prepare", "imports", *METRICS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "prepare":
        prepare(arguments.folder, arguments.layers, arguments.width, arguments.texts)
    elif arguments.part == "imports":
        import sklearn.linear_model  # noqa: F401
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    elif arguments.part:
        print(json.dumps(AUTHORS[arguments.part](*authors_inputs(arguments.folder))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run both ways, print what they took and whether the goals are met."""

    def part(name: str, *options: str) -> Cost:
        command = [__file__, "--part", name, "--folder", str(folder), *options]
        return run(arguments.threads, *command)

    sizes = {"layers": arguments.layers, "width": arguments.width, "texts": arguments.texts}
    part("prepare", *(f"--{name}={value}" for name, value in sizes.items()))
    nothing = part("imports")
    authors = {name: part(name) for name in METRICS}
    ours_nothing = run(arguments.threads, "-c", "import hrsa_lightning.comparison.results")
    options = ["--max-length", str(MAX_LENGTH), "--batch-size", str(BATCH_SIZE)]
    models = [str(folder / "a"), str(folder / "b"), "--texts", str(folder / "texts.jsonl")]
    command = ["-m", "hrsa_lightning.compare", *models, *options, "--device", "cpu"]
    ours = run(arguments.threads, *command, "--out", str(folder / "out"))
    total = Cost(
        sum(cost.wall for cost in authors.values()),
        sum(cost.cpu for cost in authors.values()),
        max(cost.peak for cost in authors.values()),
    )
    print(", ".join(f"{value} {name}" for name, value in sizes.items()), end="")
    print(f", {arguments.threads} threads\n")
    print("| | wall s | CPU s | peak above imports, MiB |\n|---|---:|---:|---:|")
    for name, cost in authors.items():
        print(row(f"authors' way, {name}", cost, nothing))
    print(row("authors' way, all", total, nothing))
    print(row("compare", ours, ours_nothing))
    speed = total.wall / ours.wall
    memory = (ours.peak - ours_nothing.peak) / (total.peak - nothing.peak)
    print("\n| goal | measured | |\n|---|---:|---|")
    print(f"| at least {GOAL_SPEED:.0f} times faster | {speed:.1f} | {met(speed >= GOAL_SPEED)} |")
    print(f"| at most a third of the memory | {memory:.2f} | {met(memory <= GOAL_MEMORY)} |")


def run(threads: int, *command: str) -> Cost:
    """Run Python in a process of its own, which must succeed.

    This process stays small, since a child's peak begins at the size of its parent.
    """
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} ended with {child.returncode}:\n{errors.read()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MEBIBYTE)


def row(name: str, cost: Cost, nothing: Cost) -> str:
    return f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.peak - nothing.peak:.0f} |"


def met(reached: bool) -> str:
    return "met" if reached else "NOT met"


def prepare(folder: Path, layers: int, width: int, texts: int) -> None:
    """Two random decoders with the tokenizer of the tiny backbones, and labeled texts."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    from hrsa_lightning.shelf import resolve_path

    tokenizer = AutoTokenizer.from_pretrained(resolve_path("embedded:tiny/base"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=8 * width // 3 // 8 * 8,
    )
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        Qwen2Model(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = Path(resolve_path("embedded:tiny/probes.jsonl")).read_text("utf-8").splitlines()
    groups: dict[str, list[str]] = {}
    for record in map(json.loads, lines):
        groups.setdefault(record["label"], []).append(record["text"])
    labels = list(groups)
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for index in range(texts):
            label = labels[index % len(labels)]
            group = groups[label]
            start = index // len(labels)
            # Of different lengths, as texts are.
            joined = [group[(start + i) % len(group)] for i in range(1 + index % TEXTS_JOINED * 2)]
            file.write(json.dumps({"text": ". ".join(joined), "label": label}) + "\n")


def authors_inputs(folder: Path) -> tuple[list[Any], list[Any], Any]:
    """Both models' rows of every layer, after all activations were held, and the labels."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    lines = (folder / "texts.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    held = []
    for name in ("a", "b"):
        model = AutoModel.from_pretrained(folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        activations, masks = [], []
        with torch.no_grad():
            for start in range(0, len(records), BATCH_SIZE):
                batch = tokenizer(
                    [record["text"] for record in records[start : start + BATCH_SIZE]],
                    padding=True,
                    truncation=True,
                    max_length=MAX_LENGTH,
                    return_tensors="pt",
                )
                activations.append(model(**batch, output_hidden_states=True).hidden_states[1:])
                masks.append(batch["attention_mask"].unsqueeze(2))
        held.append((activations, masks))
    rows = [
        [
            torch.cat(
                [
                    (batch[layer] * mask).sum(1) / mask.sum(1)
                    for batch, mask in zip(activations, masks, strict=True)
                ]
            ).numpy()
            for layer in range(len(activations[0]))
        ]
        for activations, masks in held
    ]
    return rows[0], rows[1], np.array([record["label"] for record in records])


def authors_cka(xs: list[Any], ys: list[Any], _labels: Any) -> list[list[float]]:
    import numpy as np

    def cka(x: Any, y: Any) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        return float(np.linalg.norm(y.T @ x) ** 2 / norms)

    return [[cka(x, y) for y in ys] for x in xs]


def authors_procrustes(xs: list[Any], ys: list[Any], _labels: Any) -> list[list[float]]:
    import numpy as np

    found = []
    for x, y in zip(xs, ys, strict=True):
        u, _, v = np.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
        rotation = u @ v
        turned = x @ rotation
        shares = rotation**2
        entropy = -(shares * np.log(shares + 1e-12)).sum(1).mean() / np.log(len(rotation))
        norms = np.linalg.norm(turned, axis=1) * np.linalg.norm(y, axis=1)
        cosines = (turned * y).sum(1) / norms
        residual = np.linalg.norm(turned - y) ** 2 / np.linalg.norm(y) ** 2
        found.append([float(residual), float(cosines.mean()), float(1 - entropy)])
    return found


def authors_knn(xs: list[Any], ys: list[Any], _labels: Any) -> list[list[float]]:
    import numpy as np

    def neighbors(x: Any) -> Any:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1)

    found = []
    for x, y in zip(xs, ys, strict=True):
        left, right = neighbors(x), neighbors(y)
        found.append([])
        for k in (10, 50):
            pairs = [(set(a[:k]), set(b[:k])) for a, b in zip(left, right, strict=True)]
            found[-1].append(sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs))
    return found


def authors_correlation(xs: list[Any], ys: list[Any], _labels: Any) -> list[float]:
    import numpy as np

    return [
        float(np.mean([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(x.shape[1])]))
        for x, y in zip(xs, ys, strict=True)
    ]


def authors_probe(xs: list[Any], ys: list[Any], labels: Any) -> list[float]:
    from sklearn.linear_model import LogisticRegression

    half = len(labels) // 2
    found = []
    for x, y in zip(xs, ys, strict=True):
        probe = LogisticRegression(max_iter=1000).fit(y[:half], labels[:half])
        found.append(float(probe.score(x[half:], labels[half:])))
    return found


AUTHORS = {
    "cka": authors_cka,
    "procrustes": authors_procrustes,
    "knn": authors_knn,
    "correlation": authors_correlation,
    "probe": authors_probe,
}


if __name__ == "__main__":
    main()
