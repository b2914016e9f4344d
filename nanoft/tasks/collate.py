"""Batches of features: grouped by length, padded on the right, perhaps with some tokens dropped, swapped or masked.

Every batch is a pure function of the seed, the epoch and the numbers of its features.
"""

from collections.abc import Callable

import numpy as np

from nanoft import UserError
from nanoft.batches import CHANGES, GROUPS, IGNORE, shuffled
from nanoft.tasks import images
from nanoft.tasks.features import TWO_TEXTS, WHOLE_TEXT, Encoded, special_ids


def batch(encoded: Encoded | images.Pictures, index, task: dict, tokenizer, multiple: int = 1,
          class_weights: np.ndarray | None = None, augment: Callable | None = None) -> dict[str, np.ndarray]:
    """The features number `index` (B,) as the arrays that TaskModel takes.

    ids (B, T); mask (B, T) unless nothing is padded; types (B, T) for two texts, 0 and 1, with match_types or a linear
    model 2 and 3 for tokens that both have; allowed (B, T) for answer, where an answer may lie; teacher (B, K) where
    there is one; targets and weights (B,), (B, K), (B, 2) or (B, T). T is the longest length, rounded up to a
    `multiple` if max_length allows. class_weights: (K,). augment(ids, number) gives other ids for a feature (as many as
    before, except for classify, pair and regress).
    """
    kind = task["kind"]
    if isinstance(encoded, images.Pictures):
        return images.batch(encoded, index, task, class_weights, augment)
    pad = tokenizer.special.get("<|pad|>", tokenizer.special["<|endoftext|>"])
    ids = [encoded.ids[encoded.begin[i]:encoded.begin[i + 1]].astype(np.int64) for i in index]
    second = encoded.second[index]
    if augment is not None:
        ids = [augment(one, number) for one, number in zip(ids, index)]
        if kind in ("pair", "regress"):  # the first text may be shorter now
            _, sep, between = special_ids(tokenizer)
            # the first separator; GPT-2's vocabulary also begins with it
            second = np.array([len(between) + 1 + int(np.flatnonzero(one[1:] == sep)[0]) for one in ids])
    lengths = np.array([len(one) for one in ids])
    T = min(-(-int(lengths.max()) // multiple) * multiple, task["max_length"])
    position = np.arange(T)
    is_token = position < lengths[:, None]  # (B, T), not padding
    out = {"ids": np.full((len(index), T), pad, dtype=np.int64)}
    out["ids"][is_token] = np.concatenate(ids)
    if not is_token.all():
        out["mask"] = is_token
    if kind in TWO_TEXTS:
        out["types"] = token_types(out["ids"], second, is_token, bool(task.get("match_types") or task.get("linear")))
    if kind == "answer":
        in_context = (position >= second[:, None]) & (position < lengths[:, None] - 1)
        out["allowed"] = in_context | (position == 0)  # <|cls|> means no answer
    if kind in ("tag", "generate"):
        targets = np.full((len(index), T), IGNORE)
        targets[is_token] = np.concatenate([encoded.targets[encoded.begin[i]:encoded.begin[i + 1]] for i in index])
        weights = targets != IGNORE
    else:
        targets = encoded.targets[index]
        weights = np.ones(len(index))
    if class_weights is not None:
        weights = np.where(targets == IGNORE, 0, class_weights[np.maximum(targets, 0)])
    if encoded.teacher is not None:
        out["teacher"] = encoded.teacher[index]
    return out | {"targets": targets, "weights": weights.astype(np.float32)}


def token_types(ids: np.ndarray, second: np.ndarray, is_token: np.ndarray, match: bool) -> np.ndarray:
    """0 for tokens of the first text, 1 from position `second` (B,) on; with match 2 more for those that both have.

    The latter is "exact match" of arXiv:1704.00051. ids, is_token: (B, T) -> int64 (B, T).
    """
    types = ((np.arange(ids.shape[1]) >= second[:, None]) & is_token).astype(np.int64)
    if not match:
        return types
    same = (ids[:, :, None] == ids[:, None, :]) & (types[:, :, None] != types[:, None, :])  # (B, T, T)
    return types + 2 * (is_token & (same & is_token[:, None, :]).any(2))


def balanced_weights(encoded: Encoded, n_classes: int) -> np.ndarray:
    """A weight for each class, N / (K * count), so that all classes weigh the same in the loss: (K,)"""
    counts = np.bincount(encoded.targets[encoded.targets != IGNORE], minlength=n_classes)
    return (counts.sum() / (n_classes * np.maximum(counts, 1))).astype(np.float32)


def group_by_length(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The features of an epoch in batches of similar lengths, which saves padding: int64 (batches, batch_size).

    lengths: (N,). Shuffled, sorted by length in pools of 100 batches, cut into batches, and these shuffled. The last
    batch is filled up with features of the same epoch, so every feature occurs at least once.
    """
    n, n_batches = len(lengths), -(-len(lengths) // batch_size)
    order = np.resize(shuffled(np.arange(n), n, (seed, epoch, GROUPS)), n_batches * batch_size)
    for i in range(0, len(order), 100 * batch_size):
        pool = order[i:i + 100 * batch_size]
        order[i:i + 100 * batch_size] = pool[lengths[pool].argsort(kind="stable")]
    return order.reshape(n_batches, batch_size)[shuffled(np.arange(n_batches), n_batches, (seed, epoch, GROUPS + 1))]


def padding_fraction(lengths: np.ndarray, groups: np.ndarray) -> float:
    """The fraction of tokens that is padding in batches of features. groups: as group_by_length gives them."""
    grouped = lengths[groups]  # (batches, batch_size)
    return 1 - grouped.sum() / (grouped.max(axis=1).sum() * groups.shape[1])


# ---- augmentation ------------------------------------------------------------------------------------------------


def check_augmentation(cfg, task: dict, tokenizer):
    """Raises UserError where the options token_drop, token_mask and augment do not fit task and tokenizer."""
    if cfg.augment and task["kind"] != "image":
        raise UserError(f"augment={cfg.augment} changes pictures, which a {task['kind']} task has not; leave it out")
    if cfg.token_drop and task["kind"] not in WHOLE_TEXT:
        raise UserError(f"token_drop would move the targets of a {task['kind']} task; leave it out")
    if cfg.token_mask and (task["kind"] == "generate" or "<|mask|>" not in tokenizer.special):
        raise UserError("token_mask needs a tokenizer with a <|mask|> token, and another kind than generate")


def augmentation(cfg, task: dict, tokenizer, epoch: int) -> Callable | None:
    """The function augment(ids, number) of an epoch, or None if the options ask for none. Pictures: see images.py.

    It drops tokens of a feature's ids (T,) or masks them, with the probabilities token_drop and token_mask. Its random
    numbers are a function of the seed, the epoch and the feature's number. Special tokens stay, and at least one other.
    """
    if task["kind"] == "image":
        return images.augmentation(cfg, task, epoch)
    if not (cfg.token_drop or cfg.token_mask):
        return None

    def augment(ids, number):
        rng = np.random.default_rng((cfg.seed, epoch, number, CHANGES))
        draw, is_ordinary = rng.random((3, len(ids))), ~tokenizer.is_special[ids]
        ids = np.where((draw[0] < cfg.token_mask) & is_ordinary, tokenizer.special.get("<|mask|>", 0), ids)
        dropped = (draw[2] < cfg.token_drop) & is_ordinary
        return ids if dropped.sum() == is_ordinary.sum() else ids[~dropped]

    return augment
