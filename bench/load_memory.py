"""How much memory loading a published model takes, in times the length of its file (Linux).

    python -m bench.load_memory                # GPT-2 and BERT of 200 MB with random weights, safetensors and .bin

The most that the process ever held, pages of the mapped file included, less what it held before; every weight is read.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from nanoft import bpe, checkpoint
from nanoft.model import CLASSIC, ModelConfig, make_model
from nanoft.published import convert, safetensors
from nanoft.published.source import open_checkpoint

SHAPES = {
    "gpt2": dict(vocab_size=50257, block_size=1024, n_layer=2, n_head=12, n_embd=768, causal=True),
    "bert": dict(vocab_size=30522, block_size=512, n_layer=4, n_head=12, n_embd=768, causal=False, n_types=2),
}


def memory(what):
    """Bytes of /proc/self/status: VmRSS is held now, VmHWM was the most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def load(folder):
    """What sample.py does to a folder."""
    state, path = open_checkpoint(folder)
    with torch.device("meta"):
        model = make_model(ModelConfig.from_saved(state["model_config"], path))
    checkpoint.load_weights(model, state["model"], path)
    return model


def measure(folder, small):
    load(small)  # what torch needs once
    before, start = memory("VmRSS"), time.perf_counter()
    model = load(folder)
    took = time.perf_counter() - start
    for p in model.parameters():
        p.sum()
    size = sum(path.stat().st_size for path in Path(folder).glob("*model.*"))
    print(f"{Path(folder).name:18} {size / 1e6:6.0f} MB   peak {(memory('VmHWM') - before) / size:.2f} x the file   "
          f"{took:.2f} s")


def main():
    if len(sys.argv) == 3:
        return measure(*sys.argv[1:])
    with tempfile.TemporaryDirectory() as home:
        home, tokenizer = Path(home), bpe.Tokenizer("gpt2", [])
        for name, shape in SHAPES.items():
            for size, changes in (("small", dict(n_layer=1, n_embd=24, vocab_size=300)), ("large", {})):
                cfg = ModelConfig(**CLASSIC[name] | shape | changes)
                state = {"model": make_model(cfg).state_dict(), "model_config": vars(cfg)}
                convert.export(state, tokenizer, home / f"{name}-{size}")
            bin = home / f"{name}-large-bin"
            bin.mkdir()
            (bin / "config.json").write_bytes((home / f"{name}-large" / "config.json").read_bytes())
            weights = safetensors.read(home / f"{name}-large" / "model.safetensors")
            torch.save({key: x.clone() for key, x in weights.items()}, bin / "pytorch_model.bin")
            del weights, state
            for folder in (home / f"{name}-large", bin):
                subprocess.run([sys.executable, "-m", "bench.load_memory", folder, home / f"{name}-small"], check=True)


if __name__ == "__main__":
    main()
