"""The container: what is written is read, here and by the official package; what is malformed is refused."""

import json
import math
import os
import random

import pytest
import torch

from nanoft import UserError
from nanoft.published import safetensors

FUZZED = int(os.environ.get("NANOFT_FUZZ", 1000))  # NANOFT_FUZZ=10000 pytest tests/test_safetensors.py -k fuzzed


def read_all(path):
    """{name: tensor} of a file, or of all shards of an index."""
    return safetensors.map_tensors(safetensors.read_entries(path))


def tensor_of(dtype, *shape):
    """Random bytes as a tensor; a bool's are 0 and 1."""
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


def every_dtype():
    tensors = {}
    for name, dtype in safetensors.DTYPES.items():
        tensors |= {f"{name}.matrix": tensor_of(dtype, 3, 5), f"{name}.scalar": tensor_of(dtype, 1).view(()),
                    f"{name}.empty": torch.empty((4, 0, 2), dtype=dtype)}
    return tensors


def same(a, b):
    """Equal to the bit, NaN or not."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape
        and torch.equal(a[k].contiguous().view(-1).view(torch.uint8), b[k].contiguous().view(-1).view(torch.uint8))
        for k in a)


def file_of(header, data=b"", length=None):
    """The bytes of a file with this header, a text or what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_what_is_written_is_read(tmp_path):
    tensors = every_dtype() | {"a view": torch.arange(12.0).view(3, 4).mT, "名": torch.ones(1)}
    safetensors.write(tmp_path / "x.safetensors", tensors)
    assert same(read_all(tmp_path / "x.safetensors"), tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") % 8 == 0
    safetensors.write(tmp_path / "x.safetensors", {})
    assert read_all(tmp_path / "x.safetensors") == {}


def test_the_official_package_reads_what_is_written_and_writes_what_is_read(tmp_path):
    official = pytest.importorskip("safetensors.torch")
    tensors = every_dtype()
    safetensors.write(tmp_path / "ours.safetensors", tensors)
    assert same(official.load_file(tmp_path / "ours.safetensors"), tensors)
    official.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert same(read_all(tmp_path / "theirs.safetensors"), tensors)


def test_a_mapped_tensor_can_be_written_to_and_the_file_stays(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"a": torch.zeros(4), "b": torch.ones(4)})
    before = path.read_bytes()
    read = read_all(path)
    read["a"] += 3
    assert read["a"].tolist() == [3, 3, 3, 3] and read["b"].tolist() == [1, 1, 1, 1]
    safetensors.write(path, read)  # over the file that is mapped
    assert read["a"].tolist() == [3, 3, 3, 3] and before != path.read_bytes()
    assert read_all(path)["a"].tolist() == [3, 3, 3, 3]


def test_tensors_where_no_number_can_be_mapped(tmp_path):
    """A header may have any length, so that what follows it is not aligned."""
    for spaces in range(8):
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + b" " * spaces
        (tmp_path / "x.safetensors").write_bytes(file_of(header, torch.tensor([1.5, -2]).numpy().tobytes()))
        tensor = read_all(tmp_path / "x.safetensors")["a"]
        assert tensor.tolist() == [1.5, -2] and tensor.data_ptr() % 4 == 0


def test_shards(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)}
    files = safetensors.write_folder(tmp_path, tensors, limit=80)
    assert len(files) == 5 and files[-1] == "model.safetensors.index.json"
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"] == {"total_size": 280} and set(index["weight_map"].values()) == set(files[:-1])
    assert same(read_all(tmp_path / files[-1]), tensors)
    assert safetensors.write_folder(tmp_path, {"big": torch.zeros(100)}, limit=80) == ["model.safetensors"]


