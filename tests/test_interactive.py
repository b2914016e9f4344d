"""sample.py --interactive: lines from the keyboard, commands, turns, and Ctrl-C."""

import builtins
import signal
import subprocess
import time

import pytest
import test_explain_page
import torch
from conftest import ROOT, command

import nanoft
import sample
from nanoft import UserError

TEXT = "one two three four five six seven"  # in the words of these models, which are random ones of each kind
runs, tokenizer = test_explain_page.runs, test_explain_page.tokenizer


@pytest.fixture
def typed(call, monkeypatch, capsys):
    """typed(folder, lines, *options): what is printed when these lines are typed; an exception is raised."""
    def typed(folder, lines, *options):
        lines = iter(lines)

        def typing(prompt):
            line = next(lines, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", typing)
        call(sample, f"--checkpoint={folder}", "--interactive", "--device=cpu", "--dtype=float32", *options)
        return capsys.readouterr().out.splitlines()[1:]

    return typed


def test_each_line_is_answered_and_commands_change_the_rules(typed, runs):
    model = nanoft.load(runs["gpt"], "cpu", "float32")
    first, second = (model.generate(TEXT, 6, seed=seed) for seed in (5, 6))
    cold = model.generate(TEXT, 6, temperature=0)
    lines = typed(runs["gpt"], [TEXT, TEXT, "/temperature 0", TEXT, "/seed 5", "/temperature 0.8", TEXT],
                  "--seed=5", "--max_new_tokens=6")
    assert first != second and lines == "\n".join([first, second, cold, first, "\n"]).splitlines()


@pytest.mark.parametrize("line, words", [
    ("/temprature 1", "did you mean temperature"), ("/top_p 7", "top_p=7.0 must be"),
    ("/checkpoint x", "cannot change"), ("/help", "/reset"), ("/reset", "forgotten"), ("/output x", "cannot change"),
    (" ", ""),
])
def test_what_cannot_be_is_said_and_the_loop_goes_on(typed, runs, line, words):
    cold = nanoft.load(runs["gpt"], "cpu", "float32").generate("one", 3, temperature=0)
    lines = typed(runs["gpt"], [line, KeyboardInterrupt(), "one", "/quit", "two"], "--temperature=0",
                  "--max_new_tokens=3")
    assert words in "\n".join(lines[:-1]) and lines[-2:] == ["(stopped; /quit ends it)", *cold.splitlines()]


def test_the_turns_are_kept_of_a_model_that_was_taught_to_respond(typed, runs, tmp_path):
    state = torch.load(runs["gpt"] / "best.pt", weights_only=True)
    torch.save(state | {"task": {"kind": "generate", "pool": "last", "head_dropout": 0.0}}, tmp_path / "best.pt")
    (tmp_path / "tokenizer.json").write_bytes((runs["gpt"] / "tokenizer.json").read_bytes())
    model = nanoft.load(tmp_path, "cpu", "float32")
    first = model.generate("one", 2, temperature=0)
    both = model.generate(f"one\n{first}".rstrip() + "\ntwo", 2, temperature=0)
    alone = model.generate("two", 2, temperature=0)
    options = "--temperature=0", "--max_new_tokens=2"
    assert both != alone
    assert typed(tmp_path, ["one", "two"], *options) == f"{first}\n{both}\n".splitlines() + [""]
    assert typed(tmp_path, ["one", "/reset", "two"], *options) == f"{first}\nforgotten\n{alone}\n".splitlines() + [""]


def test_other_models_answer_lines_too(typed, runs):
    assert "%" in typed(runs["classify"], [TEXT])[1] and "%" in typed(runs["masks"], ["one <|mask|>"])[1]
    assert typed(runs["answer"], [f"which one | {TEXT}"])[0] == "which one"
    assert typed(runs["pair"], ["one"])[0].startswith("row 1: no pair")


def test_given_texts_do_not_go_with_it(call, runs):
    with pytest.raises(UserError, match="leave out those that are given"):
        call(sample, f"--checkpoint={runs['gpt']}", "--interactive", "--prompt=a")


@pytest.mark.parametrize("option", ["--beams=3", "--logprobs=2", "--num_samples=2"])
def test_one_text_is_drawn_for_each_line(option, call, runs):
    with pytest.raises(UserError, match="draw one text each time"):
        call(sample, f"--checkpoint={runs['gpt']}", "--interactive", option)


def test_ctrl_c_stops_the_answer_and_not_the_program(runs):
    words = command("sample.py", f"--checkpoint={runs['gpt']}", "--interactive", "--device=cpu", "--temperature=0",
                    "--max_new_tokens=1000000")
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # `&` ignores it
    try:
        process.stdout.readline()
        process.stdin.write(b"one\n/quit\n")
        process.stdin.flush()
        assert process.stdout.read(20)  # it writes
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert b"stopped" in out and b"Traceback" not in out and process.returncode == 0
