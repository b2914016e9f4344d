"""A run to disk and back, whole or not at all.

A checkpoint is one plain dictionary: `model` (weights by name, no wrapper's prefix), `model_config`, `optimizer`
(a list), `step`, `evaluated` (the step of the last evaluation), `seed`, `config`, `best_val_loss`, `seconds` spent,
and the `fingerprints` of the tokenizer and of the data that it was trained on.
A file of nanoft.quantize has int8 matrices and their `scales`; load() makes them floats.
Fine-tuning adds the `task`, the `averaged` weights, the `best` score and how many evaluations were `worse` since.
Random numbers need no entry: batches and dropout are drawn from (seed, step).
"""

import zipfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nanoft import UserError, distributed
from nanoft.files import available_cores, difference, write_whole
from nanoft.model import ModelConfig, check_model

M = TypeVar("M", bound=nn.Module)
MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum"}, "RowRMSprop": {"mean_square"}}

# what files.difference asks of the dictionary; what train.py and finetune.py read of latest.pt is optional elsewhere
NEEDS = {"classify": {"labels": [str]}, "pair": {"labels": [str]}, "tag": {"labels": [str]}, "generate": {},
         "image": {"labels": [str], "picture": {
             "size": int, "channels": int, "patch": int, "stem": {"conv", "linear"}, "cls": bool, "mean": [float],
             "deviation": [float]}},
         "regress": {"mean": float, "deviation": float}, "answer": {"v2": bool, "max_answer?": int}}
TASK = {"kind": {*NEEDS}, "metric?": str, "pool": {"mean", "cls", "last"}, "max_length?": int, "head_dropout": float,
        "long_text?": {"head", "tail", "head_tail", "windows"}, "doc_stride?": int, "multi_label?": bool,
        "linear?": bool, "linear_share?": float, "mirror?": bool, "match_types?": bool, "leading_space?": bool,
        "positive?": str, "thresholds?": {str: float}, "transitions?": [[float]], "linear_buckets?": int,
        "separator?": str, "columns?": {str: [str]}, "column_names?": str, "encoding?": str}
FORM = {"model": {str: Tensor}, "step": int, "task?": TASK, "config?": {str: object}, "fingerprints?": {str: str},
        "model_config": {f"{f.name}?": {*get_args(f.type)} or f.type for f in fields(ModelConfig)},
        "optimizer?": [{"state": dict}], "scaler?": dict, "evaluated?": int, "seconds?": float, "worse?": int,
        "best?": (Real, None), "best_val_loss?": Real, "averaged?": {str: Tensor}, "rank?": int, "alpha?": float,
        "scales?": {str: Tensor}}


def save(path, state: dict) -> None:
    """Write a checkpoint whole. Raises OSError where the disk is full, say."""
    try:
        write_whole(path, lambda file: torch.save(state, file.name))  # by name: half a Python file's processor time
    except RuntimeError as error:  # torch's own word for it
        raise OSError(str(error).partition("\n")[0]) from None


def copied(state, keep: bool = True):
    """A nested dictionary or list with a copy of every tensor on the CPU, sharded ones put together.

    keep: False in a process that writes nothing, but without which a sharded tensor cannot be put together.
    """
    def copy(tensor: Tensor) -> Tensor | None:
        tensor = distributed.whole(tensor.detach())
        return tensor.to("cpu", copy=True) if keep else None

    return tree_map_only(Tensor, copy, state)


def find(place) -> Path | None:
    """The checkpoint file that a path means: itself, or best.pt, else latest.pt, of a run folder; None for none."""
    place = Path(place)
    return next((path for path in (place, place / "best.pt", place / "latest.pt") if path.is_file()), None)


def load(path, device="cpu") -> dict:
    """The dictionary of a checkpoint file. Raises UserError if it is none, or if a bit of it has changed."""
    try:
        with checked_sums(path):
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__}); "
                        "give another, or train again") from None
    check_state(state, path)
    for name, scale in state.pop("scales", {}).items():  # of nanoft.quantize: floats again
        state["model"][name] = state["model"][name].float() * scale[:, None]
    return state


