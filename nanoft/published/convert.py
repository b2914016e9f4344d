"""Published models in and out, without the transformers package.

    python -m nanoft pretrained FOLDER --out=out/bert-base                  # a folder as published becomes a run folder
    python -m nanoft pretrained out/x --export=FOLDER                       # and back: a folder for others
    python -m nanoft pretrained out/x --export=x.gguf                       # one file for llama.cpp
    python -m nanoft pretrained out/x --export=FOLDER/model.onnx            # an encoder, for onnxruntime
    python -m nanoft pretrained out/x --export=x.safetensors                # one file that nanoft opens

A folder is written in the published form (layouts.py) of GPT-2, BERT or RoBERTa, also pretrained further or
fine-tuned, or of Qwen3, to which a causal model with activation=swiglu and n_gram=1 is equal. A file of any model holds
its weights, tokenizer and description: sample.py --checkpoint=x.safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from nanoft import UserError, checkpoint, config, files
from nanoft.bpe import Tokenizer
from nanoft.model import ModelConfig
from nanoft.pretokenize import PATTERNS
from nanoft.published import gguf, layouts, onnx, safetensors
from nanoft.published.source import open_model
from nanoft.tasks.features import WHOLE_TEXT
from nanoft.text import vocabulary
from nanoft.text.wordpiece import WordPiece


@dataclass
class Options:
    out: str = ""  # a run folder to write: best.pt, config.json, tokenizer.json
    export: str = ""  # a folder to write for others, or a file: .gguf, .onnx, or .safetensors for nanoft
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"  # of exported weights; int8 for .gguf (Q8_0)
    pair: bool = False  # the published classifier takes two texts, which nothing in its folder says


def main():
    cfg, (source,) = config.load_tool(Options, "pretrained FOLDER --out=out/bert-base (or --export=FOLDER)", most=1)
    if not (cfg.out or cfg.export):
        raise UserError("say where to go: python -m nanoft pretrained FOLDER --out=out/bert-base (or --export=FOLDER)")
    for place in filter(None, (cfg.out, cfg.export)):
        if Path(place).exists() and (not Path(place).is_dir() or any(Path(place).iterdir())):
            raise UserError(f"{place} is there already; give a new folder or file")
    target = Path(cfg.export)
    if cfg.dtype != "float32" and target.suffix == ".onnx" or cfg.dtype == "int8" and target.suffix != ".gguf":
        raise UserError(f"dtype={cfg.dtype} is not for {cfg.export or cfg.out}: int8 is for a .gguf, an .onnx is "
                        "always float32; give another dtype")
    if target.suffix == ".onnx" and target.parent.exists() and any(target.parent.iterdir()):
        raise UserError(f"{target.parent} is not empty, and the tokenizer's files go there too; give a new folder")
    state, path, tokenizer = open_model(source)
    if cfg.pair and state.get("task", {}).get("kind") == "classify":
        state["task"]["kind"] = "pair"
    if cfg.out:
        write_run(state, tokenizer, cfg.out)
    if target.suffix == ".safetensors":
        write_bundle(state, tokenizer, cfg.export, getattr(torch, cfg.dtype))
    elif target.suffix == ".gguf":
        content, weights, _ = published(state, tokenizer, path)
        gguf.write(target, content, weights, tokenizer, cfg.dtype)
        print(f"{target}: {content['architectures'][0]} in {cfg.dtype}, with its tokenizer, for llama.cpp")
    elif target.suffix == ".onnx":
        write_onnx(state, tokenizer, target)
    elif cfg.export:
        export(state, tokenizer, cfg.export, getattr(torch, cfg.dtype))


def write_run(state: dict, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a run folder: best.pt, config.json and tokenizer.json. state: the dictionary of a checkpoint."""
    folder = Path(folder)
    tokenizer.save(folder / "tokenizer.json")
    files.write_json(folder / "config.json", state["config"])
    checkpoint.save(folder / "best.pt", state)
    print(f"{folder}: best.pt, config.json, tokenizer.json")


