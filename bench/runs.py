"""Whole runs, timed from outside: time to a loss, to the first step, tokenizers, sampling."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.steps import SHORT
from bench.turns import (
    ROOT,
    Child,
    in_turn,
    json_lines,
    measured,
    median,
    present,
    start_all,
    timed,
    wanted,
    watch,
)
from nanoft import UserError, pretokenize
from nanoft.text import prepare

GPT2 = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)  # 124M parameters


@contextmanager
def new_folder():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def published(name: str, data: str) -> Path:
    """The path of a data set's raw file, found as by its prepare.py. Raises UserError if there is none."""
    folder = prepare.DATA / data
    return prepare.find_raw(name, runpy.run_path(str(folder / "prepare.py"))["ADDRESS"], folder)


def first_row(path: Path, condition: Callable) -> dict | None:
    """The first row of a metrics.jsonl for which condition(row) is true, or None."""
    return next((row for row in json_lines(path) if condition(row)), None)


# ---- time to a loss ----------------------------------------------------------------------------------------------

NANOGPT_MODEL = ["config/train_shakespeare_char.py", "--device=cpu", "--log_interval=1", "--block_size=64",
                 "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"]
NANOGPT_RECIPE = [*NANOGPT_MODEL, "--compile=False", "--eval_iters=20", "--max_iters=2000", "--lr_decay_iters=2000"]


def reached(row: dict, target: float) -> bool:
    return row.get("val_loss") is not None and row["val_loss"] <= target


def nanogpt_losses(log: Path) -> list[float]:
    """The validation losses that nanoGPT has printed so far."""
    printed = Path(log).read_text(encoding="utf-8", errors="replace")
    return [float(loss) for loss in re.findall(r"^step \d+: train loss .*, val loss (\S+)$", printed, re.MULTILINE)]


def nanogpt_data(checkout: str, folder: Path, raw: Path) -> float:
    """Copy the checkout to folder/nanoGPT and prepare its Shakespeare there; returns the seconds of preparing."""
    copy = folder / "nanoGPT"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "assets", "out*", "*.bin", "*.pkl"))
    data = copy / "data" / "shakespeare_char"
    shutil.copy(raw, data / "input.txt")
    (data / "requests.py").touch()  # its prepare.py imports it, but does not need it for a text that is there
    return watch([sys.executable, str(data / "prepare.py")], lambda: None)[0]


def loss(cfg, machine: dict, recipe=()) -> dict:
    """Seconds from process start to a validation loss, from raw text and an empty folder; nanoft's seed changes.

    nanoGPT's recipe ends after 2,000 steps; if it has not reached the loss by then, its time is that of its end.
    """
    raw, peer = published("tinyshakespeare.txt", "shakespeare"), "nanoGPT, CPU recipe"
    runs = {"nanoft": [], peer: []}  # the seed, step and loss of each run

    def ours():
        seed = len(runs["nanoft"]) + 1
        with new_folder() as folder:
            (folder / "shakespeare").mkdir()
            shutil.copy(prepare.DATA / "shakespeare" / "prepare.py", folder / "shakespeare")
            log = folder / "out" / "metrics.jsonl"
            seconds, row = watch(
                [sys.executable, "train.py", "config/shakespeare.py", "--device=cpu",
                 f"--data={folder / 'shakespeare'}", f"--out_dir={folder / 'out'}", f"--seed={seed}", *recipe],
                lambda: first_row(log, lambda row: reached(row, cfg.target)),
                NANOFT_MIRROR=str(raw.parent), PYTHONPATH=str(ROOT))
            last = row or ([row for row in json_lines(log) if "val_loss" in row] or [{}])[-1]
        runs["nanoft"].append({"seed": seed, "step": last.get("step"), "loss": last.get("val_loss"),
                               "seconds_by_itself": last.get("seconds")})
        return seconds if row else None

    def theirs():
        with new_folder() as folder:
            preparing, log = nanogpt_data(cfg.nanogpt, folder, raw), folder / "log"
            seconds, _ = watch([sys.executable, "train.py", *NANOGPT_RECIPE],
                               lambda: min(nanogpt_losses(log), default=9) <= cfg.target or None,
                               cwd=folder / "nanoGPT", output=log)
            runs[peer].append({"loss": nanogpt_losses(log)[-1]})
        print(f"  {peer}: validation loss {runs[peer][-1]['loss']}")
        return preparing + seconds

    ways = {"nanoft": ours} | ({peer: theirs} if cfg.nanogpt else {})
    values = in_turn({name: ways[name] for name in wanted(cfg, ways)}, cfg.rounds, cfg.minutes)
    facts = {name: {"runs": runs[name], "peer": name == peer} for name in values}
    return measured(f"Shakespeare by characters, start to validation loss {cfg.target:g}", "s", False, values, facts,
                    ["nanoft"])


