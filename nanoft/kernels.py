"""What is special to a device: faster ways on CPUs to the same results as model.py, compile settings, memory.

`tune(model, dist)` puts them in; a test compares each with the plain formula, compiled and in bf16 too. Measurements
are in LOG.md.
"""

import math
import re
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import library, nn
from torch.utils.checkpoint import checkpoint

from nanoft import UserError
from nanoft.model import GPT, Attention, head_loss

MOST_LOGITS = 2**27  # that are held at once


def tune(model: nn.Module, device: torch.device) -> None:
    """Prepare a model in place for training on its device: same weights, same results, faster."""
    if isinstance(model, GPT):
        model.head_loss = chunked_loss
    if device.type == "cuda":
        model.trunk.drop.register_forward_hook(half_residual)  # type: ignore[union-attr]
    if device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = cpu_attention  # type: ignore[assignment]  # torch's has more options
        elif type(module) is nn.Linear and ONEDNN_IS_FASTER:
            module.__class__ = CPULinear


# ---- the residual stream and the loss ------------------------------------------------------------------------------


def half_residual(module, inputs, x):
    """A forward hook: where products are in bf16, the embeddings are, too, and so all that is added to them.

    Norms and sums read and write half as much. fp16 has not the range for it.
    """
    half = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16
    return x.bfloat16() if half else x


