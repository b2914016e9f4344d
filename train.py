"""Pretrain a language model: text -> tokens -> batches -> loss -> weights -> samples, top to bottom in this file.

    python train.py                                          # the standard library of your own Python, 3 minutes
    python train.py config/wikitext.py --max_minutes=20      # a config file, then options over it
    python train.py config/wikitext.py --resume              # go on exactly where it stopped
    torchrun --nproc_per_node=8 train.py config/wikitext.py  # the same run on 8 processes
"""

import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import UserError, batches, checkpoint, config, generate, optim, parallel, prepare
from nanoft.bins import Tokens
from nanoft.bpe import Tokenizer
from nanoft.model import GPT, ModelConfig, check_model
from nanoft.runlog import RunLog, clock

START = time.time()  # the clock of `seconds` in every log


@dataclass
class Config:
    out_dir: str = "out/stdlib"        # the run's folder: checkpoints, metrics.jsonl, TensorBoard events, result.json
    data: str = "stdlib"               # a folder under data/, or a path
    init_from: str = "scratch"         # scratch, or a run folder or checkpoint to begin from
    resume: bool = False               # go on with the run in out_dir
    seed: int = 1                      # of the initial weights, the batches and the dropout
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products; auto: bf16 if native
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: where it pays, with eager as fallback
    n_layer: int = 4                   # blocks
    n_head: int = 4                    # attention heads
    n_kv_head: int = 0                 # key-value heads, 0 = n_head
    n_embd: int = 256                  # width
    block_size: int = 256              # tokens of context
    dropout: float = 0.0               # part of the activations set to zero
    tie_head: bool = False             # share the token embedding with the output head
    batch_size: int = 8                # sequences per optimizer step, over all processes
    micro_batch_size: int = 0          # sequences a process takes through the model at once, 0 = all of its share
    max_steps: int = 0                 # budget in optimizer steps, 0 = none
    max_minutes: float = 2.0           # budget in minutes of training, 0 = none; the schedule fits the budget
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the blocks' matrices, AdamW for the rest
    lr: float = 0.003                  # peak learning rate of AdamW
    embed_lr: float = 0.03             # the same for the embeddings, 0 = lr
    muon_lr: float = 0.02              # peak learning rate of Muon
    beta2: float = 0.95                # AdamW's second decay
    weight_decay: float = 0.0          # of the matrices
    grad_clip: float = 1.0             # largest norm of the gradient, 0 = no clipping
    schedule: Literal["trapezoid", "linear", "cosine", "constant"] = "trapezoid"  # of the learning rate
    warmup: float = 0.02               # part of the budget over which the rate rises
    warmdown: float = 0.6              # part of the budget over which the trapezoid falls
    eval_interval: int = 250           # steps between evaluations
    eval_tokens: int = 65536           # validation tokens in one of them, 0 = all; the last one takes all
    log_interval: int = 10             # steps between status lines
    sample_tokens: int = 96            # length of the text sample at each evaluation


def check(cfg):
    """Sentences on options that cannot be, or cannot go together."""
    problems = check_model(cfg)
    for name in ("batch_size", "eval_interval", "log_interval"):
        if getattr(cfg, name) < 1:
            problems.append(f"{name}={getattr(cfg, name)} must be at least 1")
    if cfg.max_steps <= 0 and cfg.max_minutes <= 0:
        problems.append("max_steps and max_minutes are both 0; give the run a budget in one of them")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.batch_size % (world * max(cfg.micro_batch_size, 1)):
        problems.append(f"batch_size={cfg.batch_size} does not divide into {world} process(es) x micro_batch_size="
                        f"{cfg.micro_batch_size or 1}; choose a multiple of {world * max(cfg.micro_batch_size, 1)}")
    return problems


