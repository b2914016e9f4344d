"""nanoft.load: a model for programs, for each kind what it can do, and one sentence for what it cannot."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import test_explain_page
import torch
from conftest import ROOT

import nanoft
from nanoft import UserError
from nanoft.bpe import Tokenizer
from nanoft.serve import api

TEXT = "one two three four five six seven"  # in the words of these models, which are random ones of each kind
runs, tokenizer = test_explain_page.runs, test_explain_page.tokenizer


@pytest.fixture(scope="module")
def load(runs):
    return lambda name: nanoft.load(runs[name], "cpu", "float32")


def test_import_loads_neither_torch_nor_numpy():
    code = "import sys, nanoft; print(nanoft.load.__name__, {'torch', 'numpy', 'tiktoken'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "load set()"


def test_a_gpt_writes_whole_or_in_pieces(load):
    model = load("gpt")
    text = model.generate(TEXT, 20, seed=3)
    pieces = list(model.generate(TEXT, 20, seed=3, stream=True))
    assert text and "".join(pieces) == text and len(pieces) > 2
    assert model.generate(TEXT, 20, seed=4) != text == model.generate(TEXT, 20, seed=3)
    stopped = text[:text.index(text[5:7])]
    for stop in ((text[5:7],), text[5:7], ("", text[5:7])):  # one text is no tuple of letters, and "" is none
        assert model.generate(TEXT, 20, seed=3, stop=stop) == stopped
        assert model.texts([TEXT], 20, [3], stop=stop)[0]["text"] == stopped
    assert model.texts([TEXT], 20, [3], stop="")[0]["text"] == text


def test_logits_say_what_greedy_text_is_made_of(load):
    model = load("gpt")
    ids, new = model.prompt_ids(TEXT), []
    for row in model.tokens([ids], 5, [1], temperature=0):
        assert row[0].id == int(model.logits(ids + new)[-1].argmax())
        new.append(row[0].id)
    both = model.logits([ids, ids])
    torch.testing.assert_close(both[1], model.logits(ids))


def test_an_encoder_fills_and_embeds(load):
    model = load("masks")
    (mask,) = model.fill("one <|mask|>", k=3)
    assert len(mask) == 3 and mask[0][1] >= mask[1][1] > 0
    ids = model.encoder_ids("one <|mask|>")
    p = model.logits(ids)[ids == model.tokenizer.special["<|mask|>"]].softmax(-1).max()
    assert mask[0][1] == pytest.approx(float(p))
    vectors = model.embed(["one", "two three"])
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose((vectors ** 2).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.embed(["two three"])[0], vectors[1], atol=1e-5)
    assert model.embed([]).shape == (0, 32)


def test_fine_tuned_models_predict_rows_or_texts(load):
    model = load("classify")
    first, second = model.predict([TEXT, {"text": "one", "label": ["unread"], "id": 7}])
    assert first["prediction"] == max(first["probabilities"], key=first["probabilities"].get)
    assert [second] == model.predict(["one"]) and second != first and model.embed(["x"]).shape[0] == 1
    assert model.logits(model.tokenizer.encode("one")).shape == (len(model.task["labels"]),)
    (guess,) = load("tag").predict(["one two, three"])
    assert guess["words"] == ["one", "two", ",", "three"] and len(guess["prediction"]) == 4
    (guess,) = load("answer").predict([{"question": "which one", "context": TEXT}])
    assert guess["prediction"] in TEXT
    assert isinstance(load("regress").predict([{"text": "one", "pair": "two"}])[0]["prediction"], float)


def test_words_are_not_explained_in_int8_which_has_no_gradients(load, runs):
    assert len(load("classify").explain({"text": TEXT})) > 3
    for model in (nanoft.load(runs["classify"], "cpu", "int8"), load("tag")):
        with pytest.raises(UserError, match="not in int8"):
            model.explain({"text": TEXT})


@pytest.mark.parametrize("name, ask, words", [
    ("gpt", lambda m: m.predict(["a"]), "was not fine-tuned"), ("gpt", lambda m: m.fill("<|mask|>"), "fills no masks"),
    ("gpt", lambda m: m.embed(["a"]), "give an encoder"), ("gpt", lambda m: m.generate(""), "has no tokens"),
    ("gpt", lambda m: m.logits([0] * 33), "1 to 32 tokens"), ("gpt", lambda m: m.logits([[-1]]), "from 0 to"),
    ("gpt", lambda m: m.logits([]), "1 to 32 tokens"), ("masks", lambda m: m.generate("a"), "does not write"),
    ("masks", lambda m: m.fill("a"), "no <|mask|>"), ("masks", lambda m: m.embed(["a", 3]), "text 2: text is 3"),
    ("classify", lambda m: m.fill("<|mask|>"), "fills no masks"), ("classify", lambda m: m.predict([]), "no rows"),
    ("classify", lambda m: m.generate("a"), "does not write"), ("classify", lambda m: m.predict([3]), "row 1: text is"),
    ("classify", lambda m: m.predict([{"txt": "a"}]), "row 1: no text"), ("tag", lambda m: m.predict([{}]), "no words"),
    ("answer", lambda m: m.predict(["which"]), "no context"), ("masks", lambda m: m.fill("a" * 99 + "<|mask|>"), "mo"),
])
def test_what_a_model_cannot_do_is_one_sentence(load, name, ask, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        ask(load(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stop, text", [((), "a--b-"), (("--",), "a"), (("b", "--b"), "a"), (("-",), "a"),
                                        (("b-c",), "a--b-"), (("-b", "x"), "a-")])
def test_a_stop_text_ends_it_wherever_its_pieces_are_cut(stop, text):
    for pieces in (["a--b-"], list("a--b-"), ["a-", "-b", "-"], ["a", "--", "b-"]):
        assert "".join(api.until(pieces, stop)) == text


def test_a_stop_text_is_held_back_only_while_it_may_come():
    assert list(api.until(["a", "b", "c", "x"], ("bcd",))) == ["a", "", "", "bcx", ""]


def test_a_text_ends_at_the_end_of_a_document():
    tokenizer = Tokenizer("gpt4", [])
    assert "".join(api.text_pieces([97, tokenizer.special["<|endoftext|>"], 98], tokenizer)) == "a"


def test_the_example_of_the_readme_runs(runs, monkeypatch, tmp_path):
    blocks = re.findall(r"^```python\n(import nanoft\n.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
    assert blocks
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name, of in (("wikitext", "gpt"), ("wikitext_bert", "masks"), ("sst2", "classify"), ("wnut17", "tag")):
        (tmp_path / "out" / name).symlink_to(runs[of])
    with redirect_stdout(io.StringIO()) as out:
        exec(compile("".join(blocks), "README.md", "exec"), {})
    assert len(out.getvalue().splitlines()) >= 3
