"""Reports of runs: whole pages without the network, with the right numbers, for every kind of task, and comparisons."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
from conftest import TINY, read_page, some_slow
from test_finetune import write_folder
from test_story_finetune import KINDS

import finetune
import train
from nanoft import UserError
from nanoft.pages import run_report
from nanoft.runlog import RunLog


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Folders of tiny runs: a GPT, another with other options, an encoder."""
    folder, before = tmp_path_factory.mktemp("runs"), sys.argv
    for name, *options in (("gpt",), ("wide", "--n_embd=48", "--lr=0.001"),
                           ("bert", "--objective=mlm", "--sample_tokens=16")):
        sys.argv = ["train.py", f"--data={corpus}", f"--out_dir={folder / name}", *TINY, *options]
        train.main()
    sys.argv = before
    return folder


def test_a_pretraining_run(runs, call, capsys):
    call(run_report, runs / "gpt")
    text = read_page(runs / "gpt" / "report.html")
    result = json.loads((runs / "gpt" / "result.json").read_text())
    assert f"{result['test_bits_per_byte']:.5g}" in text and f"{result['parameters']:,}" in text
    assert "python train.py --data=" in text and "tensorboardX" in text and "block 1" in text
    assert "step 12" in text and "n_layer" in text
    assert "report.html" in capsys.readouterr().out


def test_the_samples_are_those_of_the_run(runs, call):
    samples = run_report.load(runs / "bert").samples
    assert sorted(samples) == [4, 8, 12] and all("[" in text for text in samples.values())
    rows = [json.loads(line) for line in (runs / "bert" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["tag"] for row in rows] == ["sample"] * 3 + ["final sample"] and samples[12] == rows[-1]["text"]


def test_samples_past_the_step_of_resuming_are_dropped(tmp_path):
    for step, texts in ((0, ["a", "b\n  中\u2028"]), (1, ["c"])):  # the second time, step 2 is made anew
        log = RunLog(tmp_path, step=step, board=False)
        for i, text in enumerate(texts, step + 1):
            log.text("sample", text, i)
        log.close()
        with open(tmp_path / "samples.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 1, "tag": "sam')  # a line cut by a crash
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / name).write_text("{}")
    assert run_report.read_log(tmp_path / "samples.jsonl", run_report.SAMPLES) == [
        {"step": 1, "tag": "sample", "text": "a"}, {"step": 2, "tag": "sample", "text": "c"}]
    assert run_report.load(tmp_path).samples == {1: "a", 2: "c"}
    RunLog(tmp_path, main=False, step=2, board=False).text("sample", "of another rank", 2)
    assert run_report.load(tmp_path).samples == {1: "a", 2: "c"}
    (tmp_path / "samples.jsonl").unlink()
    assert run_report.load(tmp_path).samples == {}


def test_a_resumed_runs_clock_goes_on(tmp_path):
    rows = [{"step": 1, "tokens": 10, "seconds": 5.0, "loss": 2.0}, {"step": 2, "seconds": 65.0, "val_loss": 1.5},
            {"step": 3, "tokens": 30, "seconds": 30.0, "loss": 1.0}, {"step": 4, "seconds": 90.0, "val_loss": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    (tmp_path / "config.json").write_text("{}")
    run = run_report.load(tmp_path)
    assert [row["minutes"] * 60 for row in run.rows] == pytest.approx([5, 65, 95, 155])
    assert run.curve("val_loss", "tokens").tolist() == [[20], [1.5]]
    assert np.array_equal(run.curve("loss", "step"), [[1, 3], [2, 1]]) and run.curve("f1", "step").shape == (2, 0)


@pytest.mark.parametrize("name", some_slow(KINDS))
def test_fine_tuned_runs(name, tmp_path, call):
    row, task, _ = KINDS[name]
    rng = random.Random(name)
    data = write_folder(tmp_path / "data", *([row(rng) for _ in range(n)] for n in (60, 24, 24)), **task)
    shape = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--max_length=48", "--max_steps=3", "--dtype=float32",
             "--linear=false"]  # with it no row is wrong
    call(finetune, f"--data={data}", f"--out_dir={tmp_path / 'run'}", *shape, "--device=cpu")
    call(run_report, tmp_path / "run")
    text = read_page(tmp_path / "run" / "report.html")
    assert "task_head" in text or name == "generate"
    assert ("Confusion" in text) == (name in ("classify", "pair", "tag"))
    assert "Furthest from the truth (test)" in text
    shutil.rmtree(data)  # the texts are in predictions.jsonl, too
    call(run_report, tmp_path / "run")
    assert read_page(tmp_path / "run" / "report.html") == text


def test_runs_side_by_side(runs, call, capsys):
    call(run_report, "--compare", runs / "gpt", runs / "wide")
    text = read_page(runs / "compare.html")
    assert "cannot be compared" not in text and "n_embd" in text and "0.001" in text and "n_head" not in text
    assert "validation" in text.lower() or not run_report.plots.can_draw()
    call(run_report, "--compare", runs / "gpt", runs / "bert", f"--out={runs / 'x.html'}")
    text = read_page(runs / "x.html")
    assert "cannot be compared" in text and "alidation: loss" not in text and "objective" in text


def test_what_cannot_be_reported(runs, tmp_path, call):
    for args, sentence in (((tmp_path,), "no metrics.jsonl"), ((), "usage: python -m nanoft report"),
                           ((runs / "gpt", runs / "bert"), "several after --compare")):
        with pytest.raises(UserError, match=sentence):
            call(run_report, *args)


def test_a_run_that_is_not_finished(runs, tmp_path, call):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(runs / "gpt" / name, tmp_path)
    call(run_report, tmp_path)
    text = read_page(tmp_path / "report.html")
    assert "not finished" in text and "no result.json yet" in text and "no environment.json" in text
