"""Pretrain a language model: text -> tokens -> batches -> loss -> weights -> samples, top to bottom in this file.

    python train.py                                          # config/stdlib.py: your own Python's library, 3 minutes
    python train.py config/wikitext.py --max_minutes=20      # a config file, then options over it
    python train.py config/wikitext.py --resume              # go on where it stopped
    python train.py --eval_only --init_from=out/wikitext --text_file=book.txt  # any GPT or encoder on any text
    torchrun --nproc_per_node=8 train.py config/wikitext.py  # the same run on 8 processes
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import UserError, batches, checkpoint, config, distributed, evaluate, files, generate, kernels, loop, optim
from nanoft.bins import Tokens
from nanoft.bpe import Tokenizer
from nanoft.inspect.watch import Watch
from nanoft.model import ModelConfig, check_model, make_model, training_flops
from nanoft.published.source import open_checkpoint
from nanoft.sampling import Sampling
from nanoft.text import prepare, vocabulary
from nanoft.text.measure import measure
from nanoft.text.pairs import Pairs


@dataclass
class Config:
    out_dir: str = "out/stdlib"        # the run's folder: checkpoints, metrics.jsonl, TensorBoard events, result.json
    data: str = "stdlib"               # a folder under data/, or a path
    init_from: str = "scratch"         # scratch, or a run folder, checkpoint or published model to begin from
    resume: bool = False               # go on with the run in out_dir; auto: if there is one
    eval_only: bool = False            # no training: print the metrics of init_from, or of out_dir's run, on data
    text_file: str = ""                # measure on this text instead of data
    cache_tokens: int = 0              # eval_only: also with a cache of so many tokens of the text before, for a GPT
    objective: Literal["causal", "mlm", "mlm_nsp"] = "causal"  # GPT; BERT on masked words; and on pairs too
    seed: int = 1                      # of the initial weights, the batches and the dropout
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products; auto: bf16 if native
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: where it pays, with eager as fallback
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: each has the whole model, or a part (FSDP)
    checkpoint_activations: bool = False  # keep only the blocks' inputs, compute the rest again: less memory
    n_layer: int = 4                   # blocks
    n_head: int = 4                    # attention heads
    n_kv_head: int = 0                 # key-value heads, 0 = n_head
    head_dim: int = 0                  # width of a head, 0 = n_embd / n_head; python -m nanoft prune sets it
    n_embd: int = 128                  # width
    block_size: int = 128              # tokens of context
    dropout: float = 0.0               # fraction of the activations set to zero
    activation: Literal["relu2", "swiglu"] = "relu2"  # of the feed-forward; swiglu, with n_gram=1, for other programs
    n_gram: int = 1                    # largest n-gram with a hashed embedding; 1 = off
    n_buckets: int = 16384             # rows of the table of n-gram embeddings
    tie_head: Literal["auto", "true", "false"] = "auto"  # output head = token embedding; auto: in encoders
    arch: Literal["modern", "gpt2", "bert"] = "modern"  # how blocks are built: today's way, or as published
    mask_prob: float = 0.15            # fraction of the tokens that are masked, for an encoder
    whole_word: bool = False           # mask all tokens of a word together
    nsp_weight: float = 0.5            # weight of the pair loss (mlm_nsp)
    batch_size: int = 16               # sequences per optimizer step, over all processes
    micro_batch_size: int = 0          # sequences that a process takes through the model at once, 0 = all
    max_steps: int = 0                 # budget in optimizer steps, 0 = none
    max_minutes: float = -1.0          # the same in minutes from the first step on; -1 = 2.2, with max_steps none
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the blocks' matrices, AdamW for the rest
    lr: float = 0.01                   # peak learning rate of AdamW
    embed_lr: float = 0.1              # the same for embeddings, n-grams' too, but not for tied ones; 0 = lr
    muon_lr: float = 0.02              # peak learning rate of Muon
    beta2: float = 0.95                # AdamW's second decay
    weight_decay: float = 0.0          # of the matrices
    grad_clip: float = 1.0             # largest norm of the gradient, 0 = no clipping
    schedule: Literal["trapezoid", "linear", "cosine", "constant"] = "trapezoid"  # of the learning rate
    warmup: float = 0.02               # fraction of the budget over which the rate rises
    warmdown: float = 0.6              # fraction of the budget over which the trapezoid falls
    eval_interval: int = 250           # steps between evaluations
    eval_tokens: int = 65536           # validation tokens in one of them, 0 = all; the last one takes all
    log_interval: int = 10             # steps between status lines
    watch_interval: int = 1            # evaluations between TensorBoard's histograms, 0 = nothing for TensorBoard
    sample_tokens: int = 96            # length of the text sample at each evaluation
    sample_prompt: str = ""            # what a GPT's samples begin with, "" = as a document begins


def check(cfg):
    """What is wrong with the options, or with their combination, as sentences."""
    problems = check_model(cfg) + config.run_problems(cfg)
    problems += config.at_least(cfg, 1, "batch_size", "eval_interval", "log_interval")
    problems += config.at_least(cfg, 0, "seed", "micro_batch_size", "max_steps", "lr", "embed_lr",
                                "muon_lr", "weight_decay", "grad_clip", "nsp_weight", "eval_tokens", "cache_tokens",
                                "sample_tokens", "watch_interval")
    problems += config.fraction(cfg, "warmup", "warmdown") + config.fraction(cfg, "beta2", one=False)
    if cfg.schedule == "trapezoid" and cfg.warmup + cfg.warmdown > 1:
        problems.append(f"warmup={cfg.warmup} and warmdown={cfg.warmdown} are more than the whole run; lower one")
    problems += config.at_least(cfg, -1, "max_minutes")
    if cfg.max_steps <= 0 and cfg.max_minutes == 0:
        problems.append("max_steps and max_minutes are both 0; give the run a budget in one of them")
    if cfg.text_file and not cfg.eval_only:
        problems.append("text_file is for --eval_only; to train on it: python data/text/prepare.py --source=FILE")
    if cfg.cache_tokens and not cfg.eval_only:
        problems.append("cache_tokens is for --eval_only: training and samples know no cache; leave it out")
    if cfg.arch != "modern" and cfg.activation != Config.activation:
        problems.append(f"activation={cfg.activation} is for arch=modern; {cfg.arch} has its own, so leave it out")
    if not 0 < cfg.mask_prob < 1:
        problems.append(f"mask_prob={cfg.mask_prob} must lie between 0 and 1; 0.15 is usual")
    ranks = config.torchrun()[1]
    if cfg.parallel == "fsdp" and cfg.n_embd < ranks:
        problems.append(f"parallel=fsdp deals the rows of every matrix out to {ranks} processes, and n_embd="
                        f"{cfg.n_embd} rows are too few; use --parallel=ddp")
    if cfg.parallel == "fsdp" and cfg.dtype == "float16":
        problems.append("parallel=fsdp has no loss scale for dtype=float16; use bfloat16 or float32")
    if cfg.objective == "mlm_nsp" and cfg.block_size < 8:
        problems.append(f"block_size={cfg.block_size} has no room for a pair; use 8 or more")
    return problems


def main():
    started = time.monotonic()
    cfg = config.load(Config, check=check, usual="config/stdlib.py", fixed=("block_size", "eval_tokens"))
    if cfg.max_minutes == -1:
        cfg.max_minutes = 0.0 if cfg.max_steps else 2.2
    dist = distributed.start(cfg.device, cfg.dtype)  # rank, world_size, device, dtype
    if cfg.eval_only:
        measure(cfg, dist)
        return distributed.stop(dist)
    source, path = open_source(cfg)                  # a checkpoint to resume or to begin from, or None
    data = open_data(cfg, dist)                      # tokenizer, splits, make_batch(rows)

    # ---- the model, its optimizers and the state of the run: fresh, or restored from latest.pt
    model = build_model(cfg, data, source, path, dist)
    optimizers = optim.make_optimizers(model, optim.pretraining_groups(model, cfg), dist,
                                       betas=(0.9, cfg.beta2), eps=1e-10)  # 1e-8 would slow rare tokens' embeddings
    identities = {name: files.fingerprint(data.splits[name].headers) for name in ("train", "val")}
    run = loop.Run(cfg, dist, model, optimizers, source if cfg.resume else None, data.tokenizer, identities,
                   cfg.max_steps, cfg.max_minutes, started)
    run.watch = Watch(run.log, model, optimizers, cfg.watch_interval * cfg.eval_interval, dist)
    source = None  # free memory
    describe(run, data)

    # ---- one forward and backward pass; a batch has one loss term, or two with pairs
    count = None if cfg.objective == "causal" else count_targets  # a GPT scores every position
    weight = torch.tensor([1.0, cfg.nsp_weight] if cfg.objective == "mlm_nsp" else [1.0], device=dist.device)

    def forward_backward(net, batch, *shares):
        """Forward and backward of one micro-batch; `shares`: its weight in the global batch, for each loss term."""
        if cfg.objective != "causal":  # compiled code wants a fixed number of masked positions
            batch["capacity"] = batches.capacity(batch["ids"].shape, cfg.mask_prob)
        with dist.autocast():
            losses = torch.stack([loss * share for loss, share in zip(net(**batch).view(-1), shares)])
        run.scaler.scale((losses * weight).sum() * dist.world_size).backward()  # DDP takes the mean over the ranks
        return losses.detach()

    def try_it(net):
        """Run a training step and an evaluation once, so that their code is compiled."""
        forward_backward(net, data.first_batch(run.micro, dist), 1.0, 1.0)
        alone = replace(dist, rank=0, world_size=1)  # on this rank's share: a trial waits for nobody
        data.evaluate(net, "val", min(cfg.eval_tokens or 2**16, 2**16) // dist.world_size, alone)

    net = run.wrap(try_it, kernels.wants_compile(estimated_minutes(cfg, model, dist), dist.device), cfg.block_size)
    watched = data.watched_batch(run.micro, dist)  # validation windows whose activations are logged
    run.start(watched, flops_per_token(cfg, model))  # compilation is not counted
    while True:
        progress = run.progress()
        if run.interrupted:
            run.leave(best_val_loss=best_loss(run))

        # ---- evaluate, sample, save
        if run.evaluation_due(cfg.eval_interval):
            with run.pause():
                metrics = data.evaluate(run.net, "val", cfg.eval_tokens, dist)
                run.check_finite(metrics["loss"], "validation")
                run.row(**{f"val_{k}": v for k, v in metrics.items()})
                run.log.say(f"step {run.step:6} | val {evaluate.described(metrics)}")
                log_sample(run, model, data, cfg.sample_tokens)
                run.watch.look(run.step, watched, run.done)
                if run.record(-metrics["loss"]):
                    run.save("best.pt", model=model.state_dict(), best_val_loss=best_loss(run))
                run.save_latest(best_val_loss=best_loss(run))
        if run.done:
            break

        # ---- one optimizer step over the global batch
        run.seed_dropout()
        losses = torch.zeros_like(weight)
        for batch, scored, total in run.micro_batches(net, data.make_batch, count):
            losses += forward_backward(net, batch, scored / total, run.micro / cfg.batch_size)
        factor = optim.lr_factor(progress, cfg.schedule, cfg.warmup, cfg.warmdown)
        optim.set_lr(optimizers, factor)
        norm = run.clip_and_step(model.parameters())

        # ---- status line
        run.tokens += cfg.batch_size * cfg.block_size
        if run.line_due():
            run.status(dict(zip(("loss", "nsp_loss"), losses)), norm, cfg.lr * factor, "tok",
                       tokens=run.step * cfg.batch_size * cfg.block_size)

    run.end()
    final_metrics(run, model, data)
    run.log.close()
    distributed.stop(dist)


# ---- the data ----------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """A prepared data set. make_batch(rows): the training batch with these global row numbers, a pure function."""
    folder: Path
    tokenizer: Tokenizer
    splits: dict[str, Tokens]
    block_size: int
    make_batch: Callable
    masking: batches.Masking | None  # of an encoder
    pairs: dict[str, Pairs]  # of an encoder trained on pairs, for evaluation: the same pairs every time

    def evaluate(self, model, split, max_tokens, dist):
        """The metrics of a model on about max_tokens of a split, 0 = all."""
        model.eval()
        if self.masking is None:
            metrics = evaluate.causal_metrics(model, self.splits[split], max_tokens,
                                              self.tokenizer.special["<|endoftext|>"], dist)
        else:
            metrics = evaluate.masked_metrics(model, self.splits[split], max_tokens, self.masking,
                                              self.pairs.get(split), dist)
        model.train()
        return metrics

    def first_batch(self, size, dist):
        """A training batch of this size, to try compiled code on."""
        return distributed.to_device(self.make_batch(np.arange(size)), dist.device)

    def watched_batch(self, most, dist):
        """A few windows of validation, some 1,024 tokens, the same ones in every run."""
        rows, val = np.arange(min(most, 1024 // self.block_size) or 1), self.splits["val"]
        if self.pairs:
            batch = self.pairs["val"].batch(rows)
        elif self.masking:
            batch = batches.masked_batch(val, self.block_size, batches.EVAL_SEED, rows, self.masking)
        else:
            batch = batches.causal_batch(val, self.block_size, batches.EVAL_SEED, rows)
        return distributed.to_device(batch, dist.device)


def open_data(cfg, dist):
    """The data set, prepared by rank 0 if need be while the others wait. Raises UserError."""
    folder = prepare.find_data(cfg.data)
    if dist.main:
        prepare.ensure(folder)
    distributed.barrier(dist)
    tokenizer = vocabulary.load(folder)
    splits = {name: Tokens.open(folder, name) for name in ("train", "val", "test") if Tokens.exists(folder, name)}
    for name, tokens in splits.items():
        if tokens.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{folder}/{name}.bin was made by another tokenizer than tokenizer.json; prepare it again")
        batches.check_length(tokens, cfg.block_size, f"{folder}/{name}.bin")
        if name != "train":
            tokens.count_bytes(tokenizer)
    if cfg.objective == "causal":
        make_batch = partial(batches.causal_batch, splits["train"], cfg.block_size, cfg.seed)
        return Data(folder, tokenizer, splits, cfg.block_size, make_batch, None, {})
    masking = batches.masking(tokenizer, cfg.mask_prob, cfg.whole_word)
    if cfg.objective == "mlm":
        make_batch = partial(batches.masked_batch, splits["train"], cfg.block_size, cfg.seed, masking=masking)
        return Data(folder, tokenizer, splits, cfg.block_size, make_batch, masking, {})
    train = Pairs(splits["train"], tokenizer, cfg.block_size, cfg.batch_size, cfg.seed, masking)
    pairs: dict[str, Pairs] = {name: Pairs(splits[name], tokenizer, cfg.block_size, 8, batches.EVAL_SEED, masking)
             for name in ("val", "test") if name in splits}
    return Data(folder, tokenizer, splits, cfg.block_size, train.batch, masking, pairs)


def count_targets(batch):
    """How many positions of a batch are scored."""
    return (batch["targets"] != batches.IGNORE).sum()


# ---- the model ---------------------------------------------------------------------------------------------------


def open_source(cfg):
    """The checkpoint to go on with (resume) or to begin from (init_from), and its path; None twice for neither."""
    latest = Path(cfg.out_dir) / "latest.pt"
    if cfg.resume:
        if not latest.exists():
            raise UserError(f"{cfg.out_dir} holds no latest.pt to resume; run without --resume to start there")
        source = checkpoint.load(latest)
        if "optimizer" not in source or source["config"]["optimizer"] != cfg.optimizer:
            raise UserError(f"{latest} has no state of --optimizer={cfg.optimizer}; resume with the one it began with, "
                            "or start another run with --init_from")
        return source, latest
    if latest.exists():
        raise UserError(f"{cfg.out_dir} already holds a run; --resume goes on with it, --out_dir=NAME starts another")
    return (None, None) if cfg.init_from == "scratch" else open_checkpoint(cfg.init_from)


def build_model(cfg, data, source, path, dist):
    """The model that the options describe, with the weights of the checkpoint to begin from. Raises UserError."""
    torch.manual_seed(cfg.seed)
    shape = ModelConfig.from_options(cfg, data.tokenizer.vocab_size, source and source["model_config"])
    model = make_model(shape)
    if source:
        take_weights(model, source, path, cfg.resume, data)
    if cfg.objective == "mlm" and shape.n_types:  # words alone teach a published BERT's sentence head nothing
        for p in (*model.pooler.parameters(), *model.next.parameters()):
            p.requires_grad_(False)
    model.to(dist.device)
    kernels.tune(model, dist.device)
    if cfg.checkpoint_activations:
        kernels.checkpoint_activations(model)
    if cfg.parallel == "fsdp" and dist.world_size > 1:
        distributed.shard(model, dist)
    return model


def take_weights(model, source, path, resume, data):
    """Put a checkpoint's weights into the model, if it is the same model over the same tokenizer. Raises UserError."""
    if "task" in source:
        raise UserError(f"{path} is fine-tuned on a task; begin from the pretrained model that it began from")
    own, saved = asdict(model.cfg), asdict(ModelConfig.from_saved(source["model_config"], path))
    cut = model.cfg.position == "learned" and own["block_size"] < saved["block_size"]  # fewer positions than it knows
    free = set() if resume else {"dropout"}
    free |= {"block_size"} if not resume and (cut or model.cfg.position == "rope") else set()
    # an encoder trained without pairs has no token types and no sentence head: those start fresh
    adds_pairs = not resume and own["n_types"] > saved["n_types"] == 0
    free |= {"n_types"} if adds_pairs else set()
    other = [f"{k}={v}" for k, v in saved.items() if k not in free | {"vocab_size"} and v != own[k]]
    if other:
        raise UserError(f"{path} holds another model ({', '.join(other)}); give these options, or another folder")
    tokenizer = vocabulary.of_checkpoint(path)
    checkpoint.check_tokenizer(source, tokenizer, path)
    if tokenizer.fingerprint != data.tokenizer.fingerprint:
        raise UserError(f"{data.folder} was prepared with another tokenizer than {path.parent} has; prepare it again "
                        f"with --tokenizer={path.parent}, or start from scratch")
    weights = source["model"]
    if cut:
        weights |= {"trunk.positions.weight": weights["trunk.positions.weight"][:own["block_size"]]}
    checkpoint.load_weights(model, weights, path, ("trunk.types.", "pooler.", "next.") if adds_pairs else ())


