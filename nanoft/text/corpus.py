"""A corpus of many files into shards of tokens, on all cores, going on after an interruption: data/fineweb and others.

What is done stands in OUT/.preparing: the shards, and state.json, written every few seconds once the ids that it counts
are safely on disk. The same command goes on there, and the result is that of a preparation that was never interrupted,
byte for byte: ids that came later are cut off, and documents are encoded in the same groups.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from nanoft import UserError, bpe, config, files
from nanoft.bins import GROUP, ShardWriter, encode_parts, name_shards
from nanoft.files import available_cores, in_groups, map_ahead, progress_bar, read_blocks, read_json, write_json
from nanoft.pretokenize import check_text
from nanoft.runlog import lock, unlock
from nanoft.text import prepare, vocabulary

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
LEARN = 250_000_000  # characters to learn a vocabulary from
SAVE_SECONDS = 5.0  # between two writings of state.json


def check(cfg) -> list[str]:
    """What is wrong with the options, as sentences."""
    problems = config.at_least(cfg, 1, "shard_tokens") + config.at_least(cfg, 0, "files", "vocab_size")
    if not 0 < cfg.val_fraction < 1:
        problems.append(f"val_fraction={cfg.val_fraction} is not between 0 and 1; give a fraction such as 0.001")
    return problems


def prepare_corpus(cfg, addresses: dict[str, str], folder: Path) -> None:
    """Write the token files of a corpus, going on where an earlier call stopped. Raises UserError.

    cfg: source, files, text_key, tokenizer, vocab_size, shard_tokens, val_fraction, out, overwrite. addresses: of the
    published files, {name: address}, as find_raw takes them. folder: where they are kept and, without out, the result.
    """
    out, names = Path(cfg.out or folder), find_files(cfg, addresses)
    work = out / ".preparing"

    def fetch(name: str) -> Path:
        return Path(name) if cfg.source else prepare.find_raw(name, addresses[name], folder)

    plan = {"files": names} | {name: getattr(cfg, name) for name in (
        "text_key", "tokenizer", "vocab_size", "shard_tokens", "val_fraction")}
    state: dict = find_state(work, plan, cfg.overwrite)
    if not state:
        prepare.check_new(out, ("train", "val"), cfg.overwrite)
    work.mkdir(parents=True, exist_ok=True)
    lock(work, "stop it")
    if not state:
        (work / "state.json").unlink(missing_ok=True)
        choose_tokenizer(cfg, map(fetch, names), folder).save(work / "tokenizer.json")
        none = {"val": [], "train": []}
        state = {"plan": plan, "file": 0, "size": 0, "documents": 0, "shards": none, "before": none}
    tokenizer = vocabulary.load(work / "tokenizer.json")
    start, n_before = time.monotonic(), total(state, "tokens")
    for i in range(state["file"], len(names)):
        path = fetch(names[i])
        add_file(path, f"{path.name}, {i + 1} of {len(names)}", cfg, tokenizer, state, work)
        done = total(state, "tokens")
        print(f"{path.name}, {i + 1} of {len(names)}: {done:,} tokens so far, "
              f"{(done - n_before) / (time.monotonic() - start):,.0f} a second", flush=True)
    files = []
    for split, shards in state["shards"].items():
        if not shards:
            raise UserError(f"{out}: the {split} split has no text; give more text, or another --val_fraction")
        files += name_shards(work / split, shards, tokenizer, work, split)
        print(f"{split}: {total(state, 'tokens', split):,} tokens of {total(state, 'bytes', split):,} bytes, "
              f"{total(state, 'documents', split):,} documents, in {len(shards):,} files")
    prepare.install(work, out, files)
    unlock(work)
    shutil.rmtree(work)
    print(f"written to {out}")


def total(state: dict, count: str, *splits: str) -> int:
    """The sum of one count (tokens, bytes, documents) over the headers of all shards of these splits, or of all."""
    return sum(header[count] for split in splits or state["shards"] for header in state["shards"][split])


def find_state(work: Path, plan: dict, overwrite: bool) -> dict:
    """The state of an interrupted preparation with these options, or {}. Raises UserError for other options."""
    path = work / "state.json"
    if not path.exists() or not (work / "tokenizer.json").exists():
        return {}
    state = read_json(path)
    other = [f"{key}={value}" for key, value in state["plan"].items() if value != plan[key] and key != "files"]
    other += ["other files"] * (state["plan"]["files"] != plan["files"])
    if not other:
        print(f"{work}: going on after {state['file']:,} whole files and {total(state, 'tokens'):,} tokens", flush=True)
        return state
    if overwrite:
        return {}
    raise UserError(f"{work} holds an interrupted preparation with {', '.join(other)}; give the same options to go on, "
                    "or --overwrite to begin anew")


def choose_tokenizer(cfg, paths: Iterable[Path], folder: Path):
    """The tokenizer that is given, one learned from the beginning of the text, or GPT-2's."""
    if cfg.tokenizer or not cfg.vocab_size:
        return vocabulary.load(cfg.tokenizer) if cfg.tokenizer else prepare.gpt2_vocabulary(folder)

    def beginning():
        left = LEARN
        for path in paths:
            for text in read_texts(path, cfg.text_key)[1]:
                yield text
                left -= len(text)
                if left <= 0:
                    return

    return bpe.train(beginning(), cfg.vocab_size)


