"""Draw the README's picture from a finished quickstart run.

python tools/readme_picture.py [RUN_FOLDER]      default: the newest run in runs/quickstart
"""

import sys
from pathlib import Path

from hrsa_lightning.plots import COLORS, Line, distance_lines, panels_figure, save_figure
from hrsa_lightning.similarity import read_history
from hrsa_lightning.similarity.measurement import Measurement

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "quickstart.png"
PANELS = {
    "dimension_correlation": "axes: 1 − dimension correlation",
    "cka": "global geometry: 1 − linear CKA",
    "knn_overlap_10": "neighbors: 1 − k-NN overlap",
}
# In the colors that the report gives these arms.
LINES = {
    "rlvr_vs_base": ("rlvr vs base", "-", COLORS[1]),
    "sft_vs_base": ("sft vs base", "-", COLORS[2]),
    "base_seed2_vs_base": ("seed control: base_seed2 vs base", "--", COLORS[6]),
    "base_vs_initial": ("training itself: base vs its own start", ":", COLORS[0]),
}


def main(argv: list[str]) -> int:
    """Draw how far from identical the pairs and the controls are, one panel a level."""
    newest = sorted(Path("runs/quickstart").glob("*/summary.json"))[-1:]
    run = Path(argv[0]) if argv else newest[0].parent
    history = [m for m in read_history(run / "similarity.jsonl") if m.layer == "output"]
    panels = [
        (title, distance_lines([curve(history, metric, name) for name in LINES]), ())
        for metric, title in PANELS.items()
    ]
    title = "How far apart embeddings of the same texts are, by optimizer step"
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    save_figure(panels_figure(panels, title=title, log_y=True), PICTURE)
    print(PICTURE)
    return 0


def curve(history: list[Measurement], metric: str, name: str) -> Line:
    """A comparison's values of one metric."""
    points = [m for m in history if (m.metric, m.comparison) == (metric, name)]
    words, dash, color = LINES[name]
    chance = [m.chance for m in points if m.chance is not None]
    levels = {"chance": chance} if len(chance) == len(points) else {}
    steps, values = [m.step for m in points], [m.value for m in points]
    return Line(words, steps, values, color=color, dash=dash, **levels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
