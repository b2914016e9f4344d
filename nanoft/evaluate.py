"""The figures of a model on a split: fixed windows, the same masks and pairs every time, a share for each process."""

import math

import numpy as np
import torch

from nanoft import batches, parallel
from nanoft.model import masked_rows, token_loss


def tensors(batch, device):
    """A batch of NumPy arrays, by name, as tensors on the device."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


@torch.no_grad()
def causal_figures(model, tokens, max_tokens, first_id, here, dtype, stride=0):
    """Figures of a GPT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a token; bits_per_byte; word_perplexity where the split has words: e^(nats of the whole text / words).
    The last two take the part that was scored for the whole. stride: tokens scored in a window, 0 = block_size.
    """
    block_size = model.cfg.block_size
    stride = stride or block_size
    starts = batches.eval_starts(len(tokens), block_size, stride, max_tokens)[here.rank::here.world]
    total = torch.zeros(2, dtype=torch.float64, device=here.device)  # nats, tokens
    for some in chunks(starts, block_size):
        batch = tensors(batches.eval_batch(tokens, block_size, stride, some, first_id), here.device)
        scored = (batch["targets"] != batches.IGNORE).sum()
        with parallel.autocast(here.device, dtype):
            total += torch.stack((model(**batch).double() * scored, scored.double()))
    nats, count = parallel.reduce(total, here, "sum").tolist()
    loss = nats / count
    figures = {"loss": loss, "bits_per_byte": loss / math.log(2) * len(tokens) / tokens.num_bytes}
    if tokens.num_words:
        figures["word_perplexity"] = math.exp(min(loss * len(tokens) / tokens.num_words, 700))
    return figures


@torch.no_grad()
def masked_figures(model, tokens, max_tokens, tokenizer, cfg, here, dtype):
    """Figures of a BERT on about max_tokens of a split (0 = all): a dictionary of

    loss: nats a masked token; mlm_accuracy; with objective mlm_nsp nsp_loss and nsp_accuracy too.
    """
    hide = batches.masking(tokenizer, cfg.mask_prob, cfg.whole_word)
    block_size = cfg.block_size
    if cfg.objective == "mlm_nsp":
        pairs = batches.Pairs(tokens, tokenizer, block_size, 8, batches.EVAL_SEED, hide)
        number = min(len(pairs.windows), max_tokens // block_size or len(pairs.windows)) // 8 * 8
        index = np.arange(number)
        parts = [pairs.batch(some) for some in np.split(index, max(1, number // 8))[here.rank::here.world]]
    else:
        starts = batches.eval_starts(len(tokens) - block_size + 1, block_size, block_size, max_tokens)
        starts = starts[starts + block_size <= len(tokens)][here.rank::here.world]
        parts = (batches.masked_eval_batch(tokens, block_size, some, hide) for some in chunks(starts, block_size))
    total = torch.zeros(6, dtype=torch.float64, device=here.device)
    for batch in parts:
        batch = tensors(batch, here.device)
        with parallel.autocast(here.device, dtype):
            x = model.hidden(batch["ids"], batch.get("types"), batch.get("mask"))
            rows, labels = masked_rows(x.flatten(0, 1), batch["targets"].flatten())
            totals = sums(model.word_logits(rows), labels)
            if "next_targets" in batch:
                totals += sums(model.next(model.pooled(x)), batch["next_targets"])
        total[:len(totals)] += torch.stack(totals)
    nats, right, count, next_nats, next_right, pairs_count = parallel.reduce(total, here, "sum").tolist()
    figures = {"loss": nats / count, "mlm_accuracy": right / count}
    if pairs_count:
        figures |= {"nsp_loss": next_nats / pairs_count, "nsp_accuracy": next_right / pairs_count}
    return figures


def sums(logits, labels):
    """Nats, right answers and their number, as float64. logits: (N, K); labels: (N,)."""
    right = (logits.argmax(-1) == labels).sum()
    return [(token_loss(logits, labels) * len(labels)).double(), right.double(), right.new_tensor(len(labels)).double()]


def chunks(starts, block_size, tokens=16384):
    """The windows in groups of about `tokens` tokens."""
    size = max(1, tokens // block_size)
    return (starts[i:i + size] for i in range(0, len(starts), size))


def described(figures):
    names = {"loss": "loss {:.4f}", "bits_per_byte": "{:.4f} bits/byte", "word_perplexity": "perplexity {:,.1f} a word",
             "mlm_accuracy": "{:.1%} of masked words", "nsp_loss": "pair loss {:.4f}",
             "nsp_accuracy": "{:.1%} of pairs"}
    return " | ".join(names[name].format(value) for name, value in figures.items())