def write_bundle(state: dict, tokenizer: Tokenizer, path: str | Path, dtype=torch.float32) -> None:
    """Write any model as one file: its weights by nanoft's names, and as metadata its description and tokenizer."""
    cfg = ModelConfig.from_saved(state["model_config"], path)
    weights = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state["model"].items()
               if name != "head.weight" or not cfg.tie_head}
    kept = {name: state[name] for name in ("model_config", "task", "config", "fingerprints") if name in state}
    safetensors.write(Path(path), weights, {"nanoft": json.dumps(kept | {"model_type": "nanoft"}),
                                            "tokenizer": json.dumps(tokenizer.content, ensure_ascii=False)})
    print(f"{path}: {len(weights)} tensors of {dtype}, the tokenizer and the description, in one file for nanoft")


def write_onnx(state: dict, tokenizer: Tokenizer, path: Path) -> None:
    """Write an encoder as ONNX, and its tokenizer's files beside it."""
    data, inputs = onnx.converted(state)
    files.write_whole(path, lambda file: file.write(data))
    names = write_vocabulary(tokenizer, path.parent, {"model_type": "roberta" if tokenizer.separators > 1 else "onnx"})
    task = state.get("task", {})
    said = "; each text begins with a space" * task.get("leading_space", False)
    if "token_type_ids" in inputs and (task.get("match_types") or task.get("linear")):
        said += "; token_type_ids are 2 higher at tokens that both texts have"
    if known := [name for name in ("thresholds", "transitions") if name in task]:
        said += f"; nanoft's answers also follow the {' and '.join(known)} in its metadata"
    print(f"{path}: takes {', '.join(inputs)}, int64 (batch, length up to {state['model_config']['block_size']}), "
          f"gives logits{said}\n    beside it {', '.join(names)}")


def export(state: dict, tokenizer: Tokenizer, folder: str | Path, dtype=torch.float32,
           limit: int = 5_000_000_000) -> None:
    """Write config.json, vocabulary and weights in shards of at most `limit` bytes. Raises UserError as published()."""
    folder = Path(folder)
    content, weights, left = published(state, tokenizer, folder)
    names = write_vocabulary(tokenizer, folder, content)
    files.write_json(folder / "config.json", content | {"torch_dtype": str(dtype).removeprefix("torch.")})
    names += ["config.json", *safetensors.write_folder(folder, {k: x.to(dtype) for k, x in weights.items()}, limit)]
    print(f"{folder}: {content['architectures'][0]}, {len(weights)} tensors; left out: {layouts.summary(left)}\n"
          f"    {', '.join(names)}")


def published(state: dict, tokenizer: Tokenizer, path) -> tuple[dict, dict[str, torch.Tensor], list[str]]:
    """The content of config.json, {published name: tensor}, and the names of nanoft's tensors that have no place there.

    path: for messages. Raises UserError for a model that has no published form.
    """
    cfg, task = ModelConfig.from_saved(state["model_config"], path), state.get("task")
    family = find_family(cfg, task, tokenizer)
    if family is None:
        how = ("--activation=swiglu --n_gram=1 (or --arch=gpt2), without a task or for --kind=generate" if cfg.causal
               else "--arch=bert, fine-tuned with --pool=cls and --linear=false")
        raise UserError(f"{path}: no program but nanoft has this model; one trained with {how} goes out as a folder, "
                        "and any model as one file for nanoft: --export=FILE.safetensors")
    content = published_config(family, cfg, task, tokenizer)
    return content, *published_weights(content, cfg, task, state["model"])


