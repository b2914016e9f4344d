"""The model in figures: what each part puts out, its parameters, its work and its memory.

    python -m nanoft model config/wikitext.py --n_layer=6    # options are those of train.py
    python -m nanoft model out/wikitext                      # of a run, fine-tuned ones too

One training step's forward pass is run on fake tensors, which have shapes but no memory, so that any size can be asked
for. FLOPs are those of the matrix products: 2 for each number of a matrix and each row that meets it. Attention counts
whole, though compiled causal code leaves a part of it out. Activations are what autograd keeps for the backward pass,
eager, copies of the weights in bfloat16 among it; a compiled step keeps less. For moments a step needs more than it
keeps, above all for the gradient of the logits: on the CPU 1.6 to 1.8 times as much was measured (LOG.md).
"""

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn as nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nanoft import batches, config, distributed, files, optim
from nanoft.model import BERT, Attention, ModelConfig, check_model, make_model
from nanoft.published.source import open_checkpoint
from nanoft.tasks import freezing
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary


def summarize(shape, cfg, task=None, device="cpu", dtype=torch.float32):
    """The rows of the summary, and its totals, for a ModelConfig and a run's options.

    task: of a fine-tuned model. Rows: (name, output's shape, weights' shape, parameters, FLOPs a token, bytes of
    activations), a module each and the first block opened up. Totals: parameters, trained parameters, forward FLOPs a
    token, and bytes of weights, gradients, optimizer and activations.
    """
    device = torch.device(device)
    B, T = cfg.micro_batch_size or cfg.batch_size, task["max_length"] if task else shape.block_size
    with FakeTensorMode(), device:
        # a response is asked of a GPT like any other; how much of a row it is varies, so all of it is counted
        model = TaskModel(shape, task) if task and task["kind"] != "generate" else make_model(shape)
        if task:
            freezing.freeze(model, cfg)
        groups = (optim.finetuning_groups if task else optim.pretraining_groups)(model, cfg)
        optimizers = optim.make_optimizers(model, groups, distributed.Dist(0, 1, device, dtype))
        outputs, kept = run(model, example(model, B, T, cfg), device, dtype)
    parameters, flops = Counter(), Counter()
    for name, p in model.named_parameters():  # a tied one comes once
        parameters[name.rpartition(".")[0]] += p.numel()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name in outputs:
            flops[name] = 2 * module.in_features * outputs[name].numel() / (B * T)
        elif isinstance(module, Attention):  # queries with keys, weights with values: T keys a query
            flops[name] = 2 * 2 * T * shape.n_embd
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = sum(p.numel() * (4 if isinstance(o, optim.Muon) else 8)  # a momentum; or two moments
                for o in optimizers for group in o.param_groups for p in group["params"])
    totals = {"parameters": parameters.total(), "trained": trained, "flops": flops.total(), "batch": (B, T),
              "weights": 4 * parameters.total(), "gradients": 4 * trained, "optimizer": state,
              "activations": kept.total()}
    rows = []
    for name, module in model.named_modules():
        _, block, inside = name.partition("trunk.blocks.")
        number, _, inside = inside.partition(".")
        if name in ("", "trunk", "trunk.blocks") or inside and number != "0":
            continue
        whole = block and not inside  # a block's row is the sum of its parts'
        sums = [sum(part[n] for n in part if n == name or whole and n.startswith(name + "."))
                for part in (parameters, flops, kept)]
        if any(sums):
            shapes = [x if x is None else tuple(x.shape) for x in (outputs.get(name), getattr(module, "weight", None))]
            rows.append((f"  {inside}" if inside else f"block {number}" if block else name, *shapes, *sums))
    rows.append(("loss and the rest", None, None, parameters[""] + parameters["trunk"], 0, kept[""] + kept["trunk"]))
    return rows, totals


def example(model, B, T, cfg):
    """A batch with the shapes of a training step's, for any model."""
    ids, task = torch.zeros(B, T, dtype=torch.long), getattr(model, "task", None)
    if task is None:
        batch = {"ids": ids, "targets": ids}
        if isinstance(model, BERT):
            batch["capacity"] = batches.capacity((B, T), cfg.mask_prob)
            if model.cfg.n_types:
                batch |= {"types": ids, "mask": ids == 0, "next_targets": ids[:, 0]}
        return batch
    kind = task["kind"]
    targets = {"tag": ids, "answer": ids[:, :2], "regress": torch.zeros(B)}.get(kind, ids[:, 0])
    if task.get("multi_label"):
        targets = torch.zeros(B, len(task["labels"]))
    batch = {"ids": ids, "targets": targets, "weights": torch.ones(targets.shape if kind == "tag" else B),
             "mask": ids == 0}
    return batch | ({"types": ids} if kind in ("pair", "answer") else {}) | (
        {"allowed": ids == 0} if kind == "answer" else {})


