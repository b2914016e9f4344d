"""The sampling rules: each gives the distribution that its definition says, by chi-square over many draws."""

import math

import pytest
import torch

from nanoft import sampling
from nanoft.sampling import Sampling

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0])
TEXT = [3, 1, 2, 0, 1, 5, 5, 0, 1]  # the last four were written, the others are the prompt
N = 20_000


def expected(rules):
    """The probabilities that the rules' definitions give, in plain Python."""
    logits = LOGITS.tolist()
    for token in set(TEXT):
        factor = rules.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        logits[token] -= rules.frequency_penalty * TEXT[5:].count(token)
    if n := rules.no_repeat_ngram:
        for i in range(len(TEXT) - n + 1):
            if TEXT[i:i + n - 1] == TEXT[len(TEXT) - n + 1:]:
                logits[TEXT[i + n - 1]] = -math.inf
    p = [math.exp(x / rules.temperature) for x in logits]
    order = sorted(range(len(p)), key=lambda i: -p[i])
    for i in order[rules.top_k:] if rules.top_k else ():
        p[i] = 0.0
    reached, total = 0.0, sum(p)
    for i in order:
        if reached >= rules.top_p * total:
            p[i] = 0.0
        reached += p[i]
    p = [x if x >= rules.min_p * max(p) else 0.0 for x in p]
    return torch.tensor([x / sum(p) for x in p])


def draws(rules, seed):
    """N draws as a batch makes them: rows with the same text, each with a uniform number of its own."""
    ids = torch.tensor(TEXT + [0, 0]).expand(N, -1)  # a batch's texts have room behind them
    length = torch.full((N,), len(TEXT))
    logits = sampling.shape(LOGITS.expand(N, -1), rules, ids, torch.full((N,), 5), length)
    return sampling.choose(logits, rules, torch.rand(N, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rules", [
    Sampling(), Sampling(temperature=0.5), Sampling(temperature=1.7), Sampling(top_k=3), Sampling(top_p=0.9),
    Sampling(min_p=0.2), Sampling(repetition_penalty=1.5), Sampling(frequency_penalty=0.7),
    Sampling(no_repeat_ngram=1), Sampling(no_repeat_ngram=2), Sampling(no_repeat_ngram=3), Sampling(no_repeat_ngram=12),
    Sampling(1.2, 0.3, 3, temperature=0.8, top_k=5, top_p=0.9, min_p=0.05)], ids=str)
def test_frequencies(rules, seed):
    p = expected(rules)
    found = draws(rules, seed).bincount(minlength=8)
    assert not found[p == 0].any(), "a token that the rules exclude"
    possible = p > 0
    chi_square = ((found - N * p)[possible] ** 2 / (N * p[possible])).sum().item()
    freedom = int(possible.sum()) - 1
    assert chi_square <= freedom + 5 * math.sqrt(2 * max(freedom, 1))  # five deviations above the mean


def test_the_rules_differ():
    """The test above could not tell rules apart that all gave one distribution."""
    assert len({tuple(expected(rules).tolist()) for rules in (
        Sampling(), Sampling(top_k=3), Sampling(top_p=0.9), Sampling(repetition_penalty=1.5), Sampling(min_p=0.2),
        Sampling(frequency_penalty=0.7), *(Sampling(no_repeat_ngram=n) for n in (1, 2, 3)))}) == 9


def test_the_ends_of_the_distribution_too():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    for rules in (Sampling(), Sampling(top_p=0.9), Sampling(top_k=4)):
        least, most = (sampling.choose(logits, rules, torch.tensor([u])).item() for u in (0.0, 1 - 2 ** -24))
        assert {least, most} == {1, 3}


def test_of_a_large_vocabulary_the_few_likeliest_are_enough_or_all_are_sorted():
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1))
    logits[2] *= 5  # a row whose few likeliest suffice
    for p in (0.3, 0.95, 0.999):
        got = [sampling.likeliest(logits.softmax(-1), 0, p, few) for few in (8, 1024, 5000)]
        kept = [[set(ids[w > 0].tolist()) for w, ids in zip(*one)] for one in got]
        assert kept[0] == kept[1] == kept[2]
        for row, ids in zip(logits.softmax(-1), kept[0]):
            least = row[list(ids)].min()
            assert row[list(ids)].sum() >= p - 1e-5 > (row[list(ids)].sum() - least) - 2e-5


def test_something_is_left_where_every_token_would_repeat():
    ids = torch.tensor([[0, 1, 2]])
    banned = sampling.completes(ids, torch.tensor([3]), 1, 3)
    assert not banned.any()
