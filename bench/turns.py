"""Contenders in their own processes and their turns: A, B, A, B, ..., so that changes of the machine's speed hit all.

A Child stays alive between its turns, so that a contender compiles once; between turns it waits for its stdin, which
costs no time. `watch` is for whole commands, timed from outside.
"""

import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nanoft import UserError

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.3  # seconds before each turn: idle threads of the last one may still spin for a moment


DEVICE = "cpu"  # where contenders compute, or "cuda"


class Gone(Exception):
    """A contender's process has ended; the message is the last line it wrote."""


class Child:
    """One contender of bench.child. ask(do, **how) sends a request and returns the reply, a dictionary."""

    def __init__(self, **spec):
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen([sys.executable, "-m", "bench.child"], cwd=ROOT, text=True, stderr=self.errors,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.send({"device": DEVICE} | spec)

    def send(self, content):
        try:
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # ask() will find no reply

    def ask(self, do, **how):
        self.send({"do": do, **how})
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise Gone((self.errors.read().strip().splitlines() or ["no message"])[-1][:300])
        return json.loads(line)

    def close(self):
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            try:
                file.close()
            except BrokenPipeError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def start_all(specs: dict[str, dict], stack: ExitStack) -> dict[str, tuple[Child, dict]]:
    """{name: (its Child, its reply to `warm`)} of the contenders that start.

    Prints a line on a peer that fails; raises UserError if nanoft does.
    """
    started = {}
    for name, spec in specs.items():
        child = stack.enter_context(Child(**spec))
        try:
            began = time.time()
            started[name] = child, child.ask("warm")
            print(f"  {name}: ready in {time.time() - began:.0f} s", flush=True)
        except Gone as gone:
            if spec["who"] == "nanoft":
                raise UserError(f"{name} failed: {gone}") from None
            print(f"  {name} fails here and is left out: {gone}", flush=True)
    return started


def wanted(cfg, names) -> list[str]:
    """The contenders whose names --match finds."""
    return [name for name in names if re.search(cfg.match, name)]


def present(cfg, *packages: str) -> list[str]:
    """The peers' packages that are installed, if peers are asked for; prints a line on each that is not."""
    installed = [name for name in packages if cfg.peers and importlib.util.find_spec(name)]
    for name in packages:
        if cfg.peers and name not in installed:
            print(f"  {name} is not installed here: left out")
    return installed


def in_turn(ways: dict[str, Callable], rounds: int, minutes: float = 0.0, say=print) -> dict[str, list]:
    """{name: [a value per round]}; a value is None if a run did not reach its target.

    ways: {name: a function that measures once}. minutes: no round begins after so many, 0 = no limit.
    """
    began, values = time.time(), {name: [] for name in ways}
    for number in range(1, rounds + 1):
        if minutes and number > 1 and time.time() - began > 60 * minutes:
            say(f"  after {minutes:g} minutes: {number - 1} of {rounds} rounds")
            break
        for name, way in ways.items():
            time.sleep(PAUSE)
            values[name].append(way())
            shown = "not reached" if values[name][-1] is None else f"{values[name][-1]:,.2f}"
            say(f"  round {number}  {name}: {shown}")
    return values


def median(values: list) -> float | None:
    """The median, where None (not reached) counts as the longest time; None if that is the median."""
    middle = statistics.median(float("inf") if x is None else x for x in values)
    return None if middle == float("inf") else middle


def measured(title: str, unit: str, higher: bool, values: dict[str, list], facts: dict[str, dict], lead: list[str],
             limits: dict[str, float] | None = None) -> dict:
    """A part's result. values: {name: [a value per round]}; facts: {name: other entries of its row}.

    A row with `peer` is not nanoft's. lead: the rows that peers are compared with: all of nanoft's if none of them was
    measured, none if it is empty. limits: what the machine can do at most, measured in the same rounds; `share` of a
    row is its fraction of the limit that `share_of` names.
    """
    rows = [{"name": name, **facts.get(name, {}), "median": median(rounds), "rounds": rounds}
            for name, rounds in values.items()]
    ours = [row["name"] for row in rows if not row.get("peer")]
    leading = [name for name in lead if name in values] or ours if lead else []
    return {"title": title, "unit": unit, "higher_is_better": higher, "limits": limits or {}, "rows": rows,
            "lead": leading}


def timed(function: Callable) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def watch(words: list[str], check: Callable, cwd=ROOT, output=None, **env: str) -> tuple[float, Any]:
    """Run a command until check() returns something: (seconds since its start, what check returned).

    Then the command is ended with all that it started. If it ends by itself before: its whole time, and None.
    output: a file for what it prints. Raises UserError, with its last line, if it fails.
    """
    with open(output, "w+", encoding="utf-8") if output else tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        start = time.time()
        process = subprocess.Popen(words, cwd=cwd, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "PYTHONUNBUFFERED": "1", **env})
        try:
            while True:
                ended = process.poll() is not None  # asked before check(), which then sees all that it wrote
                seconds, what = time.time() - start, check()
                if what is None and process.returncode:
                    printed.seek(0)
                    last = (printed.read().strip().splitlines() or ["no message"])[-1][:300]
                    raise UserError(f"{' '.join(Path(word).name for word in words[1:3])} failed: {last}")
                if what is not None or ended:
                    return seconds, what
                time.sleep(0.03)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # all have ended
                pass
            process.wait()


def json_lines(path: str | Path) -> list[dict]:
    """The complete lines of a JSON-lines file that may still be growing, or not exist yet."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
