"""Leave out what matters least: whole heads, which makes a model smaller and faster, and single weights.

    python -m nanoft prune out/sst2 out/sst2_pruned --heads=0.25
    python -m nanoft prune out/wikitext out/wikitext_half --weights=0.5

Training goes on from there by --init_from, and wins back a part of what was lost. Weights that are left out
(arXiv:1506.02626) are zeros: a program that packs files makes them small, but here they take as much memory and time
as other numbers, and training fills them again.
"""

from dataclasses import dataclass

import torch

from nanoft import UserError, config
from nanoft.model import ModelConfig
from nanoft.quantize import rewrite


@dataclass
class Options:
    heads: float = 0.0    # fraction of the heads that is left out of each block
    weights: float = 0.0  # fraction of the weights that becomes zero, the smallest of each matrix of the blocks


def check(options: Options) -> list[str]:
    return config.fraction(options, "heads", "weights", one=False) + (
        [] if options.heads or options.weights else ["nothing to leave out; give --heads=0.25 or --weights=0.5, say"])


def pruned(state: dict, options: Options) -> dict:
    """A checkpoint's dictionary with these parts left out. Raises UserError where no head would go, or all."""
    if not state["model_config"]["n_layer"]:
        raise UserError("this model has no blocks, so there is nothing to leave out")
    if options.heads:
        prune_heads(state, options.heads)
    for name, p in state["model"].items():
        n = round(options.weights * p.numel())
        if n and name.startswith("trunk.blocks.") and p.dim() == 2:
            p[p.abs() <= p.abs().flatten().kthvalue(n).values] = 0
    return state


def prune_heads(state: dict, fraction: float) -> None:
    """Leave heads out of a checkpoint's dictionary, in place; where several share a key, all of them or none.

    A head matters by what it can write: the norm of its output matrix times its value matrix. Each block loses as many.
    (The gradient of a mask, arXiv:1905.10650, needs rows; it chose better on SST-2, and no better on WikiText: LOG.md.)
    """
    cfg, model = ModelConfig(**state["model_config"]), state["model"]
    K = cfg.n_kv_head or cfg.n_head  # groups of heads that share keys and values
    left = K - round(fraction * K)
    if not 1 <= left < K:
        raise UserError(f"heads={fraction} leaves {left} of the {K} (groups of) heads of each block; choose another")
    for attn in (f"trunk.blocks.{i}.attn." for i in range(cfg.n_layer)):
        value = model[f"{attn}v.weight"].unflatten(0, (K, -1))                      # (K, D, C)
        output = model[f"{attn}proj.weight"].unflatten(1, (K, -1, value.size(1)))   # (C, K, H / K, D)
        written = torch.einsum("ckhd,kde->kche", output, value)                     # (K, C, H / K, C)
        kept = written.flatten(1).norm(dim=1).topk(left).indices                    # (left,)
        model[f"{attn}proj.weight"] = output[:, kept].flatten(1)
        for name in (f"{attn}{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")):
            if name in model:
                model[name] = model[name].unflatten(0, (K, -1))[kept].flatten(0, 1)
    shape = {"n_head": cfg.n_head // K * left, "n_kv_head": left * (cfg.n_kv_head > 0),
             "head_dim": cfg.head_dim or cfg.n_embd // cfg.n_head}
    state["model_config"] |= shape
    if "task" not in state:  # train.py describes a model by its options
        state["config"] = state.get("config", {}) | shape


def main():
    options, words = config.load_tool(Options, "prune RUN OUT --heads=0.25", check=check)
    rewrite(words, lambda state: pruned(state, options))
