"""What of a text is explained: the scores behind a model's answer, and its tokens as a person reads them.

A label of a text, of a pair or of each word, a number, an answer's start and end, the tokens that a GPT has written, an
encoder's words for gaps: each is a Target, a score that nanoft.explain takes apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from nanoft import distributed
from nanoft.batches import IGNORE
from nanoft.tasks import collate

MOST = 8  # scores of one text


class Target(NamedTuple):
    """One score to explain."""
    name: str
    score: Callable  # (ids (B, T), types) -> (B,)
    places: list     # the tokens whose last states it reads


class Subject(NamedTuple):
    """One text to explain."""
    title: str
    said: str              # what the model says of it
    note: str              # what is left out
    ids: torch.Tensor      # (T,)
    types: torch.Tensor | None
    targets: list          # at most MOST


def of_row(model, task, tokenizer, row, guess, said, number, pieces, out):
    """The subject that row `number` is, by its prediction, its pieces and the outputs of nanoft.predict for these."""
    kind, mine = task["kind"], np.flatnonzero(pieces.row == number)
    nothing = kind == "answer" and not guess["prediction"]
    k = int(out[mine].mean(0).argmax()) if kind in ("classify", "pair") else 0
    # the piece that speaks for the prediction most
    best = 0 if kind == "tag" else int(out[mine, 3].argmin() if nothing else out[mine, k].argmax())
    piece = int(mine[best])
    batch = distributed.to_device(collate.batch(pieces, [piece], task, tokenizer), model.task_head.weight.device)
    ids, types, allowed = batch["ids"][0], batch.get("types"), batch.get("allowed")

    def logits(ids, types):
        return model.logits(ids, types, allowed=None if allowed is None else allowed.expand(len(ids), -1))

    if kind == "tag":
        targets = tag_targets(logits, task, row["words"], ids, batch["targets"][0])
    elif kind == "answer":
        targets = [no_answer(logits) if nothing else span_target(logits, tokenizer, ids, *map(int, out[piece, 1:3]))]
    else:
        places = {"cls": [0], "last": [len(ids) - 1]}.get(task["pool"], list(range(len(ids))))
        targets = [Target(name, score, places) for name, score in text_scores(logits, task, out[mine].mean(0))]
    note = f"Piece {best + 1} of {len(mine)}. " if len(mine) > 1 else ""
    if pieces.n_tokens[number] > len(ids) and len(mine) == 1:
        note += f"The model reads {len(ids)} of its {pieces.n_tokens[number]:,} tokens. "
    if len(targets) > MOST:
        note += f"The first {MOST} of {len(targets)} words with a label. "
    title = " | ".join(" ".join(value) if isinstance(value, list) else value
                       for name, value in row.items() if name in ("text", "pair", "words", "question"))
    return Subject(title, said, note, ids, None if types is None else types[0], targets[:MOST])


def text_scores(logits, task, mean):
    """(name, score) of what is said of a text: its label, its labels, or its number. mean: (K,) logits of the row."""
    if task["kind"] == "regress":
        return [("the number", lambda ids, types: logits(ids, types)[:, 0] * task["deviation"] + task["mean"])]
    chosen = [int(mean.argmax())]
    if task.get("multi_label"):
        chosen = [k for k, x in enumerate(mean) if x > 0] or chosen
    return [(f"logit of {task['labels'][k]}", lambda ids, types, k=k: logits(ids, types)[:, k]) for k in chosen]


def tag_targets(logits, task, words, ids, asked):
    """A target for each word with another label than O; if none has, for the one nearest to it. asked: (T,)"""
    places = (asked != IGNORE).nonzero()[:, 0].tolist()
    with torch.no_grad():
        scores = logits(ids[None], None)[0, places]  # (words, K)
    labels, chosen = task["labels"], scores.argmax(dim=-1)
    if "O" in labels and (chosen == labels.index("O")).all():
        doubt = scores.softmax(-1)[:, labels.index("O")].argmin()
        rest = scores[doubt].clone()
        rest[labels.index("O")] = -torch.inf
        chosen[doubt] = rest.argmax()
    return [Target(f"logit of {labels[k]} for “{word}”", lambda ids, types, at=at, k=k: logits(ids, types)[:, at, k],
                   [at]) for word, at, k in zip(words, places, chosen.tolist()) if labels[k] != "O"]


def no_answer(logits):
    return Target("logits of no answer", lambda ids, types: logits(ids, types)[:, 0].sum(-1), [0])


def span_target(logits, tokenizer, ids, start, end):
    text = tokenizer.decode(ids[start:end + 1].tolist()).strip()
    return Target(f"logits of start and end of “{text}”",
                  lambda ids, types: logits(ids, types)[:, start, 0] + logits(ids, types)[:, end, 1], [start, end])


def of_continuation(model, tokenizer, prompt, ids, new):
    """What a GPT has written: ids (T,) of the prompt, new (N,) its own. Explained is the logit of each new token."""
    said, read = tokenizer.decode(torch.cat((ids, new)).tolist()), torch.cat((ids, new[:MOST]))
    left_out = max(0, len(read) - model.cfg.block_size)
    read = read[left_out:]
    places = range(max(0, len(ids) - left_out - 1), len(read) - 1)  # a token is said by the one before it
    with torch.no_grad():
        likely = model.logits(read[None])[0, list(places)][:, :model.cfg.vocab_size].float().softmax(-1)
    targets = []
    for at, row in zip(places, likely):
        token = int(read[at + 1])
        targets.append(Target(f"logit of “{name_of(token, tokenizer)}” ({row[token]:.1%})",
                              lambda ids, types, at=at, token=token: model.logits(ids)[:, at, token],
                              [at]))
    note = f"The first {left_out:,} tokens no longer fit into the model. " if left_out else ""
    if len(new) > MOST:
        note += f"The first {MOST} of {len(new)} new tokens are explained. "
    return Subject(prompt, said, note, read, None, targets)


def of_gaps(model, tokenizer, prompt, ids):
    """An encoder's likeliest words for the gaps of a prompt: ids (T,)."""
    places = (ids == tokenizer.special["<|mask|>"]).nonzero()[:, 0].tolist()
    with torch.no_grad():
        likely = model.word_logits(model.hidden(ids[None])[0, places])[:, :model.cfg.vocab_size].float().softmax(-1)
    targets = []
    for number, (at, (p, token)) in enumerate(zip(places, (row.max(0) for row in likely)), 1):
        targets.append(Target(
            f"logit of “{name_of(int(token), tokenizer)}” in gap {number} ({p:.1%})", lambda ids, types, at=at,
            token=int(token): model.word_logits(model.hidden(ids, types)[:, at])[:, token], [at]))
    note = f"The first {MOST} of {len(targets)} gaps are explained. " if len(targets) > MOST else ""
    said = "; ".join(target.name.removeprefix("logit of ") for target in targets[:MOST])
    return Subject(prompt, said, note, ids, None, targets[:MOST])


