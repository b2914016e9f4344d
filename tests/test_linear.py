"""The linear model of n-grams: the baseline of every report, and what a table alone is learned with."""

import csv
import itertools
import json
import random
import re

import numpy as np
import pytest
import torch

import finetune
import nanoft
import sample
from nanoft import UserError, bpe, checkpoint
from nanoft.files import read_json
from nanoft.tasks import baselines, collate, features, linear, predict, start

WORDS = {"good": "fine lovely bright warm", "bad": "dull grey broken slow"}
FILLER = "the a film was and very it in of with".split()


def rows_of(n, seed):
    """Reviews of which three words out of eight tell the class."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        label = ("good", "bad")[i % 2]
        text = rng.choices(FILLER, k=5) + rng.choices(WORDS[label].split(), k=3)
        rows.append({"text": " ".join(rng.sample(text, len(text))), "label": label})
    return rows


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["review", "stars"])
        writer.writeheader()
        writer.writerows({"review": row["text"], "stars": row["label"]} for row in rows)
    return path


def encoded(rows, task):
    tokenizer = bpe.train([row["text"] for row in rows], 400, progress=False)
    return features.encode(rows, task, tokenizer), tokenizer


TASK = {"kind": "classify", "labels": ["bad", "good"], "max_length": 64, "long_text": "head", "metric": "accuracy"}


def test_a_table_is_enough(tmp_path, call, capsys):
    table = write_csv(tmp_path / "reviews.csv", rows_of(300, 1))
    call(finetune, f"--train_file={table}", f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    said = capsys.readouterr().out
    assert "chosen  a linear model of n-grams" in said and "majority" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["val_accuracy"] > 0.95 and result["val_accuracy_of_majority"] < 0.7
    assert result["val_accuracy_of_linear"] == result["val_accuracy"] and result["step"] == 0
    call(sample, f"--checkpoint={tmp_path / 'run'}", "--text=a lovely warm film", "--device=cpu")
    assert "good" in capsys.readouterr().out.split("\n")[1].split("%")[0]
    with pytest.raises(UserError, match="learned no vectors"):
        nanoft.load(tmp_path / "run").embed(["a film"])
    found = (tmp_path / "run" / "predictions.jsonl").read_bytes()
    call(finetune, f"--out_dir={tmp_path / 'run'}", "--resume", "--device=cpu")  # it was complete
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == found
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 0


def test_few_validation_rows_never_decide_against_the_only_model(tmp_path, call):
    rows = [{"text": f"{word} {i}", "label": word} for i in range(20) for word in ("lovely", "dull")]
    table, odd = write_csv(tmp_path / "rows.csv", rows), [{"text": "lovely", "label": "dull"},
                                                          {"text": "dull", "label": "lovely"}]
    call(finetune, f"--train_file={table}", f"--val_file={write_csv(tmp_path / 'odd.csv', odd)}",
         f"--test_file={table}", f"--out_dir={tmp_path / 'run'}", "--device=cpu")  # validation is all wrong
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"] == 1.0


@pytest.mark.parametrize("option", ["--lr=1e-3", "--linear=false", "--n_embd=32", "--token_mask=0.1", "--seeds=1,2"])
def test_an_option_of_blocks_asks_for_blocks(option, tmp_path, call, capsys):
    table = write_csv(tmp_path / "reviews.csv", rows_of(60, 1))
    call(finetune, f"--train_file={table}", option, f"--out_dir={tmp_path / 'run'}", "--device=cpu",
         "--max_length=16", "--watch_interval=0")
    said = capsys.readouterr().out
    if option.startswith("--seeds"):
        assert "the same for every seed" in said
    else:
        run = checkpoint.load(tmp_path / "run" / "best.pt")
        assert "chosen  epochs=3.0" in said and run["model_config"]["n_layer"] == 2
        assert run["task"]["linear"] == (option != "--linear=false")


def test_blocks_learn_beside_it_and_a_run_goes_on_without_its_options(tmp_path, call, capsys):
    table = write_csv(tmp_path / "reviews.csv", rows_of(200, 2))
    options = [f"--train_file={table}", "--device=cpu", "--dtype=float32", "--linear=true", "--n_layer=1", "--n_head=2",
               "--n_embd=16", "--max_length=32", "--log_interval=1"]
    call(finetune, *options, "--epochs=2", f"--out_dir={tmp_path / 'whole'}")
    call(finetune, *options, "--epochs=1", f"--out_dir={tmp_path / 'run'}")
    call(finetune, f"--out_dir={tmp_path / 'run'}", "--resume", "--epochs=2")  # nothing else is typed again
    a, b = (checkpoint.load(tmp_path / name / "latest.pt") for name in ("whole", "run"))
    assert a["step"] == b["step"] == 12 and a["model"]["ngrams.table"].abs().sum() > 0
    assert a["config"]["n_embd"] == b["config"]["n_embd"] == 16
    assert torch.equal(a["model"]["ngrams.table"], b["model"]["ngrams.table"])


def test_the_logits_are_those_of_the_matrix_and_a_wide_margin_is_found():
    rows = rows_of(200, 3)
    split, tokenizer = encoded(rows, TASK)
    model = linear.fit(TASK, split, split)
    out = linear.outputs(model, split)
    assert (out.argmax(1) == split.targets).mean() > 0.98
    batch = collate.batch(split, np.arange(20), TASK, tokenizer)
    mask = torch.from_numpy(batch["mask"]) if "mask" in batch else None
    torch.testing.assert_close(model(torch.from_numpy(batch["ids"]), mask).numpy(), out[:20].astype(np.float32),
                               atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["several", "regress"])
def test_labels_and_numbers(kind):
    rows = rows_of(200, 4)
    task = TASK | ({"multi_label": True} if kind == "several" else {"kind": "regress", "mean": 0.5, "deviation": 0.5})
    for row in rows:
        row |= {"labels": [row["label"]], "label": float(row["label"] == "good")}
    split, _ = encoded(rows, task)
    out = linear.outputs(linear.fit(task, split, split), split)
    guess = out.argmax(1) if kind == "several" else out[:, 0] > 0
    assert (guess == [row["label"] for row in rows]).mean() > 0.95


def test_balanced_classes_weigh_the_same_in_it(tmp_path, call):
    rows = [{"text": f"perhaps {i}", "label": "rare" if i % 5 < 2 else "usual"} for i in range(200)]
    table = write_csv(tmp_path / "rows.csv", rows + [{"text": f"never {i}", "label": "usual"} for i in range(600)])
    for choice, least, most in (("none", 0, 0), ("balanced", 0.9, 1)):  # two of five are fewer, but rarer ones too
        out = tmp_path / choice
        call(finetune, f"--train_file={table}", f"--class_weights={choice}", f"--out_dir={out}", "--device=cpu")
        assert least <= read_json(out / "result.json")["val_per_class"]["rare"]["recall"] <= most


TAGS = TASK | {"kind": "tag", "labels": ["O", "B-x"], "metric": "f1", "pool": "mean"}


def tagged_rows(n, seed, letters):
    """Sentences with a word and a name in each that are in no other; only the capital tells which is which."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        words = rng.choices(FILLER, k=rng.randint(4, 9))
        new, name = ("".join(rng.choices(letters, k=5)) for _ in range(2))
        words = rng.sample([*words, new, name.capitalize()], len(words) + 2)
        rows.append({"words": words, "tags": ["B-x" if word[0].isupper() else "O" for word in words]})
    return rows


