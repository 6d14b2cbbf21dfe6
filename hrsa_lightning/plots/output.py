"""Figures as files, and as SVG to put into a page."""

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from hrsa_lightning.io.files import replacing
from hrsa_lightning.plots.style import COLORS, FAINT, INK, MUTED

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
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
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
