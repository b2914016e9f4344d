"""What the figures for TensorBoard cost: the same run with and without them, in turn; its losses must be the same.

    python bench/logging_cost.py                                           # 250 steps of train.py's default job
    python bench/logging_cost.py --run="train.py config/wikitext.py" --rounds=3
    python bench/logging_cost.py --run="finetune.py config/sst2.py --init_from=out/wikitext_bert" --steps=500
"""

import json
import resource
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.turns import in_turn, json_lines, median, watch  # noqa: E402
from nanoft import UserError, config  # noqa: E402


@dataclass
class Options:
    run: str = "train.py"  # a script with its options, but out_dir, max_steps and watch_interval
    steps: int = 250       # of each run
    rounds: int = 5        # turns of both


def main():
    cfg = config.load(Options)
    script, *options = shlex.split(cfg.run)
    if script == "train.py":
        options.append("--max_minutes=0")
    losses, training, processor = [], {}, {}

    def used():
        """Seconds of processor time of all the processes that were started and have ended."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def seconds(name, interval):
        """Of the whole process; those of its loop go into `training`, those of its processor into `processor`."""
        before = used()
        with tempfile.TemporaryDirectory() as folder:
            whole, _ = watch([sys.executable, script, *options, f"--max_steps={cfg.steps}", f"--out_dir={folder}/run",
                              f"--watch_interval={interval}"], lambda: None)
            rows = json_lines(Path(folder, "run", "metrics.jsonl"))
            result = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
        losses.append([(row["step"], row.get("loss"), row.get("val_loss")) for row in rows])
        if losses[-1] != losses[0]:
            raise UserError(f"{name}: the losses are others than those of the first run; logging changes the training")
        training.setdefault(name, []).append(result["train_seconds"])
        processor.setdefault(name, []).append(used() - before)
        return whole

    whole = in_turn({name: lambda name=name, interval=interval: seconds(name, interval)
                     for name, interval in (("with", 1), ("without", 0))}, cfg.rounds)
    print(f"{cfg.run}, {cfg.steps} steps, medians of {cfg.rounds} rounds; {len(losses[0])} rows of losses are the same "
          f"in all {len(losses)} runs")
    for what, figures in (("whole process", whole), ("training and evaluation", training),
                          ("processor time", processor)):  # steadier where others use the machine too
        a, b = median(figures["with"]), median(figures["without"])
        print(f"  {what:24} with {a:7.1f} s, without {b:7.1f} s: {a / b - 1:+.1%}")


if __name__ == "__main__":
    config.run(main)
