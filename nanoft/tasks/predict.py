"""What a fine-tuned model says of rows: its outputs, predictions a person reads, and their scores."""

import math

import numpy as np
import torch

from nanoft import UserError, distributed
from nanoft.batches import IGNORE
from nanoft.tasks import collate, metrics

TOKENS = 8192  # of a batch, padding included
NEVER = -1e9   # the score of an answer that cannot be


@torch.no_grad()
def outputs(model, encoded, task, tokenizer, dist):
    """Numbers for each piece, float (N, M), in the same order at any number of processes. In evaluation mode.

    classify, pair, regress: the logits; tag: the same, but a row a word; answer: score, start, end of the best span,
    the score of no answer, the log-probability of the span; generate: the nats of the response, its number of tokens.
    """
    by_word = task["kind"] == "tag"
    before = rows_before(encoded, task)
    out = np.zeros((before[-1], width_of(task)))
    for index in by_tokens(encoded.lengths)[dist.rank::dist.world_size]:
        batch = distributed.to_device(collate.batch(encoded, index, task, tokenizer), dist.device)
        with dist.autocast():
            if task["kind"] == "generate":
                nats = model.nats(batch["ids"], batch["targets"]).sum(1)
                found = torch.stack((nats, (batch["targets"] != IGNORE).sum(1)), dim=1)
            else:
                found = model.logits(*(batch.get(name) for name in ("ids", "types", "mask", "allowed")))
        if by_word:
            found = found[batch["targets"] != IGNORE]
        if task["kind"] == "answer":
            own = torch.from_numpy(encoded.own[index]).to(dist.device)
            found = best_spans(found, own, task["max_answer"])
        rows = np.concatenate([np.arange(before[i], before[i + 1]) for i in index])
        out[rows] = found.double().cpu().numpy()
    if dist.world_size > 1:
        out = np.array(distributed.total(out.ravel(), dist)).reshape(out.shape)
    return out


def rows_before(encoded, task):
    """How many rows of `outputs` stand before each piece, and how many there are: (N + 1,)."""
    if task["kind"] != "tag":
        return np.arange(len(encoded) + 1)
    return np.searchsorted(np.flatnonzero(encoded.targets != IGNORE), encoded.begin)


def width_of(task):
    return {"answer": 5, "generate": 2, "regress": 1}.get(task["kind"]) or len(task["labels"])


def blank(encoded, task):
    """What `outputs` might be of a model that knows nothing, to see whether rows can be scored at all."""
    nothing = NEVER if task["kind"] == "answer" else 1.0
    return np.full((rows_before(encoded, task)[-1], width_of(task)), nothing)


