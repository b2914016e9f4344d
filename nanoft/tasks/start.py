"""Where fine-tuning begins: a checkpoint, its tokenizer, the rows, the model's shape and the task, each checked."""

import statistics
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from nanoft import UserError, checkpoint, distributed
from nanoft.model import ModelConfig
from nanoft.published.source import open_checkpoint
from nanoft.tasks import examples, features, lora, predict
from nanoft.tasks.heads import TaskModel
from nanoft.text import prepare, vocabulary


def open_source(cfg):
    """The checkpoint to go on with (resume), to measure (eval_only) or to begin from (init_from), and its path."""
    out_dir = Path(cfg.out_dir)
    latest = out_dir / "latest.pt"
    if cfg.resume:
        if not latest.exists():
            raise UserError(f"{out_dir} holds no latest.pt to resume; run without --resume to start there")
        source = checkpoint.load(latest)
        if "task" not in source:
            raise UserError(f"{out_dir} is a run of pretraining, not of fine-tuning; begin from it by --init_from, "
                            "with another --out_dir")
        for name in ("optimizer", "lora_rank", "freeze_blocks", "average"):
            if source["config"][name] != getattr(cfg, name):
                raise UserError(f"{latest} is of a run with another {name}; resume with the one it began with, or "
                                "start another run with --init_from")
        return source, latest
    if cfg.eval_only and not cfg.adapter:
        return open_checkpoint(out_dir / "best.pt")
    if cfg.init_from == "scratch":
        return None, None
    source, path = open_checkpoint(cfg.init_from)
    return (put_adapter(source, path, cfg.adapter) if cfg.adapter else source), path


def put_adapter(base, path, adapter_path):
    """A checkpoint's dictionary: the base model's weights with an adapter merged in, and the adapter's head."""
    adapter, _ = open_checkpoint(adapter_path)
    if not {"rank", "alpha", "task"} <= adapter.keys():
        raise UserError(f"{adapter_path} is no adapter; give the adapter.pt of a run with --lora_rank")
    model = TaskModel(ModelConfig.from_saved(adapter["model_config"], adapter_path), adapter["task"])
    lora.add(model.trunk, adapter["rank"], adapter["alpha"])
    own = model.state_dict()
    checkpoint.load_weights(model, {k: v for k, v in base["model"].items() if k in own} | adapter["model"], path)
    return adapter | {"model": lora.merged(model)}


def open_data(cfg, dist, source, place):
    """The task, {"train": rows, "val": rows, perhaps "test"}, and the model's tokenizer (from scratch: the data's).

    Rank 0 prepares the folder if need be while the others wait.
    """
    folder = None if cfg.train_file else prepare.find_data(cfg.data)
    if folder and dist.main:
        prepare.ensure(folder, ("train.jsonl", "val.jsonl", "task.json"))
    distributed.barrier(dist)
    home = place.parent if place else folder
    if home is None:
        raise UserError("a model from scratch needs a tokenizer, and train_file brings none; give --init_from")
    tokenizer = vocabulary.load(home)
    with nullcontext() if dist.main else redirect_stdout(None):
        if folder:
            task, rows = examples.load_task(folder)
        else:
            task, rows = examples.from_table(cfg.train_file, cfg.kind, cfg.text_column, cfg.pair_column,
                                             cfg.label_column, cfg.val_file, cfg.test_file, cfg.val_fraction,
                                             separator=cfg.separator)
    if cfg.drop_duplicates or cfg.drop_empty:
        rows["train"], figures = examples.clean(rows["train"], cfg.drop_duplicates, cfg.drop_empty)
        if dist.main:
            print(f"train: {figures['rows'] - len(rows['train']):,} of {figures['rows']:,} rows left out")
        if not rows["train"]:
            raise UserError("drop_empty leaves no training row; give rows with text in them")
    return task, rows, tokenizer


def scratch_model(cfg):
    """The model that the options describe, for check and for a start from scratch."""
    return ModelConfig(n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd, n_gram=cfg.n_gram,
                       n_buckets=cfg.n_buckets, dropout=cfg.dropout,
                       block_size=max(1, cfg.max_length or 128))


def model_shape(cfg, source, place, tokenizer, task):
    """The ModelConfig: the checkpoint's, or of the options for a start from scratch."""
    if source is None:
        shape = replace(scratch_model(cfg), vocab_size=tokenizer.vocab_size, causal=task["kind"] == "generate")
    else:
        shape = ModelConfig.from_saved(source["model_config"], place)
    if shape.vocab_size != tokenizer.vocab_size and not (shape.vocab_size > tokenizer.vocab_size
                                                         and shape.vocab_multiple == 1):  # published with padding
        raise UserError(f"{place} has a vocabulary of {shape.vocab_size:,}, but the tokenizer beside it "
                        f"{tokenizer.vocab_size:,}; copy the tokenizer.json there from where the model was trained")
    if cfg.max_length > shape.block_size:
        if shape.position == "learned":
            raise UserError(f"max_length={cfg.max_length} is more than the {shape.block_size} positions that {place} "
                            "has learned; use that many, or fewer")
        shape = replace(shape, block_size=cfg.max_length)
    if cfg.match_types:
        if task["kind"] not in features.TWO_TEXTS:
            raise UserError(f"match_types compares two texts, which a {task['kind']} task has not; leave it out")
        shape = replace(shape, n_types=4)  # of each text, the tokens that it alone has and those of both
    if task["kind"] == "generate" and not shape.causal:
        raise UserError(f"{place} is an encoder, which cannot generate; give a GPT by --init_from")
    if cfg.pool == "cls" and shape.causal:
        raise UserError("pool=cls is the first token, which in a GPT has seen no other; use last or mean")
    return replace(shape, dropout=cfg.dropout)


