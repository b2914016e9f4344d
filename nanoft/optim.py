"""Optimizers and learning-rate schedules: AdamW (arXiv:1711.05101) for most, Muon for the hidden matrices.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest orthogonal matrix,
found by a few matrix products, so that every direction of the matrix learns at the same pace.
"""

import math

import torch

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
    """Nesterov momentum, orthogonalised: matrices of one shape go through the products together, in `dtype`."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                grads = [p.grad for p in params]
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                ahead = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))  # (N, rows, columns)
                # entries of about lr / sqrt(columns): in proportion to those the matrix began with
                scale = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(orthogonalize(ahead, dtype=self.dtype)), alpha=-scale)


def make_optimizers(model, cfg, device, dtype=torch.float32):
    """The optimizers of a model, every parameter in exactly one group.

    cfg: optimizer (`muon` or `adamw`), lr, muon_lr, embed_lr, weight_decay. Each group carries `peak_lr`.
    Embeddings and everything of one dimension are not decayed. dtype: of the run's matrix products.
    """
    named = dict(model.named_parameters())  # a tied weight appears once
    embeds = {n: p for n, p in named.items() if n.startswith("trunk.") and ".blocks." not in n and p.dim() == 2}
    matrices = {n: p for n, p in named.items() if ".blocks." in n and p.dim() == 2}
    sentence = {n: p for n, p in named.items() if n.startswith(("pooler.", "next."))}
    vectors = {n: p for n, p in named.items() if p.dim() < 2 and n not in sentence}
    rest = {n: p for n, p in named.items() if n not in embeds | matrices | vectors | sentence}
    muon = cfg.optimizer == "muon"
    groups = [
        dict(name="embeddings", params=list(embeds.values()), weight_decay=0.0,
             lr=cfg.lr if model.cfg.tie_head else cfg.embed_lr or cfg.lr),  # a tied embedding is small, as a head is
        dict(name="vectors", params=list(vectors.values()), lr=cfg.lr, weight_decay=0.0),
        # two classes instead of thousands: at the full rate they only jump about (LOG.md)
        dict(name="sentence", params=list(sentence.values()), lr=cfg.lr / 10, weight_decay=0.0),
        dict(name="head" if muon else "matrices", lr=cfg.lr, weight_decay=cfg.weight_decay,
             params=list(rest.values()) + ([] if muon else list(matrices.values()))),
    ]
    groups = [g for g in groups if g["params"]]
    fused = device.type in ("cpu", "cuda")
    # eps far below any gradient here: 1e-8 would slow the rare tokens' embeddings
    optimizers = [torch.optim.AdamW(groups, betas=(0.9, cfg.beta2), eps=1e-10, fused=fused)]
    if muon:
        optimizers.append(Muon([dict(name="muon", params=list(matrices.values()))], lr=cfg.muon_lr,
                               weight_decay=cfg.weight_decay,
                               dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32))
    seen = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(seen) == sorted(id(p) for p in named.values()), "a parameter is in no group, or in two"
    for o in optimizers:
        for g in o.param_groups:
            g["peak_lr"] = g["lr"]
    return optimizers


def lr_factor(progress, schedule, warmup, warmdown):
    """The learning rate as a part of its peak. progress: 0 to 1 of the run; warmup, warmdown: parts of the run.

    linear and cosine fall from the end of the warm-up to zero; trapezoid holds and falls in the last `warmdown`.
    """
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / max(1 - warmup, 1e-9)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1)))
    if schedule == "linear":
        return max(1 - done, 0.0)
    return min(1.0, max(1 - progress, 0.0) / warmdown) if warmdown else 1.0
