"""Published models in and out, without the transformers package.

    python -m nanoft pretrained FOLDER --out=out/bert-base       # a folder as published becomes a run folder
    python -m nanoft pretrained out/bert-base --export=FOLDER    # and back: a folder for others

GPT-2, BERT and RoBERTa, also pretrained further or fine-tuned, are written in their published form (layouts.py). Any
other model of nanoft is written as safetensors and JSON, too, but with nanoft's own names.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanoft import UserError, checkpoint, config, files
from nanoft.bpe import Tokenizer
from nanoft.model import ModelConfig
from nanoft.pretokenize import PATTERNS
from nanoft.published import layouts, safetensors
from nanoft.published.source import open_checkpoint
from nanoft.text import vocabulary
from nanoft.text.wordpiece import WordPiece


@dataclass
class Options:
    out: str = ""  # a run folder to write: best.pt, config.json, tokenizer.json
    export: str = ""  # a folder to write for others: config.json, model.safetensors, the vocabulary
    pair: bool = False  # the published classifier takes two texts, which nothing in its folder says


def main():
    cfg, (source,) = config.load_tool(Options, "pretrained FOLDER --out=out/bert-base (or --export=FOLDER)", most=1)
    if not (cfg.out or cfg.export):
        raise UserError("say where to go: python -m nanoft pretrained FOLDER --out=out/bert-base (or --export=FOLDER)")
    for folder in filter(None, (cfg.out, cfg.export)):
        if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
            raise UserError(f"{folder} is there already; give a new folder")
    state, path = open_checkpoint(source)
    tokenizer = vocabulary.load(path.parent)
    if cfg.pair and state.get("task", {}).get("kind") == "classify":
        state["task"]["kind"] = "pair"
    if cfg.out:
        write_run(state, tokenizer, cfg.out)
    if cfg.export:
        export(state, tokenizer, cfg.export)


def write_run(state: dict, tokenizer: Tokenizer | WordPiece, folder: str | Path) -> None:
    """Write a run folder: best.pt, config.json and tokenizer.json. state: the dictionary of a checkpoint."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    files.write_json(folder / "config.json", state["config"])
    checkpoint.save(folder / "best.pt", state)
    print(f"{folder}: best.pt, config.json, tokenizer.json")


def export(state: dict, tokenizer: Tokenizer | WordPiece, folder: str | Path, limit: int = 5_000_000_000) -> None:
    """Write a folder as published: config.json, vocabulary, model.safetensors in shards of at most `limit` bytes.

    state: the dictionary of a checkpoint.
    """
    folder = Path(folder)
    cfg, task = ModelConfig.from_saved(state["model_config"], folder), state.get("task")
    family = find_family(cfg, task, tokenizer)
    if family:
        content = published_config(family, cfg, task, tokenizer)
        weights, left = published_weights(content, cfg, task, state["model"])
    else:
        content = {"model_type": "nanoft", "model_config": vars(cfg)} | ({"task": task} if task else {})
        weights, left = {name: x for name, x in state["model"].items() if name != "head.weight" or not cfg.tie_head}, []
    folder.mkdir(parents=True, exist_ok=True)
    names = write_vocabulary(tokenizer, folder, as_published=family is not None)
    files.write_json(folder / "config.json", content)
    names += ["config.json", *safetensors.write_folder(folder, weights, limit)]
    kind = content["architectures"][0] if family else "a model of nanoft's own form, which nanoft alone reads"
    print(f"{folder}: {kind}, {len(weights)} tensors; left out: {layouts.summary(left)}\n    {', '.join(names)}")


def find_family(cfg: ModelConfig, task: dict | None, tokenizer: Tokenizer | WordPiece) -> str | None:
    """gpt2, bert or roberta, if the model is exactly one of them, else None."""
    task = task or {}
    kind = task.get("kind")
    if not (cfg.position == "learned" and cfg.norm == "layernorm" and cfg.bias and cfg.activation.startswith("gelu")
            and not cfg.qk_norm and cfg.n_gram == 1 and cfg.n_kv_head in (0, cfg.n_head)):
        return None
    if cfg.causal:
        return "gpt2" if not cfg.embed_norm and not cfg.post_norm and kind in (None, "generate") else None
    pooled = kind in ("classify", "pair", "regress")
    if not (cfg.embed_norm and cfg.post_norm) or (pooled and not (task["pool"] == "cls" and cfg.n_types)):
        return None
    return "roberta" if "<s>" in tokenizer.special and cfg.activation == "gelu" else "bert"


