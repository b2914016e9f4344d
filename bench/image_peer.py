"""The small network that courses begin with, in plain PyTorch: what config/cifar10.py has to beat in the same minutes.

    python bench/image_peer.py --data=data/cifar10 --epochs=10 --seed=1

Two convolutions of 5 x 5 (6 and 16 channels) with pooling, three linear layers, SGD of rate .001 and momentum .9 with
batches of 4 pictures, whose pixels become -1 to 1. It trains on all training pictures and prints test accuracy after
each epoch, with the processor's seconds of training alone: with OMP_NUM_THREADS=1 those of a clock.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import nn

from nanoft import config
from nanoft.tasks import examples, images


@dataclass
class Options:
    data: str = "data/cifar10"  # a prepared folder of pictures of 32 x 32
    epochs: int = 10
    seed: int = 1


def load(task: dict, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures as float32 (N, 3, 32, 32) from -1 to 1, and their classes (N,)."""
    found = images.encode(rows, task | {"picture": {"size": 32, "channels": 3, "patch": 4, "cls": False}})
    return torch.from_numpy(found.pixels[found.index]).float() / 127.5 - 1, torch.from_numpy(found.targets)


def main():
    cfg = config.load(Options)
    torch.manual_seed(cfg.seed)
    task, rows = examples.load_task(cfg.data)
    x, y = load(task, rows["train"] + rows["val"])
    x_test, y_test = load(task, rows["test"])
    net = nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    seconds = 0.0
    for epoch in range(1, cfg.epochs + 1):
        began = time.process_time()
        for index in torch.randperm(len(x)).split(4):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
        seconds += time.process_time() - began
        with torch.no_grad():
            right = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x_test.split(1000), y_test.split(1000)))
        print(f"epoch {epoch:2} | {seconds:6.1f} CPU s | test accuracy {right / len(y_test):.4f}", flush=True)


if __name__ == "__main__":
    config.run(main)