def main():
    cfg = config.load(Config, check=check)
    here = parallel.start(cfg.device)
    device = here.device
    dtype, reason = parallel.number_format(cfg.dtype, device)
    out_dir = Path(cfg.out_dir)

    # the run to go on with, or the weights to begin from
    state = None
    if cfg.resume:
        if not (out_dir / "latest.pt").exists():
            raise UserError(f"{out_dir} holds no latest.pt to resume; run without --resume to start there")
        state = checkpoint.load(out_dir / "latest.pt")
    elif (out_dir / "latest.pt").exists():
        raise UserError(f"{out_dir} already holds a run; --resume goes on with it, --out_dir=NAME starts another")
    begin_from = checkpoint.find(cfg.init_from) if cfg.init_from != "scratch" and not cfg.resume else None

    # the data: rank 0 prepares it if need be, the others wait
    folder = prepare.find_data(cfg.data)
    if here.main:
        prepare.ensure(folder)
    parallel.wait(here)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    splits = {name: Tokens.open(folder, name) for name in ("train", "val", "test") if Tokens.exists(folder, name)}
    for name, tokens in splits.items():
        if tokens.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{folder}/{name}.bin was made by another tokenizer than tokenizer.json; prepare it again")
        batches.check_length(tokens, cfg.block_size, f"{folder}/{name}.bin")
    eot = tokenizer.special["<|endoftext|>"]

    # the model: a plain module; compilation and DDP wrap it afterwards
    torch.manual_seed(cfg.seed)
    shape = {f.name: getattr(cfg, f.name) for f in fields(ModelConfig) if hasattr(cfg, f.name)}
    model_config = ModelConfig(vocab_size=tokenizer.vocab_size, **shape)
    if begin_from:
        beginning = checkpoint.load(begin_from)
        model_config = ModelConfig(**beginning["model_config"])
        check_same_tokenizer(begin_from.parent / "tokenizer.json", tokenizer, folder)
    if state and state["model_config"] != asdict(model_config):
        other = [f"{k}={v}" for k, v in state["model_config"].items() if v != asdict(model_config)[k]]
        raise UserError(f"{out_dir} holds a run of another model ({', '.join(other)}); give it those options, "
                        "or choose another --out_dir")
    model = GPT(model_config)
    if begin_from:
        checkpoint.load_weights(model, beginning["model"], begin_from)
    model.to(device)
    optimizers = optim.make_optimizers(model, cfg, device)

    # fresh, or exactly where it stopped
    step, best, spent = 0, math.inf, 0.0
    if state:
        check_same_tokenizer(out_dir / "tokenizer.json", tokenizer, folder)
        checkpoint.load_weights(model, state["model"], out_dir / "latest.pt")
        for optimizer, saved in zip(optimizers, state["optimizer"]):
            optimizer.load_state_dict(saved)
        step, best, spent = state["step"], state["best_val_loss"], state["seconds"]
        state = None
    if here.main:
        out_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.save_json(out_dir / "config.json", asdict(cfg))
        shutil.copyfile(folder / "tokenizer.json", out_dir / "tokenizer.json")
    log = RunLog(out_dir, here.main, step)
    log.say(reason) if reason else None

    micro = cfg.micro_batch_size or cfg.batch_size // here.world
    parts = cfg.batch_size // (micro * here.world)
    tokens_per_step = cfg.batch_size * cfg.block_size
    n_params = sum(p.numel() for p in model.parameters())
    log.say(f"data   {folder.name}: {len(splits['train']):,} training tokens, vocabulary {tokenizer.vocab_size:,}")
    log.say(f"model  {n_params / 1e6:.2f}M parameters: {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} heads, "
            f"context {cfg.block_size}")
    log.say(f"run    {cfg.batch_size} sequences a step = {here.world} process(es) x {parts} part(s) x {micro}, "
            f"on {device.type} in {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")

    def numbered(rows):
        """The training windows with these numbers, as tensors on the device."""
        return [torch.from_numpy(t).to(device) for t in batches.causal_batch(splits["train"], cfg.block_size, cfg.seed, rows)]

    net = parallel.wrap(model, here)
    if wants_compile(cfg, n_params * tokens_per_step, device):
        net = compiled(net, lambda net: forward_backward(net, numbered(np.arange(micro)), here, dtype), cfg, log)
        model.zero_grad(set_to_none=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    caught = []  # SIGINT or SIGTERM: finish the step, save, leave; a second one ends at once

    def on_signal(number, _frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    def save(name):
        if here.main:
            checkpoint.save(out_dir / name, {
                "model": model.state_dict(), "model_config": asdict(model_config),
                "optimizer": [o.state_dict() for o in optimizers], "step": step, "seed": cfg.seed,
                "config": asdict(cfg), "best_val_loss": best, "seconds": spent})

    began, since, since_step = time.time() - spent, time.time(), step
    paused = 0.0  # seconds of evaluation since the last status line
    while True:
        # how far the run is, agreed on by all processes
        here_and_now = torch.tensor([time.time() - began, float(bool(caught))], device=device)
        spent, interrupted = parallel.reduce(here_and_now, here, "max").tolist()
        progress = max(step / cfg.max_steps if cfg.max_steps else 0.0,
                       spent / (60 * cfg.max_minutes) if cfg.max_minutes else 0.0)
        done = progress >= 1 or bool(interrupted)

        if (step % cfg.eval_interval == 0 and step > 0) or done:
            pause = time.time()
            model.eval()
            figures = evaluate(model, splits["val"], cfg.eval_tokens, eot, here, dtype)
            if not math.isfinite(figures["loss"]):
                raise UserError(f"the validation loss is {figures['loss']} at step {step}; the last good weights are "
                                "in latest.pt: lower --lr and --muon_lr, or raise --warmup")
            log.row(step, seconds=time.time() - START, **{f"val_{k}": v for k, v in figures.items()})
            log.say(f"step {step:6} | val " + described(figures))
            text = write_sample(model, tokenizer, eot, cfg, dtype) if here.main else ""
            log.text("sample", text, step)
            log.say("       | " + repr(text[:110]))
            model.train()
            if figures["loss"] < best:
                best = figures["loss"]
                save("best.pt")
            save("latest.pt")
            paused += time.time() - pause
        if done:
            break

        # the global batch's parts: the gradient is their mean, synchronised on the last part only
        factor = optim.lr_factor(progress, cfg.schedule, cfg.warmup, cfg.warmdown)
        torch.manual_seed(hash((cfg.seed, step, here.rank)) % 2**63)  # dropout, too, is a function of the step
        loss = torch.zeros((), device=device)
        for part in range(parts):
            first = (part * here.world + here.rank) * micro
            rows = step * cfg.batch_size + np.arange(first, first + micro)
            loss += forward_backward(net, numbered(rows), here, dtype, parts, part == parts - 1, scaler)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            scaler.step(optimizer)
        scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1

        if step % cfg.log_interval == 0 or step == 1:
            loss = parallel.reduce(loss, here).item()
            if not math.isfinite(loss):
                raise UserError(f"the training loss is {loss} at step {step}; the last good weights are in latest.pt: "
                                "lower --lr and --muon_lr, or raise --warmup")
            now = time.time()
            rate = (step - since_step) * tokens_per_step / (now - since - paused)
            since, since_step, paused = now, step, 0.0
            left = (1 - progress) / progress * (now - began) if progress else 0
            log.row(step, tokens=step * tokens_per_step, seconds=now - START, loss=loss, lr=cfg.lr * factor,
                    grad_norm=norm.item(), tokens_per_s=rate)
            log.say(f"step {step:6} | loss {loss:.4f} | lr {cfg.lr * factor:.2e} | {rate:9,.0f} tok/s | "
                    f"{clock(left)} left")

    if interrupted:
        log.say(f"stopped at step {step} and saved; go on with --resume")
        log.close()
        parallel.stop(here)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    finish(model, splits, tokenizer, eot, cfg, here, dtype, log, out_dir, step, spent)
    parallel.stop(here)


def wants_compile(cfg, products, device):
    """Whether to compile. On a CPU it costs half a minute, so `auto` does it for runs of some minutes only."""
    if cfg.compile != "auto":
        return cfg.compile == "true"
    steps = cfg.max_steps or math.inf
    minutes = min(cfg.max_minutes or math.inf, steps * 6 * products / 2e11 / 60)  # at 200 GFLOP/s
    return device.type == "cuda" or (device.type == "cpu" and minutes > 5)


def compiled(net, try_it, cfg, log):
    """The compiled module, tried once; the module itself, with the reason, where it does not compile."""
    began = time.time()
    try:
        fast = torch.compile(net)
        try_it(fast)
        log.say(f"compiled in {time.time() - began:.0f} s")
        return fast
    except Exception as error:  # no C++ compiler, an unsupported system: whatever the compiler raises
        if cfg.compile == "true":
            raise UserError(f"compile=true, but it fails here ({str(error).splitlines()[0][:150]}); "
                            "use --compile=false") from None
        log.say(f"compile=auto: eager, because compiling fails here ({str(error).splitlines()[0][:150]})")
        return net


def forward_backward(net, batch, here, dtype, parts=1, last=True, scaler=None):
    """Add one part's gradient; return its share of the loss."""
    if here.world > 1:
        net.require_backward_grad_sync = last  # must be set before the forward
    with parallel.autocast(here.device, dtype):
        loss = net(*batch) / parts
    (scaler.scale(loss) if scaler else loss).backward()
    return loss.detach()


@torch.no_grad()
def evaluate(model, tokens, max_tokens, first_id, here, dtype, stride=0, batch=16):
    """Figures of a split on its fixed windows; every process scores its share.

    loss: nats a token; bits_per_byte; word_perplexity where the split has words: e^(nats of the whole text / words).
    """
    block_size = model.cfg.block_size
    stride = stride or block_size
    starts = batches.eval_starts(len(tokens), block_size, stride, max_tokens)[here.rank::here.world]
    total = torch.zeros(2, dtype=torch.float64, device=here.device)  # nats, tokens
    for i in range(0, len(starts), batch):
        x, y = (torch.from_numpy(t).to(here.device)
                for t in batches.eval_batch(tokens, block_size, stride, starts[i:i + batch], first_id))
        scored = (y != batches.IGNORE).sum()
        with parallel.autocast(here.device, dtype):
            total += torch.stack((model(x, y).double() * scored, scored.double()))
    nats, count = parallel.reduce(total, here, "sum").tolist()
    loss = nats / count
    figures = {"loss": loss, "bits_per_byte": loss / math.log(2) * len(tokens) / tokens.num_bytes}
    if tokens.num_words:
        figures["word_perplexity"] = math.exp(min(loss * len(tokens) / tokens.num_words, 700))
    return figures


def described(figures):
    text = f"loss {figures['loss']:.4f} | {figures['bits_per_byte']:.4f} bits/byte"
    return text + (f" | perplexity {figures['word_perplexity']:,.1f} a word" if "word_perplexity" in figures else "")


def write_sample(model, tokenizer, eot, cfg, dtype, tokens=0):
    """What the model writes when it begins a document, always from the same random numbers."""
    device = model.head.weight.device
    generator = torch.Generator(device).manual_seed(cfg.seed)
    start = torch.tensor([[eot]], device=device)
    with parallel.autocast(device, dtype):
        ids = [t.item() for t in generate.generate(model, start, tokens or cfg.sample_tokens, temperature=0.8,
                                                   top_k=50, stop_id=eot, generator=generator)]
    return tokenizer.decode([i for i in ids if i != eot])


def finish(model, splits, tokenizer, eot, cfg, here, dtype, log, out_dir, step, spent):
    """The final figures, of the best weights, over whole splits, into result.json; and a longer sample."""
    best = checkpoint.load(out_dir / "best.pt", here.device)
    checkpoint.load_weights(model, best["model"], out_dir / "best.pt")
    model.eval()
    result = {"step": step, "best_step": best["step"], "tokens": step * cfg.batch_size * cfg.block_size,
              "train_seconds": spent, "parameters": sum(p.numel() for p in model.parameters()),
              "context": cfg.block_size, "stride": cfg.block_size}
    for name in ("val", "test"):
        if name in splits:
            figures = evaluate(model, splits[name], 0, eot, here, dtype)
            result |= {f"{name}_{k}": v for k, v in figures.items()}
            log.say(f"{name}, all of it: {described(figures)} (context and stride {cfg.block_size})")
    result["seconds"] = time.time() - START
    log.row(step, **{k: v for k, v in result.items() if k.startswith(("val_", "test_", "seconds"))})
    if here.main:
        checkpoint.save_json(out_dir / "result.json", result)
        text = write_sample(model, tokenizer, eot, cfg, dtype, tokens=3 * cfg.sample_tokens)
        log.text("final sample", text, step)
        log.say(f"\n--- the model writes ---\n{text}\n---\n{out_dir}: best.pt, latest.pt, result.json; "
                f"python sample.py --checkpoint={out_dir}")
    log.close()


def check_same_tokenizer(path, tokenizer, folder):
    if Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder} was prepared with another tokenizer than {path}; prepare it again with "
                        f"--tokenizer={path}, or start from scratch")


if __name__ == "__main__":
    config.run(main)
