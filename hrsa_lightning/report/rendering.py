"""Blocks as one HTML file, and as Markdown with pictures beside it."""

import html
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hrsa_lightning.plots import COLORS, INK, MUTED, save_figure
from hrsa_lightning.plots.output import bare_svg, themed_svg
from hrsa_lightning.report.document import (
    Block,
    Cell,
    Gallery,
    Heading,
    Panel,
    Swatch,
    Table,
    Text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_panels", "gallery_figure", "to_html", "to_markdown", "write_pictures"]

# Nothing may be fetched and nothing runs: the page is the same on every machine and in every mail.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_DASHES = {"-": "", "--": "5 3", "-.": "6 3 1.5 3", ":": "1.5 2.5"}
_MARGINS = (0.165, 0.175, 0.81, 0.72)
_LONG_TEXT = 28


def to_html(
    title: str, subtitle: str, blocks: Sequence[Block], drawn: Mapping[str, Sequence[str]]
) -> str:
    """The whole page: no script, no request, light and dark.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
        drawn: What `draw_panels` made of it.
    """
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(
        f'<a href="#s{index}">{html.escape(text)}</a>' for index, text in enumerate(sections)
    )
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = []
    number = -1
    for block in blocks:
        if isinstance(block, Heading):
            number += block.level == 2
            anchor = f' id="s{number}"' if block.level == 2 else ""
            body.append(f"<h{block.level}{anchor}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, Text):
            kind = ' class="note"' if block.is_note else ""
            body.append(f"<p{kind}>{html.escape(block.text)}</p>")
        elif isinstance(block, Table):
            body.append(_html_table(block))
        else:
            body.append(_html_gallery(block, drawn[block.name]))
    content = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(subtitle)}</p>\n"
        f'<nav aria-label="sections">{links}</nav>\n{content}\n</main>\n</body>\n</html>\n'
    )


def to_markdown(title: str, subtitle: str, blocks: Sequence[Block], pictures: str) -> str:
    """The same content for places that show Markdown.

    Args:
        title: Of the page.
        subtitle: One line below it.
        blocks: The content.
        pictures: Folder of the pictures, relative to the file.
    """
    parts = [f"# {title}", subtitle]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(f"*{block.text}*" if block.is_note else block.text)
        elif isinstance(block, Table):
            lines = [block.header, ["---"] * len(block.header), *block.rows]
            parts.append(block.caption)
            parts.append(
                "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)
            )
        else:
            parts.append(f"![{block.title}]({pictures}/{block.name}.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def draw_panels(blocks: Sequence[Block]) -> dict[str, list[str]]:
    """Every panel of every gallery as an `<svg>` element, by name of the gallery."""
    return {
        block.name: [
            bare_svg(_panel_figure(panel), f"{block.name}_{index}")
            for index, panel in enumerate(block.panels)
        ]
        for block in blocks
        if isinstance(block, Gallery)
    }


def write_pictures(
    blocks: Sequence[Block], drawn: Mapping[str, Sequence[str]], folder: Path
) -> None:
    """Every gallery as one PNG and one SVG file; `drawn` is what `draw_panels` gave."""
    for block in blocks:
        if isinstance(block, Gallery):
            save_figure(gallery_figure(block), folder / f"{block.name}.png")
            sheet = _sheet(block, drawn[block.name])
            (folder / f"{block.name}.svg").write_text(sheet, encoding="utf-8")


def gallery_figure(gallery: Gallery) -> "Figure":
    """All pictures of a gallery on one sheet, with its legend below."""
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
    figure.suptitle(gallery.title, fontsize=11, color=INK, y=1 - 0.1 / total, va="top")
    for index, panel in enumerate(gallery.panels):
        row, column = divmod(index, columns)
        left = (column + _MARGINS[0]) / columns
        bottom = (below + (rows - 1 - row + _MARGINS[1]) * height) / total
        box = (left, bottom, _MARGINS[2] / columns, _MARGINS[3] * height / total)
        panel.draw(figure.add_axes(box))
    if gallery.legend:
        handles = [Line2D([], [], color=s.color, ls=s.dash, lw=1.6) for s in gallery.legend]
        labels = [s.label for s in gallery.legend]
        figure.legend(handles, labels, loc="lower center", ncols=per_row, fontsize=8, frameon=False)
    return figure


def _panel_figure(panel: Panel) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=panel.size, dpi=110)
    panel.draw(figure.add_axes(_MARGINS))
    return figure


