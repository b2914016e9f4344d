"""sample.py as its user calls it: seeds, several samples, files in and out, text as a stream, and wrong input."""

import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, contents, run

import sample
from nanoft import UserError, config
from nanoft.bpe import Tokenizer


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "speaker"
    run("train.py", *TINY, "--max_steps=30", "--eval_interval=30", f"--data={corpus}", f"--out_dir={folder}")
    return folder


@pytest.fixture
def say(call, trained):
    """say(*options): what sample.py prints."""
    def say(*options):
        with redirect_stdout(io.StringIO()) as out:
            call(sample, f"--checkpoint={trained}", "--device=cpu", "--dtype=float32", "--max_new_tokens=40", *options)
        return out.getvalue()

    return say


def test_the_same_seed_says_the_same(say):
    first = say("--prompt=def ", "--seed=3")
    assert first.startswith("def ") and first.endswith("\n---\n") and len(first) > 20
    assert say("--prompt=def ", "--seed=3") == first
    assert say("--prompt=def ", "--seed=4") != first


def test_two_samples_are_two_texts(say):
    texts = say("--prompt=def ", "--num_samples=2", "--seed=3").split("\n---\n")
    assert len(texts) == 3 and texts[2] == "" and texts[0] != texts[1]
    assert all(text.startswith("def ") for text in texts[:2])
    assert say("--prompt=def ", "--seed=3") == texts[0] + "\n---\n"  # one sample more does not change the first


def test_temperature_zero_needs_no_seed(say):
    assert say("--prompt=def ", "--temperature=0", "--seed=1") == say("--prompt=def ", "--temperature=0", "--seed=2")


def test_a_new_document_shows_no_special_token(say):
    assert "<|endoftext|>" not in say()


@pytest.mark.parametrize("options", [["--top_k=1"], ["--top_p=1e-9"], ["--temperature=1e-40"]])
def test_each_of_these_is_the_likeliest_token(say, options):
    assert say("--prompt=def ", "--top_p=1", *options) == say("--prompt=def ", "--temperature=0")


@pytest.mark.parametrize("options", [["--repetition_penalty=1.3"], ["--top_k=100000"], ["--max_new_tokens=1"],
                                     ["--dtype=bfloat16"], ["--temperature=1000"]])
def test_the_other_rules_give_text_too(say, options):
    assert say("--prompt=def ", *options).startswith("def ")


def test_prompts_from_a_file_become_json_lines(trained, say, tmp_path):
    prompts = ["def f(", "中文 🙂", "import "]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    run("sample.py", f"--checkpoint={trained}", "--device=cpu", "--dtype=float32", "--max_new_tokens=40",
        f"--input={tmp_path / 'prompts.txt'}", f"--output={tmp_path / 'answers.jsonl'}", "--num_samples=2")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["prompt"] for answer in answers] == [prompt for prompt in prompts for _ in range(2)]
    assert answers[0]["text"] != answers[1]["text"]
    # the file holds what the screen would have shown
    shown = say(f"--input={tmp_path / 'prompts.txt'}", "--num_samples=2").split("\n---\n")[:-1]
    assert shown == [answer["prompt"] + answer["text"] for answer in answers]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "prompts.txt"]


