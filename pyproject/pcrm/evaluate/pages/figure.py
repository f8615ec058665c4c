"""A figure of a page: an SVG with title and caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.lines import Line2D

from . import style


@dataclass
class Figure:
    """An SVG element with title and caption. `wide` figures take the full width of the page."""

    name: str
    title: str
    caption: str
    svg: Markup
    wide: bool = True


def legend(figure: Any, names: list[str], order: list[str]) -> None:
    """Put a legend of these models above a figure, unless there is only one. `order` determines the colors."""
    if len(names) < 2:
        return
    handles = [
        Line2D([], [], color=style.color(i), linestyle=style.line(i), label=order[i]) for i in map(order.index, names)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=_columns(names, figure.get_size_inches()[0]))


def _columns(names: list[str], width: float) -> int:
    """The number of legend columns, up to four, that fit into a width in inches."""
    # At 8.5 points, a letter of the system's font is .066 inches wide on average. A line with its space is as wide as ten.
    for columns in range(min(len(names), 4), 1, -1):
        widest = (max(map(len, names[i::columns])) + 10 for i in range(columns))
        if 0.066 * sum(widest) <= width:
            return columns
    return 1
