"""Kinds of damage and of use that once gave a wrong result in silence, or a traceback: each is told, or harmless."""

import gzip
import itertools
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, command, contents, run

import finetune
import sample
import train
from nanoft import UserError, bins, bpe, checkpoint, config, distributed, files, loop
from nanoft.bins import Tokens, write_split
from nanoft.bpe import Tokenizer
from nanoft.published import convert
from nanoft.tasks import examples, features, predict, sweep
from nanoft.text import vocabulary

SHORT = [word for word in TINY if not word.startswith(("--n_embd", "--n_layer", "--max_steps"))] + [
    "--n_embd=16", "--n_layer=1", "--max_steps=4"]


@pytest.fixture(scope="module")
def gpt(corpus, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("gpt") / "run"
    run("train.py", f"--data={corpus}", f"--out_dir={folder}", *SHORT)
    return folder


def flip(path, rng):
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


# ---- bits --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_checkpoint_is_told_or_harmless(gpt, tmp_path):
    before, refused = checkpoint.load(gpt / "best.pt"), 0
    for seed in range(60):
        shutil.copy(gpt / "best.pt", tmp_path / "best.pt")
        flip(tmp_path / "best.pt", random.Random(seed))
        try:
            after = checkpoint.load(tmp_path / "best.pt")
        except UserError:
            refused += 1
            continue
        assert after["model"].keys() == before["model"].keys() and after["step"] == before["step"]
        assert all(torch.equal(p, before["model"][name]) for name, p in after["model"].items())
    assert refused > 50


def test_a_flipped_bit_of_a_token_file_is_told_or_harmless(corpus, tmp_path):
    before, refused = Tokens.open(corpus, "val"), 0
    for seed in range(60):
        shutil.copy(corpus / "val.bin", tmp_path / "val.bin")
        flip(tmp_path / "val.bin", random.Random(seed))
        try:
            after = Tokens.open(tmp_path, "val")
        except UserError:
            refused += 1
            continue
        assert after.headers == before.headers  # a spare byte of the header
        assert np.array_equal(after.read(0, len(after)), before.read(0, len(before)))
    assert refused > 50


def test_a_large_file_is_verified_on_request_and_an_old_one_still_opens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bins, "VERIFIED", 0)
    tokenizer = bpe.train(["a cat sat on a mat"] * 9, 270, progress=False)
    write_split(tmp_path, "train", ["a cat sat on a mat"] * 9, tokenizer)
    data = bytearray((tmp_path / "train.bin").read_bytes())
    data[bins.HEADER_BYTES] ^= 1
    (tmp_path / "train.bin").write_bytes(data)
    Tokens.open(tmp_path, "train")
    with pytest.raises(UserError, match="checksum differs"):
        bins.verify(tmp_path / "train.bin")
    data[bins.HEADER.size - 8:bins.HEADER.size] = bytes(8)  # as an older nanoft wrote it
    data[-1] = 0xFF  # an id beyond the vocabulary
    (tmp_path / "train.bin").write_bytes(data)
    assert not bins.verify(tmp_path / "train.bin")
    tokens = Tokens.open(tmp_path, "train")
    tokens.read(0, 3)
    with pytest.raises(UserError, match="beyond the vocabulary"):
        tokens.read(0, len(tokens))


@pytest.mark.parametrize("tool, words", [
    (sample, ["--checkpoint={run}", "--device=cpu"]), (sample, ["--checkpoint={run}", "--device=cpu", "--explain"]),
    (sweep, ["{gpt}", "{run}"]), (convert, ["{run}", "--out={run}/new"]), (convert, ["{run}", "--export={run}/new"]),
    (train, ["--eval_only", "--init_from={run}", "--text_file={run}/config.json", "--device=cpu"]),
    (train, ["--init_from={run}", "--data={run}", "--out_dir={run}/new", *SHORT]),  # its data has the tokenizer, too
    (finetune, ["--init_from={run}", "--train_file={run}/rows.csv", "--val_file={run}/rows.csv", "--out_dir={run}/new",
                "--device=cpu"])])
