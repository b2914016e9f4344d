"""What every data/NAME/prepare.py shares: find the raw file, learn the tokenizer, write the splits. And who calls it.

A data set folder for pretraining holds `train.bin`, `val.bin`, perhaps `test.bin`, and `tokenizer.json`. The last is
removed first and written last, so a folder that has it is complete.
"""

import difflib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nanoft import HOME, INSTALLED, UserError, bpe
from nanoft.bins import MAGIC, Tokens, find_shards, write_split
from nanoft.files import check_overwrite, progress_bar
from nanoft.text import vocabulary

DATA = HOME / "data"
GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # its encoder.json and vocab.bpe
USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) nanoft"  # some publishers refuse urllib's own name


def find_raw(name: str, address: str, folder: str | Path, source: str = "", option: str = "--source=PATH") -> Path:
    """The path of a raw file: of `source`, else in $NANOFT_MIRROR, else in folder/raw/, where it is fetched to.

    name: the file's name, after its folder in the mirror if it has one there (wnut17/wnut17train.conll). address: the
    publisher's, "" where no publisher keeps it. source: the user's own path of the file, or of a folder that holds it.
    option: by which a user can give it, for the message.
    Raises UserError if `source` has no such file, and, naming the address and the other ways, if the download fails.
    """
    parent, file = os.path.split(name)
    if source:
        path = Path(source) / file if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise UserError(f"--source={source}: there is no file {path}; give the path of {file}")
        return path
    raw, mirror = Path(folder) / "raw" / file, os.environ.get("NANOFT_MIRROR")
    for path in (Path(mirror or "") / parent / file, raw)[not mirror:]:
        if path.is_file():
            return path
    other_ways = f"give it by {option}, or set NANOFT_MIRROR to a folder that holds {name}, or put it at {raw}"
    if not address:
        raise UserError(f"{file}: no publisher keeps it at an address that lasts; {other_ways}")
    try:
        download(address, raw)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise UserError(f"{file}: could not be fetched from {address} ({error}); {other_ways}") from None
    return raw


def find_raw_files(addresses: dict[str, str], folder: str | Path, source: str = "") -> list[Path]:
    """find_raw for each of {name: address}; source: a folder that holds all of them."""
    if source and not Path(source).is_dir():
        raise UserError(f"--source={source}: no such folder; give one that holds "
                        f"{' and '.join(os.path.basename(name) for name in addresses)}")
    return [find_raw(name, address, folder, source) for name, address in addresses.items()]


def gpt2_vocabulary(folder: str | Path, option: str = "--tokenizer=FOLDER"):
    """GPT-2's tokenizer, of its two files as find_raw finds them. option: as there. Raises UserError."""
    names = ("encoder.json", "vocab.bpe")
    return vocabulary.load([find_raw(f"gpt2/{name}", GPT2 + name, folder, option=option) for name in names][0])