def find_family(cfg: ModelConfig, task: dict | None, tokenizer: Tokenizer) -> str | None:
    """gpt2, bert, roberta or qwen3, if the model is exactly one of them, else None."""
    task = task or {}
    kind = task.get("kind")
    if cfg.n_gram > 1 or cfg.head_dim or task.get("linear"):
        return None
    if cfg.causal and (kind not in (None, "generate") or cfg.post_norm):
        return None
    if cfg.causal and cfg.position == "rope":
        return "qwen3" if (cfg.norm == "rmsnorm" and cfg.qk_norm and cfg.activation == "swiglu" and not cfg.bias
                           and not cfg.n_types) else None
    if not (cfg.position == "learned" and cfg.norm == "layernorm" and cfg.bias and cfg.activation.startswith("gelu")
            and not cfg.qk_norm and cfg.n_kv_head in (0, cfg.n_head)):
        return None
    if cfg.causal:
        return None if cfg.embed_norm or cfg.n_types else "gpt2"
    if not (cfg.embed_norm and cfg.post_norm) or (kind in WHOLE_TEXT and not (task["pool"] == "cls" and cfg.n_types)):
        return None
    return "roberta" if "<s>" in tokenizer.special and cfg.activation == "gelu" else "bert"


def published_weights(content: dict, cfg: ModelConfig, task: dict | None, own: dict[str, torch.Tensor]
                      ) -> tuple[dict[str, torch.Tensor], list[str]]:
    """({published name: tensor}, the names of nanoft's tensors that the published form does not have).

    content: of config.json; own: {nanoft's name: tensor}.
    """
    family = content["model_type"]
    if family == "qwen3":
        own = layouts.to_qwen3(own, cfg)
    tied = ModelConfig(**vars(cfg) | {"tie_head": content["tie_word_embeddings"]})
    table = layouts.tensor_names(layouts.layout(family, tied, task), own)
    if family == "roberta" and not task:  # its masked language model has no pooler
        table = {name: parts for name, parts in table.items() if not parts[0].startswith("pooler.")}
    weights = {}
    for name, parts in table.items():
        tensor = torch.cat([own[part] for part in parts])
        if parts[0] in ("trunk.tokens.weight", "head.weight", "head_bias"):
            tensor = tensor[:cfg.vocab_size]  # without the padding
        if task and task["kind"] == "regress" and parts[0].startswith("task_head."):  # from standard scores to labels
            tensor = tensor * task["deviation"] + task["mean"] * name.endswith("bias")
        if task and parts[0] == "task_head.bias" and (least := task.get("thresholds")):  # others know none
            x = torch.tensor([least.get(label, 0.0) for label in task["labels"]])
            tensor = tensor - (x.logit() if task.get("multi_label") else x)
        weights[name] = tensor.mT.contiguous() if layouts.is_transposed(name) else tensor.contiguous()
    if not cfg.causal:
        trunk = layouts.NAMES[family][0]
        positions = f"{trunk}embeddings.position_embeddings.weight"
        weights[positions] = F.pad(weights[positions], (0, 0, layouts.skipped(content), 0))
        if not cfg.n_types:
            weights[f"{trunk}embeddings.token_type_embeddings.weight"] = torch.zeros(2, cfg.n_embd)
        if not (task or cfg.tie_head):  # the bias of an untied head has two names
            head = "cls.predictions" if family == "bert" else "lm_head"
            weights[f"{head}.decoder.bias"] = weights[f"{head}.bias"].clone()
    used = {part for parts in table.values() for part in parts} | {"head.weight"}
    return weights, [name for name in own if name not in used] + ["transitions"] * ("transitions" in (task or {}))


