"""Which parameters of a fine-tuned model are trained, and how fast: freezing, thawing, a rate for each depth."""

import torch

from nanoft import UserError, lora, metrics, optim


def depth(name, n_layer):
    """Where a parameter stands: 0 the embeddings, 1 to n_layer the blocks, n_layer + 1 the head."""
    if name.startswith("trunk.blocks."):
        return int(name.split(".")[2]) + 1
    return n_layer if name.startswith("trunk.norm_out.") else 0 if name.startswith("trunk.") else n_layer + 1


def part_name(level, n_layer):
    """The name of such a depth."""
    return "embeddings" if level == 0 else "head" if level > n_layer else f"blocks.{level - 1}"


def freeze(model, cfg):
    """Fix the embeddings and the first blocks (freeze_blocks); or with lora_rank the trunk, and add its adapters.

    The head is trained in any case, unless it is a GPT's own beside adapters. Raises UserError.
    """
    n_layer = model.cfg.n_layer
    if not -1 <= cfg.freeze_blocks <= n_layer:
        raise UserError(f"freeze_blocks={cfg.freeze_blocks}, but this model has {n_layer} blocks; -1 freezes them all")
    last = n_layer if cfg.lora_rank or cfg.freeze_blocks == -1 else cfg.freeze_blocks or -1
    for name, p in model.named_parameters():
        p.requires_grad_(depth(name, n_layer) > last and not (cfg.lora_rank and name.startswith("head.")))
    if cfg.lora_rank:
        lora.add(model.trunk, cfg.lora_rank, cfg.lora_alpha)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("freeze_blocks leaves nothing to train, for this model's head is its embedding; use fewer")


def make_optimizers(model, cfg, device, dtype):
    """AdamW, and with optimizer=muon Muon for the blocks' matrices; every trained parameter in exactly one group.

    A group has `peak_lr`, and the epoch from which it trains: the head from the first, with unfreeze_every the blocks
    one by one from the top, the embeddings last. layer_decay lowers the rate by a factor a block from the top.
    """
    n_layer, groups = model.cfg.n_layer, {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        level = depth(name, n_layer)
        embedding, matrix = level == 0 and p.dim() == 2, level <= n_layer and p.dim() == 2 and ".lora_" not in name
        muon = cfg.optimizer == "muon" and matrix and not embedding
        lr = (cfg.muon_lr if muon else cfg.embed_lr or cfg.lr if embedding else
              cfg.head_lr or cfg.lr if level > n_layer else cfg.lr)
        decayed = p.dim() == 2 and not embedding
        # by what a parameter is and not by its rate, so that a resume with other rates finds the same groups
        group = groups.setdefault((muon, level, embedding, decayed), dict(
            name=part_name(level, n_layer) + ".muon" * muon, params=[], weight_decay=cfg.weight_decay * decayed,
            lr=lr * cfg.layer_decay ** max(0, n_layer - level),
            from_epoch=max(0, n_layer + 1 - level) * cfg.unfreeze_every))
        group["params"].append(p)
    optimizers = []
    for muon in (False, True):
        chosen = [group for (is_muon, *_), group in groups.items() if is_muon == muon]
        for group in chosen:
            group["peak_lr"] = group["lr"]
        if chosen and muon:
            optimizers.append(optim.Muon(chosen, dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32))
        elif chosen:
            optimizers.append(torch.optim.AdamW(chosen, betas=(0.9, 0.98), eps=1e-8,
                                                fused=device.type in ("cpu", "cuda")))
    return optimizers


def describe_thawing(optimizers, epochs):
    """A line on the epoch from which each part trains, or "" where all do from the first."""
    when = {group["name"].removesuffix(".muon"): group["from_epoch"] for o in optimizers for group in o.param_groups}
    late = sorted((epoch, name) for name, epoch in when.items() if epoch)
    told = [f"{name} {f'from epoch {epoch:g}' if epoch < epochs else 'never'}" for epoch, name in late]
    return f"thaws  {', '.join(told)}" if told else ""


def describe_parameters(model):
    """Lines on how many parameters each part of the model has, and how many of them are trained."""
    counts, n_layer = {}, model.cfg.n_layer
    for name, p in model.named_parameters():
        part = part_name(depth(name, n_layer), n_layer) + " adapters" * (".lora_" in name)
        total, trained = counts.get(part, (0, 0))
        counts[part] = total + p.numel(), trained + p.numel() * p.requires_grad
    rows = [("", "parameters", "trained")]
    rows += [(part, f"{total:,}", f"{trained:,}") for part, (total, trained) in counts.items()]
    rows.append(("in all", *(f"{sum(column):,}" for column in zip(*counts.values()))))
    return metrics.aligned(rows).splitlines()