@pytest.mark.parametrize("change, why", [
    (lambda index: index.pop("weight_map"), "weight_map"),
    (lambda index: index["weight_map"].update(t0="../x.safetensors"), "not beside it"),
    (lambda index: index["weight_map"].update(t0=3), "weight_map"),
    (lambda index: index["weight_map"].update(t0="none.safetensors", t1="none.safetensors"), "none.* cannot be read"),
    (lambda index: index["weight_map"].pop("t0"), "'t0' is in one of them alone"),
    (lambda index: index["weight_map"].update(new=index["weight_map"]["t1"]), "'new' is in one of them alone"),
    (lambda index: index["weight_map"].update(t0=index["weight_map"]["t6"]), "do not fit"),
])
def test_an_index_that_does_not_fit_is_refused(change, why, tmp_path):
    safetensors.write_folder(tmp_path, {f"t{i}": torch.zeros(10) for i in range(7)}, limit=80)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=why):
        read_all(path)


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MALFORMED = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "no header": file_of(b""),
    "a header longer than the file": file_of({"a": entry()}, bytes(4), length=200),
    "a header of 2^63 bytes": file_of({"a": entry()}, bytes(4), length=2**63),
    "no JSON": file_of(b'{"a": '),
    "no object": file_of(b"[]"),
    "a space first": file_of(b" {}"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "half a character": file_of({"\ud800": entry()}, bytes(4)),
    "deep": file_of(DEEP),
    "a long number": file_of(b'{"a": ' + b"1" * 10_000 + b"}"),
    "a name twice": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "a key twice": file_of(b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "a list for an entry": file_of({"a": []}),
    "no dtype": file_of({"a": {"shape": [0], "data_offsets": [0, 0]}}),
    "one thing more": file_of({"a": entry() | {"more": 1}}, bytes(4)),
    "an unknown dtype": file_of({"a": entry("F4")}, bytes(4)),
    "a dtype that is a list": file_of({"a": entry(["U8"])}, bytes(4)),
    "metadata that is no text": file_of({"__metadata__": {"format": 1}}),
    "metadata that is a list": file_of({"__metadata__": ["pt"]}),
    "a negative size": file_of({"a": entry(shape=(-2, -2))}, bytes(4)),
    "a size that is no whole number": file_of({"a": entry(shape=(4.0,))}, bytes(4)),
    "a size that is a truth": file_of({"a": entry(shape=(True, 4))}, bytes(4)),
    "a shape too large": file_of({"a": entry(shape=(2**62, 2**62))}, bytes(4)),
    "a zero that hides it": file_of({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}),
    "a shape that wraps around to 4": file_of({"a": entry(shape=(2**32, 2**32, 1, 4))}, bytes(4)),
    "three offsets": file_of({"a": entry(offsets=(0, 4, 4))}, bytes(4)),
    "offsets that go back": file_of({"a": entry(offsets=(4, 0))}, bytes(4)),
    "offsets behind the end": file_of({"a": entry(offsets=(0, 5), shape=(5,))}, bytes(4)),
    "fewer bytes than the shape wants": file_of({"a": entry("F32")}, bytes(4)),
    "a hole in front": file_of({"a": entry(offsets=(1, 5))}, bytes(5)),
    "a hole between": file_of({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
    "an overlap": file_of({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
    "the same bytes twice": file_of({"a": entry(), "b": entry()}, bytes(4)),
    "bytes of nobody": file_of({"a": entry()}, bytes(5)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_refused(what, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(MALFORMED[what])
    with pytest.raises(UserError, match="is no whole safetensors file"):
        read_all(path)


def test_a_header_over_100_mb_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{}")
        file.truncate(100_000_100)  # a hole, which takes no room on the disk
    with pytest.raises(UserError, match="at most 100,000,000"):
        read_all(path)


def test_what_is_no_file_or_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(UserError, match="cannot be read"):
            read_all(path)
    for tensors in ({"a": torch.zeros(2, dtype=torch.complex128)}, {"__metadata__": torch.zeros(2)}):
        with pytest.raises(UserError, match="cannot be written"):
            safetensors.write(tmp_path / "x.safetensors", tensors)
    assert not list(tmp_path.iterdir())


def fuzzed(data, rng):
    """The bytes of a file with bits flipped, cut, with bytes put in, or with another length or another number in it."""
    data, header = bytearray(data), int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 2, 5))):
        what = rng.randrange(6)
        at = rng.randrange(8 + header) if len(data) > 8 else 0
        if what == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif what == 1:
            del data[rng.randrange(len(data) + 1):]
        elif what == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif what == 3:
            lengths = (0, 1, header + 1, abs(header - 1), len(data), 10**8, 2**63, rng.getrandbits(64))
            data[:8] = rng.choice(lengths).to_bytes(8, "little")
        elif what == 4:  # a number of the header
            places = [i for i, byte in enumerate(data[8:8 + header], 8) if 48 <= byte <= 57] or [0]
            at = rng.choice(places)
            data[at:at + 1] = str(rng.choice((0, 9, 2**31, 2**63, -1, 1e9, 10**30))).encode()
        else:  # a part of the header twice
            end = min(len(data), at + rng.randrange(40))
            data[at:at] = data[at:end]
    return bytes(data)


@pytest.mark.slow
def test_fuzzed_files_end_in_a_sentence_or_in_tensors(tmp_path):
    """Never in another exception, nor in more memory than the file is long."""
    rng, path, refused = random.Random(1), tmp_path / "x.safetensors", 0
    torch.manual_seed(1)
    tensors = {name: x for name, x in every_dtype().items() if "F" in name or "I8" in name}
    safetensors.write(path, tensors)
    whole = path.read_bytes()
    for _ in range(FUZZED):
        data = fuzzed(whole, rng)
        path.write_bytes(data)
        try:
            found = read_all(path)
            assert sum(x.numel() * x.dtype.itemsize for x in found.values()) <= len(data)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > FUZZED * 0.8
