"""A report as blocks, which HTML and Markdown write in their own ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Block", "Cell", "Gallery", "Heading", "Panel", "Swatch", "Table", "Text"]


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, with the value behind it."""

    text: str
    value: float


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; a note is set apart."""

    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Panel:
    """One picture.

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
    """An entry of a legend."""

    label: str
    color: str
    dash: str


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind; one file holds them all, the page shows them one by one.

    Attributes:
        name: Of the file, unique within the report.
        title: What they show.
        panels: The pictures.
        legend: What the lines are, the same in all of them.
        columns: How many stand side by side in the file.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[Swatch] = ()
    columns: int = 3


Block = Heading | Text | Table | Gallery
