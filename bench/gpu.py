"""A GPU's figures: training step and evaluation of a GPT-2 of 124M, and the loss after equal seconds of training.

Contenders come one after another, each alone on the GPU: it is not shared, so its speed does not change meanwhile.
"""

import json
import pickle
import shutil
import sys

import numpy as np

from bench.runs import nanogpt_losses, new_folder
from bench.steps import GPT2, LEAD, SIZE, contenders, facts_of
from bench.turns import ROOT, Child, Gone, measured, median, watch
from nanoft import UserError
from nanoft.bins import Tokens
from nanoft.text import prepare


def alone(cfg, machine: dict, size: dict | None, ask) -> tuple[dict, dict]:
    """{name: a value per round}, {name: facts} of a step's contenders. ask(child, tokens): measures one once."""
    size = size or (GPT2 if "gpu" in machine else SIZE)
    specs, values, facts = contenders(cfg, machine, size), {}, {}
    for name, spec in specs.items():
        with Child(**spec) as child:
            try:
                warm = child.ask("warm")
                values[name] = [ask(child, size["batch_size"] * size["block_size"]) for _ in range(cfg.rounds)]
            except Gone as gone:
                if spec["who"] == "nanoft":
                    raise UserError(f"{name} failed: {gone}") from None
                print(f"  {name} fails here and is left out: {gone}", flush=True)
                continue
        facts[name] = facts_of(specs)[name] | {"parameters": warm["parameters"], "weights": warm["weights"],
                                               "first_seconds": warm["first_seconds"]}
        print(f"  {name}: {median(values[name]):,.0f} tokens/s", flush=True)
    return values, facts


def step(cfg, machine: dict, size: dict | None = None) -> dict:
    """Tokens per second of training."""
    steps = 10 * cfg.steps if "gpu" in machine else cfg.steps
    values, facts = alone(cfg, machine, size, lambda child, tokens: steps * tokens / sum(
        child.ask("steps", n=steps)["seconds"]))
    with Child(make="machine") as child:
        limit = child.ask("product", dtype="bfloat16" if machine["native_bf16"] else "float32",
                          size=8192 if "gpu" in machine else 2048)["gflops"]
    for name, rates in values.items():
        facts[name] |= {"share": 6 * facts[name]["weights"] * median(rates) / 1e9 / limit, "share_of": "matrix product"}
    return measured("training step", "tokens/s", True, values, facts, LEAD, {"matrix product": limit})


def evaluate(cfg, machine: dict, size: dict | None = None) -> dict:
    """Tokens per second of evaluation: nanoft's evaluate.causal_metrics, of peers the bare forward pass of a batch."""
    values, facts = alone(cfg, machine, size, lambda child, tokens: child.ask("evaluate", n=4)["per_second"])
    return measured("evaluation", "tokens/s", True, values, facts, LEAD)


def equal_seconds(cfg, machine: dict, size: dict = GPT2, options=()) -> dict:
    """The validation loss after equal seconds of training on the same tokens: nanoft's defaults, nanoGPT's recipe.

    nanoGPT's schedule wants to know its number of steps: it gets as many as its step takes seconds (measured before).
    Compiling is not counted in either.
    """
    folder = prepare.find_data(cfg.data)
    prepare.ensure(folder)
    shape = [f"--{name}={size[name]}" for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size")]
    values: dict[str, list] = {"nanoft": []}
    for seed in range(1, cfg.rounds + 1):
        with new_folder() as out:
            watch([sys.executable, "train.py", f"--device={cfg.device}", f"--data={folder}", f"--out_dir={out / 'run'}",
                   f"--seed={seed}", f"--max_minutes={cfg.seconds / 60}", *shape, *options], lambda: None)
            values["nanoft"].append(json.loads((out / "run" / "result.json").read_text(encoding="utf-8"))["val_loss"])
        print(f"  nanoft: {values['nanoft'][-1]:.4f}", flush=True)
    if cfg.nanogpt:
        peer = dict(who="nanogpt", size=size, dtype="bfloat16", compiled=True, checkout=cfg.nanogpt)
        with Child(make="step", **peer) as child:
            child.ask("warm")
            steps = int(cfg.seconds / median(child.ask("steps", n=10)["seconds"]))
        with new_folder() as out:
            values["nanoGPT"] = [nanogpt_loss(cfg, folder, out, steps, shape)]
    return measured(f"validation loss after {cfg.seconds:g} s of training on {folder.name}", "nats a token", False,
                    values, {"nanoGPT": {"peer": True}}, ["nanoft"])


def nanogpt_loss(cfg, folder, out, steps: int, shape: list[str]) -> float:
    """The validation loss of nanoGPT after so many steps on a data set of nanoft's: its ids as raw uint16."""
    shutil.copytree(cfg.nanogpt, out / "nanoGPT", ignore=shutil.ignore_patterns(".git", "out*", "*.bin"))
    data = out / "nanoGPT" / "data" / "equal"
    data.mkdir()
    for split in ("train", "val"):
        tokens = Tokens.open(folder, split)
        with open(data / f"{split}.bin", "wb") as file:
            for start in range(0, len(tokens), 2**24):
                file.write(tokens.read(start, min(start + 2**24, len(tokens))).astype(np.uint16).tobytes())
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": tokens.vocab_size}))
    watch([sys.executable, "train.py", "--dataset=equal", f"--max_iters={steps}", f"--lr_decay_iters={steps}",
           "--warmup_iters=100", "--learning_rate=1e-3", "--min_lr=1e-4", f"--eval_interval={steps}", "--eval_iters=20",
           "--gradient_accumulation_steps=1", "--dropout=0.0", *shape], lambda: None, cwd=out / "nanoGPT",
          output=out / "log", PYTHONPATH=str(ROOT))
    return nanogpt_losses(out / "log")[-1]
