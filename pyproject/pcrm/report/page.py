"""The page: one file with all in it, light and dark, and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import style
from .figures import Figure

_LIGHT = f"--ink:{style.INK};--muted:{style.MUTED};--rule:{style.RULE};--paper:{style.PAPER}"
_DARK = ";".join(
    f"--{name}:{style.DARK[color]}"
    for name, color in (("ink", style.INK), ("muted", style.MUTED), ("rule", style.RULE), ("paper", style.PAPER))
)
_CSS = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}{style.DARK_CSS}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:62rem;padding:3rem 1.5rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
h1{{font-size:1.6rem;font-weight:650;line-height:1.25;margin:0 0 .35rem}}
h2{{font-size:1.05rem;font-weight:650;margin:0 0 .15rem}}
p{{margin:0;max-width:46rem}}
.muted,figcaption{{color:var(--muted);font-size:.9rem}}
.scroll{{overflow-x:auto;margin:2rem 0 .6rem}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}}
th,td{{padding:.28rem 0 .28rem 1.4rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);font-weight:400}}
th[scope=row]{{text-align:left;padding-left:0}}
thead th{{font-weight:650;border-bottom:1.5px solid var(--muted)}}
tr.first>*{{padding-top:1rem}}
td span{{color:var(--muted);font-size:.85rem;display:inline-block;min-width:8.2rem;margin-left:.5rem}}
table.several td span{{display:block;min-width:0;line-height:1.2}}
i{{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin-right:.45rem}}
.figures{{display:grid;grid-template-columns:1fr 1fr;gap:2.6rem 2rem;margin-top:3rem}}
figure{{margin:0;break-inside:avoid}}
figure.wide{{grid-column:1/-1}}
figure svg{{display:block;width:100%;height:auto;margin-top:.6rem}}
footer{{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--rule)}}
@media(max-width:46rem){{.figures{{grid-template-columns:1fr}}body{{padding:1.5rem 1rem}}
th[scope=row]{{white-space:normal}}td span{{display:block;min-width:0}}}}
@media print{{@page{{margin:14mm}}body{{padding:0;max-width:none;font-size:10pt}}.scroll{{overflow:visible}}
.figures{{gap:1.6rem;margin-top:1.6rem}}th,td{{padding:.12rem 0 .12rem .8rem}}tr.first>*{{padding-top:.5rem}}.scroll{{margin-top:1rem}}td span{{min-width:0}}}}
"""

# (label, value, interval) a row; None starts a new part of the table.
Cell = tuple[str, str]
Row = tuple[str, Sequence[Cell]] | None


def render(
    *,
    title: str,
    subtitle: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    note: str,
    figures: Sequence[Figure],
    footer: str,
    refresh: int | None = None,
) -> str:
    """The page as HTML. `refresh` is after how many seconds a browser reads it again."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        *([f'<meta http-equiv="refresh" content="{refresh}">'] if refresh else []),
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
        f'<header><h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p></header>',
    ]
    if rows:
        parts.append(_table(columns, rows))
        parts.append(f'<p class="muted">{escape(note)}</p>')
    parts.append('<main class="figures">')
    for f in figures:
        caption = f"<figcaption>{escape(f.caption)}</figcaption>" if f.caption else ""
        parts.append(
            f'<figure id="{f.name}"{" class=wide" if f.wide else ""}><h2>{escape(f.title)}</h2>{caption}{f.svg}</figure>'
        )
    parts.append(f'</main>\n<footer class="muted">{escape(footer)}</footer>\n</body>\n</html>\n')
    return "\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [f'<div class="scroll"><table{" class=several" if len(columns) > 1 else ""}>']
    if len(columns) > 1:
        heads = "".join(
            f'<th scope="col"><i style="background: {style.color(i)}"></i>{escape(c)}</th>'
            for i, c in enumerate(columns)
        )
        lines.append(f"<thead><tr><td></td>{heads}</tr></thead>")
    lines.append("<tbody>")
    first = False
    for row in rows:
        if row is None:
            first = True
            continue
        label, cells = row
        values = "".join(f"<td>{escape(v)}<span>{escape(ci)}</span></td>" for v, ci in cells)
        lines.append(f'<tr{" class=first" if first else ""}><th scope="row">{escape(label)}</th>{values}</tr>')
        first = False
    lines.append("</tbody></table></div>")
    return "\n".join(lines)
