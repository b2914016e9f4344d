"""The rules by which the next token is chosen from a model's logits.

Shapes: B rows, T tokens, V vocabulary. All are fixed, so that a step can be compiled or recorded as a CUDA graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """The rules by which tokens are chosen, in the order in which they are applied. These defaults change nothing."""
    repetition_penalty: float = 1.0  # above 1: tokens of prompt and text become less likely
    frequency_penalty: float = 0.0   # taken from a logit for each time that the token was written
    no_repeat_ngram: int = 0         # no run of so many tokens twice in prompt and text, 0 = any
    temperature: float = 1.0         # 0 takes the likeliest
    top_k: int = 0                   # the k likeliest, 0 = all
    top_p: float = 1.0               # the likeliest that reach this probability together
    min_p: float = 0.0               # those with at least this share of the likeliest one's probability
    stop_ids: tuple[int, ...] = ()   # tokens that end a text


AS_IT_IS = Sampling()  # the model's own distribution


def count(ids: Tensor, valid: Tensor, V: int) -> Tensor:
    """How often each token stands among the valid ones: ids, bool (B, T) -> (B, V)."""
    return torch.zeros(len(ids), V, device=ids.device).scatter_add_(1, ids, valid.float())


def completes(ids: Tensor, length: Tensor, n: int, V: int) -> Tensor:
    """The tokens that would complete a run of n that is already there. ids: (B, T) of which length (B,) -> (B, V)."""
    if ids.size(1) < n:
        return torch.zeros(len(ids), V, dtype=torch.bool, device=ids.device)
    runs = ids.unfold(1, n, 1)  # (B, W, n)
    at = length[:, None] + torch.arange(1 - n, 0, device=ids.device)
    same = (runs[..., :-1] == ids.gather(1, at.clamp(min=0))[:, None]).all(-1)  # (B, W): begins as the text ends
    whole = torch.arange(n, runs.size(1) + n, device=ids.device) <= length[:, None]
    banned = count(runs[..., -1], same & whole, V) > 0
    return banned & ~banned.all(-1, keepdim=True)  # something must be left


def shape(logits: Tensor, rules: Sampling, ids: Tensor, prompt: Tensor, length: Tensor) -> Tensor:
    """The logits (B, V) after the rules on what stands in the text: ids (B, T), from prompt to length (B,) written."""
    at, V = torch.arange(ids.size(1), device=ids.device), logits.size(-1)
    inside = at < length[:, None]
    if (penalty := rules.repetition_penalty) != 1:  # CTRL, arXiv:1909.05858
        less_likely = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(count(ids, inside, V) > 0, less_likely, logits)
    if rules.frequency_penalty:
        logits = logits - rules.frequency_penalty * count(ids, inside & (at >= prompt[:, None]), V)
    if rules.no_repeat_ngram:
        logits = logits.masked_fill(completes(ids, length, rules.no_repeat_ngram, V), -torch.inf)
    return logits


def choose(logits: Tensor, rules: Sampling, uniform: Tensor) -> Tensor:
    """One token id per row: logits (B, V), numbers from [0, 1) (B,) -> (B,). The number alone decides a row's draw."""
    if rules.temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.max(-1, keepdim=True).values) / max(rules.temperature, 1e-6)  # no overflow, however cold
    weight, order = logits.exp(), None  # probabilities up to a factor, the largest is 1
    if rules.top_k or rules.top_p < 1:
        weight, order = likeliest(weight, rules.top_k, rules.top_p)
    if rules.min_p:
        weight = weight.masked_fill(weight < rules.min_p, 0)
    below = weight.cumsum(-1)
    # the first token whose sum is above a number from [0, total): never one of weight 0
    place = torch.searchsorted(below, uniform[:, None] * below[:, -1:] * (1 - 1e-6), right=True)
    return (place if order is None else order.gather(1, place))[:, 0]


def likeliest(weight: Tensor, k: int, p: float, few: int = 1024) -> tuple[Tensor, Tensor]:
    """The k largest weights, or all, 0 outside the smallest set that reaches the share p (arXiv:1904.09751); their ids.

    weight: (B, V) -> (B, k) each, the largest first. On a CPU the `few` largest are tried before all are sorted.
    """
    V = weight.size(-1)
    if k:
        best, order = weight.topk(min(k, V))
        total = best.sum(-1, keepdim=True)
    else:
        total = weight.sum(-1, keepdim=True)
        best, order = weight.topk(min(few if weight.device.type == "cpu" else V, V))
        if best.size(-1) < V and (best.sum(-1, keepdim=True) < p * total).any():
            best, order = weight.sort(descending=True)
    return best.masked_fill(best.cumsum(-1) - best >= p * total, 0), order  # likelier ones already reach p