def test_another_tokenizer_beside_a_checkpoint_is_told(tool, words, gpt, corpus, tmp_path, call):
    shutil.copytree(gpt, tmp_path / "run")
    other = bpe.train(["some other text"] * 9, 400, progress=False)
    other.save(tmp_path / "run" / "tokenizer.json")
    for split in ("train", "val"):
        write_split(tmp_path / "run", split, ["some other text "] * 99, other)
    (tmp_path / "run" / "rows.csv").write_text("text,label\n" + "a cat,a\nsome dogs,b\n" * 9 + "the log,a\nno,b\n" * 9)
    with pytest.raises(UserError, match="another tokenizer"):
        call(tool, *(word.format(run=tmp_path / "run", gpt=gpt, corpus=corpus) for word in words))
    assert not (tmp_path / "run" / "new").exists()


# ---- a run and its folder ----------------------------------------------------------------------------------------


def test_other_data_under_a_resumed_run_are_told(gpt, corpus, tmp_path, call):
    shutil.copytree(gpt, tmp_path / "run")
    shutil.copytree(corpus, tmp_path / "data")
    write_split(tmp_path / "data", "val", ["other words " * 90], vocabulary.load(corpus))
    with pytest.raises(UserError, match="another val"):
        call(train, f"--data={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_steps=6", "--resume")
    call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_steps=6", "--resume")


def test_the_opened_token_file_stays_the_one_that_is_read(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    tokens = Tokens.open(tmp_path / "data", "val")
    before = tokens.read(0, 50)
    write_split(tmp_path / "data", "val", ["other words " * 900], vocabulary.load(corpus))
    tokens.maps, tokens.calls = {}, 0  # maps are renewed now and then
    assert np.array_equal(tokens.read(0, 50), before)


def test_two_runs_in_one_folder(gpt, corpus, tmp_path):
    shutil.copytree(gpt, tmp_path / "run")
    code = f"from pathlib import Path; from nanoft import runlog; runlog.lock(Path({str(tmp_path / 'run')!r})); input()"
    code = code.replace("input()", "print(flush=True); input()")
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    holder.stdout.readline()  # now it holds the lock
    before = contents(tmp_path / "run")
    words = (f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_steps=6", "--resume")
    done = run("train.py", *words, check=False)
    assert done.returncode == 2 and "in use by another process" in done.stderr and contents(tmp_path / "run") == before
    holder.communicate(b"\n")
    assert run("train.py", *words).returncode == 0


def test_damaged_notes_do_not_stop_a_resume(gpt, corpus, tmp_path, call):
    shutil.copytree(gpt, tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text('[{"comma')
    log = tmp_path / "run" / "metrics.jsonl"
    n_rows = log.read_bytes().count(b"\n")
    log.write_bytes(log.read_bytes().replace(b'"step"', b'"stfp"', 1) + b"[1]\n5\n")
    call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_steps=6", "--resume")
    assert len(log.read_bytes().splitlines()) >= n_rows - 1 and b"stfp" not in log.read_bytes()


def test_moments_of_another_shape_are_refused(gpt, corpus, tmp_path, call):
    shutil.copytree(gpt, tmp_path / "run")
    state = checkpoint.load(gpt / "latest.pt")
    moments = state["optimizer"][0]["state"]
    name = next(name for name, x in moments[0].items() if x.dim())
    moments[0][name] = moments[0][name].flatten()[:3].clone()
    checkpoint.save(tmp_path / "run" / "latest.pt", state)
    with pytest.raises(UserError, match="optimizer's state of parameter 0"):
        call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_steps=6", "--resume")


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors", "model-00001-of-00002.safetensors"])
def test_a_folder_with_a_model_is_no_place_for_a_run(name, corpus, tmp_path, call):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / name).write_bytes(b"weights")
    for source in ("scratch", tmp_path / "base"):
        with pytest.raises(UserError, match="give a new folder"):
            call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'base'}", f"--init_from={source}", *SHORT)
    assert contents(tmp_path / "base") == {tmp_path / "base" / name: b"weights"}


def test_inputs_and_foreign_files_are_not_overwritten(gpt, tmp_path, call):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "x.csv").write_text("prompt\na\n")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "a.txt").write_text("a cat sat on a mat " * 9)
    shutil.copy(gpt / "best.pt", tmp_path / "best.pt")
    before = contents(tmp_path)
    for given, out in (("prompts.jsonl", "prompts.jsonl"), ("x.csv", "x.csv"), ("x.csv", "best.pt")):
        with pytest.raises(UserError, match="give another file|give one of these"):
            call(sample, f"--checkpoint={gpt}", f"--input={tmp_path / given}", f"--output={tmp_path / out}",
                 "--device=cpu", "--max_new_tokens=2")
    done = run("nanoft tokenizer", tmp_path / "a.txt", "--vocab_size=270", f"--out={tmp_path / 'package.json'}",
               check=False)
    assert done.returncode == 2 and contents(tmp_path) == before