# ---- tokens as a person reads them -------------------------------------------------------------------------------


def units_of(ids, tokenizer):
    """Tokens that hold whole characters together: [(text, [places])], each place in one of them."""
    units, data, places = [], b"", []
    ids = ids.tolist()
    for at, token in enumerate(ids):
        data += tokenizer.decode_bytes([token])
        places.append(at)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            last = at + 1 == len(ids) or ids[at + 1] in tokenizer.special.values()
            if error.reason == "unexpected end of data" and not last:
                continue
        units.append((data.decode("utf-8", "replace"), places))
        data, places = b"", []
    return units


def name_of(token, tokenizer):
    """A token as a word; the bytes of a part of a character as numbers."""
    data = tokenizer.decode_bytes([token])
    try:
        return label(data.decode("utf-8"))
    except UnicodeDecodeError:
        return data.hex(" ")


def label(text, longest=14):
    """A text for an axis: short, and never empty."""
    text = (text.strip(" ") or "␣").replace("\n", "⏎").replace("\t", "⇥")
    return text if len(text) <= longest else text[:longest - 1] + "…"


def sums(values, units):
    """Numbers by token (T,) as numbers by unit (U,)."""
    values = np.asarray(values, dtype=float)
    return np.array([values[places].sum() for _, places in units])


def merged(maps, units):
    """Attention by token, (..., T, T), as attention by unit: what a unit gets is summed, what it gives averaged."""
    maps = np.stack([maps[..., places].sum(-1) for _, places in units], axis=-1)
    return np.stack([maps[..., places, :].mean(-2) for _, places in units], axis=-2)


def window(units, longest, places):
    """First and last + 1 of at most `longest` units: around the first of the places, if not all are among them."""
    n = len(units)
    centre = next(i for i, (_, some) in enumerate(units) if places[0] in some)
    first = min(max(0, centre - longest // 2), max(0, n - longest))
    return first, min(n, first + longest)
