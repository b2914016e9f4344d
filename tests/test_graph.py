"""The graph for TensorBoard: the model's operations, weights and shapes, and edges that lead somewhere."""

import pytest
import torch

from nanoft.inspect.graph import graph_of
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.tasks import lora
from nanoft.tasks.heads import TaskModel

SHAPE = dict(vocab_size=70, block_size=16, n_layer=2, n_head=2, n_embd=8)
MODELS = {"gpt": {}, "bert": dict(causal=False), "pairs": dict(causal=False, n_types=2), "gpt2": CLASSIC["gpt2"],
          "published bert": dict(causal=False, n_types=2, **CLASSIC["bert"]),
          "n-grams, swiglu": dict(n_gram=3, n_buckets=64, activation="swiglu", n_kv_head=1)}
TASK = dict(labels=["no", "yes"], pool="mean", head_dropout=0.1)


def batch_for(cfg, pairs=False):
    ids = torch.arange(32).view(2, 16)
    batch = {"ids": ids, "targets": torch.where(ids % 3 == 0, ids, -100)}
    if cfg.n_types and pairs:
        mask = torch.ones(2, 16, dtype=torch.bool)
        mask[1, 12:] = False
        batch |= {"types": (ids % 16 > 8).long(), "mask": mask, "next_targets": torch.tensor([0, 1])}
    return batch


def task_model(kind, **shape):
    cfg = ModelConfig(**SHAPE | shape)
    model = TaskModel(cfg, TASK | {"kind": kind, "pool": "last" if cfg.causal else "mean"})
    batch = batch_for(cfg) | {"weights": torch.ones(2, 16)}
    if kind == "classify":
        batch |= {"targets": torch.tensor([0, 1]), "weights": torch.ones(2)}
    if kind == "tag":
        batch["targets"] = batch["targets"].clamp(max=1)
    if kind == "answer":
        batch |= {"targets": torch.tensor([[1, 2], [3, 4]]), "weights": torch.ones(2),
                  "allowed": torch.ones(2, 16, dtype=torch.bool)}
    return model, batch


def check(model, batch):
    """The nodes by name, after what holds for every graph."""
    nodes = graph_of(model, batch).node
    made = {}
    for node in nodes:
        assert node.name not in made, f"{node.name} twice"
        for name in node.input:  # comes from a node before, and from one of its outputs
            source, _, number = name.partition(":")
            assert int(number or 0) < len(made[source].attr["_output_shapes"].list.shape), (node.name, name)
        made[node.name] = node
    boxes = {name[:i] for name in made for i, letter in enumerate(name) if letter == "/"}
    assert not boxes & made.keys()  # TensorBoard draws a node or a box of that name, not both
    needed, todo = set(), ["loss"]
    while todo:
        name = todo.pop().partition(":")[0]
        if name not in needed:
            needed.add(name)
            todo += made[name].input
    assert {"ids", "targets"} <= needed
    used = {key.removeprefix("weight ") for name in needed for key in made[name].attr if key.startswith("weight ")}
    assert used == dict(model.named_parameters()).keys()  # the loss depends on each of them, as it does in training
    return made


def shapes(node):
    return [tuple(dim.size for dim in shape.dim) for shape in node.attr["_output_shapes"].list.shape]


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_there_and_every_edge_leads_somewhere(name):
    cfg = ModelConfig(**SHAPE | MODELS[name])
    model = make_model(cfg)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    nodes = check(model, batch_for(cfg, pairs=name != "bert"))
    assert model.training and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert shapes(nodes["trunk/blocks.1/mlp/proj"]) == [(2, 16, 8)] and nodes["trunk/blocks.1/mlp/proj"].op == "linear"
    assert shapes(nodes["trunk/blocks.0/attn/view"]) == [(2, 16, 2, 4)]
    assert "trunk/blocks.0/attn/scaled_dot_product_attention" in nodes


def test_a_tied_weight_is_shown_where_it_is_used():
    nodes = check(make_model(ModelConfig(**SHAPE | MODELS["gpt2"])), batch_for(ModelConfig(**SHAPE)))
    assert [name for name, node in nodes.items() if "weight trunk.tokens.weight" in node.attr] == [
        "trunk/tokens", "head"]
    head = nodes["head"].attr
    assert head["weight trunk.tokens.weight"].s == b"128 x 8" and head["parameters"].i == 1024


@pytest.mark.parametrize("kind", ["classify", "tag", "answer", "generate"])
def test_task_models_have_graphs(kind):
    nodes = check(*task_model(kind, causal=kind == "generate"))
    assert ("head" if kind == "generate" else "task_head") in nodes


def test_adapters_are_a_box_of_operations():
    model, batch = task_model("classify", causal=False)
    lora.add(model.trunk, 2, 4.0)
    nodes = check(model, batch)
    linears = [node for name, node in nodes.items() if name.startswith("trunk/blocks.0/attn/q/linear")]
    assert [sorted(key for key in node.attr if key.startswith("weight ")) for node in linears] == [
        [f"weight trunk.blocks.0.attn.q.{part}"] for part in ("weight", "lora_a", "lora_b")]
