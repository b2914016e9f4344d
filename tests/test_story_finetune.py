"""Whole fine-tuning runs: every kind of task learns, resumes, freezes, adapts, and is used."""

import json
import math
import os
import random
import shutil
import signal

import pytest
import torch
from conftest import run, some_slow
from test_finetune import write_base, write_folder
from test_story_train import assert_equal, load, losses, result, rows

import finetune
import sample
from nanoft import UserError, files
from nanoft.tasks import collate, sweep

FILLER = "the a one some day house went over under with from many few old new".split()
FAST = ["--device=cpu", "--dtype=float32", "--log_interval=1", "--batch_size=16", "--epochs=3", "--lr=0.003",
        "--optimizer=adamw", "--embed_lr=0.02", "--head_lr=0.01", "--max_length=48", "--linear=false"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def text(rng, *words, size=10):
    """Filler with these words at random places."""
    found = rng.choices(FILLER, k=rng.randrange(2, size))
    for word in words:
        found.insert(rng.randrange(len(found) + 1), word)
    return " ".join(found)


def classify(rng):
    label = rng.choice(["bad", "fine", "good"])
    return {"text": text(rng, {"bad": "awful", "fine": "okay", "good": "lovely"}[label]), "label": label}


def several(rng):
    labels = [label for label in ("cats", "dogs") if rng.random() < 0.5]
    return {"text": text(rng, *labels), "labels": labels}


def pair(rng):
    label = rng.choice(["no", "yes"])
    return {"text": text(rng), "pair": text(rng, label), "label": label}


def regress(rng):
    word = rng.choice(["awful", "okay", "lovely"])
    return {"text": text(rng, word), "label": {"awful": 10.0, "okay": 12.0, "lovely": 14.5}[word]}


def tag(rng):
    words, tags = text(rng).split(), []
    tags = ["O"] * len(words)
    at = rng.randrange(len(words) + 1)
    words[at:at], tags[at:at] = (["Rome"], ["B-place"]) if rng.random() < 0.5 else (
        ["Mr", "Smith"], ["B-person", "I-person"])
    return {"words": words, "tags": tags}


def answer(rng):
    number = rng.choice(["六月", "41", "café"])
    context = text(rng, number, size=60)
    return {"context": context, "question": "when was it ?", "id": str(rng.random()),
            "answers": [{"text": number, "start": context.index(number)}]}


def maybe_answer(rng):
    row = answer(rng)
    if rng.random() < 0.4:
        row |= {"context": text(rng, size=20), "answers": []}
    return row


def generate(rng):
    word = rng.choice(["cat", "dog", "cow"])
    return {"prompt": text(rng, word, size=4), "response": {"cat": "meow", "dog": "woof", "cow": "moo"}[word]}


KINDS = {  # how a row is made, task.json, and what the metric must reach on test
    "classify": (classify, {"labels": ["bad", "fine", "good"]}, 0.9),
    "several": (several, {"labels": ["cats", "dogs"], "multi_label": True}, 0.9),
    "pair": (pair, {"kind": "pair", "labels": ["no", "yes"], "metric": "f1"}, 0.9),
    "regress": (regress, {"kind": "regress", "metric": "pearson"}, 0.9),
    "tag": (tag, {"kind": "tag", "labels": ["O", "B-person", "I-person", "B-place"], "metric": "f1"}, 0.9),
    "answer": (answer, {"kind": "answer", "metric": "f1"}, 0.8),
    "maybe_answer": (maybe_answer, {"kind": "answer", "metric": "f1"}, 0.8),
    "generate": (generate, {"kind": "generate", "metric": "loss"}, -0.5),
}
SHOWN = {"classify": "\n    good ", "several": "\n    cats ", "pair": "\n    yes ", "regress": "\n    1",
         "tag": "Rome[B-place", "answer": "六月   (characters 8 to 10", "maybe_answer": "六月", "generate": "woof"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for each kind's data, and an encoder and a GPT over one tokenizer to begin from."""
    folder = tmp_path_factory.mktemp("home")
    for name, (make, task, _) in KINDS.items():
        rng = random.Random(name)
        train, val, test = ([make(rng) for _ in range(n)] for n in (200 if "answer" in name else 320, 60, 80))
        write_folder(folder / name, train, val, test, **task)
    write_base(folder / "encoder", folder / "classify" / "tokenizer.json")
    write_base(folder / "gpt", folder / "classify" / "tokenizer.json", causal=True)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("model", ["encoder", "gpt"])
@pytest.mark.parametrize("name", some_slow(KINDS))
def test_every_kind_learns_and_is_used(name, model, home, tmp_path, call, capsys):
    make, task, least = KINDS[name]
    if name == "generate" and model == "encoder":
        return
    out = tmp_path / "run"
    long = ["--epochs=6"] if "answer" in name or name in ("tag", "generate") else []
    if model == "gpt" and "answer" in name:  # a start is to be seen before what follows
        return
    options = [*FAST, *long, f"--data={home / name}", f"--init_from={home / model}", f"--out_dir={out}"]
    call(finetune, *options)
    figures, metric = result(out), task.get("metric", "accuracy")
    assert figures["metric"] == metric and figures["parameters"] == figures["trained_parameters"]
    assert figures[f"test_{metric}"] * (-1 if metric == "loss" else 1) >= least, figures
    if name == "tag":
        assert figures["test_strict_f1"] <= figures["test_f1"] and figures["test_strict_precision"] > 0.5
    if name == "generate":
        assert figures["test_perplexity"] == pytest.approx(math.exp(figures["test_loss"]))
    assert {path.name for path in out.iterdir()} >= {"best.pt", "latest.pt", "tokenizer.json", "config.json",
                                                     "metrics.jsonl", "result.json", "predictions.jsonl"}
    training = lines(out / "metrics.jsonl")
    assert {"step", "epoch", "seconds", "loss", "lr", "grad_norm", "rows_per_s", "tokens_per_s"} <= training[0].keys()
    assert any(f"val_{metric}" in row for row in training)

    # the figures of best.pt again, and a prediction for every row
    predicted = lines(out / "predictions.jsonl")
    assert [row["row"] for row in predicted] == list(range(80))
    assert len(lines(out / "predictions_val.jsonl")) == 60
    (out / "predictions.jsonl").unlink()
    call(finetune, *options, "--eval_only")
    again = result(out)
    assert again[f"test_{metric}"] == pytest.approx(figures[f"test_{metric}"], abs=1e-6)
    assert lines(out / "predictions.jsonl") == predicted
    test = lines(home / name / "test.jsonl")
    for row, guess in zip(test, predicted):
        if guess.get("prediction") and "start" in guess:
            assert row["context"].startswith(guess["prediction"], guess["start"])

    # sample.py says the same, on the screen and into a file
    capsys.readouterr()
    here = [f"--checkpoint={out}", "--device=cpu", "--dtype=float32"]
    given = {"classify": ["--text=the lovely house"], "several": ["--text=the cats went"], "regress": ["--text=okay"],
             "pair": ["--text=the day", "--pair=a yes day"], "tag": ["--text=many went Rome over"],
             "generate": ["--prompt=the dog", "--temperature=0", "--max_new_tokens=8"]}.get(
                 name, ["--question=when was it ?", "--context=one day 六月 over the house"])
    call(sample, *here, *given)
    assert SHOWN[name] in capsys.readouterr().out
    if name != "generate":
        call(sample, *here, f"--input={home / name / 'test.jsonl'}", f"--output={tmp_path / 'said.jsonl'}")
        said = lines(tmp_path / "said.jsonl")
        assert [row["prediction"] for row in said] == [row["prediction"] for row in predicted] or name == "regress"
        assert all(row | said_row == said_row for row, said_row in zip(test, said))


def test_types_show_what_two_texts_have_in_common(tmp_path, call):
    rng = random.Random(0)

    def same(label):
        words = rng.sample(FILLER, 6)
        second = words[:3] if label == "yes" else words[3:]
        return {"text": " ".join(["it", *words[:3]]), "pair": " ".join(["it", *rng.sample(second, 3)]), "label": label}

    rows = [[same(label) for label in ("no", "yes") * n] for n in (160, 30, 50)]
    data = write_folder(tmp_path / "same", *rows, kind="pair", labels=["no", "yes"], metric="f1")
    base = write_base(tmp_path / "base", data / "tokenizer.json")
    call(finetune, f"--data={data}", f"--init_from={base}", *FAST, "--match_types=false",
         f"--out_dir={tmp_path / 'plain'}")
    call(finetune, f"--data={data}", f"--init_from={base}", *FAST, f"--out_dir={tmp_path / 'typed'}")  # by itself
    assert result(tmp_path / "plain")["test_accuracy"] < 0.8 and result(tmp_path / "typed")["test_accuracy"] > 0.9
    assert load(tmp_path / "typed" / "best.pt")["model"]["trunk.types.weight"].shape == (4, 32)


@pytest.mark.parametrize("n_layer", [0, 1])
def test_a_model_from_scratch_learns_too(n_layer, home, tmp_path, call):
    call(finetune, *FAST, f"--data={home / 'classify'}", f"--out_dir={tmp_path / 'run'}", f"--n_layer={n_layer}",
         "--n_head=2", "--n_embd=32", "--n_gram=2", "--n_buckets=256", "--class_weights=balanced")
    assert result(tmp_path / "run")["test_accuracy"] > 0.9


EVERYTHING = ["--dropout=0.2", "--head_dropout=0.2", "--token_mask=0.1", "--token_drop=0.1",
              "--average=0.9", "--class_weights=balanced", "--layer_decay=0.8",
              "--unfreeze_every=0.4", "--eval_interval=7", "--max_steps=26", "--epochs=9"]


@pytest.mark.parametrize("extra", [["--optimizer=muon", "--adversarial=1"], ["--lora_rank=2", "--unfreeze_every=0"]])
def test_a_crashed_run_resumes_in_the_middle_of_an_epoch_bit_for_bit(extra, home, tmp_path, call, crash):
    options = [*FAST, *EVERYTHING, *extra, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}"]
    call(finetune, *options, f"--out_dir={tmp_path / 'whole'}")
    crash(14, finetune, *options, f"--out_dir={tmp_path / 'run'}")  # of 20 steps in an epoch
    call(finetune, *options, f"--out_dir={tmp_path / 'run'}", "--resume")
    parts_of = {"latest.pt": ("model", "optimizer", "averaged", "best", "worse"), "best.pt": ("model",)}
    for name, parts in parts_of.items():
        whole, resumed = (load(tmp_path / folder / name) for folder in ("whole", "run"))
        for part in parts:
            assert_equal(whole[part], resumed[part], part)
    assert torch.equal(losses(tmp_path / "whole"), losses(tmp_path / "run"))
    assert lines(tmp_path / "whole" / "predictions.jsonl") == lines(tmp_path / "run" / "predictions.jsonl")


def test_a_signal_finishes_the_step_and_saves(home, tmp_path, call, monkeypatch):
    options = [*FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}", "--max_steps=12"]
    call(finetune, *options, f"--out_dir={tmp_path / 'whole'}")
    batch, made = collate.batch, []

    def batch_and_signal(*args):
        made.append(args)
        if len(made) == 8:  # the first is what watch looks at, the second that of step 1; then each is one step ahead
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(*args)

    monkeypatch.setattr(collate, "batch", batch_and_signal)
    with pytest.raises(SystemExit) as end:
        call(finetune, *options, f"--out_dir={tmp_path / 'run'}")
    assert end.value.code == 128 + signal.SIGTERM and load(tmp_path / "run" / "latest.pt")["step"] == 6
    monkeypatch.setattr(collate, "batch", batch)
    call(finetune, *options, f"--out_dir={tmp_path / 'run'}", "--resume")
    whole, resumed = (load(tmp_path / folder / "latest.pt")["model"] for folder in ("whole", "run"))
    assert_equal(whole, resumed)


def changed_weights(folder, base):
    """The names of the trunk's weights that differ from the checkpoint that the run began from."""
    before, after = load(base / "best.pt")["model"], load(folder / "latest.pt")["model"]
    return {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("option, moving", [
    ("--freeze_blocks=-1", ()), ("--lora_rank=2", ()), ("--freeze_blocks=1", ("trunk.blocks.1.",)),
    ("--unfreeze_every=0.5", ("trunk.blocks.1.",)), ("--freeze_blocks=0", ("trunk.",))])
def test_frozen_weights_are_the_same_to_the_bit(option, moving, home, tmp_path, call):
    call(finetune, *FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}",
         f"--out_dir={tmp_path / 'run'}", option, "--epochs=0.8")
    changed = changed_weights(tmp_path / "run", home / "encoder")
    trunk = {name for name in load(home / "encoder" / "best.pt")["model"] if name.startswith("trunk.")}
    assert changed == {name for name in trunk if name.startswith(moving)} if moving else not changed


def test_an_adapter_holds_its_head_and_gives_the_same_figures(home, tmp_path, call):
    options = [*FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}"]
    call(finetune, *options, f"--out_dir={tmp_path / 'run'}", "--lora_rank=4", "--lr=0.02", "--epochs=4")
    figures = result(tmp_path / "run")
    assert figures["test_accuracy"] > 0.8 and figures["trained_parameters"] < 0.5 * figures["parameters"]
    adapter, best = load(tmp_path / "run" / "adapter.pt"), load(tmp_path / "run" / "best.pt")
    assert "task_head.weight" in adapter["model"] and all(
        ".lora_" in name or name.startswith("task_head.") for name in adapter["model"])
    assert not any(".lora_" in name for name in best["model"])
    call(finetune, *options, f"--out_dir={tmp_path / 'again'}", f"--adapter={tmp_path / 'run' / 'adapter.pt'}",
         "--eval_only")
    assert lines(tmp_path / "run" / "predictions.jsonl") == lines(tmp_path / "again" / "predictions.jsonl")
    call(finetune, *options, f"--out_dir={tmp_path / 'other'}", "--max_steps=1")
    with pytest.raises(UserError, match="another run"):
        call(finetune, *options, f"--out_dir={tmp_path / 'other'}", f"--adapter={tmp_path / 'run' / 'adapter.pt'}",
             "--eval_only")


def test_an_adapter_brings_its_own_linear_model(home, tmp_path, call):
    """The base has one of other labels: the words are as good, but every label is another one."""
    base, own = tmp_path / "base", [*FAST, "--linear=true", "--max_steps=2"]
    shutil.copytree(home / "classify", tmp_path / "turned")
    for split in ("train", "val", "test"):
        given = lines(home / "classify" / f"{split}.jsonl")
        labels = sorted({row["label"] for row in given})
        files.write_jsonl(tmp_path / "turned" / f"{split}.jsonl", [
            row | {"label": labels[labels.index(row["label"]) - 1]} for row in given])
    call(finetune, *own, f"--data={tmp_path / 'turned'}", f"--init_from={home / 'encoder'}", f"--out_dir={base}")
    options = [*own, f"--data={home / 'classify'}", f"--init_from={base}"]
    call(finetune, *options, f"--out_dir={tmp_path / 'run'}", "--lora_rank=2")
    call(finetune, *options, f"--out_dir={tmp_path / 'again'}", f"--adapter={tmp_path / 'run' / 'adapter.pt'}",
         "--eval_only")
    assert result(tmp_path / "run")["test_accuracy"] > 0.8
    assert lines(tmp_path / "run" / "predictions.jsonl") == lines(tmp_path / "again" / "predictions.jsonl")


def test_a_run_is_measured_as_it_was_trained(home, tmp_path, call):
    call(finetune, *FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}", "--max_steps=1",
         f"--out_dir={tmp_path / 'run'}")
    for option in ("--long_text=tail", "--max_length=12", "--metric=macro_f1"):
        with pytest.raises(UserError, match=f"did in training; leave out {option.split('=')[0]}"):
            call(finetune, f"--out_dir={tmp_path / 'run'}", "--eval_only", option)
    call(finetune, f"--out_dir={tmp_path / 'run'}", "--eval_only")


def test_the_adapter_of_pairs_has_no_types_that_it_could_not_train(home, tmp_path, call):
    options = [*FAST, f"--data={home / 'pair'}", f"--init_from={home / 'encoder'}"]
    call(finetune, *options, f"--out_dir={tmp_path / 'run'}", "--lora_rank=4", "--max_steps=3")
    assert not load(tmp_path / "run" / "best.pt")["task"]["match_types"]
    call(finetune, *options, f"--out_dir={tmp_path / 'again'}", f"--adapter={tmp_path / 'run' / 'adapter.pt'}",
         "--eval_only")
    assert lines(tmp_path / "run" / "predictions.jsonl") == lines(tmp_path / "again" / "predictions.jsonl")


def test_the_adapter_of_a_gpt_that_generates_holds_no_head(home, tmp_path, call):
    call(finetune, *FAST, f"--data={home / 'generate'}", f"--init_from={home / 'gpt'}", f"--out_dir={tmp_path / 'run'}",
         "--lora_rank=2", "--max_steps=2")
    assert all(".lora_" in name for name in load(tmp_path / "run" / "adapter.pt")["model"])
    assert not changed_weights(tmp_path / "run", home / "gpt")


@pytest.mark.parametrize("name", ["tag", "answer"])
@pytest.mark.slow
def test_parts_and_processes_equal_one_big_batch(name, home, tmp_path, call):
    """The parts have different numbers of words; each word weighs the same all the same, and the noise is theirs."""
    options = [*FAST, f"--data={home / name}", f"--init_from={home / 'encoder'}", "--dropout=0", "--head_dropout=0",
               "--max_steps=6", "--eval_interval=3", "--adversarial=5"]
    call(finetune, *options, f"--out_dir={tmp_path / 'one'}")
    call(finetune, *options, f"--out_dir={tmp_path / 'parts'}", "--micro_batch_size=4")
    folders = ["parts"]
    if name == "tag":
        run("finetune.py", *options, f"--out_dir={tmp_path / 'two'}", launcher=TORCHRUN)
        folders.append("two")
    for folder in folders:
        assert torch.allclose(losses(tmp_path / "one"), losses(tmp_path / folder), atol=1e-5)
        one, other = result(tmp_path / "one"), result(tmp_path / folder)
        assert one["test_f1"] == pytest.approx(other["test_f1"], abs=1e-6)
        assert len(lines(tmp_path / folder / "predictions.jsonl")) == 80


def test_seeds_and_a_grid_end_with_a_table(home, tmp_path, call, capsys):
    few, tmp_path = tmp_path / "few", tmp_path / "runs"
    options = [*FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}", f"--out_dir={tmp_path}"]
    call(finetune, *options, "--seeds=1,2", "--grid=max_steps=2,30")
    table = json.loads((tmp_path / "grid.json").read_text(encoding="utf-8"))
    assert [entry["options"] for entry in table] == [{"max_steps": 2}, {"max_steps": 30}]
    short, long = (entry["test_accuracy"] for entry in table)
    assert long["mean"] > short["mean"] and len(long["values"]) == 2
    assert "4 runs" in capsys.readouterr().out
    single = result(tmp_path / "max_steps=30_seed2")["test_accuracy"]
    assert single == long["values"][1]
    both = sweep.average_predictions([tmp_path / "max_steps=30_seed1", tmp_path / "max_steps=30_seed2"])[0]["accuracy"]
    assert table[1]["test_accuracy_together"] == both
    before = (tmp_path / "max_steps=30_seed2" / "latest.pt").stat().st_mtime_ns
    call(finetune, f"--out_dir={tmp_path}", "--resume")  # with the same options; all are done: only the table
    assert json.loads((tmp_path / "grid.json").read_text(encoding="utf-8")) == table
    assert (tmp_path / "max_steps=30_seed2" / "latest.pt").stat().st_mtime_ns == before
    # on other rows, which get files of their own
    shutil.copytree(home / "classify", few)
    test = (few / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (few / "test.jsonl").write_text("".join(test[:25]), encoding="utf-8")
    call(finetune, f"--out_dir={tmp_path}", "--eval_only", f"--data={few}")
    assert json.loads((tmp_path / "grid.json").read_text(encoding="utf-8")) == table
    measured = json.loads((tmp_path / "grid_eval.json").read_text(encoding="utf-8"))
    found = [lines(tmp_path / f"max_steps=30_seed{seed}" / "predictions_eval.jsonl") for seed in (1, 2)]
    right = [max(a["probabilities"], key=lambda k: a["probabilities"][k] + b["probabilities"][k]) == a["label"]
             for a, b in zip(*found)]
    assert len(right) == 25 and measured[1]["test_accuracy_together"] == pytest.approx(sum(right) / 25)


def test_patience_ends_a_run_and_the_best_weights_are_kept(home, tmp_path, call):
    call(finetune, *FAST, f"--data={home / 'classify'}", f"--init_from={home / 'encoder'}", "--lr=0.02",
         f"--out_dir={tmp_path / 'run'}", "--epochs=50", "--patience=2", "--eval_interval=10")
    figures = result(tmp_path / "run")
    evaluations = {row["step"]: row["val_accuracy"] for row in rows(tmp_path / "run")[1]}
    best = max(evaluations.values())
    first = min(step for step, accuracy in evaluations.items() if accuracy == best)
    assert figures["step"] < 500 and figures["step"] == first + 20  # the loss decides ties, but patience has an end
    assert figures["val_accuracy"] == best == evaluations[figures["best_step"]]


def test_a_users_own_table(home, tmp_path, call, capsys):
    rng = random.Random(5)
    table = [classify(rng) for _ in range(300)] + [{"text": "", "label": "bad"}]
    (tmp_path / "reviews.csv").write_text("review,stars\n" + "".join(
        f"{row['text']},{row['label']}\n" for row in table), encoding="utf-8")
    call(finetune, *FAST, f"--train_file={tmp_path / 'reviews.csv'}", "--text_column=review", "--label_column=stars",
         f"--init_from={home / 'encoder'}", f"--out_dir={tmp_path / 'run'}")
    out = capsys.readouterr().out
    assert "padding" in out and "longest" in out
    assert result(tmp_path / "run")["val_accuracy"] > 0.8
    assert len(lines(tmp_path / "run" / "predictions.jsonl")) < 60


def test_a_run_that_diverges_says_so(home, tmp_path, call):
    with pytest.raises(UserError, match="lower --lr"):
        call(finetune, *FAST, f"--data={home / 'regress'}", f"--init_from={home / 'encoder'}", "--lr=1e30",
             "--embed_lr=1e30", f"--out_dir={tmp_path / 'run'}", "--warmup=0", "--grad_clip=0")
