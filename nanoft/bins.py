"""Token files: a whole corpus as ids on disk, written as a stream and read through a memory map.

A file is a header of 256 bytes and then the ids, little-endian uint16 (uint32 for a vocabulary above 65,536). Every
document ends with `<|endoftext|>`. A split (train, val, test) is one file, `train.bin`, or shards `train_000.bin`,
`train_001.bin`, ..., which are read as one sequence. Nothing here holds a corpus in memory.

    python -m nanoft bins FILE          # prints what a token file contains
"""

import itertools
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nanoft import UserError
from nanoft.files import available_cores, fingerprint, map_ahead, progress_bar
from nanoft.pretokenize import BATCH, cut_safely

# magic, version, bytes per id, shard number, shards, tokens, vocabulary, fingerprint, bytes of text, words, documents,
# CRC-32 of the ids, and of the header up to here; both are 0 in files of an older nanoft, which are not verified
HEADER = struct.Struct("<8sIIIIQQ32sQQQII")
HEADER_BYTES = 256
MAGIC, VERSION = b"nanoft\r\n", 1  # the line end shows a transfer that converted line ends
FIELDS = ("magic", "version", "id_bytes", "shard", "shards", "tokens", "vocab_size", "fingerprint", "bytes", "words",
          "documents", "crc", "header_crc")
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
    shards: list[dict[str, int]] = []  # the counts in each file's header
    stem = f".{split}.{os.getpid()}"
    try:
        write_shards(folder / stem, shards, encode_documents(documents, tokenizer), tokenizer, shard_tokens, split)
        if not shards:
            raise UserError(f"{folder}: the {split} split has no text; give more text or another split")
        shards[0]["words"] = num_words
        for i, header in enumerate(shards):
            with open(f"{folder / stem}.{i}", "r+b") as file:
                file.write(pack_header(header, i, len(shards), tokenizer))
                file.flush()
                os.fsync(file.fileno())
        names = [f"{split}.bin"] if len(shards) == 1 else [f"{split}_{i:03d}.bin" for i in range(len(shards))]
        stale = [path for path in find_shards(folder, split) if path.name not in names]
        for i, name in enumerate(names):
            os.replace(f"{folder / stem}.{i}", folder / name)
        for path in stale:
            path.unlink()
    finally:
        for path in folder.glob(f"{stem}.*"):
            path.unlink()
    return Tokens.open(folder, split)


def write_shards(stem: Path, shards: list[dict[str, int]], arrays, tokenizer, shard_tokens: int, split: str) -> None:
    """Write the ids to files stem.0, stem.1, ..., leaving room for headers; append each file's counts to shards."""
    show = progress_bar(f"tokenizing {split}", unit="MB")
    total, file = 0, None
    try:
        for ids, num_bytes, num_documents in arrays:
            while len(ids):
                if file is None or shards[-1]["tokens"] == shard_tokens:
                    if file is not None:
                        file.close()
                    file = open(f"{stem}.{len(shards)}", "wb")  # noqa: SIM115  (closed below, whichever it is)
                    file.write(bytes(HEADER_BYTES))
                    shards.append({"tokens": 0, "bytes": 0, "words": 0, "documents": 0, "crc": 0})
                part = ids[: shard_tokens - shards[-1]["tokens"]]
                data = part.astype(id_type(tokenizer.vocab_size)).tobytes()
                file.write(data)
                shards[-1]["tokens"] += len(part)
                shards[-1]["crc"] = zlib.crc32(data, shards[-1]["crc"])
                ids = ids[len(part) :]
            shards[-1]["bytes"] += num_bytes
            shards[-1]["documents"] += num_documents
            total += num_bytes
            show(total / 1e6)
    finally:
        show(None)
        if file is not None:
            file.close()


