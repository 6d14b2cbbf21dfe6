"""Figures as files, and as SVG to put into a page."""

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrsa_lightning.io.files import replacing
from hrsa_lightning.plots.style import COLORS, FAINT, INK, MUTED, literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 150


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure in one move; the suffix says how.

    Args:
        figure: What to write.
        path: Ending in `.png`, `.svg` or `.pdf`. Text in SVG stays text, and the same figure gives
            the same file.

    Raises:
        ValueError: For another suffix.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"path: expected a name ending in .png, .svg or .pdf, got {path.name!r}")
    with replacing(path) as partial:
        if kind == "svg":
            partial.write_text(_svg(figure, path.stem), encoding="utf-8")
        else:
            figure.savefig(partial, format=kind, dpi=PNG_DPI)


class Sheet:
    """Figures side by side as one PNG and one SVG file, each of them built once.

    A legend comes before the figures.

    Args:
        width: Inches.
        height: Inches.
        title: Above the figures.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        from matplotlib.figure import Figure

        self._frame = Figure(figsize=(width, height), dpi=PNG_DPI)
        self._frame.suptitle(literal(title), fontsize=11, color=INK, y=1 - 0.1 / height, va="top")
        self._svgs: list[str] = []
        self._pixels: Any = None

    def add_legend(self, entries: Sequence[tuple[str, str, str]], columns: int) -> None:
        """Name lines below the figures: label, color and dash of each."""
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=color, ls=dash, lw=1.6) for _, color, dash in entries]
        labels = [literal(label) for label, _, _ in entries]
        options: dict[str, Any] = {"ncols": columns, "fontsize": 8, "frameon": False}
        self._frame.legend(handles, labels, loc="lower center", **options)

    def add(self, svg: str, figure: "Figure", left: float, top: float) -> None:
        """Place a figure and its `bare_svg`, so many inches from the corner of the sheet."""
        head = re.match(r"<svg[^>]*>", svg)
        assert head is not None
        # Within another, a length is in its units, and these are points.
        opening = head[0].replace("<svg", f'<svg x="{72 * left:g}" y="{72 * top:g}"', 1)
        self._svgs.append(opening.replace('pt"', '"') + _without_ids(svg[head.end() :]))
        if self._pixels is None:
            self._pixels = pixels_of(self._frame)
        pixels, row, column = pixels_of(figure), round(top * PNG_DPI), round(left * PNG_DPI)
        place = self._pixels[row : row + len(pixels), column : column + pixels.shape[1]]
        place[:] = pixels[: len(place), : place.shape[1]]

    def save(self, path: Path) -> None:
        """Write both files; `path` has no suffix."""
        from matplotlib.image import imsave

        text = _svg(self._frame, path.name)
        end = text.rindex("</svg>")
        with replacing(path.with_name(f"{path.name}.svg")) as partial:
            partial.write_text(text[:end] + "".join(self._svgs) + text[end:], encoding="utf-8")
        with replacing(path.with_name(f"{path.name}.png")) as partial:
            imsave(partial, self._pixels, format="png", dpi=PNG_DPI)


def pixels_of(figure: "Figure") -> Any:
    """A figure as it is seen, (height, width, 3), bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # found once: it holds where the figure is saved as well
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def inline_svg(figure: "Figure", name: str, title: str) -> str:
    """An `<svg>` element for an HTML page, without fixed size and without background.

    Its colors are CSS variables, so that one picture serves light and dark pages: `--ink`,
    `--muted`, `--faint`, and `--c0`, `--c1`, … for the palette, each with the printed color as
    its fallback.

    Args:
        figure: What to draw.
        name: Makes the ids within the page unique.
        title: Read aloud by screen readers and shown as a tooltip.

    Returns:
        Text of the element.
    """
    return themed_svg(bare_svg(figure, name), title)


def bare_svg(figure: "Figure", name: str) -> str:
    """A figure as an `<svg>` element without background; `name` makes its ids unique."""
    text = _svg(figure, name, transparent=True)
    return text[text.index("<svg") :]


def themed_svg(text: str, title: str) -> str:
    """What `inline_svg` does to the text that `bare_svg` gives."""
    text = _without_ids(text)
    text = re.sub(r' d="[^"]*"', lambda match: _short_path(match[0]), text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans, sans-serif)", text)
    text = re.sub("#[0-9a-f]{6}", lambda match: _variable(match[0]), text)
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    words = escape(title)
    opening = f'<svg {box[0]} role="img" aria-label="{words}"><title>{words}</title>'
    return opening + re.sub(r"\n\s*", "\n", text[head.end() :]).strip()


def _without_ids(text: str) -> str:
    """A figure without what would stand twice where there are several."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", text)


def _svg(figure: "Figure", salt: str, *, transparent: bool = False) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # The only way to say these two; they are put back at the end of the block.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    return buffer.getvalue()


def _short_path(path: str) -> str:
    return re.sub(r"(\.\d)\d+", r"\1", path.replace("\n", " "))


def _variable(color: str) -> str:
    names = {INK: "ink", MUTED: "muted", FAINT: "faint"}
    names |= {each: f"c{index}" for index, each in enumerate(COLORS)}
    name = names.get(color.upper())
    return f"var(--{name}, {color})" if name else color
