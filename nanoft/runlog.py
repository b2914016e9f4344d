"""What a run tells: the status line, metrics.jsonl, samples.jsonl, TensorBoard; and environment.json: how it was made.

Only the main process writes; in the others every call does nothing. TensorBoard's tags lie in groups: train, val, test
(losses and scores), speed, and what nanoft/inspect/watch.py and nanoft/inspect/mistakes.py add.
"""

import json
import math
import os
import platform
import re
import shlex
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from nanoft import UserError
from nanoft.files import available_cores, read_json, write_json, write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SPEED = ("seconds", "tokens", "tokens_per_s", "rows_per_s", "mfu", "memory_gb")  # what of a row goes there
LOCKS: dict[Path, object] = {}  # by folder: the open file whose lock this process holds


class RunLog:
    def __init__(self, folder, main=True, step=0, board=True):
        """Open the log of a run that stands at `step`. Rows past it, of a run that was killed, are dropped.

        board: whether anything is written for TensorBoard; self.board is its writer, or None.
        """
        self.main, self.board = main, None
        if not main:
            return
        starts, before = Path(folder) / "environment.json", []  # a run has several where it was resumed
        if step and starts.exists():
            with suppress(UserError, TypeError):  # a damaged note stops no run
                before = [start for start in read_json(starts) if isinstance(start, dict)]
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

    def row(self, step, **values):
        """One JSON line, and a scalar for each value. Names that begin with val_ or test_ go into that group.

        A value that is not finite is null, which JSON has, and no scalar. A row of the time alone is left out.
        """
        if not self.main or values.keys() <= {"seconds"}:
            return
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_row(self.file, {"step": step, **values})
        for name, value in values.items():
            group = "speed" if name in SPEED else "train"
            if name.startswith(("val_", "test_")):
                group, _, name = name.partition("_")
            self.scalars(step, group, {name: value})

    def scalars(self, step, group, values):
        """Figures for TensorBoard alone. {name: value}; None and what is not finite is left out."""
        for name, value in values.items():
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

    def say(self, line):
        if self.main:
            print(line, flush=True)

    def close(self):
        if self.main:
            self.file.close()
            unlock(self.path.parent)
        if self.board:
            self.board.close()


def lock(folder: Path, advice: str = "give another --out_dir") -> None:
    """Hold a folder until unlock(), or the end of the process. Raises UserError if another process has it."""
    if fcntl is None:
        return
    unlock(folder)  # of a run of this process that ended by an error
    file = open(folder / ".lock", "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another process that writes there; wait for its end, or {advice}"
                        ) from None
    except OSError:  # some network file systems have no locks
        pass
    LOCKS[folder.resolve()] = file


def unlock(folder: Path) -> None:
    LOCKS.pop(folder.resolve(), None)  # the file is closed, and its lock thereby free


def append_row(file, row: dict) -> None:
    """Add a JSON line to an unbuffered file in append mode, in one write: a reader never sees a part of it."""
    os.write(file.fileno(), (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def drop_rows(path: Path, step: int) -> None:
    """Remove the rows past this step from a JSONL file (for step 0 all), and a line that a crash has cut.

    So are those of a run's end, test metrics and final sample: a run that is resumed comes to its end again.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if step else ():
        try:
            row = json.loads(line)
            is_end = row.get("tag") == "final sample" or any(name.startswith("test_") for name in row)
            if line.endswith(b"\n") and row["step"] <= step and not is_end:
                kept.append(line)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # cut by a crash, or damaged
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
