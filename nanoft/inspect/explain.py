"""What a model looks at: attention, rollout, gradients, integrated gradients, the logit lens, neighbours of tokens.

    attention_weights, rollout       Abnar & Zuidema 2020 (arXiv:2005.00928)
    saliency, input_x_gradient       Simonyan et al. 2013 (arXiv:1312.6034), Shrikumar et al. 2016 (arXiv:1605.01713)
    integrated_gradients             Sundararajan et al. 2017 (arXiv:1703.01365)
    logit_lens                       nostalgebraist 2020, "interpreting GPT: the logit lens"

Explained is always a score, one number that a model gives a text: `score(ids, types)`, (B, T) -> (B,), with types None
where the model has none. The model is in evaluation mode, not compiled, its weights float32.

Gradients are taken at the embeddings as the first block reads them: summed (token, position, type, n-grams) and
normalised. Before that norm an embedding's length has no effect, so its product with the gradient is zero whatever the
token, and a path between two embeddings bends.

Shapes: T tokens, C = n_embd, L layers, H heads, V the vocabulary.
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from nanoft.kernels import plain_attention
from nanoft.model import Attention, gram_rows

POINT_TOKENS = 4096  # tokens that integrated gradients take through the model at once


# ---- attention ---------------------------------------------------------------------------------------------------


@contextmanager
def attention_weights(model):
    """Within, each attention of the model adds its weights (B, H, T, S) to the list that this gives, first block first.

    It takes the plain formula for them; outside of this, nothing is computed differently.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before, recorded = [vars(layer).get("attend") for layer in layers], []

    def attend(*args, **kwargs):
        y, weights = plain_attention(*args, **kwargs)
        recorded.append(weights)
        return y

    for layer in layers:
        layer.attend = attend
    try:
        yield recorded
    finally:
        for layer, function in zip(layers, before):  # as it was, to the last attribute, or compiled code is made anew
            if function is None:
                del layer.attend
            else:
                layer.attend = function


@torch.no_grad()
def attention_maps(trunk, ids, types=None):
    """The weights of every head: ids (T,) -> (L, H, T, T). Row: the token that looks; column: what it looks at."""
    with attention_weights(trunk) as weights:
        trunk(ids[None], None if types is None else types[None])
    return torch.cat(weights)


def rollout(maps):
    """How much of each token reaches each place of the last layer: (L, H, T, T) -> (T, T), rows that sum to 1.

    The heads' mean, and as much again of the token itself, which the residual stream carries past the attention.
    """
    T = maps.size(-1)
    eye = torch.eye(T, device=maps.device)
    flow = eye
    for layer in maps.mean(dim=1):
        flow = (layer + eye) / 2 @ flow
    return flow


# ---- gradients ---------------------------------------------------------------------------------------------------


class Embedded(NamedTuple):
    read: torch.Tensor    # (T, C) as the first block reads them
    grams: torch.Tensor   # (T, N - 1, C) what the n-grams that end at a token add to it, n = 2 to N; N = 1: empty


@torch.no_grad()
def embed(trunk, ids, types=None):
    """The embeddings of a text: ids (T,) -> Embedded."""
    seen = []
    hook = trunk.norm_in.register_forward_hook(lambda module, args, out: seen.extend((args[0][0], out[0])))
    try:
        trunk(ids[None], None if types is None else types[None])
    finally:
        hook.remove()
    total, read = seen
    if trunk.grams is None:
        return Embedded(read, read.new_zeros(len(read), 0, read.size(-1)))
    grams = trunk.grams(gram_rows(ids[None], trunk.multipliers, trunk.cfg.n_buckets))[0]  # (T, N - 1, C)
    return Embedded(read, share_of_norm(trunk.norm_in, grams, total[:, None]))