def first_step(cfg, machine: dict, options=()) -> dict:
    """Seconds from process start to the end of the first step of train.py's default job, whose data is ready.

    Each runs once before, so that compiled ones find their code in the cache. nanoGPT's job is its Shakespeare of the
    same width and depth; it evaluates before its first step, here on one batch of each split.
    """
    prepare.ensure(prepare.DATA / "stdlib")

    def ours(compile):
        with new_folder() as folder:
            log = folder / "out" / "metrics.jsonl"
            seconds, row = watch([sys.executable, "train.py", "--device=cpu", f"--out_dir={folder / 'out'}",
                                  f"--compile={compile}", "--n_layer=4", "--n_gram=1", *options],
                                 lambda: first_row(log, lambda row: row["step"] >= 1 and "loss" in row))
        if row is None:
            raise UserError("train.py ended without a step")
        return seconds

    ways = {"nanoft": lambda: ours("auto"), "nanoft compiled": lambda: ours("true")}
    with new_folder() as folder:
        if cfg.nanogpt:
            nanogpt_data(cfg.nanogpt, folder, published("tinyshakespeare.txt", "shakespeare"))
            log = folder / "log"

        def theirs(compile):
            return watch([sys.executable, "train.py", *NANOGPT_MODEL, f"--compile={compile}", "--eval_iters=1"],
                         lambda: re.search(r"^iter 0: ", log.read_text(errors="replace"), re.MULTILINE),
                         cwd=folder / "nanoGPT", output=log)[0]

        peers = {"nanoGPT": lambda: theirs("False"), "nanoGPT compiled": lambda: theirs("True")} if cfg.nanogpt else {}
        ways |= peers
        ways = {name: ways[name] for name in wanted(cfg, ways)}
        for way in ways.values():
            way()
        values = in_turn(ways, cfg.rounds, cfg.minutes)
    return measured("process start to the end of the first step", "s", False, values,
                    {name: {"peer": name in peers, "compiled": name.endswith("compiled")} for name in ways},
                    ["nanoft", "nanoft compiled"])


# ---- tokenizers --------------------------------------------------------------------------------------------------

TRAINERS = {
    "nanoft": """
import sys
from nanoft import bpe, files
bpe.train([files.read_blocks(sys.argv[1])], int(sys.argv[2]))
""",
    "tokenizers": """
import sys
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
content = open(sys.argv[1], encoding="utf-8").read()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(sys.argv[3]), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
parts = [content[i:i + 100_000] for i in range(0, len(content), 100_000)]
tokenizer.train_from_iterator(parts, trainers.BpeTrainer(vocab_size=int(sys.argv[2]), show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
""",
    "rustbpe": """
import sys
import rustbpe
content = open(sys.argv[1], encoding="utf-8").read()
rustbpe.Tokenizer().train_from_iterator((content[i:i + 100_000] for i in range(0, len(content), 100_000)),
                                        int(sys.argv[2]))
""",
}


@contextmanager
def long_text(cfg):
    """The path of --text, or of WikiText-2's training text, unpacked from its zip."""
    if cfg.text:
        if not Path(cfg.text).is_file():
            raise UserError(f"--text={cfg.text}: no such file; give a UTF-8 text file")
        yield os.path.abspath(cfg.text)
        return
    with new_folder() as folder, zipfile.ZipFile(published("wikitext-2-v1.zip", "wikitext")) as archive:
        yield archive.extract("wikitext-2/wiki.train.tokens", folder)


def bpe(cfg, machine: dict) -> dict:
    """Seconds to learn a byte-level BPE with GPT-4's split pattern, from process start, each in its own process."""
    names = wanted(cfg, ["nanoft", *present(cfg, "tokenizers", "rustbpe")])
    with long_text(cfg) as path:
        def train(name):
            words = [sys.executable, "-c", TRAINERS[name], path, str(cfg.vocab_size), pretokenize.PATTERNS["gpt4"]]
            return timed(lambda: subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL))

        values = in_turn({name: lambda name=name: train(name) for name in names}, cfg.rounds, cfg.minutes)
        size = os.path.getsize(path) / 1e6
    return measured(f"learning {cfg.vocab_size:,} tokens from {size:,.1f} MB of text", "s", False, values,
                    {name: {"peer": name != "nanoft"} for name in names}, ["nanoft"])


