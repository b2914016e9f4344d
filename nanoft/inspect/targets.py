"""What to explain of a model's answer: the scores behind it, and its tokens as a person reads them.

A label of a text, of a pair or of each word; a number; the start and end of an answer; the tokens that a GPT has
written; an encoder's words for masks. Each is a Target, a score that explain.py takes apart.

Shapes: B texts, T tokens, K labels, U units (see text_units).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanoft import distributed
from nanoft.batches import IGNORE
from nanoft.inspect import explain
from nanoft.tasks import collate, linear, predict

MAX_TARGETS = 8  # scores of one text


class Target(NamedTuple):
    """One score to explain."""
    name: str
    score: Callable  # (ids (B, T), types (B, T) or None) -> (B,)
    positions: list  # of the last hidden states that the score reads
    n_grams: Tensor | None = None  # (T,) on the CPU: what the linear model of n-grams beside the blocks adds, by token


class Subject(NamedTuple):
    """One text to explain."""
    title: str
    answer: str            # the model's, as a person reads it
    note: str              # what is left out
    ids: Tensor            # (T,), or a picture's pixels (C, S, S)
    types: Tensor | None   # (T,)
    targets: list[Target]  # at most MAX_TARGETS


def integrated(trunk, subject: Subject, target: Target, base: Tensor, steps: int) -> explain.Integrated:
    """What each token adds to a target's score: integrated gradients from base, (T,), plus the n-grams' exact part.

    The baseline counts as a text without any n-grams.
    """
    found = explain.integrated_gradients(trunk, target.score, subject.ids, base, subject.types, steps)
    if target.n_grams is None:
        return found
    return found._replace(attributions=found.attributions + target.n_grams,
                          baseline=found.baseline - target.n_grams.sum().item())


# ---- the answers of fine-tuned models ----------------------------------------------------------------------------


def subject_from_row(model, task: dict, tokenizer, row: dict, guess: dict, answer: str, number: int, encoded,
                     out: np.ndarray) -> Subject:
    """Row `number` as a subject. guess: its prediction; answer: the same as text; encoded, out: all rows' features and
    their predict.outputs.

    Of a long row the feature is taken that supports the prediction most; for tags, the first.
    """
    kind, own = task["kind"], np.flatnonzero(encoded.row == number)
    if kind == "tag":
        best = 0
    elif kind == "answer":
        best = int(out[own, 0].argmax() if guess["prediction"] else out[own, 3].argmin())
    else:
        best = int(out[own, out[own].mean(0).argmax()].argmax())
    feature = int(own[best])
    batch = distributed.to_device(collate.batch(encoded, [feature], task, tokenizer), model.task_head.weight.device)
    ids, types, allowed = batch["ids"][0], batch.get("types"), batch.get("allowed")
    T = int(encoded.lengths[feature])

    def logits(ids, types):
        return model.logits(ids, types, allowed=None if allowed is None else allowed.expand(len(ids), -1))

    if kind == "tag":
        beside = None
        if model.ngrams is not None:
            beside = model.ngrams(ids[None])[0].cpu() * task.get("linear_share", 1.0)  # (T, K)
        targets = tag_targets(logits, task, row["words"], ids, batch["targets"][0], beside)
    elif kind == "answer":
        start, end = map(int, out[feature, 1:3]) if guess["prediction"] else (0, 0)
        said = f"start and end of “{tokenizer.decode(ids[start:end + 1].tolist()).strip()}”" if end else "no answer"
        targets = [Target(f"logits of {said}", lambda ids, types: logits(ids, types)[:, start, 0] + logits(
            ids, types)[:, end, 1], [start, end] if end else [0])]
    else:
        positions = {"cls": [0], "last": [T - 1]}.get(task["pool"], list(range(T)))
        scores, parts = text_scores(logits, task, out[own].mean(0), guess["prediction"]), None
        if model.ngrams is not None:  # (T, K)
            parts = linear.contributions(model.ngrams, ids, None if types is None else types[0]).cpu()
            parts *= task.get("linear_share", 1.0) * task.get("deviation", 1.0)
        targets = [Target(name, score, positions, None if parts is None else parts[:, k]) for k, name, score in scores]
    total = encoded.n_tokens[number]
    notes = (f"Window {best + 1} of {len(own)}." if len(own) > 1 else
             f"The model reads {T} of its {total:,} tokens." if total > T else "",
             f"The first {MAX_TARGETS} of {len(targets)} words with a label." * (len(targets) > MAX_TARGETS))
    texts = [row[name] for name in row if name in ("text", "pair", "words", "question", "image")]
    title = " | ".join(" ".join(text) if isinstance(text, list) else text for text in texts)
    types = None if types is None else types[0]
    return Subject(title, answer, " ".join(filter(None, notes)), ids, types, targets[:MAX_TARGETS])


def text_scores(logits: Callable, task: dict, mean: np.ndarray, guess) -> list[tuple[int, str, Callable]]:
    """(k, name, score) of a text's label, its several labels or its number: the guess. mean: (K,) logits of the row."""
    if task["kind"] == "regress":
        return [(0, "the number", lambda ids, types: logits(ids, types)[:, 0] * task["deviation"] + task["mean"])]
    chosen = [task["labels"].index(label) for label in guess] if task.get("multi_label") else []
    chosen = chosen or [int(mean.argmax())]
    return [(k, f"logit of {task['labels'][k]}", lambda ids, types, k=k: logits(ids, types)[:, k]) for k in chosen]


