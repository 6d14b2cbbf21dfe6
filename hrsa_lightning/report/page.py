"""A report as blocks, and the blocks as one HTML file or as Markdown with figures beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hrsa_lightning.cli import markdown_table, markdown_text
from hrsa_lightning.plots import COLORS, INK, MUTED, inline_svg, save_figure
from hrsa_lightning.plots.style import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Cell",
    "Gallery",
    "Heading",
    "Panel",
    "Swatch",
    "Table",
    "Text",
    "to_html",
    "to_markdown",
    "write_figures",
]

_MARGINS = (0.165, 0.175, 0.81, 0.72)
_DASHES = {"-": "none", "--": "5 3", "-.": "6 3 1.5 3", ":": "1.5 2.5"}
_COLUMNS = 3
"""Panels that stand side by side in a file of figures."""


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, with the value behind it."""

    text: str
    value: float


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a section."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; a note is set apart."""

    kind: ClassVar[str] = "text"
    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]

    @property
    def numeric(self) -> set[int]:
        """Columns that hold numbers."""
        return {i for row in self.rows for i, cell in enumerate(row) if isinstance(cell, Cell)}


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        title: What it shows; also its description for those who do not see it.
        draw: Draws it into axes.
        size: Width and height in inches.
    """

    title: str
    draw: Callable[["Axes"], None]
    size: tuple[float, float]


@dataclass(frozen=True)
class Swatch:
    """An entry of a legend: a label, and the color and dash of its line."""

    label: str
    color: str
    dash: str

    @property
    def css(self) -> str:
        """Style of the line, in the page's colors for light and dark."""
        names = {color: f"c{index}" for index, color in enumerate(COLORS)} | {MUTED: "muted"}
        color = f"var(--{names[self.color]})" if self.color in names else self.color
        return f"stroke:{color};stroke-width:2.4;stroke-dasharray:{_DASHES[self.dash]}"


@dataclass(frozen=True)
class Gallery:
    """Figures of one kind; one file holds them all, the page shows them one by one.

    Attributes:
        name: Of the file, unique within the report.
        title: What they show.
        panels: The figures.
        legend: What the lines are, the same in all of them.
    """

    kind: ClassVar[str] = "gallery"
    name: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[Swatch] = ()

    @property
    def drawings(self) -> list[str]:
        """Every panel as an `<svg>` element."""
        from matplotlib.figure import Figure

        drawings = []
        for index, panel in enumerate(self.panels):
            figure = Figure(figsize=panel.size, dpi=110)
            panel.draw(figure.add_axes(_MARGINS))
            drawings.append(inline_svg(figure, f"{self.name}_{index}", panel.title))
        return drawings


Block = Heading | Text | Table | Gallery


def to_html(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The whole page: no script, no request, light and dark.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hrsa_lightning.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("report.html")
    return template.render(title=title, subtitle=subtitle, blocks=blocks)


def to_markdown(title: str, subtitle: str, blocks: Sequence[Block], figures: str) -> str:
    """The same content for places that show Markdown.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
        figures: Folder of the figures, relative to the file.
    """
    parts = [f"# {markdown_text(title)}", subtitle]
    for block in blocks:
        if isinstance(block, Table):
            texts = [[c if isinstance(c, str) else c.text for c in row] for row in block.rows]
            table = "\n".join(markdown_table([block.header, *texts]))
            parts += [markdown_text(block.caption), table]
            continue
        words = markdown_text(block.title if isinstance(block, Gallery) else block.text)
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {words}")
        elif isinstance(block, Text):
            parts.append(f"*{words}*" if block.is_note else words)
        else:
            parts.append(f"![{words}]({figures}/{block.name}.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def write_figures(blocks: Sequence[Block], folder: Path) -> None:
    """Every gallery as one PNG and one SVG file."""
    for block in blocks:
        if isinstance(block, Gallery):
            figure = _sheet(block)
            for kind in ("png", "svg"):
                save_figure(figure, folder / f"{block.name}.{kind}")


def _sheet(gallery: Gallery) -> "Figure":
    """All panels of a gallery on one sheet, with its legend below."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(_COLUMNS, len(gallery.panels))
    rows = math.ceil(len(gallery.panels) / columns)
    width = max(panel.size[0] for panel in gallery.panels)
    height = max(panel.size[1] for panel in gallery.panels) + 0.15
    per_row = max(1, int(columns * width / 1.9))
    below = 0.1 + 0.22 * math.ceil(len(gallery.legend) / per_row)
    total = rows * height + 0.35 + below
    figure = Figure(figsize=(columns * width, total), dpi=110)
    figure.suptitle(literal(gallery.title), fontsize=11, color=INK, y=1 - 0.1 / total, va="top")
    for index, panel in enumerate(gallery.panels):
        row, column = divmod(index, columns)
        left = (column + _MARGINS[0]) / columns
        bottom = (below + (rows - 1 - row + _MARGINS[1]) * height) / total
        box = (left, bottom, _MARGINS[2] / columns, _MARGINS[3] * height / total)
        panel.draw(figure.add_axes(box))
    if gallery.legend:
        handles = [Line2D([], [], color=s.color, ls=s.dash, lw=1.6) for s in gallery.legend]
        labels = [literal(s.label) for s in gallery.legend]
        figure.legend(handles, labels, loc="lower center", ncols=per_row, fontsize=8, frameon=False)
    return figure
