"""sample.py --explain: a page and pictures for every kind of model, Chinese, long texts, and no matplotlib."""

import json
import re
import sys
import zlib
from base64 import b64decode
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import some_slow
from test_heads import BASE, TASKS, WORDS, make

import sample
from nanoft import UserError, bpe, checkpoint
from nanoft.inspect import targets
from nanoft.model import BERT, GPT, ModelConfig
from nanoft.pages import explain_page, plots

TEXT = "one two three four five six seven"
OPTIONS = {
    "classify": [f"--text={TEXT}"], "multi": [f"--text={TEXT}"], "regress": [f"--text={TEXT}", "--pair=eight nine"],
    "pair": [f"--text={TEXT}", "--pair=eight nine"], "tag": [f"--text={TEXT}"],
    "answer": ["--question=which one", f"--context={TEXT * 9}"], "gpt": [f"--prompt={TEXT}", "--max_new_tokens=3"],
    "masks": ["--prompt=one <|mask|> three <|mask|>"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([" ".join(WORDS) * 3, "电影电影 很好很好"], 300, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A run folder of each kind, its weights drawn at random."""
    TASKS["pair"] = ({"labels": ["no", "yes"]}, None)
    folders = {}
    for name in OPTIONS:
        if name in ("gpt", "masks"):
            torch.manual_seed(0)
            fields = dict(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32)
            model = (GPT if name == "gpt" else BERT)(ModelConfig(**fields, causal=name == "gpt"))
            for p in model.parameters():
                p.data = torch.randn_like(p) * 0.2
            task = None
        else:
            model, task = make(name, tokenizer)
            task["kind"] = TASKS[name][0].get("kind", name)
        folders[name] = tmp_path_factory.mktemp("runs") / name
        folders[name].mkdir()
        tokenizer.save(folders[name] / "tokenizer.json")
        state = {"model": model.state_dict(), "model_config": asdict(model.cfg), "step": 1}
        checkpoint.save(folders[name] / "best.pt", state | ({"task": task} if task else {}))
    del TASKS["pair"]
    return folders


@pytest.fixture
def explained(call, runs, tmp_path, capsys):
    """explained(name, *options): the page's text, what was printed, and the folder."""
    def explained(name, *options):
        call(sample, f"--checkpoint={runs[name]}", "--device=cpu", "--explain", "--ig_steps=20",
             f"--output={tmp_path / 'page'}", *options)
        page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
        return page, capsys.readouterr().out, tmp_path / "page"

    return explained


@pytest.mark.parametrize("name", some_slow(OPTIONS))
def test_a_page_for_every_kind_of_model(explained, name):
    page, printed, folder = explained(name, *OPTIONS[name])
    # nothing from elsewhere
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?:|@import|url\(""", page)
    assert "default-src 'none'" in page
    # what was explained, and how well
    for part in ("Integrated gradients", "Input x gradient", "Saliency", "Attention rollout", "Neighbours"):
        assert part in page
    assert ("Logit lens" in page) == (name in ("gpt", "masks"))
    assert page.count("<button") == 2 * 2 + 1 and 'alt="layer 2, head 2"' in page
    scores = re.findall(r"convergence delta ([-+.\de]+), [\d.]+% of the difference \(20 steps[^)]*\)", printed)
    assert len(scores) == page.count("(convergence delta") >= (2 if name == "masks" else 1)
    assert f"index.html{', words.png, attention.png, rollout.png' if plots.can_draw() else ''}" in printed
    pngs = {path.name for path in folder.iterdir()} - {"index.html"}
    wanted = {"words.png", "attention.png", "rollout.png"} | ({"lens.png"} if name in ("gpt", "masks") else set())
    assert pngs == (wanted if plots.can_draw() else set())
    assert all((folder / png).read_bytes().startswith(b"\x89PNG") for png in pngs)


def test_words_add_up_on_the_page_as_the_model_says(explained, runs, tokenizer):
    page, printed, _ = explained("classify", f"--text={TEXT}")
    score, base, total = (float(x) for x in re.search(
        r"<h3>logit of [abc]: ([-.\d]+)</h3>\n.*baseline has ([-.\d]+); the words add up to ([-+.\d]+)", page).groups())
    assert total == pytest.approx(score - base, abs=2e-3)
    notes = re.findall(r'title="([^"]*): ([-+.\de]+)"', page.partition("</details>")[0])
    assert sum(float(value) for _, value in notes) == pytest.approx(total, abs=0.01)
    assert [word for word, _ in notes][1:-1] == [tokenizer.decode([i]).strip() for i in tokenizer.encode(TEXT)]


def test_without_matplotlib_the_page_is_whole_and_a_line_says_how_to_get_it(explained, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots.can_draw.cache_clear()
    page, printed, folder = explained("gpt", *OPTIONS["gpt"])
    plots.can_draw.cache_clear()
    assert "pip install" in printed and [path.name for path in folder.iterdir()] == ["index.html"]
    assert page.count("data:image/png;base64,") == 2 * 2 + 1 + 1  # the small maps, and the large one


def test_chinese_is_shown_as_characters(explained, tokenizer):
    text = "电影很好，演员也好"
    page, printed, _ = explained("classify", f"--text={text}")
    assert "\ufffd" not in page + printed
    coloured = re.findall(r"<span[^>]*>([^<]*)</span>", page.partition("</details>")[0])
    assert "".join(coloured[1:-1]) == text and len(coloured) > 5
    rows = json.loads(re.search(r'data-names="([^"]*)"', page)[1].replace("&quot;", '"').replace("&lt;", "<").replace(
        "&gt;", ">"))[0]
    assert "".join(rows[1:-1]) == text


def test_tokens_of_a_character_are_together(tokenizer):
    single = bpe.Tokenizer("gpt4", [])  # a token is a byte
    ids = torch.tensor([*"aé中".encode(), 0xE4, 0xB8, single.special["<|sep|>"], 0xFF, 0x62])
    units = targets.text_units(ids, single)
    assert units == [("a", [0]), ("é", [1, 2]), ("中", [3, 4, 5]), ("\ufffd", [6, 7]), ("<|sep|>", [8]),
                     ("\ufffd", [9]), ("b", [10])]
    maps = np.random.default_rng(0).dirichlet(np.ones(11), size=(2, 11))  # (2, 11, 11)
    together = targets.unit_maps(maps, units)
    assert together.shape == (2, 7, 7) and np.allclose(together.sum(-1), 1)
    assert together[1, 2, 1] == pytest.approx(maps[1, 3:6, 1:3].sum(-1).mean())


@pytest.mark.slow
def test_long_texts_are_drawn_in_part_and_it_is_said(explained):
    text = " ".join(WORDS) * 2
    page, _, _ = explained("gpt", f"--prompt={text}", "--max_new_tokens=2", "--drawn_tokens=5")
    assert re.search(r"5 of \d+ tokens are drawn, from number \d+ on", page)
    rows, columns = json.loads(re.search(r'data-names="([^"]*)"', page)[1].replace("&quot;", '"'))
    assert len(rows) == 5 and columns == rows + ["(all others)"]
    assert "tokens no longer fit" not in page
    page, _, _ = explained("gpt", f"--prompt={text * 4}", "--max_new_tokens=2")
    assert "tokens no longer fit" in page
    page, _, _ = explained("classify", f"--text={text * 4}")  # BASE takes windows
    assert re.search(r"Window \d of \d", page)


def test_rows_of_a_part_still_add_up():
    maps = np.random.default_rng(0).dirichlet(np.ones(9), size=(2, 3, 9))
    view = explain_page.View([(str(i), [i]) for i in range(9)], 4, 7, [0], [0])
    part = view.crop(maps)
    assert part.shape == (2, 3, 3, 4) and np.allclose(part.sum(-1), 1)
    assert np.allclose(part[..., :3], maps[:, :, 4:7, 4:7])


def test_a_map_is_a_picture_whose_opacity_is_the_root_of_the_weight():
    weights = np.array([[0, 0.25, 1.0], [0.5, 0.01, 0.0]])
    png = b64decode(explain_page.map_image(weights).partition(",")[2])
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[16:24] == bytes([0, 0, 0, 3, 0, 0, 0, 2])
    data = png[png.index(b"IDAT") + 4:png.index(b"IEND") - 8]
    rows = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(2, 13)
    assert np.allclose((rows[:, 4::4] / 255) ** 2, weights, atol=0.005)


def test_filters_of_layers_and_heads(explained):
    page, _, _ = explained("classify", f"--text={TEXT}", "--layers=2", "--heads=1,2")
    assert re.findall(r'alt="([^"]*)"', page) == ["layer 2, head 1", "layer 2, head 2", "rollout"]


@pytest.mark.parametrize("options, words", [
    (["--layers=3"], "layers 1 to 2"), (["--heads=0"], "heads 1 to 2"), (["--layers=one"], "layers=one"),
    (["--drawn_tokens=0"], "drawn_tokens"), (["--ig_steps=0"], "ig_steps"), (["--pseudo_perplexity"], "explain"),
    (["--output={run}/best.pt"], "folder"), (["--prompt=no mask"], "<|mask|>"),
])
def test_what_cannot_be_explained_is_refused(explained, runs, tmp_path, options, words):
    options = [option.replace("{run}", str(runs["masks"])) for option in options]
    with pytest.raises(UserError, match=re.escape(words)):
        explained("masks", "--prompt=one <|mask|>", *options)
    assert not (tmp_path / "page").exists()


def test_the_page_goes_into_the_run_by_itself(call, runs):
    call(sample, f"--checkpoint={runs['tag']}", "--device=cpu", "--explain", "--ig_steps=2", "--text=one two")
    assert (runs["tag"] / "explain" / "index.html").exists()
    assert BASE["max_length"] == 32
