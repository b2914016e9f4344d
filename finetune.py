"""Fine-tune a pretrained model on a task: rows -> pieces of tokens -> batches -> loss -> weights -> scores.

    python finetune.py config/sst2.py                           # a data set folder with task.json
    python finetune.py --init_from=out/wikitext_bert --train_file=reviews.csv --label_column=stars --out_dir=out/stars
    python finetune.py config/sst2.py --seeds=1,2,3             # mean and deviation over three seeds
    python finetune.py config/sst2.py "--grid=lr=1e-4,3e-4;dropout=0,0.1"
    python finetune.py config/sst2.py --resume                  # go on exactly where it stopped
    python finetune.py config/sst2.py --eval_only               # figures and predictions of best.pt again
"""

import functools
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import (
    UserError,
    batches,
    begin,
    checkpoint,
    config,
    encode,
    examples,
    files,
    lora,
    metrics,
    mistakes,
    optim,
    parallel,
    predict,
    sweep,
    tuning,
)
from nanoft.evaluate import tensors
from nanoft.heads import TaskModel
from nanoft.model import check_model
from nanoft.runlog import RunLog, clock
from nanoft.watch import Watch

START = time.time() - time.process_time()  # when the process began: so far it has only imported


@dataclass
class Config:
    out_dir: str = "out/finetuned"     # the run's folder: checkpoints, metrics.jsonl, result.json, predictions
    data: str = ""                     # a folder under data/, or a path, with train.jsonl, val.jsonl and task.json
    init_from: str = "scratch"         # a run folder, checkpoint or published model to begin from, or scratch
    adapter: str = ""                  # an adapter.pt (LoRA) to put on init_from
    resume: bool = False               # go on with the run in out_dir
    eval_only: bool = False            # no training: figures and predictions of out_dir's best.pt, or of the adapter
    seed: int = 1                      # of the new weights, the batches and the dropout
    seeds: str = ""                    # several, as 1,2,3: a run for each, then mean and deviation
    grid: str = ""                     # options to try, as lr=1e-4,3e-4;dropout=0,0.1: a run for each combination
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products; auto: bf16 if native
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: not, for lengths vary

    train_file: str = ""               # your own rows instead of data: .csv .tsv .jsonl; CoNLL (tag), SQuAD (answer)
    val_file: str = ""                 # the same for validation; without it a part of train_file
    test_file: str = ""                # the same for the final test, may be left out
    kind: Literal["classify", "pair", "regress", "tag", "answer", "generate"] = "classify"  # of train_file
    text_column: str = ""              # names of train_file's columns; "" = the one with a usual name
    pair_column: str = ""              # the second text
    label_column: str = ""             # the label, or the response of generate
    separator: str = ""                # what stands between several labels of a text: makes the task multi-label
    val_fraction: float = 0.1          # part of train_file for validation
    metric: str = ""                   # the figure by which the best weights are chosen; "" = the kind's usual one
    drop_duplicates: bool = False      # leave out training rows that occur before
    drop_empty: bool = False           # leave out training rows with a blank text

    max_length: int = 0                # tokens of a piece, 0 = the model's block_size
    long_text: Literal["head", "tail", "head_tail", "windows"] = "head"  # what is kept of a longer text; windows: all
    doc_stride: int = 128              # tokens from one window to the next
    max_answer: int = 30               # longest answer in tokens
    pool: Literal["auto", "mean", "cls", "last"] = "auto"  # a text's vector; auto: mean, of a GPT the last token's
    match_types: bool = False          # of two texts: tokens that the other text has too get a type of their own
    token_drop: float = 0.0            # part of the training tokens left out, each epoch others
    token_swap: float = 0.0            # part of them swapped with their neighbour
    token_mask: float = 0.0            # part of them replaced by <|mask|>

    n_layer: int = 2                   # of a model from scratch, an encoder (for generate a GPT): blocks
    n_head: int = 4                    # attention heads
    n_embd: int = 128                  # width
    n_gram: int = 1                    # longest run of tokens with an embedding of its own
    n_buckets: int = 16384             # rows of the table that these n-grams share

    batch_size: int = 32               # pieces per optimizer step, over all processes
    micro_batch_size: int = 0          # pieces a process takes through the model at once, 0 = all of its share
    epochs: float = 3.0                # times through the training rows
    max_steps: int = 0                 # optimizer steps instead of epochs, 0 = epochs
    optimizer: Literal["muon", "adamw"] = "adamw"  # muon: Muon for the blocks' matrices, AdamW for the rest
    lr: float = 3e-4                   # peak learning rate of AdamW
    head_lr: float = 0.0               # the same for the task's head, 0 = lr
    embed_lr: float = 0.0              # the same for the embeddings, 0 = lr
    muon_lr: float = 0.002             # peak learning rate of Muon
    layer_decay: float = 1.0           # each block's rate is this part of the rate of the block above it
    weight_decay: float = 0.01         # of the matrices
    grad_clip: float = 1.0             # largest norm of the gradient, 0 = no clipping
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # of the learning rate
    warmup: float = 0.1                # part of the steps over which the rate rises
    dropout: float = 0.1               # part of the activations set to zero
    head_dropout: float = 0.1          # the same before the head
    label_smoothing: float = 0.0       # part of the target given to all classes alike
    class_weights: Literal["none", "balanced"] = "none"  # balanced: every class weighs the same in the loss
    freeze_blocks: int = 0             # the embeddings and the first N blocks stay as they are, -1 = the whole trunk
    unfreeze_every: float = 0.0        # epochs until the top block starts to train, then the next, 0 = all at once
    lora_rank: int = 0                 # train adapters of this rank and the head alone, 0 = the weights themselves
    lora_alpha: float = 16.0           # the adapters' part is alpha / rank
    average: float = 0.0               # decay of a moving average of the weights, which is what is evaluated; 0 = none
    patience: int = 0                  # evaluations without a better one until the run ends, 0 = never
    eval_interval: int = 0             # steps between evaluations, 0 = an epoch
    log_interval: int = 10             # steps between status lines
    watch_interval: int = 1            # evaluations between TensorBoard's histograms, 0 = nothing for TensorBoard


