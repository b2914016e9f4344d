"""What the masked-word head saves by looking at masked rows only: a step of config/wikitext_bert.py's size, both ways.

    python bench/masked_head.py
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanoft import batches, distributed  # noqa: E402
from nanoft.model import BERT, ModelConfig, token_loss  # noqa: E402

B, T, V, ROUNDS = 32, 128, 8192, 10


def main():
    device = torch.device("cpu")
    dtype, _ = distributed.number_format("auto", device)
    model = BERT(ModelConfig(vocab_size=V, block_size=T, n_layer=4, n_head=4, n_embd=256, causal=False))
    ids = torch.randint(0, V - 5, (B, T))
    targets = torch.where(torch.rand(B, T) < 0.14, ids, -100)
    ways = {
        "masked rows": lambda: model(ids, targets, capacity=batches.capacity((B, T), 0.15)).sum(),
        "all rows": lambda: token_loss(model.word_logits(model.hidden(ids)).flatten(0, 1), targets.flatten()),
    }
    times = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # in turn, so that a change of the machine's speed meets both
        for name, way in ways.items():
            start = time.perf_counter()
            with distributed.autocast(device, dtype):
                loss = way()
            loss.backward()
            model.zero_grad(set_to_none=True)
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, seconds in median.items():
        print(f"head at {name}: {1000 * seconds:.0f} ms forward and backward, {B * T / seconds:,.0f} tok/s")
    print(f"ratio {median['all rows'] / median['masked rows']:.2f}")


if __name__ == "__main__":
    main()
