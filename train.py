"""Pretrain a language model: text -> tokens -> batches -> loss -> weights -> samples, top to bottom in this file.

    python train.py                                          # the standard library of your own Python, 3 minutes
    python train.py config/wikitext.py --max_minutes=20      # a config file, then options over it
    python train.py config/wikitext.py --resume              # go on where it stopped
    torchrun --nproc_per_node=8 train.py config/wikitext.py  # the same run on 8 processes
"""

import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import UserError, batches, checkpoint, config, files, generate, optim, parallel, prepare, vocabulary
from nanoft.bins import Tokens
from nanoft.evaluate import causal_figures, described, masked_figures, tensors
from nanoft.model import CLASSIC, ModelConfig, check_model, make_model, saved_config
from nanoft.runlog import RunLog, clock
from nanoft.watch import Watch

START = time.time() - time.process_time()  # when the process began: so far it has only imported


@dataclass
class Config:
    out_dir: str = "out/stdlib"        # the run's folder: checkpoints, metrics.jsonl, TensorBoard events, result.json
    data: str = "stdlib"               # a folder under data/, or a path
    init_from: str = "scratch"         # scratch, or a run folder, checkpoint or published model to begin from
    resume: bool = False               # go on with the run in out_dir
    objective: Literal["causal", "mlm", "mlm_nsp"] = "causal"  # GPT; BERT on masked words; and on pairs too
    seed: int = 1                      # of the initial weights, the batches and the dropout
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products; auto: bf16 if native
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: where it pays, with eager as fallback
    n_layer: int = 4                   # blocks
    n_head: int = 4                    # attention heads
    n_kv_head: int = 0                 # key-value heads, 0 = n_head
    n_embd: int = 128                  # width
    block_size: int = 128              # tokens of context
    dropout: float = 0.0               # part of the activations set to zero
    n_gram: int = 1                    # longest run of tokens with an embedding of its own, 1 = none but the tokens'
    n_buckets: int = 16384             # rows of the table that these n-grams share
    tie_head: bool = False             # share the token embedding with the output head
    arch: Literal["modern", "gpt2", "bert"] = "modern"  # how blocks are built: today's way, or as published
    mask_prob: float = 0.15            # part of the words that an encoder must guess
    whole_word: bool = False           # mask all tokens of a word together
    nsp_weight: float = 0.5            # weight of the pair loss (mlm_nsp)
    batch_size: int = 16               # sequences per optimizer step, over all processes
    micro_batch_size: int = 0          # sequences a process takes through the model at once, 0 = all of its share
    max_steps: int = 0                 # budget in optimizer steps, 0 = none
    max_minutes: float = 2.2           # budget in minutes from the first step on, 0 = none; the schedule fits it
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the blocks' matrices, AdamW for the rest
    lr: float = 0.01                   # peak learning rate of AdamW
    embed_lr: float = 0.1              # the same for the embeddings, but not for tied ones; 0 = lr
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
    watch_interval: int = 1            # evaluations between TensorBoard's histograms, 0 = nothing for TensorBoard
    sample_tokens: int = 96            # length of the text sample at each evaluation


