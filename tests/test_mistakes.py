"""What TensorBoard gets of a fine-tuned model: curves, the confusion matrix, the hardest mistakes, the projector."""

import random
import zlib

import numpy as np
import pytest
from conftest import run
from test_finetune import write_base, write_folder
from test_story_finetune import FAST, KINDS, TORCHRUN
from test_story_train import load, losses, result
from test_watch import scalar, text, written

import finetune
from nanoft.inspect.mistakes import FONT, confusion_picture, mistakes, one_against_the_rest, png

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


@pytest.mark.parametrize("name", OF_KIND)
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


def test_mistakes_come_with_how_sure_the_model_was():
    rows = [{"text": text, "label": label} for text, label in (("one", "a"), ("two", "b"), ("three", "a"))]
    found = [{"prediction": "b", "probabilities": {"a": 1 - p, "b": p}} for p in (0.9, 0.8, 0.6)]
    assert list(mistakes(TASK, rows, found)) == [(0.9, "one", "a", "b"), (0.6, "three", "a", "b")]
    several = [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": []}]
    found = [{"prediction": [], "probabilities": {"a": p, "b": 0.1}} for p in (0.2, 0.1)]
    assert list(mistakes(TASK | {"multi_label": True}, several, found)) == [(0.8, "x", "a", "")]
    tags = [{"words": ["in", "Rome", "now"], "tags": ["O", "B-x", "O"]}]
    assert list(mistakes({"kind": "tag"}, tags, [{"prediction": ["O", "O", "O"]}])) == [
        (1, "in Rome now", "Rome: B-x", "Rome: O")]
    answers = [{"question": "q", "answers": [{"text": "the 41"}]}, {"question": "r", "answers": []}]
    assert not list(mistakes({"kind": "answer"}, answers, [{"prediction": "41", "probability": 0.5},
                                                           {"prediction": "", "probability": 0.0}]))
    numbers = [{"text": "t", "label": 3.0}]
    assert list(mistakes({"kind": "regress"}, numbers, [{"prediction": 1.5}])) == [(1.5, "t", 3.0, 1.5)]


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
