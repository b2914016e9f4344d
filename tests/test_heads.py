"""Task heads: their losses, padding without effect, spans; and rows put together from windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DIST

from nanoft import bpe, distributed
from nanoft.batches import IGNORE
from nanoft.model import ModelConfig
from nanoft.tasks import collate, features, predict
from nanoft.tasks.heads import TaskModel

BASE = {"max_length": 32, "long_text": "windows", "doc_stride": 8, "head_dropout": 0.0,
        "pool": "mean", "max_answer": 5, "v2": False, "mean": 2.0, "deviation": 3.0}
WORDS = "one two three four five six seven eight nine ten".split()
TASKS = {
    "classify": ({"labels": ["a", "b", "c"]}, lambda text: {"text": text, "label": "b"}),
    "multi": ({"kind": "classify", "labels": ["a", "b", "c"], "multi_label": True},
              lambda text: {"text": text, "labels": ["a", "c"]}),
    "regress": ({}, lambda text: {"text": text, "label": 4.0}),
    "tag": ({"labels": ["O", "B-x"]}, lambda text: {"words": text.split(), "tags": ["B-x"] * len(text.split())}),
    "answer": ({}, lambda text: {"context": text, "question": "q", "id": text,
                                 "answers": [{"text": text.split()[-1], "start": text.rindex(text.split()[-1])}]}),
    "generate": ({}, lambda text: {"prompt": text, "response": text[::-1]}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([" ".join(WORDS) * 3], 290, progress=False)


def make(name, tokenizer, causal=False, **fields):
    task = BASE | {"kind": name} | TASKS[name][0] | {"pool": "last" if causal else "mean"} | fields
    torch.manual_seed(0)
    model = TaskModel(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=32,
                                  causal=causal, n_gram=2, n_buckets=64), task)
    for p in model.parameters():
        p.data = torch.randn_like(p) * 0.2
    return model.eval(), task


def rows_of(name, lengths=(1, 3, 9, 20, 2)):
    return [TASKS[name][1](" ".join(WORDS[(i + j) % 10] for j in range(n))) for i, n in enumerate(lengths)]


CASES = [(name, causal) for name in TASKS for causal in (False, True) if causal or name != "generate"]


@pytest.mark.parametrize("name, causal", CASES)
def test_padding_changes_nothing(name, causal, tokenizer):
    """The loss of a batch is the sum of its rows' alone, and so are the outputs of evaluation."""
    model, task = make(name, tokenizer, causal)
    encoded = features.encode(rows_of(name), task, tokenizer)

    def loss(index, **kw):
        return model(**distributed.to_device(collate.batch(encoded, index, task, tokenizer, **kw), DIST.device)).item()
    together = loss(np.arange(len(encoded)))
    assert together == pytest.approx(sum(loss([i]) for i in range(len(encoded))), abs=1e-4)
    assert together == pytest.approx(loss(np.arange(len(encoded)), multiple=40), abs=1e-4)
    out = predict.outputs(model, encoded, task, tokenizer, DIST)
    assert np.isfinite(out).all() and (name != "tag" or len(out) == sum(len(row["words"]) for row in rows_of(name)))
    for i, row in enumerate(rows_of(name)):
        alone = features.encode([row], task, tokenizer)
        one = predict.predictions(task, [row], alone, predict.outputs(model, alone, task, tokenizer, DIST))
        whole = predict.predictions(task, rows_of(name), encoded, out)[i]
        assert str(one[0].get("prediction"))[:5] == str(whole.get("prediction"))[:5]
        for key in ("nats", "start"):
            assert one[0].get(key) == pytest.approx(whole.get(key), abs=1e-3)


def test_losses_are_the_ones_they_are_called(tokenizer):
    for name, causal in CASES:
        model, task = make(name, tokenizer, causal)
        encoded = features.encode(rows_of(name), task, tokenizer)
        out = predict.outputs(model, encoded, task, tokenizer, DIST)
        batch = distributed.to_device(collate.batch(encoded, np.arange(len(encoded)), task, tokenizer), DIST.device)
        loss, logits = model(**batch).item(), torch.from_numpy(out)
        targets = torch.from_numpy(encoded.targets)
        if name == "classify":
            assert loss == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-4)
        elif name == "multi":
            bce = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none").mean(1).sum()
            assert loss == pytest.approx(bce.item(), rel=1e-4)
        elif name == "regress":
            assert loss == pytest.approx(((logits[:, 0] - 2 / 3) ** 2).sum().item(), rel=1e-4)  # (4 - mean) / deviation
        elif name == "tag":
            nats = F.cross_entropy(logits, targets[targets != IGNORE], reduction="sum")
            assert loss == pytest.approx(nats.item(), rel=1e-4)
        elif name == "generate":
            assert loss == pytest.approx(out[:, 0].sum(), rel=1e-4)
            assert out[:, 1].sum() == (encoded.targets != IGNORE).sum()