def estimated_minutes(cfg, model, dist):
    """How long the run will take: the budget, or its steps in eager code.

    Two cores do 200 GFLOP/s. A GPU does 50 TFLOP/s, but needs 2 ms a block to be told what to do.
    """
    work = flops_per_token(cfg, model) * cfg.batch_size * cfg.block_size / dist.world_size
    seconds = work / 5e13 + 0.002 * cfg.n_layer if dist.device.type == "cuda" else work / 2e11
    return min(cfg.max_minutes or math.inf, seconds * (cfg.max_steps or math.inf) / 60)


def flops_per_token(cfg, model):
    return training_flops(model, cfg.block_size, 1.0 if cfg.objective == "causal" else cfg.mask_prob)


# ---- what the run tells ------------------------------------------------------------------------------------------


def describe(run, data):
    """The first lines of the log: data, model, run."""
    cfg, n_params = run.cfg, sum(p.numel() for p in run.model.parameters())
    run.log.say(f"data   {data.folder.name}: {len(data.splits['train']):,} training tokens, vocabulary "
                f"{data.tokenizer.vocab_size:,}")
    run.log.say(f"model  {n_params / 1e6:.2f}M parameters: {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} heads, "
                f"context {cfg.block_size}, {cfg.objective}")
    run.log.say(f"run    {run.describe('sequences')}")
    if distributed.is_sharded(run.model):
        run.log.say("parallel=fsdp: nothing for TensorBoard and no samples, which one process cannot make alone")