def tag_targets(logits: Callable, task: dict, words: list[str], ids: Tensor, targets: Tensor,
                beside: Tensor | None) -> list[Target]:
    """The tag of each word that is not tagged O; if all are, of the word that is least surely O. targets: (T,)

    beside: (T, K), what a linear model adds, shown at the word itself, though it reads some tokens around it, too.
    """
    def own(at, k):
        return None if beside is None else torch.where(torch.arange(len(ids)) == at, beside[at, k], 0.0)

    positions = (targets != IGNORE).nonzero()[:, 0].tolist()
    with torch.no_grad():
        scores = logits(ids[None], None)[0, positions].cpu()  # (words, K)
    labels, chosen = task["labels"], predict.chosen_tags(task, scores.numpy(), [len(scores)])
    if "O" in labels and (chosen == labels.index("O")).all():
        doubtful = scores.softmax(-1)[:, labels.index("O")].argmin()
        scores[:, labels.index("O")] = -torch.inf
        chosen[doubtful] = scores[doubtful].argmax()
    return [Target(f"logit of {labels[k]} for “{word}”", lambda ids, types, at=at, k=k: logits(ids, types)[:, at, k],
                   [at], own(at, k)) for word, at, k in zip(words, positions, chosen.tolist()) if labels[k] != "O"]


# ---- the answers of language models ------------------------------------------------------------------------------


def subject_from_continuation(model, tokenizer, prompt: str, ids: Tensor, new_ids: Tensor) -> Subject:
    """What a GPT has written after the prompt's ids (T,): the logit of each of its own tokens, new_ids (N,)."""
    answer, read = tokenizer.decode(torch.cat((ids, new_ids)).tolist()), torch.cat((ids, new_ids[:MAX_TARGETS]))
    left_out = max(0, len(read) - model.cfg.block_size)
    read = read[left_out:]
    positions = range(max(0, len(ids) - left_out - 1), len(read) - 1)  # a token is predicted at the one before it
    with torch.no_grad():
        likely = model.logits(read[None])[0, list(positions)][:, :model.cfg.vocab_size].float().softmax(-1)
    targets = []
    for at, p in zip(positions, likely):
        token = int(read[at + 1])
        targets.append(Target(f"logit of “{token_name(token, tokenizer)}” ({p[token]:.1%})",
                              lambda ids, types, at=at, token=token: model.logits(ids)[:, at, token], [at]))
    notes = (f"The first {left_out:,} tokens no longer fit into the model." * (left_out > 0),
             f"The first {MAX_TARGETS} of {len(new_ids)} new tokens are explained." * (len(new_ids) > MAX_TARGETS))
    return Subject(prompt, answer, " ".join(filter(None, notes)), read, None, targets)


def subject_from_masks(model, tokenizer, prompt: str, ids: Tensor) -> Subject:
    """An encoder's most likely token for each <|mask|> of a prompt, ids (T,)."""
    positions = (ids == tokenizer.special["<|mask|>"]).nonzero()[:, 0].tolist()
    with torch.no_grad():
        logits = model.word_logits(model.hidden(ids[None])[0, positions])[:, :model.cfg.vocab_size]
    likely = logits.float().softmax(-1).max(-1)  # (masks,)
    targets = []
    for number, (at, p, token) in enumerate(zip(positions, likely.values, likely.indices.tolist()), 1):
        def score(ids, types, at=at, token=token):
            return model.word_logits(model.hidden(ids, types)[:, at])[:, token]

        targets.append(Target(f"logit of “{token_name(token, tokenizer)}” for mask {number} ({p:.1%})", score, [at]))
    note = f"The first {MAX_TARGETS} of {len(targets)} masks are explained." * (len(targets) > MAX_TARGETS)
    answer = "; ".join(target.name.removeprefix("logit of ") for target in targets[:MAX_TARGETS])
    return Subject(prompt, answer, note, ids, None, targets[:MAX_TARGETS])


# ---- tokens as a person reads them -------------------------------------------------------------------------------


def text_units(ids: Tensor, tokenizer) -> list[tuple[str, list[int]]]:
    """(text, positions) of each unit: a token, or the tokens that share a character. ids: (T,)"""
    units, data, positions = [], b"", []
    ids = ids.tolist()
    for at, token in enumerate(ids):
        data += tokenizer.decode_bytes([token])
        positions.append(at)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            last = at + 1 == len(ids) or ids[at + 1] in tokenizer.special.values()
            if error.reason == "unexpected end of data" and not last:
                continue
        units.append((data.decode("utf-8", "replace"), positions))
        data, positions = b"", []
    return units


def token_name(token: int, tokenizer) -> str:
    """A token as text; a part of a character as its bytes in hexadecimal."""
    data = tokenizer.decode_bytes([token])
    try:
        return label(data.decode("utf-8"))
    except UnicodeDecodeError:
        return data.hex(" ")


def label(text: str, longest: int = 14) -> str:
    """A text for an axis: short, on one line, never empty."""
    text = (text.strip(" ") or "␣").replace("\n", "⏎").replace("\t", "⇥")
    return text if len(text) <= longest else text[:longest - 1] + "…"


def unit_sums(values, units: list) -> np.ndarray:
    """The sum of the values (T,) of each unit's tokens: (U,)."""
    values = np.asarray(values, dtype=float)
    return np.array([values[positions].sum() for _, positions in units])


def unit_maps(maps: np.ndarray, units: list) -> np.ndarray:
    """Attention between tokens (..., T, T) as attention between units (..., U, U): keys summed, queries averaged."""
    maps = np.stack([maps[..., positions].sum(-1) for _, positions in units], axis=-1)
    return np.stack([maps[..., positions, :].mean(-2) for _, positions in units], axis=-2)


def window(units: list, longest: int, position: int) -> tuple[int, int]:
    """First and last + 1 of at most `longest` units, around the unit of a position if not all fit."""
    n = len(units)
    centre = next(i for i, (_, positions) in enumerate(units) if position in positions)
    first = min(max(0, centre - longest // 2), max(0, n - longest))
    return first, min(n, first + longest)
