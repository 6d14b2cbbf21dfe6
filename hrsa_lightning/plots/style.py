"""One style for all pictures."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", "-.", ":")
INK = "#333333"
FAINT = "#D9D9D9"
MUTED = "#777777"
PANEL = (3.4, 2.3)
"""Width and height of one panel in inches."""
_FAR = 2.0  # a level this many spans of the curves away would flatten them
SAME_LEVEL = 5e-3  # levels nearer than this are one line
CHANCE_DASH = (0, (4, 3))
_ROOM = 0.08


def plain(values: Any) -> Any:
    """Nested lists of what may be a tensor (of any device, with or without graph) or an array."""
    for method in ("detach", "cpu", "tolist"):
        values = getattr(values, method)() if hasattr(values, method) else values
    return values


def literal(text: str) -> str:
    """A text that matplotlib shows as it is: a pair of `$` begins no formula."""
    return text.replace("$", r"\$")


def draw_title(ax: "Axes", title: str) -> None:
    """The title of a panel.

    Its height is said: matplotlib would look for it anew among all ticks in every drawing, which
    takes a quarter of the time.
    """
    ax.set_title(literal(title), fontsize=9, color=INK, y=1.0)


def style_axes(ax: "Axes", title: str) -> None:
    """Title, grid and spines of a panel."""
    draw_title(ax, title)
    ax.tick_params(labelsize=8, colors=INK)
    ax.grid(color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def is_within_reach(ax: "Axes", level: float) -> bool:
    """Whether a panel that shows a level as well as its curves leaves these readable."""
    place, low, high = _scale_of(ax)
    if not (math.isfinite(level) and math.isfinite(low) and math.isfinite(high)):
        return False
    least = 1.0 if ax.get_yscale() == "log" else 1e-3  # a decade, or next to nothing
    reach = _FAR * max(high - low, least)
    return low - reach <= place(level) <= high + reach


def _scale_of(ax: "Axes") -> tuple[Callable[[float], float], float, float]:
    """From values to places on the ordinate of a panel, and where its curves begin and end."""
    box = ax.dataLim
    if ax.get_yscale() != "log":
        return float, box.y0, box.y1
    if not 0 < box.y1 < math.inf:
        return math.log10, math.nan, math.nan
    return math.log10, math.log10(min(box.minposy, box.y1)), math.log10(box.y1)


def draw_chance(
    ax: "Axes", chance: Sequence[float], name: str = "chance", *, far: bool = True
) -> None:
    """A dashed line where it leaves the curves readable, else a note of where it would be.

    Args:
        ax: The panel, with its curves, linear or logarithmic.
        chance: Levels.
        name: What they are.
        far: Make the note. Without it, the name stands on the left, away from another level's.
    """
    place, low, high = _scale_of(ax)
    is_log = place is not float
    distinct: list[float] = []
    for level in chance:
        is_level = math.isfinite(level) and (level > 0 or not is_log)
        if is_level and all(abs(level - other) >= SAME_LEVEL for other in distinct):
            distinct.append(level)
    if not distinct or not (math.isfinite(low) and math.isfinite(high)):
        return
    near = [level for level in distinct if is_within_reach(ax, level)]
    if not near and not far:
        return
    for level in near:
        ax.axhline(level, ls=CHANCE_DASH, lw=1.1, color=MUTED, zorder=0)
    if near:
        text, at, units = name, (1.0 if far else 0.0, max(near)), ("axes fraction", "data")
        offset = (-3 if far else 3, 2)
    else:
        side, edge = ("below", 0.0) if place(distinct[0]) < low else ("above", 1.0)
        text, at = f"{name} {distinct[0]:.2f}, far {side}", (1.0, edge)
        offset, units = (-3, 3 if side == "below" else -10), ("axes fraction", "axes fraction")
        bottom, top = map(place, ax.get_ylim())
        room = _ROOM * (top - bottom)  # so that no curve runs through the note
        bottom, top = bottom - room * (side == "below"), top + room * (side == "above")
        ax.set_ylim(*((10**bottom, 10**top) if is_log else (bottom, top)))
    ax.annotate(
        text,
        at,
        xycoords=units,
        xytext=offset,
        textcoords="offset points",
        ha="right" if far else "left",
        fontsize=7,
        color=MUTED,
        annotation_clip=True,  # a note has fixed the limits; what is beyond them is not named
    )
