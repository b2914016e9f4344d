"""Sentence vectors of an encoder (Reimers and Gurevych 2019, arXiv:1908.10084), as sentence-transformers makes them.

A text's vector is the mean of the last hidden states of all its tokens, <|cls|> and <|sep|> included, of
length 1. So the cosine of two texts is the product of their vectors.
"""

import numpy as np
import torch
import torch.nn.functional as F

from nanoft import UserError, checkpoint, encode, metrics, parallel, predict
from nanoft.evaluate import tensors
from nanoft.heads import pooled
from nanoft.model import Transformer, saved_config


def load_trunk(state, path, device):
    """The trunk of an encoder's checkpoint, whatever its heads, ready for use. Raises UserError for a GPT."""
    cfg = saved_config(state["model_config"], path)
    if cfg.causal:
        raise UserError(f"{path} is a GPT, whose tokens have not seen the whole text; give an encoder")
    with torch.device("meta"):  # no memory but that of the weights
        trunk = Transformer(cfg)
    weights = {name.removeprefix("trunk."): p for name, p in state["model"].items() if name.startswith("trunk.")}
    checkpoint.load_weights(trunk, weights, path)
    return trunk.to(device).eval()


@torch.no_grad()
def vectors(trunk, texts, tokenizer, device, dtype):
    """The vectors of N texts, float32 (N, C), and how many tokens each has, (N,).

    Of a text with more than block_size tokens the beginning counts.
    """
    task = {"kind": "classify", "max_length": trunk.cfg.block_size, "long_text": "head"}
    pieces = encode.encode([{"text": text} for text in texts], task, tokenizer)
    out = np.empty((len(texts), trunk.cfg.n_embd), dtype=np.float32)
    for index in predict.by_tokens(pieces.lengths):
        batch = tensors(encode.batch(pieces, index, task, tokenizer), device)
        mask = batch.get("mask")  # (B, T)
        with parallel.autocast(device, dtype):
            x = trunk(batch["ids"], mask=None if mask is None else mask[:, None, None, :])
        out[index] = F.normalize(pooled(x.float(), mask, "mean"), dim=-1).cpu().numpy()  # (B, T, C) -> (B, C)
    return out, pieces.full


def similarity_table(texts, found):
    """The cosines of all pairs of texts as lines for a person. found: (N, C)."""
    rows = [("", *(str(i) for i in range(1, len(texts) + 1)))]
    rows += [(f"{i} {text:.50}", *(f"{x:.3f}" for x in row))
             for i, (text, row) in enumerate(zip(texts, (found @ found.T).tolist()), 1)]
    return metrics.aligned(rows)
