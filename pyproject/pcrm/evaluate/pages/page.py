"""The page: a single file with everything in it, for light and dark screens and for paper.

All text goes through the template templates/page.html, which escapes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..._printable import printable
from . import style
from .figure import Figure

# A row is (label, values with their intervals). None starts a new section of the table.
Cell = tuple[str, str]
Row = tuple[str, Sequence[Cell]] | None

_LIGHT = {"ink": style.INK, "muted": style.MUTED, "rule": style.RULE, "paper": style.PAPER}


def _finalize(value: Any) -> Any:
    """Escape unprintable characters. Jinja2 then escapes HTML. Markup, which only our code makes, stays as it is."""
    return printable(value) if type(value) is str else value


_TEMPLATE = Environment(
    loader=PackageLoader(__package__ or ""),
    autoescape=True,
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("page.html")


def render(
    *,
    title: str,
    subtitle: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    note: str,
    figures: Sequence[Figure],
    footer: str,
    figures_first: bool = False,
) -> str:
    """Render the page as HTML, with the table of numbers before or after the figures."""
    return _TEMPLATE.render(
        title=title,
        subtitle=subtitle,
        columns=columns,
        parts=_parts(rows),
        note=note,
        figures=figures,
        figures_first=figures_first,
        footer=footer,
        color=style.color,
        variables=_variables,
        light=_LIGHT,
        dark={name: style.DARK[color] for name, color in _LIGHT.items()},
        dark_figures=Markup(style.DARK_CSS),
    )


def text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The table as text. A single column has intervals; several columns have only values."""
    several = len(columns) > 1
    parts = [
        [[label, *(v for v, _ in cells)] if several else [label, *cells[0]] for label, cells in part]
        for part in _parts(rows)
    ]
    if several:
        parts[0].insert(0, ["", *columns])
    parts = [[[printable(cell) for cell in line] for line in part] for part in parts]
    widths = [max(map(len, column)) for column in zip(*itertools.chain(*parts), strict=True)]

    def aligned(line: list[str]) -> str:
        label, *cells = line
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        return "  ".join([label.ljust(widths[0]), *cells]).rstrip()

    return "\n\n".join("\n".join(map(aligned, part)) for part in parts)


def _parts(rows: Sequence[Row]) -> list[list[tuple[str, Sequence[Cell]]]]:
    parts: list[list[tuple[str, Sequence[Cell]]]] = [[]]
    for row in rows:
        if row is None:
            parts.append([])
        else:
            parts[-1].append(row)
    return [part for part in parts if part]


def _variables(colors: dict[str, str]) -> str:
    return ";".join(f"--{name}:{color}" for name, color in colors.items())