def tokenize(cfg, machine: dict) -> dict:
    """MB/s of text to ids, on disk and fsynced, beside tiktoken's encode_ordinary_batch on all cores, in memory.

    With --repeat: the text that many times as one document, and the peak memory, without a peer.
    """
    with long_text(cfg) as path, Child(make="tokenizing", path=path, vocab_size=cfg.vocab_size) as child:
        ways = {"nanoft, to disk": lambda: child.ask("to_disk", repeat=cfg.repeat)["mb_s"]}
        if not cfg.repeat:
            ways["tiktoken, in memory"] = lambda: child.ask("in_memory")["mb_s"]
        values = in_turn({name: ways[name] for name in wanted(cfg, ways)}, cfg.rounds, cfg.minutes)
        facts = {"tiktoken, in memory": {"peer": True}, "nanoft, to disk": {"peak_mb": child.ask("memory")["mb"]}}
        size = max(cfg.repeat, 1) * os.path.getsize(path) / 1e6
    title = f"tokenizing {size:,.1f} MB of text"
    if cfg.repeat:
        title += f" as one document, peak memory {facts['nanoft, to disk']['peak_mb']:,.0f} MB"
    return measured(title, "MB/s", True, values, facts, ["nanoft, to disk"])


# ---- sampling ----------------------------------------------------------------------------------------------------


SAMPLING = {"": dict(), ", 16 sequences": dict(sequences=16), ", 64 sequences": dict(sequences=64),
            ", reading 512": dict(prompt=512)}


def generate(cfg, machine: dict, size: dict = GPT2, tokens: int = 200) -> dict:
    """Tokens per second from a GPT-2 with random weights. One sequence's limit is to read all weights per token.

    The dtype in a contender's name is that of its weights, also for the peers. Many sequences write a quarter of the
    tokens each; the last one reads a prompt and writes one token, and the prompt's tokens are counted.
    """
    checkout = {"checkout": os.path.abspath(cfg.nanogpt)}
    who = {"nanoft": {}} | ({"nanoGPT": checkout} if cfg.nanogpt else {})
    who |= {name: {} for name in present(cfg, "transformers")}
    specs = {f"{name} {SHORT[dtype]}{title}": dict(make="sampling", who=name.lower(), dtype=dtype, size=size,
                                                   **more, **form)
             for title, form in SAMPLING.items()
             for dtype in ["bfloat16"] * machine["native_bf16"] + ["float32"] + ["int8"] * (cfg.device == "cpu")
             for name, more in who.items() if name == "nanoft" or dtype != "int8"}
    specs = {name: specs[name] for name in wanted(cfg, specs)}
    values, facts, limit = {}, {}, 0.0
    for form in SAMPLING.values():  # one after the other: so many models at once may not fit
        alike = {name: spec for name, spec in specs.items() if form.items() <= spec.items() and (
            form or not {"prompt", "sequences"} & spec.keys())}
        if not alike:
            continue
        rates, n_bytes = sampling_rates(cfg, alike, form, tokens)
        read = median(rates.pop("memory read"))
        limit, values = limit or read, values | rates
        for name, size in n_bytes.items():
            facts[name] = {"dtype": alike[name]["dtype"], "peer": alike[name]["who"] != "nanoft", "bytes": size}
            if not form:
                facts[name] |= {"share": median(rates[name]) / (read * 1e9 / size), "share_of": "memory read"}
    return measured(f"sampling {tokens} tokens, 124M parameters", "tokens/s", True, values, facts,
                    ["nanoft bf16", "nanoft fp32"], {"memory read": limit})


def sampling_rates(cfg, specs: dict, form: dict, tokens: int) -> tuple[dict, dict]:
    """{contender: tokens/s in each round}, with the memory's GB/s, and {contender: bytes of its weights}."""
    reads, rows = form.get("prompt", 0), form.get("sequences", 1)
    n = 1 if reads else tokens if rows == 1 else tokens // 4
    with ExitStack() as stack:
        started = start_all(specs, stack)
        machine_child = stack.enter_context(Child(make="machine"))
        ways = {"memory read": lambda: machine_child.ask("read")["gb_s"]}
        ways |= {name: lambda child=child: (reads or n * rows) / child.ask("sample", n=n)["seconds"]
                 for name, (child, _) in started.items()}
        return in_turn(ways, cfg.rounds, cfg.minutes), {name: warm["bytes"] for name, (_, warm) in started.items()}