def check(cfg):
    """Sentences on options that cannot be, or cannot go together."""
    problems = check_model(begin.scratch_model(cfg))
    for name in ("batch_size", "log_interval", "doc_stride", "max_answer"):
        if getattr(cfg, name) < 1:
            problems.append(f"{name}={getattr(cfg, name)} must be at least 1")
    for name in ("seed", "micro_batch_size", "epochs", "max_steps", "lr", "head_lr", "embed_lr", "muon_lr", "patience",
                 "weight_decay", "grad_clip", "eval_interval", "unfreeze_every", "lora_rank", "lora_alpha",
                 "watch_interval"):
        if getattr(cfg, name) < 0:
            problems.append(f"{name}={getattr(cfg, name)} must be 0 or more")
    for name in ("token_drop", "token_swap", "token_mask", "dropout", "head_dropout", "label_smoothing", "average",
                 "val_fraction"):
        if not 0 <= getattr(cfg, name) < 1:
            problems.append(f"{name}={getattr(cfg, name)} must be at least 0 and below 1")
    if not 0 <= cfg.warmup <= 1 or not 0 < cfg.layer_decay <= 1:
        problems.append(f"warmup={cfg.warmup} and layer_decay={cfg.layer_decay} must lie between 0 and 1")
    if not cfg.out_dir or (Path(cfg.out_dir).exists() and not Path(cfg.out_dir).is_dir()):
        problems.append(f"out_dir={cfg.out_dir!r} is not a folder; name one for this run")
    if not cfg.epochs and not cfg.max_steps:
        problems.append("epochs and max_steps are both 0; give the run a length in one of them")
    if not cfg.data and not cfg.train_file:
        problems.append("nothing to train on; give --data=sst2 (a folder), or --train_file=reviews.csv")
    for name in ("val_file", "test_file", "text_column", "pair_column", "label_column", "separator"):
        if getattr(cfg, name) and not cfg.train_file:
            problems.append(f"{name}={getattr(cfg, name)} goes with a train_file; a folder has its own rows")
    if 0 < cfg.max_length < 8 or cfg.max_length < 0:
        problems.append(f"max_length={cfg.max_length} has no room for a text; use 8 or more, or 0")
    if cfg.lora_rank and (cfg.freeze_blocks or cfg.unfreeze_every):
        problems.append("lora_rank freezes the whole trunk already; leave freeze_blocks and unfreeze_every out")
    if cfg.adapter and cfg.init_from == "scratch":
        problems.append("an adapter needs the model that it was trained on; give that by --init_from")
    if (cfg.adapter and cfg.eval_only and (Path(cfg.out_dir) / "best.pt").exists()
            and Path(cfg.adapter).resolve().parent != Path(cfg.out_dir).resolve()):
        problems.append(f"out_dir={cfg.out_dir} holds another run, whose figures the adapter's would replace; give "
                        f"--out_dir={Path(cfg.adapter).parent}, or a new one")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if cfg.micro_batch_size >= 0 and cfg.batch_size % (world * max(cfg.micro_batch_size, 1)):
        problems.append(f"batch_size={cfg.batch_size} does not divide into {world} process(es) x micro_batch_size="
                        f"{cfg.micro_batch_size or 1}; choose a multiple of {world * max(cfg.micro_batch_size, 1)}")
    try:
        for run in sweep.variations(cfg) if cfg.grid or cfg.seeds else []:
            problems += [problem for problem in check(run) if problem not in problems]
    except ValueError as error:
        problems.append(str(error))
    return problems