def published_weights(content: dict, cfg: ModelConfig, task: dict | None, own: dict[str, torch.Tensor]
                      ) -> tuple[dict[str, torch.Tensor], list[str]]:
    """({published name: tensor}, the names of nanoft's tensors that the published form does not have).

    content: of config.json; own: {nanoft's name: tensor}.
    """
    family = content["model_type"]
    table = layouts.tensor_names(layouts.layout(family, cfg, None if family == "gpt2" else task), own)
    if family == "roberta" and not task:  # its masked language model has no pooler
        table = {name: parts for name, parts in table.items() if not parts[0].startswith("pooler.")}
    weights = {}
    for name, parts in table.items():
        tensor = torch.cat([own[part] for part in parts])
        if parts[0] in ("trunk.tokens.weight", "head.weight", "head_bias"):
            tensor = tensor[:cfg.vocab_size]  # without the padding
        if task and task["kind"] == "regress" and parts[0].startswith("task_head."):  # from standard scores to labels
            tensor = tensor * task["deviation"] + task["mean"] * name.endswith("bias")
        weights[name] = tensor.mT.contiguous() if layouts.is_transposed(name) else tensor.contiguous()
    if family != "gpt2":
        trunk = layouts.TRUNK[family]
        positions = f"{trunk}embeddings.position_embeddings.weight"
        weights[positions] = F.pad(weights[positions], (0, 0, layouts.skipped(content), 0))
        if not cfg.n_types:
            weights[f"{trunk}embeddings.token_type_embeddings.weight"] = torch.zeros(2, cfg.n_embd)
        if not (task or cfg.tie_head):  # the bias of an untied head has two names
            head = "cls.predictions" if family == "bert" else "lm_head"
            weights[f"{head}.decoder.bias"] = weights[f"{head}.bias"].clone()
    used = {part for parts in table.values() for part in parts} | {"head.weight"}
    return weights, [name for name in own if name not in used]


def published_config(family: str, cfg: ModelConfig, task: dict | None, tokenizer: Tokenizer | WordPiece) -> dict:
    """The content of config.json."""
    act = "gelu_new" if cfg.activation == "gelu_tanh" else "gelu"
    common = {"model_type": family, "vocab_size": cfg.vocab_size, "tie_word_embeddings": cfg.tie_head,
              "initializer_range": 0.02, "torch_dtype": "float32"}
    if family == "gpt2":
        end = tokenizer.special["<|endoftext|>"]
        return {"architectures": ["GPT2LMHeadModel"]} | common | {
            "n_layer": cfg.n_layer, "n_head": cfg.n_head, "n_embd": cfg.n_embd, "n_positions": cfg.block_size,
            "n_inner": cfg.n_hidden or None, "activation_function": act, "layer_norm_epsilon": cfg.norm_eps,
            "resid_pdrop": cfg.dropout, "embd_pdrop": cfg.dropout, "attn_pdrop": cfg.dropout,
            "bos_token_id": end, "eos_token_id": end}
    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    architecture = "ForMaskedLM" if family == "roberta" or not cfg.n_types else "ForPreTraining"
    content = common | {
        "num_hidden_layers": cfg.n_layer, "num_attention_heads": cfg.n_head, "hidden_size": cfg.n_embd,
        "intermediate_size": cfg.n_hidden or 4 * cfg.n_embd, "hidden_act": act, "layer_norm_eps": cfg.norm_eps,
        "type_vocab_size": cfg.n_types or 2,
        "hidden_dropout_prob": cfg.dropout, "attention_probs_dropout_prob": cfg.dropout,
        "pad_token_id": tokenizer.special.get("<|pad|>", 0)}
    content["max_position_embeddings"] = cfg.block_size + layouts.skipped(content)
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


def write_vocabulary(tokenizer: Tokenizer | WordPiece, folder: Path, as_published: bool) -> list[str]:
    """Write the tokenizer's files, as published if it has such a form, else nanoft's; returns their names."""
    content = tokenizer.content
    if as_published and isinstance(tokenizer, WordPiece):
        lines = "".join(f"{token}\n" for token in content["tokens"])
        files.write_whole(folder / "vocab.txt", lambda file: file.write(lines.encode("utf-8")))
        options = {"tokenizer_class": "BertTokenizer", "do_lower_case": content["lowercase"],
                   "strip_accents": content["strip_accents"], "tokenize_chinese_chars": content["split_chinese"]}
        files.write_json(folder / "tokenizer_config.json", options)
        return ["vocab.txt", "tokenizer_config.json"]
    if as_published and isinstance(tokenizer, Tokenizer) and tokenizer.pattern == PATTERNS["gpt2"]:
        ids, pairs = vocabulary.byte_level_files(tokenizer)
        lines = "".join(f"{line}\n" for line in ("#version: 0.2", *pairs))
        files.write_json(folder / "vocab.json", ids)
        files.write_whole(folder / "merges.txt", lambda file: file.write(lines.encode("utf-8")))
        return ["vocab.json", "merges.txt"]
    tokenizer.save(folder / "tokenizer.json")
    return ["tokenizer.json"]
