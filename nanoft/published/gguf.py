"""A GPT-2 or Qwen3 in GGUF, the one file that llama.cpp and the programs around it read.

    "GGUF", version, number of tensors, number of fields | each field: name, type, value
    each tensor: name, shape, type, offset | padding | the tensors, each padded to 32 bytes

Numbers are little-endian; a text is its length in bytes, then UTF-8; a shape begins with the innermost size, a row's
length. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
import struct
from pathlib import Path

import numpy as np
import torch

from nanoft import UserError
from nanoft.bpe import Tokenizer
from nanoft.files import write_whole
from nanoft.pretokenize import PATTERNS
from nanoft.published import layouts
from nanoft.quantize import rounded
from nanoft.text import vocabulary

SPLITS = {PATTERNS["gpt2"]: "gpt-2", PATTERNS["gpt4"]: "llama-bpe"}  # llama.cpp's names of the patterns that are equal
TYPES = {"float32": (0, 0), "float16": (1, 1), "int8": (8, 7), "bfloat16": (30, 32)}  # of a tensor, of a whole file
BLOCK = 32  # numbers that share a scale in int8 (Q8_0)
# {nanoft's modules, as in layouts.NAMES: GGUF's}
TENSORS = {"tokens": "token_embd", "positions": "position_embd", "norm_out": "output_norm", "head": "output",
           "norm1": "attn_norm", "attn.q attn.k attn.v": "attn_qkv", "attn.q": "attn_q", "attn.k": "attn_k",
           "attn.v": "attn_v", "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "attn.proj": "attn_output",
           "norm2": "ffn_norm", "mlp.gate": "ffn_gate", "mlp.fc": "ffn_up", "mlp.up": "ffn_up", "mlp.proj": "ffn_down"}
FIELDS = {"n_layer": "block_count", "n_head": "attention.head_count", "n_kv_head": "attention.head_count_kv",
          "n_embd": "embedding_length", "block_size": "context_length", "n_hidden": "feed_forward_length"}


def write(path: Path, content: dict, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, dtype: str) -> None:
    """Write a model as published: content of config.json, {published name: tensor}. dtype: of the matrices.

    Raises UserError for what llama.cpp does not have: an encoder, another activation, another split pattern.
    """
    family = content["model_type"]
    if family not in ("gpt2", "qwen3") or content.get("activation_function", "gelu_new") != "gelu_new":
        raise UserError(f"{path}: GGUF is for causal models here, GPT-2's with gelu_tanh; give --export=FOLDER")
    if tokenizer.pattern not in SPLITS:
        raise UserError(f"{path}: llama.cpp does not have this tokenizer's split pattern, only those named "
                        f"{' and '.join(PATTERNS)}; give --export=FOLDER")
    fields = model_fields(content) | tokenizer_fields(tokenizer, content["eos_token_id"])
    fields |= {"general.file_type": TYPES[dtype][1], "general.quantization_version": 2}
    named = {gguf_name(name, family): x.mT if layouts.is_transposed(name) else x for name, x in weights.items()}
    # vectors and positions in float32, what does not fill int8's blocks in float16
    kinds = {name: "float32" if x.dim() == 1 or name.startswith("position_embd") else
             "float16" if dtype == "int8" and x.size(1) % BLOCK else dtype for name, x in named.items()}
    head, offset = b"GGUF" + struct.pack("<IQQ", 3, len(named), len(fields)), 0
    head += b"".join(packed(name) + packed(value, typed=True) for name, value in fields.items())
    for name, x in named.items():
        sizes = x.shape[::-1]
        head += packed(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TYPES[kinds[name]][0], offset)
        offset += padded(len(encoded(x[:1], kinds[name])) * len(x))

    def fill(file):
        file.write(head.ljust(padded(len(head)), b"\0"))
        for name, x in named.items():
            data = encoded(x, kinds[name])
            file.write(data.ljust(padded(len(data)), b"\0"))

    write_whole(path, fill)


def model_fields(content: dict) -> dict:
    """{GGUF's name: value} that describe the model in a config.json."""
    family = content["model_type"]
    own = {field: content[name] for name, field in layouts.FIELDS[family].items()}
    fields = {f"{family}.{name}": own[field] for field, name in FIELDS.items() if field in own}
    eps = "attention.layer_norm_epsilon" if family == "gpt2" else "attention.layer_norm_rms_epsilon"
    if family == "qwen3":
        fields |= {f"{family}.attention.{name}_length": content["head_dim"] for name in ("key", "value")}
        fields[f"{family}.rope.freq_base"] = content["rope_theta"]
    return {"general.architecture": family} | fields | {f"{family}.{eps}": float(own["norm_eps"])}


def tokenizer_fields(tokenizer: Tokenizer, end: int) -> dict:
    """{GGUF's name: value} that describe the tokenizer; end: the id of <|endoftext|>."""
    ids, merges = vocabulary.byte_level_files(tokenizer)
    tokens = sorted(ids, key=ids.__getitem__)
    fields = {"model": "gpt2", "pre": SPLITS[tokenizer.pattern], "tokens": tokens, "merges": merges,
              "token_type": [3 if special else 1 for special in tokenizer.is_special],  # 3: control, 1: normal
              "bos_token_id": end, "eos_token_id": end, "add_bos_token": False}
    if "<|pad|>" in tokenizer.special:
        fields["padding_token_id"] = tokenizer.special["<|pad|>"]
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def gguf_name(name: str, family: str) -> str:
    """transformer.h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight"""
    trunk, blocks, outside, block = layouts.NAMES[family]
    module, _, end = name.removeprefix(trunk).rpartition(".")
    if found := re.fullmatch(rf"{blocks}(\d+)\.(.+)", module):
        return f"blk.{found[1]}.{TENSORS[block[found[2]]]}.{end}"
    return f"{TENSORS['head' if module == 'lm_head' else outside[module]]}.{end}"


def encoded(x: torch.Tensor, dtype: str) -> bytes:
    """The bytes of a tensor. int8 is Q8_0: for 32 numbers their largest size / 127 in float16, then 32 signed bytes."""
    if dtype != "int8":
        return x.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().tobytes()
    whole, scale = rounded(x.reshape(-1, BLOCK))  # (rows, columns) -> (rows * columns / 32, 32)
    return np.hstack((scale.half()[:, None].view(torch.uint8).numpy(), whole.view(torch.uint8).numpy())).tobytes()


def padded(size: int) -> int:
    return -(-size // 32) * 32


def packed(value, typed: bool = False) -> bytes:
    """A text, number or list as GGUF has it; typed: with the number of its type before it."""
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5  # texts, or int32
        body = b"".join(map(packed, value)) if kind == 8 else np.array(value, dtype="<i4").tobytes()
        return struct.pack("<IIQ", 9, kind, len(value)) + body
    if isinstance(value, str):
        kind, body = 8, struct.pack("<Q", len(value.encode())) + value.encode()
    else:
        kind, form = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}[type(value)]
        body = struct.pack(form, value)
    return struct.pack("<I", kind) * typed + body
