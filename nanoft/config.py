"""The options of a script: defaults (a dataclass) <- config/NAME.py <- --key=value, typed and checked.

A script declares its options once, as a dataclass with one line and one comment a field:

    @dataclass
    class Config:
        lr: float = 1e-3                            # peak learning rate
        dtype: Literal["auto", "float32"] = "auto"  # number format of the matrix products

and calls `config.load(Config)`. The comments are what `--help` prints. Every problem of a config file and of
the command line is collected and reported together, before anything is loaded or written.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import os
import runpy
import sys
import types
import typing
from pathlib import Path

from nanoft import HOME, UserError
from nanoft.files import read_json

LARGEST = 2**31  # of sizes and counts; of seeds 2**63
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "texts (in brackets)"}
OTHER_NAMES = {  # what other programs call our options, for suggestions
    "lr": "learning_rate base_lr max_lr", "optimizer": "optim", "schedule": "lr_scheduler_type lr_scheduler scheduler",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_proportion warmup_iters",
    "grad_clip": "max_grad_norm clip_grad gradient_clip_val", "weight_decay": "wd l2 l2_regularization",
    "epochs": "num_epochs num_train_epochs n_epochs max_epochs", "max_steps": "max_iters num_steps num_train_steps",
    "batch_size": "per_device_train_batch_size train_batch_size bs",
    "micro_batch_size": "gradient_accumulation_steps grad_accum",
    "max_length": "max_seq_length max_seq_len seq_len max_len model_max_length block_size",
    "block_size": "max_seq_length max_seq_len seq_len max_len context_length n_ctx n_positions max_length",
    "n_layer": "num_layers num_hidden_layers n_layers depth", "n_head": "num_heads num_attention_heads n_heads",
    "n_embd": "hidden_size d_model embed_dim dim width", "dropout": "hidden_dropout_prob hidden_dropout p_dropout",
    "patience": "early_stopping_patience early_stopping", "eval_interval": "eval_steps eval_every",
    "log_interval": "logging_steps log_every", "tokenizer": "tokenizer_name tokenizer_name_or_path",
    "mask_prob": "mlm_probability masked_lm_prob", "lora_rank": "lora_r", "dtype": "fp16 bf16 precision",
    "init_from": "model_name_or_path model_name model pretrained checkpoint base_model",
    "checkpoint": "model_name_or_path model_name model model_path ckpt init_from out_dir",
    "out_dir": "output_dir save_dir run_dir", "output": "output_file out out_file", "input": "input_file file",
    "data": "dataset dataset_name data_dir", "train_file": "train_data data_path train_path", "kind": "task task_name",
    "val_file": "validation_file eval_file dev_file valid_file", "text_column": "text_column_name input_column",
    "label_column": "label_column_name target_column", "eval_only": "do_eval evaluate", "max_new_tokens": "max_tokens",
    "resume": "resume_from_checkpoint", "metric": "metric_for_best_model", "num_samples": "num_return_sequences n",
}
BUDGETS = {"epochs", "max_steps", "max_minutes"}  # one in the command replaces those that a resumed run had


def load(cls, argv=None, check=None, others=False, usual="", fixed=()):
    """The options of a script, an instance of cls. Raises UserError naming every problem; `--help` prints and exits.

    cls: a dataclass whose fields are int, float, bool, str, tuple (of strings) or Literal of strings.
    argv: the command line without the program's name: `--key=value`, or `--key value`; any other word is a config file.
    check: called as check(cfg), gives a list of sentences on values that cannot go together.
    others: whether a config file may set options that cls lacks, for a tool that needs only some of a script's.
    usual: the config file that is read where the command names none, and neither data nor a model to go on with.
    fixed: options that eval_only takes from the run that is measured, so that another value would be ignored.
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in argv):
        print(describe(cls), flush=True)
        raise SystemExit(0)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values, problems = {}, []

    def put(key, value, where, parse):
        if key not in fields and others and parse is accept:
            return
        if key not in fields:
            plain = key.lower().replace("-", "_")
            near = ([name for name, aliases in OTHER_NAMES.items() if name in fields and plain in aliases.split()]
                    or difflib.get_close_matches(plain, fields, n=3, cutoff=0.5))
            hint = f"did you mean {' or '.join(near)}?" if near else "see --help for all options"
            problems.append(f"{where}: unknown option {key!r}; {hint}")
            return
        try:
            value = parse(value, fields[key].type)
            values[key] = values.get(key, ()) + value if fields[key].type is tuple else value
        except ValueError as error:
            problems.append(f"{where}: {key} {error}")

    options, paths = split_words(argv, fields)
    named = paths or {"data", "init_from", "resume", "eval_only"} & {key for _, key, _ in options}
    for path in paths if named or not usual else [usual]:  # files first: the command line comes last
        for key, value in read_file(path).items():
            put(key, value, path, accept)
    for word, key, value in options:
        if (key, value) == ("resume", "auto") and key in fields:  # for torchrun --max-restarts: fresh the first time
            continue
        put(key, value, word, parse_text)
    if any(option[1:] == ("resume", "auto") for option in options) and "resume" in fields:
        begun = Path(values.get("out_dir", fields["out_dir"].default), "latest.pt").exists()
        values["resume"] = begun or bool(values.get("seeds") or values.get("grid"))  # runs with a latest.pt each
    if (values.get("resume") or values.get("eval_only")) and "out_dir" in fields:
        saved, remembered = remembered_options(values, fields)  # those given now come last
        if values.get("eval_only") and not values.get("adapter"):
            problems += [f"eval_only reads all rows or text as {saved.parent} did in training; leave out --{key}"
                         for key in fixed if key in values and remembered.get(key, values[key]) != values[key]]
        replaced = BUDGETS if BUDGETS & {key for _, key, _ in options} else set()
        for key in remembered.keys() & fields.keys() - values.keys() - {"resume", "eval_only"} - replaced:
            put(key, tuple(x) if isinstance(x := remembered[key], list) else x, str(saved), accept)
    problems += [f"{key}={value:,} is too large; use less than {LARGEST:,}" for key, value in values.items()
                 if type(value) is int and abs(value) >= LARGEST and key != "seed"]
    cfg = cls(**values)
    problems += check(cfg) if check else []
    if problems:
        raise UserError("\n".join(problems))
    return cfg