def test_a_run_killed_between_its_first_best_and_latest_is_told_how_to_begin_again(corpus, tmp_path, call, crash):
    words = [f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT]
    crash(0, train, *words)
    with pytest.raises(UserError, match=r"no latest.pt to resume; run without --resume"):
        call(train, *words, "--resume")
    with pytest.raises(UserError, match=r"killed as it first saved.* without best.pt the run starts anew"):
        call(train, *words)
    (tmp_path / "run" / "best.pt").unlink()
    call(train, *words)


def test_a_run_from_a_table_alone_resumes_bit_for_bit_and_a_run_at_its_end_ends_again(tmp_path, call, crash):
    """Its tokenizer is learned from the rows, with a space before each text: so it is read in the resumed run, too."""
    rows = [f"{'good' if i % 3 else 'bad'} film number {i},{'pos' if i % 3 else 'neg'}\n" for i in range(60)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    words = [f"--train_file={tmp_path / 'rows.csv'}", f"--test_file={tmp_path / 'rows.csv'}", "--device=cpu",
             "--dtype=float32", "--n_layer=1", "--n_head=2", "--n_embd=16", "--max_length=16", "--linear=false",
             "--epochs=2", "--batch_size=8", "--eval_interval=3", "--log_interval=1", "--lr=0.01"]
    call(finetune, *words, f"--out_dir={tmp_path / 'whole'}")
    crash(6, finetune, *words, f"--out_dir={tmp_path / 'run'}")
    for _ in range(2):  # the second time, the run has ended already
        call(finetune, f"--out_dir={tmp_path / 'run'}", "--resume")
        whole, resumed = (checkpoint.load(tmp_path / name / "latest.pt") for name in ("whole", "run"))
        assert all(torch.equal(p, resumed["model"][name]) for name, p in whole["model"].items())
        counts = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "run")]
        assert counts[0] == counts[1]


def test_a_clock_that_jumps_changes_no_run(corpus, tmp_path, call, monkeypatch):
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    call(train, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *SHORT, "--max_minutes=1", "--log_interval=1")
    state = checkpoint.load(tmp_path / "run" / "latest.pt")
    assert next(hours) and state["step"] == 4 and 0 < state["seconds"] < 60
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["seconds"] < 60 for row in rows)


# ---- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, options", [("classify", {"label_column": "id"}), ("pair", {"label_column": "id"}),
                                           ("classify", {"label_column": "id", "separator": "|"})])
