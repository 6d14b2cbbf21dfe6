"""What a recipe needs, before any weight is loaded: `python -m hrsa_lightning.plan recipe=NAME`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hrsa_lightning.cli import CommandParser, answered
from hrsa_lightning.config import Config, load_settings
from hrsa_lightning.errors import ConfigError

if TYPE_CHECKING:
    from hrsa_lightning.plan.estimate import Estimate

_EXAMPLES = """\
examples:
  recipe=qwen2.5-1.5b trainer.devices=8 --examples 1660000 --memory 80
  recipe=solo arms.model.backbone=Qwen/Qwen2.5-72B trainer.devices=8 trainer.num_nodes=64
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "plan",
        usage="%(prog)s recipe=NAME [key=value ...] [options]",
        description="Print what a recipe needs: weights, memory by purpose, steps, tokens.",
        epilog=_EXAMPLES,
    )
    add: Any = parser.add_argument
    add("settings", nargs="*", metavar="key=value", help="recipe=NAME and overrides, as for train")
    add("--examples", type=int, metavar="N", help="pairs, where the data is not on this machine")
    add("--text-tokens", type=float, metavar="N", help="mean tokens of a text, where known")
    add("--memory", type=float, metavar="GB", help="of one GPU or process; says what is left")
    add("--online", action="store_true", help="ask the hub for shapes that are not known here")
    add("--json", action="store_true", help="print all figures as JSON")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = load_settings(arguments.settings)
    for name in ("examples", "text_tokens", "memory"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a value above 0, got {value}")
    from hrsa_lightning.plan.estimate import estimate, workload_of

    logging.getLogger("transformers").setLevel(logging.ERROR)
    workload = workload_of(config, arguments.examples, arguments.text_tokens)
    memory = None if arguments.memory is None else arguments.memory * 1e9
    plan = estimate(config, workload, memory, arguments.online)
    if arguments.json:
        print(json.dumps(plan.to_json(), indent=1))
    else:
        print("\n".join(_lines(config, plan, arguments.memory)))
    return 0


def _lines(config: Config, plan: "Estimate", memory: float | None) -> list[str]:
    """An estimate in lines of at most 100 columns."""
    workload, monitoring = plan.workload, plan.monitoring
    processes = "1 process" if workload.processes == 1 else f"{workload.processes} processes"
    nodes = f" ({config.trainer.num_nodes} nodes)" if config.trainer.num_nodes > 1 else ""
    guess = " (trainer.devices=auto counts as 1)" if config.trainer.devices == "auto" else ""
    lines = [f"{config.name} on {processes}{nodes}{guess}: estimates, no weight is loaded", ""]
    for name, arm in plan.arms.items():
        share = arm.num_trained / arm.num_weights
        note = f", not here: as {plan.assumed[name]}" if name in plan.assumed else ""
        lines.append(
            f"  {name:<12} {config.arms[name].backbone}: {_short(arm.num_weights)} weights,"
            f" {_short(arm.num_trained)} trained ({share:.1%}){note}"
        )
    on_cpu = config.trainer.accelerator == "cpu"
    device = "process on CPUs" if on_cpu else "GPU"
    lines += ["", f"memory of one {device}, GB"]
    lines += [f"  {purpose:<18}{_gb(size):>9}" for purpose, size in plan.memory.items() if size]
    lines.append(f"  {'total':<18}{_gb(plan.total_memory):>9}")
    if config.activation_budget == "auto" and memory is None and not on_cpu:
        lines.append("  activation_budget=auto is planned as 0; --memory GB says what it keeps")
    if memory is not None:
        left = memory - plan.total_memory / 1e9
        fits = f"{left:.1f} GB are left" if left >= 0 else f"{-left:.1f} GB are missing"
        lines.append(f"  of {memory:g} GB {fits}")
    lines += [
        "",
        f"a step: {config.data.batch_size:,} queries, {workload.texts:,} texts,"
        f" {_short(workload.tokens)} tokens ({workload.tokens_are})",
    ]
    if workload.steps is None:
        lines.append("the run: steps unknown, since the data is not here; give --examples N")
    else:
        total = _short(workload.steps * workload.tokens)
        lines.append(f"the run: {workload.steps:,} steps, {total} tokens")
    if monitoring.probes:
        host = _gb(monitoring.host_bytes).strip()
        lines.append(
            f"monitors: {monitoring.probes} probes, {monitoring.layers} layers,"
            f" {host} GB of representations in the computer's memory"
        )
    return lines


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def _short(number: float) -> str:
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:.0f}"


if __name__ == "__main__":
    sys.exit(main())