def test_at_first_all_classes_are_equally_likely(tokenizer):
    task = BASE | {"kind": "classify", "labels": ["a", "b", "c"]}
    model = TaskModel(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32,
                                  causal=False), task)
    encoded = features.encode(rows_of("classify"), task, tokenizer)
    batch = distributed.to_device(collate.batch(encoded, np.arange(len(encoded)), task, tokenizer), DIST.device)
    assert model(**batch).item() / len(encoded) == pytest.approx(np.log(3), abs=1e-5)


def test_class_weights(tokenizer):
    model, task = make("classify", tokenizer)
    encoded = features.encode(rows_of("classify"), task, tokenizer)
    weights = np.array([1.0, 2.5, 1.0], dtype=np.float32)
    batch = collate.batch(encoded, np.arange(len(encoded)), task, tokenizer, class_weights=weights)
    assert (batch["weights"] == 2.5).all()
    batch = distributed.to_device(batch, DIST.device)
    logits = model.logits(batch["ids"], batch.get("types"), batch.get("mask"))
    wanted = F.cross_entropy(logits, batch["targets"], reduction="sum") * 2.5
    assert model(**batch).item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["classify", "regress", "tag", "answer"])
def test_only_the_first_token_of_a_text_goes_through_a_pooler(name, tokenizer):
    """pool=cls on a model with token types: a pooler where it is used, so every parameter gets a gradient."""
    task = BASE | {"kind": name, "pool": "cls"} | TASKS[name][0]
    model = TaskModel(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32,
                                  causal=False, n_types=2), task)
    assert (model.pooler is not None) == (name in ("classify", "regress"))
    encoded = features.encode(rows_of(name), task, tokenizer)
    batch = distributed.to_device(collate.batch(encoded, np.arange(len(encoded)), task, tokenizer), DIST.device)
    model(**batch).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_a_vector_a_text(pool, tokenizer):
    model, task = make("classify", tokenizer, pool=pool)
    encoded = features.encode(rows_of("classify", (1, 4)), task, tokenizer)
    batch = distributed.to_device(collate.batch(encoded, [0, 1], task, tokenizer), DIST.device)
    x = model.hidden(batch["ids"], mask=batch["mask"])
    n = int(encoded.lengths[0])
    by_hand = {"mean": x[0, :n].mean(0), "cls": x[0, 0], "last": x[0, n - 1]}[pool]
    logits = model.logits(batch["ids"], mask=batch["mask"])
    assert torch.allclose(logits[0], model.task_head(by_hand), atol=1e-5)


def test_the_best_span_is_the_best_of_all_that_are_allowed():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(20, 15, 2)))
    own = torch.from_numpy(rng.integers(3, 9, size=(20, 1)) + np.array([[0, 4]]))
    logits[:, 1:3] = -torch.inf   # the question
    logits[:, 13:] = -torch.inf   # padding
    for row, (lo, hi), found in zip(logits, own, predict.best_spans(logits, own, 3)):
        spans = {(s, e): row[s, 0] + row[e, 1] for s in range(lo, hi) for e in range(s, min(s + 3, 15))}
        best = max(spans, key=spans.get)
        assert (int(found[1]), int(found[2])) == best and found[0] == pytest.approx(spans[best].item())
        assert found[3] == pytest.approx(row[0].sum().item())
        p = row[:, 0].softmax(0)[best[0]] * row[:, 1].softmax(0)[best[1]]
        assert found[4].exp() == pytest.approx(p.item())
    none = predict.best_spans(logits, torch.zeros(20, 2, dtype=torch.long), 3)
    assert (none[:, 0] == predict.IMPOSSIBLE).all()
    assert predict.best_spans(logits.float(), own, 3).dtype == torch.float32  # Apple GPUs have no float64


