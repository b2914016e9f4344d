"""What the figures for TensorBoard cost: the share of a run that goes into them, and that its losses stay the same.

    python bench/logging_cost.py                                           # 250 steps of train.py's default job
    python bench/logging_cost.py --run="train.py config/wikitext.py" --rounds=3
    python bench/logging_cost.py --run="finetune.py config/sst2.py --init_from=out/wikitext_bert" --steps=500

The run is made with them and without, in turn. On a machine that others use too, two runs differ by more than the
figures cost, so what they cost is also counted inside the run: the seconds in the functions that make and write them.
"""

import json
import runpy
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.turns import in_turn, json_lines, median, watch  # noqa: E402
from nanoft import UserError, config  # noqa: E402

INSIDE = "from bench.logging_cost import inside; inside()"


@dataclass
class Options:
    run: str = "train.py"  # a script with its options, but out_dir, max_steps and watch_interval
    steps: int = 250       # of each run
    rounds: int = 3        # turns of both


def inside():
    """In a process of its own: run sys.argv[2:], a script and its options; the seconds of logging go to sys.argv[1]."""
    from nanoft import runlog
    from nanoft.inspect import mistakes
    from nanoft.inspect.watch import Watch

    spent, depth = 0.0, 0

    def timed(function):
        def call(*args, **kwargs):
            nonlocal spent, depth
            began, depth = time.perf_counter(), depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent += time.perf_counter() - began if depth == 0 else 0  # what logs may call what logs
        return call

    for owner, names in ((Watch, ("look", "gradients", "updated")), (mistakes, ("show", "save_projector")),
                         (runlog.RunLog, ("__init__", "row", "text", "table", "finish", "close"))):
        for name in names:
            setattr(owner, name, timed(getattr(owner, name)))
    file, sys.argv = sys.argv[1], sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    Path(file).write_text(json.dumps(spent), encoding="utf-8")


def main():
    cfg = config.load(Options)
    script, *options = shlex.split(cfg.run)
    if script == "train.py":
        options.append("--max_minutes=0")
    losses, shares = [], {}

    def seconds(name, interval):
        """Of the whole process; the share of logging in it goes into `shares`."""
        with tempfile.TemporaryDirectory() as folder:
            whole, _ = watch([sys.executable, "-c", INSIDE, f"{folder}/spent", script, *options,
                              f"--max_steps={cfg.steps}", f"--out_dir={folder}/run", f"--watch_interval={interval}"],
                             lambda: None)
            rows = json_lines(Path(folder, "run", "metrics.jsonl"))
            shares.setdefault(name, []).append(json.loads(Path(folder, "spent").read_text(encoding="utf-8")) / whole)
        losses.append([(row["step"], row.get("loss"), row.get("val_loss")) for row in rows])
        if losses[-1] != losses[0]:
            raise UserError(f"{name}: the losses are others than those of the first run; logging changes the training")
        return whole

    whole = in_turn({name: lambda name=name, interval=interval: seconds(name, interval)
                     for name, interval in (("with", 1), ("without", 0))}, cfg.rounds)
    print(f"{cfg.run}, {cfg.steps} steps, medians of {cfg.rounds} rounds; {len(losses[0])} rows of losses are the same "
          f"in all {len(losses)} runs")
    for name, figures in whole.items():
        print(f"  {name:8} {median(figures):7.1f} s, of which logging takes {median(shares[name]):.1%}")


if __name__ == "__main__":
    config.run(main)
