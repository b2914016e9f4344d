"""Token files: a whole corpus as ids on disk, written as a stream and read through a memory map.

A file is a header of 256 bytes and then the ids, little-endian uint16 (uint32 for a vocabulary above 65,536). Every
document ends with `<|endoftext|>`. A split (train, val, test) is one file, `train.bin`, or shards `train_000.bin`,
`train_001.bin`, ..., which are read as one sequence. Nothing here holds a corpus in memory.

The shards that llm.c and modded-nanogpt publish are read, too: `fineweb_train_000001.bin`, `fineweb_val_000000.bin`,
with a header of 256 int32 (magic, version, tokens) and uint16 ids of GPT-2's vocabulary.

    python -m nanoft bins FILE          # prints what a token file contains
"""

import itertools
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nanoft import UserError
from nanoft.files import available_cores, in_groups, map_ahead, progress_bar
from nanoft.pretokenize import BATCH, cut_safely

# magic, version, bytes per id, shard number, shards, tokens, vocabulary, fingerprint, bytes of text, words, documents,
# CRC-32 of the ids, and of the header up to here; both are 0 in files of an older nanoft, which are not verified
HEADER = struct.Struct("<8sIIIIQQ32sQQQII")
HEADER_BYTES = 256
MAGIC, VERSION = b"nanoft\r\n", 1  # the line end shows a transfer that converted line ends
FIELDS = ("magic", "version", "id_bytes", "shard", "shards", "tokens", "vocab_size", "fingerprint", "bytes", "words",
          "documents", "crc", "header_crc")
LLM_C, LLM_C_BYTES = struct.pack("<2i", 20240520, 1), 4 * 256  # magic and version of llm.c's shards; their header
GPT2 = 50257, "397f690ee01a9ef3083300e728480651"  # vocabulary and fingerprint of the tokenizer they were made with
GROUP = BATCH // 4  # characters of text that a thread encodes at a time
VERIFIED = 2**25  # bytes: a smaller file is verified whenever it is opened, a larger one by `python -m nanoft bins`