def _html_table(table: Table) -> str:
    numeric = {
        column for row in table.rows for column, cell in enumerate(row) if isinstance(cell, Cell)
    }
    head = "".join(
        f'<th scope="col"{" class=n" if column in numeric else ""}>{html.escape(text)}</th>'
        for column, text in enumerate(table.header)
    )
    plain = "" if numeric else ' class="plain"'
    body = []
    for first, *others in table.rows:
        name = html.escape(first if isinstance(first, str) else first.text)
        cells = "".join(map(_html_cell, others))
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.caption)}">'
        f"<table{plain}>\n<caption>{html.escape(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody>\n</table></div>"
    )


def _html_cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        kind = ' class="w"' if len(cell) > _LONG_TEXT else ""
        return f"<td{kind}>{html.escape(cell)}</td>"
    return f'<td class="n"><data value="{cell.value!r}">{html.escape(cell.text)}</data></td>'


def _html_gallery(gallery: Gallery, drawn: Sequence[str]) -> str:
    figures = "\n".join(
        f"<figure>{themed_svg(text, panel.title)}</figure>"
        for text, panel in zip(drawn, gallery.panels, strict=True)
    )
    legend = "".join(
        f"<li>{_swatch(entry)}{html.escape(entry.label)}</li>" for entry in gallery.legend
    )
    listed = f'<ul class="legend">{legend}</ul>\n' if legend else ""
    return f'{listed}<div class="gallery">\n{figures}\n</div>'


def _sheet(gallery: Gallery, drawn: Sequence[str]) -> str:
    """The panels of a gallery and its legend as one SVG file."""
    columns = min(gallery.columns, len(drawn))
    width, height = (72 * max(panel.size[side] for panel in gallery.panels) for side in (0, 1))
    rows = math.ceil(len(drawn) / columns)
    total = 30 + rows * height + 18 * math.ceil(len(gallery.legend) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{columns * width:g}pt" height="{total:g}pt" '
        f'viewBox="0 0 {columns * width:g} {total:g}" font-family="sans-serif" fill="{INK}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="8" y="18" font-size="12">{html.escape(gallery.title)}</text>',
    ]
    for index, text in enumerate(drawn):
        row, column = divmod(index, columns)
        place = f'x="{column * width:g}" y="{30 + row * height:g}"'
        # Inside a drawing lengths count in its own units, which are points.
        head, rest = text.strip().split(">", 1)
        head = head.replace('pt"', '"').replace("<svg ", f"<svg {place} ", 1)
        parts.append(f"{head}>{rest}")
    for index, entry in enumerate(gallery.legend):
        row, column = divmod(index, columns)
        x, y = column * width + 12, 30 + rows * height + 18 * row + 9
        style = f'stroke="{entry.color}" stroke-width="1.6"'
        dashes = f' stroke-dasharray="{_DASHES[entry.dash]}"' if _DASHES[entry.dash] else ""
        parts.append(
            f'<line x1="{x:g}" x2="{x + 24:g}" y1="{y:g}" y2="{y:g}" {style}{dashes}/>'
            f'<text x="{x + 30:g}" y="{y + 3:g}" font-size="9">{html.escape(entry.label)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _swatch(entry: Swatch) -> str:
    names = {color: f"c{index}" for index, color in enumerate(COLORS)} | {MUTED: "muted"}
    color = f"var(--{names[entry.color]})" if entry.color in names else entry.color
    dashes = _DASHES[entry.dash]
    return (
        '<svg viewBox="0 0 32 11" aria-hidden="true"><line x1="0" y1="6" x2="32" y2="6" '
        f'style="stroke:{color};stroke-width:2.4;stroke-dasharray:{dashes or "none"}"/></svg>'
    )


def _markdown_cell(cell: str | Cell) -> str:
    text = cell if isinstance(cell, str) else cell.text
    return text.replace("|", "\\|").replace("\n", " ")
