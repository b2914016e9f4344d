"""The figures of a model on a split: fixed windows, the same masks and pairs every time, a share for each process."""

import math

import numpy as np
import torch

from nanoft import batches, distributed
from nanoft.model import masked_rows, token_loss


@torch.no_grad()
def causal_metrics(model, tokens, max_tokens, first_id, dist, stride=0):
    """Figures of a GPT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a token; bits_per_byte; word_perplexity where the split has words: e^(nats of the whole text / words).
    The last two take the part that was scored for the whole. stride: tokens scored in a window, 0 = block_size.
    """
    block_size = model.cfg.block_size
    stride = stride or block_size
    starts = batches.eval_starts(len(tokens), block_size, stride, max_tokens)[dist.rank::dist.world_size]
    nats = count = 0
    for some in chunks(starts, model):
        batch = distributed.to_device(batches.eval_batch(tokens, block_size, stride, some, first_id), dist.device)
        scored = (batch["targets"] != batches.IGNORE).sum().item()
        with dist.autocast():
            nats += model(**batch).item() * scored
        count += scored
    nats, count = distributed.total([nats, count], dist)
    loss = nats / count
    figures = {"loss": loss, "bits_per_byte": loss / math.log(2) * len(tokens) / tokens.num_bytes}
    if tokens.num_words:
        figures["word_perplexity"] = math.exp(min(loss * len(tokens) / tokens.num_words, 700))
    return figures


@torch.no_grad()
def masked_metrics(model, tokens, max_tokens, masking, pairs, dist):
    """Figures of a BERT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a masked token; mlm_accuracy; where `pairs` of the split are given, nsp_loss and nsp_accuracy too.
    """
    block_size = model.cfg.block_size
    if pairs:
        some, lengths = pairs.windows[:, 1].argsort(kind="stable"), pairs.windows[:, 1]  # like lengths: less padding
        if max_tokens and len(some) > max_tokens // block_size:  # evenly spread
            some = some[np.linspace(0, len(some) - 1, max(1, max_tokens // block_size)).astype(np.int64)]
        groups = [some[i:i + pairs.batch_size] for i in range(0, len(some), pairs.batch_size)]
        groups = groups[dist.rank::dist.world_size]
        parts = (pairs.rows(group, group, lengths[group].max()) for group in groups)
    else:
        starts = batches.eval_starts(len(tokens) - block_size + 1, block_size, block_size, max_tokens)
        starts = starts[dist.rank::dist.world_size]
        parts = (batches.masked_eval_batch(tokens, block_size, some, masking) for some in chunks(starts, model))
    sums = np.zeros(6)  # nats, right and number of the masked words, and of the pairs
    for batch in parts:
        batch = distributed.to_device(batch, dist.device)
        with dist.autocast():
            x = model.hidden(batch["ids"], batch.get("types"), batch.get("mask"))
            rows, labels = masked_rows(x.flatten(0, 1), batch["targets"].flatten())
            sums[:3] += score(model.word_logits(rows), labels)
            if "next_targets" in batch:
                sums[3:] += score(model.next(model.pooled(x)), batch["next_targets"])
    nats, right, count, next_nats, next_right, next_count = distributed.total(sums, dist)
    figures = {"loss": nats / count, "mlm_accuracy": right / count}
    if next_count:
        figures |= {"nsp_loss": next_nats / next_count, "nsp_accuracy": next_right / next_count}
    return figures


def score(logits, labels):
    """Nats, right answers, number of answers. logits: (N, K); labels: (N,)."""
    right = (logits.argmax(-1) == labels).sum().item()
    return token_loss(logits, labels).item() * len(labels), right, len(labels)


def chunks(starts, model):
    """The windows in groups of at most 8,192 tokens, whose logits take at most some 100 MB.

    More at once is no faster: activations of 100 MB are handed back and fetched again, page by page (LOG.md).
    """
    size = max(1, min(2**13, 2**25 // model.cfg.vocab_size) // model.cfg.block_size)
    return (starts[i:i + size] for i in range(0, len(starts), size))


def described(figures):
    names = {"loss": "loss {:.4f}", "bits_per_byte": "{:.4f} bits/byte", "word_perplexity": "perplexity {:,.1f} a word",
             "mlm_accuracy": "{:.1%} of masked words", "nsp_loss": "pair loss {:.4f}",
             "nsp_accuracy": "{:.1%} of pairs"}
    return " | ".join(names[name].format(value) for name, value in figures.items())
