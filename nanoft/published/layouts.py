"""Published GPT-2, BERT and RoBERTa weights as nanoft's: the names of their tensors, and the checkpoint made of them.

A published folder holds config.json, and model.safetensors or pytorch_model.bin or shards of either. nanoft reads
GPT-2 (Radford et al. 2019), BERT (arXiv:1810.04805) with its pooler and heads, RoBERTa (arXiv:1907.11692),
sentence-transformers' models of these layouts (arXiv:1908.10084), and nanoft's own models in Qwen3's layout
(arXiv:2505.09388); ViT is in vit.py. The published names are those of the transformers package. convert.py goes the
other way by the same tables.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from nanoft import UserError
from nanoft.files import difference, read_json
from nanoft.model import CLASSIC, ModelConfig, check_model, make_model
from nanoft.published import safetensors, vit
from nanoft.tasks.examples import METRICS
from nanoft.tasks.heads import TaskModel

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "score.")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "silu": "swiglu"}
FRESH = ("transform.", "norm.", "head_bias", "pooler.", "next.")  # heads that may be missing, and are then new
CONFIG = {f"{name}?": form for form, names in {  # of config.json, for files.difference
    int: "n_layer n_head n_embd n_positions n_ctx vocab_size num_hidden_layers num_attention_heads hidden_size "
         "intermediate_size max_position_embeddings type_vocab_size num_labels num_key_value_heads",
    float: "resid_pdrop layer_norm_epsilon layer_norm_eps hidden_dropout_prob rms_norm_eps", str: "model_type",
    bool: "tie_word_embeddings", (int, None): "n_inner pad_token_id", (str, None): "problem_type"
    }.items() for name in names.split()} | {
    "architectures?": ([str], None), "id2label?": ({str: str}, None), "model_config?": dict, "task?": dict}
EPS = torch.finfo(torch.float32).eps  # that of F.rms_norm without an eps
KINDS = {"ForSequenceClassification": "classify", "ForTokenClassification": "tag", "ForQuestionAnswering": "answer"}

# Of each family: the prefix of the trunk's names and of a block's; then {published module: nanoft's modules, which lie
# side by side in it}, outside the blocks and in each block.
NAMES: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {
    "gpt2": ("transformer.", "h.", {"wte": "tokens", "wpe": "positions", "ln_f": "norm_out"}, {
        "ln_1": "norm1", "attn.c_attn": "attn.q attn.k attn.v", "attn.c_proj": "attn.proj",
        "ln_2": "norm2", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}),
    "bert": ("bert.", "encoder.layer.", {
        "embeddings.word_embeddings": "tokens", "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types", "embeddings.LayerNorm": "norm_in"}, {
        "attention.self.query": "attn.q", "attention.self.key": "attn.k", "attention.self.value": "attn.v",
        "attention.output.dense": "attn.proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc", "output.dense": "mlp.proj", "output.LayerNorm": "norm2"}),
    "qwen3": ("model.", "layers.", {"embed_tokens": "tokens", "norm": "norm_out"}, {
        "input_layernorm": "norm1", "self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v", "self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm",
        "self_attn.o_proj": "attn.proj", "post_attention_layernorm": "norm2", "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.proj"}),
}
NAMES["roberta"] = ("roberta.", *NAMES["bert"][1:])
SHARED = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
          "max_position_embeddings": "block_size", "intermediate_size": "n_hidden", "hidden_act": "activation"}
FIELDS = {  # of each family: {name in config.json: name in ModelConfig}; SHARED are those of bert and qwen3
    "gpt2": {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "n_positions": "block_size",
             "n_inner": "n_hidden", "activation_function": "activation", "layer_norm_epsilon": "norm_eps",
             "resid_pdrop": "dropout"},
    "bert": SHARED | {"layer_norm_eps": "norm_eps", "hidden_dropout_prob": "dropout", "type_vocab_size": "n_types"},
    "qwen3": SHARED | {"rms_norm_eps": "norm_eps", "num_key_value_heads": "n_kv_head"},
}
FIELDS["roberta"] = FIELDS["bert"]
# The fields of ModelConfig that each family fixes, and what holds where its config.json says nothing.
FIXED: dict[str, dict] = {
    "gpt2": CLASSIC["gpt2"] | {"dropout": 0.1}, "qwen3": {"activation": "swiglu", "embed_norm": False},
    "bert": CLASSIC["bert"] | {"dropout": 0.1, "causal": False, "n_types": 2}}
FIXED["roberta"] = FIXED["bert"]


# ---- names -------------------------------------------------------------------------------------------------------


def layout(family: str, cfg: ModelConfig, task: dict | None = None) -> dict[str, list[str]]:
    """{published module: [nanoft's modules, side by side in it]}; a few are tensors. task: of a fine-tuned encoder."""
    trunk, blocks, outside, block = NAMES[family]
    if cfg.causal:
        heads = {} if cfg.tie_head else {"lm_head": "head"}
    elif task:
        heads = {"answer": {"qa_outputs": "task_head"}, "tag": {"classifier": "task_head"}}.get(task["kind"]) or (
            {"classifier.dense": "pooler", "classifier.out_proj": "task_head"} if family == "roberta" else
            {"bert.pooler.dense": "pooler", "classifier": "task_head"})
    elif family == "bert":
        heads = {"cls.predictions.transform.dense": "transform", "cls.predictions.transform.LayerNorm": "norm",
                 "cls.predictions.bias": "head_bias", "bert.pooler.dense": "pooler", "cls.seq_relationship": "next"}
    else:
        heads = {"lm_head.dense": "transform", "lm_head.layer_norm": "norm", "lm_head.bias": "head_bias",
                 "roberta.pooler.dense": "pooler"}
    if not (cfg.causal or task or cfg.tie_head):
        heads["cls.predictions.decoder" if family == "bert" else "lm_head.decoder"] = "head"
    table = {trunk + name: [f"trunk.{own}"] for name, own in outside.items()}
    for i in range(cfg.n_layer):
        table |= {f"{trunk}{blocks}{i}.{name}": [f"trunk.blocks.{i}.{part}" for part in own.split()]
                  for name, own in block.items()}
    return table | {name: [own] for name, own in heads.items()}


def tensor_names(table: dict[str, list[str]], own: Iterable[str]) -> dict[str, list[str]]:
    """{published tensor: nanoft's tensors}: the table with .weight and .bias, as far as `own` has these names."""
    return {name + end: [part + end for part in parts] for name, parts in table.items()
            for end in (".weight", ".bias", "") if parts[0] + end in own}


def is_transposed(name: str) -> bool:
    """GPT-2 stores its matrices as (in, out), all others as (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def canonical(name: str, family: str) -> str:
    """A tensor's name as the table has it: with the trunk's prefix, and today's names for LayerNorm's parameters."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix("module."))
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    trunk = NAMES[family][0]
    return name if name.startswith((trunk, *HEADS)) else trunk + name


def to_qwen3(own: dict[str, torch.Tensor], cfg: ModelConfig) -> dict[str, torch.Tensor]:
    """nanoft's weights in Qwen3's parts, still under nanoft's names: gates apart, norms with weights, which are 1.

    The embedding's norm goes into the table, whose rows are then what the norm makes of them. nanoft's norm of queries
    and keys has float32's own eps and Qwen3's that of the model: longer queries and keys give the same with both.
    """
    out, longer = dict(own), (cfg.norm_eps / EPS) ** 0.5
    if cfg.embed_norm:
        out["trunk.tokens.weight"] = F.rms_norm(own["trunk.tokens.weight"], (cfg.n_embd,), eps=cfg.norm_eps)
    out["trunk.norm_out.weight"] = torch.ones(cfg.n_embd)
    for block in (f"trunk.blocks.{i}." for i in range(cfg.n_layer)):
        out[f"{block}mlp.gate.weight"], out[f"{block}mlp.up.weight"] = out.pop(f"{block}mlp.fc.weight").chunk(2)
        for name in ("attn.q", "attn.k"):
            out[f"{block}{name}.weight"] = own[f"{block}{name}.weight"] * longer
            out[f"{block}{name}_norm.weight"] = torch.ones(cfg.n_embd // cfg.n_head)
        out |= {f"{block}norm{i}.weight": torch.ones(cfg.n_embd) for i in (1, 2)}
    return out


def from_qwen3(weights: dict[str, torch.Tensor], cfg: ModelConfig, path: Path) -> dict[str, torch.Tensor]:
    """The way back. Raises UserError for norms with other weights than 1, which nanoft's do not have."""
    out, longer = {}, (cfg.norm_eps / EPS) ** 0.5
    for name, tensor in weights.items():
        if "norm" in name:
            if not (tensor == 1).all():
                raise UserError(f"{path}: {name} has other weights than 1; nanoft reads only its own models of type "
                                "'qwen3', whose norms have no weights")
        elif name.endswith("mlp.gate.weight"):
            out[name.replace("gate", "fc")] = torch.cat((tensor, weights[name.replace("gate", "up")]))
        elif not name.endswith("mlp.up.weight"):
            out[name] = tensor / longer if name.endswith(("attn.q.weight", "attn.k.weight")) else tensor
    return out


# ---- config.json -------------------------------------------------------------------------------------------------


def read_shape(config: dict, family: str, folder: Path) -> ModelConfig:
    """The ModelConfig that a published config.json describes. Raises UserError for what nanoft does not have."""
    usual = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
             "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "attention_bias": False,
             "use_sliding_window": False, "rope_theta": 10000, "rope_scaling": None}
    other = [f"{name}={config[name]!r}" for name, value in usual.items() if config.get(name, value) != value]
    config.setdefault("n_positions", config.get("n_ctx"))  # its older name
    read = {own: config[name] for name, own in FIELDS[family].items() if config.get(name) is not None}
    act = str(read.pop("activation", "gelu_new" if family == "gpt2" else "silu" if family == "qwen3" else "gelu"))
    # RoBERTa's head has gelu in any case, and only Qwen3's feed-forward has gates
    if act not in ACTIVATIONS or (family == "roberta" and act != "gelu") or (act == "silu") != (family == "qwen3"):
        other.append(f"the activation {act!r}")
    if other:
        raise UserError(f"{folder}: nanoft's {family} has no {' and no '.join(other)}; give another model")
    if missing := {"n_layer", "n_head", "n_embd", "block_size"} - read.keys() or {"vocab_size"} - config.keys():
        raise UserError(f"{folder}: config.json does not describe a {family}, for {', '.join(missing)} are missing")
    read["block_size"] -= skipped(config)
    if "n_types" in read:
        read["n_types"] = max(2, read["n_types"])  # at least for a text and its pair
    cfg = ModelConfig(**FIXED[family] | read | dict(
        vocab_size=config["vocab_size"], activation=ACTIVATIONS[act], vocab_multiple=1,
        tie_head=config.get("tie_word_embeddings", family != "qwen3")))
    if problems := check_model(cfg):
        raise UserError(f"{folder}: {'; '.join(problems)}")
    return cfg


def skipped(config: dict) -> int:
    """Rows of the position embeddings before the first token's: RoBERTa's positions start after its padding id."""
    pad = config.get("pad_token_id")
    return (1 if pad is None else pad) + 1 if config.get("model_type") == "roberta" else 0


def read_task(config: dict, cfg: ModelConfig) -> dict | None:
    """The task of a model that was published fine-tuned, as tasks.heads needs it, or None."""
    architecture = (config.get("architectures") or [""])[0]
    kind = next((kind for end, kind in KINDS.items() if architecture.endswith(end)), None)
    if kind is None or cfg.causal:
        return None
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    labels = [names[number] for number in sorted(names, key=int)]
    task: dict = {"pool": "cls" if kind == "classify" else "mean", "max_length": cfg.block_size, "long_text": "head",
            "doc_stride": 128, "head_dropout": cfg.dropout}
    if kind == "answer":
        return task | {"kind": kind, "metric": METRICS[kind], "max_answer": 30, "v2": False}
    if kind == "tag":
        return task | {"kind": kind, "labels": labels, "metric": "accuracy"}
    if config.get("problem_type") == "regression" or len(labels) == 1:
        return task | {"kind": "regress", "metric": METRICS["regress"], "mean": 0.0, "deviation": 1.0}
    if config.get("problem_type") == "multi_label_classification":
        task["multi_label"] = True
    return task | {"kind": kind, "labels": labels, "metric": METRICS[kind]}


# ---- weights -----------------------------------------------------------------------------------------------------


def open_weights(path: Path) -> tuple[dict[str, safetensors.Entry], Callable[[list[str]], dict[str, torch.Tensor]]]:
    """{name: Entry} of a file or its shards, and the function take(names) -> {name: tensor}.

    The tensors of safetensors are mapped. Those of a .bin are in memory, and can be taken only once; no code in it is
    run. Raises UserError.
    """
    if ".bin" not in path.name:
        entries = safetensors.read_entries(path)
        return entries, lambda names: safetensors.map_tensors({name: entries[name] for name in names})
    files = [path]
    if path.name.endswith(".index.json"):
        files = [path.with_name(name) for name in sorted(set(safetensors.read_index(path).values()))]
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign or broken file can raise
            raise UserError(f"{file} holds no weights, or is damaged ({type(error).__name__}); fetch it again"
                            ) from None
        if difference(content, {str: torch.Tensor}):
            raise UserError(f"{file} is not a dictionary of tensors by name; give the weights alone")
        tensors |= content
    entries = {name: safetensors.Entry(path, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    return entries, lambda names: {name: tensors.pop(name) for name in names}


def load(path: Path) -> dict:
    """The dictionary of a checkpoint, as checkpoint.py describes it, from a file of weights with config.json beside it.

    Tensors that are used as they are in the file stay mapped, so a model needs little more memory than its file. Prints
    what became of all tensors. Raises UserError if one is missing, or of another shape than config.json says.
    """
    folder = path.parent
    described = folder / "config.json"
    text = safetensors.read_metadata(path).get("nanoft") if path.suffix == ".safetensors" else None
    if text is not None:  # one file for all
        described = path
    elif not described.is_file():
        raise UserError(f"{folder} has no config.json, which says what model {path.name} is of; fetch it too")
    config = read_json(described, CONFIG, text=text)
    entries, take = open_weights(path)
    own = config.get("model_type") == "nanoft"
    is_vit = config.get("model_type") == "vit" or str(config.get("architecture", "")).startswith("vit_")
    published = vit.load if is_vit else load_published
    loaded = load_own(config, take(list(entries)), described) if own else published(config, entries, take, path)
    return {"step": 0, "config": {"init_from": str(folder)}} | loaded


def load_published(config: dict, entries: dict[str, safetensors.Entry], take: Callable, path: Path) -> dict:
    """A model of one of the published families. entries, take: of open_weights(path)."""
    folder = path.parent
    family = config.setdefault("model_type", "gpt2" if "n_embd" in config else  # the file may be too old to say
                               "roberta" if any("roberta." in name for name in entries) else "bert")
    if family not in NAMES:
        raise UserError(f"{folder} holds a model of type {family!r}; nanoft reads {', '.join(NAMES)}, and its own")
    cfg = read_shape(config, family, folder)
    task = read_task(config, cfg)
    with torch.device("meta"):
        own = (TaskModel(cfg, task) if task else make_model(cfg)).state_dict()
        own = to_qwen3(own, cfg) if family == "qwen3" else own
    stored = {canonical(name, family): name for name in entries}
    for head in ("cls.predictions", "lm_head"):  # one bias under two names; where they differ, the second is in use
        if f"{head}.decoder.bias" in stored:
            stored[f"{head}.bias"] = stored[f"{head}.decoder.bias"]
    wanted = tensor_names(layout(family, cfg, task), own)
    for name, parts in wanted.items():
        if name in stored:
            shape, expected = entries[stored[name]].shape, published_shape(name, [own[x].shape for x in parts], config)
            if shape != expected:
                raise UserError(f"{path}: {stored[name]} is {shape}, where config.json asks for {expected}; fetch both")
        elif task or not parts[0].startswith(FRESH):
            raise UserError(f"{path}: weight {name} is missing, which config.json asks for; fetch both again")

    # tensors that must be changed, one by one, so that only one is in memory twice; all others at once
    weights, plain = {}, {}
    changed = (".c_attn.bias", ".position_embeddings.weight", ".token_type_embeddings.weight")
    for name in wanted.keys() & stored.keys():
        if entries[stored[name]].dtype == torch.float32 and not is_transposed(name) and not name.endswith(changed):
            plain[stored[name]] = wanted[name][0]
        else:
            weights |= converted(name, wanted[name], take([stored[name]])[stored[name]], config)
    weights |= {plain[name]: tensor for name, tensor in take(list(plain)).items()}
    if cfg.tie_head and "head.weight" in own:
        weights["head.weight"] = weights["trunk.tokens.weight"]
    new = [name for name in own if name not in weights]
    for name in new:  # as in BERT, and equal in every process
        generator = torch.Generator().manual_seed(len(name))
        weights[name] = torch.empty(own[name].shape).normal_(std=0.02, generator=generator)
        if own[name].dim() == 1:
            weights[name].fill_(float(name == "norm.weight"))
    if family == "qwen3":
        weights = from_qwen3(weights, cfg, path)
    used = {stored[name] for name in wanted if name in stored}
    left = [name for name in entries if name not in used and not is_duplicate(name, take, weights)]
    if os.environ.get("RANK", "0") == "0":
        print(f"{folder}: {family}, {cfg.n_layer} layers x {cfg.n_embd}; {len(entries) - len(left)} of {len(entries)} "
              f"tensors used\n    left over: {summary(left)}\n    newly made: {summary(new)}", file=sys.stderr)
    return {"model": weights, "model_config": vars(cfg), "new": new} | ({"task": task} if task else {})


def load_own(config: dict, weights: dict[str, torch.Tensor], path: Path) -> dict:
    """A model whose weights have nanoft's names: convert.py's file, or an older folder. config: read from `path`."""
    if not isinstance(config.get("model_config"), dict):
        raise UserError(f"{path} has no model_config; export the model again")
    kept = {name: config[name] for name in ("task", "config", "fingerprints") if name in config}
    if config["model_config"].get("tie_head") and ("task" not in kept or kept["task"]["kind"] == "generate"):
        weights["head.weight"] = weights["trunk.tokens.weight"]
    return {"model": weights, "model_config": config["model_config"]} | kept


def published_shape(name: str, own_shapes: list[torch.Size], config: dict) -> tuple[int, ...]:
    """The shape of a published tensor, from the shapes of nanoft's tensors that lie in it side by side."""
    rows, rest = sum(shape[0] for shape in own_shapes), tuple(own_shapes[0][1:])
    if name.endswith(".position_embeddings.weight"):
        rows += skipped(config)
    if name.endswith(".token_type_embeddings.weight"):
        rows = config.get("type_vocab_size", 2)
    return (*rest, rows) if is_transposed(name) else (rows, *rest)


def converted(name: str, parts: list[str], tensor: torch.Tensor, config: dict) -> dict[str, torch.Tensor]:
    """{nanoft's name: tensor} from a published tensor; copies, so that the file need not stay mapped."""
    tensor = tensor.float()
    if is_transposed(name):
        tensor = tensor.mT  # (in, out) -> (out, in)
    if name.endswith(".position_embeddings.weight"):
        tensor = tensor[skipped(config):]
    if name.endswith(".token_type_embeddings.weight") and len(tensor) == 1:  # RoBERTa has one type for both texts
        tensor = tensor.repeat(2, 1)
    return {part: chunk.clone(memory_format=torch.contiguous_format)
            for part, chunk in zip(parts, tensor.chunk(len(parts)))}


def is_duplicate(name: str, take: Callable, weights: dict[str, torch.Tensor]) -> bool:
    """Is it a second copy of a tied weight? (An untied one is used under its own name.)"""
    if not name.endswith(("lm_head.weight", "decoder.weight", "lm_head.bias", "predictions.bias")):
        return False
    twin = weights.get("head_bias" if name.endswith("bias") else "trunk.tokens.weight")
    return twin is not None and torch.equal(take([name])[name].float(), twin)


def summary(names: Iterable[str]) -> str:
    """The names on one line, those of all blocks and of weight and bias as one."""
    short = (re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", name)) for name in names)
    return ", ".join(dict.fromkeys(short)) or "none"
