"""Fine-tune a pretrained model on a task: rows -> features -> batches -> loss -> weights -> scores.

    python finetune.py --train_file=reviews.csv                 # a table is enough
    python finetune.py config/sst2.py                           # a data set folder with task.json
    python finetune.py --init_from=out/wikitext_bert --train_file=reviews.csv --label_column=stars --out_dir=out/stars
    python finetune.py config/sst2.py --seeds=1,2,3             # mean and deviation over three seeds
    python finetune.py config/sst2.py "--grid=lr=1e-4,3e-4;dropout=0,0.1"
    python finetune.py config/sst2.py --resume                  # go on exactly where it stopped
    python finetune.py config/sst2.py --eval_only               # scores and predictions of best.pt again
"""

import functools
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import UserError, checkpoint, config, distributed, files, kernels, loop, optim
from nanoft.inspect import mistakes, pictures
from nanoft.inspect.watch import Watch
from nanoft.model import check_model
from nanoft.tasks import baselines, collate, examples, features, freezing, linear, lora, metrics, predict, start, sweep
from nanoft.tasks.heads import TaskModel, mixed


@dataclass
class Config:
    out_dir: str = "out/finetuned"     # the run's folder: checkpoints, metrics.jsonl, result.json, predictions
    data: str = ""                     # a folder under data/, or a path, with train.jsonl, val.jsonl and task.json
    init_from: str = "scratch"         # a run folder, checkpoint or published model to begin from, or scratch
    adapter: str = ""                  # an adapter.pt (LoRA) to put on init_from
    teacher: str = ""                  # a finished run of this task, often larger, whose probabilities are learned, too
    resume: bool = False               # go on with the run in out_dir; auto: if there is one
    eval_only: bool = False            # no training: scores and predictions of out_dir's best.pt, or of the adapter
    seed: int = 1                      # of the new weights, the batches and the dropout
    seeds: str = ""                    # several, as 1,2,3: a run for each, then mean and deviation
    grid: str = ""                     # options to try, as lr=1e-4,3e-4;dropout=0,0.1: a run for each combination
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matrix products; auto: bf16 if native
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: only pictures, above 500 steps

    train_file: str = ""               # your own rows instead of data: .csv .tsv .jsonl; CoNLL (tag), SQuAD (answer)
    val_file: str = ""                 # the same for validation; without it val_fraction of train_file
    test_file: str = ""                # the same for the final test, may be left out
    kind: Literal["classify", "pair", "regress", "tag", "answer", "generate", "image"] = "classify"  # of train_file
    text_column: str = ""              # names of train_file's columns (CoNLL: numbers, too); "" = the usual; a,b joins
    pair_column: str = ""              # the second text
    label_column: str = ""             # the label, or the response of generate
    columns: str = ""                  # the names, where files have no header: class,title,description
    encoding: str = ""                 # of the files, as gb18030; "" = UTF-8, or UTF-16 with a byte-order mark
    separator: str = ""                # what stands between several labels of a text: makes the task multi-label
    val_fraction: float = 0.1          # fraction of train_file for validation
    positive: str = ""                 # of two labels, the one that f1 and auc are of; "" = a usual name, or the rarer
    metric: str = ""                   # the score by which the best weights are chosen; "" = the kind's usual one

    max_length: int = 0                # tokens of a feature, 0 = chosen: block_size, or for long texts more
    long_text: Literal["head", "tail", "head_tail", "windows"] = "head"  # what is kept of a longer text; windows: all
    doc_stride: int = 128              # tokens from one window to the next
    pool: Literal["auto", "mean", "cls", "last"] = "auto"  # a text's vector; auto: mean, of a GPT the last token's
    match_types: Literal["auto", "true", "false"] = "auto"  # of two texts: token types mark tokens shared by both
    linear: Literal["auto", "true", "false"] = "auto"  # linear model of n-grams; auto: texts, but no published weights
    token_drop: float = 0.0            # fraction of the training tokens left out, others each epoch
    token_mask: float = 0.0            # fraction of them replaced by <|mask|>
    image_size: int = 0                # side of the pictures in pixels, 0 = as they are stored; of files 64
    patch: int = 4                     # side of a patch of a picture, which becomes a token
    augment: str = ""                  # pictures changed each epoch: flip,crop,rotate,cutout,mixup

    n_layer: int = -1                  # blocks of a model from scratch (for generate a GPT); -1 = chosen
    n_head: int = 4                    # attention heads
    n_embd: int = 128                  # width
    n_gram: int = 1                    # largest n-gram with a hashed embedding; 1 = off
    n_buckets: int = 16384             # rows of the table of n-gram embeddings

    batch_size: int = 32               # features per optimizer step, over all processes
    micro_batch_size: int = 0          # features that a process takes through the model at once, 0 = all
    epochs: float = 0.0                # times through the training rows, 0 = chosen
    max_steps: int = 0                 # optimizer steps instead of epochs, 0 = epochs
    optimizer: Literal["auto", "muon", "adamw"] = "auto"  # muon: Muon for the blocks' matrices, AdamW for the rest
    lr: float = 0.0                    # peak learning rate of AdamW, 0 = chosen
    head_lr: float = 0.0               # the same for the task's head, 0 = lr
    embed_lr: float = 0.0              # the same for the embeddings, 0 = lr
    muon_lr: float = 0.0               # peak learning rate of Muon, 0 = chosen
    layer_decay: float = 1.0           # layer-wise decay: a block's rate over that of the block above it
    weight_decay: float = 0.01         # of the matrices
    grad_clip: float = 1.0             # largest norm of the gradient, 0 = no clipping
    adversarial: float = 0.0           # norm of the noise that misleads, on the embeddings (FGM), 0 = none; 1 is usual
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # of the learning rate
    warmup: float = 0.1                # fraction of the steps over which the rate rises
    dropout: float = 0.1               # fraction of the activations set to zero
    head_dropout: float = 0.1          # the same before the head
    class_weights: Literal["none", "balanced"] = "none"  # balanced: every class weighs the same in the loss
    freeze_blocks: int = 0             # the embeddings and the first N blocks are frozen, -1 = the whole trunk
    unfreeze_every: float = 0.0        # epochs until the top block starts to train, then the next, 0 = all at once
    lora_rank: int = 0                 # train adapters of this rank and the head alone, 0 = the weights themselves
    average: float = 0.0               # decay of an EMA of the weights, which is what is evaluated; 0 = none
    patience: int = 0                  # evaluations without a better one until the run ends, 0 = never
    eval_interval: int = 0             # steps between evaluations, 0 = an epoch
    log_interval: int = 10             # steps between status lines
    generate_rows: int = 200           # of kind generate: rows of a split that are answered at the end, -1 = all
    watch_interval: int = 1            # evaluations between TensorBoard's histograms, 0 = nothing for TensorBoard


