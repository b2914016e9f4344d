"""Published vision transformers (ViT, arXiv:2010.11929) as a nanoft checkpoint of kind image.

Folders of the transformers package (model_type vit) and of timm (architecture vit_tiny_patch16_224 and the like): the
same model under two sets of names. Normalisation comes from preprocessor_config.json, or timm's pretrained_cfg.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nanoft import UserError
from nanoft.files import read_json
from nanoft.model import ModelConfig, check_model
from nanoft.tasks import images
from nanoft.tasks.heads import TaskModel

# nanoft's modules by the names of transformers and of timm, without "vit." and without the number of a block
NAMES = {
    "embeddings.cls_token": "trunk.tokens.cls", "cls_token": "trunk.tokens.cls",
    "embeddings.position_embeddings": "trunk.positions.weight", "pos_embed": "trunk.positions.weight",
    "embeddings.patch_embeddings.projection": "trunk.tokens.layers.0", "patch_embed.proj": "trunk.tokens.layers.0",
    "layernorm": "trunk.norm_out", "norm": "trunk.norm_out", "classifier": "task_head", "head": "task_head",
    "layernorm_before": "norm1", "norm1": "norm1", "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k", "attention.attention.value": "attn.v", "attn.qkv": "attn.q attn.k attn.v",
    "attention.output.dense": "attn.proj", "attn.proj": "attn.proj", "layernorm_after": "norm2", "norm2": "norm2",
    "intermediate.dense": "mlp.fc", "mlp.fc1": "mlp.fc", "output.dense": "mlp.proj", "mlp.fc2": "mlp.proj"}
NAME = re.compile(r"(?:vit\.)?(?:(?:encoder\.layer|blocks)\.(\d+)\.)?(.+?)(\.weight|\.bias)?")  # block, module, end


def load(config: dict, entries: Mapping, take: Callable, path: Path) -> dict:
    """Weights, shape and task. entries, take: of layouts.open_weights(path). Raises UserError where they differ."""
    folder, timm, n_used = path.parent, "model_type" not in config, 0
    weights: dict[str, torch.Tensor] = {}
    for name in entries:
        found = NAME.fullmatch(name)
        if found and found[2] in NAMES:
            block, module, end = found.groups("")
            parts, tensor, n_used = NAMES[module].split(), take([name])[name].float(), n_used + 1
            tensor = tensor if end else tensor.squeeze()  # (1, 1, C) -> (C,), (1, T, C) -> (T, C)
            for part, chunk in zip(parts, tensor.chunk(len(parts))):
                weights[f"trunk.blocks.{block}.{part}{end}" if block else part + end] = chunk.clone()
    try:
        cfg, task = describe(config, weights, timm, folder)
        with torch.device("meta"):
            own = TaskModel(cfg, task).state_dict()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{folder}: its files do not describe a ViT ({type(error).__name__}: {error}); fetch it again"
                        ) from None
    new = [name for name in own if name not in weights and name.startswith("task_head.")]
    weights |= {name: torch.zeros(own[name].shape) for name in new}
    for name in own.keys() | weights.keys():
        if name not in own or name not in weights or own[name].shape != weights[name].shape:
            raise UserError(f"{path}: weight {name} is missing, unknown or of another shape than a ViT of its size "
                            "has; fetch it again")
    print(f"{folder}: vit, {cfg.n_layer} layers x {cfg.n_embd}; {n_used} of {len(entries)} tensors used")
    return {"model": weights, "model_config": vars(cfg), "task": task, "new": new}


def describe(config: dict, weights: dict[str, torch.Tensor], timm: bool, folder: Path) -> tuple[ModelConfig, dict]:
    """The shape and the task, from the weights as far as they tell."""
    T, width = weights["trunk.positions.weight"].shape
    _, channels, patch, _ = weights["trunk.tokens.layers.0.weight"].shape
    n_layer = len({name.split(".")[2] for name in weights if name.startswith("trunk.blocks.")})
    cfg = ModelConfig(
        vocab_size=1, vocab_multiple=1, block_size=T, n_layer=n_layer, n_embd=width, causal=False, position="learned",
        n_head=width // 64 if timm else config["num_attention_heads"], norm="layernorm", qk_norm=False, bias=True,
        norm_eps=1e-6 if timm else config["layer_norm_eps"], activation="gelu", embed_norm=False,
        n_hidden=len(weights["trunk.blocks.0.mlp.fc.weight"]))
    if config.get("hidden_act", "gelu") != "gelu" or check_model(cfg):
        raise ValueError("; ".join(check_model(cfg)) or f"the activation {config['hidden_act']!r}")
    given = config.get("pretrained_cfg", {})
    if (folder / "preprocessor_config.json").exists():
        given = {name.removeprefix("image_"): value
                 for name, value in read_json(folder / "preprocessor_config.json").items()}
    names = config.get("id2label") or given.get("label_names") or {}
    names = list(names) if isinstance(names, list) else [names[number] for number in sorted(names, key=int)]
    n_labels = len(weights.get("task_head.bias", names or range(2)))
    labels = names if len(names) == n_labels else [f"LABEL_{i}" for i in range(n_labels)]
    picture = {"size": round((T - 1) ** 0.5) * patch, "channels": channels, "patch": patch, "stem": "linear",
               "cls": True} | {name: [255.0 * x for x in given.get(key, [0.5] * channels)]
                               for name, key in (("mean", "mean"), ("deviation", "std"))}
    if images.n_tokens(picture) != T:
        raise ValueError(f"{T} positions are no square and one")
    return cfg, {"kind": "image", "labels": labels, "metric": "accuracy", "pool": "cls", "max_length": T,
                 "head_dropout": 0.0, "picture": picture}
