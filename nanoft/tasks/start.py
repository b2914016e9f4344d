"""Where fine-tuning starts: checkpoint -> tokenizer and rows -> the model's shape -> the complete task -> weights.

In this order finetune.py calls the functions below. Each raises UserError where the options, the data and the
checkpoint do not fit together. `source` is the checkpoint's dictionary, None from scratch; `path` is its file.
"""

import statistics
from collections import Counter
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nanoft import UserError, bpe, checkpoint, distributed, files
from nanoft.distributed import Dist
from nanoft.model import ModelConfig
from nanoft.published.source import open_checkpoint, open_model
from nanoft.tasks import collate, examples, features, images, linear, lora, metrics, predict
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary


def open_source(cfg) -> tuple[dict | None, Path | None]:
    """The checkpoint to resume, to evaluate (eval_only) or to start from (init_from), and its path."""
    if cfg.resume:
        return open_latest(cfg)
    if cfg.eval_only and not cfg.adapter:
        return open_checkpoint(Path(cfg.out_dir, "best.pt"))
    if cfg.init_from == "scratch":
        return None, None
    source, path = open_checkpoint(cfg.init_from)
    typed = {name: getattr(cfg, name) for name in ("n_layer", "n_head", "n_embd", "n_gram", "n_buckets")}
    other = [f"--{name}={value}" for name, value in typed.items() if not cfg.eval_only
             and value not in (getattr(type(cfg), name), source["model_config"].get(name))]
    if other:
        raise UserError(f"{path} is a model of another shape than {' '.join(other)}; leave that out, or leave out "
                        "init_from for a new model")
    return (merge_adapter(source, path, cfg.adapter) if cfg.adapter else source), path


def open_latest(cfg) -> tuple[dict, Path]:
    """The checkpoint that out_dir's run goes on with, if it is a fine-tuning run with the same kind of weights."""
    path = Path(cfg.out_dir, "latest.pt")
    if not path.exists():
        raise UserError(f"{path.parent} holds no latest.pt to resume; run without --resume to start there")
    source = checkpoint.load(path)
    if "task" not in source:
        raise UserError(f"{path.parent} is a run of pretraining, not of fine-tuning; begin from it by --init_from, "
                        "with another --out_dir")
    for name in ("optimizer", "lora_rank", "freeze_blocks", "average"):
        if getattr(cfg, name) not in (source["config"][name], AUTO.get(name)):
            raise UserError(f"{path} is of a run with another {name}; resume with the one it began with, or "
                            "start another run with --init_from")
    return source, path


def merge_adapter(base: dict, path: Path, adapter_path: str) -> dict:
    """A checkpoint's dictionary: the base model's weights with an adapter merged in, and the adapter's head."""
    adapter, _ = open_checkpoint(adapter_path)
    if not {"rank", "alpha", "task"} <= adapter.keys():
        raise UserError(f"{adapter_path} is no adapter; give the adapter.pt of a run with --lora_rank")
    model = TaskModel(ModelConfig.from_saved(adapter["model_config"], adapter_path), adapter["task"])
    lora.add(model.trunk, adapter["rank"], adapter["alpha"])
    own = model.state_dict()
    checkpoint.load_weights(model, {k: v for k, v in base["model"].items() if k in own} | adapter["model"], path)
    return adapter | {"model": lora.merged(model)}


def open_data(cfg, dist: Dist, source: dict | None, path: Path | None) -> tuple[dict, dict[str, list[dict]], object]:
    """The task, {"train": rows, "val": rows, perhaps "test"}, and the checkpoint's tokenizer, or else the data's.

    Rank 0 prepares the folder if need be while the others wait.
    """
    folder = None if cfg.train_file else prepare.find_data(cfg.data)
    if folder and dist.main:
        prepare.ensure(folder, ("train.jsonl", "val.jsonl", "task.json"))
    distributed.barrier(dist)
    with nullcontext() if dist.main else redirect_stdout(None):
        task, rows = examples.load_task(folder) if folder else examples.from_table(
            cfg.train_file, cfg.kind, cfg.text_column, cfg.pair_column, cfg.label_column, cfg.val_file, cfg.test_file,
            cfg.val_fraction, cfg.separator, cfg.columns, cfg.encoding)
    before = (source or {}).get("task", {})  # of a fine-tuned checkpoint
    shown, read = ("pictures" if t.get("kind") == "image" else "texts" for t in (task, before))
    if source and shown != read:
        raise UserError(f"{path} reads {read}, and these rows hold {shown}; begin from another model, or other data")
    if shown == "pictures":
        picture = images.picture_of(cfg, before, rows["train"][0]["image"])
        return task | {"picture": picture}, rows, images.PixelTokenizer()
    if home := path or folder:
        tokenizer = vocabulary.of_checkpoint(home) if path else vocabulary.load(home)
        checkpoint.check_tokenizer(source or {}, tokenizer, path)
        if before.get("leading_space"):  # as this tokenizer was learned
            task |= {"leading_space": True}
        return task, rows, tokenizer
    return task | {"leading_space": True}, rows, learn_tokenizer(rows["train"])


