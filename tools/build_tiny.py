"""Build `hrsa_lightning/assets/tiny`: tokenizer, backbones, pairs, probes, card.

    python tools/build_tiny.py

Stages run in order and leave a stamp each in the work folder, so that a stopped build goes on
where it was; delete the folder to build anew. Needs the extra `build` and WordNet 3.0 (on Debian
and Ubuntu: `apt install wordnet-base`). Takes about an hour and a half on two cores.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tiny import stages

logger = logging.getLogger("build_tiny")
ROOT = Path(__file__).resolve().parents[1]
STAGES: dict[str, Callable[[stages.Folders], dict[str, object]]] = {
    "pairs": stages.build_pairs,
    "tokenizer": stages.build_tokenizer,
    "stream": stages.build_stream,
    "base": stages.build_base,
    "rlvr": stages.build_rlvr,
    "prorl": stages.build_prorl,
    "sft": stages.build_sft,
    "accuracy": stages.build_accuracy,
    "similarity": stages.build_similarity,
    "repeatability": stages.build_repeatability,
    "card": stages.build_card,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages that have no stamp yet, or one stage by name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny")
    parser.add_argument("--out", type=Path, default=ROOT / "hrsa_lightning" / "assets" / "tiny")
    parser.add_argument("--only", choices=STAGES, help="run this stage again, and no other")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    folders = stages.Folders(options.wordnet, options.work, options.out)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        stamp = options.work / f"{name}.json"
        if (options.only or name) != name or (options.only is None and stamp.exists()):
            continue
        logger.info("stage %s", name)
        record = stage(folders)
        stamp.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
