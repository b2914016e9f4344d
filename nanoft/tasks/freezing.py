"""Which parameters of a fine-tuned model are trained: frozen blocks, gradual unfreezing, adapters."""

import numpy as np

from nanoft import UserError, files
from nanoft.optim import depth, part_name
from nanoft.tasks import lora
from nanoft.tasks.heads import TaskModel


def freeze(model: TaskModel, cfg) -> None:
    """Freeze the embeddings and the first blocks (freeze_blocks); or with lora_rank the trunk, and add its adapters.

    The head is always trained, except a GPT's own head under LoRA. Raises UserError where nothing is left to train.
    """
    n_layer = model.cfg.n_layer
    if not -1 <= cfg.freeze_blocks <= n_layer:
        raise UserError(f"freeze_blocks={cfg.freeze_blocks}, but this model has {n_layer} blocks; -1 freezes them all")
    last_frozen = n_layer if cfg.lora_rank or cfg.freeze_blocks == -1 else cfg.freeze_blocks or -1
    for name, p in model.named_parameters():
        p.requires_grad_(depth(name, n_layer) > last_frozen and not (cfg.lora_rank and name.startswith("head.")))
    if cfg.lora_rank:
        lora.add(model.trunk, cfg.lora_rank)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("freeze_blocks leaves nothing to train, for this model's head is its embedding; use fewer")


def describe_unfreezing(optimizers: list, epochs: float) -> list[str]:
    """A line on the epoch from which each part is trained; none where all are from the start of the run."""
    begins = {group["name"].removesuffix(".muon"): group["from_epoch"] for o in optimizers for group in o.param_groups}
    parts = [f"{name} {f'from epoch {epoch:g}' if epoch < epochs else 'never'}"
             for epoch, name in sorted((epoch, name) for name, epoch in begins.items() if epoch)]
    return [f"thaws  {', '.join(parts)}"] if parts else []


def describe_parameters(model: TaskModel) -> list[str]:
    """Lines on how many parameters each part of the model has, and how many of them are trained."""
    counts: dict[str, np.ndarray] = {}  # of each part: all, trained
    for name, p in model.named_parameters():
        part = part_name(depth(name, model.cfg.n_layer), model.cfg.n_layer) + " adapters" * (".lora_" in name)
        counts[part] = counts.get(part, 0) + p.numel() * np.array([1, p.requires_grad])
    counts["in all"] = sum(counts.values(), np.zeros(2, dtype=int))
    rows = [("", "parameters", "trained")] + [(part, f"{n[0]:,}", f"{n[1]:,}") for part, n in counts.items()]
    return files.aligned(rows).splitlines()
