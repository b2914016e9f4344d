"""Task heads on a pretrained trunk: classes, numbers, a label for each word, answers in a text, responses to a prompt.

The trunk keeps the names that its weights have in a GPT or BERT checkpoint; what is new is `task_head`, one matrix
that starts at zero, so that at first all classes are equally likely. A task is a dictionary (examples.py): kind,
labels, multi_label, and what fine-tuning adds: pool, head_dropout, linear, linear_share.

Shapes: B features, T tokens, C = n_embd, K outputs of the head.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoft.model import ModelConfig, Transformer, make_head, masked_rows
from nanoft.tasks import images
from nanoft.tasks.features import WHOLE_TEXT
from nanoft.tasks.linear import NGramLinear, n_outputs

# the kinds whose head reads one vector a text, or picture; the other heads read every token's
ONE_VECTOR = (*WHOLE_TEXT, "image")
TEMPERATURE = 2.0  # of distillation


class TaskModel(nn.Module):
    def __init__(self, cfg: ModelConfig, task: dict):
        """cfg: of the pretrained model; task: a dictionary as above."""
        super().__init__()
        self.cfg, self.task = cfg, task
        self.trunk = Transformer(cfg)
        if task["kind"] == "image":
            images.put_patches(self.trunk, task["picture"])
        self.drop = nn.Dropout(task["head_dropout"])
        has_pooler = task["pool"] == "cls" and cfg.n_types and task["kind"] in ONE_VECTOR  # as BERT's, for pairs
        self.pooler = nn.Linear(cfg.n_embd, cfg.n_embd) if has_pooler else None
        if task["kind"] == "generate":
            self.head = make_head(cfg, self.trunk)  # GPT's own
        else:
            self.task_head = nn.Linear(cfg.n_embd, n_outputs(task))
            nn.init.zeros_(self.task_head.weight)
            nn.init.zeros_(self.task_head.bias)
        # a linear model of n-grams, fitted before training; in evaluation its logits are averaged with the head's
        self.ngrams = NGramLinear(task, cfg.vocab_size * (task["kind"] == "tag")) if task.get("linear") else None

    def hidden(self, ids: Tensor, types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """One vector a token: ids (B, T), or pixels, -> (B, T, C). mask: bool (B, T), False at padding; None: none.

        Padding is on the right, where a causal model does not look.
        """
        mask = None if mask is None or self.cfg.causal else mask[:, None, None, :]  # (B, T) -> (B, 1, 1, T)
        if types is not None and self.cfg.n_types:  # a trunk of two types takes tokens of both texts as any other
            types = types % self.cfg.n_types
        return self.drop(self.trunk(ids, types, mask))

    @contextmanager
    def misled(self, size: float):
        """Within, the table of token embeddings is moved along its gradient, by a step of this norm: the loss rises.

        Training with and without it is adversarial training, FGM (arXiv:1605.07725: there each text has its own noise).
        """
        weight = self.trunk.tokens.weight
        before, gradient = weight.detach().clone(), weight.grad
        assert gradient is not None
        weight.data.add_(gradient * (size / (gradient.norm() + 1e-12)))
        yield
        weight.data.copy_(before)

    def logits(self, ids: Tensor, types=None, mask=None, allowed=None) -> Tensor:
        """(B, K) for a text, (B, T, K) for its words; for answers (B, T, 2), start and end, -inf where not `allowed`.

        Not for generate, whose logits would fill the memory: see nats.
        """
        x = self.hidden(ids, types, mask)
        if self.task["kind"] in ONE_VECTOR:
            x = pooled(x, mask, self.task["pool"])  # (B, T, C) -> (B, C)
            if self.pooler is not None:
                x = torch.tanh(self.pooler(x))
        y = self.task_head(x).float()
        if self.ngrams is not None and not self.training and self.task.get("linear_share") != 0:
            y = mixed(y, self.ngrams(ids, mask, types), self.task)
        return y.masked_fill(~allowed[..., None], -torch.inf) if self.task["kind"] == "answer" else y

    def nats(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each target token, 0 where the target is -100: (B, T) -> (B, T)."""
        x = self.hidden(ids)
        rows, labels = masked_rows(x.flatten(0, 1), targets.flatten())  # (B * T, C) -> (responses' tokens, C)
        nats = torch.zeros(targets.numel(), device=ids.device)
        nats[targets.flatten() != -100] = F.cross_entropy(self.head(rows).float(), labels, reduction="none")
        return nats.view(targets.shape)  # (B * T,) -> (B, T)

    def forward(self, ids, targets, weights, types=None, mask=None, allowed=None, teacher=None) -> Tensor:
        """The sum of the losses times their weights, which have the shape of the losses.

        targets: class numbers (B,), of mixed pictures shares (B, K); for tag and generate (B, T), -100 where there is
        no target; for regress numbers (B,); for multi-label 0 or 1 (B, K), weights (B,); for answer start and end
        (B, 2), weights (B,). teacher: another model's outputs (B, K); half of the loss is the distance to them.
        """
        kind = self.task["kind"]
        if kind == "generate":
            return (self.nats(ids, targets) * weights).sum()
        y = self.logits(ids, types, mask, allowed)
        if kind == "regress":
            losses = (y[:, 0] - targets).square()
        elif self.task.get("multi_label"):
            losses = F.binary_cross_entropy_with_logits(y, targets, reduction="none").mean(1)  # (B, K) -> (B,)
        elif kind == "image":
            losses = F.cross_entropy(y, targets, reduction="none")  # (B,), or shares of the classes (B, K) -> (B,)
        elif kind == "answer":
            losses = F.cross_entropy(y, targets, reduction="none").mean(1)  # (B, T, 2), (B, 2) -> (B, 2) -> (B,)
        else:
            losses = F.cross_entropy(y.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
        if teacher is not None:
            losses = (losses + distance(y, teacher, kind)) / 2
        return (losses * weights).sum()


def distance(y: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How far outputs are from a teacher's, both (B, K) -> (B,): knowledge distillation (arXiv:1503.02531).

    Its temperature, and the half that the labels keep of the loss, are those of its speech recognizer (section 4.1).
    """
    if kind == "regress":
        return (y - teacher)[:, 0].square()
    soft = (teacher / TEMPERATURE).softmax(1)  # so the unlikely classes count, too; its square evens out the gradients
    return TEMPERATURE ** 2 * F.cross_entropy(y / TEMPERATURE, soft, reduction="none")


def mixed(y, linear, task: dict):
    """The weighted mean of the head's logits y and those of the linear model, by the task's linear_share."""
    share = task.get("linear_share", 1.0)
    return (1 - share) * y + share * linear


def pooled(x: Tensor, mask: Tensor | None, pool: str) -> Tensor:
    """One vector a text: the mean of its tokens', its first (cls) or its last. x: (B, T, C), mask: (B, T) -> (B, C)."""
    if pool == "cls":
        return x[:, 0]
    if pool == "last":
        return x[:, -1] if mask is None else x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
    return x.mean(1) if mask is None else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