def chunked_loss(head, x, targets):
    """As model.head_loss, where the logits are too many to be held at once: in chunks. x: (N, C); targets: (N,)."""
    rows = max(1, MOST_LOGITS // head.weight.size(0) // 128) * 128
    if len(x) <= rows:
        return head_loss(head, x, targets)
    if torch.is_grad_enabled():
        autocast = torch.is_autocast_enabled(x.device.type)
        return ChunkedLoss.apply(x, head.weight, targets, rows,
                                 torch.get_autocast_dtype(x.device.type) if autocast else x.dtype)
    nats = [F.cross_entropy(head(part).float(), wanted, ignore_index=-100, reduction="sum")
            for part, wanted in zip(x.split(rows), targets.split(rows))]
    return torch.stack(nats).sum() / (targets != -100).sum().clamp(min=1)


class ChunkedLoss(torch.autograd.Function):
    """The gradient is computed forward, while the logits of a chunk are there (as in arXiv:2410.10989)."""

    @staticmethod
    def forward(ctx, x, weight, targets, rows, dtype):
        """x: (N, C); weight: (V, C); targets: (N,); rows: of a chunk; dtype: of the products."""
        count = (targets != -100).sum().clamp(min=1)
        nats, dx, dw = [], [], torch.zeros_like(weight, dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            w, columns = weight.to(dtype), torch.arange(len(weight), device=x.device)
            for part, wanted in zip(x.to(dtype).split(rows), targets.split(rows)):
                logits = (part @ w.T).float()  # (rows, C) @ (C, V) -> (rows, V)
                scored, norm = wanted != -100, logits.logsumexp(1)
                nats.append(((norm - logits.gather(1, wanted.clamp(min=0)[:, None])[:, 0]) * scored).sum())
                d = ((logits - norm[:, None]).exp() - (columns == wanted[:, None]).float()) * scored[:, None]
                d = d.to(dtype)
                dx.append(d @ w)                 # (rows, V) @ (V, C) -> (rows, C)
                dw += (d.T @ part).float()       # (V, rows) @ (rows, C) -> (V, C)
        ctx.save_for_backward(torch.cat(dx), dw, count)
        ctx.dtypes = x.dtype, weight.dtype
        return torch.stack(nats).sum() / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, count = ctx.saved_tensors
        scale = grad / count
        return (dx * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), None, None, None


# ---- attention on CPUs -------------------------------------------------------------------------------------------


def cpu_attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
    """As F.scaled_dot_product_attention, but training in half precision at short lengths takes the plain products.

    torch's fused kernel is slow backward there. Compiled causal code then goes in four parts, each a quarter of the
    queries with the keys they may see: three eighths of the products are left out, and a part stays in the
    processor's cache.
    """
    T, S = q.size(-2), k.size(-2)
    four = is_causal and torch.compiler.is_compiling() and 128 <= T == S
    if not torch.is_grad_enabled() or v.dtype == torch.float32 or S > (1024 if four else 512):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    return plain_attention(q, k, v, attn_mask, is_causal, enable_gqa, parts=4 if four else 1)[0]


def plain_attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False, parts=1):
    """softmax(q kᵀ / √D) v, step by step: the result (B, H, T, D), and the weights (B, H, T, S), of the last part.

    q: (B, H, T, D); k, v: (B, K, S, D); attn_mask: bool, broadcast to (B, H, T, S), True = may be looked at.
    """
    if enable_gqa:  # (B, K, S, D) -> (B, H, S, D)
        k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
    # Cut once and joined again, for the gradient of overlapping slices is a sum of padded ones, slower (LOG.md).
    queries, keys, values = (t.chunk(parts, dim=-2) for t in (q, k, v))  # each (B, H, T / parts or S / parts, D)
    mixed, weights = [], None
    for i, query in enumerate(queries):
        key, value = (torch.cat(t[:i + 1], dim=-2) if i else t[0] for t in (keys, values))  # what they may see
        scores = (query * (1 / math.sqrt(q.size(-1)))) @ key.transpose(-2, -1)  # (B, H, T / parts, seen)
        if is_causal:
            at = torch.arange(key.size(-2), dtype=torch.float32, device=q.device)  # floats: these can be vectorised
            scores = scores.masked_fill(at > at[-query.size(-2):, None], -torch.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask[..., :key.size(-2)], -torch.inf)
        weights = scores.softmax(dim=-1)
        mixed.append(weights @ value)  # (B, H, T / parts, D)
    return (torch.cat(mixed, dim=-2) if parts > 1 else mixed[0]), weights  # (B, H, T, D)


# ---- fp32 products on CPUs that are not Intel's ------------------------------------------------------------------

# On processors without bf16 the large fp32 products are most of a step. Measured on an AMD, MKL, which torch takes,
# needs an eighth longer than oneDNN for the forward product and for the gradient of the input, and a little less for
# the gradient of the weight, which stays with it. On an Intel, MKL's own, it is the faster one.
BOTH = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
ONEDNN_IS_FASTER = BOTH and not torch.cpu.get_capabilities().get("cpu_name", "").startswith("Intel")
LARGE = 2**27  # multiplications; below, starting an operator written in Python costs more than it saves


@library.custom_op("nanoft::product", mutates_args=())  # torch.compile takes such an operator as it is
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x weightᵀ by oneDNN, fp32 on the CPU. x: (..., K), weight: (N, K) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@product.register_fake
def _(x, weight):  # the shape alone, for the compiler
    return x.new_empty(*x.shape[:-1], weight.size(0))


def product_backward(ctx, dy):
    """dy: (..., N) -> the gradients of x (..., K) and of weight (N, K)."""
    x, weight = ctx.saved_tensors
    dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
    dw = dy.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None  # (N, rows) @ (rows, K)
    return dx, dw


product.register_autograd(product_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class CPULinear(nn.Linear):
    """nn.Linear whose large fp32 products in training are oneDNN's. Evaluation stays with torch."""

    def forward(self, x):
        """x: (..., in_features) -> (..., out_features)."""
        if not (x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
                and x.requires_grad and torch.is_grad_enabled() and x.numel() * self.out_features >= LARGE):
            return super().forward(x)
        y = product(x, self.weight)
        return y if self.bias is None else y + self.bias


# ---- one token at a time -----------------------------------------------------------------------------------------


class OneRowLinear(nn.Linear):
    """nn.Linear that takes the matrix-vector product for a single row: in bf16 half as fast again as the matrix one."""

    def forward(self, x):
        """x: (..., in_features) -> (..., out_features)."""
        if x.numel() != self.in_features:
            return super().forward(x)
        y = self.weight.mv(x.view(-1)) if self.bias is None else self.bias.addmv(self.weight, x.view(-1))
        return y.view(*x.shape[:-1], self.out_features)


def join_projections(model: nn.Module) -> None:
    """Make queries, keys and values of each block one product, in place: each costs some 40 us beside its reading."""
    for attn in [module for module in model.modules() if isinstance(module, Attention)]:
        parts: list = [attn.q, attn.k, attn.v]
        if all(type(part) is nn.Linear for part in parts):  # not with adapters
            sizes = [part.out_features for part in parts]
            attn.q = nn.Linear(attn.q.in_features, sum(sizes), attn.q.bias is not None, device="meta")
            for name, _ in parts[0].named_parameters():  # weights (H * D + 2 * K * D, C) and perhaps biases
                setattr(attn.q, name, nn.Parameter(torch.cat([getattr(part, name).data for part in parts])))
            del attn.k, attn.v
            attn.project = partial(projected, attn, sizes)  # type: ignore[method-assign]


def projected(attn: Attention, sizes: list[int], x: torch.Tensor):
    """Attention.project where attn.q holds all three matrices, of so many rows each."""
    return attn.q(x).split(sizes, dim=-1)


def tune_generation(model: nn.Module, dtype: torch.dtype) -> None:
    """Prepare a model in place for generation: its weights in dtype, on CPUs laid out for products with single rows.

    Reading the weights is most of a token's cost, so they are halved where bf16 is fast.
    """
    join_projections(model)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            p.data = p.data.to(dtype)
            if type(module) is nn.Linear and name == "weight" and p.device.type == "cpu" and dtype == torch.float32:
                p.data = p.data.t().contiguous().t()  # the same matrix, its columns together in memory
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and dtype != torch.float32:
            module.__class__ = OneRowLinear


# ---- torch.compile -----------------------------------------------------------------------------------------------


def wants_compile(minutes: float, device: torch.device) -> bool:
    """Whether a run of so many minutes is compiled by itself.

    It costs about half a minute, and saves more than half of a step on a GPU, a quarter or so on a CPU.
    """
    return minutes > {"cuda": 3, "cpu": 5}.get(device.type, math.inf)


def compiled(net, try_it, choice, dtype, length, say):
    """The compiled module, tried once by try_it(module); with choice=auto the module itself where that fails.

    dtype: of its products; length: of its sequences in tokens; say(line): prints. Raises UserError with choice=true.
    """
    began = time.monotonic()
    if next(net.parameters()).device.type == "cpu":
        # What is cheap to compute is computed again backward and not kept: a seventh less memory in the same time, for
        # a processor waits for its memory more than for sums. Below 0.8 a fused attention would be made again, too.
        import torch._functorch.config  # torch itself imports it late

        fused = dtype == torch.float32 or length > 512
        torch._functorch.config.activation_memory_budget = 0.8 if fused else 0.6
    try:
        fast = torch.compile(net, dynamic=False)
        try_it(fast)
        say(f"compiled in {time.monotonic() - began:.0f} s")
        return fast
    except Exception as error:  # no C++ compiler, an unsupported system: whatever the compiler raises
        reason = str(error).strip().partition("\n")[0][:150]
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise UserError(f"no memory left for a micro-batch ({reason}); lower --micro_batch_size, or the model"
                            ) from None
        if choice == "true":
            raise UserError(f"compile=true, but it fails here ({reason}); use --compile=false") from None
        say(f"compile=auto: eager, because compiling fails here ({reason})")
        return net


def checkpoint_activations(model) -> None:
    """Keep the input of each block alone, and compute the block again in the backward pass (arXiv:1604.06174)."""
    for block in model.trunk.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


# ---- what a device can do, and its memory ------------------------------------------------------------------------

# 10^12 operations a second in dense bf16 (V100, T4: fp16) products, from the makers' data sheets
CARDS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165,
         "L4": 121, "RTX 3090": 71, "V100": 125, "T4": 65}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The most operations a second in matrix products: of a known card by its data sheet, else measured here."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for card, teraflops in CARDS.items():
            if re.search(rf"\b{card}\b", name):
                return teraflops * 1e12
    n, seconds = 1024 if device.type == "cpu" else 4096, math.inf
    a = torch.randn(n, n, device=device).to(dtype)
    for _ in range(5):  # the first warms up
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * n**3 / seconds


def peak_memory(device: torch.device) -> float:
    """The most memory held so far in GB (2^30 bytes): the GPU's where there is one, else that of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return math.nan  # Python does not tell there
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
