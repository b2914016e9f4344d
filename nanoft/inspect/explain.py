"""What a model looks at: attention, rollout, gradients, integrated gradients, the logit lens, neighbours of tokens.

    attention_maps, rollout          Abnar & Zuidema 2020 (arXiv:2005.00928)
    saliency, input x gradient       Simonyan et al. 2013 (arXiv:1312.6034), Shrikumar et al. 2016 (arXiv:1605.01713)
    integrated_gradients             Sundararajan et al. 2017 (arXiv:1703.01365)
    logit_lens                       nostalgebraist 2020, "interpreting GPT: the logit lens"

What is explained is a score, one number for each text: `score(ids, types)`, both (B, T), -> (B,); types is None for a
model without token types. The model is in evaluation mode, not compiled, its weights float32.

Gradients are taken at the embeddings as the first block reads them: the sum of token, position, type and n-gram
embeddings, normalised. Before the norm, the length of an embedding has no effect: there the product of embedding and
gradient is zero for every token, and a straight path between two embeddings becomes a curve after the norm.

Shapes: B texts, T tokens, C = n_embd, L layers, H heads, V the vocabulary, N = n_gram.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanoft.kernels import plain_attention
from nanoft.model import BERT, GPT, Attention, Transformer, gram_rows

BATCH_TOKENS = 4096  # tokens that integrated gradients pass through the model at once


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable, before: bool = False):
    """Within, the modules have this forward hook, or a hook that is called before their forward pass."""
    handles = [(module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
               for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- attention ---------------------------------------------------------------------------------------------------


@contextmanager
def attention_weights(model: nn.Module):
    """Within, every attention appends its weights (B, H, T, S) to the list that this yields, first block first.

    The plain formula computes them; outside of this context nothing is computed differently.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before, recorded = [layer.attend for layer in layers], []

    def attend(*args, **kwargs):
        y, weights = plain_attention(*args, **kwargs)
        recorded.append(weights)
        return y

    for layer in layers:
        layer.attend = attend
    try:
        yield recorded
    finally:
        for layer, function in zip(layers, before):
            layer.attend = function


@torch.no_grad()
def attention_maps(trunk: Transformer, ids: Tensor, types: Tensor | None = None) -> Tensor:
    """The attention weights of one text: ids (T,) -> (L, H, T, T). Row: the query token; column: the key token."""
    with attention_weights(trunk) as weights:
        trunk(ids[None], None if types is None else types[None])
    return torch.cat(weights) if weights else torch.zeros(0, trunk.cfg.n_head, len(ids), len(ids))


def rollout(maps: Tensor) -> Tensor:
    """How much of each token reaches each position of the last layer: (L, H, T, T) -> (T, T), rows that sum to 1.

    A layer passes on the mean of its heads and, with equal weight, the token itself (the residual stream).
    """
    eye = torch.eye(maps.size(-1), device=maps.device)
    flow = eye
    for layer in maps.mean(dim=1):
        flow = (layer + eye) / 2 @ flow
    return flow


# ---- gradients ---------------------------------------------------------------------------------------------------


class Embedded(NamedTuple):
    x: Tensor      # (T, C) as the first block reads it
    grams: Tensor  # (T, N - 1, C) the share of each n-gram that ends at a token, n = 2 to N; empty for N = 1


@torch.no_grad()
def embed(trunk: Transformer, ids: Tensor, types: Tensor | None = None) -> Embedded:
    """The embeddings of a text, ids (T,)."""
    seen: list = []
    with hooked([trunk.norm_in], lambda module, args, out: seen.extend((args[0][0], out[0]))):
        trunk(ids[None], None if types is None else types[None])
    total, x = seen
    if trunk.grams is None:
        return Embedded(x, x.new_zeros(len(x), 0, x.size(-1)))
    grams = trunk.grams(gram_rows(ids[None], trunk.multipliers, trunk.cfg.n_buckets))[0]  # (T, N - 1, C)
    return Embedded(x, share_of_norm(trunk.norm_in, grams, total[:, None]))


