"""Published GPT-2, BERT and RoBERTa weights as nanoft's: whose tensor is called what, and the checkpoint made of them.

A folder as published holds config.json, and model.safetensors or pytorch_model.bin or shards of either. What is read:
GPT-2 (Radford et al. 2019), BERT (arXiv:1810.04805) with its pooler and heads, RoBERTa (arXiv:1907.11692), and
sentence-transformers' models of these layouts (arXiv:1908.10084). The names are those of the transformers package, in
whose form they are published. nanoft.pretrained goes the other way by the same table.
"""

import os
import re
import sys
from pathlib import Path

import torch

from nanoft import UserError
from nanoft.files import read_json
from nanoft.model import CLASSIC, ModelConfig, check_model, make_model
from nanoft.published import safetensors
from nanoft.tasks.examples import METRICS
from nanoft.tasks.heads import TaskModel

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TRUNK = {"gpt2": "transformer.", "bert": "bert.", "roberta": "roberta."}  # what the names of the trunk begin with
HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "score.")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
FRESH = ("transform.", "norm.", "head_bias", "pooler.", "next.")  # heads that a trunk may be published without
KINDS = {"ForSequenceClassification": "classify", "ForTokenClassification": "tag", "ForQuestionAnswering": "answer"}


# ---- names -------------------------------------------------------------------------------------------------------


