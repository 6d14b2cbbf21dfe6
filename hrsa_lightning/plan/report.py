"""An estimate in words that fit a screen."""

from hrsa_lightning.config.schema import Config
from hrsa_lightning.plan.estimate import Estimate

__all__ = ["plan_lines"]


def plan_lines(
    config: Config, plan: Estimate, tflops: float | None = None, memory: float | None = None
) -> list[str]:
    """Lines of at most 100 columns.

    Args:
        config: The recipe.
        plan: Its estimate.
        tflops: Teraflops that one GPU sustains; without it no time is given.
        memory: GB of one GPU, to say what is left.
    """
    work = plan.workload
    lines = [f"{config.name} on {_processes(config, plan)}: estimates, no weight is loaded", ""]
    for name, arm in plan.arms.items():
        share = arm.num_trained / arm.num_weights
        lines.append(
            f"  {name:<12} {config.arms[name].backbone}: {_short(arm.num_weights)} weights,"
            f" {_short(arm.num_trained)} trained ({share:.1%})"
        )
    lines += ["", "memory of one GPU, GB"]
    lines += [f"  {part:<18}{_gb(size):>9}" for part, size in plan.memory.items() if size]
    lines.append(f"  {'together':<18}{_gb(plan.total_memory):>9}")
    lines += [f"  {text}" for text in _memory_notes(plan, memory)]
    lines.append(f"a node's own memory while it loads, GB: {_gb(plan.loading)}")
    lines += ["", "work"]
    lines.append(
        f"  a step: {config.data.batch_size:,} queries, {work.texts:,} texts,"
        f" {_short(work.tokens)} tokens ({work.tokens_are})"
    )
    lines.append(
        f"  a step: {_short(plan.flops)}FLOP, {plan.forwards:.2f} times that of a forward pass"
    )
    lines += [f"  {text}" for text in _run_notes(plan, tflops)]
    lines += ["", "monitors"]
    lines += [f"  {text}" for text in _monitor_notes(config, plan)]
    lines += ["", "disk, GB"]
    lines += [f"  {part:<26}{_gb(size):>9}" for part, size in plan.disk.items() if size]
    return lines


def _processes(config: Config, plan: Estimate) -> str:
    nodes = config.trainer.num_nodes
    words = "1 process" if plan.workload.gpus == 1 else f"{plan.workload.gpus} processes"
    if nodes > 1:
        words += f" ({nodes} nodes)"
    if config.trainer.devices == "auto":
        words += " (trainer.devices=auto counts as 1 a node here)"
    return words


def _memory_notes(plan: Estimate, memory: float | None) -> list[str]:
    notes = []
    if plan.budget == "auto" and memory is None:
        notes.append("activation_budget=auto is taken for 0 here; --memory GB says what it keeps")
    if memory is not None:
        left = memory - plan.total_memory / 1e9
        fits = f"{left:.1f} GB are left" if left >= 0 else f"{-left:.1f} GB are missing"
        notes.append(f"of {memory:g} GB {fits}")
    return notes


def _run_notes(plan: Estimate, tflops: float | None) -> list[str]:
    work = plan.workload
    if work.steps is None:
        notes = ["steps: unknown, since the data is not here; give --examples N"]
    else:
        total = work.steps * work.tokens
        notes = [f"the run: {work.steps:,} steps, {_short(total)} tokens"]
    if tflops is not None:
        seconds = plan.flops / (tflops * 1e12 * work.gpus)
        line = f"at {tflops:g} TFLOP/s a GPU: {seconds:.3g} s a step"
        if work.steps is not None:
            line += f", {seconds * work.steps / 3600:,.1f} h for the run"
        notes.append(line)
    return notes


def _monitor_notes(config: Config, plan: Estimate) -> list[str]:
    watch = plan.monitoring
    if not watch.probes:
        return ["none"]
    notes = [
        f"{watch.probes} probes, {watch.places} places;"
        f" {_short(watch.flops_per_evaluation)}FLOP an evaluation",
        f"{plan.monitor_share:.2%} of the arithmetic of training",
    ]
    limits = [
        entry["max_overhead"] for entry in config.callbacks.values() if entry.get("max_overhead")
    ]
    if limits:
        notes[-1] += f"; held to {min(limits):.0%} of its time by max_overhead"
    if watch.host_bytes:
        notes.append(f"{_gb(watch.host_bytes).strip()} GB of the computer's memory for references")
    return notes


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def _short(number: float) -> str:
    for unit, name in ((1e15, " P"), (1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:.0f}"
