"""What a run tells: the status line, metrics.jsonl, TensorBoard; and environment.json, by what and on what it was made.

Only the main process writes; in the others every call does nothing.
"""

import json
import math
import os
import platform
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from nanoft.files import available_cores, read_json, write_json, write_whole


class RunLog:
    def __init__(self, folder, main=True, step=0):
        """Open the log of a run that stands at `step`. Rows past it, of a run that was killed, are dropped."""
        self.main = main
        if not main:
            return
        from tensorboardX import SummaryWriter  # here, not above: it takes a second that --help need not wait for

        starts = Path(folder) / "environment.json"  # a run has several where it was resumed
        before = read_json(starts) if step and starts.exists() else []
        write_json(starts, [*before, {"step": step} | environment()])
        self.path = Path(folder) / "metrics.jsonl"
        kept = []
        if step and self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                        kept.append(line)
                except ValueError:  # a line cut by a crash
                    pass
        write_whole(self.path, lambda file: file.writelines(kept))
        self.file = open(self.path, "ab", buffering=0)
        self.board = SummaryWriter(logdir=str(folder), purge_step=step + 1 if step else None, flush_secs=10)

    def row(self, step, **figures):
        """One JSON line, and a scalar for each figure. Names that begin with val_ or test_ go into that group.

        A figure that is not finite is null, which JSON has, and no scalar.
        """
        if not self.main:
            return
        figures = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        # one write of a whole line in append mode: a reader never sees a part of it
        os.write(self.file.fileno(), (json.dumps({"step": step, **figures}) + "\n").encode())
        for name, value in figures.items():
            if value is None:
                continue
            group = name.partition("_")[0] if name.startswith(("val_", "test_")) else "train"
            self.board.add_scalar(f"{group}/{name.removeprefix(group + '_')}", value, step)

    def text(self, tag, text, step=0):
        if self.main:
            self.board.add_text(tag, "    " + text.replace("\n", "\n    "), step)  # indented: shown as it is

    def say(self, line):
        if self.main:
            print(line, flush=True)

    def close(self):
        if self.main:
            self.file.close()
            self.board.close()


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