def check(cfg):
    """Sentences on options that cannot be, or cannot go together."""
    problems = check_model(cfg)
    for name in ("batch_size", "eval_interval", "log_interval"):
        if getattr(cfg, name) < 1:
            problems.append(f"{name}={getattr(cfg, name)} must be at least 1")
    for name in ("seed", "micro_batch_size", "max_steps", "max_minutes", "lr", "embed_lr", "muon_lr", "weight_decay",
                 "grad_clip", "nsp_weight", "eval_tokens", "sample_tokens", "watch_interval"):
        if getattr(cfg, name) < 0:
            problems.append(f"{name}={getattr(cfg, name)} must be 0 or more")
    for name in ("beta2", "warmup", "warmdown"):
        if not 0 <= getattr(cfg, name) <= 1 or (name == "beta2" and cfg.beta2 == 1):
            problems.append(f"{name}={getattr(cfg, name)} must lie between 0 and 1")
    if not cfg.out_dir or (Path(cfg.out_dir).exists() and not Path(cfg.out_dir).is_dir()):
        problems.append(f"out_dir={cfg.out_dir!r} is not a folder; name one for this run")
    if cfg.schedule == "trapezoid" and cfg.warmup + cfg.warmdown > 1:
        problems.append(f"warmup={cfg.warmup} and warmdown={cfg.warmdown} are more than the whole run; lower one")
    if cfg.max_steps <= 0 and cfg.max_minutes <= 0:
        problems.append("max_steps and max_minutes are both 0; give the run a budget in one of them")
    if not 0 < cfg.mask_prob < 1:
        problems.append(f"mask_prob={cfg.mask_prob} must lie between 0 and 1; 0.15 is usual")
    if cfg.objective == "mlm_nsp" and cfg.block_size < 8:
        problems.append(f"block_size={cfg.block_size} has no room for a pair; use 8 or more")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.micro_batch_size >= 0 and cfg.batch_size % (world * max(cfg.micro_batch_size, 1)):
        problems.append(f"batch_size={cfg.batch_size} does not divide into {world} process(es) x micro_batch_size="
                        f"{cfg.micro_batch_size or 1}; choose a multiple of {world * max(cfg.micro_batch_size, 1)}")
    return problems


