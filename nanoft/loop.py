"""What train.py and finetune.py share: the state of a run, its clock and signals, micro-batches, the optimizer step.

The scripts keep the loop itself, so that it can be read there from top to bottom; a Run holds what the loop needs from
one step to the next, fresh or restored from latest.pt. Between two status lines nobody waits for the device: a GPU is
given the work of several steps in advance, and is never idle.
"""

import gc
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nanoft import UserError, checkpoint, distributed, files, kernels, optim
from nanoft.runlog import RunLog, clock, lock

LARGE = 2**24  # parameters of a model whose checkpoints take seconds to write


class Diverged(UserError):
    """A loss is nan or infinite."""


class Run:
    """One training run.

    step: optimizer steps done; evaluated: the step of the last evaluation; best: the best score so far (higher is
    better), worse: evaluations since without a better one; spent: seconds of training, all sessions of the run
    together; micro: sequences that a process takes through the model at once; done, interrupted: set by progress().
    """

    def __init__(self, cfg, dist: distributed.Dist, model, optimizers: list, source: dict | None, tokenizer,
                 data: dict[str, str], max_steps: float = 0, max_minutes: float = 0.0, started: float = 0.0):
        """source: the checkpoint that is resumed, else None. data: a fingerprint of each split that training reads.

        max_steps, max_minutes: the budget, 0 = none. started: time.monotonic() when the script began. Raises UserError
        where the checkpoint is of other data or another model, or another process trains in this folder.
        """
        self.cfg, self.dist, self.model, self.net, self.optimizers = cfg, dist, model, model, optimizers
        self.max_steps, self.max_minutes, self.started = max_steps, max_minutes, started
        self.out_dir = Path(cfg.out_dir)
        self.scaler = torch.amp.GradScaler(dist.device.type, enabled=dist.dtype == torch.float16)
        self.step, self.evaluated, self.worse, self.spent = 0, 0, 0, 0.0
        self.best: float | None = None
        self.done = self.interrupted = False
        self.writer = ThreadPoolExecutor(1)  # of checkpoints
        self.writing: Future | None = None
        self.made: tuple[int, list] = (-1, [])  # a step, and its micro-batches, made in advance
        self.fingerprints = {"tokenizer": tokenizer.fingerprint} | data
        changed = self.restore(source) if source else []
        self.micro = cfg.micro_batch_size or cfg.batch_size // dist.world_size
        if dist.main:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            lock(self.out_dir)
            files.write_json(self.out_dir / "config.json", asdict(cfg))
            tokenizer.save(self.out_dir / "tokenizer.json")
        self.log = RunLog(self.out_dir, dist.main, self.step,
                          cfg.watch_interval > 0 and not distributed.is_sharded(model))
        self.log.table("config", [("option", "value"), *asdict(cfg).items()], self.step)
        self.watch: Any = None  # an inspect.watch.Watch
        self.last_loss: float | None = None  # of the last status line
        if dist.reason:
            self.log.say(dist.reason)
        if changed:
            self.log.say(f"resumed with other options: {', '.join(changed)}")

    def restore(self, source: dict) -> list[str]:
        """Go on exactly where the run stopped; returns the options that have changed since, as text."""
        path = self.out_dir / "latest.pt"
        for name, now in self.fingerprints.items():
            if source.get("fingerprints", {}).get(name, now) != now:  # older runs have none
                raise UserError(f"{path} is of a run with another {name} (its fingerprint differs); resume with the "
                                "data that it began with, or start another run from it by --init_from and --out_dir")
        checkpoint.check_resumable(source, self.optimizers, path)
        for optimizer, saved in zip(self.optimizers, source["optimizer"]):  # the run's moments, this call's rates
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {name: distributed.like(moment, parameters[i]) for name, moment in moments.items()}
                     for i, moments in saved["state"].items()}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if source["scaler"] and self.scaler.is_enabled():  # it is empty where the run was not in fp16 before
            self.scaler.load_state_dict(source["scaler"])
        self.step, self.evaluated, self.spent = source["step"], source["evaluated"], source["seconds"]
        self.best, self.worse = source.get("best"), source.get("worse", 0)
        if "best_val_loss" in source:  # of pretraining, where inf means that there was no evaluation yet
            self.best = -source["best_val_loss"]
        before = source["config"]
        return [f"{name}={value} (was {before.get(name)})" for name, value in asdict(self.cfg).items()
                if name != "resume" and value != before.get(name)]

    def describe(self, sequences: str) -> str:
        """How a step is made up, for the start of the log. sequences: what a batch consists of."""
        steps = self.cfg.batch_size // (self.micro * self.dist.world_size)
        return (f"{self.cfg.batch_size} {sequences} a step = {self.dist.world_size} process(es) x {steps} "
                f"micro-batch(es) x {self.micro}, on {self.dist.device.type} in "
                f"{str(self.dist.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads")

    def wrap(self, try_it: Callable[[nn.Module], object], auto: bool, length: int) -> nn.Module:
        """The model, compiled if wanted (self.net), with its gradients averaged over the processes.

        try_it(net): one forward and backward pass; auto: what compile=auto means here; length: tokens a sequence.
        """
        compile = {"auto": auto, "true": True, "false": False}[self.cfg.compile]
        for optimizer in self.optimizers if compile and self.dist.device.type == "cuda" else ():
            if isinstance(optimizer, optim.Muon):
                optimizer.orthogonalize = torch.compile(optim.orthogonalize, dynamic=False)
        if compile and distributed.is_sharded(self.model):  # its communication stays outside
            for block in self.model.trunk.blocks:
                block.forward = torch.compile(block.forward, dynamic=False)
        elif compile:  # before DDP: a trial waits for nobody
            self.net = kernels.compiled(self.net, try_it, self.cfg.compile, self.dist.dtype, length, self.log.say)
            self.model.zero_grad(set_to_none=True)
        return distributed.wrap(self.net, self.dist)

    # ---- clock and signals ---------------------------------------------------------------------------------------

    def start(self, watched: dict[str, torch.Tensor], flops: float = 0.0) -> None:
        """From here on a budget in minutes counts, and SIGINT or SIGTERM let the step end, save, and leave.

        watched: a validation batch whose activations are logged, before the first step, too. flops: operations of
        training on a token, 0 = unknown; of their rate, the status line shows the share of the device's peak (MFU).
        """
        peak = kernels.peak_flops(self.dist.device, self.dist.dtype) if flops and self.dist.main else 1.0
        self.use = flops / (peak * self.dist.world_size)  # the share of the peak that one token a second uses
        if self.step == 0:
            self.watch.look(0, watched)
        self.model.train()
        if self.dist.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.dist.device)  # in a sweep, the peak of the run before is not ours
        self.began = time.monotonic() - self.spent
        self.line = (time.monotonic(), self.step)  # when and where the last status line stood
        self.paused, self.tokens = 0.0, 0  # seconds of evaluation, tokens trained on, since that line
        self.agreed, self.pace, self.agree_at = (self.spent, self.step), 0.0, self.step  # see agree
        self.caught, self.release_signals = distributed.catch_signals()
        distributed.shorten_timeout()
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # what lives now lives to the end: Python's search for garbage need not read it again and again

    def agree(self) -> None:
        """Set `spent` and `interrupted` to the same on every rank, and choose when to do so again.

        A process alone looks at its clock before every step. Several would wait for each other, so they agree about
        once a second; in between, every rank counts on by the pace that was agreed on.
        """
        seconds, interrupted = distributed.total([time.monotonic() - self.began, bool(self.caught)], self.dist, "max")
        before, step = self.agreed
        self.pace = (seconds - before) / max(self.step - step, 1)
        several = self.dist.world_size > 1 and self.step > step
        self.agree_at = self.step + (int(np.clip(1 / self.pace, 1, 100)) if several else 1)
        self.agreed, self.interrupted = (seconds, self.step), bool(interrupted)

    def progress(self) -> float:
        """The fraction of the budget that is used, 0 to 1, the same on every rank; sets done and interrupted."""
        if self.step >= self.agree_at:
            self.agree()
        self.spent = self.agreed[0] + self.pace * (self.step - self.agreed[1])
        if not self.max_steps and not self.max_minutes:  # nothing to train: the model is complete before the first step
            self.done = True
            return 1.0
        progress = max((self.step + 0.5) / self.max_steps if self.max_steps else 0.0,  # the middle of the coming step
                       self.spent / (60 * self.max_minutes) if self.max_minutes else 0.0)
        self.done = self.step > 0 and progress >= 1
        return progress

    def evaluation_due(self, interval: int) -> bool:
        return (self.step % interval == 0 or self.done) and self.step > self.evaluated

    @contextmanager
    def pause(self):
        """Around an evaluation, whose time is not part of the training speed on the status line."""
        began = time.monotonic()
        yield
        self.paused += time.monotonic() - began
        self.agree_at = self.step

    def record(self, score: float) -> bool:
        """Note an evaluation's score, higher is better. Is it the best so far?"""
        self.evaluated = self.step
        gain = math.inf if self.best is None else score - self.best
        self.worse = 0 if gain > 1e-7 else self.worse + 1  # patience ends by the metric, though the loss decides ties
        if gain > 0:
            self.best = score
        return gain > 0

    # ---- one optimizer step --------------------------------------------------------------------------------------

    def seed_dropout(self) -> None:
        """Dropout, too, is a function of the seed, the step and the rank."""
        torch.manual_seed(int(np.random.SeedSequence((self.cfg.seed, self.step, self.dist.rank)).generate_state(1)[0]))

    def make_micro_batches(self, step: int, make_batch: Callable, count: Callable | None) -> list[tuple[dict, float]]:
        """This rank's micro-batches of a step, on their way to the device, and the number of scored targets of each."""
        B, ranks = self.cfg.batch_size, self.dist.world_size
        first = [(i * ranks + self.dist.rank) * self.micro for i in range(B // (self.micro * ranks))]
        made = [make_batch(step * B + np.arange(row, row + self.micro)) for row in first]
        return [(distributed.to_device(batch, self.dist.device), float(count(batch)) if count else self.micro)
                for batch in made]

    def micro_batches(self, net, make_batch: Callable, count: Callable | None = None) -> Iterator[tuple]:
        """This rank's share of the global batch: (micro-batch on the device, its scored targets, those of all).

        make_batch(rows): the rows of these global numbers; count(batch): its scored targets, None where every row has
        as many: then rows are counted. What ranks must add up is a tensor on the device, and not waited for. The
        gradients are averaged over the ranks during the last micro-batch only.
        """
        step, made = self.made
        if step != self.step:  # the first step
            made = self.make_micro_batches(self.step, make_batch, count)
        own = max(sum(scored for _, scored in made), 1e-9)  # a batch may score nothing
        total = distributed.unread_total(own, self.dist) if count else own * self.dist.world_size
        for i, (batch, scored) in enumerate(made):
            distributed.sync_gradients(net, i == len(made) - 1)
            yield batch, scored, total
        # the next step's, while the device is busy with this one's
        self.made = self.step + 1, self.make_micro_batches(self.step + 1, make_batch, count)

    def line_due(self) -> bool:
        return self.step % self.cfg.log_interval == 0 or self.step == 1

    def clip_and_step(self, parameters) -> torch.Tensor:
        """Clip the gradients' norm over `parameters`, step every optimizer, clear the gradients; the norm before."""
        if self.step == 0:
            missed = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
            assert not missed, f"{missed} get no gradient"
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.step += 1
        self.watch.gradients(self.step, self.line_due())
        norm = distributed.whole(nn.utils.clip_grad_norm_(parameters, self.cfg.grad_clip or math.inf))
        if self.scaler.is_enabled() and not norm.isfinite():  # fp16 overflow: every rank skips the step
            self.scaler.update(self.scaler.get_scale() / 2)   # and halves the loss scale
        else:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.watch.updated(self.step)
        return norm

    # ---- telling and saving --------------------------------------------------------------------------------------

    def status(self, losses: dict[str, torch.Tensor], norm, lr: float, unit: str, before: str = "", **row) -> None:
        """The status line and its row in metrics.jsonl: the one place where the device is waited for.

        losses: {name: this rank's share}, the first is shown; unit: tok or rows, whose rate is shown; before: text
        that stands before the loss; row: what else the row holds.
        """
        shown = dict(zip(losses, distributed.total(losses.values(), self.dist)))
        loss = next(iter(shown.values()))
        self.check_finite(sum(shown.values()), "training")
        now = time.monotonic()
        seconds, steps = now - self.line[0] - self.paused, self.step - self.line[1]
        rates = {"tok": self.tokens / seconds, "rows": steps * self.cfg.batch_size / seconds}
        row |= shown | {"lr": lr, "grad_norm": norm.item(), "tokens_per_s": rates["tok"]}
        if unit == "rows":
            row["rows_per_s"] = rates["rows"]
        used = ""
        if self.use:
            row["mfu"] = self.use * rates["tok"]
            used = f"MFU {row['mfu']:3.0%} | "
        self.row(**row, memory_gb=kernels.peak_memory(self.dist.device))
        left = min((self.max_steps - self.step) * seconds / steps if self.max_steps else math.inf,
                   60 * self.max_minutes - (now - self.began) if self.max_minutes else math.inf)
        self.log.say(f"step {self.step:6} | {before}loss {loss:.4f} | lr {lr:.2e} | {rates[unit]:9,.0f} {unit}/s | "
                     f"{used}{clock(max(left, 0))} left")
        self.line, self.paused, self.tokens, self.last_loss = (now, self.step), 0.0, 0, loss

    def row(self, **values) -> None:
        """A row of metrics.jsonl for this step, with the seconds since the script began."""
        self.log.row(self.step, seconds=time.monotonic() - self.started, **values)

    def check_finite(self, loss: float, which: str) -> None:
        """Raises Diverged where a loss (or another number, for `which` of the losses) is nan or infinite."""
        if not math.isfinite(loss):
            self.finish_writing()
            has_latest = (self.out_dir / "latest.pt").exists()
            kept = "the last good weights are in latest.pt" if has_latest else "nothing was saved yet"
            raise Diverged(f"the {which} loss is {loss} at step {self.step}, {kept}; lower --lr and --muon_lr, or "
                            "raise --warmup")

    def save(self, name: str, **state) -> None:
        """Write a checkpoint, on rank 0. A large one is copied and written by a thread while training goes on."""
        large = sum(p.numel() for p in self.model.parameters()) > LARGE
        if large or distributed.is_sharded(self.model):
            state = checkpoint.copied(state, self.dist.main)
        self.finish_writing()  # of the one before
        if self.dist.main:
            state |= {"model_config": asdict(self.model.cfg), "step": self.step, "seed": self.cfg.seed,
                      "config": asdict(self.cfg), "fingerprints": self.fingerprints}
            self.writing = self.writer.submit(checkpoint.save, self.out_dir / name, state)
        if not large:
            self.finish_writing()

    def finish_writing(self) -> None:
        """Return when the last checkpoint is on disk. Raises OSError where it could not be written."""
        if self.writing:
            self.writing.result()

    def end(self) -> None:
        """After the last step: all is saved, on every rank; from here on a signal ends the process at once."""
        self.finish_writing()
        self.release_signals()
        distributed.barrier(self.dist)

    def save_latest(self, **state) -> None:
        """Write latest.pt, from which the run can be resumed."""
        self.save("latest.pt", model=self.model.state_dict(), evaluated=self.evaluated, best=self.best,
                  worse=self.worse, optimizer=[optimizer.state_dict() for optimizer in self.optimizers],
                  scaler=self.scaler.state_dict(), seconds=time.monotonic() - self.began, **state)

    def leave(self, **state) -> None:
        """After a signal: save and end the process, with the exit code that a shell expects of that signal."""
        own = sum(distributed.local(p.detach()).sum().item() for p in self.model.parameters())
        self.check_finite(distributed.total([own], self.dist)[0], "training")
        self.save_latest(**state)
        self.end()  # torchrun kills all ranks once one exits
        self.log.say(f"stopped at step {self.step} and saved; go on with --resume")
        self.log.close()
        distributed.stop(self.dist)
        sys.exit(128 + (self.caught[0] if self.caught else signal.SIGTERM))
