"""A model in numbers: the outputs of its parts, their parameters, their work and their memory.

    python -m nanoft model config/wikitext.py --n_layer=6    # options are those of train.py
    python -m nanoft model out/wikitext                      # of a run, fine-tuned ones too

The forward pass of one training step runs on fake tensors, which have shapes but no memory, so the model may have any
size. FLOPs are those of the matrix products: 2 for each number of a matrix and each vector multiplied by it. Causal
attention counts in full, though compiled code leaves a part of it out. Activations are the tensors that autograd saves
for the backward pass in eager mode, bfloat16 copies of the weights included; a compiled step saves fewer. For moments a
step needs more memory than that, above all for the gradient of the logits: 1.6 to 1.8 times as much was measured on the
CPU (LOG.md).
"""

import sys
from collections import Counter
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Literal, NamedTuple

import torch
import torch.nn as nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nanoft import batches, config, distributed, files, optim
from nanoft.model import BERT, Attention, ModelConfig, check_model, make_model
from nanoft.published.source import open_checkpoint
from nanoft.tasks import freezing
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary


class Row(NamedTuple):
    """A module; a block's row sums up its parts, which are listed for the first block only."""
    name: str
    output: tuple | None   # shape
    weight: tuple | None   # shape
    parameters: int
    flops: float           # forward, per token
    activations: int       # bytes


def summarize(shape: ModelConfig, cfg, task: dict | None = None, device="cpu",
              dtype=torch.float32) -> tuple[list[Row], dict]:
    """The rows of the summary, and its totals. cfg: a run's options; task: of a fine-tuned model.

    Totals: parameters, trained parameters, forward FLOPs per token, the batch's shape (B, T), and the bytes of weights,
    gradients, optimizer and activations.
    """
    dist = distributed.Dist(0, 1, torch.device(device), dtype)
    B, T = cfg.micro_batch_size or cfg.batch_size, task["max_length"] if task else shape.block_size
    with FakeTensorMode(), dist.device:
        # a response is learned by a plain GPT; the prompt's share of a row varies, so all tokens count as targets
        model = TaskModel(shape, task) if task and task["kind"] != "generate" else make_model(shape)
        if task:
            freezing.freeze(model, cfg)
        groups = (optim.finetuning_groups if task else optim.pretraining_groups)(model, cfg)
        optimizers = optim.make_optimizers(model, groups, dist)
        outputs, saved = forward(model, example_batch(model, B, T, cfg), dist)
    parameters, flops = Counter(), Counter()
    for name, p in model.named_parameters():  # tied parameters count once
        parameters[name.rpartition(".")[0]] += p.numel()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name in outputs:  # each output is a sum of as many products
            flops[name] = 2 * module.weight[0].numel() * outputs[name].numel() / (B * T)
        elif isinstance(module, Attention):  # queries times keys, weights times values, T keys for each query
            flops[name] = 2 * 2 * T * module.q.out_features
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = sum(4 * len(p) if isinstance(o, optim.RowRMSprop) else p.numel() * (4 if isinstance(o, optim.Muon) else 8)
                for o in optimizers for group in o.param_groups for p in group["params"])  # or AdamW's two moments
    totals = {"parameters": parameters.total(), "trained": trained, "flops": flops.total(), "batch": (B, T),
              "weights": 4 * parameters.total(), "gradients": 4 * trained, "optimizer": state,
              "activations": saved.total()}
    rows = []
    for name, module in model.named_modules():
        _, block, rest = name.partition("trunk.blocks.")
        number, _, inside = rest.partition(".")
        if name in ("", "trunk", "trunk.blocks") or inside and number != "0":
            continue
        sums = [sum(counter[n] for n in counter if n == name or block and not inside and n.startswith(name + "."))
                for counter in (parameters, flops, saved)]
        if any(sums):
            output, weight = (x if x is None else tuple(x.shape)
                              for x in (outputs.get(name), getattr(module, "weight", None)))
            rows.append(Row(f"  {inside}" if inside else f"block {number}" if block else name, output, weight, *sums))
    rows.append(Row("loss and the rest", None, None, parameters[""] + parameters["trunk"], 0,
                    saved[""] + saved["trunk"]))
    return rows, totals