def main():
    cfg = config.load(Config, check=check)
    here = parallel.start(cfg.device)
    device = here.device
    dtype, reason = parallel.number_format(cfg.dtype, device)
    out_dir = Path(cfg.out_dir)

    source, place = open_source(cfg, out_dir)
    folder, tokenizer, splits = open_data(cfg, here)

    # what step s sees: a function from the numbers of its rows; evaluation has the same masks and pairs every time
    masking, pairs = None, {}
    if cfg.objective == "causal":
        make_batch = partial(batches.causal_batch, splits["train"], cfg.block_size, cfg.seed)
    else:
        masking = batches.masking(tokenizer, cfg.mask_prob, cfg.whole_word)
        make_batch = partial(batches.masked_batch, splits["train"], cfg.block_size, cfg.seed, masking=masking)
    if cfg.objective == "mlm_nsp":
        make_batch = batches.Pairs(splits["train"], tokenizer, cfg.block_size, cfg.batch_size, cfg.seed, masking).batch
        pairs = {name: batches.Pairs(splits[name], tokenizer, cfg.block_size, 8, batches.EVAL_SEED, masking)
                 for name in ("val", "test") if name in splits}

    # the model: a plain module; compilation and DDP wrap it afterwards
    torch.manual_seed(cfg.seed)
    model_config = model_shape(cfg, tokenizer.vocab_size, source)
    model = make_model(model_config)
    if source:
        take_weights(model, source, place, cfg.resume, tokenizer, folder)
    if cfg.objective == "mlm" and model_config.n_types:  # words alone teach a published BERT's sentence head nothing
        for p in (*model.pooler.parameters(), *model.next.parameters()):
            p.requires_grad_(False)
    model.to(device)
    optimizers = optim.make_optimizers(model, cfg, device, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # fresh, or exactly where it stopped
    step, evaluated, best, spent = 0, 0, math.inf, 0.0
    changed = []
    if cfg.resume:
        for optimizer, saved in zip(optimizers, source["optimizer"]):  # the run's moments, this call's rates
            optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        scaler.load_state_dict(source["scaler"])
        step, evaluated, best, spent = (source[k] for k in ("step", "evaluated", "best_val_loss", "seconds"))
        changed = [f"{k}={v} (was {source['config'].get(k)})" for k, v in asdict(cfg).items()
                   if k != "resume" and v != source["config"].get(k)]
    source = None  # let go of the memory
    if here.main:
        out_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(out_dir / "config.json", asdict(cfg))
        tokenizer.save(out_dir / "tokenizer.json")
    log = RunLog(out_dir, here.main, step, cfg.watch_interval > 0)
    log.table("config", [("option", "value"), *asdict(cfg).items()], step)
    watch = Watch(log, model, optimizers, cfg.watch_interval * cfg.eval_interval, dtype)
    micro = cfg.micro_batch_size or cfg.batch_size // here.world
    parts = cfg.batch_size // (micro * here.world)
    tokens_per_step = cfg.batch_size * cfg.block_size
    n_params = sum(p.numel() for p in model.parameters())
    if reason:
        log.say(reason)
    if changed:
        log.say(f"resumed with other options: {', '.join(changed)}")
    log.say(f"data   {folder.name}: {len(splits['train']):,} training tokens, vocabulary {tokenizer.vocab_size:,}")
    log.say(f"model  {n_params / 1e6:.2f}M parameters: {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} heads, "
            f"context {cfg.block_size}, {cfg.objective}")
    log.say(f"run    {cfg.batch_size} sequences a step = {here.world} process(es) x {parts} part(s) x {micro}, "
            f"on {device.type} in {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")

    # the loss terms of a batch, each with its weight
    weight = torch.tensor([1.0, cfg.nsp_weight] if cfg.objective == "mlm_nsp" else [1.0], device=device)

    def forward_backward(net, batch, share):
        """Add the gradient of a part of the global batch; `share`: how much of it, one number a loss term."""
        batch = tensors(batch, device)
        if cfg.objective != "causal":  # compiled code wants a fixed number of masked rows
            batch["capacity"] = batches.capacity(batch["ids"].shape, cfg.mask_prob)
        with parallel.autocast(device, dtype):
            losses = net(**batch).view(-1) * share
        scaler.scale((losses * weight).sum() * here.world).backward()  # DDP takes the mean over the processes
        return losses.detach()

    net = model
    steps = cfg.max_steps or math.inf
    # 6 operations a token for each number in a matrix (tables are only looked up), at 200 GFLOP/s: two cores
    work = 6 * tokens_per_step * sum(p.numel() for name, p in model.named_parameters() if ".grams." not in name
                                     and (".tokens." not in name or model_config.tie_head))
    minutes = min(cfg.max_minutes or math.inf, work * steps / 2e11 / 60)
    if parallel.wants_compile(cfg.compile, minutes, device):  # before DDP: its trial must not wait for others
        net = parallel.compiled(net, lambda net: forward_backward(net, make_batch(np.arange(micro)), weight),
                                cfg.compile, dtype, cfg.block_size, log.say)
        model.zero_grad(set_to_none=True)
    net = parallel.wrap(net, here)

    caught, release = parallel.catch_signals()  # SIGINT or SIGTERM: finish the step, save, leave

    def measure(split, max_tokens):
        model.eval()
        if cfg.objective == "causal":
            figures = causal_figures(model, splits[split], max_tokens, eot, here, dtype)
        else:
            figures = masked_figures(model, splits[split], max_tokens, masking, pairs.get(split), here, dtype)
        model.train()
        return figures

    def save(name):
        if here.main:
            checkpoint.save(out_dir / name, {
                "model": model.state_dict(), "model_config": asdict(model_config),
                "optimizer": [o.state_dict() for o in optimizers], "step": step, "evaluated": evaluated,
                "seed": cfg.seed, "config": asdict(cfg), "best_val_loss": best, "seconds": time.time() - began,
                "scaler": scaler.state_dict()})

    eot = tokenizer.special["<|endoftext|>"]
    few = np.arange(min(micro, 1024 // cfg.block_size) or 1)  # windows of validation that watch looks at, each time
    if cfg.objective == "causal":
        watched = batches.causal_batch(splits["val"], cfg.block_size, batches.EVAL_SEED, few)
    elif cfg.objective == "mlm":
        watched = batches.masked_batch(splits["val"], cfg.block_size, batches.EVAL_SEED, few, masking)
    else:
        watched = pairs["val"].batch(few)
    watched = tensors(watched, device)
    if step == 0:
        watch.look(step, watched)
    began = time.time() - spent  # a budget in minutes counts steps and evaluations, not the compilation
    since, since_step, paused = time.time(), step, 0.0  # of the last status line; seconds of evaluation since then
    while True:
        # how far the run is, agreed on by all processes
        spent, interrupted = parallel.total([time.time() - began, bool(caught)], here, "max")
        progress = max((step + 0.5) / cfg.max_steps if cfg.max_steps else 0.0,  # of the middle of the coming step
                       spent / (60 * cfg.max_minutes) if cfg.max_minutes else 0.0)
        done = step > 0 and progress >= 1
        if interrupted:
            if not all(p.isfinite().all() for p in model.parameters()):
                raise UserError(diverged("training", math.nan, step, out_dir))
            save("latest.pt")
            break
        if (step % cfg.eval_interval == 0 or done) and step > evaluated:
            pause = time.time()
            figures = measure("val", cfg.eval_tokens)
            if not math.isfinite(figures["loss"]):
                raise UserError(diverged("validation", figures["loss"], step, out_dir))
            evaluated = step
            log.row(step, seconds=time.time() - START, **{f"val_{k}": v for k, v in figures.items()})
            log.say(f"step {step:6} | val {described(figures)}")
            if here.main and cfg.sample_tokens:
                text = write_sample(model, tokenizer, splits["val"], cfg, dtype, cfg.sample_tokens)
                log.text("sample", text, step)
                log.say("       | " + repr(text[:110]))
            watch.look(step, watched, done)
            if figures["loss"] < best:
                best = figures["loss"]
                save("best.pt")
            save("latest.pt")
            paused += time.time() - pause
        if done:
            break

        # the parts of the global batch that are this process's
        dropout_seed = np.random.SeedSequence((cfg.seed, step, here.rank)).generate_state(1)
        torch.manual_seed(int(dropout_seed[0]))  # dropout, too, is a function of the step
        first = [(part * here.world + here.rank) * micro for part in range(parts)]
        todo = [make_batch(step * cfg.batch_size + np.arange(row, row + micro)) for row in first]
        counts = [(batch["targets"] != batches.IGNORE).sum() for batch in todo]
        scored = max(parallel.total([sum(counts)], here)[0], 1)
        losses = torch.zeros_like(weight)
        for part, batch in enumerate(todo):
            if here.world > 1:  # synchronise on the last part only; to be set before the forward
                net.require_backward_grad_sync = part == parts - 1
            # how much of the global batch's scored words this part has, and of its pairs
            share = torch.tensor([counts[part] / scored, micro / cfg.batch_size][:len(weight)], device=device)
            losses += forward_backward(net, batch, share)
        if step == 0:
            missed = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not missed, f"{missed} get no gradient"
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        line_due = (step + 1) % cfg.log_interval == 0 or step == 0
        watch.gradients(step + 1, line_due)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
        factor = optim.lr_factor(progress, cfg.schedule, cfg.warmup, cfg.warmdown)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        if scaler.is_enabled() and not norm.isfinite():  # fp16 overflowed: nobody steps, the scale is halved
            scaler.update(scaler.get_scale() / 2)
        else:
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1
        watch.updated(step)

        if line_due:
            shown = parallel.total(losses, here)
            if not math.isfinite(sum(shown)):
                raise UserError(diverged("training", sum(shown), step, out_dir))
            now = time.time()
            rate = (step - since_step) * tokens_per_step / (now - since - paused)
            since, since_step, paused = now, step, 0.0
            pair_loss = {"nsp_loss": shown[1]} if len(shown) > 1 else {}
            log.row(step, tokens=step * tokens_per_step, seconds=now - START, loss=shown[0], **pair_loss,
                    lr=cfg.lr * factor, grad_norm=norm.item(), tokens_per_s=rate,
                    memory_gb=parallel.peak_memory(device))
            left = min((cfg.max_steps - step) * tokens_per_step / rate if cfg.max_steps else math.inf,
                       60 * cfg.max_minutes - (now - began) if cfg.max_minutes else math.inf)
            log.say(f"step {step:6} | loss {shown[0]:.4f} | lr {cfg.lr * factor:.2e} | {rate:9,.0f} tok/s | "
                    f"{clock(max(left, 0))} left")

    if interrupted:
        parallel.wait(here)  # torchrun ends everybody when the first has gone
        log.say(f"stopped at step {step} and saved; go on with --resume")
        log.close()
        parallel.stop(here)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))

    # the final figures, of the best weights, over whole splits
    release()  # all is saved: from here on a signal ends at once
    parallel.wait(here)  # rank 0 may still be writing best.pt
    best_state = checkpoint.load(out_dir / "best.pt")
    checkpoint.load_weights(model, best_state["model"], out_dir / "best.pt")
    result = {"step": step, "best_step": best_state["step"], "tokens": step * tokens_per_step, "train_seconds": spent,
              "parameters": n_params, "context": cfg.block_size, "stride": cfg.block_size}
    for name in ("val", "test"):
        if name in splits:
            figures = measure(name, 0)
            result |= {f"{name}_{k}": v for k, v in figures.items()}
            log.say(f"{name}, all of it: {described(figures)} (context and stride {cfg.block_size})")
    result["seconds"] = time.time() - START
    log.row(step, **{k: v for k, v in result.items() if k.startswith(("test_", "seconds"))})
    if here.main:
        files.write_json(out_dir / "result.json", result)
        log.finish(step, cfg, result)
        if cfg.sample_tokens:
            text = write_sample(model, tokenizer, splits["val"], cfg, dtype, 3 * cfg.sample_tokens)
            log.text("final sample", text, step)
            log.say(f"\n--- the model writes ---\n{text}\n---")
        log.say(f"{out_dir}: best.pt, latest.pt, result.json; python sample.py --checkpoint={out_dir}")
    log.close()
    parallel.stop(here)


def open_source(cfg, out_dir):
    """The checkpoint to go on with (resume) or to begin from (init_from), and its path; None twice for neither."""
    latest = out_dir / "latest.pt"
    if cfg.resume:
        if not latest.exists():
            raise UserError(f"{out_dir} holds no latest.pt to resume; run without --resume to start there")
        source = checkpoint.load(latest)
        if "optimizer" not in source or source["config"]["optimizer"] != cfg.optimizer:
            raise UserError(f"{latest} has no state of --optimizer={cfg.optimizer}; resume with the one it began with, "
                            "or start another run with --init_from")
        return source, latest
    if latest.exists():
        raise UserError(f"{out_dir} already holds a run; --resume goes on with it, --out_dir=NAME starts another")
    if cfg.init_from == "scratch":
        return None, None
    path = checkpoint.find(cfg.init_from)
    return checkpoint.load(path), path


def open_data(cfg, here):
    """The data set's folder, its tokenizer and its splits, prepared by rank 0 if need be while the others wait."""
    folder = prepare.find_data(cfg.data)
    if here.main:
        prepare.ensure(folder)
    parallel.wait(here)
    tokenizer = vocabulary.load(folder)
    splits = {name: Tokens.open(folder, name) for name in ("train", "val", "test") if Tokens.exists(folder, name)}
    for name, tokens in splits.items():
        if tokens.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{folder}/{name}.bin was made by another tokenizer than tokenizer.json; prepare it again")
        batches.check_length(tokens, cfg.block_size, f"{folder}/{name}.bin")
    return folder, tokenizer, splits


def model_shape(cfg, vocab_size, source=None):
    """The ModelConfig that the options describe. What no option says is as in the checkpoint to begin from."""
    shape = {f.name: getattr(cfg, f.name) for f in fields(ModelConfig) if hasattr(cfg, f.name)}
    shape |= CLASSIC.get(cfg.arch, {}) | dict(vocab_size=vocab_size, causal=cfg.objective == "causal",
                                              n_types=2 * (cfg.objective == "mlm_nsp"))
    if source:
        saved = source["model_config"]
        shape |= {name: saved[name] for name in ("vocab_size", "vocab_multiple", "n_hidden", "norm_eps", "activation")
                  if name in saved}
        if cfg.arch == "bert":
            shape["n_types"] = max(shape["n_types"], saved.get("n_types", 0))
    return ModelConfig(**shape)


def take_weights(model, source, place, resume, tokenizer, folder):
    """Put a checkpoint's weights into the model, if it is the same model over the same tokenizer."""
    if "task" in source:
        raise UserError(f"{place} is fine-tuned on a task; begin from the pretrained model that it began from")
    own, saved = asdict(model.cfg), asdict(saved_config(source["model_config"], place))
    cut = model.cfg.position == "learned" and own["block_size"] < saved["block_size"]  # fewer positions than it knows
    free = set() if resume else {"dropout"}
    free |= {"block_size"} if not resume and (cut or model.cfg.position == "rope") else set()
    # an encoder trained without pairs has no token types and no sentence head: those begin anew
    adds_pairs = not resume and own["n_types"] > saved["n_types"] == 0
    free |= {"n_types"} if adds_pairs else set()
    other = [f"{k}={v}" for k, v in saved.items() if k not in free | {"vocab_size"} and v != own[k]]
    if other:
        raise UserError(f"{place} holds another model ({', '.join(other)}); give these options, or another folder")
    if vocabulary.load(place.parent).fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder} was prepared with another tokenizer than {place.parent} has; prepare it again with "
                        f"--tokenizer={place.parent}, or start from scratch")
    fresh = ("trunk.types.", "pooler.", "next.") if adds_pairs else ()
    weights = source["model"]
    if cut:
        weights |= {"trunk.positions.weight": weights["trunk.positions.weight"][:own["block_size"]]}
    checkpoint.load_weights(model, weights, place, fresh)


