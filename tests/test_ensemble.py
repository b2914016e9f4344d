"""Several models asked together: the mean of their probabilities, by hand and by the command; runs that do not fit."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import TINY

import train
from nanoft import UserError, config, files
from nanoft.model import GPT, ModelConfig
from nanoft.tasks import sweep


def write_run(folder, p_yes, labels=("yes", "no", "no", "yes"), **others):
    """A run folder with the predictions of four rows, by the probability of "yes"."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_jsonl(folder / "predictions.jsonl", [
        {"row": i, "text": f"text {i}", "label": label, "prediction": "yes" if p > 0.5 else "no",
         "probabilities": {"no": round(1 - p, 6), "yes": p}} | others
        for i, (label, p) in enumerate(zip(labels, p_yes))])
    return str(folder)


def test_the_mean_may_be_right_where_each_model_errs(tmp_path):
    one = write_run(tmp_path / "one", [0.9, 0.6, 0.1, 0.7])   # wrong at row 1
    two = write_run(tmp_path / "two", [0.3, 0.2, 0.2, 0.9])   # wrong at row 0
    scores, matrix, found = sweep.average_predictions([one, two])
    assert scores["accuracy"] == 1.0 and matrix.tolist() == [[2, 0], [0, 2]]  # (truth, guess) in the order no, yes
    assert [row["prediction"] for row in found] == ["yes", "no", "no", "yes"]
    assert [row["probabilities"]["yes"] for row in found] == pytest.approx([0.6, 0.4, 0.15, 0.8])
    assert scores["loss"] == pytest.approx(-np.log([0.6, 0.6, 0.85, 0.8]).mean()) and scores["auc"] == 1.0
    assert [row["text"] for row in found] == [f"text {i}" for i in range(4)]


def test_of_one_run_it_is_the_run(tmp_path):
    scores, _, found = sweep.average_predictions([write_run(tmp_path / "one", [0.9, 0.6, 0.1, 0.7])])
    assert scores["accuracy"] == 0.75 and [row["prediction"] for row in found] == ["yes", "yes", "no", "yes"]


@pytest.mark.parametrize("change, message", [
    (dict(labels=("no", "no", "no", "yes")), "other rows or labels"),
    (dict(text="another"), "other rows or labels"),
    (dict(probabilities={"a": 0.5, "b": 0.5}), "other rows or labels"),
    (dict(probabilities=[0.5, 0.5]), "no probability for each label"),
    (dict(label=["yes"]), "no probability for each label"),
])
def test_runs_that_do_not_fit(tmp_path, change, message):
    one, two = (write_run(tmp_path / name, [0.9, 0.6, 0.1, 0.7], **some) for name, some in (("a", {}), ("b", change)))
    with pytest.raises(UserError, match=message):
        sweep.average_predictions([one, two])


def test_an_empty_file(tmp_path):
    with pytest.raises(UserError, match="no probability for each label"):
        sweep.average_predictions([write_run(tmp_path / "none", [])] * 2)


def test_the_command(tmp_path, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["ensemble", *map(str, words)])
        config.run(sweep.main)

    one = write_run(tmp_path / "one", [0.9, 0.6, 0.1, 0.7])
    two = write_run(tmp_path / "two", [0.3, 0.2, 0.2, 0.9])
    call(one, two, f"--out_dir={tmp_path / 'both'}")
    assert "accuracy  1.0000" in capsys.readouterr().out
    written = json.loads((tmp_path / "both" / "result.json").read_text(encoding="utf-8"))
    assert written["accuracy"] == 1.0 and written["runs"] == [one, two]
    assert len((tmp_path / "both" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    for words, message in (((one, two, f"--out_dir={tmp_path / 'both'}"), "another run"), ((one,), "two runs or more"),
                           ((one, tmp_path / "none"), "none")):
        with pytest.raises(SystemExit) as stop:
            call(*words)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_loss_of_the_mean_of_two_gpts():
    """It is that of the mean probability of each target, targets of -100 left out; of one model it is the model's."""
    shape = ModelConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=16, block_size=8)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(GPT(shape).eval())
        torch.nn.init.normal_(models[-1].head.weight)  # it begins at zero, where all are alike
    ids, targets = torch.randint(50, (2, 3, 8))
    targets[0, :5] = -100
    with torch.no_grad():
        chances = sum(model.head(model.trunk(ids)).softmax(-1) for model in models) / 2  # (B, T, V)
        of_targets = chances.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (B, T)
        expected = -of_targets.log()[targets != -100].mean()
        assert sweep.MeanGPT(models)(ids, targets).item() == pytest.approx(expected.item(), rel=1e-6)
        assert sweep.MeanGPT(models[:1])(ids, targets).item() == pytest.approx(models[0](ids, targets).item(), rel=1e-6)


@pytest.mark.slow
def test_gpts_by_the_command(corpus, tmp_path, call):
    """Two tiny runs: together, which convexity keeps below their mean loss; one alone has its own scores."""
    runs = [tmp_path / name for name in ("one", "two", "encoder", "longer")]
    for seed, folder in enumerate(runs, 1):
        other = {"encoder": ["--objective=mlm"], "longer": ["--block_size=64"]}.get(folder.name, [])
        call(train, *TINY, f"--data={corpus}", f"--out_dir={folder}", f"--seed={seed}", *other)
    call(sweep, *runs[:2], f"--out_dir={tmp_path / 'both'}")
    both, *each = (files.read_json(folder / "result.json") for folder in (tmp_path / "both", *runs[:2]))
    for name in ("val_loss", "test_loss", "test_word_perplexity"):
        assert both[name] < sum(result[name] for result in each) / 2, name
    alone = sweep.average_gpts([str(runs[0])])
    assert alone["val_loss"] == pytest.approx(each[0]["val_loss"], abs=1e-3)  # bf16 here where it is native
    for other, message in ((runs[2], "no GPT of train.py"), (runs[3], "another tokenizer or block_size"),
                           (tmp_path / "none", "none")):
        with pytest.raises(UserError, match=message):
            call(sweep, runs[0], other)