def run(model, batch, device, dtype):
    """One forward pass: {module: its output}, and {module: bytes it had autograd keep}, what nobody had kept before."""
    outputs, kept, inside = {}, Counter(), [""]
    seen = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}

    def enter(name):
        inside.append(name)

    def leave(name, output):
        inside.pop()
        outputs[name] = output

    def pack(x):
        storage = x.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept[inside[-1]] += storage.nbytes()
        return x

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(lambda module, args, name=name: enter(name))
            module.register_forward_hook(lambda module, args, output, name=name: leave(name, output))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), distributed.autocast(device, dtype):
        loss = model(**batch)
    del loss  # until here it held what was kept, so that no storage had another's place
    return outputs, kept


def lines(rows, totals, dtype=torch.float32):
    """The summary as text."""
    B, T = totals["batch"]
    table = [("", "output", "weights", "parameters", "FLOPs a token", "activations")]
    table += [(name, *(str(x or "").replace(" ", "") for x in shapes), f"{n:,}", f"{work:,.0f}", size(kept))
              for name, *shapes, n, work, kept in rows]
    table.append(("in all", "", "", f"{totals['parameters']:,}", f"{totals['flops']:,.0f}",
                  size(totals["activations"])))
    parts = ("weights", "gradients", "optimizer", "activations")
    number_format = str(dtype).removeprefix("torch.")
    return [files.aligned(table), "",
            f"a step keeps     {' + '.join(f'{part} {size(totals[part])}' for part in parts)} = "
            f"{size(sum(totals[part] for part in parts))}, products in {number_format}, {B} sequences of {T} at once",
            f"a token's work   {totals['flops'] / 1e6:,.1f} MFLOP forward, in training 3 times that; "
            f"{3 * totals['flops'] * B * T / 1e9:,.0f} GFLOP for these {B * T:,} tokens"]


def size(n):
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB" if n else "0"


@dataclass
class Options:
    """The options of train.py that shape a model and its step; a test compares the defaults with train.py's."""
    data: str = "stdlib"               # for the size of the vocabulary
    objective: Literal["causal", "mlm", "mlm_nsp"] = "causal"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0
    n_embd: int = 128
    block_size: int = 128
    dropout: float = 0.0
    n_gram: int = 1
    n_buckets: int = 16384
    tie_head: bool = False
    arch: Literal["modern", "gpt2", "bert"] = "modern"
    mask_prob: float = 0.15
    batch_size: int = 16
    micro_batch_size: int = 0
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 0.01
    embed_lr: float = 0.1
    muon_lr: float = 0.02
    weight_decay: float = 0.0


def of_run(place):
    """The ModelConfig, the options and the task (or None) of a run folder or checkpoint."""
    state, path = open_checkpoint(place)
    options = asdict(Options()) | state["config"]  # weights that came from elsewhere have no options
    return ModelConfig.from_saved(state["model_config"], path), SimpleNamespace(**options), state.get("task")


def of_options(argv):
    """The same for a config file and options of train.py."""
    cfg = config.load(Options, argv, check_model, others=True)
    path, vocab_size = prepare.find_data(cfg.data) / "tokenizer.json", 8192
    if path.exists():
        vocab_size = vocabulary.load(path).vocab_size
    else:
        print(f"{path.parent} is not prepared yet: a vocabulary of {vocab_size:,} is assumed")
    return ModelConfig.from_options(cfg, vocab_size), cfg, None


def described(shape, cfg, task=None):
    """The summary as text, on this machine's device and in its number format, unless the options name others."""
    dist = distributed.start(cfg.device, cfg.dtype)
    return "\n".join(lines(*summarize(shape, cfg, task, dist.device, dist.dtype), dist.dtype))


def main():
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(__doc__.strip())
        return
    is_run = len(words) == 1 and not words[0].startswith("--") and not words[0].endswith(".py")
    print(described(*(of_run(words[0]) if is_run else of_options(words))))