def write_split(folder: str | Path, split: str, documents: Iterable, tokenizer, num_words: int = 0,
                shard_tokens: int = 2**30) -> "Tokens":
    """Tokenize documents into the files of a split, on all cores; returns them opened.

    documents: an iterable of texts, each a str or an iterable of strs (its consecutive parts); read as a stream.
    num_words: of the whole split as its publisher counts words, or 0. shard_tokens: the most tokens in a file.
    Every file is written under a temporary name and all are renamed at the end, so a failure leaves an earlier split
    as it was. Raises UserError for an empty split.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder / f".{split}.{os.getpid()}", tokenizer, shard_tokens)
    show = progress_bar(f"tokenizing {split}", unit="MB")
    cores, done = available_cores(), 0
    groups = in_groups(document_parts(documents, tokenizer.pattern), GROUP, lambda part: len(part[0]))
    try:
        with ThreadPoolExecutor(cores) as pool:  # threads are enough: tiktoken's engine releases Python's lock
            for arrays in map_ahead(pool, partial(encode_parts, tokenizer), groups, ahead=2 * cores):
                writer.append(*arrays)
                done += arrays[1]
                show(done / 1e6)
        if not writer.shards:
            raise UserError(f"{folder}: the {split} split has no text; give more text or another split")
        writer.shards[0]["words"] = num_words
        writer.close()
        names = name_shards(writer.stem, writer.shards, tokenizer, folder, split)
        for path in find_shards(folder, split):
            if path.name not in names:  # of an earlier preparation
                path.unlink()
    finally:
        show(None)
        writer.close()
        for path in folder.glob(f"{writer.stem.name}.*"):
            path.unlink()
    return Tokens.open(folder, split)


class ShardWriter:
    """Writes ids to the files stem.0, stem.1, ..., leaving room for their headers, which name_shards() writes.

    shards: the counts in each file's header, so far. Where those of an interrupted preparation are given, the last
    file goes on where they end; what was written after them is cut off.
    """

    def __init__(self, stem: Path, tokenizer, shard_tokens: int, shards: Iterable[dict[str, int]] = ()):
        self.stem, self.shard_tokens, self.dtype = stem, shard_tokens, id_type(tokenizer.vocab_size)
        self.shards = [dict(header) for header in shards]
        self.file: BinaryIO | None = None
        if self.shards:
            self.file = open(f"{stem}.{len(self.shards) - 1}", "r+b")
            end = HEADER_BYTES + self.shards[-1]["tokens"] * self.dtype.itemsize
            if self.file.seek(0, os.SEEK_END) < end:
                raise UserError(f"{self.file.name}: shorter than when the preparation was interrupted; begin it anew")
            self.file.truncate(end)
            self.file.seek(end)

    def append(self, ids: np.ndarray, num_bytes: int, num_documents: int) -> None:
        """Add the ids of a part of the text, its bytes and the number of documents that end in it."""
        while len(ids):
            if self.file is None or self.shards[-1]["tokens"] == self.shard_tokens:
                self.close()
                self.file = open(f"{self.stem}.{len(self.shards)}", "wb")
                self.file.write(bytes(HEADER_BYTES))
                self.shards.append({"tokens": 0, "bytes": 0, "words": 0, "documents": 0, "crc": 0})
            header = self.shards[-1]
            part, ids = np.split(ids, [self.shard_tokens - header["tokens"]])
            data = part.astype(self.dtype).tobytes()
            self.file.write(data)
            header |= {"tokens": header["tokens"] + len(part), "crc": zlib.crc32(data, header["crc"])}
        self.shards[-1]["bytes"] += num_bytes
        self.shards[-1]["documents"] += num_documents

    def sync(self) -> list[dict[str, int]]:
        """Have all ids safely on disk, then give their counts."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.shards

    def close(self) -> None:
        self.sync()
        if self.file is not None:
            self.file.close()
            self.file = None


def name_shards(stem: Path, shards: list[dict[str, int]], tokenizer, folder: Path, split: str) -> list[str]:
    """Write the headers of a ShardWriter's files and give them their names in the folder; returns these.

    Files that have them already are left alone, so it goes on after an interruption.
    """
    names = [f"{split}.bin"] if len(shards) == 1 else [f"{split}_{i:03d}.bin" for i in range(len(shards))]
    left = [i for i in range(len(shards)) if Path(f"{stem}.{i}").exists()]
    fixed = {"magic": MAGIC, "version": VERSION, "id_bytes": id_type(tokenizer.vocab_size).itemsize, "header_crc": 0,
             "shards": len(shards), "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint.encode()}
    for i in left:
        header = fixed | {"shard": i} | shards[i]
        data = HEADER.pack(*[header[name] for name in FIELDS])[:-4]
        with open(f"{stem}.{i}", "r+b") as file:
            file.write(data + struct.pack("<I", zlib.crc32(data)))
            file.flush()
            os.fsync(file.fileno())
    for i in left:
        os.replace(f"{stem}.{i}", folder / names[i])
    return names


def encode_parts(tokenizer, parts: Iterable[tuple[str, bool]]) -> tuple[np.ndarray, int, int]:
    """[(part of a document, is it the last part)] -> their ids, bytes of text, and the documents that end in them."""
    end = np.array([tokenizer.special["<|endoftext|>"]], dtype=np.uint32)
    arrays = [array for text, is_last in parts for array in (tokenizer.encode_to_numpy(text), end)[:1 + is_last]]
    num_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text, _ in parts)
    return np.concatenate(arrays or [end[:0]]), num_bytes, sum(is_last for _, is_last in parts)


def document_parts(documents: Iterable, pattern: str) -> Iterator[tuple[str, bool]]:
    """(part of a document, is it the last part) of about GROUP characters; empty documents are left out."""
    for document in documents:
        before = ""
        for part in cut_safely(document, pattern, GROUP):
            if before:
                yield before, False
            before = part
        if before:
            yield before, True


