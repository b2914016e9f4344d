"""Many processes are one: losses, evaluation, resuming at another world size, a process that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, command, run
from test_story_train import assert_equal, assert_refused, load, losses, result, rows

import train
from nanoft import UserError

RECIPES = {
    "gpt": ["--checkpoint_activations"],
    "gpt adamw": ["--optimizer=adamw", "--micro_batch_size=1", "--tie_head", "--n_kv_head=1"],
    "bert": ["--objective=mlm", "--micro_batch_size=2", "--n_gram=2", "--n_buckets=101"],
    "bert pairs": ["--objective=mlm_nsp", "--optimizer=adamw"],
}


def torchrun(ranks, *more):
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *more]


@pytest.fixture(scope="session")
def one(corpus, tmp_path_factory):
    """one(recipe): the run of a recipe on one process, made when it is first asked for."""
    folders = {}

    def make(recipe):
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp("one")
            run("train.py", *TINY, f"--data={corpus}", f"--out_dir={folders[recipe]}", "--max_steps=50",
                "--eval_interval=25", *[word for word in RECIPES[recipe] if "checkpoint" not in word])
        return folders[recipe]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("recipe, ranks, parallel", [
    *((recipe, 2, parallel) for recipe in RECIPES for parallel in ("ddp", "fsdp")),
    ("gpt", 4, "ddp"), ("bert", 4, "ddp"), ("gpt", 4, "fsdp"), ("bert", 4, "fsdp")])
def test_many_ranks_equal_one_at_every_step(one, corpus, tmp_path, recipe, ranks, parallel):
    run("train.py", *TINY, f"--data={corpus}", f"--out_dir={tmp_path}", "--max_steps=50", "--eval_interval=25",
        f"--parallel={parallel}", *RECIPES[recipe], launcher=torchrun(ranks))
    alone = one(recipe)
    torch.testing.assert_close(losses(tmp_path), losses(alone), atol=1e-4, rtol=0)
    for name in ("val_loss", "test_loss"):
        assert result(tmp_path)[name] == pytest.approx(result(alone)[name], abs=2e-3)
    a, b = (load(folder / "latest.pt") for folder in (alone, tmp_path))
    assert a["model"].keys() == b["model"].keys()
    for name, tensor in a["model"].items():
        assert (b["model"][name] - tensor).norm() <= 1e-2 * tensor.norm(), name  # AdamW enlarges rounding in rare rows


@pytest.mark.slow
def test_a_run_goes_on_at_any_world_size(one, corpus, tmp_path):
    """One process, then two with the model in parts, then four with the whole model each: the run of one."""
    options = [*TINY, f"--data={corpus}", f"--out_dir={tmp_path}", "--eval_interval=10", "--schedule=constant",
               "--warmup=0", "--n_gram=2", "--n_buckets=101"]  # the rate is the same, whatever the budget
    run("train.py", *options, f"--out_dir={tmp_path / 'alone'}", "--max_steps=30")
    run("train.py", *options, "--max_steps=10")
    run("train.py", *options, "--max_steps=20", "--resume", "--parallel=fsdp", launcher=torchrun(2))
    run("train.py", *options, "--max_steps=30", "--resume", "--parallel=ddp", launcher=torchrun(4))
    assert [row["step"] for row in rows(tmp_path)[0]] == list(range(1, 31))
    torch.testing.assert_close(losses(tmp_path), losses(tmp_path / "alone"), atol=1e-4, rtol=0)


def children(pid):
    """The processes that a process has started, in the order of their numbers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return sorted(int(line) for line in listed.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's ps for the processes of torchrun")
def test_a_killed_rank_is_started_again_and_the_run_ends_with_the_same_weights(corpus, tmp_path):
    options = [*TINY, f"--data={corpus}", "--max_steps=60", "--eval_interval=8", "--dropout=0.1", "--resume=auto"]
    run("train.py", *options, f"--out_dir={tmp_path / 'whole'}", launcher=torchrun(2))
    words = command("train.py", *options, f"--out_dir={tmp_path / 'run'}", launcher=torchrun(2, "--max-restarts=1"))
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 100
    while time.time() < deadline and process.poll() is None:
        if (tmp_path / "run" / "latest.pt").exists() and len(children(process.pid)) == 2:
            break
        time.sleep(0.01)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert (tmp_path / "run" / "environment.json").read_text().count('"step"') == 2  # it was started twice
    a, b = (load(tmp_path / name / "latest.pt") for name in ("whole", "run"))
    assert a["step"] == b["step"] == 60
    assert_equal(a["model"], b["model"], "model")
    assert [row["loss"] for row in rows(tmp_path / "whole")[0]] == [row["loss"] for row in rows(tmp_path / "run")[0]]


def test_resume_auto_starts_afresh_where_there_is_no_run(corpus, tmp_path, call, capsys):
    for steps in (2, 4):
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path}", f"--max_steps={steps}", "--eval_interval=2",
             "--resume=auto")
    assert [row["step"] for row in rows(tmp_path)[0]] == [1, 2, 3, 4]


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks, options, words", [
    (64, ["--parallel=fsdp", "--batch_size=64"], "parallel=fsdp deals the rows of every matrix out to 64"),
    (2, ["--parallel=fsdp", "--dtype=float16"], "no loss scale"),
    (3, [], "batch_size=8 does not divide into 3 process"),
])
def test_what_many_ranks_cannot_do_is_refused(corpus, tmp_path, call, monkeypatch, ranks, options, words):
    for name, value in {"RANK": 0, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=words) as error:
        call(train, *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", *options)
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "run").exists()


def test_more_ranks_than_gpus_are_refused(corpus, tmp_path, call, monkeypatch):
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 3 of 4 .*fewer processes"):
        call(train, *TINY[:-3], "--device=cuda", f"--data={corpus}", f"--out_dir={tmp_path / 'run'}")


def test_refusals_of_many_ranks_are_errors_of_use(corpus, tmp_path):
    done = run("train.py", *TINY, f"--data={corpus}", f"--out_dir={tmp_path / 'run'}", "--batch_size=7", check=False,
               env={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"})
    assert_refused(done, "batch_size=7")