def check(cfg):
    """What is wrong with the options, or with their combination, as sentences."""
    problems = check_model(start.scratch_shape(cfg)) + config.run_problems(cfg) + start.picture_problems(cfg)
    problems += config.at_least(cfg, 1, "batch_size", "log_interval", "doc_stride")
    problems += config.at_least(cfg, 0, "seed", "micro_batch_size", "epochs", "max_steps", "lr", "head_lr", "embed_lr",
                                "muon_lr", "patience", "weight_decay", "grad_clip", "eval_interval", "unfreeze_every",
                                "lora_rank", "watch_interval", "image_size", "adversarial")
    problems += config.fraction(cfg, "token_drop", "token_mask", "dropout", "head_dropout", "average",
                                "val_fraction", one=False)
    problems += config.fraction(cfg, "warmup", "layer_decay")
    if cfg.layer_decay == 0:
        problems.append("layer_decay=0 leaves every block as it is; use freeze_blocks=-1 for that")
    if not cfg.data and not cfg.train_file:
        problems.append("nothing to train on; give --data=sst2 (a folder), or --train_file=reviews.csv")
    for name in start.OF_FILES:
        if getattr(cfg, name) and not cfg.train_file:
            problems.append(f"{name}={getattr(cfg, name)} goes with a train_file; a folder has its own rows")
    if 0 < cfg.max_length < 8 or cfg.max_length < 0:
        problems.append(f"max_length={cfg.max_length} has no room for a text; use 8 or more, or 0")
    if cfg.lora_rank and (cfg.freeze_blocks or cfg.unfreeze_every):
        problems.append("lora_rank freezes the whole trunk already; leave freeze_blocks and unfreeze_every out")
    if (cfg.lora_rank or cfg.freeze_blocks) and cfg.init_from == "scratch" and not (cfg.resume or cfg.eval_only):
        problems.append("without a pretrained model nothing is worth freezing; give one by --init_from")
    if cfg.adapter and cfg.init_from == "scratch":
        problems.append("an adapter needs the model that it was trained on; give that by --init_from")
    if (cfg.adapter and cfg.eval_only and (Path(cfg.out_dir) / "best.pt").exists()
            and Path(cfg.adapter).resolve().parent != Path(cfg.out_dir).resolve()):
        problems.append(f"out_dir={cfg.out_dir} holds another run, whose metrics the adapter's would replace; give "
                        f"--out_dir={Path(cfg.adapter).parent}, or a new one")
    try:
        for run in sweep.variations(cfg) if cfg.grid or cfg.seeds else []:
            problems += [problem for problem in check(run) if problem not in problems]
    except ValueError as error:
        problems.append(str(error))
    return problems


