"""Whole runs of train.py, as its user starts, stops, resumes and mistypes them."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
from conftest import ROOT, TINY, command, contents, run

import train
from nanoft import UserError
from nanoft.bins import Tokens
from nanoft.model import ModelConfig, make_model
from nanoft.text import learn, prepare

STEPS = 40  # of the runs that are stopped: long enough for a signal to arrive in the middle


def load(path):
    return torch.load(path, weights_only=True)


def rows(folder):
    """The lines of metrics.jsonl, each strictly JSON (which knows no NaN): those of training, those of evaluation."""
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [row for row in found if "loss" in row], [row for row in found if "val_loss" in row]


def losses(folder):
    return torch.tensor([row["loss"] for row in rows(folder)[0]], dtype=torch.float64)


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def assert_equal(a, b, place=""):
    """Two nested structures with tensors are equal bit for bit."""
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{place} differs by {(a - b).abs().max()}"
    elif isinstance(a, (dict, list, tuple)):
        for key in a if isinstance(a, dict) else range(max(len(a), len(b))):
            assert_equal(a[key], b[key], f"{place}/{key}")
    else:
        assert a == b, place


def assert_refused(done, *words):
    """It ended as an error of use: sentences on stderr, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="session")
def plain(corpus, tmp_path_factory):
    """A finished run with every default of TINY."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    done = run("train.py", *TINY, f"--data={corpus}", f"--out_dir={folder}")
    assert "--- the model writes ---" in done.stdout
    return folder


# --- a fresh run


def test_a_run_leaves_every_file_that_was_promised(plain):
    names = {path.name for path in plain.iterdir()}
    assert {"config.json", "tokenizer.json", "latest.pt", "best.pt", "metrics.jsonl", "result.json"} <= names
    assert any("tfevents" in name for name in names) and not any(name.endswith(".tmp") for name in names)
    figures = result(plain)
    for name in ("val_loss", "val_bits_per_byte", "test_loss", "test_bits_per_byte", "test_word_perplexity"):
        assert figures[name] > 0, name
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    assert config["n_embd"] == 32 and config["max_steps"] == 12 and set(config) == set(train.Config.__annotations__)


def test_the_log_has_the_promised_fields_and_grows(plain):
    training, evaluations = rows(plain)
    for row in training:
        assert {"step", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_s"} <= row.keys()
    for row in evaluations:
        assert {"step", "seconds", "val_loss", "val_bits_per_byte"} <= row.keys()
    assert [row["step"] for row in training] == list(range(1, 13))
    assert [row["step"] for row in evaluations if "test_loss" not in row] == [4, 8, 12]
    assert [row["tokens"] for row in training] == [step * 8 * 32 for step in range(1, 13)]
    seconds = [row["seconds"] for row in training]
    assert seconds == sorted(set(seconds)) and seconds[0] > 0
    assert training[-1]["loss"] < training[0]["loss"] - 0.1
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]


def test_a_checkpoint_is_a_plain_dictionary_with_plain_names(plain):
    for name in ("latest.pt", "best.pt"):
        state = load(plain / name)
        assert {"model", "step", "seed", "config", "best_val_loss"} <= state.keys()
        assert not any(name.startswith(("module.", "_orig_mod.")) for name in state["model"])
        model = make_model(ModelConfig(**state["model_config"]))
        model.load_state_dict(state["model"], strict=True)
    assert load(plain / "latest.pt")["step"] == 12


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_sample_does_not_end_the_run(corpus, tmp_path):
    # a fresh model writes bytes that decode to U+FFFD, which a Windows console or an ASCII log cannot take
    run("train.py", *TINY, "--max_steps=2", f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", "--sample_tokens=32",
        env={"PYTHONIOENCODING": "ascii"})
    assert (tmp_path / "run" / "result.json").exists()


# --- the same mathematics everywhere


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulated_equals_one_big_batch(corpus, tmp_path, call, optimizer):
    for size in (2, 8):
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / str(size)}", f"--micro_batch_size={size}",
             f"--optimizer={optimizer}")
    torch.testing.assert_close(losses(tmp_path / "2"), losses(tmp_path / "8"), atol=1e-5, rtol=0)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="session")
def two(corpus, tmp_path_factory):
    """The run `plain` again, on two processes that accumulate."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    # long samples, which the first process writes alone: the other must wait for it before it reads best.pt
    run("train.py", *TINY, f"--data={corpus}", f"--out_dir={folder}", "--micro_batch_size=2", "--sample_tokens=64",
        launcher=TORCHRUN)
    return folder


