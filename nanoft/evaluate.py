"""The metrics of a model on a split: fixed windows, the same masks and pairs every time, a share for each process."""

import math

import numpy as np
import torch

from nanoft import batches, distributed
from nanoft.bins import Tokens
from nanoft.distributed import Dist
from nanoft.model import BERT, masked_rows, token_loss


@torch.no_grad()
def causal_metrics(model, tokens: Tokens, max_tokens: int, first_id: int, dist: Dist, stride: int = 0) -> dict:
    """The metrics of a GPT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a token; bits_per_byte; word_perplexity where the split has words: e^(nats of the whole text / words).
    The last two take the scored part for the whole. stride: tokens scored in a window, 0 = block_size. first_id: the
    token before the text.
    """
    block_size = model.cfg.block_size
    stride = stride or block_size
    starts = batches.eval_starts(len(tokens), block_size, stride, max_tokens)[dist.rank::dist.world_size]
    nats = count = 0
    for chunk in chunks(starts, model):
        made = batches.eval_batch(tokens, block_size, stride, chunk, first_id)
        scored = int((made["targets"] != batches.IGNORE).sum())
        with dist.autocast():
            nats += model(**distributed.to_device(made, dist.device)).item() * scored
        count += scored
    nats, count = distributed.total([nats, count], dist)
    loss = nats / count
    metrics = {"loss": loss, "bits_per_byte": loss / math.log(2) * len(tokens) / tokens.num_bytes}
    if tokens.num_words:
        metrics["word_perplexity"] = math.exp(min(loss * len(tokens) / tokens.num_words, 700))
    return metrics


@torch.no_grad()
def masked_metrics(model: BERT, tokens: Tokens, max_tokens: int, masking, pairs, dist: Dist) -> dict:
    """The metrics of a BERT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a masked token; mlm_accuracy; where `pairs` of the split are given, nsp_loss and nsp_accuracy too.
    """
    block_size = model.cfg.block_size
    if pairs:
        windows, lengths = pairs.windows[:, 1].argsort(kind="stable"), pairs.windows[:, 1]  # like lengths: less padding
        if max_tokens and len(windows) > max_tokens // block_size:  # evenly spread
            windows = windows[np.linspace(0, len(windows) - 1, max(1, max_tokens // block_size)).astype(np.int64)]
        groups = [windows[i:i + pairs.batch_size] for i in range(0, len(windows), pairs.batch_size)]
        made = (pairs.rows(group, group, lengths[group].max()) for group in groups[dist.rank::dist.world_size])
    else:
        starts = batches.eval_starts(len(tokens) - block_size + 1, block_size, block_size, max_tokens)
        chunked = chunks(starts[dist.rank::dist.world_size], model)
        made = (batches.masked_eval_batch(tokens, block_size, chunk, masking) for chunk in chunked)
    sums = np.zeros(6)  # nats, correct and number of the masked tokens, and of the pairs
    for batch in made:
        batch = distributed.to_device(batch, dist.device)
        with dist.autocast():
            x = model.hidden(batch["ids"], batch.get("types"), batch.get("mask"))
            rows, labels = masked_rows(x.flatten(0, 1), batch["targets"].flatten())
            sums[:3] += score(model.word_logits(rows), labels)
            if "next_targets" in batch:
                sums[3:] += score(model.next(model.pooled(x)), batch["next_targets"])
    nats, correct, count, next_nats, next_correct, next_count = distributed.total(sums, dist)
    metrics = {"loss": nats / count, "mlm_accuracy": correct / count}
    if next_count:
        metrics |= {"nsp_loss": next_nats / next_count, "nsp_accuracy": next_correct / next_count}
    return metrics


def score(logits, labels) -> tuple[float, int, int]:
    """Nats, correct predictions, number of labels. logits: (N, K); labels: (N,)."""
    correct = int((logits.argmax(-1) == labels).sum())
    return token_loss(logits, labels).item() * len(labels), correct, len(labels)


def chunks(starts, model):
    """The windows in groups of at most 8,192 tokens, whose logits take at most some 100 MB.

    More at once is no faster: activations of 100 MB are handed back and fetched again, page by page (LOG.md).
    """
    size = max(1, min(2**13, 2**25 // model.cfg.vocab_size) // model.cfg.block_size)
    return (starts[i:i + size] for i in range(0, len(starts), size))


def described(metrics: dict) -> str:
    """The metrics as a line for a person."""
    names = {"loss": "loss {:.4f}", "bits_per_byte": "{:.4f} bits/byte", "word_perplexity": "perplexity {:,.1f} a word",
             "mlm_accuracy": "{:.1%} of masked words", "nsp_loss": "pair loss {:.4f}",
             "nsp_accuracy": "{:.1%} of pairs"}
    return " | ".join(names[name].format(value) for name, value in metrics.items())