def remembered_options(values: dict, fields: dict) -> tuple[Path, dict]:
    """The config.json of the run that is meant: of out_dir, or where train.py --eval_only has one, of init_from.

    There init_from is always the model that is measured, and out_dir is its folder unless it is given.
    """
    folder = Path(values.get("out_dir", fields["out_dir"].default))
    if values.get("eval_only") and "adapter" not in fields:
        source = Path(values.setdefault("init_from", str(folder)))
        folder = source.parent if source.suffix == ".pt" else source
        values.setdefault("out_dir", str(folder))
        if not any((folder / name).exists() for name in ("best.pt", "latest.pt")):
            return folder, {}  # the config.json of a published model is not ours
    return (file := folder / "config.json"), read_json(file, {str: object}, {})


def split_words(argv, fields: dict) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The options of a command line, [(word, key, value)], and its other words.

    An option without "=" takes the next word as its value, if that is no option and no config file; a bool only true
    or false. A bool, or a choice that can be "true", is true where no value is given.
    """
    options, others, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            others.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        is_bool = key in fields and fields[key].type is bool
        if not equals and words and not words[0].startswith("--") and (
                words[0].lower() in ("true", "false") if is_bool else not words[0].endswith(".py")):
            value = words.pop(0)
        switch = is_bool or key in fields and "true" in typing.get_args(fields[key].type)
        options.append((word, key, "true" if switch and not equals and not value else value))
    return options, others


def load_tool(cls, usage: str, argv=None, most: int = 1000, check=None):
    """The options of a tool (python -m nanoft NAME), and its other words: files or folders, 1 to `most` of them.

    usage: a line such as "bins FILE"; check: as for load. Raises UserError.
    """
    argv = sys.argv[1:] if argv is None else argv
    others = split_words(argv, {f.name: f for f in dataclasses.fields(cls)})[1]
    words = [word for word in others if not word.startswith("-")]
    options = load(cls, [word for word in argv if word not in words], check)
    if not 1 <= len(words) <= most:
        raise UserError(f"{len(words)} files or folders given; usage: python -m nanoft {usage}")
    return options, words


# ---- ranges, for a script's check() --------------------------------------------------------------------------------


def at_least(cfg, low: float, *names: str) -> list[str]:
    """A sentence for each of these options that is below `low`, or no number."""
    return [f"{name}={getattr(cfg, name)} must be {low} or more" for name in names if not getattr(cfg, name) >= low]


def fraction(cfg, *names: str, one: bool = True) -> list[str]:
    """A sentence for each of these options that does not lie between 0 and 1; one: whether 1 itself is allowed."""
    return [f"{name}={getattr(cfg, name)} must lie between 0 and 1" + " (1 excluded)" * (not one) for name in names
            if not 0 <= getattr(cfg, name) <= 1 or (not one and getattr(cfg, name) == 1)]


def run_problems(cfg) -> list[str]:
    """Sentences on what train.py and finetune.py have in common: the run's folder, and how a batch divides."""
    problems = []
    out_dir = Path(cfg.out_dir)
    if not cfg.out_dir or (out_dir.exists() and not out_dir.is_dir()):
        problems.append(f"out_dir={cfg.out_dir!r} is not a folder; name one for this run")
    source = Path(cfg.init_from)
    is_source = cfg.out_dir and out_dir.resolve() == (source.parent if source.is_file() else source).resolve()
    holds = f"holds the model to begin from, init_from={source}" * bool(is_source and source.exists())
    models = [path.name for form in ("best.pt", "*.safetensors", "pytorch_model*.bin") for path in out_dir.glob(form)]
    if models and not (out_dir / "latest.pt").exists():
        holds = holds or f"holds a model ({', '.join(models)}) that is no run"
        if "best.pt" in models and (out_dir / "metrics.jsonl").exists():
            holds = ("holds the best.pt of a run without its latest.pt (it was killed as it first saved, or that file "
                     "was removed; without best.pt the run starts anew)")
    if holds and not cfg.resume and not getattr(cfg, "eval_only", False):
        problems.append(f"out_dir={cfg.out_dir} {holds}, which this run would replace; give a new folder")
    ranks, micro = torchrun()[1], max(cfg.micro_batch_size, 1)
    if cfg.micro_batch_size >= 0 and cfg.batch_size % (ranks * micro):
        problems.append(f"batch_size={cfg.batch_size} does not divide into {ranks} process(es) x micro_batch_size="
                        f"{micro}; choose a multiple of {ranks * micro}")
    return problems


