"""nanoft's encoder against transformers' BertForMaskedLM: the same data, size, minutes and validation masks.

Run it in a separate environment that has transformers beside nanoft's packages (nanoft itself never needs it):

    python -m bench.encoder_peer --minutes=15

The peer is the library's own BERT (post-norm, learned positions, GELU, dropout 0.1, full head) with AdamW, a linear
warm-up and decay over the budget, and the fastest of fp32/bf16 x eager/compiled on this machine, which is found before
and not counted in its time. Both read windows of 128 tokens, 32 per step, masked by nanoft.batches.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.turns import ROOT
from nanoft import UserError, batches, config, distributed
from nanoft.bins import Tokens
from nanoft.text import prepare, vocabulary


@dataclass
class Options:
    minutes: float = 15.0        # of training, for each
    data: str = "wikitext"       # a data set
    out_dir: str = "out/bench_encoder"  # nanoft's run; used as it is if it has finished
    lr: float = 1e-3             # peak learning rate of the peer
    seed: int = 1                # of both


T, B, CPU = 128, 32, torch.device("cpu")


def main():
    cfg = config.load(Options)
    folder = prepare.find_data(cfg.data)
    prepare.ensure(folder)
    tokenizer = vocabulary.load(folder)
    train, val = (Tokens.open(folder, split) for split in ("train", "val"))
    masking = batches.masking(tokenizer, 0.15)
    model, optimizer = make_peer(tokenizer.vocab_size, cfg)  # fails at once without transformers
    ours = run_nanoft(cfg)

    def step(net, dtype, number):
        rows = number * B + np.arange(B)
        batch = distributed.to_device(batches.masked_batch(train, T, cfg.seed, rows, masking), CPU)
        with distributed.Dist(0, 1, CPU, dtype).autocast():
            loss = net(input_ids=batch["ids"], labels=batch["targets"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    dtype, mode = fastest(model, optimizer, step)
    net = torch.compile(model) if mode == "compiled" else model
    optimizer.state.clear()
    began, number = time.time(), 0
    while (progress := (time.time() - began) / (60 * cfg.minutes)) < 1:
        set_lr(optimizer, cfg.lr * min(progress / 0.05, (1 - progress) / 0.95))
        loss = step(net, dtype, number)
        number += 1
        if number % 100 == 0:
            print(f"transformers step {number} loss {loss:.4f} {progress:.0%}", flush=True)
    nats, accuracy = evaluate(model.eval(), val, masking, dtype)
    theirs = sum(p.numel() for p in model.parameters())
    print(f"\n| {cfg.minutes:g} minutes | parameters | steps | masked loss | accuracy |\n|---|---|---|---|---|")
    print(f"| nanoft | {ours['parameters'] / 1e6:.2f}M | {ours['step']:,} | {ours['val_loss']:.4f} "
          f"| {ours['val_mlm_accuracy']:.1%} |")
    print(f"| transformers ({str(dtype)[6:]}, {mode}, lr {cfg.lr:g}) | {theirs / 1e6:.2f}M | {number:,} "
          f"| {nats:.4f} | {accuracy:.1%} |")


def run_nanoft(cfg: Options) -> dict:
    """The result.json of nanoft's run, which is made if it is missing. Raises UserError if it had other minutes."""
    out_dir = Path(cfg.out_dir)
    if not (out_dir / "result.json").exists():
        subprocess.run([sys.executable, str(ROOT / "train.py"), str(ROOT / "config/wikitext_bert.py"), "--device=cpu",
                        f"--data={cfg.data}", f"--out_dir={out_dir}", f"--max_minutes={cfg.minutes}",
                        f"--seed={cfg.seed}", f"--block_size={T}", f"--batch_size={B}"], check=True)
    result = json.loads((out_dir / "result.json").read_text())
    if abs(result["train_seconds"] / 60 - cfg.minutes) > 0.1:
        raise UserError(f"{out_dir} holds a run of {result['train_seconds'] / 60:.1f} minutes, not {cfg.minutes:g}; "
                        "give another --out_dir")
    return result


def make_peer(vocab_size: int, cfg: Options):
    """The peer's model, of the size of config/wikitext_bert.py, and its optimizer."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(cfg.seed)
    model = BertForMaskedLM(BertConfig(vocab_size=vocab_size, hidden_size=256, num_hidden_layers=4,
                                       num_attention_heads=4, intermediate_size=1024, max_position_embeddings=T))
    return model, torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=0.01, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def fastest(model, optimizer: torch.optim.Optimizer, step: Callable) -> tuple[torch.dtype, str]:
    """The fastest number format and mode, over five steps each, which leave the weights as they are."""
    set_lr(optimizer, 0.0)
    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        for mode in ("eager", "compiled"):
            net = torch.compile(model) if mode == "compiled" else model
            step(net, dtype, 0)
            began = time.time()
            for i in range(5):
                step(net, dtype, i)
            speeds[dtype, mode] = 5 * B * T / (time.time() - began)
            print(f"transformers {str(dtype)[6:]:9} {mode:9} {speeds[dtype, mode]:7,.0f} tok/s", flush=True)
    return max(speeds, key=speeds.__getitem__)


@torch.no_grad()
def evaluate(model, val: Tokens, masking: batches.Masking, dtype: torch.dtype) -> tuple[float, float]:
    """The peer's mean loss (nats) and accuracy at masked positions of the validation split."""
    starts = np.arange(0, len(val) - T + 1, T)
    nats = hits = count = 0.0
    for i in range(0, len(starts), 64):
        batch = distributed.to_device(batches.masked_eval_batch(val, T, starts[i:i + 64], masking), CPU)
        masked = batch["targets"] != batches.IGNORE
        with distributed.Dist(0, 1, CPU, dtype).autocast():
            logits = model(input_ids=batch["ids"]).logits[masked].float()
        nats += torch.nn.functional.cross_entropy(logits, batch["targets"][masked], reduction="sum").item()
        hits += (logits.argmax(-1) == batch["targets"][masked]).sum().item()
        count += masked.sum().item()
    return nats / count, hits / count


if __name__ == "__main__":
    config.run(main)
