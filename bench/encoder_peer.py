"""nanoft's encoder against transformers' BertForMaskedLM: the same data, size, minutes and validation masks.

Run it in an environment of its own that has transformers beside nanoft's packages (nanoft itself never needs it):

    python bench/encoder_peer.py --minutes=15

The peer is BERT as its library ships it (post-norm, learned positions, GELU, dropout 0.1, full head) with AdamW, a
linear warm-up and decay that fit the budget, and the fastest of fp32/bf16 x eager/compiled on this machine, tried
first and not counted in its time. Both see windows of 128 tokens, 32 a step, masked by nanoft.batches.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanoft import UserError, batches, config, distributed  # noqa: E402
from nanoft.bins import Tokens  # noqa: E402
from nanoft.text import prepare, vocabulary  # noqa: E402


@dataclass
class Options:
    minutes: float = 15.0        # of training, for each
    data: str = "wikitext"       # a prepared data set
    out_dir: str = "out/bench_encoder"  # of nanoft's run; its result.json is used if it is there
    lr: float = 1e-3             # peak learning rate of the peer
    seed: int = 1                # of both


T, B = 128, 32


def main():
    cfg = config.load(Options)
    from transformers import BertConfig, BertForMaskedLM

    out_dir = Path(cfg.out_dir)
    if not (out_dir / "result.json").exists():
        subprocess.run([sys.executable, str(ROOT / "train.py"), str(ROOT / "config/wikitext_bert.py"), "--device=cpu",
                        f"--data={cfg.data}", f"--out_dir={out_dir}", f"--max_minutes={cfg.minutes}",
                        f"--seed={cfg.seed}", f"--block_size={T}", f"--batch_size={B}"], check=True)
    ours = json.loads((out_dir / "result.json").read_text())
    if abs(ours["train_seconds"] / 60 - cfg.minutes) > 0.1:
        raise UserError(f"{out_dir} holds a run of {ours['train_seconds'] / 60:.1f} minutes, not {cfg.minutes:g}; give "
                        "another --out_dir")

    folder = prepare.find_data(cfg.data)
    tokenizer = vocabulary.load(folder)
    train, val = (Tokens.open(folder, split) for split in ("train", "val"))
    hide = batches.masking(tokenizer, 0.15)
    torch.manual_seed(cfg.seed)
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=256, num_hidden_layers=4,
                                       num_attention_heads=4, intermediate_size=1024, max_position_embeddings=T))
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, weight_decay=0.01, fused=True)

    def step(net, dtype, number):
        made = batches.masked_batch(train, T, cfg.seed, number * B + np.arange(B), hide)
        batch = distributed.to_device(made, torch.device("cpu"))
        with distributed.autocast(torch.device("cpu"), dtype):
            loss = net(input_ids=batch["ids"], labels=batch["targets"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    speeds = {}
    for dtype in (torch.float32, torch.bfloat16):
        for mode in ("eager", "compiled"):
            net = torch.compile(model) if mode == "compiled" else model
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # the trial leaves the weights as they are
            step(net, dtype, 0)
            began = time.time()
            for i in range(5):
                step(net, dtype, i)
            speeds[dtype, mode] = 5 * B * T / (time.time() - began)
            print(f"transformers {str(dtype)[6:]:9} {mode:9} {speeds[dtype, mode]:7,.0f} tok/s", flush=True)
    dtype, mode = max(speeds, key=speeds.get)
    net = torch.compile(model) if mode == "compiled" else model
    optimizer.state.clear()

    began, number = time.time(), 0
    while (progress := (time.time() - began) / (60 * cfg.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(progress / 0.05, (1 - progress) / 0.95)
        loss = step(net, dtype, number)
        number += 1
        if number % 100 == 0:
            print(f"transformers step {number} loss {loss:.4f} {progress:.0%}", flush=True)

    model.eval()
    starts = np.arange(0, len(val) - T + 1, T)
    nats = right = count = 0.0
    with torch.no_grad():
        for some in (starts[i:i + 64] for i in range(0, len(starts), 64)):
            batch = distributed.to_device(batches.masked_eval_batch(val, T, some, hide), torch.device("cpu"))
            there = batch["targets"] != batches.IGNORE
            with distributed.autocast(torch.device("cpu"), dtype):
                logits = model(input_ids=batch["ids"]).logits[there].float()
            nats += torch.nn.functional.cross_entropy(logits, batch["targets"][there], reduction="sum").item()
            right += (logits.argmax(-1) == batch["targets"][there]).sum().item()
            count += there.sum().item()
    theirs = sum(p.numel() for p in model.parameters())
    print(f"\n| {cfg.minutes:g} minutes | parameters | steps | masked loss | accuracy |\n|---|---|---|---|---|")
    print(f"| nanoft | {ours['parameters'] / 1e6:.2f}M | {ours['step']:,} | {ours['val_loss']:.4f} "
          f"| {ours['val_mlm_accuracy']:.1%} |")
    print(f"| transformers ({str(dtype)[6:]}, {mode}, lr {cfg.lr:g}) | {theirs / 1e6:.2f}M | {number:,} "
          f"| {nats / count:.4f} | {right / count:.1%} |")


if __name__ == "__main__":
    config.run(main)
