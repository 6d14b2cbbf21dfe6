"""What a recipe needs, before any weight is loaded: `python -m hrsa_lightning.plan recipe=NAME`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from hrsa_lightning.cli import answered
from hrsa_lightning.config import describe_recipes, load_config
from hrsa_lightning.errors import ConfigError

_EXAMPLES = """\
examples:
  recipe=qwen2.5-1.5b trainer.devices=8 --examples 1660000 --memory 80
  recipe=solo arms.model.backbone=Qwen/Qwen2.5-72B trainer.devices=8 trainer.num_nodes=64
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrsa_lightning.plan",
        usage="%(prog)s recipe=NAME [key=value ...] [options]",
        description="Print what a recipe needs: weights, memory by part, steps, tokens, disk.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="key=value", help="recipe=NAME and overrides, as for train")
    add("--examples", type=int, metavar="N", help="pairs, where the data is not on this machine")
    add("--text-tokens", type=float, metavar="N", help="mean tokens of a text, where known")
    add("--tflops", type=float, metavar="N", help="sustained by one GPU; gives times")
    add("--memory", type=float, metavar="GB", help="of one GPU; says what is left")
    add("--json", action="store_true", help="print all figures as JSON")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    chosen = [s.removeprefix("recipe=") for s in arguments.settings if s.startswith("recipe=")]
    if len(chosen) != 1:
        raise ConfigError(
            f"expected one recipe=NAME, got {len(chosen)}. Recipes: {', '.join(describe_recipes())}"
        )
    for name in ("examples", "text_tokens", "tflops", "memory"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a value above 0, got {value}")
    overrides = [text for text in arguments.settings if not text.startswith("recipe=")]
    config = load_config(chosen[0], overrides)
    from hrsa_lightning.plan.workload import workload_of

    workload = workload_of(config, arguments.examples, arguments.text_tokens)
    from hrsa_lightning.plan.estimate import estimate
    from hrsa_lightning.plan.report import plan_lines

    logging.getLogger("transformers").setLevel(logging.ERROR)
    memory = None if arguments.memory is None else arguments.memory * 1e9
    plan = estimate(config, workload, memory)
    if arguments.json:
        print(json.dumps(plan.to_json(), indent=1))
    else:
        print("\n".join(plan_lines(config, plan, arguments.tflops, arguments.memory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
