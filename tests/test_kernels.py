"""kernels.py: every faster way gives the plain formula's result, compiled and in bf16 too."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import DIST
from test_model import CLASSIC, NGRAMS, TINY, filled

from nanoft import kernels
from nanoft.kernels import CPULinear, plain_attention, product
from nanoft.model import BERT, GPT, Attention, ModelConfig

needs_both = pytest.mark.skipif(not kernels.BOTH, reason="torch has no MKL or no oneDNN here")
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")


# ---- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, 64])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_plain_attention_equals_the_fused_kernel(causal, length, kv_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    mask = torch.rand(2, 1, 1, length) > 0.3 if not causal else None
    if mask is not None:
        mask[..., 0] = True
    options = dict(attn_mask=mask, is_causal=causal, enable_gqa=kv_heads < 4)
    plain, weights = plain_attention(q, k, v, **options)
    fused = F.scaled_dot_product_attention(q, k, v, **options)
    assert torch.allclose(plain, fused, atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, length), atol=1e-5)
    gradients = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (plain, fused))
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_parts_equals_attention_in_one(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 130, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 1, 130) > 0.3 if masked else None
    if masked:
        mask[..., 0] = True
    whole, in_parts = (plain_attention(q, k, v, mask, True, parts=parts)[0] for parts in (1, 4))
    assert torch.allclose(whole, in_parts, atol=1e-6)
    gradients = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (whole, in_parts))
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-5)


def test_every_attention_is_tuned_on_a_cpu():
    model = GPT(ModelConfig(**TINY))
    kernels.tune(model, DIST.device)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(layers) == 2 and all(layer.attend is kernels.cpu_attention for layer in layers)


# ---- compiled = eager = plain formula ----------------------------------------------------------------------------


def step(model, net, ids, dtype):
    """The loss of a forward pass in `dtype` and the gradients of all weights."""
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = net(ids, ids.roll(-1, 1)).sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, CLASSIC, NGRAMS, dict(n_kv_head=2), dict(causal=False)])
@pytest.mark.slow
def test_the_compiled_step_equals_the_plain_formula(options, dtype):
    """The whole of kernels.py, attention in four parts among it, against model.py alone in fp32."""
    cfg = ModelConfig(**{**TINY, "block_size": 128, **options})
    model = filled(cfg, GPT if cfg.causal else BERT)
    ids = torch.randint(0, 100, (2, 128), generator=torch.Generator().manual_seed(1))
    loss, gradients = step(model, model, ids, torch.float32)
    kernels.tune(model, DIST.device)
    torch._dynamo.reset()
    net = kernels.compiled(model, lambda net: net(ids, ids), "true", dtype, 128, lambda line: None)
    assert net is not model
    for eager_or_compiled in (model, net):
        fast, fast_gradients = step(model, eager_or_compiled, ids, dtype)
        rough = dtype == torch.bfloat16
        assert fast.item() == pytest.approx(loss.item(), rel=1e-2 if rough else 1e-5)
        for a, b in zip(gradients, fast_gradients, strict=True):
            # the gradient of a key's bias is zero but for rounding
            assert (a - b).norm() <= (0.05 if rough else 1e-4) * a.norm() + (1e-5 if rough else 1e-6)


# ---- fp32 products -----------------------------------------------------------------------------------------------


def learned(layer, x, forward):
    """The output, and the gradients of x and of the parameters, of a loss that weighs all outputs differently."""
    x = x.clone().requires_grad_()
    y = forward(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
    return [y, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@needs_both
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.slow
def test_output_and_gradients_are_those_of_torch(bias, compiled, monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 0)
    torch.manual_seed(1)
    layer, x = CPULinear(24, 40, bias=bias), torch.randn(3, 7, 24)
    forward = torch.compile(layer, fullgraph=True) if compiled else layer
    expected = learned(layer, x, lambda x: F.linear(x, layer.weight, layer.bias))
    for ours, theirs in zip(learned(layer, x, forward), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_both
def test_frozen_weights_get_no_gradient(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 0)
    layer, x = CPULinear(24, 40, bias=False), torch.randn(3, 24, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 24))
    assert layer.weight.grad is None


@needs_both
def test_only_large_fp32_products_of_training(monkeypatch):
    calls = []

    def counted(x, weight):
        calls.append(tuple(x.shape))
        return product(x, weight)

    monkeypatch.setattr(kernels, "product", counted)
    layer, x = CPULinear(256, 1024), torch.randn(600, 256, requires_grad=True)
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
    assert len(calls) == 1
