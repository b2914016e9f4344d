"""Which parameters of a fine-tuned model are trained: freezing, thawing, adapters."""

from nanoft import UserError, files
from nanoft.optim import depth, part_name
from nanoft.tasks import lora


def freeze(model, cfg):
    """Freeze the embeddings and the first blocks (freeze_blocks); or with lora_rank the trunk, and add its adapters.

    The head is trained in any case, except a GPT's own head under LoRA. Raises UserError.
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


def describe_thawing(optimizers, epochs):
    """Lines on the epoch from which each part trains; none where all do from the first."""
    when = {group["name"].removesuffix(".muon"): group["from_epoch"] for o in optimizers for group in o.param_groups}
    late = sorted((epoch, name) for name, epoch in when.items() if epoch)
    starts = [f"{name} {f'from epoch {epoch:g}' if epoch < epochs else 'never'}" for epoch, name in late]
    return [f"thaws  {', '.join(starts)}"] if starts else []


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
    return files.aligned(rows).splitlines()