def learn_tokenizer(rows: list[dict]) -> bpe.Tokenizer:
    """A tokenizer learned from the training rows, for a table without a pretrained model.

    Where words are not separated by spaces, small tokens, a character or two, generalise better (LOG.md).
    """
    names = (*examples.INPUTS, "response")
    texts = [row[name] for row in rows for name in names if isinstance(row.get(name), str)]
    texts += [word for row in rows for word in row.get("words", ())]
    spaces = sum(text.count(" ") for text in texts) / max(1, sum(map(len, texts)))
    return bpe.train([f" {text}" for text in texts], vocab_size=16384 if spaces > 0.05 else 4096, progress=False)


# ---- options that follow from the data ---------------------------------------------------------------------------

# The values that stand for "choose": by where the model comes from, the kind of task and the number of rows.
AUTO = {"optimizer": "auto", "lr": 0.0, "muon_lr": 0.0, "embed_lr": 0.0, "head_lr": 0.0, "epochs": 0.0, "n_layer": -1,
        "linear": "auto", "match_types": "auto", "max_length": 0}
# Options of blocks or of their training: without pretrained blocks, one of them asks for new ones.
OF_BLOCKS = ("pool", "match_types", "token_drop", "token_mask", "n_layer", "n_head", "n_embd", "n_gram", "n_buckets",
             "batch_size", "epochs", "max_steps", "optimizer", "lr", "head_lr", "embed_lr", "muon_lr", "layer_decay",
             "weight_decay", "grad_clip", "adversarial", "schedule", "warmup", "dropout", "head_dropout",
             "freeze_blocks", "unfreeze_every", "lora_rank", "average", "patience", "teacher")


