"""An encoder with its head as ONNX, for onnxruntime and the like. Wants the extra `onnx`: pip install onnx onnxscript

    inputs   input_ids, attention_mask (1 at a token, 0 at padding, which is on the right), and where the model reads
             token types token_type_ids: 0 in the first text, 1 in the second, and of a task with match_types or a
             linear model 2 more at tokens that both have (collate.token_types); each int64 (batch, length)
    output   logits: (batch, labels); for tag (batch, length, labels), answer (batch, length, 2), masked words
             (batch, length, vocabulary); for regress (batch, 1), in the labels' units
    metadata labels, a list as JSON, and longest, the largest length
"""

import importlib
import json
import logging
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoft import UserError, checkpoint
from nanoft.model import make_model
from nanoft.tasks.features import TWO_TEXTS
from nanoft.tasks.heads import TaskModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Exported(nn.Module):
    """What becomes ONNX: a TaskModel, or a BERT with its head for masked words."""

    def __init__(self, model):
        super().__init__()
        self.model, self.task = model.eval(), getattr(model, "task", None)
        for block in model.trunk.blocks:
            block.attn.attend = attend

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        mask = attention_mask.bool()
        if self.task is None:
            x = self.model.hidden(input_ids, token_type_ids, mask)
            return self.model.word_logits(x)[..., :self.model.cfg.vocab_size]
        y = self.model.logits(input_ids, token_type_ids, mask, allowed=mask)
        return y * self.task["deviation"] + self.task["mean"] if self.task["kind"] == "regress" else y


def attend(q, k, v, is_causal=False, **options):
    """The attention of every length: of a single token, too, whose causal mask hides nothing."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal is not False, **options)


def converted(state: dict) -> tuple[bytes, list[str]]:
    """(an ONNX file's bytes, its inputs' names). Raises UserError if the model writes text or the extra is missing."""
    try:
        importlib.import_module("onnxscript")
    except ImportError:
        raise UserError("--export=FILE.onnx wants two packages more: pip install onnx onnxscript") from None
    task = state.get("task")
    if task["kind"] in ("generate", "image") if task else state["model_config"].get("causal", True):
        raise UserError("ONNX is for encoders and classifiers of text; a model that writes text goes out as FILE.gguf")
    model = checkpoint.load_model(state, "the model", partial(TaskModel, task=task) if task else make_model)
    names = INPUTS[:2 + bool(model.cfg.n_types or task and task.get("linear") and task["kind"] in TWO_TEXTS)]
    # one tensor for each input: the converter would take the same tensor twice for one input
    example = tuple(torch.ones(2, min(9, model.cfg.block_size), dtype=torch.long) for _ in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():  # on the converter's own insides
        warnings.simplefilter("ignore")
        program = torch.onnx.export(Exported(model), example, input_names=names, output_names=["logits"], verbose=False,
                                    dynamic_shapes=({0: "batch", 1: "length"},) * len(names), dynamo=True)
    assert program is not None  # with dynamo
    known = {name: json.dumps(task[name]) for name in ("labels", "thresholds", "transitions") if task and name in task}
    program.model.metadata_props.update({"labels": "[]", "longest": str(model.cfg.block_size)} | known)
    return program.model_proto.SerializeToString(), list(names)
