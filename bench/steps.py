"""The machine's ceilings, and a training step beside them: its rate, its memory, where its time goes, other sizes."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from bench.turns import Child, Gone, in_turn, measured, median, present, start_all, wanted

SIZE = dict(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=16, vocab_size=4096)
GPT2 = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=32, vocab_size=50304)  # of a GPU
SHORT = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
LEAD = ["nanoft bf16 compiled", "nanoft fp32 compiled"]  # the rows that peers are compared with


# ---- ceilings ----------------------------------------------------------------------------------------------------


def limit_ways(child: Child, machine: dict) -> dict[str, Callable]:
    """What the machine can do at most: {name: a function that measures it once}."""
    dtypes = ["float32"] + ["bfloat16"] * machine["native_bf16"]
    ways = {}
    for dtype in dtypes:
        ways[f"{SHORT[dtype]} matrix product, 2048"] = \
            lambda dtype=dtype: child.ask("product", dtype=dtype, size=2048)["gflops"]
        ways[f"{SHORT[dtype]} products of the step"] = \
            lambda dtype=dtype: child.ask("step_products", dtype=dtype, size=SIZE)["gflops"]
    return ways | {"memory read": lambda: child.ask("read")["gb_s"]}


def ceilings(cfg, machine):
    with Child(make="machine") as child:
        values = in_turn(limit_ways(child, machine), cfg.rounds, cfg.minutes)
    facts = {name: {"unit": "GB/s" if name == "memory read" else "GFLOP/s"} for name in values}
    return measured("the machine", "GFLOP/s", True, values, facts, [])


# ---- a training step ---------------------------------------------------------------------------------------------


def contenders(cfg, machine: dict, size: dict = SIZE) -> dict[str, dict]:
    """{name: what bench.child makes}, of nanoft and its peers."""
    specs = {}
    gpu = "gpu" in machine
    for dtype in ["bfloat16"] * machine["native_bf16"] + ["float32"] * (not gpu):
        for compiled in (True, False):
            specs[f"nanoft {SHORT[dtype]} {'compiled' if compiled else 'eager'}"] = \
                dict(who="nanoft", dtype=dtype, compiled=compiled)
    best = "bfloat16" if machine["native_bf16"] else "float32"
    specs[f"nanoft {SHORT[best]} compiled, Muon"] = dict(who="nanoft", dtype=best, compiled=True, optimizer="muon")
    specs[f"nanoft {SHORT[best]} compiled, own head"] = dict(who="nanoft", dtype=best, compiled=True, tie_head=False)
    peers = [("nanogpt", "nanoGPT", {"checkout": os.path.abspath(cfg.nanogpt)})] if cfg.nanogpt else []
    peers += [("transformers", "transformers", {})] if present(cfg, "transformers") else []
    for who, name, more in peers:
        if not gpu:
            specs[f"{name} fp32 eager"] = dict(who=who, dtype="float32", **more)
        if (who == "nanogpt" or best == "float32") and not gpu:
            specs[f"{name} fp32 compiled"] = dict(who=who, dtype="float32", compiled=True, **more)
        if best == "bfloat16":
            specs[f"{name} bf16 compiled"] = dict(who=who, dtype="bfloat16", compiled=True, **more)
    return {name: dict(make="step", size=size, **specs[name]) for name in wanted(cfg, specs)}


def facts_of(specs):
    return {name: {"dtype": spec["dtype"], "peer": spec["who"] != "nanoft"} for name, spec in specs.items()}


def step(cfg, machine: dict, size: dict = SIZE) -> dict:
    """Tokens per second. The share of the ceiling counts 6 operations per token and weight that it is multiplied by."""
    tokens = size["batch_size"] * size["block_size"]
    specs = contenders(cfg, machine, size)
    with ExitStack() as stack:
        started = start_all(specs, stack)
        ways = limit_ways(stack.enter_context(Child(make="machine")), machine)
        ways.pop("memory read", None)
        ways |= {name: lambda child=child: cfg.steps * tokens / sum(child.ask("steps", n=cfg.steps)["seconds"])
                 for name, (child, _) in started.items()}
        values = in_turn(ways, cfg.rounds, cfg.minutes)
    limits = {name: median(values.pop(name)) for name in list(values) if name not in started}
    facts = facts_of(specs)
    for name, (_, warm) in started.items():
        limit = f"{SHORT[facts[name]['dtype']]} matrix product, 2048"
        gflops = 6 * warm["weights"] * median(values[name]) / 1e9
        facts[name] |= {"parameters": warm["parameters"], "share": gflops / limits[limit], "share_of": limit}
    return measured("training step of a GPT of 6 x 384", "tokens/s", True, values, facts, LEAD, limits)


def memory(cfg, machine: dict) -> dict:
    """Peak memory of a process (or of its GPU) that does three steps, in MB; compiled code is found in the cache."""
    specs = contenders(cfg, machine, GPT2 if "gpu" in machine else SIZE)

    def peak(spec):
        with Child(**spec) as child:
            child.ask("warm")
            child.ask("steps", n=1)
            return child.ask("memory")["mb"]

    for name, spec in list(specs.items()):  # fills the caches, and drops contenders that fail here
        with ExitStack() as stack:
            if not start_all({name: spec}, stack):
                del specs[name]
    values = in_turn({name: lambda spec=spec: peak(spec) for name, spec in specs.items()}, cfg.rounds, cfg.minutes)
    return measured("peak memory of that step", "MB", False, values, facts_of(specs), LEAD)


def profile(cfg, machine: dict) -> dict:
    """Print where nanoft's step spends its time, eager and compiled; returns milliseconds by group of operators."""
    dtype, rows = "bfloat16" if machine["native_bf16"] else "float32", []
    for mode in ("eager", "compiled"):
        spec = dict(make="step", who="nanoft", size=SIZE, dtype=dtype, compiled=mode == "compiled", profiled=True)
        with ExitStack() as stack:
            child, _ = start_all({f"nanoft {SHORT[dtype]} {mode}": spec}, stack)[f"nanoft {SHORT[dtype]} {mode}"]
            times = child.ask("profile", n=cfg.steps)
        print(f"\nnanoft {SHORT[dtype]} {mode}: {times['ms']:.0f} ms a step under the profiler")
        for group, ms in times["groups"].items():
            print(f"  {group:34}{ms:9.1f} ms {ms / times['ms']:7.1%}")
        print("  the slowest operators: " + ", ".join(f"{name[:60]} {ms:.0f}" for name, ms in times["operators"]))
        rows += [{"name": f"{mode}: {group}", "median": ms, "rounds": [ms], "share": ms / times["ms"]}
                 for group, ms in times["groups"].items()]
    return {"title": "where a step's time goes", "unit": "ms", "higher_is_better": False, "lead": [], "limits": {},
            "rows": rows}


