"""The process of a bench.turns.Child: one contender, which does what it reads from stdin line by line.

The first line says what to make, each later line names one of its functions; all lines are JSON. Peers are imported
here only, so that nanoft is also measured where they are missing.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from bench.turns import timed

DEVICE = "cpu"


def main():
    global DEVICE
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a contender prints must not be mixed with the replies
    spec = json.loads(sys.stdin.readline())
    DEVICE = spec.pop("device", DEVICE)
    answers = MAKERS[spec.pop("make")](**spec)
    answers["memory"] = peak_memory
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answers[request.pop("do")](**request)), file=replies, flush=True)


def synced(function):
    """The function, which then also waits for what it gave a GPU to do."""
    if DEVICE == "cpu":
        return function
    import torch

    def whole(*args):
        result = function(*args)
        torch.cuda.synchronize()
        return result

    return whole


def peak_memory():
    """The most memory that this process has had resident, or of a GPU's, in MB."""
    if DEVICE == "cuda":
        import torch

        return {"mb": torch.cuda.max_memory_allocated() / 2**20}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mb": peak / (2**20 if sys.platform == "darwin" else 1024)}


# ---- the machine -------------------------------------------------------------------------------------------------


def machine():
    """What torch knows about this machine, and its ceilings: GFLOP/s of matrix products, GB/s of reading memory."""
    import torch

    from nanoft import distributed

    device = torch.device(DEVICE)
    extras = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if torch.cpu.get_capabilities().get(name)]

    def about():
        return {"torch": torch.__version__, "threads": torch.get_num_threads(),
                "isa": " + ".join([torch.backends.cpu.get_cpu_capability(), *extras]),
                "native_bf16": distributed.native_bf16(device),
                **({"gpu": torch.cuda.get_device_name()} if DEVICE == "cuda" else {})}

    def product(dtype, size, runs=5):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        return {"gflops": 2 * size**3 / product_seconds(a, b, runs) / 1e9}

    def step_products(dtype, size, runs=3):
        return {"gflops": linear_rate(size, getattr(torch, dtype), runs)}

    def read(mb=256, runs=7):
        x = torch.randn(mb * 2**18, device=device)
        return {"gb_s": 4 * x.numel() / median_seconds(x.sum, runs) / 1e9}

    return {"about": about, "product": product, "step_products": step_products, "read": read}


def median_seconds(function, runs):
    function = synced(function)
    function()
    return statistics.median(timed(function) for _ in range(runs))


def product_seconds(a, b, runs):
    """Seconds of a bᵀ, in fp32 by the faster of torch's library and oneDNN. a: (M, K), b: (N, K)."""
    from torch.nn.functional import linear

    from nanoft.kernels import BOTH, product

    ways = [linear, product] if BOTH and str(a.dtype) == "torch.float32" and DEVICE == "cpu" else [linear]
    return min(median_seconds(partial(way, a, b), runs) for way in ways)


def linear_rate(size, dtype, runs):
    """GFLOP/s of all linear layers in a GPT's step: forward, and the gradients of the input and the weight."""
    import torch

    C, rows = size["n_embd"], size["batch_size"] * size["block_size"]
    layers = {(C, C): 4 * size["n_layer"], (C, 4 * C): size["n_layer"], (4 * C, C): size["n_layer"],
              (C, size["vocab_size"]): 1}  # (in, out): number of layers
    flops = seconds = 0.0
    for (m, n), number in layers.items():
        x, w, g = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((rows, m), (n, m), (rows, n)))
        for a, b in ((x, w), (g, w.T), (g.T, x.T)):
            seconds += number * product_seconds(a, b, runs)
            flops += number * 2 * rows * m * n
    return flops / seconds / 1e9


# ---- a training step ---------------------------------------------------------------------------------------------