def example_batch(model: nn.Module, B: int, T: int, cfg) -> dict:
    """A batch with the shapes of a training step's, for any model."""
    ids, task = torch.zeros(B, T, dtype=torch.long), getattr(model, "task", None)
    if task is None:
        batch: dict = {"ids": ids, "targets": ids}
        if isinstance(model, BERT):
            batch["capacity"] = batches.capacity((B, T), cfg.mask_prob)
            if model.cfg.n_types:
                batch |= {"types": ids, "mask": ids == 0, "next_targets": ids[:, 0]}
        return batch
    kind = task["kind"]
    if kind == "image":
        picture = task["picture"]
        ids = torch.zeros(B, picture["channels"], picture["size"], picture["size"], dtype=torch.uint8)
        return {"ids": ids, "targets": ids[:, 0, 0, 0].long(), "weights": torch.ones(B)}
    targets = {"tag": ids, "answer": ids[:, :2], "regress": torch.zeros(B)}.get(kind, ids[:, 0])
    if task.get("multi_label"):
        targets = torch.zeros(B, len(task["labels"]))
    batch = {"ids": ids, "targets": targets, "weights": torch.ones(targets.shape if kind == "tag" else B),
             "mask": ids == 0, "allowed": ids == 0}  # which only answer reads
    return batch | ({"types": ids} if kind in ("pair", "answer") else {})


def forward(model: nn.Module, batch: dict, dist: distributed.Dist) -> tuple[dict, Counter]:
    """One forward pass: {module: its output}, and {module: bytes it made autograd save}, each storage counted once."""
    outputs, saved, inside = {}, Counter(), [""]
    seen = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}

    def pack(x):
        storage = x.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            saved[inside[-1]] += storage.nbytes()
        return x

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(lambda module, args, name=name: inside.append(name))
            module.register_forward_hook(lambda module, args, output: outputs.update({inside.pop(): output}))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), dist.autocast():
        loss = model(**batch)
    del loss  # until here it held every saved storage, so that no address was used twice
    return outputs, saved


def as_text(rows: list[Row], totals: dict, dtype=torch.float32) -> str:
    """The summary as a table and two sentences."""
    B, T = totals["batch"]
    table: list[tuple] = [("", "output", "weights", "parameters", "FLOPs a token", "activations")]
    table += [(row.name, *(str(x or "").replace(" ", "") for x in (row.output, row.weight)), f"{row.parameters:,}",
               f"{row.flops:,.0f}", size(row.activations)) for row in rows]
    table.append(("in all", "", "", f"{totals['parameters']:,}", f"{totals['flops']:,.0f}",
                  size(totals["activations"])))
    parts = ("weights", "gradients", "optimizer", "activations")
    number_format = str(dtype).removeprefix("torch.")
    return "\n".join([
        files.aligned(table), "",
        f"a step keeps     {' + '.join(f'{part} {size(totals[part])}' for part in parts)} = "
        f"{size(sum(totals[part] for part in parts))}, products in {number_format}, {B} sequences of {T} at once",
        f"a token's work   {totals['flops'] / 1e6:,.1f} MFLOP forward, in training 3 times that; "
        f"{3 * totals['flops'] * B * T / 1e9:,.0f} GFLOP for these {B * T:,} tokens"])


def size(n: int) -> str:
    """Bytes as text."""
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
    head_dim: int = 0
    n_embd: int = 128
    block_size: int = 128
    dropout: float = 0.0
    activation: Literal["relu2", "swiglu"] = "relu2"
    n_gram: int = 1
    n_buckets: int = 16384
    tie_head: Literal["auto", "true", "false"] = "auto"
    arch: Literal["modern", "gpt2", "bert"] = "modern"
    mask_prob: float = 0.15
    batch_size: int = 16
    micro_batch_size: int = 0
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 0.01
    embed_lr: float = 0.1
    muon_lr: float = 0.02
    weight_decay: float = 0.0


def from_run(path) -> tuple[ModelConfig, SimpleNamespace, dict | None]:
    """Shape, options and task (or None) of a run; device=auto where this machine lacks the run's. Raises UserError."""
    state, path = open_checkpoint(path)
    options = asdict(Options()) | state["config"]  # published weights have no options
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(options["device"], True):
        print(f"{path}: its device={options['device']} is not available here; described for device=auto",
              file=sys.stderr)
        options["device"] = "auto"
    return ModelConfig.from_saved(state["model_config"], path), SimpleNamespace(**options), state.get("task")


def from_options(argv: list[str]) -> tuple[ModelConfig, Options, None]:
    """The same for a config file and options of train.py. Raises UserError."""
    cfg = config.load(Options, argv, check_model, others=True)
    path = prepare.find_data(cfg.data) / "tokenizer.json"
    if not path.exists():
        print(f"{path.parent} is not prepared yet: a vocabulary of 8,192 is assumed")
    vocab_size = vocabulary.load(path).vocab_size if path.exists() else 8192
    return ModelConfig.from_options(cfg, vocab_size), cfg, None


def describe(shape: ModelConfig, cfg, task: dict | None = None) -> str:
    """The summary as text, on the options' device and in their number format; auto: this machine's."""
    dist = distributed.start(cfg.device, cfg.dtype)
    return as_text(*summarize(shape, cfg, task, dist.device, dist.dtype), dist.dtype)


def main():
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(__doc__.strip())
        return
    is_run = len(words) == 1 and not words[0].startswith("--") and not words[0].endswith(".py")
    print(describe(*(from_run(words[0]) if is_run else from_options(words))))