def id_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def read_header(path: str | Path) -> dict:
    """The header of a token file, {field: value}. Raises UserError for another file, or one that was cut short."""
    again = "prepare the data set again"
    try:
        with open(path, "rb") as file:
            data = file.read(2**16)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    if data.startswith(LLM_C) and len(data) >= LLM_C_BYTES:  # header_crc: of the first ids, too: it tells files apart
        header = dict.fromkeys(FIELDS, 0) | {
            "magic": "llm.c", "version": 1, "id_bytes": 2, "tokens": struct.unpack_from("<I", data, 8)[0],
            "vocab_size": GPT2[0], "fingerprint": GPT2[1], "header_crc": zlib.crc32(data)}
    elif len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        raise UserError(f"{path}: not a token file of nanoft, nor one of llm.c in GPT-2's vocabulary; {again}")
    else:
        header = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True))
        if header["version"] != VERSION:
            raise UserError(f"{path}: version {header['version']} of the format, where {VERSION} is read; {again}")
        if (header["id_bytes"] != id_type(header["vocab_size"]).itemsize or header["shard"] >= header["shards"]
                or header["crc"] | header["header_crc"] and header["header_crc"] != zlib.crc32(data[:HEADER.size - 4])):
            raise UserError(f"{path}: its header is damaged; {again}")
        header["magic"], header["fingerprint"] = MAGIC.decode(), header["fingerprint"].decode("ascii", "replace")
    expected = header_bytes(header) + header["tokens"] * header["id_bytes"]
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes long where its header says {expected:,}; it was cut short: {again}")
    return header


def header_bytes(header: dict) -> int:
    """Where the ids begin in a token file with this header."""
    return LLM_C_BYTES if header["magic"] == "llm.c" else HEADER_BYTES


def verify(path: str | Path) -> bool:
    """Compare a token file's ids with its header's checksum; False if it has none. Raises UserError if it differs."""
    header, crc = read_header(path), 0
    expected = header["crc"]
    with open(path, "rb") as file:
        file.seek(header_bytes(header))
        while data := file.read(2**22):
            crc = zlib.crc32(data, crc)
    if expected and crc != expected:
        raise UserError(f"{path}: its ids are not those that were written (a checksum differs); the file is damaged, "
                        "prepare the data set again")
    return bool(expected)