def step(who, size, dtype, compiled=False, profiled=False, **options):
    """One training step on random tokens: forward, backward, clip, optimizer. who: nanoft, nanogpt, transformers."""
    import torch

    from bench.profiler import profile

    if profiled:
        torch._inductor.config.cpp.enable_kernel_profile = True  # names every fused kernel
    torch.manual_seed(0)
    tokens = torch.randint(0, size["vocab_size"], (size["batch_size"], size["block_size"] + 1)).to(DEVICE)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    make = {"nanoft": nanoft_step, "nanogpt": nanogpt_step, "transformers": transformers_step}[who]
    model, learn, optimizers = make(x, y, size, getattr(torch, dtype), compiled, **options)
    net, dtype = learn.net, getattr(torch, dtype)

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    @synced
    def once():
        learn()
        update()

    @torch.no_grad()
    def evaluate(n):
        """Tokens per second of evaluation, n times the batch's tokens; by nanoft on 2^16 tokens a call on a GPU."""
        from nanoft import distributed, evaluate

        model.eval()
        dist = distributed.Dist(0, 1, torch.device(DEVICE), dtype)
        data = RandomTokens(n * x.numel(), size["vocab_size"])

        def theirs():
            for _ in range(n):
                with dist.autocast():
                    net(x, y)

        way = synced(theirs if who != "nanoft" else lambda: evaluate.causal_metrics(net, data, 0, 0, dist))
        way()  # compiles
        rate = len(data) / timed(way)
        model.train()
        return {"per_second": rate}

    def warm():
        first = timed(once)
        once()
        return {"first_seconds": first, "parameters": sum(p.numel() for p in model.parameters()),
                "weights": product_weights(model)}

    return {"warm": warm, "evaluate": evaluate, "steps": lambda n: {"seconds": [timed(once) for _ in range(n)]},
            "profile": lambda n: profile(learn, update, n)}


class RandomTokens:
    """Tokens as evaluation reads them."""
    num_bytes, num_words = 1, 0

    def __init__(self, number, vocab_size):
        import numpy as np

        self.ids = np.random.default_rng(0).integers(0, vocab_size, number)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop]


def nanoft_step(x, y, size, dtype, compiled, optimizer="adamw", tie_head=True):
    """As in train.py. Returns the model, a function that adds the gradient, and the optimizers."""
    import torch

    import train
    from nanoft import distributed, kernels, optim
    from nanoft.model import ModelConfig, make_model

    device = torch.device(DEVICE)
    dist = distributed.Dist(0, 1, device, dtype)
    shape = {name: size[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    model = make_model(ModelConfig(tie_head=tie_head, **shape)).to(device)
    cfg = train.Config(optimizer=optimizer, tie_head=tie_head, lr=1e-3, embed_lr=0.0)  # small, for tokens are random
    kernels.tune(model, device)
    optimizers = optim.make_optimizers(model, optim.pretraining_groups(model, cfg), dist, (0.9, cfg.beta2), 1e-10)

    def learn(net):
        with dist.autocast():
            losses = net(ids=x, targets=y).view(-1)
        losses.sum().backward()

    net = kernels.compiled(model, learn, "true", dtype, x.size(1), print) if compiled else model
    model.zero_grad(set_to_none=True)
    once = partial(learn, net)
    once.net = net
    return model, once, optimizers


def nanogpt_step(x, y, size, dtype, compiled, checkout):
    import torch

    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(block_size=size["block_size"], vocab_size=size["vocab_size"], n_layer=size["n_layer"],
                          n_head=size["n_head"], n_embd=size["n_embd"], dropout=0.0, bias=False)).to(DEVICE)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), DEVICE)
    net = torch.compile(model) if compiled else model

    def learn():
        with torch.autocast(DEVICE, dtype) if dtype != torch.float32 else nullcontext():
            loss = net(x, y)[1]
        loss.backward()

    learn.net = net
    return model, learn, [optimizer]


