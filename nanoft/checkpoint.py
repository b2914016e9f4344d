"""A run to disk and back, whole or not at all.

A checkpoint is one plain dictionary: `model` (weights by name, no wrapper's prefix), `model_config`, `optimizer`
(a list), `step`, `evaluated` (the step of the last evaluation), `seed`, `config`, `best_val_loss`, `seconds` spent.
Fine-tuning adds the `task`, the `averaged` weights, the `best` score and how many evaluations were `worse` since.
Random numbers need no entry: batches and dropout are drawn from (seed, step).
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from nanoft import UserError
from nanoft.files import write_whole
from nanoft.model import ModelConfig


def save(path, state: dict) -> None:
    write_whole(path, lambda file: torch.save(state, file))


def find(place) -> Path | None:
    """The checkpoint file that a path means: itself, or best.pt, else latest.pt, of a run folder; None for none."""
    place = Path(place)
    return next((path for path in (place, place / "best.pt", place / "latest.pt") if path.is_file()), None)


def load(path, device="cpu") -> dict:
    """The dictionary of a checkpoint file. Raises UserError if it is none."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}); "
                        "give another, or train again") from None
    if not isinstance(state, dict) or not {"model", "model_config", "step"} <= state.keys():
        raise UserError(f"{path} is not a nanoft checkpoint: it lacks model, model_config or step")
    return state


def load_model(state: dict, path, make: Callable[[ModelConfig], nn.Module], device="cpu", prefix="") -> nn.Module:
    """The model of a checkpoint's dictionary, in evaluation mode.

    make: make_model for a GPT or BERT, a TaskModel of the state's task, or Transformer with prefix="trunk." for the
    trunk alone, whatever its heads. path: where the state came from, for messages. Raises UserError.
    """
    with torch.device("meta"):  # no memory but that of the weights
        model = make(ModelConfig.from_saved(state["model_config"], path))
    weights = {name.removeprefix(prefix): p for name, p in state["model"].items() if name.startswith(prefix)}
    load_weights(model, weights, path)
    return model.to(device).eval()


def load_weights(model: nn.Module, weights: dict, path, fresh: tuple[str, ...] = ()) -> None:
    """Put weights into a model; those whose names begin with one of `fresh` stay as they were initialised.

    A model made on the device "meta", which has no memory, gets the tensors themselves; any other a copy of them.
    Raises UserError naming the first difference in names or shapes.
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