@pytest.mark.slow
def test_two_processes_equal_one_at_every_step(plain, two):
    torch.testing.assert_close(losses(two), losses(plain), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(plain, two):
    # a wider tolerance than at the steps above: here the wrong weights or windows would show, not rounding
    for name in ("val_loss", "val_bits_per_byte"):
        assert [row[name] for row in rows(two)[1]] == pytest.approx([row[name] for row in rows(plain)[1]], abs=2e-3)
    for name in ("best_step", "val_loss", "test_loss"):  # of best.pt, which the first process alone writes
        assert result(two)[name] == pytest.approx(result(plain)[name], abs=2e-3)


@pytest.mark.slow
def test_two_processes_end_together_when_the_data_cannot_be_prepared(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "prepare.py").write_text("raise SystemExit('error: no copy')\n", encoding="utf-8")
    done = run("train.py", *TINY, f"--data={tmp_path / 'set'}", f"--out_dir={tmp_path / 'run'}", check=False,
               launcher=TORCHRUN)  # torchrun's own report follows the sentence; no process may hang in a barrier
    assert done.returncode != 0 and "error: no copy" in done.stderr and not (tmp_path / "run").exists()


# --- stopping and going on


def stop_at(number, words, folder, step):
    """Start a run, send it a signal a moment after it has logged `step`; give its exit code and its output."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        deadline = time.time() + 200
        while process.poll() is None and time.time() < deadline:
            try:
                if rows(folder)[0][-1]["step"] >= step:
                    break
            except (OSError, IndexError, ValueError):
                pass
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.03))
        process.send_signal(number)
        output = process.communicate(timeout=100)[0]
    finally:
        process.kill()
    return process.returncode, output


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "adamw")])
def stopped(request, corpus, tmp_path_factory):
    """A run never stopped, and one that was killed, resumed, asked to stop, and resumed again; and what it said."""
    folder = tmp_path_factory.mktemp(request.param)
    options = [*TINY, f"--optimizer={request.param}", f"--max_steps={STEPS}", "--eval_interval=8", "--dropout=0.1",
               "--micro_batch_size=2", f"--data={corpus}"]
    whole = subprocess.Popen(command("train.py", *options, f"--out_dir={folder / 'whole'}"), cwd=ROOT,
                             stdout=subprocess.DEVNULL)  # meanwhile, on the other core
    words = command("train.py", *options, f"--out_dir={folder / 'stopped'}")
    first = random.randint(9, 15)  # after the first checkpoint, at step 8
    killed = stop_at(signal.SIGKILL, words, folder / "stopped", first)
    at = load(folder / "stopped" / "latest.pt")["step"]
    asked = stop_at(signal.SIGTERM, [*words, "--resume"], folder / "stopped", random.randint(18, 26))
    state, (training, _) = load(folder / "stopped" / "latest.pt"), rows(folder / "stopped")
    best = load(folder / "stopped" / "best.pt")["step"]
    run("train.py", *options, f"--out_dir={folder / 'stopped'}", "--resume")
    assert whole.wait(timeout=200) == 0
    return {"whole": folder / "whole", "stopped": folder / "stopped", "killed": killed, "killed_step": at,
            "asked": asked, "asked_step": state["step"], "asked_rows": training, "asked_best": best}


def test_the_signals_came_in_the_middle(stopped):
    assert stopped["killed"][0] == -signal.SIGKILL, stopped["killed"][1]
    assert 8 <= stopped["killed_step"] < stopped["asked_step"] < STEPS


def test_sigterm_saves_the_very_step_and_says_so(stopped):
    code, output = stopped["asked"]
    assert code == 128 + signal.SIGTERM
    assert stopped["asked_rows"][-1]["step"] == stopped["asked_step"]
    assert f"stopped at step {stopped['asked_step']}" in output and "--resume" in output and "Traceback" not in output


def test_being_stopped_does_not_choose_the_best_weights(stopped):
    # an evaluation that the whole run does not make could give it another best.pt, so another result.json; and a
    # scheduler that sends SIGTERM waits half a minute for the checkpoint, not for an evaluation
    assert stopped["asked_best"] % 8 == 0


def test_resumed_equals_never_stopped_bit_for_bit(stopped):
    a, b = (load(stopped[name] / "latest.pt") for name in ("whole", "stopped"))
    assert a["step"] == b["step"] == STEPS
    assert_equal(a["model"], b["model"], "model")
    assert_equal(a["optimizer"], b["optimizer"], "optimizer")
    assert a["best_val_loss"] == b["best_val_loss"]
    assert result(stopped["whole"])["val_loss"] == result(stopped["stopped"])["val_loss"]


def test_the_log_of_a_stopped_run_has_each_training_step_once(stopped):
    a, b = (rows(stopped[name])[0] for name in ("whole", "stopped"))
    for name in ("step", "tokens", "loss", "lr", "grad_norm"):
        assert [row[name] for row in a] == [row[name] for row in b], name
    assert [row["step"] for row in b] == list(range(1, STEPS + 1))


def test_the_log_of_a_stopped_run_has_each_evaluation_once(stopped):
    a, b = ([(row["step"], row["val_loss"]) for row in rows(stopped[name])[1] if "test_loss" not in row]
            for name in ("whole", "stopped"))
    steps = [step for step, _ in b]
    assert steps == sorted(set(steps))
    assert set(a) <= set(b)


def test_learning_rates_given_at_resume_are_used(plain, corpus, tmp_path, call):
    shutil.copytree(plain, tmp_path / "run")
    call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", "--resume", "--max_steps=16",
         "--lr=1e-30", "--embed_lr=1e-30", "--muon_lr=1e-30")
    before, after = (load(folder / "latest.pt") for folder in (plain, tmp_path / "run"))
    assert after["step"] == 16
    for name, tensor in before["model"].items():
        torch.testing.assert_close(after["model"][name], tensor, atol=1e-9, rtol=0, msg=f"{name} moved")


@pytest.fixture(scope="session")
def diverged(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "diverged"
    return folder, run("train.py", *TINY, f"--data={corpus}", f"--out_dir={folder}", "--lr=1e30", "--muon_lr=1e30",
                       "--grad_clip=0", "--eval_interval=1", check=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(diverged):
    folder, done = diverged
    assert_refused(done, "loss is nan", "latest.pt", "--lr")
    assert len(done.stderr.splitlines()) == 1
    assert all(tensor.isfinite().all() for tensor in load(folder / "latest.pt")["model"].values())
    assert not (folder / "result.json").exists()


def test_the_log_of_a_diverged_run_is_json_still(diverged):
    assert rows(diverged[0])[0]


def test_without_a_checkpoint_the_message_promises_none(corpus, tmp_path, call):
    with pytest.raises(UserError, match="loss is nan") as error:
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path}", "--lr=1e30", "--muon_lr=1e30",
             "--grad_clip=0", "--eval_interval=100")
    assert not (tmp_path / "latest.pt").exists() and "are in latest.pt" not in str(error.value)


# --- beginning from another run's weights


def test_init_from_begins_where_the_other_run_ended(stopped, corpus, tmp_path, call):
    call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path}", f"--init_from={stopped['whole']}", "--max_steps=1")
    old = losses(stopped["whole"])
    assert old[0] - old[-1] > 0.5  # or the next line would show nothing
    assert losses(tmp_path)[0] < (old[0] + old[-5:].mean()) / 2  # from scratch it would be old[0] again


def test_init_from_with_another_block_size_is_obeyed_or_refused(plain, corpus, tmp_path, call):
    for size in (16, 64):
        try:
            call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / str(size)}", f"--init_from={plain}",
                 f"--block_size={size}", "--max_steps=1")
        except UserError as error:
            assert "block_size" in str(error)
        else:
            assert load(tmp_path / str(size) / "latest.pt")["model_config"]["block_size"] == size


# --- what its user mistypes: a sentence, exit code 2, and nothing on disk has changed


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A data set of the same text with another tokenizer."""
    folder = tmp_path_factory.mktemp("data") / "other"
    text = (ROOT / "train.py").read_text(encoding="utf-8")
    prepare.write_data(folder, {"train": lambda: [text], "val": lambda: [text]}, vocab_size=300)
    return folder


def test_all_wrong_options_are_named_at_once_and_nothing_is_written(plain, corpus):
    before = contents(plain, corpus)
    done = run("train.py", *TINY, f"--data={corpus}", f"--out_dir={plain}", "--learning_rat=1", "--blocksize=3",
               "--lr=fast", "--n_embd=33", "--compile=maybe", check=False)
    assert_refused(done, "unknown option 'blocksize'", "did you mean block_size", "lr must be a number, not 'fast'",
                   "n_embd=33 is not divisible by n_head=2", "'learning_rat'", "auto, true, false")
    assert len(done.stderr.splitlines()) == 5 and done.stdout == ""
    assert contents(plain, corpus) == before


def test_a_folder_that_holds_a_run_is_not_overwritten(plain, corpus):
    before = contents(plain, corpus)
    done = run("train.py", *TINY, f"--data={corpus}", f"--out_dir={plain}", check=False)
    assert_refused(done, "already holds a run", "--resume")
    assert len(done.stderr.splitlines()) == 1 and contents(plain, corpus) == before


def test_a_token_file_cut_short_is_refused(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    with open(tmp_path / "data" / "train.bin", "r+b") as file:
        file.truncate(5000)
    before = contents(tmp_path)
    done = run("train.py", *TINY, f"--data={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}", check=False)
    assert_refused(done, "train.bin", "cut short", "prepare the data set again")
    assert len(done.stderr.splitlines()) == 1 and contents(tmp_path) == before


def damaged(path, kind):
    """Put something that is no checkpoint in a checkpoint's place."""
    whole = path.read_bytes()
    if kind == "text":
        path.write_text("these are not weights\n" * 50, encoding="utf-8")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(whole[:len(whole) // 2])
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "nanoGPT's":
        torch.save({"model": {}, "optimizer": {}, "model_args": {}, "iter_num": 5}, path)
    elif kind == "code":  # what torch.load would run if it were let
        torch.save({"model": os.system}, path)
    elif kind == "of a later version":
        state = load(path)
        state["model_config"]["n_experts"] = 8
        torch.save(state, path)
    elif kind == "without optimizer":
        torch.save({k: v for k, v in load(path).items() if k != "optimizer"}, path)


KINDS = ["text", "empty", "half", "a tensor", "nanoGPT's", "code", "of a later version", "without optimizer"]


@pytest.mark.parametrize("use", ["resume", "init_from"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_none_is_refused(plain, corpus, tmp_path, call, kind, use):
    if (kind, use) == ("without optimizer", "init_from"):
        pytest.skip("weights are enough to begin from")
    shutil.copytree(plain, tmp_path / "run")
    damaged(tmp_path / "run" / ("latest.pt" if use == "resume" else "best.pt"), kind)
    before = contents(tmp_path)
    where = ["--resume", f"--out_dir={tmp_path / 'run'}"] if use == "resume" else [
        f"--init_from={tmp_path / 'run'}", f"--out_dir={tmp_path / 'new'}"]
    with pytest.raises(UserError, match=r"latest\.pt|best\.pt|run holds") as error:
        call(train, *TINY, f"--data={corpus}", *where)
    assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("options, words", [
    (["--data=wikitxt"], "did you mean wikitext"),
    (["--device=cuda"], "not available"),
    (["--init_from=nowhere"], "no checkpoint there"),
    (["--max_steps=0"], "budget"),
    (["--batch_size=8", "--micro_batch_size=3"], "multiple of 3"),
    (["--micro_batch_size=-1"], "micro_batch_size"),
    (["--batch_size=0"], "batch_size"),
    (["--n_kv_head=3"], "n_kv_head"),
    (["--dropout=1"], "dropout"),
    (["--seed=-1"], "seed"),
    (["--lr=-1"], "lr"),
    (["--muon_lr=-1"], "muon_lr"),
    (["--weight_decay=-1"], "weight_decay"),
    (["--beta2=1.5"], "beta2"),
    (["--warmup=0.5", "--warmdown=0.6"], "more than the whole run"),
    (["--grad_clip=-1"], "grad_clip"),
    (["--out_dir={tmp}/file"], "file"),
    (["--out_dir="], "out_dir"),
    (["nowhere.py"], "no such config file"),
])
def test_what_cannot_be_is_refused_in_one_sentence(corpus, tmp_path, call, monkeypatch, options, words):
    if options == ["--device=cuda"] and torch.cuda.is_available():
        pytest.skip("here it is available")
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path, corpus)
    with pytest.raises(UserError) as error:
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}",
             *[word.replace("{tmp}", str(tmp_path)) for word in options])
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
    assert contents(tmp_path, corpus) == before


def test_a_split_shorter_than_one_window_is_refused(corpus, tmp_path, call):
    tokens = len(Tokens.open(corpus, "val"))
    with pytest.raises(UserError, match=r"val\.bin holds .* block_size") as error:
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", f"--block_size={tokens}")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_no_warmdown_and_no_warmup_are_no_error(corpus, tmp_path, call):
    call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path}", "--max_steps=2", "--warmdown=0", "--warmup=0")
    assert rows(tmp_path)[0][-1]["lr"] == pytest.approx(train.Config.lr)


def test_a_data_set_with_another_tokenizer_is_refused(plain, corpus, other, tmp_path, call):
    shutil.copytree(plain, tmp_path / "run")
    shutil.copytree(corpus, tmp_path / "mixed")
    shutil.copyfile(other / "tokenizer.json", tmp_path / "mixed" / "tokenizer.json")
    before = contents(tmp_path, other)
    for options, words in [
        ([f"--data={tmp_path / 'mixed'}", f"--out_dir={tmp_path / 'new'}"], "another tokenizer"),
        ([f"--data={other}", f"--out_dir={tmp_path / 'new'}", f"--init_from={plain}"], "another tokenizer"),
        ([f"--data={other}", f"--out_dir={tmp_path / 'run'}", "--resume"], "another"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            call(train, *TINY, *options)
        assert len(str(error.value).splitlines()) == 1
    assert contents(tmp_path, other) == before


@pytest.mark.parametrize("option", ["--n_layer=3", "--n_embd=64", "--block_size=16", "--tie_head", "--dropout=0.5",
                                    "--optimizer=adamw"])
def test_resuming_another_model_is_refused(plain, corpus, tmp_path, call, option):
    shutil.copytree(plain, tmp_path / "run")
    before = contents(tmp_path, corpus)
    with pytest.raises(UserError) as error:
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", "--resume", "--max_steps=16", option)
    name = option.strip("-").partition("=")[0]
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1
    assert contents(tmp_path, corpus) == before


def test_resume_where_no_run_is_says_so_and_makes_no_folder(corpus, tmp_path, call):
    with pytest.raises(UserError, match="no latest.pt to resume"):
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'none'}", "--resume")
    assert not (tmp_path / "none").exists()


def test_a_finished_run_that_is_resumed_keeps_its_figures(plain, corpus, tmp_path, call):
    shutil.copytree(plain, tmp_path / "run")
    call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", "--resume")
    assert result(tmp_path / "run")["val_loss"] == result(plain)["val_loss"]
    steps = [row["step"] for row in rows(tmp_path / "run")[1] if "test_loss" not in row]
    assert steps == [4, 8, 12]


# --- the other commands


def test_without_network_and_copy_the_ways_out_are_named(tmp_path):
    if (ROOT / "data" / "wikitext" / "raw").exists():
        pytest.skip("there is a local copy")
    (tmp_path / "mirror").mkdir()
    before = contents(ROOT / "data" / "wikitext")
    done = run("data/wikitext/prepare.py", f"--out={tmp_path / 'out'}", check=False,
               env={"NANOFT_MIRROR": str(tmp_path / "mirror"), "https_proxy": "http://127.0.0.1:9"})
    assert_refused(done, "https://wikitext.smerity.com/", "--source=PATH", "NANOFT_MIRROR")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists() and contents(ROOT / "data" / "wikitext") == before


def test_a_data_set_that_cannot_be_prepared_is_one_error_of_train(tmp_path, call, capfd):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "prepare.py").write_text("raise SystemExit('error: no copy')\n", encoding="utf-8")
    with pytest.raises(UserError, match="failed"):
        call(train, *TINY, f"--data={tmp_path / 'set'}", f"--out_dir={tmp_path / 'run'}")
    assert "error: no copy" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    done = run("nanoft tokenizer", tmp_path / "a.txt", "--vocab_size=200", f"--out={tmp_path / 't.json'}", check=False)
    assert_refused(done, "vocab_size=200", "261")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "t.json").exists()


def test_an_empty_text_is_refused(tmp_path, call):
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="empty"):
        call(learn, tmp_path / "a.txt", "--vocab_size=300", f"--out={tmp_path / 't.json'}")
    assert not (tmp_path / "t.json").exists()


def test_help_lists_every_option(call, capsys):
    with pytest.raises(SystemExit) as stop:
        call(train, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}=" in shown for name in train.Config.__annotations__)


def test_a_budget_in_steps_lifts_the_default_budget_in_minutes(corpus, tmp_path, call):
    options = [option for option in TINY if "max_minutes" not in option]
    call(train, *options, f"--data={corpus}", f"--out_dir={tmp_path}", "--max_steps=2")
    assert json.loads((tmp_path / "config.json").read_text())["max_minutes"] == 0