def write_sample(model, tokenizer, val, cfg, dtype, length):
    """What a GPT writes when it begins a document; how an encoder fills gaps in validation text, in [brackets].

    Always from the same random numbers.
    """
    model.eval()
    device, eot = model.head.weight.device, tokenizer.special["<|endoftext|>"]
    if cfg.objective != "causal":
        ids = torch.from_numpy(val.read(0, min(length, cfg.block_size, len(val)))).to(device)
        hidden = ids.clone()
        hidden[4::8] = tokenizer.special["<|mask|>"]
        with parallel.autocast(device, dtype):
            best, _ = generate.fill_masks(model, hidden, tokenizer.special["<|mask|>"], k=1)
        model.train()
        guesses = iter(best[:, 0].tolist())
        pieces = [b"[" + tokenizer.decode_bytes([next(guesses)]) + b"]" if masked else tokenizer.decode_bytes([token])
                  for token, masked in zip(ids.tolist(), (hidden != ids).tolist())]
        return b"".join(pieces).decode("utf-8", errors="replace")  # a character may be of several tokens
    generator = torch.Generator(device).manual_seed(cfg.seed)
    with parallel.autocast(device, dtype):
        tokens = generate.generate(model, torch.tensor([[eot]], device=device), length, temperature=0.8, top_k=50,
                                   stop_id=eot, generator=generator)
        ids = [token.item() for token in tokens]
    model.train()
    return tokenizer.decode([i for i in ids if i != eot])


def diverged(which, loss, step, out_dir):
    kept = "the last good weights are in latest.pt" if (out_dir / "latest.pt").exists() else "nothing was saved yet"
    return f"the {which} loss is {loss} at step {step}, {kept}; lower --lr and --muon_lr, or raise --warmup"


if __name__ == "__main__":
    config.run(main)