def best_loss(run):
    """The lowest validation loss so far, inf before the first evaluation."""
    return math.inf if run.best is None else -run.best


def log_sample(run, model, data, length):
    """A sample of this many tokens for the screen and TensorBoard, written by rank 0."""
    if run.dist.main and length and not distributed.is_sharded(model):
        text = write_sample(model, data, run.cfg, run.dist, length)
        run.log.text("sample", text, run.step)
        run.log.say("       | " + repr(text[:110]))


def write_sample(model, data, cfg, dist, length):
    """What a GPT writes, sample_prompt first; how an encoder fills masks in validation text, in [brackets].

    Always from the same random numbers.
    """
    model.eval()
    device, tokenizer, val = dist.device, data.tokenizer, data.splits["val"]
    eot = tokenizer.special["<|endoftext|>"]
    if cfg.objective != "causal":
        ids = torch.from_numpy(val.read(0, min(length, cfg.block_size, len(val)))).to(device)
        hidden = ids.clone()
        hidden[4::8] = tokenizer.special["<|mask|>"]
        with dist.autocast():
            best, _ = generate.fill_masks(model, hidden, tokenizer.special["<|mask|>"], k=1)
        model.train()
        guesses = iter(best[:, 0].tolist())
        parts = [b"[" + tokenizer.decode_bytes([next(guesses)]) + b"]" if masked else tokenizer.decode_bytes([token])
                 for token, masked in zip(ids.tolist(), (hidden != ids).tolist())]
        return b"".join(parts).decode("utf-8", errors="replace")  # a character may be of several tokens
    rules = Sampling(temperature=0.7, top_p=0.9, stop_ids=(eot,))
    prompt = torch.tensor([[eot, *tokenizer.encode(cfg.sample_prompt)]])
    with dist.autocast():
        ids = [int(token) for token in generate.generate(model, prompt, length, rules, seeds=cfg.seed)]
    model.train()
    return cfg.sample_prompt + tokenizer.decode([i for i in ids if i != eot])


