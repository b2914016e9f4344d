import os
import subprocess
from dataclasses import dataclass
from typing import Literal

import pytest
from conftest import ROOT, command

import finetune
import sample
import train
from nanoft import UserError, __main__, config, files


@dataclass
class Options:
    lr: float = 0.1                            # a rate
    steps: int = 10                            # a count
    name: str = "x"                            # a text
    resume: bool = False                       # a switch
    kind: Literal["auto", "true", "b"] = "auto"  # a choice
    text: tuple = ()                           # texts


def test_values_come_from_file_then_flags(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("import math\n_half = 0.5\nlr = 2 * _half\nsteps = 7\nkind = True\n")
    cfg = config.load(Options, ["--steps=9", str(file), "--name=a=b", "--resume"])
    assert cfg == Options(lr=1.0, steps=9, name="a=b", resume=True, kind="true")
    assert type(cfg.lr) is float


def test_int_does_for_float_and_1e3_for_int():
    cfg = config.load(Options, ["--lr=3", "--steps=1e3", "--resume=false"])
    assert (cfg.lr, cfg.steps, cfg.resume) == (3.0, 1000, False)


def test_a_tuple_collects_what_is_given_several_times():
    assert config.load(Options, ["--text=a b", "--text=3", "--text=", "--name=x", "--name=y"]) == Options(
        text=("a b", "3", ""), name="y")


def test_a_value_may_be_the_next_word(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("steps = 7")
    assert config.load(Options, ["--lr", "3", str(file), "--resume", "--text", "a b", "--text", "-1"]) == Options(
        lr=3.0, steps=7, resume=True, text=("a b", "-1"))
    assert not config.load(Options, ["--resume", "false"]).resume
    assert config.load(Options, ["--kind", "--steps", "7"]) == Options(kind="true", steps=7)
    assert config.load(Options, ["--kind", "b"]).kind == "b"
    assert config.load(Options, ["--resume", str(file)]) == Options(resume=True, steps=7)
    with pytest.raises(UserError, match="steps must be a whole number, not ''"):
        config.load(Options, ["--steps", "--resume"])


@pytest.mark.parametrize("script, words, hint", [
    (finetune, "--learning_rate=1e-3", "lr"), (finetune, "--learning-rate 1e-3", "lr"),
    (finetune, "--num_epochs=3", "epochs"), (finetune, "--num_train_epochs 3", "epochs"),
    (finetune, "--per_device_train_batch_size=8", "batch_size"), (finetune, "--max_seq_length=64", "max_length"),
    (train, "--max_seq_len=64", "block_size"), (finetune, "--max-grad-norm=1", "grad_clip"),
    (train, "--num_hidden_layers=3", "n_layer"), (finetune, "--model_name_or_path=x", "init_from"),
    (sample, "--model=x", "checkpoint"), (train, "--output_dir=x", "out_dir"), (sample, "--output_file=x", "output"),
    (finetune, "--wieght-decay=0", "weight_decay"),
])
def test_other_programs_names_get_ours_as_a_suggestion(script, words, hint):
    with pytest.raises(UserError) as error:
        config.load(script.Config, words.split())
    assert f"did you mean {hint}" in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_tool_takes_the_next_word_too():
    assert config.load_tool(Options, "x", ["a", "--steps", "3", "b", "--resume", "c"]) == (
        Options(steps=3, resume=True), ["a", "b", "c"])


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        config.load(Options, ["--stesp=3", "--lr=fast", "--kind=c", "--steps=1.5"], lambda cfg: ["and a fifth"])
    text = str(error.value)
    assert len(text.splitlines()) == 5
    assert "did you mean steps?" in text and "must be a number, not 'fast'" in text
    assert "auto, true, b" in text and "must be a whole number, not 1.5" in text


@pytest.mark.parametrize("word", ["--steps", "--steps=", "--steps=true", "--resume=1", "--lr=nan()"])
def test_wrong_types(word):
    with pytest.raises(UserError):
        config.load(Options, [word])


def test_config_file_problems(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        config.load(Options, ["nothere.py"])
    file = tmp_path / "c.py"
    file.write_text("lr = = 3")
    with pytest.raises(UserError, match="does not run"):
        config.load(Options, [str(file)])


def test_help_prints_every_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        config.load(Options, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--steps=10", "a count", "auto|true|b: a choice"))


def test_a_reader_who_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command("train.py", "--help"), stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert done.returncode == 128 + 13 and done.stderr == b""


def test_the_list_of_tools(call, capsys):
    call(__main__)
    text = capsys.readouterr().out
    scripts, tools = text.split("\ntools:")
    assert all(f"\n  {name} " in scripts for name in ("train", "finetune", "sample"))
    assert [line.split()[0] for line in tools.strip().splitlines()] == list(__main__.TOOLS)


@pytest.mark.parametrize("name, hint", [("trian", "did you mean train"), ("repotr", "did you mean report"),
                                        ("xyzzy", "there are train, finetune")])
def test_a_tool_by_a_wrong_name(call, capsys, name, hint):
    with pytest.raises(SystemExit) as stop:
        call(__main__, name)
    assert stop.value.code == 2 and hint in capsys.readouterr().err


@pytest.mark.parametrize("name", [*__main__.SCRIPTS, *__main__.TOOLS])
def test_every_script_and_tool_answers_help(call, capsys, name):
    try:
        call(__main__, name, "--help")
    except SystemExit as stop:
        assert not stop.code
    assert "error" not in capsys.readouterr().err and "Traceback" not in capsys.readouterr().err


def test_config_files_of_the_current_folder_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.read_file("config/wikitext.py")["data"] == "wikitext"  # nanoft's own
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "wikitext.py").write_text("data = 'mine'")
    assert config.read_file("config/wikitext.py") == {"data": "mine"}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda path: path.name)
def test_every_config_fits_a_script(path):
    problems = []
    for script in (train, finetune):
        try:
            config.load(script.Config, [str(path)], script.check)
        except UserError as error:
            problems.append(str(error))
    assert len(problems) == 1, problems


def test_the_usual_file_is_read_where_nothing_else_is_named(tmp_path):
    usual = tmp_path / "usual.py"
    usual.write_text("n_layer = 2\nn_gram = 3\n")
    assert config.load(train.Config, ["--n_gram=1"], usual=str(usual)) == train.Config(n_layer=2, n_gram=1)
    other = tmp_path / "other.py"
    other.write_text("lr = 0.5\n")
    for words in ([str(other)], ["--data=mine"], [f"--init_from={tmp_path}"], ["--resume"], ["--eval_only"]):
        assert config.load(train.Config, [*words, f"--out_dir={tmp_path}"], usual=str(usual)).n_gram == 1


@pytest.mark.parametrize("script, before, given, found", [
    (train, {"max_steps": 0, "max_minutes": 2.2}, "--max_steps=50", {"max_steps": 50, "max_minutes": -1.0}),
    (train, {"max_steps": 150, "max_minutes": 0.0}, "--max_minutes=5", {"max_steps": 0, "max_minutes": 5.0}),
    (finetune, {"max_steps": 6, "epochs": 0.0}, "--epochs=5", {"max_steps": 0, "epochs": 5.0}),
    (train, {"max_steps": 150, "max_minutes": 3.0}, "--lr=1e-3", {"max_steps": 150, "max_minutes": 3.0}),
])
def test_a_budget_given_with_resume_replaces_the_one_of_the_other_kind(script, before, given, found, tmp_path):
    """Or the run, whose old budget is used up, would end at once without a word."""
    files.write_json(tmp_path / "config.json", before | {"data": "x"})
    cfg = config.load(script.Config, [f"--out_dir={tmp_path}", "--resume", given])
    assert {name: getattr(cfg, name) for name in found} == found and cfg.data == "x"
