"""The graph of a model for TensorBoard: every operation of one forward pass, and which tensors it reads and makes.

The result is TensorFlow's GraphDef: nodes with a name, an operation, inputs and attributes. TensorBoard draws a box for
each part of a name before a slash. So the boxes are the modules, by the names that their weights have
(trunk/blocks.0/attn/q). A weight is not a node but an attribute of the operation that uses it; a tied weight appears at
both.

torch tells a function mode of each call on tensors, and hooks in which module it happens.
"""

import re
from collections import Counter

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nanoft.inspect.explain import hooked


def graph_of(model: nn.Module, batch: dict):
    """The GraphDef of model(**batch), computed once in evaluation mode. batch: {name: tensor}."""
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.versions_pb2 import VersionDef

    trace = Trace(model, batch)
    training = model.training
    model.eval()
    with torch.no_grad(), hooked(trace.modules, trace.enter, before=True), hooked(trace.modules, trace.leave), trace:
        out = model(**batch)
    model.train(training)
    trace.node("loss", "output", [trace.source(out)], out)
    return GraphDef(node=trace.nodes, versions=VersionDef(producer=22))


class Trace(TorchFunctionMode):
    """Adds a node for each call of torch that returns tensors."""

    def __init__(self, model: nn.Module, batch: dict):
        super().__init__()
        self.nodes, self.uses = [], Counter()  # the nodes; how often each name was asked for
        self.made = {}    # id of a tensor: (its name, the tensor itself, so that no other gets the same id)
        self.inside: list[nn.Module] = []  # the modules whose forward pass is running, outermost first
        self.modules = {module: boxed(name) for name, module in model.named_modules()}
        self.weights = {id(p): name for name, p in model.named_parameters()}
        self.buffers = {id(b): name for name, b in model.named_buffers()}
        for name, tensor in batch.items():
            self.node(name, "input", [], tensor)

    def enter(self, module, args):
        self.inside.append(module)

    def leave(self, module, args, output):
        self.inside.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.__name__.strip("_")
        given = tree_leaves((args, kwargs))
        if name == "setitem" or func.__name__ == name + "_":  # in place: it returns what it changes
            result = [args[0]]
        else:  # x.float() of a float is x itself, which is no operation
            result = [x for x in tree_leaves(out) if isinstance(x, Tensor) and not any(x is y for y in given)]
        if result and name != "get":
            tensors = [x for x in given if isinstance(x, Tensor)]
            used = {self.weights[id(x)]: x for x in tensors if id(x) in self.weights}
            module = self.inside[-1]
            box = self.modules[module]
            is_node = type(module).__module__.startswith(("torch.nn", "nanoft.kernels"))  # the module itself
            self.node(box if is_node else f"{box}/{name}".lstrip("/"), name,
                      [self.source(x) for x in tensors if id(x) not in self.weights], *result, weights=used)
        return out

    def source(self, tensor: Tensor) -> str:
        """The name of the node that made a tensor. A tensor never seen, a buffer or a constant, gets one now."""
        if id(tensor) not in self.made:
            buffer = self.buffers.get(id(tensor))
            self.node(boxed(buffer) if buffer else "constant", "constant", [], tensor)
        return self.made[id(tensor)][0]

    def node(self, name: str, operation: str, inputs: list[str], *outputs: Tensor, weights=None) -> None:
        from tensorboardX.proto.attr_value_pb2 import AttrValue
        from tensorboardX.proto.node_def_pb2 import NodeDef
        from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

        self.uses[name] += 1
        name = name if self.uses[name] == 1 else f"{name}.{self.uses[name]}"  # several of a name
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in x.shape]) for x in outputs]
        attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes)),
                      "format": AttrValue(s=str(outputs[0].dtype).removeprefix("torch.").encode())}
        for weight, tensor in (weights or {}).items():
            attributes[f"weight {weight}"] = AttrValue(s=" x ".join(map(str, tensor.shape)).encode())
        if weights:
            attributes["parameters"] = AttrValue(i=sum(x.numel() for x in weights.values()))
        self.nodes.append(NodeDef(name=name, op=operation, input=inputs, attr=attributes))
        for i, tensor in enumerate(outputs):
            self.made[id(tensor)] = f"{name}:{i}" if i else name, tensor


def boxed(name: str) -> str:
    """The box of a module: trunk.blocks.0.attn.q -> trunk/blocks.0/attn/q."""
    return re.sub(r"\.(?!\d)", "/", name)