def choose_options(cfg, source: dict | None, task: dict, rows: dict[str, list[dict]], tokenizer):
    """The options with every AUTO replaced, and a line that says what was chosen. LOG.md has the measurements.

    From scratch, texts are classified, compared and rated by a linear model of n-grams, which needs no steps, unless
    an option is of blocks; other kinds get two blocks. Beside pretrained blocks of nanoft's own it is a second opinion.
    Rotated positions are read further than they were trained, so a text is not cut at a small block_size.
    A model of nanoft's own learns fastest by Muon; published weights want small steps, large ones smaller still.
    """
    kind, n_rows = task["kind"], len(rows["train"])
    published = source is not None and not source["model_config"].get("qk_norm", True)
    alone = (not source and kind in features.WHOLE_TEXT and cfg.linear != "false"
             and all(getattr(cfg, name) == getattr(type(cfg), name) for name in OF_BLOCKS))
    if alone or cfg.resume and source and not (source["model_config"]["n_layer"] or source["step"]):
        choice = {"n_layer": 0, "n_head": 1, "n_embd": 8, "linear": "true", "max_length": cfg.max_length or 2048}
        choice |= {"optimizer": "adamw", "match_types": "false"}
        return replace(cfg, **choice), (f"chosen  a linear model of n-grams ({kind} from scratch), the same for every "
                                        "seed; --epochs=3 would train blocks beside it")
    choice = {"epochs": 3.0 if n_rows < 20_000 else 2.0, "match_types": "false"} | ({} if source else {"n_layer": 2})
    # beside published weights it helps long texts only, and other programs, to which these may return, lack it
    choice["linear"] = "true" if kind in features.LINEAR and not published and not cfg.lora_rank else "false"
    if kind == "image" and not published:
        choice |= {"epochs": 10.0, "optimizer": "muon", "lr": 2e-3, "muon_lr": 0.02}
        choice |= {} if cfg.head_lr or cfg.lr else {"head_lr": 0.01}
    elif published or kind == "generate":
        width = source["model_config"]["n_embd"] if source else cfg.n_embd
        choice |= {"optimizer": "adamw", "lr": 3e-4 if width <= 400 else 5e-5, "muon_lr": 0.002}
    else:
        choice |= {"optimizer": "muon", "lr": 1e-3, "muon_lr": 0.01}
        if not cfg.lr:  # the rates of embeddings and head follow a given lr
            size = 0.1 if source and source["model_config"].get("tie_head") else 1.0  # of a tied embedding (LOG.md)
            choice |= {"embed_lr": cfg.embed_lr or (0.03 if kind in features.WHOLE_TEXT else 0.01) * size,
                       "head_lr": cfg.head_lr or 0.01}
        if (kind in features.TWO_TEXTS and not (cfg.lora_rank or cfg.freeze_blocks)  # the types have to be trained
                and any("pair" in row or "question" in row for row in rows["train"])):
            choice["match_types"] = "true"
    if source and kind in features.WHOLE_TEXT and source["model_config"].get("position", "rope") == "rope":
        some = rows["train"][::-(-n_rows // 500)]
        lengths = sorted(len(tokenizer.encode(f"{row['text']} {row.get('pair', '')}")) for row in some)
        needed = lengths[int(0.9 * len(lengths))] + 4  # nine of ten rows fit, special tokens included
        if needed > source["model_config"]["block_size"]:
            choice["max_length"] = min(needed, max(512, source["model_config"]["block_size"]))
    choice = {name: value for name, value in choice.items() if getattr(cfg, name) == AUTO.get(name, 0.0)}
    shown = [f"{name}={value}" for name, value in choice.items() if not (name == "epochs" and cfg.max_steps)]
    began = "published weights" if published else "a model of nanoft's own" if source else "from scratch"
    return replace(cfg, **choice), f"chosen  {' '.join(shown)} ({kind}, {began}, {n_rows:,} rows)"


def scratch_shape(cfg) -> ModelConfig:
    """The shape that the options describe, for check() and for a model from scratch."""
    return ModelConfig(n_layer=2 if cfg.n_layer == -1 else cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd,
                       n_gram=cfg.n_gram, n_buckets=cfg.n_buckets, dropout=cfg.dropout,
                       block_size=max(1, cfg.max_length or 128))


def model_shape(cfg, source: dict | None, path: Path | None, tokenizer, task: dict) -> ModelConfig:
    """The checkpoint's shape, or from scratch the one of the options, with what the task changes in it."""
    if source:
        shape = ModelConfig.from_saved(source["model_config"], path)
    else:
        shape = replace(scratch_shape(cfg), vocab_size=tokenizer.vocab_size, causal=task["kind"] == "generate")
    if "picture" in task:
        shape = replace(shape, block_size=images.n_tokens(task["picture"]))
    is_padded = shape.vocab_size > tokenizer.vocab_size and shape.vocab_multiple == 1  # as some were published
    if shape.vocab_size != tokenizer.vocab_size and not is_padded:
        raise UserError(f"{path} has a vocabulary of {shape.vocab_size:,}, but the tokenizer beside it "
                        f"{tokenizer.vocab_size:,}; copy the tokenizer.json there from where the model was trained")
    if cfg.max_length > shape.block_size:
        if shape.position == "learned":
            raise UserError(f"max_length={cfg.max_length} is more than the {shape.block_size} positions that {path} "
                            "has learned; use that many, or fewer")
        shape = replace(shape, block_size=cfg.max_length)
    if cfg.match_types == "true":
        if task["kind"] not in features.TWO_TEXTS:
            raise UserError(f"match_types compares two texts, which a {task['kind']} task has not; leave it out")
        shape = replace(shape, n_types=4)  # of each text, the tokens that it alone has and those of both
    if task["kind"] == "generate" and not shape.causal:
        raise UserError(f"{path} is an encoder, which cannot generate; give a GPT by --init_from")
    if cfg.pool == "cls" and shape.causal:
        raise UserError("pool=cls is the first token, which in a GPT has seen no other; use last or mean")
    return replace(shape, dropout=cfg.dropout)


def complete_task(task: dict, cfg, shape: ModelConfig, rows: dict[str, list[dict]], tokenizer) -> dict:
    """The task with all that features, head and predictions need to know: it is saved in the checkpoint."""
    kind = task["kind"]
    task = task | {"metric": cfg.metric or task["metric"], "max_length": cfg.max_length or shape.block_size,
                   "pool": {"auto": "last" if shape.causal else "mean"}.get(cfg.pool, cfg.pool)}
    if task.get("picture", {}).get("cls") and cfg.pool == "auto":
        task["pool"] = "cls"
    task |= {name: getattr(cfg, name) for name in ("long_text", "doc_stride", "head_dropout")}
    task |= {"match_types": cfg.match_types == "true", "linear": cfg.linear == "true"}
    if kind in features.LINEAR and linear.n_outputs(task) <= 4:
        task["linear_buckets"] = 2**20  # 12 MB for two classes; in fewer, many pairs share a row (LOG.md)
    if task["max_length"] < 8:
        raise UserError(f"a block_size of {task['max_length']} has no room for a text; give --max_length=64, say")
    if kind == "regress":  # the head learns numbers of mean 0 and deviation 1
        labels = [row["label"] for row in rows["train"]]
        task |= {"mean": statistics.fmean(labels), "deviation": statistics.pstdev(labels)}
    if kind == "image":
        task["mirror"] = "flip" in cfg.augment
    if kind == "answer":
        lengths = sorted(len(tokenizer.encode(answer["text"])) for row in rows["train"] for answer in row["answers"])
        task |= {"max_answer": max(30, *lengths[int(0.99 * len(lengths)):][:1]), "v2": has_unanswered(rows)}
    if kind == "tag" and not cfg.metric and not predict.has_entities(task["labels"]):
        task["metric"] = "accuracy"
    if kind == "tag" and predict.has_thresholds(task):
        task["transitions"] = predict.transitions(task["labels"], rows["train"])
    if cfg.long_text == "windows" and any("pair" in row for row in rows["train"]):
        raise UserError("long_text=windows is for single texts; for pairs use head, tail or head_tail")
    if cfg.adversarial and (kind == "image" or cfg.freeze_blocks or cfg.lora_rank):
        raise UserError("adversarial noise is put on the embeddings of tokens, which have to be trained; leave it out")
    if cfg.class_weights == "balanced" and (kind not in examples.LABELLED or task.get("multi_label")):
        raise UserError(f"class_weights=balanced needs one class an example, which a {kind} task "
                        f"{'with several labels ' * bool(task.get('multi_label'))}has not; leave it out")
    return task


def picture_problems(cfg) -> list[str]:
    """What is wrong with the options of pictures, as sentences."""
    unknown = sorted(set(filter(None, cfg.augment.split(","))) - set(images.AUGMENTATIONS))
    problems = [f"augment={cfg.augment}: {unknown[0]} is none of {', '.join(images.AUGMENTATIONS)}"] if unknown else []
    if cfg.patch < 2 or cfg.patch & (cfg.patch - 1):
        problems.append(f"patch={cfg.patch} must be a power of 2, for every convolution halves the sides")
    return problems


def encode(cfg, rows: dict[str, list[dict]], task: dict, tokenizer, dist: Dist) -> dict[str, features.Encoded]:
    """The features of every split. Where the task lacks the statistics of its pictures, it gets those of training."""
    collate.check_augmentation(cfg, task, tokenizer)
    encoded = {split: features.encode(some, task, tokenizer) for split, some in rows.items()}
    if "picture" in task and "mean" not in task["picture"]:
        task["picture"] |= images.statistics(encoded["train"])  # type: ignore[arg-type]
    if cfg.teacher and not cfg.eval_only:
        encoded["train"].teacher = teacher_outputs(cfg.teacher, rows["train"], task, dist)[encoded["train"].row]
    return encoded


def teacher_outputs(place: str, rows: list[dict], task: dict, dist: Dist) -> np.ndarray:
    """A finished run's outputs for each row of the same task: float32 (rows, K), regress in this task's deviations."""
    state, path, tokenizer = open_model(place)
    theirs = state.get("task", {"kind": "none"})
    if (any(theirs.get(name) != task.get(name) for name in ("kind", "labels")) or theirs.get("multi_label")
            or task.get("multi_label") or task["kind"] not in features.WHOLE_TEXT):
        raise UserError(f"teacher={place} is of kind {theirs['kind']} with labels {theirs.get('labels')!r:.80}; give a "
                        "run of the same task as these rows: classify (one label a text), pair or regress")
    model = checkpoint.load_model(state, path, partial(TaskModel, task=theirs), dist.device)
    encoded = features.encode(rows, theirs, tokenizer)
    out = predict.outputs(model, encoded, theirs, tokenizer, dist)
    if dist.main:
        found = predict.predictions(theirs, rows, encoded, out)
        score = predict.main_score(task, predict.scores(theirs, rows, found, encoded, out)[0])
        print(f"teacher {path}: {task['metric']} {abs(score):.4f} on the training rows")
    out = predict.by_row(encoded, out)
    if task["kind"] == "regress":
        out = (out * theirs["deviation"] + theirs["mean"] - task["mean"]) / task["deviation"]
    return out.astype(np.float32)


def positive_label(cfg, task: dict, rows: list[dict]) -> dict[str, str]:
    """{"positive": which of two labels f1 and auc are of}, unless the task has it; {} for other tasks.

    The given one; of a data set folder the second of its labels; of a table by metrics.positive_label.
    """
    labels = task.get("labels", [])
    if task["kind"] not in examples.ONE_LABEL or task.get("multi_label") or len(labels) != 2:
        labels = []
    if cfg.positive and cfg.positive not in labels:
        raise UserError(f"positive={cfg.positive} is none of two labels of a text; "
                        + (f"they are {' and '.join(labels)}" if labels else "leave it out"))
    if not labels or "positive" in task and not cfg.positive:
        return {}
    counts = Counter(row["label"] for row in rows)
    return {"positive": cfg.positive or (metrics.positive_label({label: counts[label] for label in labels})
                                         if cfg.train_file else labels[1])}


# The options that go with a train_file only; and all options that say which rows a run has.
OF_FILES = ("val_file", "test_file", "text_column", "pair_column", "label_column", "columns", "encoding", "separator")
DATA = ("data", "train_file", "val_fraction", "kind", *OF_FILES)


def eval_ending(cfg) -> str:
    """What --eval_only adds to the names of its files: nothing, or _eval where out_dir's own run had other rows.

    So the scores and predictions of a run on its own test rows stay.
    """
    if not cfg.eval_only or not Path(cfg.out_dir, "result.json").exists():
        return ""
    path = Path(cfg.out_dir, "config.json")
    before = files.read_json(path, {str: object}, dict.fromkeys(DATA))
    return "_eval" if any(name in before and before[name] != getattr(cfg, name) for name in DATA) else ""


def has_unanswered(rows: dict[str, list[dict]]) -> bool:
    """Are there questions that their context does not answer, as in SQuAD v2?"""
    return any(not row["answers"] for split in rows.values() for row in split)


def check_same_task(source: dict, path: Path, task: dict) -> None:
    """Raises UserError where a run to be resumed had another task: its head would be read wrongly."""
    for name in ("kind", "labels", "multi_label", "mean", "deviation", "v2", "pool", "match_types", "leading_space"):
        before, now = source["task"].get(name), task.get(name)
        if (before or None) != (now or None):  # older runs lack what was not there yet
            raise UserError(f"{path} is of a run with other data or options ({name} was {before!r:.80}, now "
                            f"{now!r:.80}); resume with those that it began with")


def saved_task(source: dict, path: Path, given: dict, rows: dict[str, list[dict]]) -> dict:
    """The task of a fine-tuned checkpoint. Raises UserError if it has none, or another kind or labels than the rows."""
    if "task" not in source:
        raise UserError(f"{path} is not fine-tuned: it has no task; train first, without --eval_only")
    task = source["task"]
    if (task["kind"], task.get("multi_label", False)) != (given["kind"], given.get("multi_label", False)):
        raise UserError(f"{path} is of a {task['kind']} task, which these rows are not; give other data")
    if task["kind"] == "answer":  # unanswered questions are scored as such, whether or not it was trained on any
        task = task | {"v2": task["v2"] or has_unanswered(rows)}
    for split in rows if task["kind"] in examples.LABELLED else ():
        labels = {label for row in rows[split] for label in examples.labels_of(row)}
        for label in sorted(labels - set(task["labels"])):
            raise UserError(f"label {label!r} of the {split} rows is unknown to {path}; give the data of its run")
    return task


def take_weights(model: TaskModel, source: dict, path: Path, dist: Dist) -> None:
    """Load the checkpoint's trunk, and its head if it is of the same task; print which weights are new or unused."""
    own, task = model.state_dict(), source.get("task", {})
    same_head = all(task.get(name) == model.task.get(name) for name in ("kind", "labels"))
    weights = {name: tensor for name, tensor in source["model"].items()
               if name in own and (same_head or not name.startswith("task_head."))}
    fresh: tuple[str, ...] = ("task_head.", "pooler.", "ngrams.")
    if model.task.get("match_types"):  # a token that both texts have starts with the type that it had without
        fresh += ("trunk.types.",)
        if (types := weights.get("trunk.types.weight")) is not None:
            weights["trunk.types.weight"] = types.repeat(model.cfg.n_types // len(types), 1)  # (2 or 4, C) -> (4, C)
    checkpoint.load_weights(model, weights, path, fresh)
    if dist.main:
        new, unused = sorted(own.keys() - weights.keys()), sorted(source["model"].keys() - weights.keys())
        print(f"{path}: {len(weights)} weights taken; new: {', '.join(new) or 'none'}; of no use here: "
              f"{', '.join(unused) or 'none'}")
