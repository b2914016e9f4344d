"""A run to disk and back, whole or not at all.

A checkpoint is one plain dictionary: `model` (weights by name, no wrapper's prefix), `model_config`, `optimizer`
(a list), `step`, `evaluated` (the step of the last evaluation), `seed`, `config`, `best_val_loss`, `seconds` spent.
Fine-tuning adds the `task`, the `averaged` weights, the `best` figure and how many evaluations were `worse` since.
Random numbers need no entry: batches and dropout are drawn from (seed, step).
"""

from pathlib import Path

import torch

from nanoft import UserError, published
from nanoft.files import write_whole


def save(path, state):
    write_whole(path, lambda file: torch.save(state, file))


def find(place):
    """The checkpoint file that a path means: itself, or best.pt, else latest.pt, of a run folder.

    Of a folder as published, its weights: model.safetensors, pytorch_model.bin, or the index of their shards.
    """
    place = Path(place)
    for path in (place, place / "best.pt", place / "latest.pt", *published.weight_files(place)):
        if path.is_file():
            return path
    raise UserError(f"{place}: no checkpoint there; give a run folder such as out/wikitext, a .pt file, or a folder "
                    "with a published model: config.json and model.safetensors")


def load(path, device="cpu"):
    """The dictionary of a checkpoint file, or of published weights. UserError if it is neither."""
    if str(path).endswith((".safetensors", ".bin", ".index.json")):
        return published.load(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}); "
                        "give another, or train again") from None
    if not isinstance(state, dict) or not {"model", "model_config", "step"} <= state.keys():
        raise UserError(f"{path} is not a nanoft checkpoint: it lacks model, model_config or step")
    return state


def load_weights(model, weights, path, fresh=()):
    """Put weights into a model; those whose names begin with one of `fresh` stay as they were made.

    A model made on the device "meta", which has no memory, gets the tensors themselves; any other a copy of them.
    UserError naming the first difference in names or shapes.
    """
    own = model.state_dict()
    weights = {name: own[name] for name in own if name.startswith(tuple(fresh))} | weights
    for name in sorted(own.keys() ^ weights.keys()):
        raise UserError(f"{path}: weight {name} is {'missing' if name in own else 'unknown to this model'}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{path}: weight {name} is {tuple(tensor.shape)}, where this model wants "
                            f"{tuple(own[name].shape)}")
    model.load_state_dict(weights, assign=any(tensor.is_meta for tensor in own.values()))
    if hasattr(model, "head") and model.cfg.tie_head:
        model.head.weight = model.trunk.tokens.weight