def torchrun() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) by torchrun, else (0, 1, 0). Raises UserError if another set it."""
    names = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
    try:
        rank, world_size, local = (int(os.environ.get(name, default)) for name, default in
                                   (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    except ValueError:
        rank = world_size = local = -1
    if not 0 <= rank < world_size or local < 0 or (names and "MASTER_ADDR" not in os.environ):
        raise UserError(f"{' and '.join(names) or 'LOCAL_RANK'} is set in the environment, but not by torchrun; unset "
                        "it (env -u RANK -u WORLD_SIZE ...), or start with torchrun --nproc_per_node=N")
    return rank, world_size, local


# ---- values ------------------------------------------------------------------------------------------------------


def read_file(path):
    """The plain assignments of a config file, by name. Names that start with `_` are the file's own."""
    file = next((file for file in (Path(path), HOME / path) if file.is_file()), None)  # here, or nanoft's own
    if not path.endswith(".py") or file is None:
        raise UserError(f"{path}: no such config file; give a file such as config/wikitext.py, or --key=value")
    try:
        found = runpy.run_path(str(file))
    except Exception as error:  # whatever a user's file can raise
        raise UserError(f"{path}: this config file does not run ({type(error).__name__}: {error}); mend it") from None
    return {k: v for k, v in found.items() if not k.startswith("_") and not isinstance(v, types.ModuleType)}


def parse_text(text, kind):
    """A value from the command line, read by the field's type; a tuple's may come several times. Raises ValueError."""
    if kind is tuple:
        return (text,)
    if kind is str or typing.get_origin(kind) is typing.Literal:
        return accept(text, kind)
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = text
    return accept(value, kind)


def accept(value, kind):
    """A Python value as the field's type: an int will do for a float, nothing else changes. Raises ValueError."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        text = str(value).lower() if isinstance(value, bool) else value  # compile = True in a file is "true"
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {value!r}")
        return text
    if kind is float and type(value) is int and abs(value) < 10**300:
        value = float(value)
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError("is too large")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    if kind is int and type(value) is float and value.is_integer():  # 1e6 is how people write a million
        return int(value)
    if type(value) is not kind:
        raise ValueError(f"must be {NAMES[kind]}, not {value!r:.100}")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("has a character of code 0, which no name has")
    return value


def describe(cls):
    """The text of --help: the module's first paragraph, then every field with its default and its comment."""
    lines = [(sys.modules[cls.__module__].__doc__ or "").strip(), "", "options (in a config file: key = value):"]
    comments = {}
    for line in inspect.getsource(cls).splitlines():
        code, _, comment = line.partition("  #")
        comments[code.partition(":")[0].strip()] = comment.strip()
    for field in dataclasses.fields(cls):
        comment = comments.get(field.name, "")
        if choices := typing.get_args(field.type):
            comment = f"{'|'.join(choices)}: {comment}"
        lines.append(f"  --{field.name + '=' + str(field.default):28} {comment}")
    return "\n".join(lines)


def run(main):
    """Call a script's main(). A UserError ends it with its sentence on stderr and exit code 2.

    So do the errors of the machine, not of the program: a file that cannot be written or named, no memory left, texts
    nested too deep. Where the output's reader has gone (`| head`), it ends without a word, as other programs do.
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # closed: 2>&-
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows another, and the run goes on
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        main()
        print(end="", flush=True)  # a pipe that is broken shows now, not when Python ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left to be flushed then
        raise SystemExit(128 + 13) from None  # as after SIGPIPE
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except UserError as error:
        stop("\n".join(f"error: {line}" for line in str(error).splitlines()))
    except (OSError, UnicodeError, MemoryError, RecursionError) as error:
        stop(f"error: {type(error).__name__}: {error}; free some space or memory, or give another file or folder")
    except RuntimeError as error:  # torch has no class of its own for a CPU that has no memory left
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        stop(f"error: no memory left ({str(error).splitlines()[0]:.150}); lower --micro_batch_size, or the model")


def stop(message: str) -> None:
    """End with a message on stderr and exit code 2."""
    print(message, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk; it would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(2)
