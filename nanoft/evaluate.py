"""The metrics of a model on a split: fixed windows, the same masks and pairs every time, a share for each process.

The losses of all batches are read at the end: until then nobody waits for the device.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from nanoft import batches, distributed
from nanoft.bins import Tokens
from nanoft.model import BERT


@torch.no_grad()
def causal_metrics(model, tokens: Tokens, max_tokens: int, first_id: int, dist: distributed.Dist) -> dict:
    """The metrics of a GPT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a token; bits_per_byte; word_perplexity where the split has words: e^(nats of the whole text / words).
    The last two take the scored part for the whole. model: compiled or not. first_id: the token before the text.
    """
    block_size, losses, scored = model.cfg.block_size, [], []
    for starts, n in chunks(batches.eval_starts(len(tokens), block_size, max_tokens), model, dist):
        made = batches.eval_batch(tokens, block_size, starts, first_id)
        made["targets"][n:] = batches.IGNORE
        scored.append(int((made["targets"] != batches.IGNORE).sum()))
        with dist.autocast():
            losses.append(model(**distributed.to_device(made, dist.device)))
    nats = sum(loss.item() * count for loss, count in zip(losses, scored))
    nats, count = distributed.total([nats, sum(scored)], dist)
    loss = nats / count
    metrics = {"loss": loss, "bits_per_byte": loss / math.log(2) * len(tokens) / tokens.num_bytes}
    if tokens.num_words:
        metrics["word_perplexity"] = math.exp(min(loss * len(tokens) / tokens.num_words, 700))
    return metrics


@torch.no_grad()
def masked_metrics(model: BERT, tokens: Tokens, max_tokens: int, masking, pairs, dist: distributed.Dist) -> dict:
    """The metrics of a BERT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a masked token; mlm_accuracy; where `pairs` of the split are given, nsp_loss and nsp_accuracy too.
    """
    block_size = model.cfg.block_size
    if pairs:
        model = getattr(model, "_orig_mod", model)  # not compiled: their lengths vary
        windows, lengths = pairs.windows[:, 1].argsort(kind="stable"), pairs.windows[:, 1]  # like lengths: less padding
        if max_tokens and len(windows) > max_tokens // block_size:  # evenly spread
            windows = windows[np.linspace(0, len(windows) - 1, max(1, max_tokens // block_size)).astype(np.int64)]
        groups = [windows[i:i + pairs.batch_size] for i in range(0, len(windows), pairs.batch_size)]
        mine = [(group, len(group)) for group in groups[dist.rank::dist.world_size]]
        if distributed.is_sharded(model) and len(mine) < -(-len(groups) // dist.world_size):
            mine.append((groups[0], 0))  # as many on every rank
        made = ((pairs.rows(group, group, lengths[group].max()), n) for group, n in mine)
    else:
        chunked = chunks(batches.eval_starts(len(tokens) - block_size + 1, block_size, max_tokens), model, dist)
        made = ((batches.masked_eval_batch(tokens, block_size, starts, masking), n) for starts, n in chunked)
    scores, counts = [], []  # of each batch the losses and correct predictions, and the numbers that are asked for
    for batch, n in made:
        asked = [batch[name] for name in ("targets", "next_targets") if name in batch]
        for targets in asked:
            targets[n:] = batches.IGNORE
        counts.append([int((targets != batches.IGNORE).sum()) for targets in asked])
        # compiled code wants a fixed number of rows
        capacity = batches.capacity(batch["ids"].shape, masking.prob) if is_compiled(model) else counts[-1][0]
        with dist.autocast():
            scores.append(model(**distributed.to_device(batch, dist.device), capacity=capacity, correct=True))
    sums = np.zeros((2, 3))  # of the masked tokens, and of the pairs: nats, correct predictions, number
    for score, count in zip(scores, counts):
        for i, (loss, right) in enumerate(score.T.tolist()):  # (2, 1 or 2) -> (1 or 2, 2)
            sums[i] += loss * count[i], right, count[i]
    nats, correct, count, next_nats, next_correct, next_count = distributed.total(sums.ravel(), dist)
    metrics = {"loss": nats / count, "mlm_accuracy": correct / count}
    if next_count:
        metrics |= {"nsp_loss": next_nats / next_count, "nsp_accuracy": next_correct / next_count}
    return metrics


def is_compiled(model) -> bool:
    return hasattr(model, "_orig_mod")  # what torch.compile gives; its class would take long to import


def chunks(starts: np.ndarray, model, dist: distributed.Dist) -> Iterator[tuple[np.ndarray, int]]:
    """This rank's windows in groups: (their starts, how many of them count).

    On a CPU at most 8,192 tokens, whose logits take at most some 100 MB. More at once is no faster there: activations
    of 100 MB are handed back and fetched again, page by page (LOG.md). A GPU wants many at once. Compiled code wants
    groups of one size, a sharded model as many groups on every rank: windows that do not count fill them up.
    """
    tokens = 2**16 if dist.device.type == "cuda" else min(2**13, 2**25 // model.cfg.vocab_size)
    mine, most = starts[dist.rank::dist.world_size], -(-len(starts) // dist.world_size)
    size, n = min(max(1, tokens // model.cfg.block_size), most), len(mine)
    if is_compiled(model) or distributed.is_sharded(model):
        mine = np.resize(mine if n else starts, -(-most // size) * size)
    for i in range(0, len(mine), size):
        yield mine[i:i + size], max(0, min(size, n - i))


def described(metrics: dict) -> str:
    """The metrics as a line for a person."""
    names = {"loss": "loss {:.4f}", "bits_per_byte": "{:.4f} bits/byte", "word_perplexity": "perplexity {:,.1f} a word",
             "mlm_accuracy": "{:.1%} of masked words", "nsp_loss": "pair loss {:.4f}",
             "nsp_accuracy": "{:.1%} of pairs"}
    return " | ".join(names[name].format(value) for name, value in metrics.items())