def test_a_terminal_that_cannot_show_a_character_gets_another(trained):
    done = run("sample.py", f"--checkpoint={trained}", "--prompt=\u4e2d\u6587", "--device=cpu", "--max_new_tokens=40",
               env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.endswith("\n---\n")


def streamed(monkeypatch, ids, tokenizer):
    monkeypatch.setattr(sample.generate, "generate", lambda *a, **k: (torch.tensor([i]) for i in ids))
    cfg = SimpleNamespace(max_new_tokens=99, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    return list(sample.stream(None, tokenizer, [0], cfg, torch.Generator()))


def test_a_stream_never_cuts_a_character(monkeypatch):
    tokenizer = Tokenizer("gpt4", [])  # a token is a byte: every character below is cut by its tokens
    text = "naïve 中文 🙂\n"
    pieces = streamed(monkeypatch, list(text.encode()), tokenizer)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)  # and each came as soon as it was whole


def test_a_stream_that_ends_inside_a_character_says_so_once(monkeypatch):
    tokenizer = Tokenizer("gpt4", [])
    end = tokenizer.special["<|endoftext|>"]
    assert "".join(streamed(monkeypatch, [*"a🙂".encode()[:-1], end], tokenizer)) == "a\ufffd"


# --- rows


@pytest.fixture
def read(tmp_path):
    """read(kind, *options, content=...): the rows of --input={tmp}/in.EXT, which holds the content, or of options."""
    def read(kind, *options, content=""):
        if content:
            (tmp_path / options[0].rpartition("/")[2]).write_text(content, encoding="utf-8")
        options = [option.replace("{tmp}", str(tmp_path)) for option in options]
        return sample.read_rows(config.load(sample.Config, options, check=sample.check), kind)

    return read


def test_prompts_may_be_texts_or_stand_in_jsonl_for_a_model_that_was_taught_to_respond(trained, call, tmp_path, capsys):
    state = torch.load(trained / "best.pt", weights_only=True)
    torch.save(state | {"task": {"kind": "generate"}}, tmp_path / "best.pt")
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    (tmp_path / "in.jsonl").write_text('{"prompt": "def f", "id": 7}\n\n{"prompt": "class"}\n', encoding="utf-8")
    here = [f"--checkpoint={tmp_path}", "--device=cpu", "--dtype=float32", "--max_new_tokens=4", "--temperature=0"]
    call(sample, *here, f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}")
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert first["prompt"] == "def f\n" and first["id"] == 7 and second["prompt"] == "class\n"
    capsys.readouterr()
    call(sample, *here, "--text=def f", "--text=class")
    assert capsys.readouterr().out == "".join(f"{row['prompt']}{row['text']}\n---\n" for row in (first, second))


def test_a_blank_line_of_a_file_has_its_number(read, tmp_path):
    rows = read("classify", "--input={tmp}/in.txt", content="\ufefflovely\r\n\n \n\x0c2nd\u2028half\n")
    assert rows == [{"line": 1, "text": "lovely"}, {"line": 4, "text": "\x0c2nd\u2028half"}]
    with pytest.raises(UserError, match=r"in.txt line 3: no pair for a model of kind pair"):
        read("pair", "--input={tmp}/in.txt", content="\n\nlovely\n")


@pytest.mark.parametrize("kind, name, content, rows", [
    ("classify", "in.csv", 'id,review,label\n1,"good, ""so""\nto say",pos\n',
     [{"id": "1", "label": "pos", "text": 'good, "so"\nto say'}]),
    ("classify", "in.csv", "text,review\na,b\n", [{"text": "a", "review": "b"}]),
    ("embed", "in.tsv", "Sentence\tn\ngood, so\t1\n", [{"n": "1", "text": "good, so"}]),
    ("pair", "in.csv", "sentence1,sentence2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("regress", "in.csv", "text,score\na,3\n", [{"text": "a", "score": "3"}]),
    ("regress", "in.csv", "text,text2\na,b\n", [{"text": "a", "pair": "b"}]),
    ("tag", "in.csv", "text\nin Rome\n", [{"text": "in Rome", "words": ["in", "Rome"]}]),
    ("answer", "in.csv", "question,context\na,b\n", [{"question": "a", "context": "b"}]),
    ("generate", "in.csv", "instruction,output\na,b\n", [{"output": "b", "prompt": "a"}]),
    ("", "in.csv", "prompt\na\n", [{"prompt": "a"}]),
    ("classify", "in.jsonl", '{"review": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
    ("classify", "in.jsonl", '{"text": "a", "pair": 3}\n', [{"text": "a"}]),  # it would be a second text
    ("regress", "in.jsonl", '{"text": "a", "pair": "b"}\n{"text": "c"}\n', [{"text": "a", "pair": "b"}, {"text": "c"}]),
    ("tag", "in.jsonl", '{"words": ["\u6f14\u5458", "a b"]}\n', [{"words": ["\u6f14\u5458", "a b"]}]),
])
def test_rows_of_a_table(read, kind, name, content, rows):
    assert read(kind, f"--input={{tmp}}/{name}", content=content) == rows


def test_chinese_characters_are_words_to_be_tagged(read):
    assert read("tag", "--text=演员很好看。（iPhone 12）don't go了")[0]["words"] == [
        *"演员很好看。（", "iPhone", "12", "）", "don't", "go", "了"]


@pytest.mark.parametrize("kind, options, content, words", [
    ("classify", ["--input={tmp}/in.txt", "--text=a"], "b", "input and text do not go together"),
    ("pair", ["--input={tmp}/in.txt", "--pair=a"], "b", "input and pair do not go together"),
    ("generate", ["--prompt=a", "--text=b"], "", "prompt and text do not go together"),
    ("classify", ["--text=a", "--pair=b"], "", "--pair means nothing to a model of kind classify; give --text=..."),
    ("tag", ["--text=a", "--pair=b"], "", "--pair means nothing to a model of kind tag"),
    ("embed", ["--text=a", "--pair=b"], "", "--pair means nothing"),
    ("classify", ["--prompt=a"], "", "--prompt means nothing"),
    ("pair", ["--question=a"], "", "give --text=... --pair=..."),
    ("answer", ["--text=a"], "", "give --question=... --context=..."),
    ("", ["--text=a"], "", "--text means nothing to a model that is not fine-tuned for a task; give --prompt=..."),
    ("pair", ["--text=a"], "", "the command line: no pair for a model of kind pair; give --text=... --pair=..."),
    ("tag", [], "", "the command line: no words for a model of kind tag; give --text=..."),
    ("generate", ["--input={tmp}/in.jsonl"], '{"prompt": "a"}\n\n{"response": "b"}', "in.jsonl line 3: no prompt"),
    ("generate", ["--input={tmp}/in.jsonl"], '{"prompt": 3}', "in.jsonl line 1: prompt is 3, not a text"),
    ("pair", ["--input={tmp}/in.jsonl"], '{"text": "a", "pair": 3}', "in.jsonl line 1: pair is 3, not a text"),
    ("regress", ["--input={tmp}/in.jsonl"], '{"text": "a", "pair": null}', "pair is None, not a text"),
    ("tag", ["--input={tmp}/in.jsonl"], '{"words": ["a", 3]}', "words is ['a', 3], not a list of texts"),
    ("classify", ["--input={tmp}/in.jsonl"], '{"text": "a"', "in.jsonl line 1: broken JSON"),
    ("classify", ["--input={tmp}/in.csv"], "id,label\n1,a\n", "in.csv line 2: no text for a model of kind classify, "
     "only id, label"),
    ("classify", ["--input={tmp}/in.csv"], "review,tweet\na,b\n", "only review, tweet"),  # which of them?
])
def test_what_brings_no_rows_is_refused_in_one_sentence(read, kind, options, content, words):
    with pytest.raises(UserError) as error:
        read(kind, *(options or ["--seed=1"]), content=content)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


# --- wrong input


@pytest.mark.parametrize("options, words", [
    (["--prompt="], "has no tokens"),
    (["--prompt=a\udcffb"], "surrogate"),  # what Python makes of a byte that is not UTF-8 on the command line
    (["--temperature=-1"], "temperature=-1"),
    (["--top_p=0"], "top_p"),
    (["--top_k=-1"], "top_k"),
    (["--num_samples=0"], "num_samples"),
    (["--repetition_penalty=0"], "repetition_penalty"),
    (["--input={tmp}/nowhere.txt"], "nowhere.txt"),
    (["--input={tmp}/empty.txt"], "no prompt"),
    (["--input={tmp}/latin.txt"], "UTF-8"),
    (["--output={tmp}/no/folder.jsonl"], "folder"),
    (["--output={tmp}"], "output"),
    (["--checkpoint={tmp}/nowhere"], "no checkpoint there"),
    (["--checkpoint={tmp}"], "no checkpoint there"),
    (["--checkpoint={tmp}/text.pt"], "not a checkpoint"),
    (["--checkpoint={tmp}/foreign.pt"], "not a nanoft checkpoint"),
    (["--checkpoint={tmp}/later.pt"], "later.pt"),
    (["--checkpoint={tmp}/alone.pt"], "tokenizer.json"),
    (["--checkpoint={tmp}/adapter.pt"], "is an adapter, not a whole model"),
])
def test_what_cannot_be_is_refused_in_one_sentence(trained, tmp_path, say, options, words):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "text.pt").write_text("no weights", encoding="utf-8")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    torch.save({"model": {}, "model_config": {}, "step": 1, "rank": 2, "alpha": 16.0}, tmp_path / "adapter.pt")
    (tmp_path / "alone.pt").write_bytes((trained / "best.pt").read_bytes())
    if "later" in options[0]:
        state = torch.load(trained / "best.pt", weights_only=True)
        state["model_config"]["n_experts"] = 8
        torch.save(state, tmp_path / "later.pt")
        (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    before = contents(tmp_path, trained)
    with pytest.raises(UserError) as error:
        say("--max_new_tokens=2", *[word.replace("{tmp}", str(tmp_path)) for word in options])
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
    assert contents(tmp_path, trained) == before


def test_wrong_input_on_the_command_line_ends_with_exit_code_2(trained):
    before = contents(trained)
    done = run("sample.py", f"--checkpoint={trained}", "--prompt=", "--device=cpu", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: the prompt ")  # a line on the number format may stand before
    assert "Traceback" not in done.stderr and contents(trained) == before


def test_several_wrong_options_are_named_together_before_anything_is_loaded():
    done = run("sample.py", "--checkpoint=nowhere", "--temperature=-1", "--top_p=2", "--promt=x", check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "did you mean prompt" in done.stderr and "nowhere" not in done.stderr
