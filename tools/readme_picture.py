"""Draw the README's picture from a finished quickstart run.

python tools/readme_picture.py [RUN_FOLDER]      default: the newest run in runs/quickstart
"""

import sys
from pathlib import Path

from hrsa_lightning.plots import curves_figure, save_figure
from hrsa_lightning.report.metric_info import HEADLINE
from hrsa_lightning.representations.history import read_history, split_tag

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "quickstart.png"


def main(argv: list[str]) -> int:
    """Keep the comparisons with the base and the headline metrics, and draw them."""
    newest = sorted(Path("runs/quickstart").glob("*/summary.json"))[-1:]
    run = Path(argv[0]) if argv else newest[0].parent
    history = read_history(run / "similarity.jsonl")
    for record in history:
        for part in ("values", "floors"):
            record[part] = {
                tag: value for tag, value in record.get(part, {}).items() if _is_shown(tag)
            }
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    save_figure(curves_figure(history), PICTURE)
    print(PICTURE)
    return 0


def _is_shown(tag: str) -> bool:
    _, metric, comparison, where = split_tag(tag)
    return metric in HEADLINE and comparison.endswith("_vs_base") and where == "output"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