def final_metrics(run, model, data):
    """Measure the best weights on whole splits; write result.json and a last sample."""
    cfg, dist, train_seconds = run.cfg, run.dist, run.spent
    path = run.out_dir / "best.pt"
    best = checkpoint.load(path)
    checkpoint.load_weights(model, best["model"], path)
    result = {"step": run.step, "best_step": best["step"], "tokens": run.step * cfg.batch_size * cfg.block_size,
              "train_seconds": train_seconds, "parameters": sum(p.numel() for p in model.parameters()),
              "context": cfg.block_size, "stride": cfg.block_size}
    for name in ("val", "test"):
        if name in data.splits:
            metrics = data.evaluate(run.net, name, 0, dist)
            result |= {f"{name}_{k}": v for k, v in metrics.items()}
            run.log.say(f"{name}, all of it: {evaluate.described(metrics)} (context and stride {cfg.block_size})")
    result["seconds"] = time.monotonic() - run.started
    run.row(**{k: v for k, v in result.items() if k.startswith("test_")})
    if dist.main:
        files.write_json(run.out_dir / "result.json", result)
        run.watch.compare(run.step, cfg, result)
        if cfg.sample_tokens and not distributed.is_sharded(model):
            text = write_sample(model, data, cfg, dist, 3 * cfg.sample_tokens)
            run.log.text("final sample", text, run.step)
            run.log.say(f"\n--- the model writes ---\n{text}\n---")
        run.log.say(f"{run.out_dir}: best.pt, latest.pt, result.json; python sample.py --checkpoint={run.out_dir}")


if __name__ == "__main__":
    config.run(main)
