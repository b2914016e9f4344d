"""Measure nanoft on this machine, beside what the machine can do at most and, on request, beside other libraries.

    python -m bench                                        # every quick part, nanoft alone
    python -m bench --only=step,memory --rounds=3          # some parts
    python -m bench --peers --nanogpt=../nanoGPT           # beside its peers, in an environment that has them
    python -m bench --only=size                            # the slow part: an hour
    python -m bench --profile                              # where a step's time goes
    python -m bench --page                                 # the tables of docs/benchmarks.md, from bench/results/
    python -m bench --device=cuda --nanogpt=../nanoGPT     # on a GPU: step, evaluation, memory, sampling, equal seconds

Contenders take turns, A, B, A, B, ..., each in its own process, and the medians over the rounds are shown, because the
speed of a shared machine can change by a third within minutes. It runs on Linux or macOS; --device=cuda on one GPU,
where contenders come one after another, each with all of its memory.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import gpu, report, runs, steps, turns
from bench.turns import ROOT, Child
from nanoft import UserError, config, files

MEASURE = {"ceilings": steps.ceilings, "step": steps.step, "memory": steps.memory, "first_step": runs.first_step,
           "loss": runs.loss, "bpe": runs.bpe, "tokenize": runs.tokenize, "finetune": steps.finetune,
           "generate": runs.generate,
           "profile": steps.profile, "size": steps.size, "evaluate": gpu.evaluate}
SLOW = ("profile", "size", "evaluate")  # only when asked for
ON_GPU = {"ceilings": steps.ceilings, "step": gpu.step, "evaluate": gpu.evaluate, "memory": steps.memory,
          "generate": runs.generate, "equal": gpu.equal_seconds}


@dataclass
class Options:
    device: Literal["cpu", "cuda"] = "cpu"  # where everything runs
    only: str = ""            # parts: ceilings,step,memory,first_step,loss,bpe,tokenize,finetune,generate,size,evaluate
    rounds: int = 5           # turns of each contender
    steps: int = 3            # training steps per turn
    minutes: float = 0.0      # no new round of a part begins after so many, 0 = no limit
    peers: bool = False       # beside transformers, tokenizers, rustbpe where they are installed
    nanogpt: str = ""         # beside nanoGPT: a folder with its model.py and train.py
    match: str = ""           # a regular expression in the names of the contenders to measure, such as "nanoft bf16"
    profile: bool = False     # where the time of nanoft's step goes
    page: bool = False        # write the tables of docs/benchmarks.md from the results; alone: measure nothing
    target: float = 1.886     # validation loss to reach on Shakespeare, nats per character: that of nanoGPT's recipe
    text: str = ""            # a UTF-8 text for the tokenizers; empty is WikiText-2's training text
    vocab_size: int = 8192    # of the tokenizers
    data: str = "wikitext"    # on a GPU, the data set of the runs of equal seconds
    seconds: float = 55.0     # their length
    repeat: int = 0           # tokenize the text this many times as one document: rate and peak memory
    results: str = "bench/results"  # where the results go: a folder per machine with a PART.json per part


def check(cfg):
    known = measurements(cfg)
    problems = [f"--only: there is no part {part!r}; the parts are {', '.join(known)}"
                for part in parts_of(cfg) if part not in known]
    problems += [f"{name}={getattr(cfg, name)} must be at least 1" for name in ("rounds", "steps")
                 if getattr(cfg, name) < 1]
    if cfg.nanogpt and not (Path(cfg.nanogpt) / "model.py").is_file():
        problems.append(f"--nanogpt={cfg.nanogpt}: no model.py there; give the folder of a checkout of nanoGPT")
    try:
        re.compile(cfg.match)
    except re.error as error:
        problems.append(f"--match={cfg.match} is no regular expression ({error})")
    return problems


def measurements(cfg: Options) -> dict:
    return ON_GPU if cfg.device == "cuda" else MEASURE


def parts_of(cfg: Options) -> list[str]:
    """The parts to measure, in order; --profile or --page without --only excludes all others."""
    named = [part.strip() for part in cfg.only.split(",") if part.strip()]
    if not named and not cfg.profile and not cfg.page:
        named = list(ON_GPU) if cfg.device == "cuda" else [part for part in MEASURE if part not in SLOW]
    return named + ["profile"] * (cfg.profile and "profile" not in named)


def main():
    cfg = config.load(Options, check=check)
    folder, turns.DEVICE = ROOT / cfg.results, cfg.device
    results, command = {}, shown_command(sys.argv[1:])
    machine = about_machine() | {"peers": versions(cfg)} if parts_of(cfg) else {}
    if machine:
        print(report.described(machine), flush=True)
        if not machine["native_bf16"]:
            print("no native bfloat16 on this processor: only fp32 is measured")
    for part in parts_of(cfg):
        print(f"\n{part}", flush=True)
        try:
            result = measurements(cfg)[part](cfg, machine)
        except UserError as error:
            if cfg.only or part == "profile":
                raise
            print(f"  left out: {error}")
            continue
        if not result["rows"]:
            print("  nothing to measure")
            continue
        part = "tokenize_long" if part == "tokenize" and cfg.repeat else part
        results[part] = result
        report.save(part, result, machine, command, time.strftime("%Y-%m-%d"), folder)
    results.pop("profile", None)  # printed by itself
    if results:
        print("\n" + "\n".join(report.table(results)), flush=True)
    if cfg.page:
        saved = report.load(folder)
        if not saved:
            raise UserError(f"{cfg.results} holds no results yet; measure first, with python -m bench")
        report.rewrite(ROOT / "docs" / "benchmarks.md", report.page_block(saved))
        print("docs/benchmarks.md: its tables are written anew")


def shown_command(words: list[str]) -> str:
    """The command as it is saved: its options, and only the last part of a path."""
    return " ".join(["python -m bench", *(re.sub(r"=.*/([^/]+)/*$", r"=\1", word) for word in words)])


def about_machine() -> dict:
    """The processor, cores, memory and software: nothing that identifies one machine of a kind."""
    with Child(make="machine") as child:
        about = child.ask("about")
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8"))
        cpu = model[1].strip() if model else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": files.available_cores(), "memory_gb": round(memory), "system": platform.system(),
            "python": platform.python_version(), **about}


def versions(cfg: Options) -> dict[str, str]:
    """{peer: version} of the libraries that nanoft is compared with in this run; for nanoGPT its commit."""
    names = ("tiktoken", *(("transformers", "tokenizers", "rustbpe") if cfg.peers else ()))
    versions = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    if cfg.nanogpt:
        commit = ["git", "-C", cfg.nanogpt, "rev-parse", "--short", "HEAD"]
        versions["nanoGPT"] = subprocess.run(commit, capture_output=True, text=True).stdout.strip() or "unknown commit"
    return versions


if __name__ == "__main__":
    config.run(main)
