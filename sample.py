"""Let a trained model speak.

    python sample.py --checkpoint=out/wikitext --prompt="The history of"
    python sample.py --checkpoint=out/stdlib --num_samples=3 --temperature=0.7 --top_p=0.95
    python sample.py --checkpoint=out/wikitext --input=prompts.txt --output=answers.jsonl
"""

import codecs
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nanoft import UserError, checkpoint, config, generate, parallel
from nanoft.bpe import Tokenizer
from nanoft.model import GPT, ModelConfig


@dataclass
class Config:
    checkpoint: str = "out/stdlib"     # a run folder (its best.pt) or a checkpoint file
    prompt: str = "<|endoftext|>"      # text to continue; <|endoftext|> begins a new document
    input: str = ""                    # a file with one prompt a line, instead of prompt
    output: str = ""                   # write JSON lines (prompt, text) to this file instead of the screen
    num_samples: int = 1               # continuations of each prompt
    max_new_tokens: int = 200          # longest continuation
    temperature: float = 0.8           # below 1 safer, above 1 wilder, 0 always the likeliest token
    top_k: int = 0                     # choose among the k likeliest tokens, 0 = all
    top_p: float = 0.95                # choose among the likeliest tokens that reach this probability together
    repetition_penalty: float = 1.0    # above 1: tokens already in the context become less likely
    seed: int = 1                      # the same seed, the same samples
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of weights and products; auto: bf16 if native


def check(cfg):
    problems = []
    if cfg.temperature < 0:
        problems.append(f"temperature={cfg.temperature} must be 0 or more")
    if not 0 < cfg.top_p <= 1:
        problems.append(f"top_p={cfg.top_p} must be above 0 and at most 1")
    if cfg.top_k < 0 or cfg.num_samples < 1 or cfg.max_new_tokens < 1:
        problems.append("top_k must be 0 or more, num_samples and max_new_tokens at least 1")
    if cfg.repetition_penalty <= 0:
        problems.append(f"repetition_penalty={cfg.repetition_penalty} must be above 0; 1 is none")
    return problems


def main():
    cfg = config.load(Config, check=check)
    device = parallel.start(cfg.device).device
    dtype, reason = parallel.number_format(cfg.dtype, device)
    if reason:
        print(reason, file=sys.stderr)
    path = checkpoint.find(cfg.checkpoint)
    state = checkpoint.load(path)
    tokenizer = Tokenizer.load(path.parent / "tokenizer.json")
    model = GPT(ModelConfig(**state["model_config"]))
    checkpoint.load_weights(model, state["model"], path)
    model.to(device).eval()
    for p in model.parameters():  # the weights are most of what a token reads from memory: halve them where bf16 is fast
        p.data = p.data.to(dtype)

    prompts = read_prompts(cfg)
    encoded = [tokenizer.encode(prompt, allow_special=True) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded):
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no tokens; give some text, or leave --prompt out "
                            "to begin a new document")
    results = []
    for number, (prompt, ids) in enumerate(zip(prompts, encoded)):
        for i in range(cfg.num_samples):
            generator = torch.Generator(device).manual_seed(cfg.seed + number * cfg.num_samples + i)
            pieces = stream(model, tokenizer, ids, cfg, generator)
            if cfg.output:
                results.append({"prompt": prompt, "text": "".join(pieces)})
                continue
            print("" if prompt == "<|endoftext|>" else prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print("\n---", flush=True)
    if cfg.output:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in results)
        checkpoint.write_whole(cfg.output, lambda file: file.write(lines.encode("utf-8")))
        print(f"{len(results)} texts written to {cfg.output}")


def read_prompts(cfg):
    if not cfg.input:
        return [cfg.prompt]
    try:
        lines = Path(cfg.input).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{cfg.input} cannot be read as UTF-8 text ({error}); give a file with one prompt a line") from None
    if not any(lines):
        raise UserError(f"{cfg.input} holds no prompt; write one on each line")
    return [line for line in lines if line]


def stream(model, tokenizer, ids, cfg, generator):
    """The continuation of `ids`, a piece of text at a time: characters appear when their last byte does."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    eot = tokenizer.special["<|endoftext|>"]
    start = torch.tensor([ids], device=generator.device)
    for token in generate.generate(model, start, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                                   cfg.repetition_penalty, stop_id=eot, generator=generator):
        if token.item() != eot:
            yield decoder.decode(tokenizer.decode_bytes([token.item()]))
    yield decoder.decode(b"", final=True)


if __name__ == "__main__":
    config.run(main)
