"""A page: one HTML file that needs no network. Text, tables, coloured words; light or dark as the reader's system is.

plots.py makes the plots of a page. Every function here but `write` returns a fragment of HTML.
"""

import html
import re

from nanoft.files import check_overwrite, write_whole

# the policy forbids every request, whatever the texts on the page contain
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root{--line:#8884;--soft:#8882;--dim:#5c6470;--link:#2563b0}
@media(prefers-color-scheme:dark){:root{--dim:#9aa3ad;--link:#79b0ee}body{background:#14171b;color:#dde1e6}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:0 auto;padding:12px 16px 60px}
h1{font-size:24px;margin:12px 0 2px}h2{font-size:18px;margin:34px 0 8px;border-bottom:1px solid var(--line)}
h3{font-size:15px;margin:18px 0 4px}p{max-width:80ch;margin:6px 0}a{color:var(--link)}.dim,figcaption{color:var(--dim)}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:8px 24px;align-items:start}
.row>*,figure{min-width:0}figure{margin:8px 0}figure svg,img{width:100%;max-width:640px;height:auto}
svg text{font-family:system-ui,sans-serif!important}figcaption{font-size:13px}
.wide{overflow-x:auto;margin:8px 0}table{border-collapse:collapse;font-size:13.5px}
td,th{padding:2px 12px 2px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--soft)}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre,.words,td{unicode-bidi:isolate;white-space:pre-wrap;overflow-wrap:anywhere}
td{overflow-wrap:break-word;max-width:80ch}td.n{white-space:nowrap}
pre{font:13px/1.45 ui-monospace,monospace;background:var(--soft);margin:6px 0;padding:8px 10px;border-radius:4px}
.words{line-height:1.75;margin:6px 0}.words span{border-radius:3px;padding:1px 0}
</style>
"""
BLUE, ORANGE = (59, 130, 196), (217, 119, 43)  # (red, green, blue) of values above and below 0
NUMBER = re.compile(r"([-+]?[\d,.]+(e[-+]?\d+)?( ?%)?)?|<td.*", re.S)  # or nothing, or what `cell` returns


def write(path, title: str, *parts: str) -> None:
    """Write a page of these fragments, whole or not at all. Raises UserError for a file that is no such page."""
    check_overwrite(path, (b"<!doctype html><html lang=\"en\"><meta",))
    text = f"{HEAD}<title>{escape(title)}</title>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8", "replace")))


def escape(text) -> str:
    """Any value as text, with visible symbols for control characters."""
    return html.escape(str(text)).translate({i: 0x2400 + i for i in range(32) if i not in (9, 10)})


def table(head, rows) -> str:
    """Rows of texts, numbers and cells made by `cell`, under their columns' names. Columns of numbers align right."""
    align = [' class="n"' * all(NUMBER.fullmatch(str(row[i])) for row in rows) for i in range(len(head))]
    lines = ["".join(f"<th{side}>{escape(name)}" for name, side in zip(head, align))] if any(head) else []
    lines += ["".join(str(x) if str(x).startswith("<td") else f"<td{side}>{escape(x)}" for x, side in zip(row, align))
              for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}\n" for line in lines) + "</table></div>"


def cell(text, value: float) -> str:
    """A cell of a table, coloured by a value of -1 to 1."""
    return f'<td class="n" style="background:{colour(value)}">{escape(text)}'


def colour(value: float) -> str:
    """The CSS background for a value from -1 (orange) over 0 (none) to 1 (blue), pale enough to read text on it."""
    red, green, blue = BLUE if value >= 0 else ORANGE
    return f"rgba({red},{green},{blue},{min(abs(value), 1) * 0.7:.3f})"


def words(texts, values, notes=()) -> str:
    """Consecutive parts of a text, each coloured by its value of -1 to 1. notes: their tooltips, or nothing."""
    tooltips = [f' title="{escape(note)}"' for note in notes] or [""] * len(texts)
    return '<div class="words">' + "".join(f'<span style="background:{colour(value)}"{tooltip}>{escape(text)}</span>'
                                           for text, value, tooltip in zip(texts, values, tooltips)) + "</div>"
