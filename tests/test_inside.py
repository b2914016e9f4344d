"""docs/inside.py: the walk is whole for other runs than its own, and the recorded one fits its template."""

import importlib.util
import json
import random
import re
import sys

import pytest
from conftest import ROOT, TINY
from test_finetune import write_folder
from test_story_finetune import KINDS

import finetune
import train
from nanoft import UserError
from nanoft.pages import html, plots

SPEC = importlib.util.spec_from_file_location("inside", ROOT / "docs" / "inside.py")
inside = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(inside)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """The folders of a GPT, an encoder, a classifier, and a tagger, all tiny."""
    folder, before = tmp_path_factory.mktemp("runs"), sys.argv
    for name, *options in (("gpt",), ("bert", "--objective=mlm", "--sample_tokens=16")):
        sys.argv = ["train.py", f"--data={corpus}", f"--out_dir={folder / name}", *TINY, *options]
        train.main()
    for name in ("classify", "tag"):
        rng, (row, task, _) = random.Random(0), KINDS[name]
        data = write_folder(folder / f"{name}_data", *([row(rng) for _ in range(n)] for n in (60, 40)), **task)
        sys.argv = ["finetune.py", f"--data={data}", f"--out_dir={folder / name}", "--n_layer=1", "--n_embd=16",
                    "--linear=false", "--n_head=2", "--max_length=48", "--max_steps=3", "--device=cpu",
                    "--dtype=float32"]
        finetune.main()
    sys.argv = before
    return folder


def links(path):
    text = path.read_text(encoding="utf-8")
    return re.findall(r'src="([^"]*)"', text) + re.findall(r"\]\(([^)]*)\)", text)


@pytest.mark.slow
def test_a_walk_through_tiny_runs(runs, tmp_path, call, capsys):
    pytest.importorskip("matplotlib")
    Image = pytest.importorskip("PIL.Image")
    call(inside, f"--gpt={runs / 'gpt'}", f"--classifier={runs / 'classify'}", "--rows=30", f"--out={tmp_path}")
    assert "inside.md and 16 figures" in capsys.readouterr().out
    found = links(tmp_path / "inside.md")
    pictures = {f"inside/{path.name}" for path in (tmp_path / "inside").iterdir()}
    assert len(pictures) == 16 and pictures == {link for link in found if link.endswith(".png")}
    assert all((ROOT / "docs" / link).exists() for link in found if not link.endswith(".png"))
    for picture in pictures:
        opened = Image.open(tmp_path / picture)
        assert opened.format == "PNG" and opened.convert("RGBA").getextrema()[3] == (255, 255)  # nothing shines through
    text = " ".join((tmp_path / "inside.md").read_text(encoding="utf-8").split())
    result = json.loads((runs / "gpt" / "result.json").read_text())
    assert f"| {result['parameters']:,} " in text.replace("in all", "|")
    assert "of 30 validation texts are right" in text and "gets right. Truth:" in text
    deltas = [float(part) for part in re.findall(r"([\d.]+)% of the difference", text)]
    assert len(deltas) == 2 and max(deltas) < 1
    shares = [int(share) for share in re.findall(r"already the most likely at ([\d%, ]+) of", text)[0].replace(
        "%", "").split(",")]
    assert len(shares) == 3 and shares[-1] == 100  # the embedding's, and two layers'


def test_runs_that_have_nothing_to_show(runs, tmp_path, call, monkeypatch):
    pytest.importorskip("matplotlib")
    for gpt, classifier, sentence in (("bert", "classify", "is no GPT"), ("classify", "classify", "is no GPT"),
                                      ("gpt", "tag", "is no classifier"), ("gpt", "gpt", "is no classifier"),
                                      ("none", "gpt", "no metrics.jsonl")):
        with pytest.raises(UserError, match=sentence):
            call(inside, f"--gpt={runs / gpt}", f"--classifier={runs / classifier}", f"--out={tmp_path / 'out'}")
    monkeypatch.setattr("nanoft.pages.plots.can_draw", lambda: False)
    with pytest.raises(UserError, match="install matplotlib"):
        call(inside, f"--gpt={runs / 'gpt'}", f"--classifier={runs / 'classify'}", f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_the_recorded_walk_fits_its_template():
    names = ("inside.md", "inside.template.md")
    text, template = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in names)
    end = 0
    for words in re.split(r"\{[^}]*\}", template):
        assert words in text[end:]
        end = text.index(words, end) + len(words)
    assert end == len(text)
    for path in (ROOT / "docs" / "inside.md", ROOT / "docs" / "tensorboard" / "README.md"):
        assert links(path) and all((path.parent / link).exists() for link in links(path))
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "docs").rglob("*.png"))


def test_coloured_words_are_drawn_in_their_colours(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    assert plots.can_draw()  # sets the style
    figure = inside.draw_words([("a heading", ["good ", "$1 ", "$2", "中文\n"], [1, 0, -1, 0.5]),
                                ("", ["long "] * 8, [0] * 8)], width=15)
    drawn = figure.axes[0].texts
    cells = {text.get_text(): text.get_position() for text in drawn}
    assert cells["$2"][0] == 8 and cells["中文↵"][0] == 10  # which takes 5 cells, two for each Chinese letter
    assert len({text.get_position()[1] for text in drawn}) == 1 + 1 + 3  # 3 words a line
    assert not any(text.get_parse_math() for text in drawn)
    plots.save(figure, tmp_path / "p.png")
    found = {colour for _, colour in Image.open(tmp_path / "p.png").convert("RGB").getcolors(2**24)}
    for colour in (html.BLUE, html.ORANGE):  # at 70 % on white
        assert min(max(abs(255 - 0.7 * (255 - x) - y) for x, y in zip(colour, seen)) for seen in found) < 3
