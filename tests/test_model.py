import math

import pytest
import torch

import train
from nanoft import UserError
from nanoft.model import GPT, ModelConfig, check_model, gram_rows, hash_multipliers

TINY = dict(vocab_size=100, block_size=16, n_layer=2, n_head=4, n_embd=32)
CLASSIC = dict(position="learned", norm="layernorm", qk_norm=False, activation="gelu_tanh", bias=True, tie_head=True)


def filled(cfg, kind=GPT):
    """A model whose every weight matters: the zero-initialised ones get values too."""
    torch.manual_seed(0)
    model = kind(cfg)
    for p in model.parameters():
        if p.dim() == 2 and p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.2)
    return model


NGRAMS = dict(n_gram=4, n_buckets=500)


@pytest.mark.parametrize("options", [{}, CLASSIC, dict(n_kv_head=2), dict(activation="swiglu"), dict(post_norm=True),
                                     NGRAMS])
def test_no_token_sees_the_future(options):
    model = filled(ModelConfig(**TINY, **options)).eval()
    ids = torch.randint(0, 100, (1, 16))
    changed = ids.clone()
    changed[0, 10:] = (ids[0, 10:] + 1) % 100
    a, b = model.trunk(ids), model.trunk(changed)
    assert torch.allclose(a[:, :10], b[:, :10], atol=1e-5)
    assert not torch.allclose(a[:, 10:], b[:, 10:], atol=1e-2)


def test_first_loss_is_that_of_a_guess():
    model = GPT(ModelConfig(**TINY))
    ids = torch.randint(0, 100, (2, 16))
    assert model(ids, ids).item() == pytest.approx(math.log(128), abs=1e-5)  # the vocabulary padded to 128


def test_n_grams_have_rows_of_their_own():
    multipliers = hash_multipliers(3)
    ids = torch.tensor([[5, 7, 9, 5, 7, 9, 7], [8, 7, 9, 0, 0, 5, 7]])
    pairs, triples = gram_rows(ids, multipliers, 10**6).unbind(-1)
    assert pairs[0, 2] == pairs[0, 5] == pairs[1, 2]               # 7 9, wherever it stands
    assert triples[0, 2] == triples[0, 5] != triples[1, 2]         # 5 7 9 and 8 7 9
    assert pairs[0, 6] != pairs[0, 2]                              # 9 7 is not 7 9
    assert triples[0, 1] == pairs[0, 1]                            # nothing before it
    assert pairs[1, 3] != pairs[1, 4]                              # token 0 is a token, not nothing
    many = gram_rows(torch.randint(0, 8192, (1, 100_000)), multipliers, 1024)[0, 2:]
    for rows in many.unbind(-1):                                   # spread evenly: 98 each, give or take chance
        assert rows.bincount(minlength=1024).float().std() < 15 and rows.min() >= 0


@pytest.mark.parametrize("options", [{}, CLASSIC, dict(n_kv_head=1), dict(activation="swiglu"), NGRAMS])
def test_every_parameter_gets_a_gradient(options):
    model = filled(ModelConfig(**TINY, **options))
    ids = torch.randint(0, 100, (4, 16))
    model(ids, ids.roll(-1, 1)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_ignored_targets_do_not_count():
    model = filled(ModelConfig(**TINY))
    ids = torch.randint(0, 100, (1, 16))
    targets = ids.roll(-1, 1)
    cut = targets.clone()
    cut[0, 8:] = -100
    assert model(ids, cut).item() == pytest.approx(model(ids[:, :8], targets[:, :8]).item(), abs=1e-5)


def test_the_same_seed_gives_the_same_loss():
    """The golden loss: a change that is not about computation leaves it as it is."""
    torch.manual_seed(3)
    model = filled(ModelConfig(**TINY))
    ids = torch.arange(64).view(4, 16) * 7 % 100
    assert model(ids, ids.roll(-1, 1)).item() == pytest.approx(GOLDEN, abs=1e-4)


GOLDEN = 5.590283


@pytest.mark.parametrize("wrong", [dict(n_head=3), dict(n_kv_head=3), dict(n_embd=20), dict(dropout=1.0),
                                   dict(n_layer=-1), dict(n_gram=0), dict(n_buckets=0)])
def test_impossible_shapes(wrong):
    with pytest.raises(UserError):
        GPT(ModelConfig(**{**TINY, **wrong}))


def test_only_rotary_positions_want_an_even_width_a_head():
    assert check_model(ModelConfig(n_embd=100, n_head=4)) and not check_model(ModelConfig(n_embd=100, n_head=4,
                                                                                          position="learned"))
    assert check_model(train.Config(n_embd=100)) and not check_model(train.Config(n_embd=100, arch="gpt2"))
