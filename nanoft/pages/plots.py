"""Plots by matplotlib, which is optional: `can_draw` tells whether it is installed.

A figure is drawn once and written in two forms: as SVG inside a page, where text stays text in the page's own colour
and fonts, so that every script is shown; and as a PNG file on a white background.
"""

import functools
import io
import re
import warnings
from pathlib import Path

from nanoft.files import write_whole
from nanoft.pages.html import escape

INK = "#010203"  # axes and text: nearly black in a PNG; in SVG the page's own colour replaces it
COLOURS = ("#3b82c4", "#d9772b", "#3a9d5d", "#b0529e", "#9a7b2f", "#738091")  # visible on white and on black
# beginnings of the file names of fonts with Chinese characters, best first: Linux, macOS, Windows
CJK = ("notosanscjk", "notosanssc", "sourcehansans", "wqy", "droidsansfallback", "pingfang", "hiragino sans gb",
       "arial unicode", "msyh", "simhei")


@functools.cache
def can_draw() -> bool:
    """Is matplotlib installed? If not, prints that once. Sets the style of all plots."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError:
        print("no plots: matplotlib is missing; pip install matplotlib")
        return False
    # searched by file, because matplotlib's cached list of names lacks fonts installed since
    paths = sorted(font_manager.findSystemFonts(), key=lambda path: ("Regular" not in path, path))
    chinese = [path for start in CJK for path in paths if Path(path).name.lower().startswith(start)]
    fonts = ["DejaVu Sans"]
    if chinese:
        font_manager.fontManager.addfont(chinese[0])
        fonts.append(font_manager.get_font(chinese[0]).family_name)
    dark = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    matplotlib.rcParams.update(dark | {
        "font.family": fonts, "font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "svg.fonttype": "none",
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#888888", "grid.alpha": 0.25, "savefig.dpi": 160,
        "axes.prop_cycle": f"cycler(color={COLOURS})", "legend.frameon": False, "legend.fontsize": 9,
        "text.parse_math": False})  # a $ is a $
    return True


def new_figure(width: float, height: float):
    """A figure of this many inches. Only after can_draw()."""
    from matplotlib.figure import Figure  # here, not above: pages do without

    return Figure(figsize=(width, height), layout="constrained")


def axes(title: str, x: str, y: str):
    """The axes of a new figure, which is `ax.figure`. x, y: labels. Only after can_draw()."""
    ax = new_figure(4.8, 3.0).subplots()
    ax.set(title=title, xlabel=x, ylabel=y)
    return ax


def svg(figure, caption: str = "") -> str:
    """A figure as a fragment of HTML."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has fonts of its own
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg"):], flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="1.1"| (width|height)="[\d.]+pt"', "", text).replace(
        INK, "currentColor")
    name = escape(", ".join(ax.get_title() for ax in figure.axes if ax.get_title()))
    return f'<figure>{text.replace("<svg", f"""<svg role="img" aria-label="{name}" """, 1)}' \
           f"<figcaption>{escape(caption)}</figcaption></figure>"


def save(figure, path) -> None:
    """Write a figure as a PNG file. Prints a line if no installed font has all of its characters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_whole(path, lambda file: figure.savefig(file, format="png", facecolor="white"))
    if any("missing from font" in str(warning.message) for warning in caught):
        print(f"{path}: some characters are drawn as boxes, because no installed font has them; install Noto Sans CJK")


def plain_ticks(*axes) -> None:
    """Write the ticks of these axes (ax.xaxis, ax.yaxis) as people write numbers: 0.5, 20,000, 1.5M."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axis.set_minor_formatter(NullFormatter())


def short(x: float) -> str:
    """A number for a tick."""
    if abs(x) < 1e5:
        return f"{x:,.4g}" if abs(x) < 1e3 else f"{x:,.0f}"
    return f"{x / 1e3:,.4g}k" if abs(x) < 1e6 else f"{x / 1e6:,.4g}M"
