"""Compare models that are already there: `python -m hrsa_lightning.compare A B --texts FILE`."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hrsa_lightning.cli import answered, options_of, positive, program
from hrsa_lightning.compare.options import (
    ExtractionOptions,
    MetricOptions,
    name_models,
    read_model_pairs,
    read_text_entries,
)
from hrsa_lightning.errors import BackboneError, ConfigError, nearest
from hrsa_lightning.io.files import explained
from hrsa_lightning.io.sources import Texts
from hrsa_lightning.runs.resolve import Source
from hrsa_lightning.similarity.metric_info import EXTRAS, METRICS

_HELP = """\
usage: {prog} MODEL MODEL [MODEL ...] --texts SOURCE ... [options]

Compare models layer by layer on the same texts; of each pair the one given first is the reference.
MODEL ([NAME=] in front names it): hub id[@revision], folder, embedded:tiny/base, LoRA adapter,
  RUN[:arm] or RUN/checkpoints/step_N[:arm]; without an arm, all of them

  --pairs paper        in place of MODELs: the paper's pairs (paper:NAME is one), tiny, FILE.yaml
  --texts SOURCE       .jsonl, .parquet, .json, .csv, plain text (one text a line), preset:NAME or
                       hub:NAME[:CONFIG][@SPLIT[:N]]; several as NAME=SOURCE, or a FILE.yaml of them
  --column text   --split train   --label label     in the data; or --column '{question} {solution}'
  --limit N            only the first N texts   --max-tokens N   most rows at level token, in all
  --level sentence     or token: one row per token, for models with one tokenizer
  --layers all         or last, or globs over module names: '**.layers.1?,output'
  --pooling mean       of layers and of plain models (first, last)   --exclude-first-token
  --max-length 128   --batch-size 32   --device auto   --dtype float32 (bfloat16, float16, auto)
  --attention auto     as trained or as the config says, else causal; or causal, bidirectional
  --base BACKBONE      of adapters, where their own config names another place
  --metrics all        some of {metrics}, and
                       {extras}, which all leaves out
  --k 10,50            numbers of neighbors              --by-label   values within each label, too
  --protocol held_out  of the alignment: fitted on one half, judged on the other; paper, in_sample
  --null 200           permutations for p-values   --standardize   features of the map of CKA
  --out comparison     folder of results.json, results.csv, report.md and pictures
  --keep-representations   leave them in --out   --no-resume   run all models again
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


class _Parser(argparse.ArgumentParser):
    """Says its help in the columns above: argparse's own needs two screens for as many options."""

    def format_help(self) -> str:
        names = {"prog": self.prog, "metrics": ",".join(METRICS), "extras": ",".join(EXTRAS)}
        return re.sub(r"\{(prog|metrics|extras)\}", lambda found: names[found[1]], _HELP)

    def format_usage(self) -> str:
        return self.format_help().splitlines(keepends=True)[0]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=program("compare"), allow_abbrev=False)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL")
    add("--pairs")
    add("--texts", required=True, nargs="+", action="extend")
    add("--column")
    add("--split")
    add("--label")
    add("--limit", type=positive)
    add("--level", choices=("sentence", "token"), default="sentence")
    add("--max-tokens", type=positive)
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
    extraction = options_of(ExtractionOptions, arguments)
    metrics = options_of(MetricOptions, arguments, metrics=_metrics(arguments.metrics))
    jobs = _jobs(arguments, extraction)
    from transformers.utils.logging import disable_progress_bar

    from hrsa_lightning.compare.comparison import compare_models
    from hrsa_lightning.compare.results import (
        cautions,
        summary_lines,
        write_overview,
        write_results,
    )

    disable_progress_bar()  # type: ignore[no-untyped-call]
    found = []
    for job in jobs:
        with explained(f"--out {job.out}"):
            results = compare_models(
                job.sources,
                job.texts,
                job.out,
                extraction=job.extraction,
                metrics=metrics,
                device=arguments.device,
                keep=arguments.keep_representations,
                resume=not arguments.no_resume,
            )
            write_results(results, job.out)
        if len(jobs) > 1:
            title = " on ".join(part for part in (job.pair, job.name) if part)
            print(f"{title}:", flush=True)
        print("\n".join([*summary_lines(results), *cautions(results)]), end="\n\n", flush=True)
        folder = job.out.relative_to(arguments.out)
        found.append((job.pair, job.kind, job.name, folder, results))
    if len(jobs) > 1:
        write_overview(found, arguments.out)
    print(f"report: {arguments.out / 'report.md'}")
    return 0


class _Job(NamedTuple):
    """One comparison: models on one set of texts."""

    pair: str
    kind: str
    name: str
    sources: dict[str, Source]
    texts: Texts
    extraction: ExtractionOptions
    out: Path


def _jobs(arguments: argparse.Namespace, extraction: ExtractionOptions) -> list[_Job]:
    """All comparisons of a call, checked as far as can be without loading a model."""
    if bool(arguments.models) == bool(arguments.pairs):
        raise ConfigError("expected models, or --pairs")
    groups = {"": ("", name_models(arguments.models, arguments.base))} if arguments.models else {}
    pairs = read_model_pairs(arguments.pairs) if arguments.pairs else {}
    for name, pair in pairs.items():
        try:
            groups[name] = pair.kind, name_models([pair.base, pair.tuned], arguments.base)
        except BackboneError as error:
            if len(pairs) == 1:
                raise
            print(f"{name} is left out: {error}", flush=True)
    entries = read_text_entries(
        arguments.texts,
        text=arguments.column,
        split=arguments.split,
        label=arguments.label,
        limit=arguments.limit,
        level="token" if arguments.level == "token" else None,
        max_tokens=arguments.max_tokens,
    )
    texts = {name: entry.read() for name, entry in entries.items()}
    return [
        _Job(
            pair,
            kind,
            name,
            sources,
            texts[name],
            extraction.of(entry),
            arguments.out.joinpath(*filter(None, (pair, name if len(entries) > 1 else ""))),
        )
        for pair, (kind, sources) in groups.items()
        for name, entry in entries.items()
    ]


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
