"""Score embedding models: `python -m hrsa_lightning.evaluate RUN_OR_MODEL ... [--tasks ...]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrsa_lightning.cli import CommandParser, add_encoder_options, answered, options_of
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.files import write_json, write_text

_EPILOG = """\
RUN_OR_MODEL  a run's folder (all its arms) or RUN:ARM; an exported folder or hub id; a backbone.
              Runs that differ in their seeds only are seeds of the same arms.
TASK          embedded (the package's held-out pairs; no network), or names of mteb's tasks and
              benchmarks, such as "MTEB(Code, v1)", "BRIGHT(short)", and "paper" for the paper's

Differences are tested by sign flips over tasks; of a single task over its queries, of one of mteb's
over its subsets. Arms with the baseline's backbone and another seed show the null effect. Nothing
is computed twice."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "evaluate",
        usage="%(prog)s RUN_OR_MODEL ... [--tasks TASK ...] [options]",
        epilog=_EPILOG,
    )
    add: Any = parser.add_argument
    add("models", nargs="+", metavar="RUN_OR_MODEL", help=argparse.SUPPRESS)
    add("--tasks", nargs="+", metavar="TASK", help="what to score on (embedded)")
    add(
        "--instructions",
        metavar="FILE",
        help='of mteb\'s tasks: {"TASK": "text", "default": "text"}',
    )
    add("--pairs", nargs="+", default=[], metavar="FILE", help="your own held-out pairs as tasks")
    add("--baseline", metavar="ARM", help="arm that the others are compared with (the first)")
    add(
        "--out", default="runs/evaluation", metavar="FOLDER", help="results and cache (%(default)s)"
    )
    add_encoder_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from hrsa_lightning.evaluate import tables
    from hrsa_lightning.evaluate.scoring import EMBEDDED_TASK, evaluate_models, read_tasks
    from hrsa_lightning.runs.encoder import EncoderOptions, find_models

    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; expected a folder")
    arms = tables.group_models([found for text in arguments.models for found in find_models(text)])
    baseline = tables.find_arm(arguments.baseline, arms) if arguments.baseline else arms[0]
    names = arguments.tasks or ([] if arguments.pairs else [EMBEDDED_TASK])
    tasks = read_tasks(names, arguments.pairs, arguments.instructions)
    models = [model for arm in arms for model in arm.models]
    options = options_of(EncoderOptions, arguments)
    results = evaluate_models(models, tasks, out / "cache", options, True)

    differences = tables.all_differences(arms, baseline, results)
    parts = [
        tables.score_lines(arms, results),
        tables.metric_lines(arms, results),
        tables.difference_lines(differences),
    ]
    text = "\n\n".join("\n".join(lines) for lines in parts if lines)
    write_text(out / "results.md", f"{text}\n")
    write_json(out / "results.json", tables.as_json(arms, results, differences))
    print(f"{text}\n\neverything is in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
