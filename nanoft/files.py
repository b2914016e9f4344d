"""Files written whole or not at all, JSON and text in, aligned tables, a progress bar, work shared by cores."""

import codecs
import gzip
import json
import os
import sys
import time
import unicodedata
import zlib
from collections import deque
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


def read_blocks(path, size=2**22):
    """The text of a UTF-8 file (byte-order mark or not, `.gz` or not), in parts. Raises UserError with the bad byte."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            ended = False
            while not ended:
                data = file.read(size)
                ended = not data
                pending = len(decoder.getstate()[0])
                if position == 0 and data.startswith(codecs.BOM_UTF8):
                    position, data = 3, data[3:]
                text = decoder.decode(data, final=ended)
                position += len(data)
                if text:
                    yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {position - pending + error.start} is not UTF-8 ({error.reason}); save the file "
                        "as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the name and the file") from None


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


def width(text):
    """Columns in a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def aligned(rows):
    """Rows of strings as lines: the first column to the left, the others to the right."""
    widths = [max(map(width, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        gaps = [" " * (wide - width(cell)) for wide, cell in zip(widths, row)]
        lines.append("  ".join([row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:]))]).rstrip())
    return "\n".join(lines)


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ahead(pool, function, items, ahead):
    """As map(function, items) in a pool's workers, in order, reading at most `ahead` items before they are used."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