def transformers_step(x, y, size, dtype, compiled):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=size["vocab_size"], n_positions=size["block_size"], n_embd=size["n_embd"], n_layer=size["n_layer"],
        n_head=size["n_head"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).to(DEVICE).train()
    net = torch.compile(model) if compiled else model

    def learn():
        with torch.autocast(DEVICE, dtype) if dtype != torch.float32 else nullcontext():
            loss = net(input_ids=x, labels=x).loss  # it shifts the labels itself
        loss.backward()

    learn.net = lambda x, y: net(input_ids=x, labels=x)
    return model, learn, [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)]


def product_weights(model):
    """The number of weights that each token is multiplied by: matrices, except tables that are only looked up."""
    from torch import nn

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}  # a tied head is both
    return sum(p.numel() for p in model.parameters() if p.dim() > 1 and (id(p) not in tables or id(p) in heads))


# ---- fine-tuning -------------------------------------------------------------------------------------------------


def finetuning(who, dtype, pad):
    """A classifier of 4 x 256 on texts as long as SST-2's: steps of 32 texts, padded to `pad` or the longest of them.

    nanoft batches texts of similar lengths, as finetune.py does; the peer batches them at random, its default.
    `texts` answers with texts per second over about n of them.
    """
    import numpy as np
    import torch

    torch.manual_seed(0)
    lengths = np.clip(np.random.default_rng(0).lognormal(3.0, 0.6, 1600).astype(int) + 2, 4, 128)
    dtype = getattr(torch, dtype)
    order, learn, update = {"nanoft": nanoft_classifier, "transformers": transformers_classifier}[who](lengths, pad)

    def one(index):
        with torch.autocast(DEVICE, dtype) if dtype != torch.float32 else nullcontext():
            loss = learn(index)
        loss.backward()
        update()

    def texts(n):
        steps = order[:max(1, n // order.shape[1])]  # (steps, texts of each)
        return {"per_second": steps.size / timed(lambda: [one(index) for index in steps])}

    return {"warm": lambda: texts(64), "texts": texts}


def nanoft_classifier(lengths, pad):
    from types import SimpleNamespace

    import numpy as np
    import torch

    import finetune
    from nanoft import distributed, kernels, optim
    from nanoft.model import ModelConfig
    from nanoft.tasks import collate, features
    from nanoft.tasks.heads import TaskModel

    device = torch.device(DEVICE)
    n, rng = len(lengths), np.random.default_rng(0)
    task = {"kind": "classify", "labels": ["no", "yes"], "pool": "mean", "head_dropout": 0.1,
            "max_length": 128}
    model = TaskModel(ModelConfig(vocab_size=8192, block_size=128, n_layer=4, n_head=4, n_embd=256, causal=False,
                                  dropout=0.1), task)
    tokenizer = SimpleNamespace(special={"<|pad|>": 8191, "<|endoftext|>": 8190})
    encoded = features.Encoded(
        ids=rng.integers(0, 8000, lengths.sum()), begin=np.cumsum([0, *lengths]), row=np.arange(n), second=lengths,
        targets=rng.integers(0, 2, n), context_start=np.zeros(n, dtype=np.int64),
        max_context=np.zeros((n, 2), dtype=np.int64), n_tokens=lengths, offsets=[])
    kernels.tune(model, device)
    groups = optim.finetuning_groups(model, finetune.Config())
    optimizers = optim.make_optimizers(model, groups, distributed.Dist(0, 1, device, torch.bfloat16))

    def learn(index):
        return model(**distributed.to_device(collate.batch(encoded, index, task, tokenizer, pad), device)) / len(index)

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return collate.group_by_length(lengths, 32, 1, 0), learn, update


def transformers_classifier(lengths, pad):
    import numpy as np
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(vocab_size=8192, hidden_size=256, num_hidden_layers=4,
                                                     num_attention_heads=4, intermediate_size=1024)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def learn(index):
        T = max(pad, int(lengths[index].max()))
        mask = (torch.arange(T) < torch.from_numpy(lengths[index])[:, None]).long()
        return model(input_ids=torch.randint(5, 8192, (len(index), T)), attention_mask=mask,
                     labels=torch.randint(0, 2, (len(index),))).loss

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return np.arange(len(lengths)).reshape(-1, 32), learn, update


# ---- sampling ----------------------------------------------------------------------------------------------------


def sampling(who, size, dtype, prompt=16, sequences=1, checkout=""):
    """Sequences from a GPT-2 with random weights of this dtype. `sample` answers with the seconds for n tokens each."""
    import torch

    torch.manual_seed(0)
    eight, dtype, rules = dtype == "int8", getattr(torch, dtype), dict(temperature=0.8, top_k=200)
    if who == "nanoft":
        from nanoft import distributed, generate, kernels, quantize
        from nanoft.model import CLASSIC, ModelConfig, make_model
        from nanoft.sampling import Sampling

        if DEVICE == "cpu":
            distributed.keep_memory()
        model = make_model(ModelConfig(**size, **CLASSIC["gpt2"]))

        def sample(ids, n):
            made = list(generate.generate(model, ids, n, Sampling(**rules)))
            return len(made) * (made[-1].tolist() != [])  # the list waits for the device
    elif who == "nanogpt":
        sys.path.insert(0, checkout)
        from model import GPT, GPTConfig

        model = GPT(GPTConfig(**size, dropout=0.0))

        def sample(ids, n):
            return model.generate(ids, n, **rules).size(1) - ids.size(1)
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(vocab_size=size["vocab_size"], n_positions=size["block_size"],
                                           n_embd=size["n_embd"], n_layer=size["n_layer"], n_head=size["n_head"]))

        def sample(ids, n):
            return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=True,
                                  eos_token_id=None, pad_token_id=0, **rules).size(1) - ids.size(1)
    model.to(DEVICE).eval()
    n_bytes = product_weights(model) * dtype.itemsize
    if who != "nanoft":
        model.to(dtype)
    elif eight:
        quantize.compute_in_int8(model)
    else:
        kernels.tune_generation(model, dtype)
    ids = torch.randint(0, size["vocab_size"], (sequences, prompt)).to(DEVICE)

    def timed_sample(n):
        start = time.perf_counter()
        with torch.no_grad():
            made = sample(ids, n)
        assert made == n, f"{made} tokens came, {n} were asked for"
        return {"seconds": time.perf_counter() - start}

    def warm():
        timed_sample(8)
        return {"bytes": n_bytes}

    return {"warm": warm, "sample": timed_sample}


