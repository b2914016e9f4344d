"""Weights as 8-bit integers, a scale for each row: a quarter of the file, and faster products on CPUs.

    python -m nanoft quantize out/wikitext out/wikitext_int8

The file's weights become floats again when it is read, so everything takes it. `sample.py --dtype=int8` also computes
with integers, by torch's own kernels, whether the file is quantized or not.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nanoft import UserError, checkpoint, config, files, kernels

HAS_KERNELS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
ROWS = 512  # measured: as fast as 1,024; 256, 2,048 and all of 8,192 rows at once are slower


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 tensor (N, K) and the scales (N,) whose product comes closest to weight: floats (N, K)."""
    scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """nn.Linear with rounded weights. What comes in is rounded, too, each row for itself: none depends on another."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        integers, self.scale = rounded(linear.weight)
        self.packed, self.bias = torch.ops.onednn.qlinear_prepack(integers, None), linear.bias
        self.zeros = torch.zeros(len(integers), dtype=torch.long)  # the integers of 0.0

    def product(self, integers: Tensor, size: float, bias: Tensor | None = None) -> Tensor:
        """size * integers (m, K) times the weights, plus bias -> (m, N)."""
        if len(integers) == 1:  # for which oneDNN has only its slow reference code where K is 256, say
            return self.product(integers.repeat(2, 1), size, bias)[:1]
        return torch.ops.onednn.qlinear_pointwise(integers, size, 0, self.packed, self.scale, self.zeros, bias, 1.0, 0,
                                                  torch.float32, "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 (..., K) -> (..., N). A few rows at a time, which stay in the processor's cache."""
        if x.numel() == x.size(-1):  # one row, a token's: as few operators as can be
            size = x.abs().max().clamp_(min=1e-12).item()
            integers = (x * (127 / size)).round_().to(torch.int8).view(1, -1)  # (1, K)
            return self.product(integers, size / 127, self.bias).view(*x.shape[:-1], -1)
        rows = x.flatten(0, -2)  # (M, K)
        y = x.new_empty(len(rows), len(self.scale))
        for part, out in zip(rows.split(ROWS), y.split(ROWS)):
            sizes = part.abs().amax(-1, keepdim=True).clamp_(min=1e-12)  # (m, 1)
            integers = (part * (127 / sizes)).round_().to(torch.int8)
            product = self.product(integers, 1 / 127)  # (m, N)
            if self.bias is None:
                torch.mul(product, sizes, out=out)
            else:
                torch.addcmul(self.bias, product, sizes, out=out)
        return y.view(*x.shape[:-1], -1)


def compute_in_int8(model) -> None:
    """Make the products of a model's trunk and of a GPT's head int8, in place. Raises UserError without kernels."""
    if next(model.parameters()).device.type != "cpu" or not HAS_KERNELS:
        raise UserError("dtype=int8 is for CPUs, with a torch that has oneDNN; use --dtype=auto")
    model.float()
    kernels.join_projections(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and (name.startswith("trunk.") or name == "head" and model.trunk.cfg.causal):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Int8Linear(module))


# ---- the file ----------------------------------------------------------------------------------------------------


def quantized(state: dict) -> dict:
    """A checkpoint's dictionary with its matrices rounded, their `scales` beside them."""
    known: dict = {}  # a tied head is the same tensor, and stays it
    for p in state["model"].values():
        if p.dim() == 2 and p.is_floating_point() and p.data_ptr() not in known:
            known[p.data_ptr()] = rounded(p)
    pairs = {name: known.get(p.data_ptr(), (p, None)) for name, p in state["model"].items()}
    return state | {"model": {name: p for name, (p, _) in pairs.items()},
                    "scales": {name: scale for name, (_, scale) in pairs.items() if scale is not None}}


def rewrite(words: list[str], change: Callable[[dict], dict]) -> None:
    """Write the run words[0], changed and without what training needs, into the folder words[1]. Raises UserError."""
    if len(words) != 2:
        raise UserError("give a run and a new folder: python -m nanoft quantize out/wikitext out/wikitext_int8")
    source, out = checkpoint.find(words[0]), Path(words[1])
    if source is None:
        raise UserError(f"{words[0]}: no checkpoint there; give a run folder or a checkpoint file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; give a new folder")
    state = checkpoint.load(source)
    if "rank" in state:
        raise UserError(f"{source} is an adapter, not a whole model; give the best.pt beside it, which has it merged")
    state = change({name: x for name, x in state.items() if name not in ("optimizer", "scaler", "averaged")})
    out.mkdir(parents=True, exist_ok=True)
    if (source.parent / "tokenizer.json").exists():
        shutil.copyfile(source.parent / "tokenizer.json", out / "tokenizer.json")
    if "config" in state:
        files.write_json(out / "config.json", state["config"])
    checkpoint.save(out / "best.pt", state)
    floats = sum(4 * p.numel() for p in {p.data_ptr(): p for p in state["model"].values()}.values())
    print(f"{out}: best.pt, {(out / 'best.pt').stat().st_size / 1e6:,.1f} MB; as float32 {floats / 1e6:,.1f} MB")


@dataclass
class Options:
    pass


def main():
    rewrite(config.load_tool(Options, "quantize RUN OUT")[1], quantized)