def complete_task(task, cfg, shape, rows):
    """The task with all that encoding, the head and the answers need to know: it goes into the checkpoint."""
    train = rows["train"]
    task = task | {"metric": cfg.metric or task["metric"],
                   "max_length": cfg.max_length or shape.block_size, "long_text": cfg.long_text,
                   "doc_stride": cfg.doc_stride, "match_types": cfg.match_types,
                   "head_dropout": cfg.head_dropout, "label_smoothing": cfg.label_smoothing,
                   "pool": {"auto": "last" if shape.causal else "mean"}.get(cfg.pool, cfg.pool)}
    kind = task["kind"]
    if task["max_length"] < 8:
        raise UserError(f"a block_size of {task['max_length']} has no room for a text; give --max_length=64, say")
    if kind == "regress":  # the head learns numbers of mean 0 and deviation 1
        labels = [row["label"] for row in train]
        task |= {"mean": statistics.fmean(labels), "deviation": statistics.pstdev(labels)}
    if kind == "answer":
        task |= {"max_answer": cfg.max_answer, "v2": any(not row["answers"] for some in rows.values() for row in some)}
    if kind == "tag" and task["metric"] == "f1" and not predict.has_entities(task["labels"]):
        task["metric"] = "accuracy"
    if cfg.long_text == "windows" and any("pair" in row for row in train):
        raise UserError("long_text=windows is for single texts; for pairs use head, tail or head_tail")
    if cfg.class_weights == "balanced" and (kind not in examples.LABELLED or task.get("multi_label")):
        raise UserError(f"class_weights=balanced needs one class an example, which a {kind} task "
                        f"{'with several labels ' * bool(task.get('multi_label'))}has not; leave it out")
    return task


def same_task(source, place, task):
    """Raises UserError where a run to be resumed had another task: its head would be read wrongly."""
    for name in ("kind", "labels", "multi_label", "mean", "deviation", "v2", "pool", "match_types"):
        if (source["task"].get(name) or None) != (task.get(name) or None):  # older runs lack what was not there yet
            before, now = (f"{some.get(name)!r:.80}" for some in (source["task"], task))
            raise UserError(f"{place} is of a run with other data or options ({name} was {before}, now {now}); resume "
                            "with those that it began with")


def known_task(source, place, given, rows):
    """The task of a fine-tuned checkpoint. Raises UserError if it has none, or other rows or labels than given."""
    if "task" not in source:
        raise UserError(f"{place} is not fine-tuned: it has no task; train first, without --eval_only")
    task = source["task"]
    if (task["kind"], task.get("multi_label", False)) != (given["kind"], given.get("multi_label", False)):
        raise UserError(f"{place} is of a {task['kind']} task, which these rows are not; give other data")
    if task["kind"] == "answer":  # questions without an answer are scored as such, whether or not it was trained on any
        task = task | {"v2": task["v2"] or any(not row["answers"] for some in rows.values() for row in some)}
    for split, some in rows.items():
        if task["kind"] in examples.LABELLED:
            for label in sorted({x for row in some for x in examples.labels_of(row)} - set(task["labels"])):
                raise UserError(f"label {label!r} of the {split} rows is unknown to {place}; give the data of its run")
    return task


def take_weights(model, source, place, dist):
    """The checkpoint's trunk, and its head if it is of the same task; says what begins anew and what is left out."""
    own, task = model.state_dict(), source.get("task", {})
    same = all(task.get(name) == model.task.get(name) for name in ("kind", "labels"))
    weights = {name: tensor for name, tensor in source["model"].items()
               if name in own and (same or not name.startswith("task_head."))}
    fresh = ("task_head.", "pooler.")
    if model.task.get("match_types"):  # a token that both texts have begins with the type that it had without
        fresh += ("trunk.types.",)
        if (types := weights.get("trunk.types.weight")) is not None:  # (2, C), or of such a run (4, C) -> (4, C)
            weights["trunk.types.weight"] = types.repeat(model.cfg.n_types // len(types), 1)
    checkpoint.load_weights(model, weights, place, fresh)
    if dist.main:
        fresh, unused = sorted(own.keys() - weights.keys()), sorted(source["model"].keys() - weights.keys())
        print(f"{place}: {len(weights)} weights taken; new: {', '.join(fresh) or 'none'}; of no use here: "
              f"{', '.join(unused) or 'none'}")
