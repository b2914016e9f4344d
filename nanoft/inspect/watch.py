"""A model's numbers while it trains, for TensorBoard: rates, norms, histograms, what the heads attend to, its graph.

A Watch reads and changes nothing: with and without it a run has the same losses, bit for bit. Only the main process
looks, and nothing here waits for another. It looks at the plain module: compiled code and DDP do not notice.

    lr/GROUP                     the learning rate of each parameter group of the optimizers
    gradient_norm/PART           before clipping; a part is a block, the token embedding, the head, ...
    update_ratio/PART            norm of what the step added to the weights / norm of the weights; 1e-3 is usual
    attention_entropy/PART.hN    nats, the mean over one batch of validation; 0: a head looks at one token alone
    weights/ gradients/ activations/NAME     histograms
"""

import math

import torch

from nanoft import distributed
from nanoft.inspect.explain import attention_weights
from nanoft.inspect.graph import graph_of
from nanoft.model import MLP, Attention, Block

BINS = 64       # of a histogram
MOST = 2**17    # numbers that a histogram is made of; of a larger tensor so many, evenly spread


class Watch:
    def __init__(self, log, model, optimizers, every, dtype):
        """every: steps between histograms; dtype: of the run's matrix products."""
        self.log, self.model, self.optimizers, self.every, self.dtype = log, model, optimizers, every, dtype
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.before = None  # the weights before the step, while one is watched

    @torch.no_grad()
    def gradients(self, step, due):
        """Before clipping: the gradients of the step that makes the weights of `step`. due: whether a line is."""
        if not self.log.board:
            return
        if due:
            self.log.scalars(step, "gradient_norm", self.norms([p.grad for p in self.trained.values()]))
            self.before = [p.detach().clone() for p in self.trained.values()]
        if step == 1 or step % self.every == 0:
            for name, p in self.trained.items():
                self.histogram(step, f"gradients/{short(name)}", p.grad)

    @torch.no_grad()
    def updated(self, step):
        """After the optimizers' step."""
        if self.before is None:
            return
        now = [p.detach() for p in self.trained.values()]
        norms = self.norms(now)
        torch._foreach_sub_(self.before, now)
        self.log.scalars(step, "update_ratio", {part: norm / norms[part] if norms[part] else None
                                                for part, norm in self.norms(self.before).items()})
        self.log.scalars(step, "lr", {group["name"]: group["lr"] for o in self.optimizers for group in o.param_groups})
        self.before = None

    def norms(self, tensors):
        """{part: the norm of all its tensors together}; one tensor for each trained parameter."""
        squares = {}
        for name, norm in zip(self.trained, torch.stack(torch._foreach_norm(tensors)).tolist()):
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
        return {part: math.sqrt(square) for part, square in squares.items()}

    @torch.no_grad()
    def look(self, step, batch, done=False):
        """At an evaluation, every so many of them and at the last: one pass over a batch of validation, on the device.

        At step 0, before any training, it writes the graph as well.
        """
        if not self.log.board or (step % self.every and not done):
            return
        from tensorboardX.proto.event_pb2 import Event

        if step == 0:
            graph = graph_of(self.model, {name: tensor[:1] for name, tensor in batch.items()})
            self.log.board.file_writer.add_event(Event(graph_def=graph.SerializeToString()), step)
        for name, p in self.trained.items():
            self.histogram(step, f"weights/{short(name)}", p)
        names = {module: short(name) for name, module in self.model.named_modules()}
        real = batch.get("mask", torch.ones_like(batch["ids"], dtype=torch.bool))  # (B, T) what is no padding

        def read(module, _, out):
            self.histogram(step, f"activations/{names[module]}", out[real])
            if isinstance(module, Attention):
                entropy = torch.special.entr(weights.pop().float()).sum(-1).transpose(0, 1)  # (B, H, T, S) -> (H, B, T)
                self.log.scalars(step, "attention_entropy", {
                    f"{part_of(names[module])}.h{i}": x for i, x in enumerate(entropy[:, real].mean(1).tolist())})

        hooks = [module.register_forward_hook(read) for module in names if isinstance(module, (Attention, MLP, Block))]
        training = self.model.training
        self.model.eval()
        with attention_weights(self.model) as weights, distributed.autocast(real.device, self.dtype):
            self.model(**batch)
        self.model.train(training)
        for hook in hooks:
            hook.remove()

    def histogram(self, step, tag, x):
        x = x.detach().flatten()
        x = x[::max(1, len(x) // MOST)].float()
        low, high = (end.item() for end in x.aminmax())
        if not math.isfinite(high - low):
            return
        bins = BINS if high > low else 1  # gradients are all 0 where what follows still is
        counts = torch.histc(x, bins, low, high) if high > low else torch.tensor([len(x)])
        ends = [low + (high - low) * (i + 1) / bins for i in range(bins)]
        self.log.board.add_histogram_raw(tag, min=low, max=high, num=len(x), sum=x.sum().item(), bucket_limits=ends,
                                         sum_squares=x.square().sum().item(), bucket_counts=counts.tolist(),
                                         global_step=step)


def short(name):
    """The name of a weight or module without the trunk in front, which most have."""
    return name.removeprefix("trunk.").removesuffix(".weight")


def part_of(name):
    """The part of the model that a weight belongs to: its block, or the name it begins with (tokens, head, ...)."""
    words = short(name).split(".")
    return ".".join(words[:2]) if words[0] == "blocks" else words[0]