def main():
    cfg = config.load(Config, check=check, fixed=("max_length", "long_text", "doc_stride", "pool", "metric"))
    dist = distributed.start(cfg.device, cfg.dtype)  # rank, world_size, device, dtype
    runs, results = sweep.variations(cfg), []
    taken = [run.out_dir for run in runs if (Path(run.out_dir) / "latest.pt").exists()]
    if taken and not cfg.resume and not cfg.eval_only:
        raise UserError(f"{', '.join(taken)} already holds a run; --resume goes on, --out_dir=NAME starts another")
    if len(runs) > 1 and dist.main and not cfg.eval_only:  # for a later --resume or --eval_only
        files.write_json(Path(cfg.out_dir, "config.json"), asdict(cfg))
    for run in runs:
        if cfg.resume and len(runs) > 1 and sweep.finished(run):
            results.append(files.read_json(Path(run.out_dir, "result.json")))
            continue
        if len(runs) > 1 and dist.main:
            print(f"\n=== {run.out_dir} ===")
        try:
            resume = cfg.resume and (len(runs) == 1 or run.out_dir in taken)
            results.append(fine_tune(replace(run, resume=resume), dist))
        except loop.Diverged as error:  # the others go on
            if len(runs) == 1:
                raise
            results.append({"diverged": str(error)})
            print(error, file=sys.stderr)
    if len(runs) > 1 and dist.main:
        sweep.compare(cfg, runs, results)
    distributed.stop(dist)
    if any("diverged" in result for result in results):
        raise SystemExit(1)


