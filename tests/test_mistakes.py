"""What TensorBoard gets of a fine-tuned model: curves, the confusion matrix, the hardest mistakes, the projector."""

import html
import random
import re
import shutil
import zlib

import numpy as np
import pytest
from conftest import run, some_slow
from test_finetune import write_base, write_folder
from test_story_finetune import FAST, KINDS, TORCHRUN
from test_story_train import load, losses, result
from test_watch import scalar, text, written

import finetune
from nanoft.inspect.mistakes import confusion_picture, mistakes_table, one_against_the_rest, worst_rows
from nanoft.inspect.pictures import FONT, png
from nanoft.pages import run_report

OF_KIND = {  # what TensorBoard gets beside f1/, and the classes of pr/
    "classify": (["bad", "fine", "good"], True), "several": (["cats", "dogs"], False), "pair": (["no", "yes"], True),
    "regress": ([], False), "tag": (["O", "B-person", "I-person", "B-place"], True), "maybe_answer": ([], False),
    "generate": ([], False)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    for name in OF_KIND:
        make, task, _ = KINDS[name]
        rng = random.Random(name)
        write_folder(folder / name, *([make(rng) for _ in range(n)] for n in (64, 40, 8)), **task)
    write_base(folder / "encoder", folder / "classify" / "tokenizer.json")
    write_base(folder / "gpt", folder / "classify" / "tokenizer.json", causal=True)
    return folder


def options(home, name, out):
    base = "gpt" if name == "generate" else "encoder"
    return [*FAST, f"--data={home / name}", f"--init_from={home / base}", f"--out_dir={out}", "--max_steps=4",
            "--eval_interval=2"]


@pytest.mark.parametrize("name", some_slow(OF_KIND))
def test_every_promised_tag_of_fine_tuning_is_there(name, home, tmp_path, call):
    call(finetune, *options(home, name, tmp_path))
    found, (classes, matrix) = written(tmp_path), OF_KIND[name]
    assert {"train/loss", "train/epoch", "speed/rows_per_s", "speed/memory_gb", "lr/blocks.0", "lr/embeddings",
            "gradient_norm/blocks.1", "update_ratio/blocks.1", "attention_entropy/blocks.1.h1", "weights/tokens",
            "gradients/blocks.0.mlp.fc", "activations/blocks.1", "config/text_summary", "environment/text_summary",
            "graph", "_hparams_/session_start_info"} <= found.keys()
    assert {tag for tag in found if tag.startswith("pr/")} == {f"pr/{label}" for label in classes}
    assert ("confusion" in found) == ("confusion/text_summary" in found) == matrix
    if classes:
        types = {"tag": ["person", "place"]}.get(name, classes)
        assert {tag for tag in found if tag.startswith("f1/")} >= {f"f1/{label}" for label in types}
    if matrix:
        image = found["confusion"][-1][1].image
        assert [step for step, _ in found["confusion"]] == [2, 4]
        assert image.encoded_image_string.startswith(b"\x89PNG") and image.width > image.height > 50
    table = text(found, "hardest mistakes").splitlines()  # four steps leave mistakes
    assert len(table) > 3 and len({line.count("|") for line in table}) == 1
    if name in ("maybe_answer", "generate"):
        assert not (tmp_path / "vectors.tsv").exists()
        return
    vectors = np.loadtxt(tmp_path / "vectors.tsv", delimiter="\t", ndmin=2)
    lines = [line.split("\t") for line in (tmp_path / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == ["truth", "prediction", "text"] and {len(line) for line in lines} == {3}
    assert vectors.shape == (len(lines) - 1, 32) and vectors.std(axis=0).min() > 0
    assert name == "tag" or len(vectors) == 40
    assert 'tensor_path: "vectors.tsv"' in (tmp_path / "projector_config.pbtxt").read_text()
    if name == "classify":
        metric = result(tmp_path)["val_per_class"]["good"]["f1"] if result(tmp_path)["best_step"] == 4 else None
        assert metric is None or scalar(found, "f1/good")[4] == pytest.approx(metric)


@pytest.mark.parametrize("part, option", [("blocks.0.attn.q.lora_a", "--lora_rank=2"),
                                          ("task_head", "--freeze_blocks=-1")])
def test_only_what_is_trained_is_shown(part, option, home, tmp_path, call):
    call(finetune, *options(home, "classify", tmp_path), option)
    found = written(tmp_path)
    assert f"weights/{part}" in found and f"gradients/{part}" in found
    assert "weights/tokens" not in found and "update_ratio/tokens" not in found
    assert "activations/blocks.0" in found and "graph" in found


@pytest.mark.slow
def test_nothing_changes_without_and_only_the_first_process_writes(home, tmp_path, call):
    words = options(home, "classify", tmp_path / "with")
    call(finetune, *words)
    call(finetune, *words, f"--out_dir={tmp_path / 'without'}", "--watch_interval=0")
    run("finetune.py", *words, f"--out_dir={tmp_path / 'two'}", "--dropout=0", launcher=TORCHRUN)
    assert losses(tmp_path / "with").equal(losses(tmp_path / "without"))
    a, b = (load(tmp_path / name / "latest.pt")["model"] for name in ("with", "without"))
    assert all(a[name].equal(b[name]) for name in a)
    names = {path.name for path in (tmp_path / "without").iterdir()}
    assert not any("tfevents" in name or name.endswith((".tsv", ".pbtxt")) for name in names)
    assert len(list((tmp_path / "two").glob("events*"))) == 1 and "confusion" in written(tmp_path / "two")


# --- the parts


TASK = {"kind": "classify", "labels": ["a", "b"]}


def test_the_worst_come_first():
    guesses = [("a", "a", 0.9), ("a", "b", 0.4), ("b", "a", 0.02), ("a", "b", 0.3)]
    rows = [{"text": f"text {i}", "label": truth} for i, (truth, _, _) in enumerate(guesses)]
    found = [{"prediction": guess, "probabilities": {truth: p, "b" if truth == "a" else "a": 1 - p}}
             for truth, guess, p in guesses]
    worst = worst_rows(TASK, rows, found)
    assert worst == [(0.98, 2, "text 2", "b", "a"), (0.7, 3, "text 3", "a", "b"), (0.6, 1, "text 1", "a", "b")]
    assert worst_rows(TASK, rows[:1], found[:1]) == []
    assert mistakes_table(TASK, worst)[1][0] == ("2", "text 2", "b", "a", "0.980")
    numbers = [{"text": "t", "label": 1.0}] * 3
    worst = worst_rows({"kind": "regress"}, numbers, [{"prediction": p} for p in (1.5, 9.0, 1.0)])
    assert worst == [(8.0, 1, "t", "1", "9"), (0.5, 0, "t", "1", "1.5")]
    pairs = [{"prompt": "p", "response": "r"}, {"prompt": "q", "response": "s"}]
    worst = worst_rows({"kind": "generate"}, pairs, [{"nats": 2.0, "tokens": 4}, {"nats": 3.0, "tokens": 2}])
    assert worst == [(1.5, 1, "q", "s", ""), (0.5, 0, "p", "r", "")]


def test_several_mistakes_of_a_row_add_up():
    several = [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": []}, {"text": "z", "labels": ["a"]}]
    found = [{"prediction": guess, "probabilities": {"a": a, "b": b}}
             for guess, a, b in (([], 0.2, 0.1), ([], 0.1, 0.1), (["b"], 0.2, 0.7))]
    worst = worst_rows(TASK | {"multi_label": True}, several, found)
    assert worst == [(pytest.approx(1.5), 2, "z", "a", "b"), (0.8, 0, "x", "a", "none")]
    tags = {"words": ["in", "Rome", "now"], "tags": ["O", "B-x", "O"]}
    found = {"prediction": ["O", "O", "B-x"], "probabilities": [0.9, 0.75, 0.5]}
    assert worst_rows({"kind": "tag"}, [tags], [found]) == [
        (1.25, 0, "in Rome now", "Rome: B-x, now: O", "Rome: O, now: B-x")]
    del tags["words"]
    assert worst_rows({"kind": "tag"}, [tags], [found]) == [(1.25, 0, "", "word 2: B-x, word 3: O",
                                                             "word 2: O, word 3: B-x")]


def test_an_answer_is_as_wrong_as_its_f1_is_low():
    rows = [{"question": "q", "answers": [{"text": "the 41"}]}, {"question": "r", "answers": []},
            {"question": "s", "answers": [{"text": "two cats"}, {"text": "2"}]}, {"question": "t", "answers": []}]
    found = [{"prediction": guess, "probability": p}
             for guess, p in (("41", 0.5), ("", 0.0), ("cats", 0.5), ("x", 0.5))]
    assert worst_rows({"kind": "answer"}, rows, found) == [
        (1.5, 3, "t", "no answer", "x"), (pytest.approx(0.5), 2, "s", "two cats / 2", "cats")]


@pytest.mark.parametrize("name", some_slow(OF_KIND))
def test_the_report_shows_the_same_mistakes(name, home, tmp_path, call):
    """TensorBoard's table of the only evaluation, and the report's of the same weights and rows."""
    shutil.copytree(home / name, tmp_path / "data")
    (tmp_path / "data" / "test.jsonl").unlink()
    call(finetune, *options(home, name, tmp_path / "run"), f"--data={tmp_path / 'data'}", "--max_steps=2",
         "--watch_interval=1", "--generate_rows=0")
    call(run_report, tmp_path / "run")
    page = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    shown = page.partition("Furthest from the truth (val)</h2>")[2].partition("</table>")[0].split("<tr>")[1:]
    shown = [re.split("<t[hd][^>]*>", line)[1:] for line in shown]
    table = html.unescape(text(written(tmp_path / "run"), "hardest mistakes"))
    logged = [line.strip("| ").split(" | ") for line in table.splitlines() if not line.startswith("|---")]
    assert len(logged) == len(shown) > 3
    for ours, theirs in zip(logged, shown):
        assert [" ".join(cell.split()) for cell in theirs if cell.strip()] == [cell for cell in ours if cell]


def test_a_curve_is_of_the_classs_own_probability():
    class Encoded:
        row, n_tokens = np.arange(2), np.zeros(2)

    rows = [{"label": "b"}, {"label": "a"}]
    truth, probability = one_against_the_rest(TASK, rows, Encoded, np.log([[0.2, 0.8], [0.7, 0.3]]))
    assert truth.tolist() == [[False, True], [True, False]]
    np.testing.assert_allclose(probability, [[0.2, 0.8], [0.7, 0.3]])


def test_the_picture_is_dark_where_a_row_went_and_a_png_holds_it():
    pixels = confusion_picture(np.array([[9, 1], [0, 4]]), ["neg", "pos"], dot=1)
    height, width, _ = pixels.shape
    cell = width // 3
    corners = [[pixels[18 + 11 * i, cell * (j + 1)].astype(int).sum() for j in (0, 1)] for i in (0, 1)]
    assert corners[0][0] < corners[0][1] and corners[1][1] < corners[0][0] and corners[1][0] == 240 + 244 + 250
    data = png(pixels)
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4:at], "big")
    lines = np.frombuffer(zlib.decompress(data[at + 4:at + 4 + length]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any() and (lines[:, 1:].reshape(pixels.shape) == pixels).all()
    assert int.from_bytes(data[-4:], "big") == zlib.crc32(b"IEND")
    one, other = (confusion_picture(np.eye(2, dtype=int), names) for names in (["差评", "好评"], ["0", "1"]))
    assert (one == other).all()  # letters that the font lacks


def test_the_letters_of_the_font_differ():
    assert len(FONT) == 40 and len({*FONT.values()}) == len(FONT)
    assert all(len(letter) == 5 and set(letter) <= set("01234567") for letter in FONT.values())