def published_config(family: str, cfg: ModelConfig, task: dict | None, tokenizer: Tokenizer) -> dict:
    """The content of config.json."""
    values = vars(cfg) | {"n_hidden": cfg.n_hidden or 4 * cfg.n_embd, "n_kv_head": cfg.n_kv_head or cfg.n_head,
                          "n_types": cfg.n_types or 2}
    values["activation"] = {"gelu": "gelu", "gelu_tanh": "gelu_new", "swiglu": "silu"}[cfg.activation]
    content: dict = {"model_type": family, "vocab_size": cfg.vocab_size, "initializer_range": 0.02} | {
        name: values[own] for name, own in layouts.FIELDS[family].items()}
    # the norm that is in Qwen3's table is not in the head
    content["tie_word_embeddings"] = cfg.tie_head and not (family == "qwen3" and cfg.embed_norm)
    content["pad_token_id"] = tokenizer.special.get("<|pad|>", None if cfg.causal else 0)
    if cfg.causal:
        end = tokenizer.special["<|endoftext|>"]
        extra = {"embd_pdrop": cfg.dropout, "attn_pdrop": cfg.dropout} if family == "gpt2" else {
            "head_dim": cfg.n_embd // cfg.n_head, "rope_theta": 10000.0}
        name = {"gpt2": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM"}[family]
        return {"architectures": [name]} | content | extra | {"bos_token_id": end, "eos_token_id": end}
    content |= {"attention_probs_dropout_prob": cfg.dropout}
    content["max_position_embeddings"] += layouts.skipped(content)
    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    architecture = "ForMaskedLM" if family == "roberta" or not cfg.n_types else "ForPreTraining"
    if task:
        architecture = next(end for end, kind in layouts.KINDS.items()
                            if kind == {"pair": "classify", "regress": "classify"}.get(task["kind"], task["kind"]))
        labels = task.get("labels", ["LABEL_0"] if task["kind"] == "regress" else ["LABEL_0", "LABEL_1"])
        content |= {"id2label": {str(i): label for i, label in enumerate(labels)},
                    "label2id": {label: i for i, label in enumerate(labels)},
                    "classifier_dropout": task["head_dropout"]}
        if architecture == "ForSequenceClassification":
            content["problem_type"] = ("regression" if task["kind"] == "regress" else "multi_label_classification"
                                       if task.get("multi_label") else "single_label_classification")
    return {"architectures": [name + architecture]} | content


def write_vocabulary(tokenizer: Tokenizer, folder: Path, content: dict) -> list[str]:
    """Write BERT's or GPT-2's vocabulary files, else tokenizer.json; returns their names. content: config.json's."""
    own = tokenizer.content
    if isinstance(tokenizer, WordPiece):
        lines = "".join(f"{token}\n" for token in own["tokens"])
        files.write_whole(folder / "vocab.txt", lambda file: file.write(lines.encode("utf-8")))
        options = {"tokenizer_class": "BertTokenizer", "do_lower_case": own["lowercase"],
                   "strip_accents": own["strip_accents"], "tokenize_chinese_chars": own["split_chinese"]}
        files.write_json(folder / "tokenizer_config.json", options)
        return ["vocab.txt", "tokenizer_config.json"]
    if tokenizer.pattern == PATTERNS["gpt2"] and content["model_type"] in ("gpt2", "roberta"):
        ids, pairs = vocabulary.byte_level_files(tokenizer)
        lines = "".join(f"{line}\n" for line in ("#version: 0.2", *pairs))
        files.write_json(folder / "vocab.json", ids)
        files.write_whole(folder / "merges.txt", lambda file: file.write(lines.encode("utf-8")))
        return ["vocab.json", "merges.txt"]
    if tokenizer.pattern not in PATTERNS.values():
        print(f"{folder}: the split pattern is your own, which other programs may read in another way; compare the ids")
    is_causal = "bos_token_id" in content
    files.write_json(folder / "tokenizer.json", vocabulary.hugging_face(tokenizer, framed=not is_causal))
    tokens = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"} if is_causal else {
        name: f"<|{name}|>" for name in ("cls", "sep", "mask")}
    tokens |= {"pad": "<|pad|>"}
    inputs = ["input_ids", *["token_type_ids"] * (not is_causal), "attention_mask"]
    files.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_input_names": inputs} | {
        f"{name}_token": text for name, text in tokens.items() if text in own["special_tokens"]})
    return ["tokenizer.json", "tokenizer_config.json"]