def layout(family, cfg, task=None):
    """{published module: nanoft's module, or the several that lie side by side in it}; a few are names of tensors.

    family: gpt2, bert or roberta; task: that of a fine-tuned model.
    """
    trunk = TRUNK[family]
    if family == "gpt2":
        table = {"wte": "trunk.tokens", "wpe": "trunk.positions", "ln_f": "trunk.norm_out"}
        block = {"ln_1": "norm1", "attn.c_attn": ("attn.q", "attn.k", "attn.v"), "attn.c_proj": "attn.proj",
                 "ln_2": "norm2", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
        blocks, heads = "h", {} if cfg.tie_head else {"lm_head": "head"}
    else:
        table = {"embeddings.word_embeddings": "trunk.tokens", "embeddings.position_embeddings": "trunk.positions",
                 "embeddings.token_type_embeddings": "trunk.types", "embeddings.LayerNorm": "trunk.norm_in"}
        block = {"attention.self.query": "attn.q", "attention.self.key": "attn.k", "attention.self.value": "attn.v",
                 "attention.output.dense": "attn.proj", "attention.output.LayerNorm": "norm1",
                 "intermediate.dense": "mlp.fc", "output.dense": "mlp.proj", "output.LayerNorm": "norm2"}
        blocks = "encoder.layer"
        if task:
            heads = {"answer": {"qa_outputs": "task_head"}, "tag": {"classifier": "task_head"}}.get(task["kind"]) or (
                {"classifier.dense": "pooler", "classifier.out_proj": "task_head"} if family == "roberta" else
                {"bert.pooler.dense": "pooler", "classifier": "task_head"})
        elif family == "bert":
            heads = {"cls.predictions.transform.dense": "transform", "cls.predictions.transform.LayerNorm": "norm",
                     "cls.predictions.bias": "head_bias", "bert.pooler.dense": "pooler", "cls.seq_relationship": "next"}
        else:
            heads = {"lm_head.dense": "transform", "lm_head.layer_norm": "norm", "lm_head.bias": "head_bias",
                     "roberta.pooler.dense": "pooler"}
        if not (task or cfg.tie_head):
            heads["cls.predictions.decoder" if family == "bert" else "lm_head.decoder"] = "head"
    table = {trunk + name: own for name, own in table.items()}
    for i in range(cfg.n_layer):
        for name, own in block.items():
            own = tuple(f"trunk.blocks.{i}.{x}" for x in ([own] if isinstance(own, str) else own))
            table[f"{trunk}{blocks}.{i}.{name}"] = own
    return table | heads


def tensor_names(table, own):
    """{published tensor: nanoft's tensors}: the table with .weight and .bias, as far as a model has them.

    own: nanoft's tensors by name.
    """
    found = {}
    for name, parts in table.items():
        parts = (parts,) if isinstance(parts, str) else parts
        for end in (".weight", ".bias", ""):
            if parts[0] + end in own:
                found[name + end] = [part + end for part in parts]
    return found


def is_transposed(name):
    """GPT-2 stores its matrices (in, out), where everybody else has (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def canonical(name, family):
    """A tensor's name as the table has it: with the trunk's prefix, and LayerNorm's parameters called as today."""
    name = name.removeprefix("module.")
    if not name.startswith((TRUNK[family], *HEADS)):
        name = TRUNK[family] + name
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


# ---- config.json -------------------------------------------------------------------------------------------------


def read_family(config, names, place):
    """gpt2, bert or roberta; older files do not say which. Raises UserError for any other."""
    family = config.setdefault(
        "model_type", "gpt2" if "n_embd" in config else "roberta" if any("roberta." in x for x in names) else "bert")
    if family not in TRUNK:
        raise UserError(f"{place} holds a model of type {family!r}; nanoft reads {', '.join(TRUNK)}, and its own")
    return family


def read_config(config, family, place):
    """The ModelConfig that a published config.json describes. Raises UserError for what nanoft has not."""
    act = str(config.get("activation_function", "gelu_new") if family == "gpt2" else config.get("hidden_act", "gelu"))
    usual = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
             "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    other = [f"{name}={config[name]!r}" for name, value in usual.items() if config.get(name, value) != value]
    if act not in ACTIVATIONS or (family == "roberta" and act != "gelu"):  # whose head has gelu in any case
        other.append(f"the activation {act!r}")
    if other:
        raise UserError(f"{place}: nanoft's {family} has no {' and no '.join(other)}; give another model")
    try:
        if family == "gpt2":
            shape = dict(n_layer=config["n_layer"], n_head=config["n_head"], n_embd=config["n_embd"],
                         block_size=config.get("n_positions") or config["n_ctx"], n_hidden=config.get("n_inner") or 0,
                         norm_eps=config.get("layer_norm_epsilon", 1e-5), dropout=config.get("resid_pdrop", 0.1))
        else:
            shape = dict(n_layer=config["num_hidden_layers"], n_head=config["num_attention_heads"],
                         n_embd=config["hidden_size"], n_hidden=config["intermediate_size"], causal=False,
                         block_size=config["max_position_embeddings"] - skipped(config),
                         norm_eps=config.get("layer_norm_eps", 1e-12), dropout=config.get("hidden_dropout_prob", 0.1),
                         n_types=max(2, config.get("type_vocab_size", 2)))  # a text and its pair, in any case
        cfg = ModelConfig(**CLASSIC["gpt2" if family == "gpt2" else "bert"] | shape | dict(
            vocab_size=config["vocab_size"], activation=ACTIVATIONS[act], vocab_multiple=1,
            tie_head=config.get("tie_word_embeddings", True)))
        problems = check_model(cfg)
    except (KeyError, TypeError) as error:
        raise UserError(f"{place}: its config.json does not describe a {family} ({type(error).__name__}: {error}); "
                        "fetch it again") from None
    if problems:
        raise UserError(f"{place}: {'; '.join(problems)}")
    return cfg


def skipped(config):
    """Rows of the table of positions before that of a text's first token: RoBERTa's begin after its id of padding."""
    return config.get("pad_token_id", 1) + 1 if config.get("model_type") == "roberta" else 0


def read_task(config, family, cfg):
    """The task of a model that was published fine-tuned, as nanoft.heads wants it, or None."""
    architecture = (config.get("architectures") or [""])[0]
    kind = next((kind for end, kind in KINDS.items() if architecture.endswith(end)), None)
    if kind is None or family == "gpt2":
        return None
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    labels = [names[number] for number in sorted(names, key=int)]
    task = {"pool": "cls" if kind == "classify" else "mean", "max_length": cfg.block_size, "long_text": "head",
            "doc_stride": 128, "head_dropout": cfg.dropout, "label_smoothing": 0.0}
    if kind == "answer":
        return task | {"kind": kind, "metric": METRICS[kind], "max_answer": 30, "v2": False}
    if kind == "tag":
        return task | {"kind": kind, "labels": labels, "metric": "accuracy"}
    if config.get("problem_type") == "regression" or len(labels) == 1:
        return task | {"kind": "regress", "metric": METRICS["regress"], "mean": 0.0, "deviation": 1.0}
    several = {"multi_label": True} if config.get("problem_type") == "multi_label_classification" else {}
    return task | {"kind": kind, "labels": labels, "metric": METRICS[kind]} | several


# ---- weights -----------------------------------------------------------------------------------------------------


def weight_files(folder):
    """Where a published folder may have its weights; some of sentence-transformers' are in a folder 0_Transformer."""
    return [place / name for place in (folder, *sorted(folder.glob("0_*"))) for name in FILES]


def open_weights(path):
    """{name: what has a dtype and a shape} of a file or its shards, and take(names), which gives {name: tensor}.

    The tensors of safetensors are mapped. Those of a .bin are in memory, and can be taken only once.
    """
    if ".bin" not in path.name:
        entries = safetensors.read_entries(path)
        return entries, lambda names: safetensors.map_tensors({name: entries[name] for name in names})
    files = [path]
    if path.name.endswith(".index.json"):
        files = [path.with_name(name) for name in sorted(set(safetensors.read_index(path).values()))]
    tensors = {name: tensor for file in files for name, tensor in read_pickle(file).items()}
    entries = {name: safetensors.Entry(path, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()}
    return entries, lambda names: {name: tensors.pop(name) for name in names}


def read_pickle(path):
    """{name: tensor} of a pytorch_model.bin; no code in it is run. Raises UserError."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path} holds no weights, or is damaged ({type(error).__name__}); fetch it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise UserError(f"{path} is not a dictionary of tensors by name; give the weights alone")
    return tensors


def load(path):
    """The dictionary of a checkpoint, as nanoft.checkpoint has it, from a file of weights with config.json beside it.

    What is of use as it lies in the file stays mapped, so that a model needs little more memory than its file is long.
    Says what became of every tensor. Raises UserError for what is missing, or of another shape than config.json tells.
    """
    path = Path(path)
    place = path.parent
    if not (place / "config.json").is_file():
        raise UserError(f"{place} has no config.json, which says what model {path.name} is of; fetch it too")
    config = read_json(place / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{place / 'config.json'} is not the description of a model; fetch it again")
    entries, take = open_weights(path)
    state = {"step": 0, "config": {"init_from": str(place)}}
    if config.get("model_type") == "nanoft":
        return state | load_own(config, take(list(entries)), place)
    family = read_family(config, entries, place)
    cfg = read_config(config, family, place)
    task = read_task(config, family, cfg)
    with torch.device("meta"):
        own = (TaskModel(cfg, task) if task else make_model(cfg)).state_dict()
    stored = {canonical(name, family): name for name in entries}
    for head in ("cls.predictions", "lm_head"):  # one bias, under two names; where they differ, the second is in use
        if f"{head}.decoder.bias" in stored:
            stored[f"{head}.bias"] = stored[f"{head}.decoder.bias"]

    # all that config.json asks for is there, in the right shape; heads alone may be missing
    wanted = tensor_names(layout(family, cfg, task), own)
    for name, parts in wanted.items():
        if name not in stored:
            if task or not parts[0].startswith(FRESH):
                raise UserError(f"{path}: weight {name} is missing, which config.json asks for; fetch both again")
            continue
        found, shape = entries[stored[name]].shape, published_shape(name, [own[part].shape for part in parts], config)
        if found != shape:
            raise UserError(f"{path}: weight {stored[name]} is {found}, where config.json asks for {shape}; fetch both "
                            "again")

    # what must be changed one by one, so that only one is in memory twice; the rest at once, as it lies in the file
    weights, plain = {}, {}
    for name in wanted.keys() & stored.keys():
        if is_plain(name) and entries[stored[name]].dtype == torch.float32:
            plain[stored[name]] = wanted[name][0]
        else:
            weights |= converted(name, wanted[name], take([stored[name]])[stored[name]], config)
    weights |= {plain[name]: tensor for name, tensor in take(list(plain)).items()}
    if cfg.tie_head and "head.weight" in own:
        weights["head.weight"] = weights["trunk.tokens.weight"]
    new = [name for name in own if name not in weights]
    weights |= {name: new_tensor(name, own[name].shape) for name in new}
    used = {stored[name] for name in wanted if name in stored}
    left = [name for name in entries if name not in used and not is_double(name, take, weights)]
    if os.environ.get("RANK", "0") == "0":
        print(f"{place}: {family}, {cfg.n_layer} layers x {cfg.n_embd}; {len(entries) - len(left)} of {len(entries)} "
              f"tensors used\n    left over: {summary(left)}\n    newly made: {summary(new)}", file=sys.stderr)
    return state | {"model": weights, "model_config": vars(cfg)} | ({"task": task} if task else {})


def load_own(config, weights, place):
    """What nanoft.pretrained wrote of a model that has no published form: the weights under their own names."""
    if not isinstance(config.get("model_config"), dict):
        raise UserError(f"{place}: its config.json has no model_config; export the model again")
    task = {"task": config["task"]} if "task" in config else {}
    if config["model_config"].get("tie_head") and (not task or config["task"]["kind"] == "generate"):
        weights["head.weight"] = weights["trunk.tokens.weight"]
    return {"model": weights, "model_config": config["model_config"]} | task


def published_shape(name, shapes, config):
    """The shape of a published tensor, from those of nanoft's that lie in it side by side."""
    rows, rest = sum(shape[0] for shape in shapes), tuple(shapes[0][1:])
    if name.endswith(".position_embeddings.weight"):
        rows += skipped(config)
    if name.endswith(".token_type_embeddings.weight"):
        rows = config.get("type_vocab_size", 2)
    return (*rest, rows) if is_transposed(name) else (rows, *rest)


def is_plain(name):
    """Is a published tensor the same as nanoft's?"""
    return not is_transposed(name) and not name.endswith(
        (".c_attn.bias", ".position_embeddings.weight", ".token_type_embeddings.weight"))


def converted(name, parts, tensor, config):
    """{nanoft's name: tensor} from a published tensor: copies, so that nothing of the file stays in memory."""
    tensor = tensor.float()
    if is_transposed(name):
        tensor = tensor.mT  # (in, out) -> (out, in)
    if name.endswith(".position_embeddings.weight"):
        tensor = tensor[skipped(config):]
    if name.endswith(".token_type_embeddings.weight") and len(tensor) == 1:  # RoBERTa: a pair is of one type
        tensor = tensor.repeat(2, 1)
    return {part: piece.clone(memory_format=torch.contiguous_format)
            for part, piece in zip(parts, tensor.chunk(len(parts)))}


def new_tensor(name, shape):
    """As BERT's heads begin: normal numbers of deviation 0.02, the same in every process; norms 1, biases 0."""
    if len(shape) == 1:
        return torch.full(shape, float(name == "norm.weight"))
    return torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))


def is_double(name, take, weights):
    """Is it a tied weight that the file holds a second time? An untied one is wanted under its own name."""
    if not name.endswith(("lm_head.weight", "decoder.weight", "lm_head.bias", "predictions.bias")):
        return False
    twin = weights.get("head_bias" if name.endswith("bias") else "trunk.tokens.weight")
    return twin is not None and torch.equal(take([name])[name].float(), twin)


def summary(names):
    """Names in few words, those of all blocks and of weight and bias together."""
    short = (re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", name)) for name in names)
    return ", ".join(dict.fromkeys(short)) or "none"