# ---- fine-tuning -------------------------------------------------------------------------------------------------


def finetune(cfg, machine: dict) -> dict:
    """Texts per second of a classifier's training steps, on texts as long as SST-2's."""
    best = "bfloat16" if machine["native_bf16"] else "float32"
    specs = {f"nanoft {SHORT[best]}": dict(who="nanoft", dtype=best, pad=1)}
    if present(cfg, "transformers"):
        specs[f"transformers {SHORT[best]}, padded to the longest"] = dict(who="transformers", dtype=best, pad=1)
        specs["transformers fp32, padded to 128"] = dict(who="transformers", dtype="float32", pad=128)
    specs = {name: dict(make="finetuning", **specs[name]) for name in wanted(cfg, specs)}
    with ExitStack() as stack:
        ways = {}
        for name, (child, _) in start_all(specs, stack).items():
            texts = 1600 if specs[name]["who"] == "nanoft" else 256  # the peer's batches all have the same size
            ways[name] = lambda child=child, texts=texts: child.ask("texts", n=texts)["per_second"]
        values = in_turn(ways, cfg.rounds, cfg.minutes)
    facts = {name: {"peer": spec["who"] != "nanoft"} for name, spec in specs.items()}
    return measured("fine-tuning a classifier of 4 x 256, texts as long as SST-2's sentences", "texts/s", True, values,
                    facts, list(specs)[:1])


# ---- cost against size -------------------------------------------------------------------------------------------

MODELS = {  # the vocabulary of the largest is GPT-2's, as its size is
    "1M": dict(n_layer=4, n_head=4, n_embd=128, vocab_size=4096),
    "12M": dict(n_layer=6, n_head=6, n_embd=384, vocab_size=4096),
    "50M": dict(n_layer=10, n_head=10, n_embd=640, vocab_size=4096),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257),
}
LENGTHS = (128, 256, 512, 1024, 2048)
TOKENS = 4096  # of a step, whatever the length


def size(cfg, machine: dict, models: dict = MODELS, lengths: tuple = LENGTHS, tokens: int = TOKENS) -> dict:
    """Tokens per second and peak MB of a step at growing sizes and lengths, eager and compiled, in a new process each.

    Nothing takes turns, because nothing is compared. The larger ones take a minute or two, all of them an hour.
    """
    dtype, rows, began = "bfloat16" if machine["native_bf16"] else "float32", [], time.time()
    names = wanted(cfg, [f"{model} T={length} {mode}" for model in models for length in lengths
                         for mode in ("eager", "compiled")])
    for name in names:
        if cfg.minutes and rows and time.time() - began > 60 * cfg.minutes:
            print(f"  after {cfg.minutes:g} minutes: {len(rows)} of {len(names)} sizes")
            break
        model, length, mode = name.replace("T=", "").split()
        shape = models[model] | dict(block_size=int(length), batch_size=max(1, tokens // int(length)))
        with Child(make="step", who="nanoft", size=shape, dtype=dtype, compiled=mode == "compiled") as child:
            try:
                warm = child.ask("warm")
                rates = [shape["batch_size"] * shape["block_size"] / seconds
                         for seconds in child.ask("steps", n=cfg.steps)["seconds"]]
                peak = child.ask("memory")["mb"]
            except Gone as gone:  # probably too large for this machine
                print(f"  {name} fails here: {gone}", flush=True)
                continue
        rows.append({"name": name, "model": model, "length": int(length), "mode": mode, "dtype": dtype, "peak_mb": peak,
                     "parameters": warm["parameters"], "weights": warm["weights"], "median": median(rates),
                     "rounds": rates})
        print(f"  {name}: {median(rates):,.0f} tokens/s, {peak:,.0f} MB", flush=True)
    return {"title": f"step against size, {tokens:,} tokens a step, {SHORT[dtype]}", "unit": "tokens/s",
            "higher_is_better": True, "lead": [], "limits": {}, "rows": rows}