def test_a_name_never_seen_is_known_by_its_shape():
    rows, new = tagged_rows(200, 1, "abcdefghijkl"), tagged_rows(30, 2, "mnopqrstuvwx")
    tokenizer = bpe.train([" ".join(row["words"]) for row in rows], 300, progress=False)
    train, test = (features.encode(some, TAGS, tokenizer) for some in (rows, new))
    model = linear.fit(TAGS, train, train, tokenizer)
    out = linear.outputs(model, test)
    guesses = predict.predictions(TAGS, new, test, out)
    assert predict.scores(TAGS, new, guesses, test, out)[0]["f1"] > 0.95
    batch = collate.batch(test, np.arange(30), TAGS, tokenizer)  # padding, which must not be read
    logits = model(torch.from_numpy(batch["ids"]), torch.from_numpy(batch["mask"])).numpy()
    assert logits.shape == (*batch["ids"].shape, 2)
    np.testing.assert_allclose(logits[batch["targets"] != -100], out, atol=1e-4)


def test_words_are_put_together_from_their_tokens():
    sentences = (["Ab", "c9", "x" * 30], ["é"], ["b", "-B-", "a"])
    rows = [{"words": words, "tags": ["O"] * len(words)} for words in sentences]
    tokenizer = bpe.train(["Ab ab abc"], 262, progress=False)
    batch = collate.batch(features.encode(rows, TAGS, tokenizer), np.arange(3), TAGS, tokenizer)
    model = linear.NGramLinear(TAGS, tokenizer.vocab_size)
    model.spelling = linear.spelling(tokenizer)
    words, number = model.words(torch.from_numpy(batch["ids"]), torch.from_numpy(batch["mask"]))
    for row, spelled, of, targets in zip(rows, words, number, batch["targets"]):
        read = ["".join(chr(code >> 2) for code in word if code) for word in spelled.tolist()]
        expected = [f" {word.lower()}"[:linear.LETTERS] for word in row["words"]]
        if row["words"] != ["é"]:  # two tokens of a byte each, which are no letters alone
            assert read[2:2 + len(expected)] == expected and read[:2] == ["", " "]
        assert of[torch.from_numpy(targets != -100)].tolist() == list(range(2, 2 + len(expected)))
    assert (words[0, 2, :4] & 3).tolist() == [0, 1, 2, 0] and words[0, 3, 2] & 3 == 3


