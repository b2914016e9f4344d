"""The safetensors format: named tensors in a file, described in JSON, mapped into memory, without any code to run.

    8 bytes: N, little-endian | N bytes of JSON, UTF-8, padded with spaces | the tensors, back to back
    {"name": {"dtype": "F32", "shape": [3, 5], "data_offsets": [begin, end]}, "__metadata__": {"format": "pt"}}

Offsets count from the end of the JSON; the tensors fill the rest of the file without gaps. A large model is several
such files and an index, {"weight_map": {name: file}}. Format: github.com/huggingface/safetensors
"""

import json
import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanoft import UserError
from nanoft.files import read_json, write_json, write_whole

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes


class Entry(NamedTuple):
    """A tensor in a file."""
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # its first byte in the file


# ---- reading -----------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> dict[str, Entry]:
    """{name: Entry} of a .safetensors file, or of all shards of an index. Reads no tensor.

    Raises UserError for a file that is incomplete or differs from the format in anything, and for a shard that holds
    other tensors than the index says.
    """
    if not path.name.endswith(".index.json"):
        tensors, _, start = read_header(path)
        return {name: Entry(path, dtype, shape, start + begin) for name, (dtype, shape, begin) in tensors.items()}
    files, entries = read_index(path), {}
    for file in sorted(set(files.values())):
        shard = read_entries(path.with_name(file))
        for name in sorted(shard.keys() ^ {name for name in files if files[name] == file}):
            raise UserError(f"{path} and {file} do not fit: tensor {name!r} is in one of them alone; fetch both again")
        entries |= shard
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The texts by name that a .safetensors file holds beside its tensors. Raises UserError as read_entries does."""
    return read_header(path)[1]


def read_header(path: Path) -> tuple[dict, dict[str, str], int]:
    """What parse_header gives of a .safetensors file, and the byte where the first tensor begins. Raises UserError."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}; at most {LONGEST_HEADER:,}")
            return *parse_header(file.read(length), size - 8 - length), 8 + length
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give another file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch or write it again") from None


def parse_header(header: bytes, size: int) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], int]], dict]:
    """({name: (dtype, shape, begin)}, metadata). size: bytes after the header. Raises ValueError, RecursionError."""
    if not header.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    content = json.loads(header.decode("utf-8"), object_pairs_hook=without_duplicates)
    metadata = content.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise ValueError("its __metadata__ is not texts by name")
    tensors, ends = {}, {}
    for name, entry in content.items():
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} has the dtype {dtype!r}, which is unknown")
        for numbers in (shape, offsets):
            if type(numbers) is not list or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
                raise ValueError(f"tensor {name!r}: {numbers!r:.100} is no list of sizes")
        if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
            raise ValueError(f"tensor {name!r} lies at {offsets}, but there are {size:,} bytes")
        if math.prod(n for n in shape if n) * DTYPES[dtype].itemsize >= 2**63:  # a zero must not hide it
            raise ValueError(f"tensor {name!r} has the impossible shape {shape}")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"tensor {name!r} of {dtype} {shape} has {offsets[1] - offsets[0]:,} bytes")
        tensors[name], ends[name] = (DTYPES[dtype], tuple(shape), offsets[0]), offsets[1]
    expected = 0
    for name in sorted(tensors, key=lambda name: (tensors[name][2], ends[name])):
        if tensors[name][2] != expected:
            raise ValueError(f"tensor {name!r} begins at byte {tensors[name][2]:,}, where {expected:,} is next")
        expected = ends[name]
    if expected != size:
        raise ValueError(f"its tensors end at byte {expected:,} of {size:,}")
    return tensors, metadata


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these (name, value) pairs. Raises ValueError for a name that occurs twice or is not UTF-8."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    for name in content:
        name.encode("utf-8")
    return content


def read_index(path: Path) -> dict[str, str]:
    """{name: file} of an index of shards. Raises UserError."""
    files = read_json(path, {"weight_map": {str: str}})["weight_map"]
    if not all(x == Path(x).name for x in files.values()):
        raise UserError(f"{path} names files that are not beside it; fetch it again")
    return files


def map_tensors(entries: dict[str, Entry]) -> dict[str, torch.Tensor]:
    """{name: tensor} from {name: Entry}. The tensors are views on the mapped files, whose pages are read when used.

    Writing to a tensor changes memory, never the file. A map is freed with the last tensor on it.
    """
    maps, tensors = {}, {}
    for name, (path, dtype, shape, begin) in entries.items():
        if 0 in shape:
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        if path not in maps:
            with open(path, "rb") as file:
                maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        raw = torch.frombuffer(maps[path], dtype=torch.uint8, count=math.prod(shape) * dtype.itemsize, offset=begin)
        if begin % dtype.itemsize:  # only in files whose header was not padded
            raw = raw.clone()
        tensors[name] = raw.view(dtype).view(shape)
    return tensors


# ---- writing -----------------------------------------------------------------------------------------------------


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """{name: tensor} to a file, whole or not at all: the widest dtypes first, then by name, as is usual.

    metadata: texts by name that go with them, of no use to other programs.
    Raises UserError for a dtype or a name that the format does not have.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    # transformers reads no file without this format
    header: dict[str, dict] = {"__metadata__": {"format": "pt"} | (metadata or {})}
    begin = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in NAMES or name == "__metadata__":
            raise UserError(f"{path}: tensor {name} of {tensor.dtype} cannot be written; rename or convert it first")
        end = begin + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that every tensor can be mapped

    def fill(file):
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy())

    write_whole(path, fill)


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], limit: int = 5_000_000_000) -> list[str]:
    """Write model.safetensors, or shards of at most `limit` bytes and their index; returns the names of the files."""
    shards, room = [], 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.dtype.itemsize
        if not shards or size > room:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= size
    files = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        write(folder / file, shard)
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
        files.append("model.safetensors.index.json")
        write_json(folder / files[-1], {"metadata": {"total_size": total}, "weight_map": {
            name: file for file, shard in zip(files, shards) for name in shard}})
    return files
