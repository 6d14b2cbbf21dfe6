"""A report as blocks, and the blocks as one HTML file or as Markdown with figures beside it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hrsa_lightning.cli import markdown_table, markdown_text
from hrsa_lightning.plots import COLORS, MUTED
from hrsa_lightning.plots.output import PNG_DPI, Sheet, bare_svg, themed_svg

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MARGINS = (0.165, 0.175, 0.81, 0.72)
_TITLE, _GAP = 0.35, 0.15
"""Inches above the panels of a sheet, and between its rows."""
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


@dataclass
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
    _drawn: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def drawings(self) -> list[str]:
        """Every panel as an `<svg>` element."""
        drawn = self._drawn or [svg for svg, _ in self._draw()]
        return [
            themed_svg(*each) for each in zip(drawn, (p.title for p in self.panels), strict=True)
        ]

    def write(self, folder: Path) -> None:
        """All panels on one sheet with their legend below, as PNG and as SVG.

        A panel is built once, for the page and both files: that is most of the time of a report.
        """
        columns = min(self.columns, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        width = max(panel.size[0] for panel in self.panels)
        height = max(panel.size[1] for panel in self.panels) + _GAP
        per_row = max(1, int(columns * width / 1.9))
        below = 0.1 + 0.22 * math.ceil(len(self.legend) / per_row)
        sheet = Sheet(columns * width, _TITLE + rows * height + below, self.title)
        if self.legend:
            sheet.add_legend([(s.label, s.color, s.dash) for s in self.legend], per_row)
        self._drawn = []
        for index, (svg, figure) in enumerate(self._draw()):
            row, column = divmod(index, columns)
            sheet.add(svg, figure, column * width, _TITLE + row * height)
            self._drawn.append(svg)
        sheet.save(folder / self.name)

    def _draw(self) -> Iterator[tuple[str, "Figure"]]:
        """Every panel as SVG, and the figure that it is of."""
        from matplotlib.figure import Figure

        for index, panel in enumerate(self.panels):
            figure = Figure(figsize=panel.size, dpi=PNG_DPI)
            panel.draw(figure.add_axes(_MARGINS))
            yield bare_svg(figure, f"{self.name}_{index}"), figure


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
            block.write(folder)
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