def test_the_likeliest_sequence_of_tags_is_found():
    labels = ["O", "B-x", "I-x"]
    rows = [{"words": list("abcd"), "tags": ["O", "B-x", "I-x", "O"]}, {"words": ["a"], "tags": ["B-x"]}]
    task = {"labels": labels, "transitions": predict.transitions(labels, rows), "thresholds": {"O": 0.5}}
    after = np.array(task["transitions"])
    assert after[1, 2] > 0 > after[0, 2] and after.shape == (4, 3)
    lengths, rng = [3, 1, 5], np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(size=(9, 3))
        found = np.split(predict.chosen_tags(task, logits, lengths), (3, 4))
        for tags, score in zip(found, np.split(predict.log_softmax(logits) - [0.5, 0, 0], (3, 4))):
            totals = {way: score[range(len(way)), way].sum() + after[(3, *way[:-1]), way].sum()
                      for way in itertools.product(range(3), repeat=len(score))}
            assert tuple(tags) == max(totals, key=totals.get)


def test_the_commonest_tag_knows_of_no_transitions():
    rows = [{"words": ["a", "B"], "tags": ["O", "B-x"]}, {"words": ["a"], "tags": ["O"]}] * 5
    tokenizer = bpe.train(["a B"], 262, progress=False)
    task = TAGS | {"transitions": predict.transitions(TAGS["labels"], rows)}
    encoded = features.encode(rows, task, tokenizer)
    model = linear.fit(task, encoded, encoded, tokenizer)
    values = baselines.baseline_scores(task, rows, encoded, encoded, model, (rows, encoded))
    assert values == {"majority": 0.0, "linear": 1.0}


def test_the_table_of_an_older_run_keeps_its_size():
    assert linear.n_buckets(TASK) == 2**18 and linear.n_buckets(TASK | {"linear_buckets": 2**20}) == 2**20
    assert linear.NGramLinear(TASK | {"labels": list("abcdefghijklmnopqrst")}).table.shape == (2**15, 20)


def test_a_rare_tag_is_given_from_the_threshold_on_that_the_rows_tell():
    rows = [{"words": list("abcd"), "tags": ["O", "O", "O", "B-x"]}] * 5
    out = np.tile([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [2.1, 0.0]], (5, 1))  # O is the likeliest everywhere
    assert predict.has_thresholds(TAGS) and not predict.has_thresholds(TAGS | {"metric": "accuracy"})
    task = TAGS | {"thresholds": predict.best_thresholds(TAGS, rows, None, out)}
    assert task["thresholds"] == {"O": 2.5}
    guess = predict.predictions(task, rows, None, out)[0]
    assert guess["prediction"] == ["O", "O", "O", "B-x"] and guess["probabilities"][3] == pytest.approx(0.109, abs=1e-3)


@pytest.mark.parametrize("position, given, expected", [
    ("rope", 0, 304), ("rope", 100, 100), ("learned", 0, 0), ("rope", 0, 0)])
def test_a_small_block_size_does_not_cut_long_texts(position, given, expected):
    text = "a" if (given, expected) == (0, 0) and position == "rope" else "a" * 300  # a token a letter
    source = {"model_config": {"n_embd": 64, "qk_norm": True, "block_size": 64, "position": position}}
    cfg, _ = start.choose_options(finetune.Config(max_length=given), source, {"kind": "classify"},
                                  {"train": [{"text": text}] * 20}, bpe.train(["b"], 262, progress=False))
    assert cfg.max_length == (expected if expected != 304 else len(text) + 1 + 4)