def test_ids_as_labels_are_told_at_once(kind, options, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,text,pair,label\n" + "".join(f"r{i},text {i},other,{i % 2}\n" for i in range(30)))
    with pytest.raises(UserError, match=r"each of the \d+ labels of training \(column id\) occurs in one row only"):
        examples.from_table(path, kind, **options)
    assert examples.from_table(path, "classify", label_column="label")[0]["labels"] == ["0", "1"]


def test_an_answer_that_could_be_another_occurrence_is_told(capsys):
    def fixed(context, *starts):
        rows = [{"id": f"q{i}", "context": context, "answers": [{"text": "12", "start": start}]}
                for i, start in enumerate(starts)]
        return [row["answers"][0]["start"] for row in examples.fix_offsets(rows, "train")], capsys.readouterr().out

    assert fixed("12 met 12 of 12", 0, 7, 13) == ([0, 7, 13], "")
    found, said = fixed("12 met 12 of 12", 7, -1, 9)
    assert found == [7, 0, 7] and "2 of these answers occur more than once" in said and "questions q1, q2" in said
    # offsets that count UTF-16's units or bytes are known by most of them, though single ones fit by chance
    found, said = fixed("\U0001f680\U0001f680\U0001f680 12 12 123 12", 7, 10, 13, 17)
    assert found == [4, 7, 10, 14] and "more than once" not in said
    assert fixed("\u5317\u4eac 12 12 12 in 12", 7, 10, 13, 19)[0] == [3, 6, 9, 15]


def test_special_tokens_in_a_prompt_are_read_as_in_training(corpus, gpt, tmp_path, call, monkeypatch):
    """A task reads them as plain text, in training as in sample.py; a language model reads them as tokens."""
    tokenizer = vocabulary.load(corpus)
    row = {"prompt": "end <|endoftext|> here", "response": "x <|sep|>"}
    task = {"kind": "generate", "max_length": 64, "long_text": "head"}
    special = set(tokenizer.special.values())
    ids = features.encode([row], task, tokenizer).ids.tolist()
    assert not special & {*ids[:-1]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"response": f"x {i}"}) + "\n" for i in range(30)))
    (tmp_path / "more.jsonl").write_text(json.dumps(row | {"prompt": "another"}) + "\n")
    files_of = [f"--{split}_file={tmp_path / name}" for split, name in (("train", "rows.jsonl"), ("val", "more.jsonl"))]
    call(finetune, "--kind=generate", *files_of, f"--init_from={gpt}", f"--out_dir={tmp_path / 'run'}", "--device=cpu",
         "--dtype=float32", "--max_steps=1")

    def ids_read(folder):
        """The ids that sample.py makes of the prompt."""
        encode, read = Tokenizer.encode, []

        def encode_and_note(self, text, **options):
            read.append(encode(self, text, **options))
            return read[-1]

        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "encode", encode_and_note)
            call(sample, f"--checkpoint={folder}", f"--prompt={row['prompt']}", "--device=cpu", "--max_new_tokens=1")
        return read[0]

    as_task, as_text = ids_read(tmp_path / "run"), ids_read(gpt)
    assert as_task == ids[:len(as_task)] and not special & {*as_task}
    assert special & {*as_text} == {tokenizer.special["<|endoftext|>"]}


# ---- scores ------------------------------------------------------------------------------------------------------


def test_a_score_that_is_nan_is_never_the_best():
    task = {"kind": "regress", "metric": "pearson"}
    nan, finite = float("nan"), predict.main_score(task, {"pearson": -0.9, "loss": 9.0})
    bad, worse = (predict.main_score(task, {"pearson": nan, "loss": loss}) for loss in (1.0, 2.0))
    assert finite > bad > worse


def test_labels_equal_as_numbers_have_one_order():
    labels = ["01", "1", "001", "0", "00", "-1"]
    orders = {tuple(examples.order_labels(random.Random(seed).sample(labels, len(labels)))) for seed in range(20)}
    assert orders == {("-1", "0", "00", "001", "01", "1")}


