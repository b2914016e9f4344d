"""What a run tells: the status line, metrics.jsonl, samples.jsonl, TensorBoard; and environment.json: how it was made.

Only the main process writes; in the others every call does nothing. TensorBoard's tags lie in groups: train, val, test
(losses and scores), speed, and what nanoft/watch.py and nanoft/mistakes.py add.
"""

import json
import math
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from nanoft.files import available_cores, read_json, write_json, write_whole

NOT_COMPARED = ("out_dir", "resume", "eval_only", "device", "eval_interval", "eval_tokens", "log_interval",
                "watch_interval", "sample_tokens")  # options that do not change what is learned
SPEED = ("seconds", "tokens", "tokens_per_s", "rows_per_s", "memory_gb")  # figures of a row that go into this group


class RunLog:
    def __init__(self, folder, main=True, step=0, board=True):
        """Open the log of a run that stands at `step`. Rows past it, of a run that was killed, are dropped.

        board: whether anything is written for TensorBoard; self.board is its writer, or None.
        """
        self.main, self.board = main, None
        if not main:
            return
        starts = Path(folder) / "environment.json"  # a run has several where it was resumed
        before = read_json(starts) if step and starts.exists() else []
        made_on = environment()
        write_json(starts, [*before, {"step": step} | made_on])
        self.path, self.samples = Path(folder) / "metrics.jsonl", Path(folder) / "samples.jsonl"
        for path in (self.path, self.samples):
            drop_rows(path, step)
        self.file = open(self.path, "ab", buffering=0)
        if board:
            from tensorboardX import SummaryWriter  # here, not above: --help need not wait for it

            self.board = SummaryWriter(logdir=str(folder), purge_step=step + 1 if step else None, flush_secs=10)
        self.table("environment", [("", "of this run"), *made_on.items()], step)

    def row(self, step, **figures):
        """One JSON line, and a scalar for each figure. Names that begin with val_ or test_ go into that group.

        A figure that is not finite is null, which JSON has, and no scalar.
        """
        if not self.main:
            return
        figures = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        append_row(self.file, {"step": step, **figures})
        for name, value in figures.items():
            group = "speed" if name in SPEED else "train"
            if name.startswith(("val_", "test_")):
                group, _, name = name.partition("_")
            self.scalars(step, group, {name: value})

    def scalars(self, step, group, figures):
        """Figures for TensorBoard alone. {name: value}; None and what is not finite is left out."""
        for name, value in figures.items():
            if self.board and value is not None and math.isfinite(value):
                self.board.add_scalar(f"{group}/{name}", value, step)

    def text(self, tag, text, step=0):
        """A text, every space and line of it: a line of samples.jsonl, and in the TEXT tab of TensorBoard."""
        if self.main:
            with open(self.samples, "ab", buffering=0) as file:
                append_row(file, {"step": step, "tag": tag, "text": text})
        if self.board:
            self.board.add_text(tag, "    " + text.replace("\n", "\n    "), step)

    def table(self, tag, rows, step=0):
        """A table in the TEXT tab; the first row is its head."""
        if self.board and len(rows) > 1:
            self.board.add_text(tag, markdown(rows), step)

    def picture(self, tag, data, width, height, step=0):
        """A PNG file's bytes in the IMAGES tab."""
        if self.board:
            from tensorboardX.proto.summary_pb2 import Summary

            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
            self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def finish(self, step, cfg, result):
        """The final figures beside the options, in the HPARAMS tab, which compares runs; as scalars in `final`, too.

        Options that are not at their default come first there.
        """
        if not self.board:
            return
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
        from tensorboardX.summary import hparams

        options = {name: value for name, value in asdict(cfg).items() if name not in NOT_COMPARED}
        wanted = [name for name in result if name.startswith(("val_", "test_"))] + ["train_seconds", "parameters"]
        figures = {name: result[name] for name in wanted if isinstance(result[name], (int, float))}
        self.scalars(step, "final", figures)
        # the writer's own add_hparams would make another run beside this one
        experiment, start, end = hparams(options, {f"final/{name}": value for name, value in figures.items()})
        content = HParamsPluginData.FromString(experiment.value[0].metadata.plugin_data.content)
        for info in content.experiment.hparam_infos:
            if options[info.name] != getattr(type(cfg), info.name):
                info.MergeFromString(b"\x38\x01")  # its field 7, `differs`, is true; tensorboardX does not know it yet
        experiment.value[0].metadata.plugin_data.content = content.SerializeToString()
        for summary in (experiment, start, end):
            self.board.file_writer.add_summary(summary, step)

    def say(self, line):
        if self.main:
            print(line, flush=True)

    def close(self):
        if self.main:
            self.file.close()
        if self.board:
            self.board.close()


def append_row(file, row: dict) -> None:
    """Add a JSON line to an unbuffered file in append mode, in one write: a reader never sees a part of it."""
    os.write(file.fileno(), (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def drop_rows(path: Path, step: int) -> None:
    """Remove the rows past this step from a JSONL file (for step 0 all), and a line that a crash has cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if step else ():
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # cut by a crash
            pass
    write_whole(path, lambda file: file.writelines(kept))


def markdown(rows):
    """A table in Markdown; the first row is its head."""
    lines = [f"| {' | '.join(map(plain, row))} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def plain(value):
    """A value as text that Markdown shows as it is, on one line."""
    text = " ".join(f"{value:.6g}".split() if isinstance(value, float) else str(value).split())
    return text.translate({ord(mark): f"&#{ord(mark)};" for mark in "&<>|*_`~#[]\\"})


def environment():
    """The command that started this process, the time, the machine and the versions: a dictionary."""
    import torch  # here, not above: who only reads a run need not wait for it

    world, info = int(os.environ.get("WORLD_SIZE", 1)), Path("/proc/cpuinfo")
    launcher = ["torchrun", f"--nproc_per_node={world}"] if world > 1 else ["python"]
    found = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return {"command": shlex.join([*launcher, Path(sys.argv[0]).name, *sys.argv[1:]]),
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"), "processes": world,
            "processor": found[1].strip() if found else platform.processor() or platform.machine(),
            "cores": available_cores(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
            "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "tiktoken", "tensorboardX")}}


def clock(seconds):
    """75 -> '1m15s'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