def share_of_norm(norm: nn.Module, part: Tensor, total: Tensor) -> Tensor:
    """What one term (..., C) of a sum adds to norm(sum), with the mean and the size of the sum held fixed."""
    if isinstance(norm, nn.LayerNorm):
        deviation = (total.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return (part - part.mean(dim=-1, keepdim=True)) / deviation * norm.weight
    if isinstance(norm, nn.RMSNorm):
        return part / (total.square().mean(dim=-1, keepdim=True) + (norm.eps or 0.0)).sqrt()
    return part


def score_embeddings(trunk: Transformer, score: Callable, x: Tensor, ids: Tensor, types: Tensor | None = None):
    """Scores of embeddings x: (B, T, C) -> (B,). The blocks read x in place of the embeddings of ids (T,)."""
    with hooked([trunk.norm_in], lambda module, args, out: x):
        return score(ids.expand(len(x), *ids.shape), None if types is None else types.expand(len(x), -1))


def gradients(trunk: Transformer, score: Callable, x: Tensor, ids: Tensor, types: Tensor | None = None) -> Tensor:
    """The gradient of each score with respect to its embeddings: x (B, T, C) -> (B, T, C)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(score_embeddings(trunk, score, x, ids, types).sum(), x)[0]


class Integrated(NamedTuple):
    attributions: Tensor  # (T,) float64 on the CPU: what each token adds to the score
    score: float          # of the text
    baseline: float       # the score of the baseline
    delta: float          # sum of the attributions - (score - baseline): the error of the quadrature


def integrated_gradients(trunk: Transformer, score: Callable, ids: Tensor, base_ids: Tensor,
                         types: Tensor | None = None, steps: int = 50) -> Integrated:
    """What each token adds to the score on the straight way from the baseline's embeddings to the text's.

    ids, base_ids: (T,). The mean gradient along the way, times the way, at `steps` Gauss-Legendre points: for a smooth
    score far more exact than as many equidistant points. The score of a tiny model that has learned one rule without
    exceptions may change in jumps and need many more points; delta tells.
    """
    text, base = embed(trunk, ids, types), embed(trunk, base_ids, types)
    points = np.polynomial.legendre.leggauss(steps)  # nodes in (-1, 1) and their weights
    nodes, weights = (torch.from_numpy(x.astype(np.float32)).to(text.x) / 2 for x in points)
    way, mean = text.x - base.x, torch.zeros_like(text.x)
    batch_size = max(1, BATCH_TOKENS // len(text.x))
    for node, weight in zip((nodes + 0.5).split(batch_size), weights.split(batch_size)):
        gradient = gradients(trunk, score, base.x + node[:, None, None] * way, ids, types)  # (B, T, C)
        mean += (weight[:, None, None] * gradient).sum(0)
    with torch.no_grad():
        first, last = score_embeddings(trunk, score, torch.stack((base.x, text.x)), ids, types).tolist()
    attributions = token_attributions(way, text.grams - base.grams, mean)
    return Integrated(attributions, last, first, attributions.sum().item() - (last - first))


def token_attributions(change: Tensor, grams: Tensor, gradient: Tensor) -> Tensor:
    """The change of the score, by token: change, gradient (T, C), grams (T, N - 1, C) -> float64 (T,) on the CPU.

    The product of change and gradient. An n-gram's part of it, which stands at the n-gram's last token, is shared
    equally among the n-gram's tokens; the sum stays the same.
    """
    tokens = (change * gradient).sum(-1).cpu().double()                   # on the CPU: Apple GPUs have no float64
    gram_parts = (grams * gradient[:, None]).sum(-1).cpu().double()       # (T, N - 1)
    tokens -= gram_parts.sum(-1)
    for n, column in enumerate(gram_parts.T, 2):
        for t, amount in enumerate(column):
            first = max(0, t - n + 1)
            tokens[first:t + 1] += amount / (t + 1 - first)
    return tokens


def baseline(ids: Tensor, tokenizer, causal: bool) -> Tensor:
    """A text of the same length without content, (T,) -> (T,): for an encoder, special tokens stay.

    An encoder gets <|mask|>, which it has learned to read as an unknown word; <|pad|> has never been trained. A GPT has
    learned neither of them, but that <|endoftext|> ends all that was before.
    """
    if causal or "<|mask|>" not in tokenizer.special:
        return torch.full_like(ids, tokenizer.special["<|endoftext|>"])
    special = torch.tensor(sorted(tokenizer.special.values()), device=ids.device)
    return torch.where(torch.isin(ids, special), ids, tokenizer.special["<|mask|>"])


# ---- language models ---------------------------------------------------------------------------------------------


@torch.no_grad()
def logit_lens(model: GPT | BERT, ids: Tensor, positions: list[int]) -> Tensor:
    """What each layer would predict if it were the last: ids (T,), P positions -> logits (L + 1, P, V).

    The first row is the embedding's, before any block; the last is the model's own.
    """
    states, trunk = [], model.trunk
    with hooked([*trunk.blocks, trunk.norm_out], lambda module, args: states.append(args[0]), before=True):
        trunk(ids[None])
    head = model.word_logits if isinstance(model, BERT) else model.head
    return torch.stack([head(trunk.norm_out(x[0, positions])).float()[:, :model.cfg.vocab_size] for x in states])


@torch.no_grad()
def neighbours(trunk: Transformer, ids: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """The k tokens with the most similar embeddings: ids (P,) -> their ids and cosines, both (P, k)."""
    table = F.normalize(trunk.tokens.weight[:trunk.cfg.vocab_size], dim=-1)  # (V, C)
    cosine = table[ids] @ table.T                                            # (P, V)
    best = cosine.scatter(1, ids[:, None], -torch.inf).topk(min(k, table.size(0) - 1))
    return best.indices, best.values
