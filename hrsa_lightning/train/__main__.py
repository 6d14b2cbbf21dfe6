"""Train embedding models: `python -m hrsa_lightning.train recipe=NAME key=value …`."""

import argparse
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.cli import answered, listing, program
from hrsa_lightning.config import (
    describe_presets,
    describe_recipes,
    flat_settings,
    load_settings,
    to_yaml,
)
from hrsa_lightning.config.schema import Config, is_backbone
from hrsa_lightning.errors import ConfigError, HRSAError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from hrsa_lightning.data import PairSource
    from hrsa_lightning.modules import PairedContrastiveModule
    from hrsa_lightning.modules.ranks import RankGroup
    from hrsa_lightning.runs.directory import Run

_USED_KEYS = """\
keys used most (all of them: --print-config):
  trainer.max_steps=200  trainer.devices=2  trainer.precision=bf16-mixed
  data.batch_size=64  data.train=[a.jsonl,b.jsonl]  optimizer.lr=2e-4
  arms.base.backbone=PATH_OR_HUB_ID  arms.sft=null  model.lora=null  model.lora.r=8
  callbacks.similarity.every_n_train_steps=20  callbacks.retrieval=null
  seed=1  output_dir=runs  resume=false
"""

_WITHOUT_EFFECT = (
    "checkpoint.",
    "description",
    "output_dir",
    "resume",
    "trainer.enable_progress_bar",
)
"""Settings that no result depends on."""

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 for a mistake of the user)."""
    return answered(lambda: _run(_parser().parse_intermixed_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    config = load_settings(arguments.settings)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return 0
    return _train(config, _checked_pairs(config))


def _parser() -> argparse.ArgumentParser:
    recipes, presets = listing(describe_recipes()), listing(describe_presets())
    parser = argparse.ArgumentParser(
        prog=program("train"),
        usage="%(prog)s recipe=NAME [key=value ...] [--print-config]",
        description="Train embedding models side by side and watch how similar they are.",
        epilog=f"recipes (or the path of your own YAML file):\n{recipes}\n\n{_USED_KEYS}\n"
        f"presets of callbacks, as callbacks.NAME.preset=PRESET:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="recipe=NAME, overrides")
    parser.add_argument("--print-config", action="store_true", help="show the resolved recipe")
    return parser


def _checked_pairs(config: Config) -> "list[PairSource]":
    """The training pairs; wrong paths and malformed data are answered before torch is loaded."""
    from hrsa_lightning.data import check_pairs
    from hrsa_lightning.models.paths import check_available

    problems = []
    backbones = {f"arms.{name}.backbone": arm.backbone for name, arm in config.arms.items()}
    if config.loss.alignment and is_backbone(config.loss.alignment.reference):
        backbones["loss.alignment.reference"] = config.loss.alignment.reference
    for key, backbone in backbones.items():
        try:
            check_available(backbone)
        except HRSAError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return check_pairs(
        config.data.train,
        train_group_size=config.data.train_group_size,
        batch_size=config.data.batch_size,
        missing_negatives=config.data.missing_negatives,
        weights=config.data.source_weights(),
        limit=config.data.limit,
    )


def _train(config: Config, pairs: "list[PairSource]") -> int:
    if sys.stderr.isatty() and all(os.environ.get(key, "0") == "0" for key in _RANKS):
        print(f"recipe {config.name}: starting ...", file=sys.stderr)  # imports take seconds
    _quieten()
    from lightning.pytorch import seed_everything

    from hrsa_lightning.config import build
    from hrsa_lightning.modules.ranks import LOST, connect_ranks
    from hrsa_lightning.runs.directory import take_run

    seed_everything(config.seed, verbose=False)
    callbacks = build.build_callbacks(config)
    # This trainer answers wrong settings before other processes start, and knows how to start them.
    ranks = connect_ranks(build.build_trainer(config, Path(config.output_dir), callbacks))
    run = ranks.decide(lambda: take_run(config))
    try:
        code = _carry_out(config, pairs, callbacks, run, ranks)
    except HRSAError:
        if ranks.wait_for_rank_0(seconds=10):
            return 2  # all ranks make the same mistake, and rank 0 has named it
        raise
    except Exception:
        if not ranks.has_lost_one(seconds=2):
            raise
        print(LOST, file=sys.stderr)  # instead of what a collective says of a closed connection
        return 1
    ranks.end()
    return code


def _carry_out(
    config: Config,
    pairs: "list[PairSource]",
    callbacks: "list[Callback]",
    run: "Run",
    ranks: "RankGroup",
) -> int:
    """Train and summarize, from wherever the run is; returns the exit code."""
    from hrsa_lightning.config import build
    from hrsa_lightning.modules.checkpoints import step_of
    from hrsa_lightning.runs.directory import discard, record_environment

    if ranks.is_rank_0:
        print(f"recipe {config.name} -> {run.folder}")
        record_environment(run.folder)
    if not run.trained:
        trainer = build.build_trainer(config, run.folder, callbacks, step_of(run.checkpoint))
        started = time.perf_counter()
        try:
            _fit(config, pairs, trainer, run)
        except HRSAError:
            if ranks.is_rank_0 and trainer.global_step == 0:
                discard(run)
            raise
        except SystemExit as end:  # how Lightning ends a fit that the user interrupted
            return _stop(config, trainer, run, ranks, end)
        if ranks.is_rank_0:
            _summarize(config, pairs, run.folder, trainer, time.perf_counter() - started)
    if ranks.is_rank_0:
        _report(run.folder)
    return 0


def _fit(config: Config, pairs: "list[PairSource]", trainer: "Trainer", run: "Run") -> None:
    from hrsa_lightning.config import build
    from hrsa_lightning.data.pairs import EntryPairs

    arms = build.build_arms(config, trainer.strategy.root_device)
    module = build.build_module(config, arms)
    data = build.build_data(config, module.encoders(), pairs)
    if trainer.is_global_zero:
        _announce(config, module)
        _announce_tokenizers(module)
        for source in pairs:
            print(f"  {source.describe() if isinstance(source, EntryPairs) else source.name}")
        if run.checkpoint is not None:
            print(f"  going on from {run.checkpoint.name}")
    trainer.fit(module, data, ckpt_path=run.checkpoint)


def _stop(
    config: Config, trainer: "Trainer", run: "Run", ranks: "RankGroup", end: SystemExit
) -> int:
    """Say where a stopped run goes on; returns the exit code."""
    from hrsa_lightning.modules.checkpoints import newest_checkpoint, step_of
    from hrsa_lightning.modules.stopping import TIME_IS_UP, Stopped, requeue

    stop = end if isinstance(end, Stopped) else Stopped(signal.SIGINT)
    if ranks.is_rank_0:
        saved = step_of(newest_checkpoint(run.folder)) if config.resume else 0
        then = f"goes on from step {saved} in {run.folder}" if saved else "begins anew"
        why = "trainer.max_time is up: " if stop.signum == TIME_IS_UP else ""
        print(f"{why}stopped at step {trainer.global_step}; the same command {then}", flush=True)
        if stop.signum not in (TIME_IS_UP, signal.SIGINT, signal.SIGTERM):
            requeue()
    if isinstance(end, Stopped):
        ranks.end()
        ranks.wait_for_rank_0(seconds=60)
    assert isinstance(stop.code, int)
    return stop.code


def _quieten() -> None:
    """Leave the screen to what the user can act on."""
    # Lightning sets these levels when it is imported, and so it has to be imported before.
    import lightning.pytorch
    from transformers.utils.logging import disable_progress_bar

    for module in (lightning.pytorch, lightning.fabric):
        logging.getLogger(module.__name__).setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


def _announce(config: Config, module: "PairedContrastiveModule") -> None:
    for name, arm in module.arms.items():
        total = sum(p.numel() for p in arm.parameters())
        trained = sum(p.numel() for p in arm.parameters() if p.requires_grad)
        print(f"  {name:<12} {config.arms[name].backbone}  {total:,} weights, {trained:,} trained")


def _announce_tokenizers(module: "PairedContrastiveModule") -> None:
    """Say whether the arms read texts alike, and which of them begin a text with BOS."""
    texts = ["What is 2 + 2?", "Größe, 中文", "def f(x):\n\treturn x"]
    read: dict[tuple[int, ...], list[str]] = {}
    with_bos = []
    for name, arm in module.arms.items():
        encoder: Any = arm.tokenizer
        ids = encoder.encode(texts, 64).input_ids.tolist()
        read.setdefault(tuple(ids), []).append(name)
        with_bos += [name] * (ids[0] == encoder.tokenizer.bos_token_id)
    alike = (
        "all arms read texts alike"
        if len(read) == 1
        else "unlike, " + " / ".join(", ".join(names) for names in read.values())
    )
    every = len(with_bos) in (0, len(module.arms))
    bos = "with" if with_bos else "without"
    print(
        f"  tokenizers: {alike}, {bos} a BOS token" + ("" if every else f": {', '.join(with_bos)}")
    )


def _summarize(
    config: Config, pairs: "list[PairSource]", folder: Path, trainer: "Trainer", seconds: float
) -> None:
    from hrsa_lightning.models.backbone import has_dropout
    from hrsa_lightning.report import summary_lines
    from hrsa_lightning.runs.summary import find_controls, write_summary

    dropout = has_dropout(trainer.lightning_module)
    controls = find_controls(config, pairs, dropout=dropout, folder=folder)
    lines = summary_lines(folder, controls)
    print("\n".join(lines))
    _show_in_tensorboard(config, trainer, lines)
    write_summary(folder, steps=trainer.global_step, seconds=seconds, controls=controls)


def _report(folder: Path) -> None:
    """Write the report of a summarized run, then say where everything is."""
    from hrsa_lightning.io.files import read_json
    from hrsa_lightning.report import write_report
    from hrsa_lightning.runs.directory import SUMMARY, histories_of

    histories = histories_of(folder)
    report = write_report([folder], folder / "report") if histories else None
    summary = read_json(folder / SUMMARY)
    print(f"\n{summary['steps']} steps in {summary['seconds']:.0f} s; everything is in {folder}")
    for picture in (path.with_suffix(".png") for path in histories):
        if picture.is_file():
            print(f"curves:   {picture}")
    if report is not None:
        print(f"report:   {report}")
    print(f"look:     {_tensorboard()} --logdir {folder.parent}")


def _tensorboard() -> str:
    """What starts TensorBoard here: its path where the environment is not activated."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which("tensorboard") or not beside.exists():
        return "tensorboard"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def _show_in_tensorboard(config: Config, trainer: "Trainer", lines: Sequence[str]) -> None:
    """Add the summary as a card of text, and the run as a row of the HParams page."""
    from hrsa_lightning.callbacks import Monitor
    from hrsa_lightning.callbacks.logging import log_settings, log_text
    from hrsa_lightning.callbacks.tensorboard import CHANCE, cards_of
    from hrsa_lightning.similarity.metric_info import headline

    log_text(trainer, "summary", "\n".join(lines), trainer.global_step)
    settings = {
        key: value
        for key, value in flat_settings(config).items()
        if not key.startswith(_WITHOUT_EFFECT)
    }
    monitors = [one for one in trainer.callbacks if isinstance(one, Monitor)]  # type: ignore[attr-defined]
    shown = [
        card
        for monitor in monitors
        for card in cards_of(
            monitor.name, headline(monitor.latest), named=monitor.names_comparisons
        )
        if card.run != CHANCE
    ]
    log_settings(trainer, settings, shown)


if __name__ == "__main__":
    sys.exit(main())
