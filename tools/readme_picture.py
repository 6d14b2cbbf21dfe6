"""Draw the README's picture from a finished quickstart run.

python tools/readme_picture.py [RUN_FOLDER]      default: the newest run in runs/quickstart
"""

import sys
from pathlib import Path

from hrsa_lightning.plots import curves_figure, save_figure
from hrsa_lightning.similarity import read_history
from hrsa_lightning.similarity.metric_info import HEADLINE

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "quickstart.png"


def main(argv: list[str]) -> int:
    """Keep the comparisons with the base and the headline metrics, and draw them."""
    newest = sorted(Path("runs/quickstart").glob("*/summary.json"))[-1:]
    run = Path(argv[0]) if argv else newest[0].parent
    history = read_history(run / "similarity.jsonl")
    shown = [m for m in history if m.metric in HEADLINE and m.reference == "base"]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    save_figure(curves_figure(shown), PICTURE)
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
