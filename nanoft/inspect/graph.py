"""The graph of a model for TensorBoard: every operation of one forward pass, with what flows between them.

torch's own tracers are not needed: a function mode is told of each call on tensors, and module hooks of where in the
model it happens. The result is TensorFlow's GraphDef, a list of nodes with name, operation, inputs and attributes. A
slash in a name makes a box, so the boxes are the modules by the names that their weights have (trunk/blocks.0/attn/q),
and inside them the functions of nanoft that were called (attention, rotate, token_loss). Weights are no nodes but
attributes of the operation that uses them, which also shows a tied weight twice.
"""

import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

HERE = str(Path(__file__).parents[1])


def graph_of(model, batch):
    """The GraphDef of model(**batch), computed once in evaluation mode. batch: {name: tensor}."""
    from tensorboardX.proto.graph_pb2 import GraphDef
    from tensorboardX.proto.versions_pb2 import VersionDef

    trace = Trace(model, batch)
    training = model.training
    model.eval()
    with torch.no_grad(), trace.watching(model), trace:
        out = model(**batch)
    model.train(training)
    trace.node("loss", "output", [trace.source(out)], out)
    trace.alive.clear()
    trace.boxes.clear()  # frames lead back to here, so nothing would be freed
    return GraphDef(node=trace.nodes, versions=VersionDef(producer=22))


class Trace(TorchFunctionMode):
    """Writes down a node for each call of torch that gives tensors."""

    def __init__(self, model, batch):
        super().__init__()
        self.nodes, self.uses = [], {}       # the nodes; how often a name was asked for
        self.made, self.alive = {}, []       # id of a tensor -> the name of its node; all, so that no id comes twice
        self.module, self.boxes = [], {}     # the modules we are in, innermost last; frame of a function -> its box
        self.weights = {id(p): name for name, p in model.named_parameters()}
        self.buffers = {id(b): name for name, b in model.named_buffers()}
        for name, tensor in batch.items():
            self.node(name, "input", [], tensor)

    @contextmanager
    def watching(self, model):
        """While this lasts, self.module tells where in the model the computation is."""
        hooks = []
        for name, module in model.named_modules():
            if name:
                hooks += [module.register_forward_pre_hook(lambda module, _, name=name: self.enter(module, name)),
                          module.register_forward_hook(lambda *_: self.leave())]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self, module, name):
        self.module.append((module, boxed(name)))

    def leave(self):
        self.module.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.__name__.strip("_")
        given = list(flat((args, kwargs)))
        if name == "setitem" or func.__name__ == name + "_":  # in place: what it changes is what it gives
            result = [args[0]]
        else:  # x.float() of a float is x itself, which is no operation
            result = [x for x in flat(out) if isinstance(x, torch.Tensor) and not any(x is y for y in given)]
        if result and name != "get":
            tensors = [x for x in given if isinstance(x, torch.Tensor)]
            used = {self.weights[id(x)]: x for x in tensors if id(x) in self.weights}
            settings = [repr(x) for x in given if isinstance(x, (bool, int, float)) or x is Ellipsis]
            self.node(self.place(name), name, [self.source(x) for x in tensors if id(x) not in self.weights], *result,
                      weights=used, settings=", ".join(settings))
        return out

    def place(self, operation):
        """The name of an operation's node: the boxes it lies in, and its own."""
        module, path = self.module[-1] if self.module else (None, "")
        if type(module).__module__.startswith(("torch.nn", "nanoft.kernels")):  # the module is the node
            return path
        functions, frame = [], sys._getframe(2)
        while not frame.f_code.co_filename.startswith(HERE):  # torch's own functions
            frame = frame.f_back
        while frame.f_code.co_filename.startswith(HERE) and "self" not in frame.f_locals:
            if frame.f_code.co_name[0] not in "<_":  # <lambda>
                if frame not in self.boxes:
                    self.boxes[frame] = self.unique("/".join(filter(None, (path, frame.f_code.co_name))))
                functions.insert(0, self.boxes[frame].rpartition("/")[2])
            frame = frame.f_back
        return "/".join(filter(None, (path, *functions, operation)))

    def unique(self, name):
        """The name, or with a number where it is taken."""
        self.uses[name] = self.uses.get(name, 0) + 1
        return name if self.uses[name] == 1 else f"{name}.{self.uses[name]}"

    def source(self, tensor):
        """The name of the node that a tensor comes from; of one never seen it is made here: a buffer, a constant."""
        if id(tensor) not in self.made:
            buffer = self.buffers.get(id(tensor))
            self.node(boxed(buffer) if buffer else "constant", "constant", [], tensor)
        return self.made[id(tensor)]

    def node(self, name, operation, inputs, *outputs, weights=None, settings=""):
        from tensorboardX.proto.attr_value_pb2 import AttrValue
        from tensorboardX.proto.node_def_pb2 import NodeDef
        from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

        name = self.unique(name)
        shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in x.shape]) for x in outputs]
        attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes)),
                      "format": AttrValue(s=str(outputs[0].dtype).removeprefix("torch.").encode())}
        for weight, tensor in (weights or {}).items():
            attributes[f"weight {weight}"] = AttrValue(s=" x ".join(map(str, tensor.shape)).encode())
        if weights:
            attributes["parameters"] = AttrValue(i=sum(x.numel() for x in weights.values()))
        if settings:
            attributes["settings"] = AttrValue(s=settings.encode())
        self.nodes.append(NodeDef(name=name, op=operation, input=inputs, attr=attributes))
        for i, tensor in enumerate(outputs):
            self.made[id(tensor)] = f"{name}:{i}" if i else name
            self.alive.append(tensor)


def flat(x):
    """What lies in nested tuples, lists, dictionaries and slices."""
    if isinstance(x, (tuple, list)):
        for y in x:
            yield from flat(y)
    elif isinstance(x, dict):
        yield from flat(list(x.values()))
    elif isinstance(x, slice):
        yield from flat([y for y in (x.start, x.stop, x.step) if y is not None])
    else:
        yield x


def boxed(name):
    """The box of a module: trunk.blocks.0.attn.q -> trunk/blocks.0/attn/q."""
    return re.sub(r"\.(?!\d)", "/", name)
