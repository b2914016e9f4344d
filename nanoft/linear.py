"""nn.Linear whose large fp32 products in training are oneDNN's, where torch itself would take MKL's.

On processors without bf16 these products are most of a step. Measured on an AMD (LOG.md), MKL takes an eighth longer
than oneDNN for the forward product and for the gradient of the input, and a little less for the gradient of the
weight, which stays with it. On an Intel, MKL's own, it is the faster one, and nothing changes. An operator of its own,
because torch.compile takes such a one as it is.
"""

import torch
from torch import library, nn

BOTH = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # asked once: compiled code cannot
FASTER = BOTH and not torch.cpu.get_capabilities().get("cpu_name", "").startswith("Intel")
LARGE = 2**27  # multiplications; below, starting an operator written in Python costs more than it saves


@library.custom_op("nanoft::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x weightᵀ by oneDNN, fp32 on the CPU. x: (..., K), weight: (N, K) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@product.register_fake
def _(x, weight):  # the shape alone, for the compiler
    return x.new_empty(*x.shape[:-1], weight.size(0))


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, dy):
    """dy: (..., N) -> the gradients of x (..., K) and of weight (N, K)."""
    x, weight = ctx.saved_tensors
    dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
    dw = dy.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None  # (N, rows) @ (rows, K)
    return dx, dw


product.register_autograd(backward, setup_context=keep)


class Linear(nn.Linear):
    def forward(self, x):
        """x: (..., in_features) -> (..., out_features). Evaluation stays with torch: only training was measured."""
        if not (FASTER and x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
                and x.requires_grad and torch.is_grad_enabled() and x.numel() * self.out_features >= LARGE):
            return super().forward(x)
        y = product(x, self.weight)
        return y if self.bias is None else y + self.bias
