"""Published GPT-2, BERT and RoBERTa weights as nanoft's: the names of their tensors, and the checkpoint made of them.

A published folder holds config.json, and model.safetensors or pytorch_model.bin or shards of either. Readable are
GPT-2 (Radford et al. 2019), BERT (arXiv:1810.04805) with its pooler and heads, RoBERTa (arXiv:1907.11692), and
sentence-transformers' models of these layouts (arXiv:1908.10084). The published names are those of the transformers
package. convert.py goes the other way by the same table.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from nanoft import UserError
from nanoft.files import difference, read_json
from nanoft.model import CLASSIC, ModelConfig, check_model, make_model
from nanoft.published import safetensors
from nanoft.tasks.examples import METRICS
from nanoft.tasks.heads import TaskModel

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TRUNK = {"gpt2": "transformer.", "bert": "bert.", "roberta": "roberta."}  # the prefix of the trunk's names
HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "score.")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
FRESH = ("transform.", "norm.", "head_bias", "pooler.", "next.")  # heads that may be missing, and are then new
CONFIG = {f"{name}?": form for form, names in {  # of config.json, for files.difference
    int: "n_layer n_head n_embd n_positions n_ctx vocab_size num_hidden_layers num_attention_heads hidden_size "
         "intermediate_size max_position_embeddings type_vocab_size num_labels",
    float: "resid_pdrop layer_norm_epsilon layer_norm_eps hidden_dropout_prob", bool: "tie_word_embeddings",
    str: "model_type", (int, None): "n_inner pad_token_id", (str, None): "problem_type"
    }.items() for name in names.split()} | {
    "architectures?": ([str], None), "id2label?": ({str: str}, None), "model_config?": dict, "task?": dict}
KINDS = {"ForSequenceClassification": "classify", "ForTokenClassification": "tag", "ForQuestionAnswering": "answer"}


# ---- names -------------------------------------------------------------------------------------------------------


def layout(family: str, cfg: ModelConfig, task: dict | None = None) -> dict[str, list[str]]:
    """{published module: nanoft's modules, which lie side by side in it}; a few are names of tensors.

    family: gpt2, bert or roberta; task: that of a fine-tuned model.
    """
    trunk = TRUNK[family]
    if family == "gpt2":
        outside = {"wte": "trunk.tokens", "wpe": "trunk.positions", "ln_f": "trunk.norm_out"}
        block = {"ln_1": "norm1", "attn.c_attn": "attn.q attn.k attn.v", "attn.c_proj": "attn.proj",
                 "ln_2": "norm2", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
        blocks, heads = "h", {} if cfg.tie_head else {"lm_head": "head"}
    else:
        outside = {"embeddings.word_embeddings": "trunk.tokens", "embeddings.position_embeddings": "trunk.positions",
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
    table = {trunk + name: [own] for name, own in outside.items()}
    for i in range(cfg.n_layer):
        table |= {f"{trunk}{blocks}.{i}.{name}": [f"trunk.blocks.{i}.{part}" for part in own.split()]
                  for name, own in block.items()}
    return table | {name: [own] for name, own in heads.items()}


def tensor_names(table: dict[str, list[str]], own: Iterable[str]) -> dict[str, list[str]]:
    """{published tensor: nanoft's tensors}: the table with .weight and .bias, as far as a model has them.

    own: the names of all of nanoft's tensors.
    """
    return {name + end: [part + end for part in parts] for name, parts in table.items()
            for end in (".weight", ".bias", "") if parts[0] + end in own}


def is_transposed(name: str) -> bool:
    """GPT-2 stores its matrices as (in, out), all others as (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def canonical(name: str, family: str) -> str:
    """A tensor's name as the table has it: with the trunk's prefix, and today's names for LayerNorm's parameters."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix("module."))
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return name if name.startswith((TRUNK[family], *HEADS)) else TRUNK[family] + name


# ---- config.json -------------------------------------------------------------------------------------------------


def read_family(config: dict, names: Iterable[str], folder: Path) -> str:
    """gpt2, bert or roberta; guessed where the file is too old to say. Raises UserError for any other."""
    family = config.setdefault(
        "model_type", "gpt2" if "n_embd" in config else "roberta" if any("roberta." in x for x in names) else "bert")
    if family not in TRUNK:
        raise UserError(f"{folder} holds a model of type {family!r}; nanoft reads {', '.join(TRUNK)}, and its own")
    return family


def read_shape(config: dict, family: str, folder: Path) -> ModelConfig:
    """The ModelConfig that a published config.json describes. Raises UserError for what nanoft does not have."""
    act = str(config.get("activation_function", "gelu_new") if family == "gpt2" else config.get("hidden_act", "gelu"))
    usual = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
             "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    other = [f"{name}={config[name]!r}" for name, value in usual.items() if config.get(name, value) != value]
    if act not in ACTIVATIONS or (family == "roberta" and act != "gelu"):  # RoBERTa's head has gelu in any case
        other.append(f"the activation {act!r}")
    if other:
        raise UserError(f"{folder}: nanoft's {family} has no {' and no '.join(other)}; give another model")
    try:
        if family == "gpt2":
            shape: dict = dict(n_layer=config["n_layer"], n_head=config["n_head"], n_embd=config["n_embd"],
                               block_size=config.get("n_positions") or config["n_ctx"],
                               n_hidden=config.get("n_inner") or 0, dropout=config.get("resid_pdrop", 0.1),
                               norm_eps=config.get("layer_norm_epsilon", 1e-5))
        else:
            shape = dict(n_layer=config["num_hidden_layers"], n_head=config["num_attention_heads"],
                         n_embd=config["hidden_size"], n_hidden=config["intermediate_size"], causal=False,
                         block_size=config["max_position_embeddings"] - skipped(config),
                         norm_eps=config.get("layer_norm_eps", 1e-12), dropout=config.get("hidden_dropout_prob", 0.1),
                         n_types=max(2, config.get("type_vocab_size", 2)))  # at least for a text and its pair
        shape = CLASSIC["gpt2" if family == "gpt2" else "bert"] | shape
        cfg = ModelConfig(**shape | dict(vocab_size=config["vocab_size"], activation=ACTIVATIONS[act], vocab_multiple=1,
                                         tie_head=config.get("tie_word_embeddings", True)))
        problems = check_model(cfg)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: its config.json does not describe a {family} ({type(error).__name__}: {error}); "
                        "fetch it again") from None
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}")
    return cfg


def skipped(config: dict) -> int:
    """Rows of the position embeddings before the first token's: RoBERTa's positions start after its padding id."""
    return config.get("pad_token_id", 1) + 1 if config.get("model_type") == "roberta" else 0


def read_task(config: dict, family: str, cfg: ModelConfig) -> dict | None:
    """The task of a model that was published fine-tuned, as tasks.heads needs it, or None."""
    architecture = (config.get("architectures") or [""])[0]
    kind = next((kind for end, kind in KINDS.items() if architecture.endswith(end)), None)
    if kind is None or family == "gpt2":
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


def weight_files(folder: Path) -> list[Path]:
    """The files in which a published folder may have its weights; sentence-transformers may use 0_Transformer/."""
    return [path / name for path in (folder, *sorted(folder.glob("0_*"))) for name in FILES]


def open_weights(path: Path) -> tuple[dict[str, safetensors.Entry], Callable[[list[str]], dict[str, torch.Tensor]]]:
    """{name: Entry} of a file or its shards, and the function take(names) -> {name: tensor}.

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


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a pytorch_model.bin; no code in it is run. Raises UserError."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path} holds no weights, or is damaged ({type(error).__name__}); fetch it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise UserError(f"{path} is not a dictionary of tensors by name; give the weights alone")
    return tensors


def load(path: Path) -> dict:
    """The dictionary of a checkpoint, as checkpoint.py describes it, from a file of weights with config.json beside it.

    Tensors that are used as they are in the file stay mapped, so a model needs little more memory than its file. Prints
    what became of all tensors. Raises UserError if one is missing, or of another shape than config.json says.
    """
    folder = path.parent
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json, which says what model {path.name} is of; fetch it too")
    config = read_json(folder / "config.json")
    if problem := difference(config, CONFIG):
        raise UserError(f"{folder / 'config.json'} is not the description of a model ({problem}); fetch it again")
    entries, take = open_weights(path)
    own = config.get("model_type") == "nanoft"
    loaded = load_own(config, take(list(entries)), folder) if own else load_published(config, entries, take, path)
    return {"step": 0, "config": {"init_from": str(folder)}} | loaded


def load_published(config: dict, entries: dict[str, safetensors.Entry], take: Callable, path: Path) -> dict:
    """A model of one of the published families. entries, take: of open_weights(path)."""
    folder = path.parent
    family = read_family(config, entries, folder)
    cfg = read_shape(config, family, folder)
    task = read_task(config, family, cfg)
    with torch.device("meta"):
        own = (TaskModel(cfg, task) if task else make_model(cfg)).state_dict()
    stored = {canonical(name, family): name for name in entries}
    for head in ("cls.predictions", "lm_head"):  # one bias under two names; where they differ, the second is in use
        if f"{head}.decoder.bias" in stored:
            stored[f"{head}.bias"] = stored[f"{head}.decoder.bias"]
    wanted = tensor_names(layout(family, cfg, task), own)
    for name, parts in wanted.items():
        if name in stored:
            shape, expected = entries[stored[name]].shape, published_shape(name, [own[x].shape for x in parts], config)
            if shape != expected:
                raise UserError(f"{path}: weight {stored[name]} is {shape}, where config.json asks for {expected}; "
                                "fetch both again")
        elif task or not parts[0].startswith(FRESH):
            raise UserError(f"{path}: weight {name} is missing, which config.json asks for; fetch both again")

    # tensors that must be changed, one by one, so that only one is in memory twice; all others at once
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
    left = [name for name in entries if name not in used and not is_duplicate(name, take, weights)]
    if os.environ.get("RANK", "0") == "0":
        print(f"{folder}: {family}, {cfg.n_layer} layers x {cfg.n_embd}; {len(entries) - len(left)} of {len(entries)} "
              f"tensors used\n    left over: {summary(left)}\n    newly made: {summary(new)}", file=sys.stderr)
    return {"model": weights, "model_config": vars(cfg), "new": new} | ({"task": task} if task else {})


def load_own(config: dict, weights: dict[str, torch.Tensor], folder: Path) -> dict:
    """A model without a published form, as convert.py writes it: the weights have nanoft's names."""
    if not isinstance(config.get("model_config"), dict):
        raise UserError(f"{folder}: its config.json has no model_config; export the model again")
    task = {"task": config["task"]} if "task" in config else {}
    if config["model_config"].get("tie_head") and (not task or config["task"]["kind"] == "generate"):
        weights["head.weight"] = weights["trunk.tokens.weight"]
    return {"model": weights, "model_config": config["model_config"]} | task


def published_shape(name: str, own_shapes: list[torch.Size], config: dict) -> tuple[int, ...]:
    """The shape of a published tensor, from the shapes of nanoft's tensors that lie in it side by side."""
    rows, rest = sum(shape[0] for shape in own_shapes), tuple(own_shapes[0][1:])
    if name.endswith(".position_embeddings.weight"):
        rows += skipped(config)
    if name.endswith(".token_type_embeddings.weight"):
        rows = config.get("type_vocab_size", 2)
    return (*rest, rows) if is_transposed(name) else (rows, *rest)


def is_plain(name: str) -> bool:
    """Is a published tensor the same as nanoft's?"""
    return not is_transposed(name) and not name.endswith(
        (".c_attn.bias", ".position_embeddings.weight", ".token_type_embeddings.weight"))


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


def new_tensor(name: str, shape: torch.Size) -> torch.Tensor:
    """Initial weights of a head, as in BERT: normal (deviation 0.02, equal in every process); norms 1, biases 0."""
    if len(shape) == 1:
        return torch.full(shape, float(name == "norm.weight"))
    return torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))


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
