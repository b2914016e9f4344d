"""Pages and plots: whole, escaped, without the network; and what happens without matplotlib."""

import subprocess
import sys

import pytest
from conftest import ROOT, read_page

from nanoft.pages import html, plots


def test_a_page_shows_any_text_as_it_is(tmp_path):
    nasty = '<script>alert("x")</script> & \x00\x1b \u202eabc 中文 http://example.org/a.js'
    html.write(tmp_path / "p.html", nasty, html.table(("a", "<b>"), [(nasty, 1), ("", 2)]),
               html.words([nasty, "b"], [1, -1], [nasty, '"']))
    text = read_page(tmp_path / "p.html")
    assert text.count('<script>alert("x")</script> & ␀␛ \u202eabc 中文 http://example.org/a.js') == 4
    assert "<b>" in text


def test_columns_of_numbers_stand_to_the_right():
    shown = html.table(("name", "n", "%", "mixed"), [("a", "1,024", "1.5 %", "1"), ("b", -2.5e-05, "3", "x")])
    assert shown.count('class="n"') == 2 * 3  # two columns: the head and two rows
    assert '<th>name' in shown and '<th>mixed' in shown


def test_colours():
    assert html.colour(0).endswith("0.000)") and html.colour(1) != html.colour(-1)
    assert html.colour(3) == html.colour(1)


def test_plots_take_the_pages_colour_and_keep_letters(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.can_draw()
    ax = plots.axes("标题 & <title>", "step", "loss")
    ax.plot([1, 2, 3], [3, 1, 2], label="中")
    ax.legend()
    svg = plots.svg(ax.figure, "what it shows")
    assert "标题 &amp; &lt;title&gt;" in svg and ">中<" in svg and "currentColor" in svg and plots.INK not in svg
    html.write(tmp_path / "p.html", "page", svg, svg)
    assert "what it shows" in read_page(tmp_path / "p.html")
    plots.save(ax.figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so():
    code = ("import sys; sys.modules['matplotlib'] = None; from nanoft.pages import plots; "
            "print([plots.can_draw(), plots.can_draw()])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and "pip install matplotlib" in lines[0] and lines[1] == "[False, False]"
