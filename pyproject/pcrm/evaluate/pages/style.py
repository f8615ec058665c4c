"""The look of figures, on light and dark pages and on paper.

Matplotlib draws with the light colors, which every viewer shows. A style sheet in each SVG file and in the page replaces
them for a dark color scheme. Paper stays light.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib

matplotlib.use("Agg")  # works without a display

import matplotlib.pyplot as plt
from markupsafe import Markup, escape
from matplotlib.text import Text

from ..._printable import printable

# The light colors of text, secondary text, rules and background. DARK maps them to the dark ones.
INK, MUTED, RULE, PAPER = "#24292f", "#6b7480", "#d5dae0", "#ffffff"
# The colors of models. They also differ in lightness, for color-blind readers.
SERIES = ("#1f6f8b", "#b3541e", "#6a4c93", "#3f7d3f", "#937200", "#a8326f", "#4a5a78", "#7a3b2e")
DARK = {
    INK: "#e3e7ec",
    MUTED: "#98a2ae",
    RULE: "#39414b",
    PAPER: "#14181d",
    **dict(
        zip(
            SERIES,
            ("#5fb4d2", "#e8925c", "#b497dc", "#7fc17f", "#d3b24a", "#e27fb2", "#9db0d3", "#cf8f80"),
            strict=True,
        )
    ),
}

_WIDTH = 7.4  # inches, of a figure across the full page; text has 8.5 points
_RC: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "text.color": INK,
    "text.parse_math": False,  # names may have a $ in them
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
}


def color(i: int) -> str:
    return SERIES[i % len(SERIES)]


def line(i: int) -> Any:
    """The line style of model i. It changes when the colors start over."""
    return ("-", "--", ":", "-.")[i // len(SERIES) % 4]


def style() -> Any:
    """The context for making and writing figures."""
    return plt.rc_context(_RC)


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes. `width` is a fraction of the page's width, `height` is in inches."""
    return plt.subplots(rows, columns, figsize=(_WIDTH * width, height), layout="constrained", **options)


DARK_CSS = "".join(
    f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
    for light, dark in DARK.items()
    for what in ("fill", "stroke", "background")
)
_STANDALONE = f"<style>@media screen and (prefers-color-scheme: dark){{{DARK_CSS}}}</style>"


def svg(figure: Any, name: str, title: str) -> Markup:
    """Return a figure as an SVG element, and close it.

    Args:
        name: The prefix of the element's ids, so that a page can hold several figures.
        title: The text for screen readers.
    """
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The viewer's font draws the text. Matplotlib's font only measures it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)

    def tag(match: re.Match[str]) -> str:
        text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', match[0])
        text = re.sub(r'href="#', f'href="#{name}-', text)
        text = re.sub(r"url\(#", f"url(#{name}-", text)
        # The viewer's system font, instead of matplotlib's list of candidates.
        text = re.sub(r"(font: [^;\"]*?\d+(?:\.\d+)?px) [^;\"]*", r"\1 system-ui, sans-serif", text)
        return re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)

    text = re.sub(r"<[^>]*>", tag, text)  # not in the text between tags, which may be a name
    # The page determines the size, and the view box keeps the proportions.
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    head += f' role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    return Markup(head + rest)  # matplotlib has escaped its texts


def standalone(svg: str) -> str:
    """An SVG element as a standalone file."""
    head, rest = str(svg).split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None  # matplotlib always writes it
    *_, width, height = box[1].split()
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head} width="{width}pt" height="{height}pt">{_STANDALONE}{rest}\n'