def test_a_sweep_goes_on_after_a_run_that_diverged(corpus, gpt, tmp_path, call, capsys, monkeypatch):
    rows = [f"{label} {i},{label}\n" for label in ("good", "bad") for i in range(40)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    real = finetune.fine_tune

    def fine_tune(cfg, dist):
        if cfg.seed == 1:
            raise loop.Diverged("the training loss is nan at step 3")
        return real(cfg, dist)

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    with pytest.raises(SystemExit) as stopped:
        call(finetune, f"--train_file={tmp_path / 'rows.csv'}", f"--out_dir={tmp_path / 'run'}", "--seeds=1,2,3",
             "--device=cpu", "--max_steps=2", "--n_layer=1", "--n_head=2", "--n_embd=16", "--max_length=16",
             "--dtype=float32")
    out, err = capsys.readouterr()
    assert stopped.value.code == 1 and "1 diverged" in out and "val accuracy" in out and "nan at step 3" in err
    (entry,) = json.loads((tmp_path / "run" / "result.json").read_text())
    assert entry["seeds"] == [2, 3]


# ---- two processes -------------------------------------------------------------------------------------------------


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.parametrize("script, words", [("train.py", ["--data={damaged}"]), pytest.param(
    "finetune.py", ["--train_file={corpus}/none.csv", "--device=cpu"], marks=pytest.mark.slow)])
def test_an_error_under_torchrun_is_one_sentence_and_ends_both(script, words, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    flip(tmp_path / "data" / "val.bin", random.Random(3))
    words = [word.format(corpus=corpus, damaged=tmp_path / "data") for word in words]
    began = time.monotonic()
    done = run(script, *(SHORT if script == "train.py" else []), *words, f"--out_dir={tmp_path / 'run'}", check=False,
               launcher=TORCHRUN)
    told = {line for line in done.stderr.splitlines() if line.startswith("error:")}
    assert done.returncode and len(told) == 1, done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.partition("error:")[0]
    assert "exitcode  : 2" in done.stderr and time.monotonic() - began < 60


def test_processes_end_where_a_ddp_model_is_the_last_to_hold_their_group(tmp_path):
    """Gloo's thread and the end of the model waited for each other, in one of a dozen ends."""
    code = """
import sys, torch
from nanoft import distributed
rank = int(sys.argv[1])
dist = distributed.Dist(rank, 2, torch.device("cpu"))
def end(i):
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}{i}", rank=rank, world_size=2)
    net = distributed.wrap(torch.nn.Linear(2, 2), dist)
    net(torch.ones(1, 2)).sum().backward()
    distributed.stop(dist)
for i in range(25):
    end(i)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(rank), tmp_path / "store"], cwd=ROOT)
                 for rank in range(2)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


# ---- the machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left"), UnicodeEncodeError("utf-8", "x", 0, 1, "no"),
                                   MemoryError(), RecursionError("too deep"),
                                   RuntimeError("can't allocate memory: 8 bytes")])
def test_errors_of_the_machine_are_sentences(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        config.run(main)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")
    with pytest.raises(RuntimeError):
        config.run(lambda: (_ for _ in ()).throw(RuntimeError("of the program")))


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"},
                                   {"RANK": "x", "WORLD_SIZE": "2"}])
def test_ranks_that_torchrun_did_not_set(given, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert config.torchrun() == (0, 1, 0)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="not by torchrun"):
        distributed.start("cpu", "float32")


def test_stderr_may_be_closed(tmp_path):
    """Python's sys.stderr is None then, of which a progress bar would ask whether it is a terminal."""
    (tmp_path / "a.txt").write_text("a cat sat on a mat. " * 99)
    words = command("nanoft tokenizer", tmp_path / "a.txt", "--vocab_size=270", f"--out={tmp_path / 'tokenizer.json'}")
    done = subprocess.run("exec 2>&-; " + shlex.join(map(str, words)), shell=True, cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "tokenizer.json").exists()


def test_sighup_saves_like_sigterm_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        caught, release = distributed.catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert caught == [signal.SIGHUP]
        release()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        caught, release = distributed.catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert caught == []
        release()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("option", ["--seed=18446744073709551616", "--n_embd=2147483648", "--lr=nan",
                                    "--max_minutes=1e999", f"--lr={'9' * 400}", "--warmup=-inf"])
def test_numbers_out_of_range(option, capsys):
    with pytest.raises(UserError, match=option.partition("=")[0][2:]):
        config.load(train.Config, ["--max_steps=3", option], check=train.check)
    assert config.load(train.Config, [f"--seed={2**63 - 1}"]).seed == 2**63 - 1


def test_runs_without_a_break_take_linear_time():
    r = random.Random(0)
    for text in ("".join(r.choices("ACGT", k=200_000)), "a b" + " " * 200_000 + "x", "?" * 200_000):
        began = time.monotonic()
        tokenizer = bpe.train([text], 300, progress=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.monotonic() - began < 10


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "x.txt.gz", "wb") as file:
        for _ in range(300):
            file.write(bytes([97]) * 2**20)
    with pytest.raises(UserError, match="unpacks to more"):
        for _ in files.read_blocks(tmp_path / "x.txt.gz"):
            pass


def test_forms():
    form = {"a": int, "b?": [float], "c?": {"x", "y"}, str: (str, None)}
    assert files.difference({"a": 1, "b": [1, 2.5], "c": "x", "d": None}, form) == ""
    for value, words in (({}, "lacks a"), ({"a": True}, "bool"), ({"a": 1, "b": [float("nan")]}, "nan"), (3, "int"),
                         ({"a": 1, "c": "z"}, "not one of"), ({"a": 1, "d": 5}, "int"), ({"a": 2**40}, "too large")):
        assert words in files.difference(value, form)


@pytest.mark.parametrize("given", [{"metric": ["f1"]}, {"multi_label": "yes"}, {"labels": "ab"}, {"kind": []}])
def test_a_task_json_of_another_form(given, tmp_path):
    for split in ("train", "val"):
        files.write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"{split} {x}", "label": x} for x in "abab"])
    task = {"kind": "classify", "labels": ["a", "b"], "metric": "accuracy"}
    files.write_json(tmp_path / "task.json", task)
    examples.load_task(tmp_path)
    files.write_json(tmp_path / "task.json", task | given)
    with pytest.raises(UserError, match=rf"task.json: .*{next(iter(given))}"):
        examples.load_task(tmp_path)