def main():
    cfg = config.load(Config, check=check)
    here = parallel.start(cfg.device)
    runs, results = sweep.variations(cfg), []
    taken = [run.out_dir for run in runs if (Path(run.out_dir) / "latest.pt").exists()]
    if taken and not cfg.resume and not cfg.eval_only:
        raise UserError(f"{', '.join(taken)} already holds a run; --resume goes on with it, --out_dir=NAME starts "
                        "another")
    for run in runs:
        out_dir = Path(run.out_dir)
        if cfg.resume and len(runs) > 1 and sweep.finished(run):
            results.append(files.read_json(out_dir / "result.json"))
            continue
        if len(runs) > 1 and here.main:
            print(f"\n=== {out_dir} ===")
        begun = cfg.resume and (len(runs) == 1 or (out_dir / "latest.pt").exists())
        results.append(fine_tune(replace(run, resume=begun), here))
    if len(runs) > 1 and here.main:
        sweep.compare(cfg, runs, results)
    parallel.stop(here)


def fine_tune(cfg, here):
    """One run, from the rows to the figures of its best weights, which it returns."""
    device = here.device
    dtype, reason = parallel.number_format(cfg.dtype, device)
    out_dir = Path(cfg.out_dir)

    # where to begin, what to learn, and the rows as pieces of token ids: always by the pretrained model's tokenizer
    source, place = begin.open_source(cfg, out_dir)
    task, rows, tokenizer = begin.open_data(cfg, here, source, place)
    if cfg.eval_only:
        task = begin.known_task(source, place, task, rows)
    else:
        model_config = begin.model_shape(cfg, source, place, tokenizer, task)
        task = begin.complete_task(task, cfg, model_config, rows)
        if cfg.resume:
            begin.same_task(source, place, task)
    encode.check_changes(cfg, task, tokenizer)
    pieces = {split: encode.encode(some, task, tokenizer) for split, some in rows.items()}
    if here.main:
        examples.report(task, rows, {split: p.full.tolist() for split, p in pieces.items()}, task["max_length"])
    if cfg.eval_only:
        known = files.read_json(out_dir / "result.json") if (out_dir / "result.json").exists() else {}
        return final_figures(source, place, out_dir, task, rows, pieces, tokenizer, here, dtype, known)

    # validation rows that cannot be scored are told of now, not after an epoch
    blank = predict.blank(pieces["val"], task)
    found = predict.predictions(task, rows["val"], pieces["val"], blank)
    main_figure(task, predict.scores(task, rows["val"], found, pieces["val"], blank)[0])

    # what step s sees: the pieces in batches of like lengths, each epoch in another order
    train = pieces["train"]

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return batches.grouped(train.lengths, cfg.batch_size, cfg.seed, epoch)

    per_epoch = len(order(0))
    steps = cfg.max_steps or max(1, round(cfg.epochs * per_epoch))
    eval_interval = cfg.eval_interval or per_epoch
    class_weights = encode.balanced(train, len(task["labels"])) if cfg.class_weights == "balanced" else None

    # the model: pretrained trunk, new head; perhaps frozen in part, perhaps with adapters
    torch.manual_seed(cfg.seed)
    model = TaskModel(model_config, task)
    if source and not cfg.resume:
        begin.take_weights(model, source, place, here)
    tuning.freeze(model, cfg)
    if cfg.resume:
        checkpoint.load_weights(model, source["model"], place)
    model.to(device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    averaged = {name: p.detach().clone() for name, p in trained.items()} if cfg.average else {}
    optimizers = tuning.make_optimizers(model, cfg, device, dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    # fresh, or exactly where it stopped
    step, evaluated, best, worse, spent = 0, 0, None, 0, 0.0
    changed = []
    if cfg.resume:
        for optimizer, saved in zip(optimizers, source["optimizer"]):  # the run's moments, this call's rates
            optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        scaler.load_state_dict(source["scaler"])
        step, evaluated, best, worse, spent = (source[k] for k in ("step", "evaluated", "best", "worse", "seconds"))
        averaged = {name: tensor.to(device) for name, tensor in source["averaged"].items()}
        changed = [f"{k}={v} (was {source['config'].get(k)})" for k, v in asdict(cfg).items()
                   if k != "resume" and v != source["config"].get(k)]
    source = None  # let go of the memory
    if here.main:
        out_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(out_dir / "config.json", asdict(cfg))
        tokenizer.save(out_dir / "tokenizer.json")
    log = RunLog(out_dir, here.main, step, cfg.watch_interval > 0)
    log.table("config", [("option", "value"), *asdict(cfg).items()], step)
    watch = Watch(log, model, optimizers, cfg.watch_interval * eval_interval, dtype)
    micro = cfg.micro_batch_size or cfg.batch_size // here.world
    parts = cfg.batch_size // (micro * here.world)
    if reason:
        log.say(reason)
    if changed:
        log.say(f"resumed with other options: {', '.join(changed)}")
    for line in tuning.describe_parameters(model):
        log.say(line)
    if thawing := tuning.describe_thawing(optimizers, steps / per_epoch):
        log.say(thawing)
    log.say(f"run    {steps:,} steps of {cfg.batch_size} pieces, {per_epoch:,} steps an epoch, "
            f"{batches.padding(train.lengths, order(0)):.1%} of the tokens padding; {here.world} process(es) x {parts} "
            f"part(s) x {micro}, on {device.type} in {str(dtype).removeprefix('torch.')}")

    def forward_backward(net, batch, share):
        """Add the gradient of a part of the global batch: the sum of its losses times `share`."""
        with parallel.autocast(device, dtype):
            loss = net(**tensors(batch, device)) * share
        scaler.scale(loss * here.world).backward()  # DDP takes the mean over the processes
        return loss.detach()

    net, multiple = model, 1
    if cfg.compile == "true":
        multiple = 64  # compiled code is made anew for each length, so there must be few
        net = parallel.compiled(net, lambda net: forward_backward(net, encode.batch(
            train, order(0)[0][:micro], task, tokenizer, multiple, class_weights), 1.0),
            "true", dtype, task["max_length"], log.say)
        model.zero_grad(set_to_none=True)
    net = parallel.wrap(net, here)

    caught, release = parallel.catch_signals()  # SIGINT or SIGTERM: finish the step, save, leave

    def swap_averaged():
        """Put the averaged weights into the model; a second call takes them out again."""
        for name in averaged:
            trained[name].data, averaged[name] = averaged[name], trained[name].data

    def save(name, state):
        if here.main:
            checkpoint.save(out_dir / name, {"model_config": asdict(model_config), "task": task, "step": step,
                                             "seed": cfg.seed, "config": asdict(cfg)} | state)

    def save_latest():
        save("latest.pt", {"model": model.state_dict(), "averaged": averaged, "evaluated": evaluated, "best": best,
                           "worse": worse, "optimizer": [o.state_dict() for o in optimizers],
                           "scaler": scaler.state_dict(), "seconds": time.time() - began})

    few = np.arange(min(len(pieces["val"]), micro, 1024 // task["max_length"]) or 1)
    watched = tensors(encode.batch(pieces["val"], few, task, tokenizer), device)  # what watch looks at, each time
    if step == 0:
        watch.look(step, watched)
    model.train()
    began = time.time() - spent
    since, since_step, paused, tokens = time.time(), step, 0.0, 0  # of the last status line; tokens since then
    while True:
        interrupted = parallel.total([bool(caught)], here, "max")[0]
        done = step >= steps
        if interrupted and not done:
            check_finite([p.detach().sum().item() for p in trained.values()], "training", step, out_dir)
            save_latest()
            break
        if (step % eval_interval == 0 or done) and step > evaluated:
            pause = time.time()
            swap_averaged()
            model.eval()
            out = predict.outputs(model, pieces["val"], task, tokenizer, here, dtype)
            model.train()
            check_finite([out.sum()], "validation", step, out_dir)
            found = predict.predictions(task, rows["val"], pieces["val"], out)
            figures, matrix = predict.scores(task, rows["val"], found, pieces["val"], out)
            mistakes.show(log, step, task, rows["val"], found, pieces["val"], out, figures, matrix)
            watch.look(step, watched, done)
            figure = main_figure(task, figures)
            worse = 0 if best is None or figure > best else worse + 1
            evaluated = step
            if not worse:
                best = figure
                save("best.pt", {"model": lora.merged(model)})
                if cfg.lora_rank:
                    save("adapter.pt", {"model": {name: p.detach() for name, p in trained.items()},
                                        "rank": cfg.lora_rank, "alpha": cfg.lora_alpha})
            swap_averaged()
            log.row(step, epoch=step / per_epoch, seconds=time.time() - START,
                    **{f"val_{k}": v for k, v in figures.items() if isinstance(v, float)})
            log.say(f"step {step:6} | val {described(task, figures)}{'' if worse else '  (best so far)'}")
            save_latest()
            paused += time.time() - pause
        if done or (cfg.patience and worse >= cfg.patience):
            break

        # the parts of the global batch that are this process's
        dropout_seed = np.random.SeedSequence((cfg.seed, step, here.rank)).generate_state(1)
        torch.manual_seed(int(dropout_seed[0]))  # dropout, too, is a function of the step
        epoch, number = divmod(step, per_epoch)
        index, change = order(epoch)[number], encode.changes(cfg, tokenizer, epoch)
        first = [(part * here.world + here.rank) * micro for part in range(parts)]
        todo = [encode.batch(train, index[row:row + micro], task, tokenizer, multiple, class_weights, change)
                for row in first]
        scored = parallel.total([sum(batch["weights"].sum(dtype=float) for batch in todo)], here)[0]
        loss = torch.zeros((), device=device)
        for part, batch in enumerate(todo):
            if here.world > 1:  # synchronise on the last part only; to be set before the forward
                net.require_backward_grad_sync = part == parts - 1
            loss += forward_backward(net, batch, 1 / scored)
        if step == 0:
            assert all(p.grad is not None for p in trained.values()), "a parameter gets no gradient"
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        line_due = (step + 1) % cfg.log_interval == 0 or step == 0
        watch.gradients(step + 1, line_due)
        thawed = [p for optimizer in optimizers for group in optimizer.param_groups
                  if step >= group["from_epoch"] * per_epoch for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(thawed, cfg.grad_clip or math.inf)
        factor = optim.lr_factor((step + 0.5) / steps, cfg.schedule, cfg.warmup, 0.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:  # a rate of 0 leaves the weights as they are, to the bit
                group["lr"] = group["peak_lr"] * factor * (step >= group["from_epoch"] * per_epoch)
        if scaler.is_enabled() and not norm.isfinite():  # fp16 overflowed: nobody steps, the scale is halved
            scaler.update(scaler.get_scale() / 2)
        else:
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
        model.zero_grad(set_to_none=True)
        step += 1
        watch.updated(step)
        if averaged:  # in the beginning a shorter average, which forgets the first weights
            with torch.no_grad():
                torch._foreach_lerp_([averaged[name] for name in trained], list(trained.values()),
                                     1 - min(cfg.average, step / (step + 10)))

        tokens += int(train.lengths[index].sum())
        if line_due:
            shown = parallel.total([loss], here)[0]
            check_finite([shown], "training", step, out_dir)
            now = time.time()
            took = now - since - paused
            rate = (step - since_step) * cfg.batch_size / took
            log.row(step, epoch=step / per_epoch, seconds=now - START, loss=shown, lr=cfg.lr * factor,
                    grad_norm=norm.item(), rows_per_s=rate, tokens_per_s=tokens / took,
                    memory_gb=parallel.peak_memory(device))
            log.say(f"step {step:6} | epoch {step / per_epoch:.2f} | loss {shown:.4f} | lr {cfg.lr * factor:.2e} | "
                    f"{rate:7,.0f} rows/s | {clock((steps - step) * cfg.batch_size / rate)} left")
            since, since_step, paused, tokens = now, step, 0.0, 0

    release()
    if interrupted and not done:
        parallel.wait(here)  # torchrun ends everybody when the first has gone
        log.say(f"stopped at step {step} and saved; go on with --resume")
        log.close()
        parallel.stop(here)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))

    # the final figures, of the best weights
    parallel.wait(here)  # rank 0 may still be writing best.pt
    result = {"step": step, "epochs": step / per_epoch, "train_seconds": time.time() - began,
              "parameters": sum(p.numel() for p in model.parameters()),
              "trained_parameters": sum(p.numel() for p in trained.values())}
    path = out_dir / "best.pt"
    result = final_figures(checkpoint.load(path), path, out_dir, task, rows, pieces, tokenizer, here, dtype, result,
                           projector=cfg.watch_interval > 0)
    log.finish(step, cfg, result)
    log.row(step, **{k: v for k, v in result.items() if k.startswith(("test_", "seconds")) and isinstance(v, float)})
    log.close()
    return result


def final_figures(state, path, out_dir, task, rows, pieces, tokenizer, here, dtype, result, projector=False):
    """Measure a checkpoint on val and test, print the report, write result.json and predictions; the result."""
    model = predict.load_model(state, path, here.device)
    result |= {"best_step": state["step"], "kind": task["kind"], "metric": task["metric"]}
    lines, kept = [], []
    truth = {"answer": "answers", "tag": "tags", "generate": "response"}.get(
        task["kind"], "labels" if task.get("multi_label") else "label")
    if here.main:
        out_dir.mkdir(parents=True, exist_ok=True)
    for split in [split for split in ("val", "test") if split in rows]:
        out = predict.outputs(model, pieces[split], task, tokenizer, here, dtype)
        found = predict.predictions(task, rows[split], pieces[split], out)
        figures, matrix = predict.scores(task, rows[split], found, pieces[split], out)
        if split == "val" and projector:
            mistakes.save_projector(out_dir, model, task, rows[split], found, pieces[split], tokenizer, here, dtype)
        result |= {f"{split}_{k}": v for k, v in figures.items()}
        result |= {} if matrix is None else {f"{split}_confusion": matrix.tolist()}
        lines.append(f"{split}, all of it: {described(task, figures)}")
        kept.append("predictions_val.jsonl" if split == "val" and "test" in rows else "predictions.jsonl")
        if here.main:
            files.write_jsonl(out_dir / kept[-1], [
                {"row": i, **{name: row[name] for name in examples.INPUTS if name in row and name != "context"},
                 truth: row[truth]} | guess for i, (row, guess) in enumerate(zip(rows[split], found))])
    result["seconds"] = time.time() - START
    if here.main:  # of the last split
        print(f"\n--- {split} ---\n{metrics.report(figures)}")
        if matrix is not None:
            print(f"\n{metrics.confusion_table(matrix, task['labels'])}")
        files.write_json(out_dir / "result.json", result)
        print("\n".join([*lines, f"{out_dir}: result.json, {', '.join(kept)}"]))
    return result


# ---- figures -----------------------------------------------------------------------------------------------------


def main_figure(task, figures):
    """The task's metric, made so that higher is better; what cannot be computed (nan) is the worst."""
    if task["metric"] not in figures:
        raise UserError(f"metric={task['metric']} is no figure of a {task['kind']} task; choose one of "
                        f"{', '.join(k for k, v in figures.items() if isinstance(v, float))}")
    figure = float(figures[task["metric"]]) * (-1 if task["metric"] == "loss" else 1)
    return -math.inf if math.isnan(figure) else figure


def described(task, figures):
    names = dict.fromkeys([task["metric"], *(n for n in ("loss", "accuracy", "f1", "exact", "mcc", "macro_f1",
                                                         "spearman") if n in figures)])
    return " | ".join(f"{name} {figures[name]:.4f}" for name in names)


def check_finite(numbers, which, step, out_dir):
    for number in numbers:
        if not math.isfinite(number):
            kept = "the last good weights are in latest.pt" if (out_dir / "latest.pt").exists() else "nothing was saved"
            raise UserError(f"the {which} loss is {number} at step {step}, {kept}; lower --lr, or raise --warmup")


if __name__ == "__main__":
    config.run(main)
