"""Sentence vectors of an encoder (Reimers and Gurevych 2019, arXiv:1908.10084), as sentence-transformers makes them.

A text's vector is the mean of the last hidden states of all its tokens, <|cls|> and <|sep|> included, of
length 1. So the cosine of two texts is the product of their vectors.
"""

import numpy as np
import torch
import torch.nn.functional as F

from nanoft import UserError, checkpoint, distributed, files
from nanoft.model import ModelConfig, Transformer
from nanoft.tasks import collate, features, predict
from nanoft.tasks.heads import pooled


def load_trunk(state, path, device):
    """The trunk of an encoder's checkpoint, whatever its heads, ready for use. Raises UserError for a GPT."""
    if ModelConfig.from_saved(state["model_config"], path).causal:
        raise UserError(f"{path} is a GPT, whose tokens have not seen the whole text; give an encoder")
    return checkpoint.load_model(state, path, Transformer, device, prefix="trunk.")


@torch.no_grad()
def vectors(trunk, texts, tokenizer, device, dtype):
    """The vectors of N texts, float32 (N, C), and how many tokens each has, (N,).

    Of a text with more than block_size tokens the beginning counts.
    """
    task = {"kind": "classify", "max_length": trunk.cfg.block_size, "long_text": "head"}
    pieces = features.encode([{"text": text} for text in texts], task, tokenizer)
    out = np.empty((len(texts), trunk.cfg.n_embd), dtype=np.float32)
    for index in predict.by_tokens(pieces.lengths):
        batch = distributed.to_device(collate.batch(pieces, index, task, tokenizer), device)
        mask = batch.get("mask")  # (B, T)
        with distributed.autocast(device, dtype):
            x = trunk(batch["ids"], mask=None if mask is None else mask[:, None, None, :])
        out[index] = F.normalize(pooled(x.float(), mask, "mean"), dim=-1).cpu().numpy()  # (B, T, C) -> (B, C)
    return out, pieces.n_tokens


def similarity_table(texts, found):
    """The cosines of all pairs of texts as lines for a person. found: (N, C)."""
    rows = [("", *(str(i) for i in range(1, len(texts) + 1)))]
    rows += [(f"{i} {text:.50}", *(f"{x:.3f}" for x in row))
             for i, (text, row) in enumerate(zip(texts, (found @ found.T).tolist()), 1)]
    return files.aligned(rows)
