"""Low-rank adapters (LoRA, arXiv:2106.09685): a matrix W stays frozen and learns an addition B A of low rank.

A (rank, in) starts random and B (out, rank) at zero, so that the model starts unchanged. Merged into W, the adapters
cost nothing at inference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = 16.0  # the weight of an adapter is alpha / rank


class LoRALinear(nn.Linear):
    """A linear layer with its frozen weight, under the same name, and an adapter: y = W x + alpha / rank * B A x."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_a = nn.Parameter(torch.randn(rank, linear.in_features) * linear.in_features ** -0.5)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add(trunk, rank: int, alpha: float = ALPHA) -> None:
    """Put an adapter on every matrix of the blocks: q, k, v, proj of the attention, fc, proj of the feed-forward."""
    for block in trunk.blocks:
        for part in (block.attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, LoRALinear(layer, rank, alpha))


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights as a model without adapters has them, W + alpha / rank * B A; of any model, with adapters or not."""
    state = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            with torch.no_grad():
                state[f"{name}.weight"] = layer.weight + layer.scale * layer.lora_b @ layer.lora_a
    return state
