"""Files written whole or not at all, JSON in and out, and a progress bar."""

import json
import os
import sys
import time
from pathlib import Path

from nanoft import UserError


def write_whole(path, write):
    """Have write(file) fill a temporary file, put it safely on disk, then give it its name."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """As JSON, which knows no NaN and no infinity: these become null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_jsonl(path, rows):
    lines = ((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8") for row in rows)
    write_whole(path, lambda file: file.writelines(lines))


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; prepare the data set first, or give the path of one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); it is damaged or another file, make it again") from None


def progress_bar(what, total=0, unit=""):
    """A line on the terminal that is rewritten in place: call it with the amount done, with None to wipe it away."""
    last = 0.0

    def show(done):
        nonlocal last
        if not sys.stderr.isatty() or (done is not None and time.monotonic() - last < 0.1):
            return
        last = time.monotonic()
        line = ""
        if done is not None:
            of = f" of {total:,.0f}" if total else ""
            bar = "[" + ("#" * int(30 * done / total)).ljust(30, ".") + "] " if total else ""
            line = f"{what} {bar}{done:,.0f}{of} {unit}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