def encode_documents(documents: Iterable, tokenizer) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode on all cores, in order: yields (ids of a quarter of a million characters, their bytes, documents ended).

    Threads are enough: tiktoken's engine releases Python's lock while it encodes.
    """
    end = np.array([tokenizer.special["<|endoftext|>"]], dtype=np.uint32)

    def encode(parts):
        arrays = []
        for text, is_last in parts:
            arrays.append(tokenizer.encode_to_numpy(text))
            if is_last:
                arrays.append(end)
        num_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text, _ in parts)
        return np.concatenate(arrays), num_bytes, sum(is_last for _, is_last in parts)

    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        yield from map_ahead(pool, encode, document_batches(documents, tokenizer.pattern), ahead=2 * cores)


def document_batches(documents: Iterable, pattern: str, size: int = BATCH // 4) -> Iterator[list[tuple[str, bool]]]:
    """Lists of (part of a document, is it the last part), of about `size` characters; empty documents are left out."""
    batch, length = [], 0
    for document in documents:
        parts = cut_safely(document, pattern, size)
        part = next(parts, None)
        while part is not None:
            following = next(parts, None)
            batch.append((part, following is None))
            length += len(part)
            if length >= size:
                yield batch
                batch, length = [], 0
            part = following
    if batch:
        yield batch


def id_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def pack_header(header: dict[str, int], shard: int, shards: int, tokenizer) -> bytes:
    fixed = {"magic": MAGIC, "version": VERSION, "id_bytes": id_type(tokenizer.vocab_size).itemsize, "shard": shard,
             "shards": shards, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint.encode()}
    values = fixed | header | {"header_crc": 0}
    data = HEADER.pack(*[values[name] for name in FIELDS])[:-4]
    return (data + struct.pack("<I", zlib.crc32(data))).ljust(HEADER_BYTES, b"\0")


def read_header(path: str | Path) -> dict:
    """The header of a token file, {field: value}. Raises UserError for another file, or one that was cut short."""
    again = "prepare the data set again"
    try:
        with open(path, "rb") as file:
            data = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        raise UserError(f"{path}: not a token file of nanoft; {again}")
    header = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True))
    if header["version"] != VERSION:
        raise UserError(f"{path}: version {header['version']} of the format, where {VERSION} is read; {again}")
    if (header["id_bytes"] != id_type(header["vocab_size"]).itemsize or header["shard"] >= header["shards"]
            or header["crc"] | header["header_crc"] and header["header_crc"] != zlib.crc32(data[:HEADER.size - 4])):
        raise UserError(f"{path}: its header is damaged; {again}")
    expected = HEADER_BYTES + header["tokens"] * header["id_bytes"]
    if size != expected:
        raise UserError(f"{path}: {size:,} bytes long where its header says {expected:,}; it was cut short: {again}")
    header["magic"], header["fingerprint"] = MAGIC.decode(), header["fingerprint"].decode("ascii", "replace")
    return header


def verify(path: str | Path) -> bool:
    """Compare a token file's ids with the checksum in its header; False if it has none. Raises UserError if it differs.
    """
    expected, crc = read_header(path)["crc"], 0
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        while data := file.read(2**22):
            crc = zlib.crc32(data, crc)
    if expected and crc != expected:
        raise UserError(f"{path}: its ids are not those that were written (a checksum differs); the file is damaged, "
                        "prepare the data set again")
    return bool(expected)


def find_shards(folder: str | Path, split: str) -> list[Path]:
    """The files of a split in order; empty if there are none."""
    pattern = re.compile(re.escape(split) + r"(_\d{3,})?\.bin")
    paths = [path for path in Path(folder).glob(f"{split}*.bin") if pattern.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


class Tokens:
    """The ids of a split, read as one sequence whatever its number of files.

    len(): number of ids. vocab_size, fingerprint: of the tokenizer. num_bytes, num_words, num_documents: of the text.
    """

    def __init__(self, paths: list[Path]):
        headers = [read_header(path) for path in paths]
        first = headers[0]
        for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
            if header["shard"] != i or header["shards"] != len(paths) or header["fingerprint"] != first["fingerprint"]:
                raise UserError(f"{path}: part {header['shard'] + 1} of {header['shards']} stands among {len(paths)} "
                                "files that do not belong together; prepare the data set again")
            if os.path.getsize(path) <= VERIFIED:
                verify(path)
        self.paths, self.files = paths, [open(path, "rb") for path in paths]  # noqa: SIM115  (a new preparation of the
        # data replaces the files: these stay the ones that are read)
        self.headers = headers
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
        paths = find_shards(folder, split)
        if not paths:
            raise UserError(f"{Path(folder) / split}.bin: no such file; prepare the data set first")
        return cls(paths)

    @staticmethod
    def exists(folder: str | Path, split: str) -> bool:
        return bool(find_shards(folder, split))

    def __len__(self):
        return int(self.begins[-1])

    @property
    def identity(self) -> str:
        """A fingerprint of the ids, by the headers alone."""
        return fingerprint(self.headers)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from start up to stop, as int64 (stop - start,)."""
        return self.gather([start], stop - start)[0]

    def map(self, shard: int) -> np.ndarray:
        """The memory map of a shard, renewed now and then: an old map keeps every page that it has read in memory."""
        if self.calls % 1000 == 0:
            self.maps = {}
        self.calls += 1
        if shard not in self.maps:
            self.maps[shard] = np.memmap(self.files[shard], dtype=self.dtype, mode="r", offset=HEADER_BYTES).view(
                np.ndarray)
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
