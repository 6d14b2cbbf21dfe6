"""Find hard negatives: `python -m hrsa_lightning.mine PAIRS ... --model MODEL --out OUT.jsonl`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hrsa_lightning.cli import CommandParser, add_encoder_options, answered, options_of
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.resources import resolve_path

_EPILOG = """\
PAIRS    .jsonl, .parquet, saved data sets or hub:NAME, as for training
MODEL    what SentenceTransformer loads (folder or hub id), a run as RUN:ARM, or a backbone
--keep   filters by --margin (0.7): the authors' README keeps what is above, their code the rest"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "mine",
        usage="%(prog)s PAIRS ... --model MODEL --out OUT.jsonl|FOLDER [options]",
        description="Give contrastive pairs hard negatives. If stopped, it goes on when repeated.",
        epilog=_EPILOG,
    )
    add: Any = parser.add_argument
    add("pairs", nargs="+", metavar="PAIRS", help=argparse.SUPPRESS)
    add("--model", required=True, help=argparse.SUPPRESS)
    add("--out", required=True, help=argparse.SUPPRESS)
    add("--num-negatives", type=int, default=3, metavar="N", help="negatives of a pair (3)")
    add("--rank-range", type=int, nargs=2, default=(0, 100), metavar="N", help="ranks (0 100)")
    add("--max-relative", type=float, default=0.95, metavar="X",
        help="most similarity, as a share of the positive's (0.95)")  # fmt: skip
    add("--corpus", default="file", metavar="file|shared", help="passages that are searched (file)")
    add("--keep-existing", action="store_true", help="keep the negatives that are there")
    add("--min-negatives", type=int, default=1, metavar="N", help="drop pairs with fewer (1)")
    add("--keep", metavar="below|above", help="keep pairs on this side of the margin only")
    add("--margin", type=float, metavar="X", help=argparse.SUPPRESS)
    add("--max-examples", type=int, metavar="N", help="of each file, those with large margins")
    add("--faiss", action="store_true", help="search with faiss instead of torch")
    add_encoder_options(parser)
    add("--work-dir", metavar="FOLDER", help="keep embeddings here (OUT.work, removed at the end)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from hrsa_lightning.mine import MiningOptions
    from hrsa_lightning.mine.miner import Mining
    from hrsa_lightning.runs.encoder import EncoderOptions, find_model

    if arguments.margin is not None and arguments.keep is None:
        raise ConfigError("--margin needs --keep below or --keep above, see --help")
    margin = 0.7 if arguments.margin is None else arguments.margin
    ranks = tuple(arguments.rank_range)
    options = options_of(MiningOptions, arguments, rank_range=ranks, margin=margin)
    reference = find_model(arguments.model)
    pairs = [resolve_path(path) for path in arguments.pairs]
    mining = Mining(pairs, arguments.out, options, work=arguments.work_dir, progress=True)
    encoder = reference.load(options_of(EncoderOptions, arguments))
    _print(mining.run(encoder), arguments.out)
    return 0


def _print(summary: dict[str, Any], out: str) -> None:
    print(f"{summary['kept']:,} of {summary['pairs']:,} pairs -> {out}")
    for reason, count in summary["dropped"].items():
        if count:
            print(f"  dropped    {count:>10,}  {reason}")
    fewer = summary["kept_with_fewer_negatives_than_asked"]
    if fewer:
        print(f"  kept       {fewer:>10,}  with fewer negatives than asked for")
    print(f"  negatives  {summary['negatives_mined']:>10,}  mined")
    if summary["negatives_kept"]:
        print(f"  negatives  {summary['negatives_kept']:>10,}  kept from the input")
    print(
        f"  similarity {summary['similarity_of_positives']:>10.4f}  of positives,"
        f" {summary['similarity_of_hardest_negatives']:.4f} of the hardest negatives"
    )


if __name__ == "__main__":
    sys.exit(main())
