import pytest
import torch
from test_model import CLASSIC, TINY, filled

from nanoft import generate
from nanoft.model import ModelConfig


@pytest.mark.parametrize("options", [{}, CLASSIC, dict(n_kv_head=2), dict(block_size=15), dict(n_gram=4),
                                     dict(n_layer=0, n_gram=2)])
@pytest.mark.parametrize("prompt", [1, 5, 16, 40])
def test_cached_equals_uncached_past_the_context_too(options, prompt):
    model = filled(ModelConfig(**{**TINY, **options})).eval()
    ids = torch.randint(0, 100, (3, prompt), generator=torch.Generator().manual_seed(1))
    fast, slow = (torch.stack(list(generate.generate(model, ids, 50, temperature=0, cached=c))) for c in (True, False))
    assert torch.equal(fast, slow)
    assert len(fast) == 50 and len(fast.unique()) > 3


def test_sampling_is_seeded():
    model = filled(ModelConfig(**TINY)).eval()
    ids = torch.zeros(1, 1, dtype=torch.long)
    a, b, c = (torch.cat(list(generate.generate(model, ids, 30, generator=torch.Generator().manual_seed(s))))
               for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_top_k_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert generate.keep_top_k(logits, 2).isinf().tolist() == [[False, False, True, True]]
    assert generate.keep_top_k(logits, 99).isinf().sum() == 0
    assert generate.keep_top_p(logits, 0.75).isinf().tolist() == [[False, False, True, True]]
    assert generate.keep_top_p(logits, 0.01).isinf().tolist() == [[False, True, True, True]]  # always at least one
    shuffled = logits[:, [2, 0, 3, 1]]
    assert generate.keep_top_p(shuffled, 0.75).isinf().tolist() == [[True, False, True, False]]


def test_repetition_penalty_lowers_what_was_seen():
    logits = torch.tensor([[2.0, -1.0, 1.0]])
    assert generate.penalize(logits, torch.tensor([[0, 1, 0]]), 2.0).tolist() == [[1.0, -2.0, 1.0]]


def test_stops_when_every_row_has_stopped():
    model = filled(ModelConfig(**TINY)).eval()
    ids = torch.randint(0, 100, (2, 4), generator=torch.Generator().manual_seed(1))
    free = torch.stack(list(generate.generate(model, ids, 20, temperature=0)), dim=1)
    stop = free[0, 3].item()
    stopped = torch.stack(list(generate.generate(model, ids, 20, temperature=0, stop_id=stop)), dim=1)
    first = free[0].tolist().index(stop)
    assert (stopped[0, first:] == stop).all() and torch.equal(stopped[0, :first], free[0, :first])