# ---- tokenizing --------------------------------------------------------------------------------------------------


def tokenizing(path, vocab_size):
    """A text to ids with a tokenizer that is learned on it: by nanoft on disk and fsynced, by tiktoken in memory."""
    from nanoft import bins, bpe, files

    tokenizer = bpe.train([files.read_blocks(path)], vocab_size, progress=False)
    megabytes = Path(path).stat().st_size / 1e6

    def to_disk(repeat=0):
        """MB/s; with `repeat`, of the text that many times as one document, which is never held in memory."""
        stream = (block for _ in range(repeat) for block in files.read_blocks(path))
        with tempfile.TemporaryDirectory() as folder:
            documents = [stream] if repeat else parts()
            return {"mb_s": megabytes * max(repeat, 1) / timed(
                lambda: bins.write_split(folder, "train", documents, tokenizer))}

    def in_memory():
        documents, threads = parts(), files.available_cores()
        return {"mb_s": megabytes / timed(
            lambda: tokenizer.encoding.encode_ordinary_batch(documents, num_threads=threads))}

    def parts():
        content = Path(path).read_text(encoding="utf-8")
        return [content[i:i + 20_000] for i in range(0, len(content), 20_000)]

    return {"to_disk": to_disk, "in_memory": in_memory}


MAKERS = {"machine": machine, "step": step, "finetuning": finetuning, "sampling": sampling, "tokenizing": tokenizing}

if __name__ == "__main__":
    main()
