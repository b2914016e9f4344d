"""sample.py as its user calls it: seeds, several samples, files in and out, text as a stream, and wrong input."""

import io
import json
from contextlib import redirect_stdout

import pytest
import torch
from conftest import TINY, contents, run

import sample
from nanoft import UserError
from nanoft.bpe import Tokenizer
from nanoft.serve import api


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


@pytest.mark.parametrize("options", [["--top_k=1"], ["--top_p=1e-6"], ["--temperature=1e-40"]])
def test_each_of_these_is_the_likeliest_token(say, options):
    assert say("--prompt=def ", "--top_p=1", *options) == say("--prompt=def ", "--temperature=0")


@pytest.mark.parametrize("options", [["--repetition_penalty=1.3"], ["--min_p=0.1"],
                                     ["--frequency_penalty=0.5", "--no_repeat_ngram=2"], ["--top_k=100000"],
                                     ["--max_new_tokens=1"],
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


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_character_gets_another(trained):
    done = run("sample.py", f"--checkpoint={trained}", "--prompt=\u4e2d\u6587", "--device=cpu", "--max_new_tokens=40",
               env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.endswith("\n---\n")


def test_a_stream_never_cuts_a_character():
    tokenizer = Tokenizer("gpt4", [])  # a token is a byte: every character below is cut by its tokens
    text = "naïve 中文 🙂\n"
    pieces = list(api.text_pieces(list(text.encode()), tokenizer))
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)  # and each came as soon as it was whole


def test_a_stream_that_ends_inside_a_character_says_so_once():
    tokenizer = Tokenizer("gpt4", [])
    end = tokenizer.special["<|endoftext|>"]
    assert "".join(api.text_pieces([*"a🙂".encode()[:-1], end], tokenizer)) == "a\ufffd"


# --- many continuations into a file


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_was_stopped_goes_on_to_the_same_file(say, tmp_path):
    options = ["--prompt=def ", "--num_samples=11", "--batch_size=4", "--max_new_tokens=8", "--temperature=0.9"]
    say(*options, f"--output={tmp_path / 'whole.jsonl'}")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert [line["seed"] for line in lines_of(tmp_path / "whole.jsonl")] == list(range(1, 12))
    begun = tmp_path / "begun.jsonl"
    for size in (0, 1, whole.index(b"\n") + 1, len(whole) * 2 // 3, len(whole)):
        begun.write_bytes(whole[:size])  # killed while it wrote
        assert say(*options, f"--output={begun}", "--resume").startswith("11 results")
        assert begun.read_bytes() == whole
    begun.unlink()
    say(*options, f"--output={begun}", "--resume")  # a command that is repeated until it is done may always say so
    with pytest.raises(UserError, match="holds lines already"):
        say(*options, f"--output={begun}")
    assert begun.read_bytes() == whole


@pytest.mark.parametrize("line", [
    '{"prompt": "class ", "text": "", "seed": 1}', '{"prompt": "def ", "text": ""}', "{no",
    '{"prompt": "def ", "text": "", "seed": 99}', '{"seed": []}'])
def test_another_file_is_not_gone_on_with(say, tmp_path, line):
    (tmp_path / "other.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="other lines"):
        say("--prompt=def ", f"--output={tmp_path / 'other.jsonl'}", "--resume")
    assert (tmp_path / "other.jsonl").read_text(encoding="utf-8") == line + "\n"


def test_doubles_and_short_texts_are_left_out(say, tmp_path):
    common = ["--prompt=def ", "--num_samples=30", "--max_new_tokens=3", "--batch_size=7", "--top_k=3"]
    say(*common, f"--output={tmp_path / 'all.jsonl'}")
    every = [line["text"] for line in lines_of(tmp_path / "all.jsonl")]
    least = min(map(len, every)) + 1
    said = say(*common, "--unique", f"--min_length={least}", f"--output={tmp_path / 'some.jsonl'}")
    expected = list(dict.fromkeys(text for text in every if len(text) >= least))
    assert [line["text"] for line in lines_of(tmp_path / "some.jsonl")] == expected
    assert said.startswith(f"{len(expected)} results") and f"{30 - len(expected)} left out" in said
    assert 0 < len(expected) < len(set(every)) < 30


# --- other ways to see them


@pytest.mark.parametrize("more", [[], ["--logprobs=2"], ["--output={tmp}/out.jsonl"]])
def test_a_stop_text_ends_it(say, tmp_path, more):
    common, out = ["--prompt=def ", "--temperature=0"], tmp_path / "out.jsonl"
    say(*common, f"--output={out}")
    whole = lines_of(out)[0]["text"]
    stop = whole[9:12]
    out.unlink()
    said = say(*common, f"--stop={stop}", "--stop=never written", *[x.replace("{tmp}", str(tmp_path)) for x in more])
    expected = whole[:whole.index(stop)]
    assert lines_of(out)[0]["text"] == expected if out.exists() else said.startswith(f"def {expected}\n")


def test_logprobs_of_each_token(say, trained, tmp_path):
    say("--prompt=def ", "--temperature=0", "--logprobs=3", "--max_new_tokens=5", f"--output={tmp_path / 'out.jsonl'}")
    line, = lines_of(tmp_path / "out.jsonl")
    assert "".join(token["token"] for token in line["tokens"]) == line["text"] and len(line["tokens"]) == 5
    for token in line["tokens"]:  # the greedy one is the likeliest of all
        assert len(token["best"]) == 3 and next(iter(token["best"].items())) == (token["token"], token["logprob"])
        assert list(token["best"].values()) == sorted(token["best"].values(), reverse=True)
    shown = say("--prompt=def ", "--temperature=0", "--logprobs=3", "--max_new_tokens=5")
    assert shown.startswith("def " + line["text"]) and shown.count("\n    ") >= 5 and shown.endswith("---\n")


def test_beams(say, tmp_path):
    say("--prompt=def ", "--beams=4", "--num_samples=3", "--max_new_tokens=6", f"--output={tmp_path / 'out.jsonl'}")
    found = lines_of(tmp_path / "out.jsonl")
    assert len({line["text"] for line in found}) == 3
    assert [line["logprob"] for line in found] == sorted((line["logprob"] for line in found), reverse=True)
    assert say("--prompt=def ", "--beams=4", "--max_new_tokens=6").startswith("def " + found[0]["text"])


# --- rows


def test_prompts_may_be_texts_or_stand_in_jsonl_for_a_model_that_was_taught_to_respond(trained, call, tmp_path, capsys):
    state = torch.load(trained / "best.pt", weights_only=True)
    torch.save(state | {"task": {"kind": "generate", "pool": "last", "head_dropout": 0.0}}, tmp_path / "best.pt")
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    (tmp_path / "in.jsonl").write_text('{"prompt": "def f", "id": 7}\n\n{"prompt": "class"}\n', encoding="utf-8")
    here = [f"--checkpoint={tmp_path}", "--device=cpu", "--dtype=float32", "--max_new_tokens=4", "--temperature=0"]
    call(sample, *here, f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}")
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert first["prompt"] == "def f\n" and first["id"] == 7 and second["prompt"] == "class\n"
    capsys.readouterr()
    call(sample, *here, "--text=def f", "--text=class")
    assert capsys.readouterr().out == "".join(f"{row['prompt']}{row['text']}\n---\n" for row in (first, second))


# --- wrong input


@pytest.mark.parametrize("options, words", [
    (["--prompt="], "has no tokens"),
    (["--prompt=a\udcffb"], "surrogate"),  # what Python makes of a byte that is not UTF-8 on the command line
    (["--temperature=-1"], "temperature=-1"),
    (["--top_p=0"], "top_p"),
    (["--top_k=-1"], "top_k"),
    (["--num_samples=0"], "num_samples"),
    (["--repetition_penalty=0"], "repetition_penalty"),
    (["--min_p=2"], "min_p"),
    (["--beams=2", "--num_samples=3"], "num_samples=3 are more than beams=2"),
    (["--beams=2", "--stop=x"], "beams look for the likeliest"), (["--unique"], "among the lines of an output"),
    (["--beams=2", "--frequency_penalty=1"], "beams look for the likeliest"), (["--pseudo_perplexity"], "mean nothing"),
    (["--explain", "--num_samples=2"], "draw one text each time"), (["--min_length=9"], "among the lines of an output"),
    (["--resume"], "resume"),
    (["--input={tmp}/latin.txt", "--text=a"], "input and text do not go together"),
    (["--input={tmp}/latin.txt", "--pair=a"], "input and pair do not go together"),
    (["--prompt=a", "--text=b"], "prompt and text do not go together"),
    (["--input={tmp}/nowhere.txt"], "nowhere.txt"),
    (["--input={tmp}/empty.txt"], "no prompt"),
    (["--input={tmp}/latin.txt"], "UTF-8"),
    (["--output={tmp}/no/folder.jsonl"], "folder"),
    (["--output={tmp}"], "output"),
    (["--checkpoint={tmp}/nowhere"], "no checkpoint there"),
    (["--checkpoint={tmp}"], "no checkpoint there"),
    (["--checkpoint={tmp}/text.pt"], "not a checkpoint"),
    (["--checkpoint={tmp}/foreign.pt"], "not a whole nanoft checkpoint"),
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


@pytest.mark.slow
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
