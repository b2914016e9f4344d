"""kernels.py: every faster way gives the plain formula's result, compiled and in bf16 too."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import DIST
from test_model import CLASSIC, NGRAMS, TINY, filled
from torch.utils._python_dispatch import TorchDispatchMode

from nanoft import kernels
from nanoft.kernels import CPULinear, plain_attention, product
from nanoft.model import BERT, GPT, Attention, ModelConfig, head_loss

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


# ---- the loss in chunks, the residual stream in bf16, activations made again --------------------------------------


def head_gradients(loss, dtype, vocab=320, rows=300):
    """The loss, and the gradients of the hidden states and of the head."""
    torch.manual_seed(0)
    head = torch.nn.Linear(24, vocab, bias=False)
    x, targets = torch.randn(rows, 24, requires_grad=True), torch.randint(0, vocab, (rows,))
    targets[::7] = -100
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = loss(head, x, targets)
    return [y, *torch.autograd.grad(3 * y, [x, head.weight])]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_chunks_is_the_loss_in_one(monkeypatch, dtype, compiled):
    monkeypatch.setattr(kernels, "MOST_LOGITS", 320 * 128)  # 300 rows: chunks of 128, 128 and 44
    fast = torch.compile(kernels.chunked_loss, dynamic=False) if compiled else kernels.chunked_loss
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=0.02, atol=1e-4)
    for ours, theirs in zip(head_gradients(fast, dtype), head_gradients(head_loss, dtype), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)
    with torch.no_grad():
        head, x, targets = torch.nn.Linear(24, 320, bias=False), torch.randn(300, 24), torch.randint(0, 320, (300,))
        torch.testing.assert_close(kernels.chunked_loss(head, x, targets), head_loss(head, x, targets))


def test_the_logits_are_never_held_together(monkeypatch):
    monkeypatch.setattr(kernels, "MOST_LOGITS", 320 * 128)
    largest = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Shapes():
        head_gradients(kernels.chunked_loss, torch.float32)
    assert max(largest) == 320 * 128
    largest.clear()
    with Shapes():
        head_gradients(head_loss, torch.float32)
    assert max(largest) == 320 * 300


def test_a_gpt_takes_its_loss_in_chunks(monkeypatch):
    monkeypatch.setattr(kernels, "MOST_LOGITS", 128)
    monkeypatch.setattr(kernels.ChunkedLoss, "apply", lambda *args: args[3])
    model = GPT(ModelConfig(**TINY))
    kernels.tune(model, DIST.device)
    ids = torch.zeros(10, 16, dtype=torch.long)
    assert model(ids, ids) == 128  # the rows of a chunk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, NGRAMS, dict(causal=False)])
def test_the_residual_stream_in_bf16_is_near_that_in_fp32(options, dtype):
    cfg = ModelConfig(**{**TINY, **options})
    model = filled(cfg, GPT if cfg.causal else BERT)
    ids, seen = torch.randint(0, 100, (4, 16), generator=torch.Generator().manual_seed(1)), []
    loss, gradients = step(model, model, ids, dtype)
    model.trunk.drop.register_forward_hook(kernels.half_residual)
    model.trunk.blocks[-1].register_forward_hook(lambda module, inputs, x: seen.append(x.dtype))
    half, half_gradients = step(model, model, ids, dtype)
    assert seen == [dtype]  # fp32 stays what it was
    assert half.item() == pytest.approx(loss.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-7)
    for a, b in zip(gradients, half_gradients, strict=True):
        assert (a - b).norm() <= (0.06 if dtype == torch.bfloat16 else 0) * a.norm()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_made_again_change_nothing(compiled, dropout):
    model = filled(ModelConfig(**TINY, dropout=dropout), GPT)
    ids, calls = torch.randint(0, 100, (4, 16)), []
    torch.manual_seed(1)
    loss, gradients = step(model, model, ids, torch.float32)
    kernels.checkpoint_activations(model)
    model.trunk.blocks[0].attn.q.register_forward_hook(lambda *_: calls.append(1))
    if compiled:
        torch._dynamo.reset()
    net = torch.compile(model, dynamic=False) if compiled else model
    if compiled and dropout:
        step(model, net, ids, torch.float32)
        return  # compiled code draws other random numbers
    torch.manual_seed(1)
    again, same = step(model, net, ids, torch.float32)
    assert compiled or len(calls) == 2  # forward, and once more backward
    torch.testing.assert_close(again, loss)
    for a, b in zip(gradients, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