def check_state(state: dict, path) -> None:
    """Raise UserError where a checkpoint's dictionary has not its form, or describes a model that cannot be."""
    problem = difference(state, FORM)
    if not problem and "task" in state:
        problem = difference(state["task"], NEEDS[state["task"]["kind"]]) or (
            "max_length or doc_stride is too small" * (min(state["task"].get("max_length", 8) - 7,
                                                           state["task"].get("doc_stride", 1)) < 1))
    if not problem:
        cfg = ModelConfig.from_saved(state["model_config"], path)
        problem = "; ".join(check_model(cfg))
        if "task" in state:  # what older tasks lack
            state["task"] = {"max_length": cfg.block_size, "long_text": "head", "doc_stride": 128} | state["task"]
        if not 0 <= state.get("task", {}).get("head_dropout", 0) < 1:
            problem = "its head_dropout does not lie between 0 and 1"
        if cfg.n_layer > len(state["model"]) and "rank" not in state:  # an adapter has some weights only
            problem = "its model has more blocks than weights"
        if any(name not in state["model"] or state["model"][name].shape[:1] != scale.shape
               or state["model"][name].dim() != 2 for name, scale in state.get("scales", {}).items()):
            problem = "its scales are not those of its weights"
    if problem:
        raise UserError(f"{path} is not a whole nanoft checkpoint ({problem}); give another, or train again")


@contextmanager
def checked_sums(path):
    """Around the reading of a file of torch.save, a zip archive, which takes as long: other threads check its bytes.

    torch writes the archive's CRC-32 of each tensor, and never reads them. Raises zipfile.BadZipFile where the bytes
    are not those that were written.
    """
    def check(member):
        with archive.open(member) as file:
            while file.read(2**18):  # which a core's cache holds; raises where the sum is another
                pass

    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(available_cores()) as pool:
        members = archive.infolist()
        if packed := [member.filename for member in members if member.compress_type]:
            raise zipfile.BadZipFile(f"{packed[0]} is compressed")  # not by torch: it might unpack to any size
        checks = pool.map(check, members)
        yield
        deque(checks, maxlen=0)


def check_resumable(state: dict, optimizers: list, path) -> None:
    """Raise UserError where latest.pt lacks what a resumed run needs, or its moments are not of these parameters."""
    problem = difference(state, {name: object for name in ("config", "optimizer", "scaler", "evaluated", "seconds")})
    for optimizer, saved in zip(optimizers, state.get("optimizer", ())):
        names = MOMENTS[type(optimizer).__name__]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in saved["state"].items():
            if i not in range(len(parameters)) or difference(moments, dict.fromkeys(names, Tensor)) or any(
                    moments[name].shape != {"step": (), "mean_square": (len(parameters[i]), 1)}.get(
                        name, parameters[i].shape) or moments[name].layout != torch.strided for name in names):
                problem = problem or f"the optimizer's state of parameter {i!r:.20} has another form"
    if problem or len(state["optimizer"]) != len(optimizers):
        raise UserError(f"{path} cannot be resumed ({problem or 'it is of another optimizer'}); start another run from "
                        "it by --init_from")


def check_tokenizer(state: dict, tokenizer, path) -> None:
    """Raise UserError where a checkpoint was trained with another tokenizer than the one beside it."""
    known = state.get("fingerprints", {}).get("tokenizer", tokenizer.fingerprint)  # older files have none
    if known != tokenizer.fingerprint:
        raise UserError(f"{path} was trained with another tokenizer than the one beside it, or that file was changed; "
                        "copy the tokenizer.json there from where the model was trained")


def load_model(state: dict, path, make: Callable[[ModelConfig], M], device="cpu") -> M:
    """The model of a checkpoint's dictionary, in evaluation mode.

    make: make_model for a GPT or BERT, a TaskModel of the state's task. path: where the state came from, for messages.
    Raises UserError.
    """
    with torch.device("meta"):  # no memory but that of the weights
        model = make(ModelConfig.from_saved(state["model_config"], path))
    load_weights(model, state["model"], path)
    return model.to(device).eval()


def load_weights(model, weights: dict, path, fresh: tuple[str, ...] = ()) -> None:
    """Put weights into a model; those whose names begin with one of `fresh` stay as they were initialised.

    A model made on the device "meta", which has no memory, gets the tensors themselves; any other a copy of them.
    Raises UserError naming the first difference in names or shapes.
    """
    own = model.state_dict()
    weights = {name: own[name] for name in own if name.startswith(tuple(fresh))} | weights
    for name in sorted(own.keys() ^ weights.keys()):
        raise UserError(f"{path}: weight {name} is {'missing' if name in own else 'unknown to this model'}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape or tensor.layout != torch.strided:
            raise UserError(f"{path}: {name} is {tuple(tensor.shape)}, where this model wants {tuple(own[name].shape)}")
    weights = {name: distributed.like(tensor.to(own[name].dtype), own[name])  # elsewhere they may be halved
               for name, tensor in weights.items()}
    model.load_state_dict(weights, assign=any(tensor.is_meta for tensor in own.values()))
    if hasattr(model, "head") and model.cfg.tie_head:
        model.head.weight = model.trunk.tokens.weight
