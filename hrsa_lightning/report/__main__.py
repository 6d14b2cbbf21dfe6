"""Put one run, or many, on one page: `python -m hrsa_lightning.report RUN…`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrsa_lightning.cli import CommandParser, answered


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    from hrsa_lightning.report.experiments import find_runs

    runs = find_runs(arguments.runs)
    what = f"{len(runs)} runs" if len(runs) > 1 else str(runs[0])
    print(f"reading {what} ...", flush=True)
    out = arguments.out or (runs[0] / "report" if len(runs) == 1 else Path("report"))

    from hrsa_lightning.report import write_report

    page = write_report(
        runs,
        out,
        displacement=arguments.displacement,
        seed_controls=arguments.seed_control,
        replicates=arguments.replicates,
        log_x=arguments.log_x,
    )
    print(f"{len(runs)} run{'s' * (len(runs) > 1)} -> {page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "report",
        description="Put one run, or many, on one page: report.html, report.md, CSV, figures.\n"
        "Runs of one recipe that differ in seeds are averaged.",
    )
    add: Any = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one above several")
    add("--out", type=Path, metavar="FOLDER",
        help="where to write (default: RUN/report, or ./report for several)")  # fmt: skip
    add("--log-x", action="store_true", help="steps on a logarithmic axis")
    add("--replicates", action="store_true",
        help="all RUNs are seeds of one experiment, whatever their recipes")  # fmt: skip
    add("--seed-control", action="append", default=[], metavar="A_vs_B",
        help="a comparison of two seeds (default: arms with one backbone)")  # fmt: skip
    add("--displacement", action="append", default=[], metavar="ARM",
        help="an arm that was only moved (default: backbones in a folder 'controls')")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
