"""--eval_only of both scripts: the same metrics again, other text and other rows, and never over a run's own files."""

import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, contents, run
from test_finetune import write_base, write_folder
from test_story_finetune import FAST, KINDS, generate, lines, several

import finetune
import sample
import train
from nanoft import UserError, checkpoint, files
from nanoft.model import make_model
from nanoft.published.source import open_model
from nanoft.tasks import predict
from nanoft.text import prepare

HERE = ["--eval_only", "--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def speakers(corpus, tmp_path_factory):
    """A short run of a GPT and one of an encoder."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("gpt", []), ("encoder", ["--objective=mlm"])):
        run("train.py", *TINY, *more, f"--data={corpus}", f"--out_dir={folder / name}")
    return folder


@pytest.mark.parametrize("name", ["gpt", "encoder"])
def test_a_run_gives_its_metrics_again_and_stays_as_it_is(name, speakers, call, capsys, tmp_path):
    out, before = speakers / name, contents(speakers)
    call(train, *HERE, f"--out_dir={out}")
    shown = capsys.readouterr().out
    wanted = files.read_json(out / "result.json")
    for split in ("val", "test"):
        assert f"{split}, all of it: loss {wanted[f'{split}_loss']:.4f}" in shown
    call(train, *HERE, "--init_from", out / "best.pt", f"--out_dir={tmp_path / 'new'}")  # its data is remembered
    again = files.read_json(tmp_path / "new" / "eval.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["eval.json"] and contents(speakers) == before
    for key in (key for key in wanted if key.startswith(("val_", "test_"))):
        assert again[key] == pytest.approx(wanted[key], rel=1e-6), key


def test_any_text_can_be_measured(speakers, call, capsys, tmp_path):
    text = (ROOT / "nanoft" / "__init__.py").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    call(train, *HERE, f"--init_from={speakers / 'gpt'}", f"--text_file={tmp_path / 'a.txt'}",
         f"--out_dir={tmp_path / 'out'}")
    found = files.read_json(tmp_path / "out" / "eval.json")
    nats = found["text_bits_per_byte"] * math.log(2) * len(text.encode())
    assert found["text_word_perplexity"] == pytest.approx(math.exp(nats / len(text.split())), rel=1e-6)
    assert "bits/byte" in capsys.readouterr().out
    paragraphs = text.split("\n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in paragraphs), encoding="utf-8")
    call(train, *HERE, f"--init_from={speakers / 'gpt'}", f"--text_file={tmp_path / 'a.jsonl'}",
         f"--out_dir={tmp_path / 'lines'}")
    assert f"{sum(len(one.encode()) for one in paragraphs):,} bytes" in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("中文 abc", encoding="utf-8")  # shorter than a window
    for name in ("gpt", "encoder"):
        call(train, *HERE, f"--init_from={speakers / name}", f"--text_file={tmp_path / 'short.txt'}")
        assert "text, all of it: loss" in capsys.readouterr().out


def test_a_data_set_of_another_tokenizer_is_read_by_that_of_the_model(speakers, corpus, call, capsys, tmp_path):
    texts = [(ROOT / "nanoft" / name).read_text(encoding="utf-8") for name in ("files.py", "bpe.py")]
    for name, tokenizer in (("own", speakers / "gpt"), ("other", "")):
        prepare.write_data(tmp_path / name, {split: texts for split in ("train", "val")}, 300, tokenizer)
    capsys.readouterr()
    for name in ("own", "other"):
        call(train, *HERE, f"--init_from={speakers / 'gpt'}", f"--data={tmp_path / name}")
    own, other = capsys.readouterr().out.splitlines()
    assert own == other and own.startswith("val, all of it: loss ")


def test_a_cache_knows_a_text_that_repeats_itself(speakers, call, capsys, tmp_path):
    """Against the same sums in plain numpy, one token at a time, over two windows and a cache shorter than the text."""
    (tmp_path / "song.txt").write_text("round and round the garden, like a teddy bear, " * 9, encoding="utf-8")
    call(train, *HERE, f"--init_from={speakers / 'gpt'}", f"--text_file={tmp_path / 'song.txt'}",
         "--cache_tokens=40", "--dtype=float32", f"--out_dir={tmp_path / 'out'}")
    told, result = capsys.readouterr().out, files.read_json(tmp_path / "out" / "eval.json")
    assert "with a cache of 40 tokens" in told and result["text_cached_loss"] < 0.7 * result["text_loss"]

    state, path, tokenizer = open_model(str(speakers / "gpt"))
    model = checkpoint.load_model(state, path, make_model, torch.device("cpu"))
    ids = [*tokenizer.encode((tmp_path / "song.txt").read_text(encoding="utf-8")), tokenizer.special["<|endoftext|>"]]
    T, eot, states, nats = model.cfg.block_size, tokenizer.special["<|endoftext|>"], [], 0.0
    assert len(ids) > 2 * T
    for start in range(0, len(ids), T):
        kept = len(states) - min(40, len(states))  # the cache holds 40 tokens before the window, and those in it
        window = [*(ids[start - 1:start] or [eot]), *ids[start:start + T - 1]]
        with torch.no_grad():
            hidden = model.trunk(torch.tensor([window]))[0]
            expected = model.head(hidden).softmax(-1).numpy()
        for i, target in enumerate(ids[start:start + T]):
            here = hidden[i].numpy() / np.linalg.norm(hidden[i].numpy())
            weights = np.array([math.exp(16 * here @ there) for there in states[kept:]])
            same = np.array(ids[kept:start + i]) == target
            remembered = weights[same].sum() / weights.sum() if len(weights) else 0.0
            nats -= math.log(0.7 * expected[i, target] + 0.3 * remembered)
            states.append(here)
    assert result["text_cached_loss"] == pytest.approx(nats / len(ids), rel=1e-4)


@pytest.mark.parametrize("options, words", [
    (["--init_from={encoder}", "--cache_tokens=9"], "cache_tokens is for a GPT"),
    (["--cache_tokens=9", "--eval_only=false"], "cache_tokens is for --eval_only"),
    (["--init_from={tmp}/none"], "no checkpoint there"), (["--init_from={gpt}", "--out_dir={encoder}"], "holds a run"),
    (["--init_from={gpt}", "--text_file={tmp}/empty.txt"], "no text to measure"),
    (["--init_from={gpt}", "--text_file={tmp}/none.txt"], "cannot be read"),
    (["--init_from={gpt}", "--block_size=8"], "as .*gpt.* did in training; leave out --block_size"),
    (["--init_from={gpt}", "--eval_tokens=9"], "all rows or text .*leave out --eval_tokens"),
    (["--text_file={tmp}/empty.txt", "--eval_only=false"], "text_file is for --eval_only"),
])
def test_what_cannot_be_measured_is_refused_in_a_sentence(options, words, speakers, call, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    before = contents(speakers)
    with pytest.raises(UserError, match=words) as caught:
        call(train, *HERE, *(word.format(tmp=tmp_path, gpt=speakers / "gpt", encoder=speakers / "encoder")
                             for word in options))
    assert "\n" not in str(caught.value) and contents(speakers) == before


# ---- fine-tuned models -------------------------------------------------------------------------------------------


def rows_of(make, *sizes, seed=0):
    rng = random.Random(seed)
    return [[make(rng) for _ in range(n)] for n in sizes]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data of several labels and of generate, each with a second set; an encoder and a GPT to begin from."""
    folder = tmp_path_factory.mktemp("home")
    for name, make in (("several", several), ("generate", generate)):
        for seed, which in enumerate(("", "_other")):
            write_folder(folder / f"{name}{which}", *rows_of(make, 160, 30, 30, seed=seed), **KINDS[name][1])
    write_base(folder / "encoder", folder / "several" / "tokenizer.json")
    write_base(folder / "gpt", folder / "several" / "tokenizer.json", causal=True)
    return folder


def test_other_rows_never_replace_the_scores_of_a_run(home, call, capsys, tmp_path):
    out = tmp_path / "run"
    options = [*FAST, "--epochs=1", f"--data={home / 'several'}", f"--init_from={home / 'encoder'}", f"--out_dir={out}"]
    call(finetune, *options)
    before = contents(out)
    call(finetune, f"--out_dir={out}", f"--data={home / 'several_other'}", "--eval_only")  # the rest is remembered
    after = contents(out)
    new = {path.name for path in after.keys() - before.keys()}
    assert new == {"result_eval.json", "predictions_eval.jsonl", "predictions_val_eval.jsonl"}
    assert all(after[path] == content for path, content in before.items())
    assert [row["text"] for row in lines(out / "predictions_eval.jsonl")] == [
        row["text"] for row in lines(home / "several_other" / "test.jsonl")]
    thresholds = files.read_json(out / "result.json")["thresholds"]
    assert files.read_json(out / "result_eval.json")["thresholds"] == thresholds != {"cats": 0.5, "dogs": 0.5}

    # the thresholds are what decides, here and in sample.py, whose table has a column for each probability
    predicted = lines(out / "predictions.jsonl")
    assert all(row["prediction"] == [label for label, p in row["probabilities"].items() if p > thresholds[label]]
               for row in predicted)
    call(sample, f"--checkpoint={out}", "--device=cpu", "--dtype=float32", f"--input={home / 'several' / 'test.jsonl'}",
         f"--output={tmp_path / 'said.csv'}")
    head, *table = (tmp_path / "said.csv").read_text(encoding="utf-8").splitlines()
    assert head == "text,labels,prediction,probability_cats,probability_dogs" and len(table) == len(predicted)


def test_generate_has_the_texts_it_writes(home, call, tmp_path):
    out = tmp_path / "run"
    call(finetune, *FAST, "--epochs=6", f"--data={home / 'generate'}", f"--init_from={home / 'gpt'}",
         f"--out_dir={out}")
    predicted, scores = lines(out / "predictions.jsonl"), files.read_json(out / "result.json")
    assert "meow" in {row["prediction"] for row in predicted} and 0 < scores["test_rouge_l"] <= 1
    exact = np.mean([row["prediction"] == row["response"] for row in predicted])
    assert scores["test_exact"] == pytest.approx(exact) and scores["test_loss"] > 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in predicted), encoding="utf-8")
    call(sample, f"--checkpoint={out}", "--device=cpu", "--dtype=float32", "--temperature=0", f"--input={prompts}",
         f"--output={tmp_path / 'said.jsonl'}", f"--max_new_tokens={max(row['tokens'] for row in predicted)}")
    assert [row["text"] for row in lines(tmp_path / "said.jsonl")] == [row["prediction"] for row in predicted]
    call(finetune, f"--out_dir={out}", "--eval_only", "--generate_rows=2")
    assert sum("prediction" in row for row in lines(out / "predictions.jsonl")) == 2


def test_a_threshold_has_the_best_f1_and_is_half_way(monkeypatch):
    monkeypatch.setattr(predict, "by_row", lambda encoded, out: out)
    labels = [["a"], ["a"], [], ["a"], []]
    p = np.array([[0.9, 0.2], [0.3, 0.2], [0.2, 0.2], [0.8, 0.2], [0.1, 0.2]])
    task = {"kind": "classify", "labels": ["a", "b"]}
    found = predict.best_thresholds(task, [{"labels": x} for x in labels], None, np.log(p / (1 - p)))
    assert found == {"a": pytest.approx(0.25), "b": 0.5}