def test_the_right_span_gives_back_the_answer_and_no_answer_wins_where_it_scores_more(tokenizer):
    rows = rows_of("answer", (20, 3, 28))
    for v2 in (False, True):
        task = BASE | {"kind": "answer", "v2": v2}
        encoded = features.encode(rows, task, tokenizer)
        out = np.full((len(encoded), 5), -50.0)
        out[:, 1:3] = encoded.targets
        out[:, 3] = 0.0
        out[encoded.targets[:, 0] > 0, 0] = 1.0
        found = predict.predictions(task, rows, encoded, out)
        assert [guess["prediction"] for guess in found] == [row["answers"][0]["text"] for row in rows]
        for row, guess in zip(rows, found):
            assert row["context"].startswith(guess["prediction"], guess["start"])
        out[:, 3] = 2.0
        found = predict.predictions(task, rows, encoded, out)
        assert all((guess["prediction"] == "") == v2 for guess in found)


def test_windows_of_a_row_are_averaged(tokenizer):
    task = BASE | {"kind": "classify", "labels": ["a", "b"]}
    rows = rows_of("classify", (80, 2))
    encoded = features.encode([row | {"label": "a"} for row in rows], task, tokenizer)
    assert (encoded.row == 0).sum() > 3
    out = np.random.default_rng(0).normal(size=(len(encoded), 2))
    assert np.allclose(predict.by_row(encoded, out), [out[:-1].mean(0), out[-1]])


# ---- scores and spans --------------------------------------------------------------------------------------------


def test_entities_are_spans_of_the_text():
    row = {"text": "Ada Byron, 北京", "words": ["Ada", "Byron", ",", "北", "京"],
           "offsets": [[0, 3], [4, 9], [9, 10], [11, 12], [12, 13]]}
    guess = {"prediction": ["B-PER", "I-PER", "O", "B-LOC", "E-LOC"], "probabilities": [0.9, 0.7, 1.0, 0.5, 0.6]}
    assert predict.entity_spans(row, guess) == [
        {"label": "PER", "start": 0, "end": 9, "text": "Ada Byron", "probability": 0.8},
        {"label": "LOC", "start": 11, "end": 13, "text": "北京", "probability": 0.55}]


@pytest.mark.parametrize("positive, f1", [(None, 2 / 3), ("b", 2 / 3), ("a", 1 / 2)])
def test_f1_and_auc_are_of_the_positive_label(positive, f1, monkeypatch):
    monkeypatch.setattr(predict, "by_row", lambda encoded, out: out)
    task = {"kind": "classify", "labels": ["a", "b"], "metric": "f1"} | ({"positive": positive} if positive else {})
    out = np.array([[0, 1.0], [0, -0.5], [0, 0.5], [0, 2.0], [0, -1.0]])
    rows = [{"label": label} for label in "baabb"]
    guesses = predict.predictions(task, rows, None, out)
    scores, _ = predict.scores(task, rows, guesses, None, out)
    assert [guess["prediction"] for guess in guesses] == list("babba")
    assert scores["f1"] == pytest.approx(f1) and scores["auc"] == pytest.approx(4 / 6)


def test_errors_of_regress_are_in_its_units_and_lower_ones_rank_higher(monkeypatch):
    monkeypatch.setattr(predict, "by_row", lambda encoded, out: out)
    task = {"kind": "regress", "mean": 10.0, "deviation": 2.0, "metric": "mae"}
    rows, out = [{"label": 10.0}, {"label": 14.0}], np.array([[0.5], [1.0]])
    scores, _ = predict.scores(task, rows, predict.predictions(task, rows, None, out), None, out)
    assert scores["mae"] == 1.5 and scores["rmse"] == pytest.approx(np.sqrt(2.5))
    assert predict.main_score(task, scores) == pytest.approx(-1.5)


def test_noise_that_misleads_raises_the_loss_and_goes_again(tokenizer):
    model, task = make("classify", tokenizer)
    encoded = features.encode(rows_of("classify"), task, tokenizer)
    batch = distributed.to_device(collate.batch(encoded, np.arange(5), task, tokenizer), DIST.device)
    loss = model(**batch)
    loss.backward()
    before = model.trunk.tokens.weight.detach().clone()
    with model.misled(0.1):
        assert model(**batch) > loss
        assert (model.trunk.tokens.weight - before).norm().item() == pytest.approx(0.1, rel=1e-3)
    assert torch.equal(model.trunk.tokens.weight, before)


def test_an_answer_is_of_the_whole_prompt_however_long_another_response_is(tokenizer):
    model, task = make("generate", tokenizer, causal=True)
    rows = rows_of("generate")
    short, long = (predict.write_responses(model, rows, task, tokenizer, DIST, n) for n in (3, 31))
    assert all(text.startswith(begin.rstrip("\ufffd")) for begin, text in zip(short, long)) and len(set(short)) > 1
