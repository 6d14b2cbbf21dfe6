"""What the check of training pairs costs: 200,000 rows of 17 columns, once and by four processes.

    python benchmarks/pairs.py

Columns are query, positive and 15 negatives in a parquet file that `datasets` has prepared before.
CPU seconds are those of the check alone; memory is the peak of what a process holds itself
(RssAnon) above what it held before, so that the page cache is not in it. Goals: 5 s and 150 MB;
four processes that start together take no more than 1.2 times the seconds of one.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROWS, NEGATIVES = 200_000, 15
ROOT = Path(__file__).resolve().parent.parent


def make(path: Path) -> None:
    import datasets

    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    pool = [" ".join(draw.choices(words, k=20)) for _ in range(5000)]
    columns = {"query": [" ".join(draw.choices(words, k=8)) for _ in range(ROWS)]}
    for name in ("positive", *(f"negative_{number + 1}" for number in range(NEGATIVES))):
        columns[name] = [draw.choice(pool) for _ in range(ROWS)]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).to_parquet(path)
    datasets.Dataset.from_parquet(str(path))


def anonymous_mb() -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def check(path: Path) -> None:
    """Check the pairs in this process; prints CPU seconds and the peak in MiB."""
    from hrsa_lightning.data.entries import PairEntry
    from hrsa_lightning.data.pairs import TablePairs

    entry = PairEntry(str(path))
    table = entry.load_table()
    before, peak, stopped = anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.05):
            peak[0] = max(peak[0], anonymous_mb() - before)

    threading.Thread(target=watch, daemon=True).start()
    started = time.process_time()
    source = TablePairs(table, entry)
    seconds = time.process_time() - started
    stopped.set()
    assert len(source) == ROWS
    print(seconds, peak[0], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        {"make": make, "check": check}[arguments.case[0]](Path(arguments.case[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/datasets"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

        def run(case: str, cache: str, count: int) -> list[list[float]]:
            command = [sys.executable, __file__, "--case", case, str(path)]
            own = {**environment, "XDG_CACHE_HOME": f"{folder}/{cache}"}
            running = [
                subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            said = [process.communicate()[0].split() for process in running]
            return [[float(word) for word in words] for words in said]

        run("make", "make", 1)
        ((one, peak),) = run("check", "one", 1)
        four = run("check", "four", 4)
        ((again, _),) = run("check", "one", 1)
    together = sum(seconds for seconds, _ in four)
    most = max(peak for _, peak in four)
    print(f"one process: {one:.2f} CPU s, {peak:.1f} MiB; once more: {again:.2f} CPU s")
    print(f"four: {together:.2f} CPU s in all ({together / one:.2f} times), {most:.1f} MiB at most")
    met = one < 5 and peak < 150 and together <= 1.2 * one
    print(f"goals: {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
