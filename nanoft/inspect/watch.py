"""A model's numbers while it trains, for TensorBoard: rates, norms, histograms, what the heads attend to, its graph.

A Watch only reads: with it and without it a run has the same losses, bit for bit. Only rank 0 logs, and no other rank
waits for it. It reads the plain module; compiled code and DDP are not affected.

    lr/GROUP                     the learning rate of each parameter group of the optimizers
    gradient_norm/PART           before clipping; a part is a block, the token embedding, the head, ...
    update_ratio/PART            norm of the step's change of the weights / norm of the weights; 1e-3 is usual
    attention_entropy/PART.hN    nats, the mean over one validation batch; 0: the head attends to one token alone
    weights/ gradients/ activations/NAME     histograms
"""

import math
from dataclasses import asdict

import torch
from torch import nn

from nanoft.distributed import Dist
from nanoft.inspect.explain import attention_weights, hooked
from nanoft.inspect.graph import graph_of
from nanoft.model import MLP, Attention, Block

NOT_COMPARED = ("out_dir", "resume", "eval_only", "device", "eval_interval", "eval_tokens", "log_interval",
                "watch_interval", "sample_tokens", "sample_prompt")  # options that do not change what is learned
BINS = 64           # of a histogram
MAX_VALUES = 2**17  # that a histogram counts; of a larger tensor as many, evenly spread


class Watch:
    def __init__(self, log, model: nn.Module, optimizers: list, every: int, dist: Dist):
        """log: the run's RunLog; every: steps between histograms."""
        self.log, self.model, self.optimizers, self.every, self.dist = log, model, optimizers, every, dist
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.before: list | None = None  # the weights before this step, if it is a log step

    @torch.no_grad()
    def gradients(self, step: int, due: bool) -> None:
        """Log the gradients of this step, before clipping. due: is it a log step?"""
        if not self.log.board:
            return
        if due:
            self.log.scalars(step, "gradient_norm", self.norms([p.grad for p in self.trained.values()]))
            self.before = [p.detach().clone() for p in self.trained.values()]
        if step == 1 or step % self.every == 0:
            for name, p in self.trained.items():
                self.histogram(step, f"gradients/{short(name)}", p.grad)

    @torch.no_grad()
    def updated(self, step: int) -> None:
        """Log what the optimizers' step has changed."""
        if self.before is None:
            return
        weights = [p.detach() for p in self.trained.values()]
        norms = self.norms(weights)
        torch._foreach_sub_(self.before, weights)
        self.log.scalars(step, "update_ratio", {part: norm / norms[part] if norms[part] else None
                                                for part, norm in self.norms(self.before).items()})
        self.log.scalars(step, "lr", {group["name"]: group["lr"] for o in self.optimizers for group in o.param_groups})
        self.before = None

    def norms(self, tensors: list) -> dict[str, float]:
        """{part: the norm of all its tensors together}, of one tensor for each trained parameter."""
        squares: dict[str, float] = {}
        for name, norm in zip(self.trained, torch.stack(torch._foreach_norm(tensors)).tolist()):
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
        return {part: math.sqrt(square) for part, square in squares.items()}

    @torch.no_grad()
    def look(self, step: int, batch: dict, done: bool = False) -> None:
        """Log weights, activations and attention entropy: one forward pass over a validation batch on the device.

        Does nothing at steps that are no multiple of `every`, unless the run is done. At step 0, logs the graph, too.
        """
        if not self.log.board or (step % self.every and not done):
            return
        if step == 0:
            from tensorboardX.proto.event_pb2 import Event

            graph = graph_of(self.model, {name: tensor[:1] for name, tensor in batch.items()})
            self.log.board.file_writer.add_event(Event(graph_def=graph.SerializeToString()), step)
        for name, p in self.trained.items():
            self.histogram(step, f"weights/{short(name)}", p)
        names = {module: short(name) for name, module in self.model.named_modules()}
        ids, task = batch["ids"], getattr(self.model, "task", {})
        shape = (len(ids), task["max_length"]) if task.get("kind") == "image" else ids.shape
        mask = batch.get("mask", ids.new_ones(shape, dtype=torch.bool))  # (B, T), False at padding

        def record(module, _, out):
            self.histogram(step, f"activations/{names[module]}", out[mask])
            if isinstance(module, Attention):
                entropy = torch.special.entr(weights.pop().float()).sum(-1).transpose(0, 1)  # (B, H, T, S) -> (H, B, T)
                self.log.scalars(step, "attention_entropy", {
                    f"{part_of(names[module])}.h{i}": x for i, x in enumerate(entropy[:, mask].mean(1).tolist())})

        watched = [module for module in names if isinstance(module, (Attention, MLP, Block))]
        training = self.model.training
        self.model.eval()
        with hooked(watched, record), attention_weights(self.model) as weights, self.dist.autocast():
            self.model(**batch)
        self.model.train(training)

    def compare(self, step: int, cfg, result: dict) -> None:
        """The final scores beside the options, in the HPARAMS tab, which compares runs; as scalars in `final`, too."""
        if not self.log.board:
            return
        from tensorboardX.summary import hparams

        options = {name: value for name, value in asdict(cfg).items() if name not in NOT_COMPARED}
        wanted = [name for name in result if name.startswith(("val_", "test_"))] + ["train_seconds", "parameters"]
        scores = {name: result[name] for name in wanted if isinstance(result[name], (int, float))}
        self.log.scalars(step, "final", scores)
        # the writer's own add_hparams would make another run beside this one
        for summary in hparams(options, {f"final/{name}": value for name, value in scores.items()}):
            self.log.board.file_writer.add_summary(summary, step)

    def histogram(self, step: int, tag: str, x) -> None:
        """Log the distribution of a tensor's values, unless one is not finite."""
        x = x.detach().flatten()
        x = x[::max(1, len(x) // MAX_VALUES)].float()
        low, high = (end.item() for end in x.aminmax())
        if not math.isfinite(high - low):
            return
        bins = BINS if high > low else 1  # all alike: gradients are 0 where all weights behind them still are
        counts = torch.histc(x, bins, low, high) if high > low else torch.tensor([len(x)])
        ends = [low + (high - low) * (i + 1) / bins for i in range(bins)]
        self.log.board.add_histogram_raw(tag, min=low, max=high, num=len(x), sum=x.sum().item(), bucket_limits=ends,
                                         sum_squares=x.square().sum().item(), bucket_counts=counts.tolist(),
                                         global_step=step)


def short(name: str) -> str:
    """The name of a weight or module without `trunk.` in front and `.weight` behind."""
    return name.removeprefix("trunk.").removesuffix(".weight")


def part_of(name: str) -> str:
    """The part of the model that a weight or module belongs to: its block, or else tokens, head, ..."""
    words = short(name).split(".")
    return ".".join(words[:2]) if words[0] == "blocks" else words[0]
