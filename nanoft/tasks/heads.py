"""Task heads on a pretrained trunk: classes, numbers, labels of words, answers in a text, responses to a prompt.

The trunk keeps the names that its weights have in a GPT or BERT checkpoint; what is new is `task_head`, one matrix
that begins at zero, so the first loss says that every class is as likely. A task is a dictionary (examples.py): kind,
labels, multi_label, and what fine-tuning adds: pool, label_smoothing, head_dropout.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from nanoft.model import Transformer, make_head, masked_rows


class TaskModel(nn.Module):
    def __init__(self, cfg, task):
        """cfg: the ModelConfig of the pretrained model; task: a dictionary as above."""
        super().__init__()
        self.cfg, self.task = cfg, task
        self.trunk = Transformer(cfg)
        self.drop = nn.Dropout(task["head_dropout"])
        self.pooler = nn.Linear(cfg.n_embd, cfg.n_embd) if task["pool"] == "cls" and cfg.n_types else None
        if task["kind"] == "generate":
            self.head = make_head(cfg, self.trunk)  # GPT's own
        else:
            self.task_head = nn.Linear(cfg.n_embd, n_outputs(task))
            nn.init.zeros_(self.task_head.weight)
            nn.init.zeros_(self.task_head.bias)

    def hidden(self, ids, types=None, mask=None):
        """One vector a token: ids (B, T) -> (B, T, C). mask: bool (B, T), False at padding; None: there is none.

        Padding is on the right, which a causal model never sees.
        """
        mask = None if mask is None or self.cfg.causal else mask[:, None, None, :]
        return self.drop(self.trunk(ids, types, mask))

    def logits(self, ids, types=None, mask=None, allowed=None):
        """(B, K) for a text, (B, T, K) for its words; for answers (B, T, 2), start and end, -inf where not `allowed`.

        Not for generate, whose logits are many: see nats.
        """
        x = self.hidden(ids, types, mask)
        kind = self.task["kind"]
        if kind not in ("tag", "answer"):
            x = pooled(x, mask, self.task["pool"])  # (B, T, C) -> (B, C)
            if self.pooler is not None:
                x = torch.tanh(self.pooler(x))
        y = self.task_head(x).float()
        return y.masked_fill(~allowed[..., None], -torch.inf) if kind == "answer" else y

    def nats(self, ids, targets):
        """The cross-entropy of each target token, 0 where there is none (-100): (B, T) -> (B, T)."""
        x = self.hidden(ids)
        rows, wanted = masked_rows(x.flatten(0, 1), targets.flatten())  # the head at the responses only
        nats = torch.zeros(targets.numel(), device=ids.device)
        nats[targets.flatten() != -100] = F.cross_entropy(
            self.head(rows).float(), wanted, reduction="none", label_smoothing=self.smoothing())
        return nats.view(targets.shape)

    def smoothing(self):
        return self.task["label_smoothing"] if self.training else 0.0

    def forward(self, ids, targets, weights, types=None, mask=None, allowed=None):
        """The sum of the losses times their weights, which has the shape of the targets.

        targets: class numbers (B,) or, for tag and generate, (B, T) with -100 where nothing is asked; numbers (B,) for
        regress; 0 or 1 (B, K) for multi-label, with weights (B,); places of start and end (B, 2) with weights (B,).
        """
        kind, task = self.task["kind"], self.task
        if kind == "generate":
            return (self.nats(ids, targets) * weights).sum()
        y = self.logits(ids, types, mask, allowed)
        if kind == "regress":
            losses = (y[:, 0] - targets).square()
        elif task.get("multi_label"):
            smooth = targets + self.smoothing() * (0.5 - targets)
            losses = F.binary_cross_entropy_with_logits(y, smooth, reduction="none").mean(1)
        elif kind == "answer":  # never smoothed: most of its classes are not allowed
            losses = F.cross_entropy(y, targets, reduction="none").mean(1)  # (B, T, 2), (B, 2) -> (B, 2) -> (B,)
        else:
            losses = F.cross_entropy(y.flatten(0, -2), targets.flatten(), reduction="none",
                                     label_smoothing=self.smoothing()).view(targets.shape)
        return (losses * weights).sum()


def n_outputs(task):
    return {"regress": 1, "answer": 2}.get(task["kind"]) or len(task["labels"])


def pooled(x, mask, pool):
    """One vector a text: the mean of its tokens, its first (cls) or its last. (B, T, C) -> (B, C)"""
    if pool == "cls":
        return x[:, 0]
    if pool == "last":
        return x[:, -1] if mask is None else x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
    return x.mean(1) if mask is None else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
