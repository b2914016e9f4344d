"""Sampling: the key-value cache, the rules that shape a distribution, and the loop; and masked tokens of encoders.

Beyond the context length the window moves in jumps of half a block: once block_size tokens are read, the older half is
dropped and the newer half read again. So cached and uncached sampling have the same context and the same output,
learned positions work, and a token costs little on average.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nanoft.model import BERT, GPT


class LayerCache:
    """The keys and values of one layer, (B, K, block_size, D), of which the first `length` positions are filled."""

    def __init__(self, block_size: int):
        self.block_size, self.length = block_size, 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v: (B, K, T, D); return all of them so far: (B, K, length, D)."""
        if self.length == 0:
            B, K, _, D = k.shape
            self.k, self.v = (new.new_empty(B, K, self.block_size, D) for new in (k, v))
        start, self.length = self.length, self.length + k.size(2)
        self.k[:, :, start:self.length], self.v[:, :, start:self.length] = k, v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


class Cache:
    """The tokens that a model has read: their ids, and their keys and values in each layer."""

    def __init__(self, cfg):
        self.layers = [LayerCache(cfg.block_size) for _ in range(cfg.n_layer)]
        self.ids = None

    def read(self, ids: Tensor) -> Tensor:
        """Append ids: (B, T); return all of them so far: (B, past + T)."""
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        return self.ids


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest. logits: (B, V)."""
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of tokens whose probability reaches p (arXiv:1904.09751). logits: (B, V)."""
    values, order = logits.sort(descending=True)
    probability = values.softmax(-1)
    drop = probability.cumsum(-1) - probability >= p  # likelier tokens already reach p
    return logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


def penalize(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the tokens of the context less likely (CTRL, arXiv:1909.05858). logits: (B, V); ids: (B, T)."""
    score = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(score > 0, score / penalty, score * penalty))


def choose(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None) -> Tensor:
    """One token id per row. logits: (B, V) -> (B,). Temperature 0 takes the most likely."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.max(-1, keepdim=True).values) / max(temperature, 1e-6)  # no overflow, however cold
    if top_k:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def context_start(length: int, block_size: int) -> int:
    """The start of the window over `length` tokens; it jumps by half a block once they do not fit."""
    jump = max(1, block_size // 2)
    return max(0, -(-(length - block_size) // jump) * jump)


@torch.no_grad()
def generate(model: GPT, ids: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int = 0,
             top_p: float = 1.0, repetition_penalty: float = 1.0, stop_id: int | None = None,
             generator: torch.Generator | None = None, cached: bool = True) -> Iterator[Tensor]:
    """Continue ids: (B, T) with T >= 1. Yields (B,) ids, one token per row at a time.

    Finished rows repeat `stop_id`; once all are finished, the loop ends. The caller sets model.eval().
    """
    block_size = model.cfg.block_size
    cache, start = None, -1
    done = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        fresh = context_start(ids.size(1), block_size)
        if not cached or fresh != start:  # the first step, and each jump of the window: read the whole context
            start, cache = fresh, Cache(model.cfg) if cached else None
            logits = model(ids[:, start:], cache=cache)
        else:
            logits = model(ids[:, -1:], cache=cache)
        if repetition_penalty != 1:
            logits = penalize(logits, ids[:, start:], repetition_penalty)
        token = choose(logits, temperature, top_k, top_p, generator)
        if stop_id is not None:
            token = token.masked_fill(done, stop_id)
            done |= token == stop_id
        ids = torch.cat((ids, token[:, None]), dim=1)
        yield token
        if done.all():
            return


# ---- encoders ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def fill_masks(model: BERT, ids: Tensor, mask_id: int, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens at each masked position. ids: (T,) -> ids and probabilities, each (masks, k)."""
    rows = model.hidden(ids[None])[0][ids == mask_id]  # (masks, C)
    probability = model.word_logits(rows).float()[:, :model.cfg.vocab_size].softmax(-1)
    best = probability.topk(min(k, probability.size(-1)))
    return best.indices, best.values


@torch.no_grad()
def pseudo_loss(model: BERT, ids: Tensor, mask_id: int, scored: Tensor, batch: int = 32) -> float:
    """Mean loss (nats) of tokens masked one at a time (arXiv:1910.14659); its exponential is the pseudo-perplexity.

    ids: (T,); scored: bool (T,), True for the tokens that count, which are not special. batch: rows at once.
    """
    rows = ids.repeat(len(ids), 1)  # (T, T): row i has token i masked
    rows.fill_diagonal_(mask_id)
    targets = torch.full_like(rows, -100)
    targets.diagonal().copy_(ids)
    rows, targets = rows[scored], targets[scored]
    total = sum(model(x, y).item() * len(x) for x, y in zip(rows.split(batch), targets.split(batch)))
    return total / len(rows)
