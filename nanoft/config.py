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
import os
import runpy
import sys
import types
import typing
from pathlib import Path

from nanoft import HOME, UserError
from nanoft.files import read_json


def load(cls, argv=None, check=None, others=False):
    """Read the options of a script.

    cls: a dataclass whose fields are int, float, bool, str, tuple (of strings) or Literal of strings.
    argv: the command line without the program's name; any word that is not `--key=value` is a config file.
    check: called as check(cfg), gives a list of sentences on values that cannot go together.
    others: whether a config file may set options that cls lacks, for a tool that needs only some of a script's.
    Returns an instance of cls. Raises UserError naming every problem; `--help` prints the fields and exits.
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
            near = difflib.get_close_matches(key, fields, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --help for all options"
            problems.append(f"{where}: unknown option {key!r}; {hint}")
            return
        try:
            value = parse(value, fields[key].type)
            values[key] = values.get(key, ()) + value if fields[key].type is tuple else value
        except ValueError as error:
            problems.append(f"{where}: {key} {error}")

    for word in sorted(argv, key=lambda word: word.startswith("--")):  # files first: the command line comes last
        if not word.startswith("--"):
            for key, value in read_file(word).items():
                put(key, value, word, accept)
        else:
            key, equals, value = word[2:].partition("=")
            bare_flag = not equals and key in fields and fields[key].type is bool
            put(key, "true" if bare_flag else value, word, parse_text)
    if (values.get("resume") or values.get("eval_only")) and "out_dir" in fields:  # a run remembers its options; those given now come last
        saved = Path(values.get("out_dir", fields["out_dir"].default), "config.json")
        remembered = read_json(saved) if saved.is_file() else {}
        for key in remembered.keys() & fields.keys() - values.keys() - {"resume", "eval_only"}:
            value = tuple(remembered[key]) if fields[key].type is tuple else remembered[key]
            put(key, value, str(saved), accept)
    cfg = cls(**values)
    if check is not None:
        problems += check(cfg)
    if problems:
        raise UserError("\n".join(problems))
    return cfg


def load_tool(cls, usage: str, argv=None, most: int = 1000):
    """The options of a tool (python -m nanoft NAME), and its other words: files or folders, 1 to `most` of them.

    usage: a line such as "bins FILE". Raises UserError.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = load(cls, [word for word in argv if word.startswith("-")])
    words = [word for word in argv if not word.startswith("-")]
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
    ranks, micro = int(os.environ.get("WORLD_SIZE", 1)), max(cfg.micro_batch_size, 1)
    if cfg.micro_batch_size >= 0 and cfg.batch_size % (ranks * micro):
        problems.append(f"batch_size={cfg.batch_size} does not divide into {ranks} process(es) x micro_batch_size="
                        f"{micro}; choose a multiple of {ranks * micro}")
    return problems


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
    except (ValueError, SyntaxError):
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
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():  # 1e6 is how people write a million
        return int(value)
    if type(value) is not kind:
        raise ValueError(f"must be {NAMES[kind]}, not {value!r}")
    return value


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "texts (in brackets)"}


def describe(cls):
    """The text of --help: the module's first paragraph, then every field with its default and its comment."""
    module = sys.modules[cls.__module__]
    lines = [(module.__doc__ or "").strip(), "", "options (in a config file: key = value):"]
    comments = {}
    for line in inspect.getsource(cls).splitlines():
        code, _, comment = line.partition("  #")
        comments[code.partition(":")[0].strip()] = comment.strip()
    for field in dataclasses.fields(cls):
        comment = comments.get(field.name, "")
        choices = typing.get_args(field.type)
        if choices:
            comment = f"{'|'.join(choices)}: {comment}"
        lines.append(f"  --{field.name + '=' + str(field.default):28} {comment}")
    return "\n".join(lines)


def run(main):
    """Call a script's main(). A UserError ends it with its sentence on stderr and exit code 2.

    Where the output's reader has gone (`| head`), it ends without a word, as other programs do.
    """
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
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        raise SystemExit(2) from None
