"""`compare` against the authors' way: five runs of both models, all activations in memory.

    python -m benchmarks.compare --threads 2
    python -m benchmarks.compare --layers 2 --width 64 --texts 64      (a trial, seconds)

The same two random decoders and the same texts for both. The authors' way follows, in our own
words, the scripts published with arXiv 2601.21192 (see `peers.py`): one process per metric runs
both models over the texts in batches of 8 in the order given, collects garbage twice a batch, keeps
every token's hidden state at every layer, and computes its metric: plain CKA and mean correlation
of all pairs of layers, Procrustes and neighbor overlap of matched layers; the probe is a logistic
regression on the sentence embeddings of the last layer. Ours is one call per level: all five
metrics at every layer with chance levels, held-out values, the debiased form, pictures and the
report, on tokens as theirs and on sentences as it does by default.

Printed are wall and CPU seconds, start of Python included, and the peak of resident memory above
that of a process that has only imported the same libraries. scikit-learn and sentence-transformers
are needed.
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
AUTHORS_BATCH_SIZE = 8
MAX_LENGTH = 128
MODELS = ("a", "b")
LEVELS = ("token", "sentence")
Pairs = list[tuple[Any, Any]]
TEXTS_JOINED = 6
MEBIBYTE = 1024  # ru_maxrss counts KiB


class Cost(NamedTuple):
    """What a process took: seconds, seconds of CPU, MiB at its peak."""

    wall: float
    cpu: float
    peak: float

    def above(self, imports: "Cost") -> "Cost":
        """The same with the memory that the imports alone do not take."""
        return self._replace(peak=self.peak - imports.peak)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=320, help="a multiple of 8")
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("prepare", "imports", *METRICS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "prepare":
        prepare(arguments.folder, arguments.layers, arguments.width, arguments.texts)
    elif arguments.part == "imports":
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401

        from benchmarks.peers import import_theirs

        import_theirs()
    elif arguments.part:
        run_authors(arguments.part, arguments.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run both ways, print what they took and whether the goals are met."""

    def part(name: str, *options: str) -> Cost:
        command = ["-m", "benchmarks.compare", "--part", name, "--folder", str(folder), *options]
        return run(arguments.threads, *command)

    sizes = {"layers": arguments.layers, "width": arguments.width, "texts": arguments.texts}
    part("prepare", *(f"--{name}={value}" for name, value in sizes.items()))
    imports = part("imports")
    authors = {name: part(name).above(imports) for name in METRICS}
    ours_imports = run(arguments.threads, "-c", "import hrsa_lightning.compare.results")
    models = [str(folder / "a"), str(folder / "b"), "--texts", str(folder / "texts.jsonl")]
    command = ["-m", "hrsa_lightning.compare", *models, "--max-length", str(MAX_LENGTH)]
    ours = {}
    for level in LEVELS:
        options = ["--device", "cpu", "--level", level, "--out", str(folder / level)]
        ours[level] = run(arguments.threads, *command, *options).above(ours_imports)
    total = Cost(
        sum(cost.wall for cost in authors.values()),
        sum(cost.cpu for cost in authors.values()),
        max(cost.peak for cost in authors.values()),
    )
    print(", ".join(f"{value} {name}" for name, value in sizes.items()), end="")
    print(f", {arguments.threads} threads\n")
    print("| | wall s | CPU s | peak above imports, MiB |\n|---|---:|---:|---:|")
    for name, cost in authors.items():
        print(row(f"authors' way, {name}", cost))
    print(row("authors' way, all", total))
    for level, cost in ours.items():
        print(row(f"compare --level {level}", cost))
    print("\n| goal | level | measured | |\n|---|---|---:|---|")
    for level, cost in ours.items():
        speed, memory = total.wall / cost.wall, cost.peak / total.peak
        verdicts = met(speed >= GOAL_SPEED), met(memory <= GOAL_MEMORY)
        print(f"| at least {GOAL_SPEED:.0f} times faster | {level} | {speed:.1f} | {verdicts[0]} |")
        print(f"| at most a third of the memory | {level} | {memory:.2f} | {verdicts[1]} |")


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


def row(name: str, cost: Cost) -> str:
    return f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.peak:.0f} |"


def met(reached: bool) -> str:
    return "met" if reached else "NOT met"


def prepare(folder: Path, layers: int, width: int, texts: int) -> None:
    """Two random decoders with the tokenizer of the tiny backbones, and labeled texts."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    from hrsa_lightning.io.resources import resolve_path

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


def hold_activations(folder: Path) -> Pairs:
    """Rows of every token at every layer of both models, as the authors' scripts collect them."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from benchmarks.peers import collect_garbage

    texts = [record["text"] for record in read_records(folder)]
    held = []
    for name in MODELS:
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = AutoModel.from_pretrained(folder / name).eval()
        storage: list[list[torch.Tensor]] = [[] for _ in range(model.config.num_hidden_layers + 1)]
        for start in range(0, len(texts), AUTHORS_BATCH_SIZE):
            batch = tokenizer(
                texts[start : start + AUTHORS_BATCH_SIZE],
                add_special_tokens=False,
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            with torch.no_grad():
                states = model(**batch, output_hidden_states=True).hidden_states
            collect_garbage()
            for rows, state in zip(storage, states, strict=True):
                for mask, tokens in zip(batch["attention_mask"].bool(), state, strict=True):
                    rows.append(tokens[mask])
            del states, state
            collect_garbage()
        held.append(torch.stack([torch.cat(rows) for rows in storage]))
        del storage, model
        collect_garbage()
    return list(zip(held[0], held[1], strict=True))


def read_records(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "texts.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def run_authors(name: str, folder: Path) -> None:
    """One of their five runs."""
    from benchmarks import peers

    peers.import_theirs()
    if name == "probe":
        authors_probe(folder)
        return
    pairs = hold_activations(folder)
    if name == "procrustes":
        for x, y in [*pairs, pairs[-1]]:  # all layers, and the last one again as the global one
            peers.authors_procrustes(x, y)
    else:
        metrics = {
            "cka": peers.authors_heatmap,
            "knn": peers.authors_knn,
            "correlation": peers.authors_correlations,
        }
        metrics[name](pairs)()


def authors_probe(folder: Path) -> float:
    """Logistic regression on the mean-pooled last layer of one model, judged on the other."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    records = read_records(folder)
    labels = np.array([record["label"] for record in records])
    train, rest = train_test_split(
        np.arange(len(records)), test_size=0.2, random_state=42, stratify=labels
    )
    features = []
    for name in MODELS:
        transformer = Transformer(str(folder / name), max_seq_length=MAX_LENGTH)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
        features.append(
            model.encode(
                [record["text"] for record in records],
                batch_size=AUTHORS_BATCH_SIZE,
                normalize_embeddings=True,
            )
        )
    scaler = StandardScaler().fit(features[0][train])
    probe = LogisticRegression(max_iter=1000, random_state=42)
    probe.fit(scaler.transform(features[0][train]), labels[train])
    return float(probe.score(scaler.transform(features[1][rest]), labels[rest]))


if __name__ == "__main__":
    main()