def find_files(cfg, addresses: dict[str, str]) -> list[str]:
    """The source files in order: those of --source, or else the published ones' names; the first --files, if not 0."""
    given = [Path(name).resolve() for name in cfg.source.split(",") if name.strip()]
    inside = [sorted(path.iterdir()) if path.is_dir() else [path] for path in given]
    names = [str(path) for path in itertools.chain(*inside) if path.name.endswith(ENDINGS) and path.is_file()]
    if cfg.source and not names:
        raise UserError(f"--source={cfg.source}: no file there that ends in {' or '.join(ENDINGS)}; give such files or "
                        "folders of them, separated by commas")
    return (names or list(addresses))[:cfg.files or None]


# ---- one file --------------------------------------------------------------------------------------------------------


def add_file(path: Path, label: str, cfg, tokenizer, state: dict, work: Path) -> None:
    """Append the ids of a source file, but not of the documents that `state` counts as done; bring it up to date."""
    size = path.stat().st_size
    if state["size"] != size:  # it is not begun, or has changed since: then it is read again from its beginning
        state |= {"size": size, "documents": 0, "shards": state["before"]}
    writers = {split: ShardWriter(work / split, tokenizer, cfg.shard_tokens, shards)
               for split, shards in state["shards"].items()}

    def save():
        state["shards"] = {split: writer.sync() for split, writer in writers.items()}
        write_json(work / "state.json", state)

    number, texts = read_texts(path, cfg.text_key)
    show = progress_bar(label, number, "documents")
    texts = itertools.islice(texts, state["documents"], None)
    cores, saved = available_cores(), time.monotonic()
    try:
        with ThreadPoolExecutor(cores) as pool:
            encode = partial(encode_group, tokenizer, cfg.val_fraction)
            for number, arrays in map_ahead(pool, encode, in_groups(texts, GROUP), ahead=2 * cores):
                for split in arrays:
                    writers[split].append(*arrays[split])
                state["documents"] += number
                show(state["documents"])
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        state |= {"file": state["file"] + 1, "size": 0, "documents": 0}
        save()
        state["before"] = state["shards"]
        save()
    finally:
        show(None)
        for writer in writers.values():
            writer.close()


def encode_group(tokenizer, val_fraction: float, texts: list[str]) -> tuple[int, dict[str, tuple]]:
    """(number of texts, {split: what encode_parts makes of its texts}).

    A text is for validation by its hash, so the same document always is, whatever the files and their order.
    """
    parts = {"val": [], "train": []}
    for text in filter(None, texts):
        parts["val" if files.hash_fraction(text) < val_fraction else "train"].append((text, True))
    return len(texts), {split: encode_parts(tokenizer, parts[split]) for split in parts if parts[split]}


def read_texts(path: Path, text_key: str) -> tuple[int, Iterator[str]]:
    """(the number of documents of a source file, 0 where it is not known; the documents as a stream)."""
    if path.suffix != ".parquet":
        return 0, read_jsonl(path, text_key)
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: parquet is read by pyarrow, which is missing; pip install pyarrow, or give the text "
                        "as .jsonl.gz") from None
    try:
        file = ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole parquet file ({error}); fetch it again") from None
    if text_key not in file.schema_arrow.names:
        raise UserError(f"{path}: no column {text_key!r} among {', '.join(file.schema_arrow.names)}; give --text_key")
    return file.metadata.num_rows, read_column(file, path, text_key)


def read_column(file, path: Path, text_key: str) -> Iterator[str]:
    """The texts of a column of pyarrow's ParquetFile. Raises UserError naming the row."""
    number = 0
    try:
        for batch in file.iter_batches(1000, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str):
                    raise UserError(f"{path}: row {number} has no text under {text_key!r}; mend it, or give --text_key")
                yield text
    except UserError:
        raise
    except (OSError, ValueError) as error:  # as pyarrow says that a page is damaged
        raise UserError(f"{path}: damaged after row {number} ({error}); fetch it again") from None


def read_jsonl(path: Path, text_key: str, encoding: str = "") -> Iterator[str]:
    """The texts of a .jsonl file, read as a stream. Raises UserError naming the line."""
    number, rest = 0, ""
    for block in itertools.chain(read_blocks(path, encoding=encoding), ["\n"]):
        *lines, rest = (rest + block).split("\n")
        for line in lines:
            number += 1
            if not line.strip():
                continue
            row = None
            try:
                row = json.loads(line)
                text = row[text_key]
                check_text(text)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                keys = f"; it has {', '.join(row)[:200]}" if row and isinstance(row, dict) else ""
                raise UserError(f"{path}: line {number} is no JSON object with a text under {text_key!r}{keys} "
                                f"({type(error).__name__}: {error}); mend it, or give --text_key") from None
            yield text
