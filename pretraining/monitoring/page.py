"""Elements of a self-contained HTML page: no scripts, no requests, readable on a phone and on paper.

The functions return HTML; they escape all text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

# Pictures are embedded in the page; the browser must not load anything else.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: #1b1f24; background: #fff;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #d0d7de; }
p, li { max-width: 48rem; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; margin: .2rem 0; }
.box { padding: .6rem 1rem; border-left: .35rem solid #1a7f37; background: #eef9f0; }
.box.warning { border-color: #bc4c00; background: #fff4e8; }
.box p, .box ul { margin: .3rem 0; padding-left: 1.1rem; }
.box p { padding-left: 0; }
.curves { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .85rem; color: #57606a; }
img { display: block; max-width: 100%; height: auto; border: 1px solid #e5e9ee; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e5e9ee; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tables { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
pre { padding: .7rem; background: #f4f6f8; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  tr, .box, pre { break-inside: avoid; }
  .scroll { overflow: visible; }
  .curves { grid-template-columns: repeat(3, 1fr); }
  .box, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A complete document; the sections are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def box(heading: str, items: Sequence[str] = (), warning: bool = False) -> str:
    """A coloured box with a heading and a list."""
    listing = f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""
    return f'<div class="box{" warning" if warning else ""}"><p><strong>{escape(heading)}</strong></p>{listing}</div>'


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def picture(png: bytes, description: str, caption: str = "") -> str:
    """An embedded PNG with a description for readers who cannot see it."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    data = base64.b64encode(png).decode("ascii")
    return f'<figure><img alt="{escape(description)}" src="data:image/png;base64,{data}">{text}</figure>'


def facts(values: Mapping[str, object]) -> str:
    """A table with two columns, name and value."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """A table; numbers have three significant digits and are right-aligned, None is a hyphen."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def group(kind: str, items: Iterable[str]) -> str:
    """Items in a grid: `curves`, `pictures` or `tables`."""
    return f"<div{_class(kind)}>\n" + "\n".join(items) + "\n</div>"


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{"-" if value is None else f"{value:.3g}"}</td>'


def _class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""