def fine_tune(cfg, dist):
    """One run, from the rows to the metrics of its best weights, which it returns."""
    started = time.monotonic()
    source, path = start.open_source(cfg)  # a checkpoint to resume, to measure or to begin from, or None
    data = open_data(cfg, dist, source, path)  # task, rows, features of each split, make_batch(rows)
    cfg = data.cfg                             # with the options that were left to be chosen
    if cfg.eval_only:
        known = Path(cfg.out_dir) / "result.json"
        result = files.read_json(known) if known.exists() and not start.eval_ending(cfg) else {}
        return final_metrics(source, path, data, dist, result, started)
    for split in list(data.rows)[1:]:  # validation and test: fail now, not after an epoch
        predict.check_scores(data.task, data.rows[split], data.features[split])
    steps = cfg.max_steps or round(cfg.epochs * data.steps_per_epoch)
    eval_interval = cfg.eval_interval or data.steps_per_epoch

    # ---- the model, its optimizers and the state of the run: fresh, or restored from latest.pt
    model = build_model(cfg, data, source, path, dist)
    optimizers = optim.make_optimizers(model, optim.finetuning_groups(model, cfg), dist)
    run = loop.Run(cfg, dist, model, optimizers, source if cfg.resume else None, data.tokenizer,
                   {name: files.fingerprint(data.rows[name]) for name in ("train", "val")}, steps, started=started)
    run.watch = Watch(run.log, model, optimizers, cfg.watch_interval * eval_interval, dist)
    average = optim.EMA(model, cfg.average, source["averaged"] if cfg.resume and source else None)
    if not steps and not cfg.resume:
        run.evaluated = -1  # a linear model alone is complete before the first step
    source = None  # free memory
    describe(run, data, steps)

    def forward_backward(net, batch, share):  # of one micro-batch; the sum of its losses * share
        with dist.autocast():
            loss = net(**batch) * share
        run.scaler.scale(loss * dist.world_size).backward()  # DDP takes the mean over the ranks
        return loss.detach()

    def global_batch():  # forward and backward of this rank's micro-batches: its share of the loss
        parts = run.micro_batches(net, data.make_batch, lambda batch: batch["weights"].sum(dtype=float))
        return torch.stack([forward_backward(net, batch, 1 / total) for batch, _, total in parts]).sum()

    net = run.wrap(lambda net: forward_backward(net, data.batch("train", np.arange(run.micro), dist), 1.0),
                   data.task["kind"] == "image" and steps > 500, data.task["max_length"])  # texts have many lengths
    watched = data.watched_batch(run.micro, dist)  # validation features whose activations are logged
    run.start(watched)
    while True:
        progress, epoch = run.progress(), run.step / data.steps_per_epoch
        if run.interrupted:
            run.leave(task=data.task, averaged=average.weights)

        # ---- evaluate and save
        if run.evaluation_due(eval_interval):
            with run.pause():
                with average.in_use():
                    scores = evaluate(run, data)
                    run.watch.look(run.step, watched, run.done)
                    if better := run.record(predict.main_score(data.task, scores)):
                        save_best(run, data.task)
                run.row(epoch=epoch, **{f"val_{k}": v for k, v in scores.items() if isinstance(v, float)})
                run.log.say(f"step {run.step:6} | val {metrics.described(data.task, scores)}"
                            f"{'  (best so far)' if better else ''}")
                run.save_latest(task=data.task, averaged=average.weights)
        if run.done or (cfg.patience and run.worse >= cfg.patience):
            break

        # ---- one optimizer step over the global batch
        run.seed_dropout()
        loss = global_batch()
        if cfg.adversarial:
            with model.misled(cfg.adversarial):
                global_batch()  # once more: its gradients are added
        factor = optim.lr_factor(progress, cfg.schedule, cfg.warmup, 0.0)
        norm = run.clip_and_step(optim.set_lr(optimizers, factor, epoch))
        average.update(run.step)

        # ---- status line
        run.tokens += data.tokens_of(run.step - 1)
        if run.line_due():
            epoch = run.step / data.steps_per_epoch
            run.status({"loss": loss}, norm, cfg.lr * factor, "rows", f"epoch {epoch:.2f} | ", epoch=epoch)

    # ---- the final metrics, of the best weights
    run.end()
    result = {"step": run.step, "epochs": run.step / data.steps_per_epoch, "train_seconds": run.spent,
              "parameters": sum(p.numel() for p in model.parameters()),
              "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    if run.last_loss is not None:
        result["train_loss"] = run.last_loss
    result = final_metrics(checkpoint.load(best := run.out_dir / "best.pt"), best, data, dist, result, started)
    run.watch.compare(run.step, cfg, result)
    run.row(**{k: v for k, v in result.items() if k.startswith("test_") and isinstance(v, float)})
    run.log.close()
    return result


# ---- the data ----------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """The rows of every split as features (rows of token ids), and the batches made of them."""
    cfg: Config
    task: dict
    rows: dict[str, list[dict]]
    tokenizer: object
    features: dict[str, features.Encoded]
    shape: object = None  # the ModelConfig

    def __post_init__(self):
        self.order = functools.lru_cache(maxsize=2)(self.group_epoch)
        self.second_opinion = functools.cache(lambda: linear.outputs(self.fitted, self.features["val"]))  # (N, K)
        self.steps_per_epoch = -(-len(self.features["train"]) // self.cfg.batch_size)
        self.multiple = 64 if self.cfg.compile == "true" else 1  # compiled code is made anew for each length
        balanced = self.cfg.class_weights == "balanced"
        self.weights = collate.balanced_weights(self.features["train"], len(self.task["labels"])) if balanced else None

    def group_epoch(self, epoch):
        """The features of an epoch in batches of like lengths: int64 (steps, batch_size)."""
        return collate.group_by_length(self.features["train"].lengths, self.cfg.batch_size, self.cfg.seed, epoch)

    def make_batch(self, rows):
        """The training batch with these global row numbers, a pure function of them and the seed."""
        step = int(rows[0]) // self.cfg.batch_size
        epoch, number = divmod(step, self.steps_per_epoch)
        index = self.order(epoch)[number][rows % self.cfg.batch_size]
        return collate.batch(self.features["train"], index, self.task, self.tokenizer, self.multiple, self.weights,
                              collate.augmentation(self.cfg, self.task, self.tokenizer, epoch))

    @functools.cached_property
    def fitted(self):
        """A linear model fitted on the training rows, which takes seconds; None for a kind without one."""
        weights = None if self.weights is None else torch.from_numpy(self.weights)
        known = self.task["kind"] in features.LINEAR
        return linear.fit(self.task, self.features["train"], self.features["val"], self.tokenizer,
                          weights) if known else None

    def tokens_of(self, step):
        """How many tokens the batch of a step holds, without padding."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return int(self.features["train"].lengths[self.order(epoch)[number]].sum())

    def watched_batch(self, most, dist):
        """A few validation features, some 1,024 tokens, the same ones in every run."""
        rows = min(len(self.features["val"]), most, 1024 // self.task["max_length"]) or 1
        return self.batch("val", np.arange(rows), dist)

    def batch(self, split, index, dist):
        """The features with these numbers as a batch on the device."""
        return distributed.to_device(collate.batch(self.features[split], index, self.task, self.tokenizer,
                                                    self.multiple, self.weights), dist.device)


def open_data(cfg, dist, source, path):
    """The rows, the task and the model's shape; rows as features, always by the pretrained model's tokenizer."""
    task, rows, tokenizer = start.open_data(cfg, dist, source, path)
    shape, chosen = None, ""
    if cfg.eval_only:
        task = start.saved_task(source, path, task, rows)
    else:
        cfg, chosen = start.choose_options(cfg, source, task, rows, tokenizer)
        shape = start.model_shape(cfg, source, path, tokenizer, task)
        task = start.complete_task(task, cfg, shape, rows, tokenizer)
        if cfg.resume:
            start.check_same_task(source, path, task)
            if task["linear"]:
                task["linear_buckets"] = linear.n_buckets(source["task"])
    task |= start.positive_label(cfg, task, rows["train"])
    encoded = start.encode(cfg, rows, task, tokenizer, dist)
    if dist.main:
        n_tokens = {split: some.n_tokens.tolist() for split, some in encoded.items()}
        examples.report(task, rows, n_tokens, task["max_length"])
        print(chosen)
    return Data(cfg, task, rows, tokenizer, encoded, shape)


def build_model(cfg, data, source, path, dist):
    """A pretrained trunk and a new head; perhaps frozen in part, perhaps with adapters; with a checkpoint's weights."""
    torch.manual_seed(cfg.seed)
    model = TaskModel(data.shape, data.task)
    if source and not cfg.resume:
        start.take_weights(model, source, path, dist)
    if model.ngrams is not None and not cfg.resume:
        model.ngrams.load_state_dict(data.fitted.state_dict())  # a copy: data.fitted stays on the CPU
    freezing.freeze(model, cfg)
    if cfg.resume:
        checkpoint.load_weights(model, source["model"], path)
    model.to(dist.device)
    kernels.tune(model, dist.device)
    return model


# ---- evaluation --------------------------------------------------------------------------------------------------


def evaluate(run, data):
    """The scores of the validation rows; TensorBoard gets the mistakes."""
    task, rows, encoded = data.task, data.rows["val"], data.features["val"]
    run.model.eval()
    if task["linear"]:
        task["linear_share"] = 0.0  # first the head alone
    out = predict.outputs(run.model, encoded, task, data.tokenizer, run.dist)
    run.model.train()
    run.check_finite(out.sum(), "validation")
    if task["linear"]:
        task["linear_share"] = predict.best_share(task, rows, encoded, out, data.second_opinion()) if run.step else 1.0
        out = mixed(out, data.second_opinion(), task)
    if predict.has_thresholds(task):
        task["thresholds"] = predict.best_thresholds(task, rows, encoded, out)
    found = predict.predictions(task, rows, encoded, out)
    scores, matrix = predict.scores(task, rows, found, encoded, out)
    mistakes.show(run.log, run.step, task, rows, found, encoded, out, scores, matrix)
    return scores


def save_best(run, task):
    """Write best.pt, adapters merged, and with lora_rank the trained weights alone as adapter.pt."""
    run.save("best.pt", model=lora.merged(run.model), task=task)
    if run.cfg.lora_rank:
        trained = {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
        trained |= {name: x for name, x in run.model.state_dict().items() if name.startswith("ngrams.")}
        run.save("adapter.pt", model=trained, rank=run.cfg.lora_rank, alpha=lora.ALPHA, task=task)


# ---- what the run tells ------------------------------------------------------------------------------------------


def describe(run, data, steps):
    """The first lines of the log: which parameters are trained and when, and the run."""
    per_epoch, padding = data.steps_per_epoch, collate.padding_fraction(data.features["train"].lengths, data.order(0))
    thaws = freezing.describe_unfreezing(run.optimizers, steps / per_epoch)
    run.log.say("\n".join(freezing.describe_parameters(run.model) + thaws))
    pictures.show_augmented(run.log, run.step, data)
    run.log.say(f"run    {steps:,} steps, {per_epoch:,} an epoch, {padding:.1%} of the tokens padding; "
                f"{run.describe('features')}")


def final_metrics(state, path, data, dist, result, started):
    """Measure a checkpoint on val and test, print the report, write result.json and predictions; the result."""
    cfg, out_dir, ending = data.cfg, Path(data.cfg.out_dir), start.eval_ending(data.cfg)
    task = data.task if cfg.eval_only else state["task"]  # with the thresholds of these weights
    model = checkpoint.load_model(state, path, functools.partial(TaskModel, task=task), dist.device)
    result |= {"best_step": state["step"], "kind": task["kind"], "metric": task["metric"]}
    result |= {name: task[name] for name in ("positive", "thresholds") if name in task}
    lines, written = [], []
    for split in [split for split in ("val", "test") if split in data.rows]:
        rows, encoded = data.rows[split], data.features[split]
        out = predict.outputs(model, encoded, task, data.tokenizer, dist)
        found = predict.predictions(task, rows, encoded, out)
        if task["kind"] == "generate":
            answered = rows[:cfg.generate_rows] if cfg.generate_rows >= 0 else rows
            texts = predict.write_responses(model, answered, task, data.tokenizer, dist, int(out[:, 1].max()))
            found = [guess | {"prediction": text} for guess, text in zip(found, texts)] + found[len(texts):]
        scores, matrix = predict.scores(task, rows, found, encoded, out)
        if split == "val" and cfg.watch_interval and not cfg.eval_only:
            mistakes.save_projector(out_dir, model, task, rows, found, encoded, data.tokenizer, dist)
        simple = baselines.baseline_scores(task, rows, encoded, data.features["train"], data.fitted,
                                           (data.rows["val"], data.features["val"]))
        result |= {f"{split}_{k}": v for k, v in scores.items()}
        result |= {f"{split}_{task['metric']}_of_{name}": value for name, value in simple.items()}
        result |= {} if matrix is None else {f"{split}_confusion": matrix.tolist()}
        lines.append(f"{split}, all of it: {metrics.described(task, scores)}")
        lines += [f"    {line}" for line in baselines.remarks(task, found, scores[task["metric"]], simple,
                                                              result.get("train_loss"), scores.get("loss"))]
        written.append(f"predictions{'_val' * (split == 'val' and 'test' in data.rows)}{ending}.jsonl")
        if dist.main:
            files.write_jsonl(out_dir / written[-1], [
                {"row": i} | {name: row[name] for name in (*examples.INPUTS, *examples.TARGETS) if name in row and
                              name != "context"} | guess for i, (row, guess) in enumerate(zip(rows, found))])
    result["seconds"] = time.monotonic() - started
    if dist.main:  # of the last split
        print(f"\n--- {split} ---\n{metrics.report(scores)}")
        if matrix is not None:
            print(f"\n{metrics.confusion_table(matrix, task['labels'])}")
        files.write_json(out_dir / f"result{ending}.json", result)
        print("\n".join([*lines, f"{out_dir}: result{ending}.json, {', '.join(written)}"]))
    return result


if __name__ == "__main__":
    config.run(main)