def by_tokens(lengths):
    """Numbers of pieces in batches of like lengths, about TOKENS tokens each."""
    order, groups = lengths.argsort(kind="stable"), []
    while len(order):
        size = max(1, TOKENS // int(lengths[order[-1]]))
        order, group = order[:-size], order[-size:]  # from the longest down
        groups.append(group)
    return groups


def best_spans(logits, own, max_answer):
    """The likeliest span of each piece: logits (B, T, 2), own (B, 2) -> (B, 5), see `outputs`.

    A span begins in the places own[0] to own[1] - 1 and has 1 to max_answer tokens.
    """
    B, T, _ = logits.shape
    place = torch.arange(T, device=logits.device)
    begins = (place >= own[:, :1]) & (place < own[:, 1:])                    # (B, T)
    width = place - place[:, None]                                           # (T, T) end minus start
    valid = begins[:, :, None] & (width >= 0) & (width < max_answer)         # (B, T, T)
    scores = logits[..., 0][:, :, None] + logits[..., 1][:, None]            # (B, T, T) of start, end
    score, which = scores.masked_fill(~valid, -torch.inf).flatten(1).max(dim=1)
    log_p = score - logits.logsumexp(dim=1).sum(dim=1)
    found = (score, which // T, which % T, logits[:, 0].sum(1), log_p)
    return torch.stack([column.double() for column in found], dim=1).clamp(min=NEVER)


def by_row(encoded, out):
    """The mean of the outputs of each row's pieces: (N, K) -> (rows, K)."""
    sums = np.zeros((len(encoded.full), out.shape[1]))
    np.add.at(sums, encoded.row, out)
    return sums / np.bincount(encoded.row, minlength=len(sums))[:, None]


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def predictions(task, rows, encoded, out):
    """A dictionary for each row: `prediction`, and by kind

    classify, pair: label; probabilities by label. regress: a number. tag: a tag a word, and `probabilities` of these.
    answer: the text, "" for none, with `start`, the number of its first character, and `probability` of the span.
    generate: no prediction, but the `nats` and `tokens` of the response.
    """
    kind, labels = task["kind"], task.get("labels", ())
    if kind == "generate":
        return [{"nats": float(nats), "tokens": int(tokens)} for nats, tokens in out]
    if kind == "answer":
        return answers(task, rows, encoded, out)
    if kind == "tag":
        probabilities, found = np.exp(log_softmax(out)), []
        best, at = probabilities.argmax(axis=1), 0
        for row in rows:
            which = range(at, at + len(row["words"]))
            found.append({"prediction": [labels[best[i]] for i in which],
                          "probabilities": [round(float(probabilities[i, best[i]]), 6) for i in which]})
            at = which.stop
        return found
    logits = by_row(encoded, out)
    if kind == "regress":
        return [{"prediction": float(x)} for x in logits[:, 0] * task["deviation"] + task["mean"]]
    several = task.get("multi_label")
    probabilities = 1 / (1 + np.exp(-logits)) if several else np.exp(log_softmax(logits))
    found = []
    for row in probabilities:
        guess = [label for label, p in zip(labels, row) if p > 0.5] if several else labels[row.argmax()]
        found.append({"prediction": guess, "probabilities": {x: round(float(p), 6) for x, p in zip(labels, row)}})
    return found


def answers(task, rows, encoded, out):
    found = [None] * len(rows)
    first_piece = np.searchsorted(encoded.row, np.arange(len(rows) + 1))
    for i, row in enumerate(rows):
        some = range(first_piece[i], first_piece[i + 1])
        best = max(some, key=lambda piece: out[piece, 0])
        score, start, end, _, log_p = out[best]
        no_answer = min(out[piece, 3] for piece in some)
        if score == NEVER or task["v2"] and no_answer > score:
            found[i] = {"prediction": "", "start": -1, "probability": 0.0}
            continue
        char_start, char_end = encoded.places[i]
        shift = encoded.context[best] - encoded.second[best]
        text = row["context"][char_start[int(start) + shift]:char_end[int(end) + shift]]
        begin = char_start[int(start) + shift] + len(text) - len(text.lstrip())
        found[i] = {"prediction": text.strip(), "start": int(begin), "probability": round(math.exp(log_p), 6)}
    return found


def has_entities(labels):
    """Do the tags mark entities (IOB, or with E- and S- IOBES), so that whole entities are what counts?"""
    return all(label == "O" or label[:2] in ("B-", "I-", "E-", "S-") for label in labels) and any(
        label != "O" for label in labels)


def scores(task, rows, found, encoded, out):
    """Scores of the predictions as nanoft.metrics gives them, and the confusion matrix or None.

    `loss` where there is one: nats a text, word or token; the mean square for regress, in the label's deviations.
    """
    kind, labels = task["kind"], task.get("labels", ())
    number = {label: i for i, label in enumerate(labels)}
    if kind == "generate":
        nats, tokens = out.sum(axis=0)
        return {"loss": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700))}, None
    if kind == "answer":
        examples = [{"id": row["id"], "answers": [answer["text"] for answer in row["answers"]]} for row in rows]
        guesses = {row["id"]: guess["prediction"] for row, guess in zip(rows, found)}
        if len(guesses) < len(rows):
            raise UserError("two questions have the same id, so answers cannot be told apart; give each its own")
        return metrics.squad_scores(examples, guesses, task["v2"]), None
    if kind == "regress":
        truth, guess = np.array([row["label"] for row in rows]), np.array([item["prediction"] for item in found])
        return {"loss": float((((truth - guess) / task["deviation"]) ** 2).mean()),
                "pearson": metrics.pearson(truth, guess), "spearman": metrics.spearman(truth, guess)}, None
    if task.get("multi_label"):
        truth, guess = (np.array([np.isin(labels, row[name]) for row in some])
                        for some, name in ((rows, "labels"), (found, "prediction")))
        logits = by_row(encoded, out)
        loss = (np.logaddexp(0, logits) - truth * logits).mean()
        return {"loss": float(loss)} | metrics.multi_label(truth, guess, labels), None
    if kind == "tag":
        truth = np.array([number[tag] for row in rows for tag in row["tags"]])
        guess = np.array([number[tag] for item in found for tag in item["prediction"]])
        log_p = log_softmax(out)
    else:
        truth = np.array([number[row["label"]] for row in rows])
        guess = np.array([number[item["prediction"]] for item in found])
        log_p = log_softmax(by_row(encoded, out))
    matrix = metrics.confusion(truth, guess, len(labels))
    loss = {"loss": float(-log_p[np.arange(len(truth)), truth].mean())}
    if kind == "tag" and has_entities(labels):
        tags = [row["tags"] for row in rows], [item["prediction"] for item in found]
        entity = {"accuracy": metrics.accuracy(truth, guess)} | metrics.entity_scores(*tags)
        if any(tag.startswith("B-") for row in rows for tag in row["tags"]):  # else strictly there is no entity
            strict = metrics.entity_scores(*tags, strict=True)
            entity |= {f"strict_{name}": strict[name] for name in metrics.PRF}
        return loss | entity, matrix
    return loss | metrics.classification(truth, guess, labels), matrix


def check_scores(task, rows, encoded):
    """Raises UserError where these rows cannot be scored, or not by the task's metric."""
    out = blank(encoded, task)
    main_score(task, scores(task, rows, predictions(task, rows, encoded, out), encoded, out)[0])


def main_score(task, scores) -> float:
    """The task's metric, made so that higher is better; what cannot be computed (nan) is the worst."""
    if task["metric"] not in scores:
        raise UserError(f"metric={task['metric']} is no score of a {task['kind']} task; choose one of "
                        f"{', '.join(k for k, v in scores.items() if isinstance(v, float))}")
    score = float(scores[task["metric"]]) * (-1 if task["metric"] == "loss" else 1)
    return -math.inf if math.isnan(score) else score
