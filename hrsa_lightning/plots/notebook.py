"""Figures that notebooks show, with and without pyplot."""

import io
from typing import Any

from matplotlib.figure import Figure


class BareFigure(Figure):
    """A figure that pyplot does not know; a notebook shows it as the last value of a cell.

    Jupyter shows matplotlib's own only where pyplot has been loaded.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def new_figure(pyplot: bool, **options: Any) -> Figure:
    """A figure as matplotlib's constructors make it.

    Args:
        pyplot: Let pyplot know it, so that a notebook shows it at the end of the cell that made it,
            and `pyplot.show()` in a program: what torchmetrics does.
        options: Of the constructor.
    """
    if not pyplot:
        return BareFigure(**options)
    from matplotlib import pyplot as plt

    return plt.figure(**options)
