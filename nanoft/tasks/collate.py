"""Batches of features: padded on the right, grouped by length, perhaps with some tokens dropped, swapped or masked.

Every batch is a pure function of the seed, the epoch and the numbers of its features.
"""

import numpy as np

from nanoft import UserError
from nanoft.batches import CHANGES, GROUPS, IGNORE, shuffled
from nanoft.tasks.features import TWO_TEXTS, special_ids


def batch(encoded, index, task, tokenizer, multiple=1, class_weights=None, change=None):
    """The pieces number `index` (B,), padded on the right: a dictionary of arrays, as TaskModel takes them.

    ids (B, T); mask (B, T) unless nothing is padded; types for two texts; allowed (B, T) for answer; targets and
    weights. T is the longest length, rounded up to a `multiple` if max_length allows. class_weights: (K,) or None.
    change: None, or change(ids, number) gives a piece's ids changed (of other kinds than classify, pair and regress as
    many as before).
    """
    kind = task["kind"]
    pad = tokenizer.special.get("<|pad|>", tokenizer.special["<|endoftext|>"])
    parts = [encoded.ids[encoded.begin[i]:encoded.begin[i + 1]].astype(np.int64) for i in index]
    second = encoded.second[index]
    if change is not None:
        parts = [change(ids, number) for ids, number in zip(parts, index)]
        if kind in ("pair", "regress"):  # some tokens may be gone
            _, sep, between = special_ids(tokenizer)
            second = np.array([len(between) + int(np.flatnonzero(ids == sep)[0]) for ids in parts])
    lengths = np.array([len(ids) for ids in parts])
    T = min(-(-int(lengths.max()) // multiple) * multiple, task["max_length"])
    place = np.arange(T)
    real = place < lengths[:, None]  # (B, T)
    out = {"ids": np.full((len(index), T), pad, dtype=np.int64)}
    out["ids"][real] = np.concatenate(parts)
    if not real.all():
        out["mask"] = real
    if kind in TWO_TEXTS:
        out["types"] = ((place >= second[:, None]) & real).astype(np.int64)
        if task.get("match_types"):
            out["types"] += 2 * in_both(out["ids"], out["types"], real)
    if kind == "answer":
        out["allowed"] = (place >= second[:, None]) & (place < lengths[:, None] - 1) | (place == 0)
    if kind in ("tag", "generate"):
        targets = np.full((len(index), T), IGNORE)
        targets[real] = np.concatenate([encoded.targets[encoded.begin[i]:encoded.begin[i + 1]] for i in index])
    else:
        targets = encoded.targets[index]
    out["targets"] = targets
    if class_weights is not None:
        out["weights"] = np.where(targets == IGNORE, 0, class_weights[np.maximum(targets, 0)]).astype(np.float32)
    else:
        out["weights"] = (targets != IGNORE).astype(np.float32) if kind in ("tag", "generate") else (
            np.ones(len(index), dtype=np.float32))
    return out


def in_both(ids, types, real):
    """Which tokens occur in the other text, too: "exact match" of arXiv:1704.00051. All (B, T) -> bool (B, T)"""
    alike = (ids[:, :, None] == ids[:, None, :]) & (types[:, :, None] != types[:, None, :])  # (B, T, T)
    return real & (alike & real[:, None, :]).any(2)


def balanced(encoded, n_classes):
    """A weight for each class, so that all have the same in the loss: N / (K * count). (K,)"""
    counts = np.bincount(encoded.targets[encoded.targets != IGNORE], minlength=n_classes)
    return (counts.sum() / (n_classes * np.maximum(counts, 1))).astype(np.float32)


def check_changes(cfg, task, tokenizer):
    """Raises UserError where tokens cannot be changed as the options token_drop, token_swap and token_mask say."""
    if (cfg.token_drop or cfg.token_swap) and task["kind"] not in ("classify", "pair", "regress"):
        raise UserError(f"token_drop and token_swap would move the targets of a {task['kind']} task; "
                        "they are for classify, pair and regress")
    if cfg.token_mask and (task["kind"] == "generate" or "<|mask|>" not in tokenizer.special):
        raise UserError("token_mask needs a tokenizer with a <|mask|> token, and another kind than generate")


def changes(cfg, tokenizer, epoch):
    """The function that changes a piece in this epoch, or None."""
    if not (cfg.token_drop or cfg.token_swap or cfg.token_mask):
        return None
    mask = tokenizer.special.get("<|mask|>", 0)
    return lambda ids, number: changed(ids, tokenizer.is_special, mask, cfg.token_drop, cfg.token_swap,
                                               cfg.token_mask, cfg.seed, epoch, number)


# ---- grouping and augmentation ---


def grouped(lengths, batch_size, seed, epoch):
    """The examples of an epoch in batches of like lengths, which saves padding: int64 (batches, batch_size).

    lengths: (N,). Shuffled, sorted by length in pools of 100 batches, cut into batches, and these shuffled. The last
    batch is filled up with examples of the same epoch, so every example comes once at least.
    """
    n, count = len(lengths), -(-len(lengths) // batch_size)
    order = np.resize(shuffled(np.arange(n), n, (seed, epoch, GROUPS)), count * batch_size)
    for i in range(0, len(order), 100 * batch_size):
        pool = order[i:i + 100 * batch_size]
        order[i:i + 100 * batch_size] = pool[lengths[pool].argsort(kind="stable")]
    return order.reshape(count, batch_size)[shuffled(np.arange(count), count, (seed, epoch, GROUPS + 1))]


def padding(lengths, groups):
    """The part of the tokens that is padding, if each row of `groups`, numbers into lengths (N,), is a batch."""
    taken = lengths[groups]  # (batches, batch_size)
    return 1 - taken.sum() / (taken.max(axis=1).sum() * groups.shape[1])


def changed(ids, is_special, mask_id, drop, swap, mask, seed, epoch, number):
    """An example's ids (T,) with tokens left out, swapped with their neighbour or masked, each with a probability.

    The random numbers are those of (seed, epoch, number), `number` being the example's. Special tokens, as
    is_special (vocabulary,) says, stay where they are, and one other stays at least.
    """
    rng = np.random.default_rng((seed, epoch, number, CHANGES))
    draw, ordinary = rng.random((3, len(ids))), ~is_special[ids]
    ids = np.where((draw[0] < mask) & ordinary, mask_id, ids)
    for i in np.flatnonzero((draw[1, 1:] < swap) & ordinary[1:] & ordinary[:-1]):
        ids[i], ids[i + 1] = ids[i + 1], ids[i]
    leave = (draw[2] < drop) & ordinary
    if leave.sum() == ordinary.sum():
        leave[:] = False
    return ids[~leave]
