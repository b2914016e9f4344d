"""The fp32 products of training: the same numbers as nn.Linear's, taken where they are said to be."""

import pytest
import torch
from torch.nn import functional as F

from nanoft import linear
from nanoft.linear import Linear, product

pytestmark = pytest.mark.skipif(not linear.BOTH, reason="torch has no MKL or no oneDNN here")


@pytest.fixture(autouse=True)
def as_if_not_an_intel(monkeypatch):
    monkeypatch.setattr(linear, "FASTER", True)


def learned(layer, x, forward):
    """The output, and the gradients of x and of the parameters, of a loss that weighs all outputs differently."""
    x = x.clone().requires_grad_()
    y = forward(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
    return [y, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_output_and_gradients_are_those_of_torch(bias, compiled, monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 0)
    torch.manual_seed(1)
    layer, x = Linear(24, 40, bias=bias), torch.randn(3, 7, 24)
    forward = torch.compile(layer, fullgraph=True) if compiled else layer
    expected = learned(layer, x, lambda x: F.linear(x, layer.weight, layer.bias))
    for ours, theirs in zip(learned(layer, x, forward), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradient(monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 0)
    layer, x = Linear(24, 40, bias=False), torch.randn(3, 24, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 24))
    assert layer.weight.grad is None


def test_only_large_fp32_products_of_training(monkeypatch):
    calls = []

    def counted(x, weight):
        calls.append(tuple(x.shape))
        return product(x, weight)

    monkeypatch.setattr(linear, "product", counted)
    layer, x = Linear(256, 1024), torch.randn(600, 256, requires_grad=True)
    layer(x)
    assert calls == [(600, 256)]
    layer(x[:500])                       # small
    layer(x.detach())                    # no gradient wanted
    layer.double()(x.double())
    layer.float()
    with torch.no_grad():
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    monkeypatch.setattr(linear, "FASTER", False)
    layer(x)
    assert len(calls) == 1
