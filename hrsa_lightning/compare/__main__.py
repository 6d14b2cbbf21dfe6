"""Compare models that are already there: `python -m hrsa_lightning.compare A B --texts FILE`."""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from hrsa_lightning.cli import answered, positive, program
from hrsa_lightning.compare.options import (
    EXTRAS,
    METRICS,
    ExtractionOptions,
    MetricOptions,
    name_models,
)
from hrsa_lightning.compare.texts import load_texts
from hrsa_lightning.errors import ConfigError, nearest

_HELP = """\
usage: {prog} MODEL MODEL [MODEL ...] --texts SOURCE [options]

Compare models layer by layer on the same texts; of each pair the one given first is the reference.
MODEL ([NAME=] in front names it): hub id[@revision], folder, embedded:tiny/base, LoRA adapter,
  RUN[:arm] or RUN/checkpoints/step_N[:arm]; without an arm, all of them

  --texts SOURCE       .jsonl, .parquet, .json, plain text (one text a line), or hub:NAME[:CONFIG]
  --column text   --split train   --label label     where the data has texts, split and labels
  --limit N            only the first N texts
  --level sentence     or token: one row per token, for models with one tokenizer
  --layers all         or last, or globs over module names: '**.layers.1?,output'
  --pooling mean       of layers and of plain models (first, last)   --exclude-first-token
  --max-length 128   --batch-size 32   --device auto   --dtype float32 (bfloat16, float16, auto)
  --attention auto     as trained or as the config says, else causal; or causal, bidirectional
  --base BACKBONE      of adapters, where their own config names another place
  --metrics all        some of cka,knn_overlap,procrustes,dimension_correlation,probe_transfer, and
                       cknna,predictivity, which all leaves out
  --k 10,50            numbers of neighbors              --by-label   values within each label, too
  --protocol held_out  of the alignment: fitted on one half, judged on the other; paper, in_sample
  --standardize        draw the map of CKA with every feature brought to unit variance
  --null 200           permutations of the rows for p-values; 0 for none
  --out comparison     folder of results.json, results.csv, report.md and pictures
  --keep-representations   leave them in --out for a later call
  --no-resume          run all models again, whatever an earlier call left in --out
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


class _Parser(argparse.ArgumentParser):
    """Says its help in the columns above: argparse's own needs two screens for as many options."""

    def format_help(self) -> str:
        return _HELP.replace("{prog}", self.prog)

    def format_usage(self) -> str:
        return self.format_help().splitlines(keepends=True)[0]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=program("compare"), allow_abbrev=False)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL")
    add("--texts", required=True)
    add("--column", default="text")
    add("--split")
    add("--label")
    add("--limit", type=positive)
    add("--level", choices=("sentence", "token"), default="sentence")
    add("--layers", type=_listed, default=("all",))
    add("--pooling", choices=("mean", "first", "last"), default="mean")
    add("--exclude-first-token", action="store_true")
    add("--max-length", type=positive, default=128)
    add("--batch-size", type=positive, default=32)
    add("--device", default="auto")
    add("--dtype", choices=("float32", "bfloat16", "float16", "auto"))
    add("--attention", choices=("auto", "causal", "bidirectional"), default="auto")
    add("--base")
    add("--metrics", type=_listed, default=("all",))
    add("--k", type=_numbers, default=(10, 50))
    add("--by-label", action="store_true")
    add("--protocol", choices=("held_out", "paper", "in_sample"), default="held_out")
    add("--null", type=int, default=200)
    add("--standardize", action="store_true")
    add("--out", type=Path, default=Path("comparison"))
    add("--keep-representations", action="store_true")
    add("--no-resume", action="store_true")
    return parser


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) or ("all",)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


_numbers.__name__ = "list of positive numbers"


def _run(arguments: argparse.Namespace) -> int:
    extraction = ExtractionOptions(
        arguments.level,
        arguments.layers,
        arguments.pooling,
        arguments.max_length,
        arguments.batch_size,
        arguments.exclude_first_token,
        arguments.attention,
        arguments.dtype,
    )
    metrics = MetricOptions(
        _metrics(arguments.metrics),
        arguments.protocol,
        arguments.k,
        arguments.by_label,
        arguments.null,
        arguments.standardize,
    )
    sources = name_models(arguments.models, arguments.base)
    texts = load_texts(
        arguments.texts,
        column=arguments.column,
        split=arguments.split,
        label=arguments.label,
        limit=arguments.limit,
    )
    from transformers.utils.logging import disable_progress_bar

    from hrsa_lightning.compare.comparison import compare_models
    from hrsa_lightning.compare.results import cautions, summary_lines, write_results

    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        results = compare_models(
            sources,
            texts,
            arguments.out,
            extraction=extraction,
            metrics=metrics,
            device=arguments.device,
            keep=arguments.keep_representations,
            resume=not arguments.no_resume,
        )
        write_results(results, arguments.out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise ConfigError(f"--out {arguments.out}: {error.strerror}") from error
    print("\n".join([*summary_lines(results), *cautions(results)]))
    print(f"\nreport: {arguments.out / 'report.md'}")
    return 0


def _metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    if names == ("all",):
        return METRICS
    known = (*METRICS, *EXTRAS)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--metrics {name}: expected some of {', '.join(known)}.{nearest(name, known)}"
            )
    return names


if __name__ == "__main__":
    sys.exit(main())
