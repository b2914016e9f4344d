"""Contenders in processes of their own, and their turns: A, B, A, B, ..., so a change of the machine's speed meets all.

A Child stays alive between its turns, so that a contender compiles once; a finished turn leaves it waiting on its
stdin, which costs no time. `watch` is for whole commands, timed from outside.
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
from pathlib import Path

from nanoft import UserError

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.3  # seconds before each turn: threads of the last one may still wait for work for a moment, at full speed


class Gone(Exception):
    """A contender's process has ended, with the last line it wrote."""


class Child:
    """One contender of bench.child: `ask` has it do something and gives its reply, a dictionary."""

    def __init__(self, **spec):
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen([sys.executable, "-m", "bench.child"], cwd=ROOT, text=True, stderr=self.errors,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.send(spec)

    def send(self, content):
        try:
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply, or its absence, tells

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


def start_all(specs, stack):
    """{name: (its Child, its reply to `warm`)} of the contenders that start; a peer that does not is told of."""
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


def wanted(cfg, names):
    """Those of the contenders that --match names, at all or in part."""
    return [name for name in names if re.search(cfg.match, name)]


def present(cfg, *packages):
    """Those of the peers' packages that can be used here; a line on each that cannot."""
    there = [name for name in packages if cfg.peers and importlib.util.find_spec(name)]
    for name in packages:
        if cfg.peers and name not in there:
            print(f"  {name} is not installed here: left out")
    return there


def in_turn(ways, rounds, minutes=0.0, say=print):
    """{name: [a figure a round]}; a figure is None where a run did not arrive at one.

    ways: {name: function that measures once and gives the figure}. minutes: no round begins after so many, 0 = no cap.
    """
    began, figures = time.time(), {name: [] for name in ways}
    for number in range(1, rounds + 1):
        if minutes and number > 1 and time.time() - began > 60 * minutes:
            say(f"  after {minutes:g} minutes: {number - 1} of {rounds} rounds")
            break
        for name, way in ways.items():
            time.sleep(PAUSE)
            figures[name].append(way())
            shown = "did not arrive" if figures[name][-1] is None else f"{figures[name][-1]:,.2f}"
            say(f"  round {number}  {name}: {shown}")
    return figures


def median(figures):
    """The median, where None (did not arrive) counts as the worst of times; None if that is the median."""
    middle = statistics.median(float("inf") if x is None else x for x in figures)
    return None if middle == float("inf") else middle


def measured(title, unit, higher, figures, facts, lead, limits=None):
    """A part's result. figures: {name: [a figure a round]}; facts: {name: what else its row says}.

    A row with `peer` is not nanoft's; `lead` names the rows that peers are set beside: all of nanoft's where none of
    them was measured, and no row at all where it names none.
    limits: what the machine can do, measured in the same rounds; `share` of a row is its part of the one that
    `share_of` names.
    """
    rows = [{"name": name, **facts.get(name, {}), "median": median(values), "rounds": values}
            for name, values in figures.items()]
    ours = [row["name"] for row in rows if not row.get("peer")]
    leading = [name for name in lead if name in figures] or ours if lead else []
    return {"title": title, "unit": unit, "higher_is_better": higher, "limits": limits or {}, "rows": rows,
            "lead": leading}


def seconds_of(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def watch(words, seen, cwd=ROOT, output=None, **env):
    """Run a command until seen() gives something: (seconds since its start, what was seen).

    The command and all that it started are ended then. If it ends by itself and nothing was seen: its whole time, and
    None. output: a file for what it prints. Raises UserError, with its last line, where it fails.
    """
    with open(output, "w+", encoding="utf-8") if output else tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        start = time.time()
        process = subprocess.Popen(words, cwd=cwd, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, "PYTHONUNBUFFERED": "1", **env})
        try:
            while True:
                ended = process.poll() is not None  # asked first: what it wrote before its end is then there to see
                seconds, what = time.time() - start, seen()
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
            except ProcessLookupError:  # it and all that it started have ended
                pass
            process.wait()


def json_lines(path):
    """The whole lines of a JSON-lines file that may still be growing, or not be there yet."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
