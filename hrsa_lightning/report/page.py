"""A report as blocks, and the blocks as one HTML file or as Markdown with figures beside it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hrsa_lightning.cli import markdown_table, markdown_text
from hrsa_lightning.plots import COLORS, INK, MUTED, inline_svg, save_figure
from hrsa_lightning.plots.style import literal

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MARGINS = (0.165, 0.175, 0.81, 0.72)
_DASHES = {"-": "none", "--": "5 3", "-.": "6 3 1.5 3", ":": "1.5 2.5"}


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
class Answer:
    """Statements: each has a `lead`, which stands out, a `rest`, and a list `numbers`."""

    kind: ClassVar[str] = "answer"
    sentences: Sequence[Any]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens; in print and in Markdown they lie open."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]

    @property
    def texts(self) -> list[list[str]]:
        """Rows as they are shown."""
        return [[c if isinstance(c, str) else c.text for c in row] for row in self.rows]

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
        columns: Panels that stand side by side.
    """

    kind: ClassVar[str] = "gallery"
    name: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[Swatch] = ()
    columns: int = 3

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


Block = Heading | Text | Answer | Table | Gallery | Fold


def note(name: str, *values: object) -> Text:
    """How to read what follows: a macro of `notes.txt`."""
    macro = getattr(_environment(autoescape=False).get_template("notes.txt").module, name)
    return Text(" ".join(macro(*values).split()), is_note=True)


def to_html(title: str, subtitle: str, blocks: Sequence[Block]) -> str:
    """The whole page: no script, no request, light and dark.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
    """
    template = _environment(autoescape=True).get_template("report.html")
    return template.render(title=title, subtitle=subtitle, blocks=blocks)


def to_markdown(title: str, subtitle: str, blocks: Sequence[Block], figures: str) -> str:
    """The same content for places that show Markdown.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
        figures: Folder of the figures, relative to the file.
    """
    parts = [f"# {markdown_text(title)}", markdown_text(subtitle), *_markdown(blocks, figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(blocks: Sequence[Block], figures: str) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading():
                yield f"{'#' * block.level} {markdown_text(block.text)}"
            case Text():
                words = markdown_text(block.text)
                yield f"*{words}*" if block.is_note else words
            case Answer():
                yield "\n".join(
                    f"- **{markdown_text(each.lead)}**"
                    + markdown_text(f"{each.rest} {'; '.join(each.numbers)}".rstrip())
                    for each in block.sentences
                )
            case Table():
                yield markdown_text(block.caption)
                yield "\n".join(markdown_table([block.header, *block.texts]))
            case Gallery():
                yield f"![{markdown_text(block.title)}]({figures}/{block.name}.png)"
            case Fold():
                yield f"### {markdown_text(block.title)}"
                yield from _markdown(block.blocks, figures)


def write_figures(blocks: Sequence[Block], folder: Path) -> None:
    """Every gallery as one PNG and one SVG file."""
    for block in blocks:
        if isinstance(block, Gallery):
            figure = _sheet(block)
            for kind in ("png", "svg"):
                save_figure(figure, folder / f"{block.name}.{kind}")
        elif isinstance(block, Fold):
            write_figures(block.blocks, folder)


@cache
def _environment(*, autoescape: bool) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("hrsa_lightning.report"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _sheet(gallery: Gallery) -> "Figure":
    """All panels of a gallery on one sheet, with its legend below."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(gallery.columns, len(gallery.panels))
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