def download(address: str, path: Path) -> None:
    """Fetch an address to a path, whole or not at all. Raises OSError, or ValueError for a wrong number of bytes."""
    print(f"fetching {address}", flush=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    done = 0
    try:
        request = urllib.request.Request(address, headers={"User-Agent": USER_AGENT})
        with urllib.request.urlopen(request, timeout=30) as reply:
            total = int(reply.headers.get("Content-Length") or 0)
            show = progress_bar(path.name, total / 1e6, "MB")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                while data := reply.read(2**20):
                    done += file.write(data)
                    show(done / 1e6)
                file.flush()
                os.fsync(file.fileno())
            show(None)
        if total and done != total:
            raise ValueError(f"{done:,} of {total:,} bytes came")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_data(out: str | Path, splits: dict[str, list | Callable[[], Iterable]], vocab_size: int, tokenizer: str = "",
               words: dict[str, int] | None = None) -> None:
    """Learn a tokenizer on the train split (or load one), write the token files of all splits, and print their sizes.

    out: the data set folder. splits: {"train": documents, "val": ...}, each a list of texts, or for a stream a function
    that starts it anew, since the train split is read twice; documents as in bins.write_split. tokenizer: a
    tokenizer.json, or the folder of a published vocabulary, to use instead of learning one of vocab_size.
    words: {split: its published number of words}. After a failure `out` still holds what it held before.
    """
    start = time.perf_counter()
    out = Path(out)
    check_new(out, splits)

    def documents(split: str) -> Iterable:
        given = splits[split]
        return given if isinstance(given, list) else given()

    tok = vocabulary.load(tokenizer) if tokenizer else bpe.train(documents("train"), vocab_size)
    print(f"tokenizer: {tok.vocab_size:,} tokens, {time.perf_counter() - start:.1f} s", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=out) as partial:
        for split in splits:
            tokens = write_split(partial, split, documents(split), tok, (words or {}).get(split, 0))
            counts = [f"{tokens.num_bytes:,} bytes", f"{tokens.num_documents:,} documents"]
            counts += [f"{tokens.num_words:,} words"] if tokens.num_words else []
            print(f"{split}: {len(tokens):,} tokens of {', '.join(counts)} "
                  f"({tokens.num_bytes / len(tokens):.2f} bytes per token)", flush=True)
        tok.save(Path(partial) / "tokenizer.json")
        install(Path(partial), out, [path.name for path in Path(partial).glob("*.bin")])
    print(f"written to {out} in {time.perf_counter() - start:.1f} s")


def check_new(out: Path, splits: Iterable[str], overwrite: bool = True) -> None:
    """Raise UserError where it would replace files that nanoft has not written or, without overwrite, a data set."""
    if not overwrite and any((out / name).exists() for name in ("tokenizer.json", "train.bin", "train_000.bin")):
        raise UserError(f"{out} holds a data set; --out=FOLDER writes another, --overwrite replaces this one, so that "
                        "runs made of it cannot go on")
    check_overwrite(out / "tokenizer.json", (b'{"format":"nanoft',))
    for path in (path for split in splits for path in find_shards(out, split)):
        check_overwrite(path, (MAGIC,))


def install(partial: Path, out: Path, names: Iterable[str]) -> None:
    """Replace the old token files by the new ones of these names, as far as that is not yet done, tokenizer.json last.

    While tokenizer.json is missing, the folder counts as not prepared.
    """
    (out / "tokenizer.json").unlink(missing_ok=True)
    for name in names:
        if (partial / name).exists():
            os.replace(partial / name, out / name)
    for path in (path for split in ("train", "val", "test") for path in find_shards(out, split)):
        if path.name not in names:
            path.unlink()
    os.replace(partial / "tokenizer.json", out / "tokenizer.json")


def find_data(name_or_path: str) -> Path:
    """The folder of a data set: its name under data/, in the current folder or beside nanoft, or a path.

    An installed nanoft keeps it in the user's cache. Raises UserError, with near names, if it is none of these.
    """
    own = Path.cwd() / "data" / name_or_path
    if any((own / name).exists() for name in ("prepare.py", "tokenizer.json", "task.json")):
        return own
    if (DATA / name_or_path).is_dir():
        return copy_to_cache(DATA / name_or_path) if INSTALLED else DATA / name_or_path
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    near = difflib.get_close_matches(name_or_path, data_names(), n=3, cutoff=0.5) or data_names()
    raise UserError(f"data={name_or_path}: no folder {own} and no such path; did you mean {' or '.join(near)}?")


def data_names() -> list[str]:
    """The names of the data sets that come with nanoft, sorted."""
    return sorted(path.parent.name for path in DATA.glob("*/prepare.py"))


def copy_to_cache(folder: Path) -> Path:
    """The data set's folder in the user's cache, with a copy of its prepare.py, which writes beside itself."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nanoft", "data", folder.name)
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"prepare.{os.getpid()}.tmp"  # several processes of one run may come here at once
    shutil.copyfile(folder / "prepare.py", partial)
    os.replace(partial, cache / "prepare.py")
    return cache


def ensure(folder: str | Path, needed: Sequence[str] = ("train.bin", "val.bin", "tokenizer.json")) -> None:
    """Run the folder's prepare.py if one of these files is missing. Raises UserError if there is none, or it fails."""
    folder = Path(folder)

    def missing() -> str:
        return " and ".join(name for name in needed if not (folder / name).exists()
                            and not (name.endswith(".bin") and Tokens.exists(folder, name.removesuffix(".bin"))))

    if not missing():
        return
    script = folder / "prepare.py"
    if missing() == "tokenizer.json" and find_shards(folder, "train", ".+_"):  # llm.c's, which come without one
        gpt2_vocabulary(folder, f"a tokenizer.json in {folder}").save(folder / "tokenizer.json")
        print(f"{folder}: no tokenizer.json beside these shards; GPT-2's is written there", flush=True)
        return
    if not script.exists() and (folder / ".preparing").exists():
        raise UserError(f"{folder}: its preparation was interrupted; give the same command again, which goes on")
    if not script.exists():
        raise UserError(f"{folder}: {missing()} missing, and no prepare.py to make it; prepare the data set first")
    print(f"{folder}: {missing()} missing; running {script}", flush=True)
    if subprocess.run([sys.executable, str(script)], check=False).returncode != 0:
        raise UserError(f"{script} failed (its message stands above); mend that, or run it by hand with --help")
    if missing():
        raise UserError(f"{script} ended without writing {missing()} into {folder}; run it by hand")


def main() -> None:
    """python -m nanoft prepare NAME --key=value: run the prepare.py of a data set."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    usage = f"python -m nanoft prepare NAME --help, where NAME is a folder or one of {', '.join(data_names())}"
    if name in ("-h", "--help"):
        print(usage)
        return
    script = find_data(name) / "prepare.py"
    if not script.exists():
        raise UserError(f"{script}: no such file; {usage}")
    runpy.run_path(str(script), run_name="__main__")
