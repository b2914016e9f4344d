"""Files written whole or not at all, JSON and text in, aligned tables, a progress bar, work shared by cores."""

import codecs
import gzip
import hashlib
import json
import os
import re
import sys
import time
import unicodedata
import zlib
from collections import deque
from pathlib import Path

from nanoft import UserError


def write_whole(path, write):
    """Have write(file) fill a temporary file, put it safely on disk, then give it its name. Makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_overwrite(path, begins: tuple[bytes, ...], *inputs) -> None:
    """Raise UserError where writing would destroy an input, or a file that does not begin as nanoft's own do."""
    path = Path(path)
    if not path.is_file():
        return
    with open(path, "rb") as file:
        start = file.read(64)
    if start and not start.startswith(begins) or any(Path(name).exists() and path.samefile(name) for name in inputs):
        raise UserError(f"{path} exists and is an input, or was not written by nanoft; give another file")


def write_json(path, content):
    """As JSON, which knows no NaN and no infinity: these become null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def write_jsonl(path, rows):
    lines = ((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8") for row in rows)
    write_whole(path, lambda file: file.writelines(lines))


def read_json(path, form=object, default=None, text=None):
    """The content of a JSON file, which has this form (see difference). Raises UserError.

    default: what a file that is missing counts as, None: an error. text: the content, if it has been read.
    """
    try:
        if text is None:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        content = json.loads(text)
    except FileNotFoundError:
        if default is not None:
            return default
        raise UserError(f"{path}: no such file; prepare the data set first, or give the path of one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); it is damaged or another file, make it again") from None
    if problem := difference(content, form, "its content"):
        raise UserError(f"{path}: {problem}; it is damaged or another file, make or fetch it again")
    return content


def difference(value, form, name="it") -> str:
    """Where a value that comes from outside differs from its form, in a few words; "" if it has that form.

    form: None, or a type (float takes whole numbers, too, and nothing infinite; int less than 2^31); a set of texts; a
    tuple of forms, any of which will do; [form], a list of such; {"a": form, "b?": form}, a dictionary with these and
    other names, where "b" may be missing; {str: form}, a form for all other names. This is the schema of
    every dictionary that is read from a file, tried once, where it is read.
    """
    if isinstance(form, set):
        return "" if isinstance(value, str) and value in form else f"{name} is {value!r:.40}, not one of {sorted(form)}"
    if isinstance(form, tuple):
        problems = [difference(value, each, name) for each in form]
        return "" if "" in problems else problems[0]
    if isinstance(form, type | None):
        fits = value is None if form is None else isinstance(value, form) or form is float and isinstance(value, int)
        fits &= not isinstance(value, bool) or form in (bool, object)
        if fits and form in (int, float) and not abs(value) < (2**31 if form is int else 1e300):
            return f"{name} is {'nan' if value != value else 'too large'}"
        return "" if fits else f"{name} is {type(value).__name__}, not {form.__name__ if form else None}"
    if not isinstance(value, type(form)):
        return f"{name} is {type(value).__name__}, not {type(form).__name__}"
    if isinstance(form, list):
        parts = [(item, form[0], f"{name}[{i}]") for i, item in enumerate(value)]
    else:
        wanted = {key.removesuffix("?"): each for key, each in form.items() if key is not str}
        for key in wanted:
            if key in form and key not in value:
                return f"{name} lacks {key}"
        if str in form and not all(isinstance(key, str) for key in value):
            return f"{name} has a name that is no text"
        parts = [(item, wanted.get(key, form.get(str, object)), f"{name}[{key!r:.40}]") for key, item in value.items()]
    return next(filter(None, (difference(*part) for part in parts)), "")


def hash_fraction(text: str, salt: str = "") -> float:
    """A number from 0 to 1 by the text itself, so that copies of a text fall into the same split."""
    return int.from_bytes(hashlib.sha256((salt + text).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def fingerprint(content) -> str:
    """32 hexadecimal digits, equal for equal content: what JSON can hold."""
    text = json.dumps(content, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_blocks(path, size=2**22, encoding=""):
    """The text of a file, `.gz` or not, in parts, without its byte-order mark.

    encoding: as Python names it; "" is UTF-8, or UTF-16 where a byte-order mark says so. Raises UserError with the
    number of a wrong byte, and the encoding that the file seems to have.
    """
    decoder, position, begun = None, 0, False
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            ended = False
            while not ended:
                data = file.read(size)
                ended = not data
                if decoder is None:
                    encoding = encoding or ("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                                            else "utf-8")
                    if encoding == "utf-8" and data[:1000].count(0) > len(data[:1000]) / 4:
                        raise UserError(f"{path}: so many bytes of 0 that it is not UTF-8; where it is an option, try "
                                        f"--encoding=utf-16-{'be' if data[:1] == bytes(1) else 'le'}")
                    "".encode(encoding)  # raises LookupError for what is no encoding of text
                    decoder = codecs.getincrementaldecoder(encoding)()
                pending = len(decoder.getstate()[0])
                text = decoder.decode(data, final=ended)
                position += len(data)
                if position > 2**28 and position > 300 * os.path.getsize(path):  # text shrinks to a third, or a tenth
                    raise UserError(f"{path}: unpacks to more than 300 times its size, which no text does; check it")
                if text:
                    yield text if begun else text.removeprefix("\ufeff")
                    begun = True
    except UnicodeDecodeError as error:
        advice = "give another --encoding"
        if encoding == "utf-8":
            other, line = guess_encoding(error.object, error.start)
            advice = (f"save the file as UTF-8, or, where it is an option, give --encoding={other}, by which the line "
                      f"reads {line.strip()!r:.60}")
        raise UserError(f"{path}: byte {position - pending + error.start} is not {encoding.upper()} ({error.reason}); "
                        f"{advice}") from None
    except LookupError:
        raise UserError(f"encoding={encoding} is unknown; give one such as utf-8, gb18030, utf-16 or latin-1") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the name and the file") from None


def read_text(path, encoding=""):
    """The whole text of a file, as read_blocks; carriage returns are line ends where it has no others."""
    text = "".join(read_blocks(path, encoding=encoding))
    return text if "\n" in text else text.replace("\r", "\n")


def guess_encoding(data: bytes, start: int) -> tuple[str, str]:
    """The encoding of bytes that are not UTF-8, Chinese or Western, and in it the line that holds byte `start`.

    In Chinese text the bytes above 127 stand in pairs, in Western text mostly alone.
    """
    line = data[data.rfind(b"\n", 0, start) + 1:].partition(b"\n")[0]
    try:
        if 2 * len(re.findall(rb"[\x81-\xfe][\xa1-\xfe]", data)) >= 0.8 * len(re.findall(rb"[\x80-\xff]", data)):
            return "gb18030", line.decode("gb18030")
    except UnicodeDecodeError:
        pass
    other = "cp1252" if re.search(rb"[\x80-\x9f]", data) else "latin-1"  # the same but for these
    return other, line.decode(other, "replace")


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
    widths, lines = [max(map(width, column)) for column in zip(*rows)], []
    for row in rows:
        gaps = [" " * (wide - width(cell)) for wide, cell in zip(widths, row)]
        lines.append("  ".join([row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:]))]).rstrip())
    return "\n".join(lines)


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_groups(items, size, length=len):
    """Consecutive items in lists whose lengths add up to `size`, or a little more."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += length(item)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def map_ahead(pool, function, items, ahead):
    """As map(function, items) in a pool's workers, in order, reading at most `ahead` items before they are used."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