def test_validation_is_never_taken_from_a_file_for_the_test(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"a cat {i}. " for i in range(900)))
    (tmp_path / "test.txt").write_text("a dog. " * 50)
    (tmp_path / "more.txt").write_text("a bird. " * 50)
    run("data/text/prepare.py", f"--source={tmp_path}", f"--out={tmp_path / 'out'}", "--vocab_size=300")
    tokenizer = vocabulary.load(tmp_path / "out")
    texts = {}
    for split in ("train", "val", "test"):
        tokens = bins.Tokens.open(tmp_path / "out", split)
        texts[split] = tokenizer.decode(tokens.read(0, len(tokens)).tolist())
    assert "dog" in texts["test"] and "dog" not in texts["train"] + texts["val"]
    assert all("bird" in texts["train"] and f"a cat {i}" in texts["train"] + texts["val"] for i in (0, 899))


@pytest.mark.parametrize("names, expected", [
    ("train/pos/1.txt train/neg/2.txt test/pos/3.txt", {"all": 2, "test": 1}),
    ("train.jsonl validation.jsonl test.jsonl", {"train": 1, "val": 1, "test": 1}),
    ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl validation-00000-of-00001.jsonl", {"train": 2, "val": 1}),
    ("corpus.txt dev.txt", {"train": 1, "val": 1}), ("corpus.txt test.md", {"all": 1, "test": 1}),
    ("wiki.train.tokens wiki.valid.tokens notes.txt", {"train": 1, "val": 1}),
    ("Train/1.txt Valid/2.txt read.me", {"train": 1, "val": 1}),
    ("notes.txt .ipynb_checkpoints/notes-checkpoint.txt .venv/lib/x.py", {"all": 1}),
    ("src/a.py test/a.py latest.txt", {"all": 3}), ("test.txt", {"all": 1}), ("read.me", {"all": 0})])
def test_what_is_named_for_validation_or_test_is_never_trained_on(names, expected, tmp_path):
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    find_files = runpy.run_path(str(ROOT / "data/text/prepare.py"))["find_files"]
    assert {split: len(files) for split, files in find_files(tmp_path).items()} == expected


def test_a_source_that_is_named_twice(tmp_path):
    (tmp_path / "a.txt").write_text("a cat sat on a mat. " * 200)
    done = run("data/text/prepare.py", f"--source={tmp_path},{tmp_path / 'a.txt'}", f"--out={tmp_path / 'out'}",
               check=False)
    assert done.returncode == 2 and re.search("names .*a.txt twice", done.stderr)
