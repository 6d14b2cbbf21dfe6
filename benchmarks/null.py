"""Cost of the permutation null of the whole set beside one evaluation without it.

    python -m benchmarks.null                    # 512 samples of 768 features, 200 permutations
    python -m benchmarks.null --n 2048 --threads 1

Rounds alternate between the two, so that whatever else the machine does hits both; printed are the
least CPU and wall seconds and their ratio, which the goal is to keep at 3 or below.
"""

import argparse
import time
import warnings

import torch

from hrsa_lightning.metrics import hrsa_metrics


def evaluate(x: torch.Tensor, y: torch.Tensor, null: int | None) -> tuple[float, float]:
    """CPU and wall seconds of one evaluation, updates included."""
    metrics = hrsa_metrics(null=null)
    ids = range(len(x))
    cpu, wall = time.process_time(), time.perf_counter()
    metrics.update(x, y, x_ids=ids)
    metrics.compute()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # inverse row entropy has no value with fewer samples than d
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, options.n, options.d, generator=generator)
    y = x + noise
    found: dict[int | None, list[tuple[float, float]]] = {None: [], options.permutations: []}
    for _ in range(options.rounds):
        for null, seconds in found.items():
            seconds.append(evaluate(x, y, null))
    (cpu, wall), (cpu_null, wall_null) = (
        [min(part) for part in zip(*seconds, strict=True)] for seconds in found.values()
    )
    print(f"{options.n} samples, {options.d} features, {options.permutations} permutations")
    print("| | CPU s | wall s |\n|---|---|---|")
    print(f"| one evaluation | {cpu:.3f} | {wall:.3f} |")
    print(f"| with its null | {cpu_null:.3f} | {wall_null:.3f} |")
    print(f"| ratio | {cpu_null / cpu:.2f} | {wall_null / wall:.2f} |")


if __name__ == "__main__":
    main()
