"""Turn a finished run into a model folder: `python -m hrsa_lightning.export RUN`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hrsa_lightning.cli import CommandParser, answered
from hrsa_lightning.errors import ConfigError

_EXAMPLES = """\
examples:
  runs/contrastive/LAST/checkpoints/step_000300 --adapter-only
  runs/contrastive/ONE --arm sft --interpolate runs/contrastive/OTHER:base --weight 0.3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "export",
        usage="%(prog)s RUN [--arm NAME] [--out FOLDER] [options]",
        description="Turn a finished run into a folder that SentenceTransformer loads.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run, or of a checkpoint step_N in it")
    add("--arm", metavar="NAME", help="which arm; needed where there are several")
    add("--out", type=Path, metavar="FOLDER", help="a new folder (default: RUN/exported/ARM)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--adapter-only", action="store_true", help="LoRA weights, not merged")
    standard = "sentence-transformers' modules only, even if queries then differ"
    form.add_argument("--standard", action="store_true", help=standard)
    own = "a module of this package, exact for empty texts too"
    form.add_argument("--exact", action="store_true", help=own)
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of all weights")
    add("--interpolate", metavar="OTHER", help="mix with the weights of a RUN:ARM or a model")
    add("--weight", type=float, default=0.5, metavar="SHARE", help="of OTHER, 0 to 1 (0.5)")
    add("--method", choices=("slerp", "linear"), default="slerp", help="of the mixing")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from hrsa_lightning.runs.resolve import find_sources, find_trained

    source, arm = find_trained(arguments.run, arguments.arm)
    _check(arguments, lora=source.adapter is not None)
    other = None
    if arguments.interpolate is not None:
        found = find_sources(arguments.interpolate)
        same = [one for one in found if one.arm is not None and one.arm.name == arm.name]
        if len(found) > 1 and not same:
            names = ", ".join(one.spec for one in found)
            raise ConfigError(f"--interpolate: the run has {len(found)} arms; choose one: {names}")
        other = (same or found)[0]
    default = arm.run / "exported" / arm.label
    out = (arguments.out or default).expanduser().absolute()
    if out.exists():
        raise ConfigError(f"--out: {out} exists; name a new folder")
    if find_spec("sentence_transformers") is None:
        raise ConfigError(
            "export needs sentence-transformers: pip install 'sentence-transformers>=6,<7'"
        )
    from hrsa_lightning.export.folder import Form
    from hrsa_lightning.export.writer import Mixing, export

    mixing = Mixing(other, arguments.weight, arguments.method) if other is not None else None
    forms: dict[Form, bool] = {
        "adapter": arguments.adapter_only,
        "standard": arguments.standard,
        "module": arguments.exact,
    }
    form = next((name for name, chosen in forms.items() if chosen), None)
    for line in export(source, arm, out, form, arguments.dtype, mixing):
        print(line)
    return 0


def _check(arguments: argparse.Namespace, *, lora: bool) -> None:
    if arguments.adapter_only and not lora:
        raise ConfigError("--adapter-only: this run trained all weights; there is no adapter")
    if arguments.adapter_only and arguments.interpolate is not None:
        raise ConfigError("--adapter-only: interpolation gives whole weights, not an adapter")
    if not 0 <= arguments.weight <= 1:
        raise ConfigError(f"--weight: expected a share from 0 to 1, got {arguments.weight}")


if __name__ == "__main__":
    sys.exit(main())