def pairs(n, seed):
    """Two texts that have no word in common, or all."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        words = rng.sample([f"w{k}" for k in range(40)], 8)
        second = words[:4] if i % 2 else words[4:]
        rows.append({"text": " ".join(words[:4]), "pair": " ".join(rng.sample(second, 4)),
                     "label": ("no", "yes")[i % 2]})
    return rows


def test_it_knows_what_two_texts_have_in_common():
    task = TASK | {"kind": "pair", "labels": ["no", "yes"], "linear": True}
    train, tokenizer = encoded(pairs(200, 1), task)
    new = features.encode(pairs(100, 2), task, tokenizer)
    model = linear.fit(task, train, train)
    out = linear.outputs(model, new)
    assert (out.argmax(1) == new.targets).mean() > 0.9
    batch = {k: torch.from_numpy(v) for k, v in collate.batch(new, np.arange(20), task, tokenizer).items()}
    torch.testing.assert_close(model(batch["ids"], batch.get("mask"), batch["types"]).numpy(),
                               out[:20].astype(np.float32), atol=1e-4, rtol=1e-4)
    ids, types = (batch[name][0, :new.lengths[0]] for name in ("ids", "types"))
    torch.testing.assert_close(linear.contributions(model, ids, types).sum(0), model(ids[None], None, types[None])[0])


def test_the_share_has_the_least_loss():
    rows = rows_of(200, 3)
    split, _ = encoded(rows, TASK)
    good = linear.outputs(linear.fit(TASK, split, split), split)
    assert predict.best_share(TASK, rows, split, -good, good) == 1.0
    assert predict.best_share(TASK, rows, split, good, -good) == 0.0
    rng = np.random.default_rng(0)  # two with errors of their own are best together
    first, second = (good + rng.normal(0, 2, good.shape) for _ in range(2))
    assert 0.2 < predict.best_share(TASK, rows, split, first, second) < 0.8


def test_words_of_a_linear_model_are_explained(tmp_path, call, capsys):
    table = write_csv(tmp_path / "reviews.csv", rows_of(300, 1))
    call(finetune, f"--train_file={table}", f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    call(sample, f"--checkpoint={tmp_path / 'run'}", "--text=a lovely warm film", "--explain", "--device=cpu")
    line = capsys.readouterr().out.split("logit of good")[1]
    score, base = (float(x) for x in re.findall(r"-?\d+\.\d+", line)[:2])
    assert score > 0.1 and base == 0.0 and line.index("lovely +") < line.index("film")
    assert "delta" in (tmp_path / "run" / "explain" / "index.html").read_text(encoding="utf-8")
    found = nanoft.load(tmp_path / "run", "cpu").explain({"text": "a lovely warm film"})
    words = {text.strip(): x for text, x in found}
    assert words["lovely"] > 2 * abs(words["film"])  # as the server's page colours them


def test_remarks():
    task = {"kind": "classify", "metric": "accuracy"}
    same = [{"prediction": "a"}] * 4
    lines = "\n".join(baselines.remarks(task, same, 0.5, {"majority": 0.5, "linear": 0.8}, 0.01, 0.9))
    assert "predicted as 'a'" in lines and "majority and linear are as good" in lines and "by heart" in lines
    assert baselines.remarks(task, [*same, {"prediction": "b"}], 0.9, {"majority": 0.5}, 0.2, 0.25) == [
        "baselines: majority 0.5000 (accuracy)"]


@pytest.mark.parametrize("kind, source, expected", [
    ("classify", {"n_embd": 64, "qk_norm": True}, {"optimizer": "muon", "lr": 1e-3, "match_types": "false"}),
    ("pair", {"n_embd": 64, "qk_norm": True}, {"optimizer": "muon", "embed_lr": 0.03, "match_types": "true"}),
    ("pair", {"n_embd": 768, "qk_norm": False}, {"optimizer": "adamw", "lr": 5e-5, "match_types": "false"}),
    ("tag", {"n_embd": 64, "qk_norm": True, "tie_head": True}, {"optimizer": "muon", "embed_lr": 0.001}),
    ("classify", None, {"n_layer": 0, "linear": "true"}),
    ("tag", None, {"n_layer": 2, "optimizer": "muon", "linear": "true"})])
def test_options_follow_from_where_one_begins(kind, source, expected):
    rows = {"train": [{"text": "a", "pair": "b"} if kind == "pair" else {"text": "a"}] * 9}
    tokenizer, source = bpe.train(["a b"], 300, progress=False), source and {"block_size": 64} | source
    cfg, line = start.choose_options(finetune.Config(), source and {"model_config": source}, {"kind": kind}, rows,
                                     tokenizer)
    assert {name: getattr(cfg, name) for name in expected} == expected and line.startswith("chosen  ")
    cfg, _ = start.choose_options(finetune.Config(optimizer="adamw", lr=0.5, epochs=7), source and {
        "model_config": source}, {"kind": kind}, rows, tokenizer)
    assert (cfg.optimizer, cfg.lr, cfg.epochs) == ("adamw", 0.5, 7)  # what is given is taken
