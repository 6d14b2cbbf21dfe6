"""How the cost of our training step grows with the batch, at a fixed budget for activations.

CPU seconds should grow with the tokens, and peak memory not at all, but for the batch itself: its
texts, tokens, embeddings and their gradients. Data and settings are those of `train_throughput`,
with shorter texts and a smaller model; every batch size has a process of its own.

    python -m benchmarks.train_scaling                                   # batch 64 to 1024
    python -m benchmarks.train_scaling --batches 8 16 --hidden 64
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.train_throughput import (
    OURS_SMALL,
    Setup,
    drawn_examples,
    measure,
    median_seconds,
    peak_memory,
    write_inputs,
)


def count_tokens(setup: Setup) -> float:
    """Real tokens of a measured step, averaged over the steps."""
    from hrsa_lightning.models import EmbeddingTokenizer, load_tokenizer

    tokenizer = EmbeddingTokenizer(load_tokenizer(setup.backbone))
    measured = drawn_examples(setup)[setup.batch : setup.batch * setup.all_steps]
    texts = [text for example in measured for text in example.values()]
    return int(tokenizer.encode(texts, setup.length).lengths.sum()) / setup.steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="most tokens of a text")
    parser.add_argument("--dropout", type=float, default=0.1, help="of LoRA")
    parser.add_argument("--steps", type=int, default=1, help="measured, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=1024, help="max_tokens_per_chunk")
    parser.add_argument("--budget", type=int, default=128, help="activation budget, MiB")
    parser.set_defaults(vocab=0, intermediate=0, kv_heads=0)  # for `write_inputs`
    arguments = parser.parse_args()
    print(f"train_scaling {vars(arguments)}", flush=True)
    arguments.batch = max(arguments.batches)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), arguments)
        print(f"{'batch':>6} {'tokens':>9} {'CPU-s':>8} {'CPU-s/1000 tokens':>18} {'peak MiB':>9}")
        costs, peaks = [], []
        for batch in arguments.batches:
            setup = Setup(
                folder=folder,
                batch=batch,
                length=arguments.length,
                steps=arguments.steps,
                threads=arguments.threads,
                chunk=arguments.chunk,
                budgets=(arguments.budget, arguments.budget),
                mini_batch=0,
            )
            turns = measure(setup, [OURS_SMALL], rounds=1)[OURS_SMALL]
            tokens, seconds, peak = count_tokens(setup), median_seconds(turns), peak_memory(turns)
            per_thousand = 1000 * seconds / tokens
            costs.append(per_thousand)
            peaks.append(peak)
            print(
                f"{batch:6} {tokens:9.0f} {seconds:8.2f} {per_thousand:18.3f} {peak:9.0f}",
                flush=True,
            )
    added = max(arguments.batches) - min(arguments.batches)
    print(f"CPU seconds of a token, largest / smallest batch: {costs[-1] / costs[0]:.2f}")
    print(f"peak memory, largest / smallest batch: {peaks[-1] / peaks[0]:.2f}", end="")
    print(f", {1024 * (peaks[-1] - peaks[0]) / added:.0f} KiB for each pair more")


if __name__ == "__main__":
    main()
