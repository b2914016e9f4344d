"""Optimizers and learning-rate schedules: AdamW (arXiv:1711.05101), Muon for matrices, RowRMSprop for n-grams.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest orthogonal matrix,
found by a few matrix products, so that every direction of the matrix learns at the same pace.
"""

import math
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed
import torch.nn.functional as F

from nanoft import distributed

# Coefficients of five iterations x <- a x + (b A + c A^2) x with A = x xᵀ, each the best odd quintic for the interval
# of singular values that the one before leaves (Polar Express, arXiv:2505.16932, which also gives the safety factor).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(m, steps=3, dtype=torch.float32):
    """The orthogonal factor of each matrix, approximately. m: (N, rows, columns) -> the same shape.

    Five iterations leave singular values of 0.86 to 1.14, three 0.2 to 1.9 (those that are no noise); they train alike
    (LOG.md), and on a small model the products are a good part of the step.
    """
    tall = m.size(-2) > m.size(-1)
    x = m.mT if tall else m  # the products below are over the shorter side
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)).to(dtype)
    for a, b, c in POLAR_EXPRESS[:steps]:
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return (x.mT if tall else x).to(m.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised: matrices of one shape go through the products together, in `dtype`.

    world_size, rank: several processes deal the matrices out, so that each does a share of the products.
    """

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0, dtype=torch.float32, world_size=1, rank=0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype, self.world_size, self.rank = dtype, world_size, rank
        self.orthogonalize = orthogonalize  # loop.Run puts the compiled function there

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                weights, grads, buffers = (list(map(distributed.local, some)) for some in zip(*(
                    (p, p.grad, self.state[p]["momentum"]) for p in params)))
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                ahead = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                ahead = ahead.flatten(2)  # (N, rows, columns); of a convolution, (out, in, 3, 3) as (out, in * 9)
                if self.world_size == 1:
                    ahead = self.orthogonalize(ahead, dtype=self.dtype)
                elif weights[0] is params[0]:
                    ahead = self.orthogonalize_share(ahead)
                else:
                    ahead = self.orthogonalize_shards(ahead, shape[0])
                # entries of about lr / sqrt(columns): in proportion to those the matrix began with
                scale = group["lr"] * max(1, shape[0] / ahead.size(2)) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(ahead.reshape(-1, *weights[0].shape)), alpha=-scale)

    def orthogonalize_share(self, m):
        """As orthogonalize, each process its share of the matrices, which all then gather. m: (N, rows, columns)."""
        N, share = len(m), -(-len(m) // self.world_size)
        mine = m[self.rank * share:(self.rank + 1) * share]
        mine = F.pad(mine, (0, 0, 0, 0, 0, share - len(mine)))  # the last may have fewer, or none
        mine = self.orthogonalize(mine, dtype=self.dtype).to(self.dtype)
        gathered = mine.new_empty(share * self.world_size, *mine.shape[1:])
        torch.distributed.all_gather_single(gathered, mine)
        return gathered[:N].to(m.dtype)

    def orthogonalize_shards(self, m, rows):
        """As orthogonalize, where each process has some rows of every matrix. m: (N, own rows, columns).

        The rows are sent to the process whose share a matrix is, and what becomes of them is sent back.
        """
        world, share, own = self.world_size, -(-len(m) // self.world_size), m.size(1)
        most = -(-rows // world)  # the last processes may have fewer rows, or none
        x = F.pad(m, (0, 0, 0, most - own, 0, world * share - len(m))).to(self.dtype)  # (world * share, most, columns)
        x = exchange(x).unflatten(0, (world, share)).transpose(0, 1).flatten(1, 2)     # (share, world * most, columns)
        x = F.pad(self.orthogonalize(x[:, :rows], dtype=self.dtype), (0, 0, 0, world * most - rows))
        x = exchange(x.unflatten(1, (world, most)).transpose(0, 1).flatten(0, 1))      # (world * share, most, columns)
        return x[:len(m), :own].to(m.dtype)


def exchange(x):
    """Cut x into one equal part for each process and send each its own; give what was received, joined."""
    received = torch.empty_like(x := x.contiguous())
    torch.distributed.all_to_all_single(received, x)
    return received


class RowRMSprop(torch.optim.Optimizer):
    """RMSprop for a table of embeddings: one mean square for each row, over the steps that saw the row.

    The other rows stay as they are. AdamW would move them on along gradients of long ago, and forget from one sight of
    a rare row to the next how large they were. (Row-wise Adagrad, arXiv:1906.00091, has a sum instead of the mean.)
    """

    def __init__(self, params, beta2=0.95):
        super().__init__(params, dict(lr=0.1, beta2=beta2))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                now = torch.linalg.vector_norm(p.grad, dim=1, keepdim=True).square() / p.size(1)  # (rows, 1)
                mean = self.state[p].get("mean_square", now)
                mean = torch.where(mean == 0, now, torch.where(now == 0, mean, mean.lerp(now, 1 - group["beta2"])))
                self.state[p]["mean_square"] = mean
                p.addcdiv_(p.grad, mean.sqrt() + 1e-10, value=-group["lr"])  # (rows, columns) by (rows, 1)


# ---- parameter groups --------------------------------------------------------------------------------------------


def pretraining_groups(model, cfg) -> list[dict]:
    """The parameter groups, every parameter in exactly one; `by`: the optimizer, adamw, muon or rows (RowRMSprop).

    cfg: optimizer (`muon` or `adamw`), lr, muon_lr, embed_lr, weight_decay. Embeddings and everything of one dimension
    are not decayed.
    """
    embed_lr, blocks = cfg.embed_lr or cfg.lr, "muon" if cfg.optimizer == "muon" else "matrices"
    groups = {
        # a tied embedding is small, as a head is
        "embeddings": dict(by="adamw", lr=cfg.lr if model.cfg.tie_head else embed_lr, weight_decay=0.0),
        "n-grams": dict(by="rows", lr=embed_lr),
        "vectors": dict(by="adamw", lr=cfg.lr, weight_decay=0.0),
        # two classes instead of thousands: unstable at the full rate (LOG.md)
        "sentence": dict(by="adamw", lr=cfg.lr / 10, weight_decay=0.0),
        "head": dict(by="adamw", lr=cfg.lr, weight_decay=cfg.weight_decay),
        blocks: dict(by=cfg.optimizer, lr=cfg.muon_lr if blocks == "muon" else cfg.lr, weight_decay=cfg.weight_decay),
    }
    for name, p in model.named_parameters():  # a tied weight appears once
        kind = ("n-grams" if name == "trunk.grams.weight" else "sentence" if name.startswith(("pooler.", "next.")) else
                "vectors" if p.dim() < 2 else blocks if ".blocks." in name else
                "embeddings" if name.startswith("trunk.") else "head")
        groups[kind].setdefault("params", []).append(p)
    return [{"name": name, **group} for name, group in groups.items() if "params" in group]


def depth(name: str, n_layer: int) -> int:
    """Where a parameter stands: 0 the embeddings, 1 to n_layer the blocks, n_layer + 1 the head."""
    if name.startswith("trunk.blocks."):
        return int(name.split(".")[2]) + 1
    return n_layer if name.startswith("trunk.norm_out.") else 0 if name.startswith("trunk.") else n_layer + 1


def part_name(level: int, n_layer: int) -> str:
    """The name of such a depth."""
    return "embeddings" if level == 0 else "head" if level > n_layer else f"blocks.{level - 1}"


def finetuning_groups(model, cfg) -> list[dict]:
    """The parameter groups by depth, every trained parameter in exactly one; `by`: as pretraining_groups.

    layer_decay lowers the rate by a factor a block from the top (layer-wise decay, arXiv:1801.06146). `from_epoch`:
    when the group starts to train: the head at once, with unfreeze_every the blocks one by one from the top.
    """
    n_layer, groups = model.cfg.n_layer, {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        level = depth(name, n_layer)
        embedding, matrix = level == 0 and p.dim() == 2, level <= n_layer and p.dim() > 1 and ".lora_" not in name
        by = ("rows" if name == "trunk.grams.weight" else
              "muon" if cfg.optimizer == "muon" and matrix and not embedding else "adamw")
        lr = (cfg.muon_lr if by == "muon" else cfg.embed_lr or cfg.lr if embedding else
              cfg.head_lr or cfg.lr if level > n_layer else cfg.lr)
        decayed = p.dim() == 2 and not embedding
        # by what a parameter is and not by its rate, so that a resume with other rates finds the same groups
        group = groups.setdefault((by, level, embedding, decayed), dict(
            name="n-grams" if by == "rows" else part_name(level, n_layer) + ".muon" * (by == "muon"), by=by, params=[],
            weight_decay=cfg.weight_decay * decayed, lr=lr * cfg.layer_decay ** max(0, n_layer - level),
            from_epoch=max(0, n_layer + 1 - level) * cfg.unfreeze_every))
        group["params"].append(p)
    return list(groups.values())


def make_optimizers(model, groups, dist, betas=(0.9, 0.98), eps=1e-8) -> list[torch.optim.Optimizer]:
    """The optimizers of parameter groups, as one of the functions above gives them; each group has a `peak_lr`.

    dist: its device, and the number format of the run's matrix products. Asserts that every trained parameter of the
    model is in exactly one group.
    """
    placed = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained <= set(placed) and len(placed) == len(set(placed)), "a parameter is in no group, or in two"
    makers: dict = {
        "adamw": partial(torch.optim.AdamW, betas=betas, eps=eps, fused=dist.device.type in ("cpu", "cuda")),
        "muon": partial(Muon, dtype=torch.bfloat16 if dist.dtype == torch.bfloat16 else torch.float32,
                        world_size=dist.world_size, rank=dist.rank),
        "rows": partial(RowRMSprop, beta2=betas[1]),
    }
    chosen = {by: [group | {"peak_lr": group["lr"]} for group in groups if group["by"] == by] for by in makers}
    return [makers[by](some) for by, some in chosen.items() if some]


# ---- learning rates ----------------------------------------------------------------------------------------------


def lr_factor(progress, schedule, warmup, warmdown):
    """The learning rate as a fraction of its peak. progress: 0 to 1 of the run; warmup, warmdown: fractions of the run.

    linear and cosine fall from the end of the warm-up to zero; trapezoid holds and falls in the last `warmdown`.
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))
    warmdown = {"linear": 1 - warmup, "constant": 0.0}.get(schedule, warmdown)
    return min(1.0, max(1 - progress, 0.0) / warmdown) if warmdown else 1.0


def set_lr(optimizers, factor: float, epoch: float = math.inf) -> list[torch.Tensor]:
    """Give every group its peak rate times `factor`, or 0 before its `from_epoch`; the parameters that train now."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = group["peak_lr"] * factor * (epoch >= group.get("from_epoch", 0))
    return [p for group in groups if epoch >= group.get("from_epoch", 0) for p in group["params"]]


# ---- averaged weights ----------------------------------------------------------------------------------------------


class EMA:
    """A moving average of the trained weights, which is what is evaluated. decay=0: there is none."""

    def __init__(self, model, decay, saved=None):
        self.decay = decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.weights = {name: (saved[name].to(p.device) if saved else p.detach().clone())
                        for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self, step):
        if self.decay:  # EMA warm-up: a shorter average at first, which forgets the initial weights
            torch._foreach_lerp_(list(self.weights.values()), list(self.trained.values()),
                                 1 - min(self.decay, step / (step + 10)))

    def swap(self):
        """Put the averaged weights into the model; a second call takes them out again."""
        for name in self.weights:
            self.trained[name].data, self.weights[name] = self.weights[name], self.trained[name].data

    @contextmanager
    def in_use(self):
        """Within, the model has the averaged weights."""
        self.swap()
        yield
        self.swap()
