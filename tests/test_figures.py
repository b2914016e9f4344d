"""Pages on data sets: one page and its figures for every kind of data, with the right numbers in them."""

import json
import random
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from conftest import read_page, some_slow
from test_finetune import write_folder
from test_story_finetune import KINDS

from nanoft import UserError
from nanoft.pages import data_report
from nanoft.text import prepare


def make(call, capsys, *args):
    capsys.readouterr()
    call(data_report, *args)
    return capsys.readouterr().out


def test_a_folder_for_pretraining(corpus, tmp_path, call, capsys):
    out = make(call, capsys, corpus, f"--out={tmp_path / 'f'}")
    text = read_page(tmp_path / "f" / "figures.html")
    assert "do not occur" in out and "bytes per token by vocabulary size" in out and "copies of one before" in out
    known = {split: float(re.search(rf"{split}: ([\d.]+)% of its runs", out)[1]) for split in ("val", "test")}
    assert known["val"] < 20 < known["test"] < 100  # one of the two test documents is a training document, too
    for heading in ("Lengths", "Frequencies", "Compression", "Copies", "as a GPT sees them", "as an encoder sees them"):
        assert heading in text
    assert "<|mask|>" in text and "was " in (tmp_path / "f" / "figures.html").read_text(encoding="utf-8")
    drawn = {path.name for path in (tmp_path / "f").glob("*.png")}
    assert drawn == ({"lengths.png", "token_lengths.png", "zipf.png", "compression.png"}
                     if data_report.plots.can_draw() else set())


@pytest.mark.parametrize("name", some_slow(KINDS))
def test_folders_for_fine_tuning(name, tmp_path, call, capsys):
    row, task, _ = KINDS[name]
    rng = random.Random(name)
    rows = [row(rng) for _ in range(60)]
    rows += rows[:7]  # copies
    folder = write_folder(tmp_path / name, rows, [row(rng) for _ in range(30)] + rows[:3], **task)
    out = make(call, capsys, folder)
    text = read_page(folder / "figures" / "figures.html")
    again = [line for line in out.splitlines() if line.startswith("train: ") and "copies" in line]
    assert int(again[0].split()[1]) >= 7
    assert "rows as the model sees them" in text and "<|sep|>" in text or name == "generate"
    if "labels" in task:
        assert all(label in text for label in task["labels"])


def test_a_table_without_a_tokenizer(tmp_path, call, capsys):
    stars = [("good", 5), ("bad", 1)] * 30
    lines = [f'"{word} film number {i}, 很好",{number}' for i, (word, number) in enumerate(stars)]
    (tmp_path / "films.csv").write_text("review,stars\n" + "\n".join(lines) + "\n", encoding="utf-8")
    out = make(call, capsys, tmp_path / "films.csv", "--label_column=stars")
    assert "a tokenizer is learned from the rows" in out
    assert "很好" in read_page(tmp_path / "films_figures" / "figures.html")
    rows = [json.dumps({"text": f"row {i}", "label": "ab"[i % 2]}) for i in [*range(40), *range(8), *range(8)]]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    make(call, capsys, tmp_path / "rows.jsonl", f"--out={tmp_path / 'g'}")
    assert re.search(r"occur most often\s+3 row \d\n", read_page(tmp_path / "g" / "figures.html"))


@pytest.mark.parametrize("kind, rows, percent", [
    ("classify", [{"label": label} for label in "OOOOOOAABB"], [60, 20, 20]),
    ("classify", [{"labels": ["x", "y"]}] * 10, [100, 100]), ("tag", [{"tags": ["O", "B-a", "O", "B-b"]}], [50, 50])])
def test_the_shares_of_labels_are_of_rows_and_of_tags_of_those_but_o(kind, rows, percent):
    figure, drawn = pytest.importorskip("matplotlib.figure"), []

    @contextmanager
    def plot(*_):
        drawn.append(figure.Figure().add_subplot())
        yield drawn[0]

    page = SimpleNamespace(heading=lambda *_: None, add=lambda *_: None, plot=plot)
    data_report.labels(page, {"kind": kind}, {"train": rows})
    assert [bar.get_width() for bar in drawn[0].patches] == percent


def test_without_matplotlib_the_page_is_made_all_the_same(corpus, tmp_path, call, capsys, monkeypatch):
    monkeypatch.setattr("nanoft.pages.plots.can_draw", lambda: False)
    make(call, capsys, corpus, f"--out={tmp_path}")
    assert "as a GPT sees them" in read_page(tmp_path / "figures.html") and not list(tmp_path.glob("*.png"))


def test_what_cannot_be_shown(tmp_path, call):
    for args, sentence in (((), "usage: python -m nanoft figures"), ((tmp_path,), "neither task.json nor train.bin"),
                           ((tmp_path / "none",), "no folder"),
                           ((tmp_path, "--block_size=2"), "block_size=2 must be 16 or more")):
        with pytest.raises(UserError, match=sentence):
            call(data_report, *args)


def test_one_document_alone(tmp_path, call, capsys):
    prepare.write_data(tmp_path, {"train": lambda: ["a text of one document " * 40]}, 270)
    make(call, capsys, tmp_path)
    assert "0 of 1 documents are copies" in read_page(tmp_path / "figures" / "figures.html")
