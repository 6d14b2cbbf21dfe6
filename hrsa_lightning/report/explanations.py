"""A sentence or two before each table or gallery: what it shows, and how to read it."""

__all__ = [
    "CONTROLS",
    "COST",
    "DERIVED",
    "DRIFT",
    "INTERVALS",
    "LAYERS",
    "MAPS",
    "ONE_RUN",
    "ROW_ENTROPY",
    "SCORES",
    "SINGULAR_VALUES",
    "VERDICTS",
]

VERDICTS = (
    "Before and after are the first and the last evaluation. Chance is what unrelated "
    "representations of this many samples and dimensions give. Controls show how far models end "
    "apart whose backbones are the same, or were only displaced: what does not differ from them is "
    "not about the backbones."
)
ONE_RUN = (
    "One run: there is no spread over seeds, so no statement beyond the seed control is possible, "
    "and none beyond this one draw of it."
)
INTERVALS = (
    "± is one standard deviation over seeds. Words rest on 95 % t intervals of differences within "
    "runs, not corrected for the number of rows: of 20 rows without any difference, one is "
    "expected to show one."
)
CONTROLS = (
    "The same numbers for pairs that are no finding: two seeds of one backbone, or a backbone that "
    "was only displaced."
)
DERIVED = (
    "Gain is similarity after minus before. Half-life is the step at which half of the change was "
    "reached, between the two evaluations named. Recovered is the share of the first distance from "
    "identity that training took back (negative: moved further apart). Gap closed is the share of "
    "the first gap to the seed control that is gone, because the pair moved together or because "
    "two seeds moved apart. Changes and gaps below {least} give no ratio (–). docs/method.md has "
    "the formulas."
)
DRIFT = "How alike each arm still is to itself before training; no arm is compared with another."
LAYERS = (
    "Each row is a layer, the first at the bottom; each column is an evaluation. Bright is alike. "
    "All maps of one metric share their colors."
)
MAPS = (
    "Rows are the layers of the first model, columns those of the second, at the first, middle and "
    "last step that was kept. On the diagonal each layer meets its counterpart; bright blocks are "
    "layers that do the same. Shown are maps of one run, for an average would blur them."
)
SINGULAR_VALUES = (
    "How strongly the data ask for each direction of the rotation O*, of one run. Where the curve "
    "has fallen far, noise decides the direction. The panels have scales of their own."
)
ROW_ENTROPY = (
    "Each feature's row of O*, from the purest to the most mixed, of one run: 0 where it became "
    "one feature of the other model, 1 where it is spread over all. The panels have scales of "
    "their own."
)
SCORES = "Differences of the last scores. Equal scores of unlike representations are a null effect."
COST = "The share is of the time of the fit, from its start to its end."
