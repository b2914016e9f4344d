"""What a token file contains: its header, and its first text if tokenizer.json lies beside it.

    python -m nanoft bins data/wikitext/train.bin
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoft import config
from nanoft.bins import header_bytes, id_type, read_header, verify
from nanoft.text import vocabulary


def describe(path: str) -> str:
    """What a token file contains, as text. Raises UserError for another file."""
    header = read_header(path)
    words = f"{header['words']:,} words, " if header["words"] else ""
    lines = [f"{path}: {header['tokens']:,} ids of {header['id_bytes']} bytes, vocabulary {header['vocab_size']:,}",
             f"part {header['shard'] + 1} of {header['shards'] or 'some (a file of llm.c)'}; "
             f"tokenizer {header['fingerprint']}",
             f"text: {header['bytes']:,} bytes, {words}{header['documents']:,} documents; "
             f"{header['bytes'] / max(header['tokens'], 1):.2f} bytes per token"]
    lines.append("checksum: right" if verify(path) else "checksum: none, an older nanoft or llm.c made the file")
    first = np.fromfile(path, id_type(header["vocab_size"]), min(64, header["tokens"]), offset=header_bytes(header))
    lines.append(f"first ids: {' '.join(map(str, first[:16].tolist()))} ...")
    beside = Path(path).parent / "tokenizer.json"
    if beside.exists():
        tokenizer = vocabulary.load(beside)
        if tokenizer.fingerprint == header["fingerprint"]:
            lines.append(f"first text: {tokenizer.decode(first.tolist())!r}")
        else:
            lines.append(f"{beside} is another tokenizer ({tokenizer.fingerprint})")
    return "\n".join(lines)


@dataclass
class Options:
    """None but --help."""


def main():
    _, paths = config.load_tool(Options, "bins FILE", most=1)
    print(describe(paths[0]))