def share_of_norm(norm, part, total):
    """What a part (..., C) of a sum gives to norm(total), the total's mean and size being what they are."""
    if isinstance(norm, nn.LayerNorm):
        deviation = (total.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return (part - part.mean(dim=-1, keepdim=True)) / deviation * norm.weight
    if isinstance(norm, nn.RMSNorm):
        return part / (total.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    return part


def scores_of(trunk, score, x, ids, types=None):
    """Scores of embeddings x: (B, T, C) -> (B,). The blocks read x, whatever the ids (T,)."""
    hook = trunk.norm_in.register_forward_hook(lambda module, args, out: x)
    try:
        return score(ids.expand(len(x), -1), None if types is None else types.expand(len(x), -1))
    finally:
        hook.remove()


def gradients(trunk, score, x, ids, types=None):
    """The gradient of each score of x, as above: (B, T, C) -> (B, T, C)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(scores_of(trunk, score, x, ids, types).sum(), x)[0]


def saliency(gradient):
    """How strongly each token's embedding moves the score: (T, C) -> (T,), the length of its gradient."""
    return gradient.norm(dim=-1)


def input_x_gradient(embedded, gradient):
    """(T,): what each token adds to the score, were the score linear in the embeddings."""
    return by_token(embedded.read, embedded.grams, gradient)


class Integrated(NamedTuple):
    tokens: torch.Tensor  # (T,) what each token adds to the score
    score: float          # of the text
    base: float           # of the baseline
    delta: float          # how far the sum of `tokens` is from score - base: the error of the quadrature


def integrated_gradients(trunk, score, ids, base_ids, types=None, steps=50):
    """What each token adds to the score, going straight from the baseline's embeddings to the text's: Integrated.

    ids, base_ids: (T,). The mean gradient on the way, times the way. `steps` points, placed by Gauss and Legendre:
    for a smooth curve far nearer to the integral than as many at equal distances. A score that goes in steps, as that
    of a tiny model that knows one rule without exceptions may, needs many more: its delta tells.
    """
    now, base = embed(trunk, ids, types), embed(trunk, base_ids, types)
    nodes, weights = (torch.from_numpy(x).to(now.read) / 2 for x in np.polynomial.legendre.leggauss(steps))
    way, mean = now.read - base.read, torch.zeros_like(now.read)
    at_once = max(1, POINT_TOKENS // len(ids))
    for at, weight in zip((nodes + 0.5).split(at_once), weights.split(at_once)):
        gradient = gradients(trunk, score, base.read + at[:, None, None] * way, ids, types)
        mean += (weight[:, None, None] * gradient).sum(0)  # (N, T, C) -> (T, C)
    with torch.no_grad():
        first, last = scores_of(trunk, score, torch.stack((base.read, now.read)), ids, types).tolist()
    tokens = by_token(way, now.grams - base.grams, mean)
    return Integrated(tokens, last, first, tokens.sum().item() - (last - first))


def by_token(change, grams, gradient):
    """The change of the score by token, `change` (T, C) times `gradient` (T, C) -> (T,), its sum kept.

    What comes from n-grams, grams (T, N - 1, C), is shared out evenly among the tokens that an n-gram consists of; it
    stands in the embedding of the last of them.
    """
    tokens = (change * gradient).sum(-1).double()
    credit = (grams * gradient[:, None]).sum(-1).double()  # (T, N - 1)
    tokens -= credit.sum(-1)
    for n, column in enumerate(credit.T, 2):
        for t, amount in enumerate(column):
            first = max(0, t - n + 1)
            tokens[first:t + 1] += amount / (t + 1 - first)
    return tokens


def baseline(ids, tokenizer, causal):
    """A text of the same length that says nothing: each of its ids (T,) replaced, but the special tokens of an encoder.

    An encoder has <|mask|> for it, which pretraining has taught it to read as "a word, unknown"; it has never read
    <|pad|>, whose embedding is as it was drawn at the beginning. A GPT has read neither; <|endoftext|> is what it knows
    to end all that was before.
    """
    if causal or "<|mask|>" not in tokenizer.special:
        return torch.full_like(ids, tokenizer.special["<|endoftext|>"])
    special = torch.tensor(sorted(tokenizer.special.values()), device=ids.device)
    return torch.where(torch.isin(ids, special), ids, tokenizer.special["<|mask|>"])


# ---- language models ---------------------------------------------------------------------------------------------


@torch.no_grad()
def logit_lens(model, ids, places):
    """What each layer would say, were it the last: ids (T,), places (P,) -> logits (L + 1, P, V).

    The first is the embedding's, before any block; the last is the model's own. model: a GPT or a BERT.
    """
    states, trunk = [], model.trunk
    modules = [*trunk.blocks, trunk.norm_out]
    hooks = [module.register_forward_pre_hook(lambda module, args: states.append(args[0])) for module in modules]
    try:
        trunk(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    head = model.head if model.cfg.causal else model.word_logits
    return torch.stack([head(trunk.norm_out(x[0, places])).float()[:, :model.cfg.vocab_size] for x in states])


@torch.no_grad()
def neighbours(trunk, ids, k=5):
    """The tokens whose embeddings point most nearly the same way: ids (P,) -> other ids and cosines, each (P, k)."""
    table = F.normalize(trunk.tokens.weight[:trunk.cfg.vocab_size], dim=-1)  # (V, C)
    cosine = table[ids] @ table.T                                            # (P, V)
    best = cosine.scatter(1, ids[:, None], -torch.inf).topk(min(k, table.size(0) - 1))
    return best.indices, best.values
