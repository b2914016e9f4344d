"""Pictures by matplotlib, which is optional: `can_draw` tells whether it is there, and how to install it.

A picture is drawn once. In a page it stands as SVG whose letters stay letters, in the page's own colour and fonts, so
that any script shows; as a PNG it brings its own white ground.
"""

import functools
import io
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np

from nanoft.files import write_whole
from nanoft.pages.html import BLUE, ORANGE, escape

INK = "#010203"  # of axes and letters: near black in a PNG, taken out of the SVG for the page's own colour
COLOURS = ("#3b82c4", "#d9772b", "#3a9d5d", "#b0529e", "#9a7b2f", "#738091")  # seen on white and on black
# files of fonts with Chinese characters, best first: on Linux, macOS and Windows
CJK = ("notosanscjk", "notosanssc", "sourcehansans", "wqy", "droidsansfallback", "pingfang", "hiragino sans gb",
       "arial unicode", "msyh", "simhei")


@functools.cache
def can_draw():
    """Is matplotlib there? Where it is not, says so once. Sets the look of all pictures."""
    try:
        import matplotlib
        from matplotlib import font_manager
    except ImportError:
        print("no pictures, for matplotlib is missing: pip install matplotlib")
        return False
    # by file, for the list of names that matplotlib keeps does not know fonts installed since
    paths = sorted(font_manager.findSystemFonts(), key=lambda path: ("Regular" not in path, path))
    found = [path for start in CJK for path in paths if Path(path).name.lower().startswith(start)]
    fonts = ["DejaVu Sans"]
    if found:
        font_manager.fontManager.addfont(found[0])
        fonts.append(font_manager.get_font(found[0]).family_name)
    dark = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    matplotlib.rcParams.update(dark | {
        "font.family": fonts, "font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "svg.fonttype": "none",
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#888888", "grid.alpha": 0.25, "savefig.dpi": 160,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "legend.frameon": False, "legend.fontsize": 9,
        "text.parse_math": False})  # a $ is a $
    return True


def axes(title, x, y, width=4.8, height=3.0):
    """The axes of a new figure of so many inches, `ax.figure`. Only where can_draw()."""
    from matplotlib.figure import Figure

    ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.set(title=title, xlabel=x, ylabel=y)
    return ax


def words(texts, width=92):
    """Coloured words as a figure, as page.words has them in a page. texts: (heading, pieces, values of -1 to 1) each.

    Letters are of equal width, `width` of them a line, so that none need be measured; a Chinese one has room for two.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    placed, line = [], 0  # (line, column, cells, text, value)
    for heading, pieces, values in texts:
        if heading:
            placed.append((line, 0, 0, heading, 0.0))
            line += 1
        column = 0
        for piece, value in zip(pieces, values):
            piece = piece.replace("↵\n", "↵").replace("\n", "↵")
            cells = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in piece)
            if column + cells > width:
                line, column = line + 1, 0
            placed.append((line, column, cells, piece, value))
            column += cells
        line += 1.6
    figure = Figure(figsize=(0.08 * (width + 4), 0.2 * (line + 0.3)))  # inches: 0.08 is a letter of 9.5 points
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-2, width + 2), ylim=(line - 0.5, -0.8))
    ax.axis("off")
    family = ["DejaVu Sans Mono", *matplotlib.rcParams["font.family"]]
    for line, column, cells, text, value in placed:
        colour = np.array(BLUE if value >= 0 else ORANGE) / 255
        ax.add_patch(Rectangle((column, line - 0.45), cells, 0.9, color=colour, alpha=0.7 * min(abs(value), 1), lw=0))
        ax.text(column, line + 0.2, text, fontsize=9.5, family=family if cells else None)
    return figure


def svg(figure, caption=""):
    """A figure for a page."""
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


def save(figure, path):
    """The same as a PNG. Says so where no font here has all of its characters."""
    from PIL import Image  # matplotlib brings it

    drawn = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(drawn, format="png", facecolor="white")
    few = Image.open(drawn).convert("RGB").quantize(256, kmeans=1)  # enough for a drawing, in a third of the bytes
    write_whole(path, lambda file: few.save(file, format="png", optimize=True))
    if any("missing from font" in str(warning.message) for warning in caught):
        print(f"{path}: some characters are boxes, for no font here has them; install one such as Noto Sans CJK")


def plain_ticks(*axes):
    """Numbers as people write them at the ticks of these axes (ax.xaxis, ax.yaxis): 0.5, 20,000, 1.5M."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axis.set_minor_formatter(NullFormatter())


def short(x):
    if abs(x) < 1e5:
        return f"{x:,.4g}" if abs(x) < 1e3 else f"{x:,.0f}"
    return f"{x / 1e3:,.4g}k" if abs(x) < 1e6 else f"{x / 1e6:,.4g}M"