def find_shards(folder: str | Path, split: str, prefix: str = "") -> list[Path]:
    """The files of a split in order; empty if there are none. prefix: of their names, as a regular expression."""
    pattern = re.compile(prefix + re.escape(split) + r"(_\d{3,})?\.bin")
    paths = [path for path in Path(folder).glob(f"*{split}*.bin") if pattern.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


class Tokens:
    """The ids of a split, read as one sequence whatever its number of files.

    len(): number of ids. vocab_size, fingerprint: of the tokenizer. num_bytes, num_words, num_documents: of the text.
    """

    def __init__(self, paths: list[Path]):
        self.headers = headers = [read_header(path) for path in paths]
        first = headers[0]
        for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
            place = (0, 0) if header["magic"] == "llm.c" else (i, len(paths))  # those do not say how many there are
            if (header["shard"], header["shards"]) != place or header["fingerprint"] != first["fingerprint"]:
                raise UserError(f"{path}: part {header['shard'] + 1} of {header['shards']} stands among {len(paths)} "
                                "files that do not belong together; prepare the data set again")
            if os.path.getsize(path) <= VERIFIED:
                verify(path)
        self.paths, self.files = paths, [open(path, "rb") for path in paths]  # noqa: SIM115  (a new preparation of the
        # data replaces the files: these stay the ones that are read)
        self.dtype = id_type(first["vocab_size"])
        self.vocab_size, self.fingerprint = first["vocab_size"], first["fingerprint"]
        self.num_bytes = sum(header["bytes"] for header in headers)
        self.num_words = sum(header["words"] for header in headers)
        self.num_documents = sum(header["documents"] for header in headers)
        self.maps, self.calls = {}, 0
        self.begins = np.array([0, *itertools.accumulate(header["tokens"] for header in headers)])  # first id of each

    @classmethod
    def open(cls, folder: str | Path, split: str) -> "Tokens":
        """Raises UserError if the split is missing, cut short or mixed from several preparations."""
        paths = find_shards(folder, split) or find_shards(folder, split, ".+_")
        if not paths:
            raise UserError(f"{Path(folder) / split}.bin: no such file; prepare the data set first")
        if len(names := sorted({path.name.rpartition(split)[0] for path in paths})) > 1:
            raise UserError(f"{folder}: {' and '.join(f'{name}{split}' for name in names)} are shards of several data "
                            "sets, which do not belong together; give each a folder of its own")
        return cls(paths)

    @staticmethod
    def exists(folder: str | Path, split: str) -> bool:
        return bool(find_shards(folder, split) or find_shards(folder, split, ".+_"))

    def __len__(self):
        return int(self.begins[-1])

    def documents(self, end_id: int, stop: int, size: int = 2**24) -> np.ndarray:
        """Where each document before `stop` starts and ends, without its end_id; empty ones are left out: (n, 2).

        The last one may be cut. size: ids that are read at once.
        """
        ends = [np.flatnonzero(self.read(i, min(i + size, stop)) == end_id) + i for i in range(0, stop, size)]
        bounds = np.concatenate(([-1], *ends, [stop]))
        spans = np.stack((bounds[:-1] + 1, bounds[1:]), axis=1)
        return spans[spans[:, 1] > spans[:, 0]]

    def count_bytes(self, tokenizer) -> None:
        """Find num_bytes by the tokens' own bytes where the headers do not tell it."""
        for start in range(0, 0 if self.num_bytes else len(self), 2**20):
            ids = self.read(start, min(start + 2**20, len(self)))
            self.num_bytes += int(tokenizer.token_lengths[ids[~tokenizer.is_special[ids]]].sum())

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from start up to stop, as int64 (stop - start,)."""
        return self.gather([start], stop - start)[0]

    def map(self, shard: int) -> np.ndarray:
        """The memory map of a shard, renewed now and then: an old map keeps every page that it has read in memory."""
        if self.calls % 1000 == 0:
            self.maps = {}
        self.calls += 1
        if shard not in self.maps:
            self.maps[shard] = np.memmap(self.files[shard], dtype=self.dtype, mode="r",
                                         offset=header_bytes(self.headers[shard])).view(np.ndarray)
        return self.maps[shard]

    def gather(self, starts, length: int) -> np.ndarray:
        """Windows of ids: starts (B,) -> int64 (B, length). Every window must lie inside the sequence.

        Raises UserError for an id beyond the vocabulary, which only a damaged file has.
        """
        starts = np.asarray(starts, dtype=np.int64)
        out = np.empty((len(starts), length), dtype=np.int64)
        first = np.searchsorted(self.begins, starts, side="right") - 1
        last = np.searchsorted(self.begins, starts + length, side="left") - 1
        for shard in range(len(self.paths)):
            rows = np.flatnonzero((first <= shard) & (last >= shard))
            if not len(rows):
                continue
            ids = self.map(shard)
            for row in rows:
                offset = starts[row] - self.begins[shard]  # negative if the window begins in an earlier shard
                part = ids[max(offset, 0) : max(offset + length, 0)]
                begin = max(-offset, 0)
                out[row, begin : begin + len(part)] = part
        if out.size and out.max() >= self.vocab_size:
            raise UserError(f"{self.paths[0]}: id {out.max()} is beyond the vocabulary of {self.vocab_size:,}; the "
                            "file is damaged, prepare the data set again")
        return out
