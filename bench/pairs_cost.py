"""What next-sentence prediction costs the masked words: two encoders on the same plain validation windows and masks.

Plain windows are what the first run goes on training with, while the second has learned to expect <|cls|>, <|sep|> and
token types, which they lack: the difference is an upper bound of what pairs cost.

    python train.py config/wikitext_bert_nsp.py --out_dir=out/pairs
    python train.py config/wikitext_bert_nsp.py --out_dir=out/alone --objective=mlm
    python bench/pairs_cost.py --runs=out/alone,out/pairs
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanoft import UserError, batches, checkpoint, config, distributed  # noqa: E402
from nanoft.bins import Tokens  # noqa: E402
from nanoft.evaluate import described, masked_metrics  # noqa: E402
from nanoft.model import ModelConfig, make_model  # noqa: E402
from nanoft.text import prepare, vocabulary  # noqa: E402


@dataclass
class Options:
    runs: str = ""           # run folders, separated by commas; each one's latest.pt is read
    data: str = "wikitext"   # a prepared data set


def main():
    cfg = config.load(Options)
    if not cfg.runs:
        raise UserError("--runs names no run folder; give one or more, separated by commas")
    dist = distributed.start("cpu")
    dtype, _ = distributed.number_format("auto", dist.device)
    folder = prepare.find_data(cfg.data)
    tokenizer, val = vocabulary.load(folder), Tokens.open(folder, "val")
    for run in cfg.runs.split(","):
        path = Path(run) / "latest.pt"
        state = checkpoint.load(path)
        model = make_model(ModelConfig.from_saved(state["model_config"], path)).eval()
        checkpoint.load_weights(model, state["model"], path)
        with torch.no_grad():
            figures = masked_metrics(model, val, 0, batches.masking(tokenizer, 0.15), None, dist)
        print(f"{run}: step {state['step']}, windows of {model.cfg.block_size}: {described(figures)}")


if __name__ == "__main__":
    config.run(main)
