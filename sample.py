"""Generate text, fill masks or predict with a trained model: a GPT, an encoder, or one fine-tuned for a task.

    python sample.py --checkpoint=out/wikitext --prompt="The history of"
    python sample.py --checkpoint=out/wikitext --interactive
    python sample.py --checkpoint=out/stdlib --num_samples=3 --temperature=0.7 --top_p=0.95
    python sample.py --checkpoint=out/wikitext --input=prompts.txt --output=answers.jsonl
    python sample.py --checkpoint=out/wikitext_bert --prompt="The capital of France is <|mask|>."
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end"
    python sample.py --checkpoint=out/squad --question="Who wrote back?" --context="Ada wrote, and Babbage wrote back."
    python sample.py --checkpoint=out/sst2 --input=rows.csv --output=predictions.csv
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end" --explain
    python sample.py --checkpoint=out/cifar10 --image=cat.png --explain
    python sample.py --checkpoint=minilm --embed --text="A dog runs." --text="A puppy is running." --text="It rains."
    python sample.py --checkpoint=minilm --embed --input=texts.txt --output=vectors.npy
"""

import contextlib
import csv
import io
import json
import math
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import nanoft
from nanoft import UserError, config, files, generate
from nanoft.inspect import targets
from nanoft.pages import explain_page
from nanoft.sampling import Sampling
from nanoft.serve.api import END, Model
from nanoft.tasks import inputs

SOURCES = ("input", "prompt", "text", "pair", "question", "context", "image")  # the options that bring texts
COLUMNS = ("text_column", "pair_column", "label_column", "columns", "encoding")  # those on the columns of an input
MAX_SHOWN = 20  # texts in the table of cosines


@dataclass
class Config:
    checkpoint: str = "out/stdlib"     # a run folder (its best.pt), a checkpoint file, or a published model's folder
    prompt: str = "<|endoftext|>"      # text to continue; <|endoftext|> begins a new document
    text: tuple = ()                   # to classify, tag or embed, or as prompt; may be given several times
    pair: str = ""                     # the second text, of a model for pairs
    image: tuple = ()                  # picture files, for a model of pictures; may be given several times
    question: str = ""                 # for a model that answers
    context: str = ""                  # the text that holds the answer
    input: str = ""                    # a file as in fine-tuning (table, CoNLL, SQuAD), else a prompt or text a line
    text_column: str = ""              # names of its columns, as in fine-tuning; "" = those of the training table
    pair_column: str = ""              # the second text, or the context of an answer
    label_column: str = ""             # of a CoNLL file, the tags
    columns: str = ""                  # the names, where the input has no header: title,description
    encoding: str = ""                 # of the input, as gb18030; "" = UTF-8, or that of the training table
    output: str = ""                   # a file (.csv .jsonl), not the screen; of embed .npy .jsonl, of explain a folder
    interactive: bool = False          # prompts from the keyboard, one after another; /help tells its commands
    embed: bool = False                # of an encoder: a vector for each text, and their cosines
    explain: bool = False              # a page on what the answers rest on, in output (default: explain/ in the run)
    layers: str = ""                   # whose attention the page shows: 1,3, "" = all
    heads: str = ""                    # the same
    drawn_tokens: int = 64             # longest text, in tokens, whose attention is drawn whole
    ig_steps: int = 50                 # steps of integrated gradients
    num_samples: int = 1               # continuations of each prompt
    max_new_tokens: int = 200          # longest continuation
    temperature: float = 0.8           # below 1 safer, above 1 wilder, 0 always the likeliest token
    top_k: int = 0                     # choose among the k likeliest tokens, 0 = all; for a mask: how many to show
    top_p: float = 0.95                # choose among the likeliest tokens that reach this probability together
    min_p: float = 0.0                 # leave out tokens below this share of the likeliest one's probability
    repetition_penalty: float = 1.0    # above 1: tokens of the prompt and the text so far become less likely
    frequency_penalty: float = 0.0     # taken from a token's logit for each time that it was written
    no_repeat_ngram: int = 0           # no run of so many tokens twice, 0 = allowed
    stop: tuple = ()                   # a text that ends a continuation, and is left out; may be given several times
    beams: int = 0                     # above 0: not drawn, but the likeliest texts of a search this wide
    logprobs: int = 0                  # show each token's log-probability, and those of so many likely ones
    batch_size: int = 32               # continuations at once, with output
    resume: bool = False               # go on with an output (.jsonl) that was not finished, after its lines
    unique: bool = False               # leave out texts that are in the output already
    min_length: int = 0                # leave out shorter texts, in characters
    pseudo_perplexity: bool = False    # of an encoder: how well it predicts each token of the prompt from the others
    seed: int = 1                      # the same seed, the same samples
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of products; auto: bf16 if native


def given(cfg: Config) -> list[str]:
    """The names of the options that bring texts and were set."""
    return [name for name in SOURCES if getattr(cfg, name) != getattr(Config, name)]


def check(cfg: Config) -> list[str]:
    """Sentences on options that cannot be, or cannot go together."""
    problems = config.at_least(cfg, 0, "temperature", "top_k", "no_repeat_ngram", "beams", "logprobs", "min_length")
    problems += config.at_least(cfg, 1, "num_samples", "max_new_tokens", "drawn_tokens", "ig_steps", "batch_size")
    if not any({*given(cfg)} <= group for group in ({"input"}, {"prompt"}, {"text", "pair"}, {"question", "context"},
                                                    {"image"})):
        problems.append(f"{' and '.join(given(cfg))} do not go together; give those of one kind of row")
    if not cfg.input and (names := [name for name in COLUMNS if getattr(cfg, name)]):
        problems.append(f"{' and '.join(names)} say how to read an input; give --input, or leave them out")
    if not 1e-6 <= cfg.top_p <= 1:
        problems.append(f"top_p={cfg.top_p} must be above 0 (1e-6, say) and at most 1")
    problems += config.fraction(cfg, "min_p")
    if cfg.beams and cfg.num_samples > cfg.beams:
        problems.append(f"num_samples={cfg.num_samples} are more than beams={cfg.beams} find; raise beams")
    if cfg.beams and (cfg.stop or cfg.logprobs or rules(cfg) != rules(Config())):
        problems.append("beams look for the likeliest text alone; leave stop, logprobs and the rules of drawing out")
    if (cfg.unique or cfg.min_length) and not cfg.output.endswith(".jsonl"):
        problems.append("unique and min_length choose among the lines of an output; give --output=....jsonl")
    if cfg.resume and not cfg.output.endswith(".jsonl"):
        problems.append("resume goes on with an output; give the --output=....jsonl that was begun")
    if cfg.repetition_penalty <= 0:
        problems.append(f"repetition_penalty={cfg.repetition_penalty} must be above 0; 1 is none")
    if cfg.embed and cfg.output and not cfg.output.endswith((".npy", ".jsonl")):
        problems.append(f"output={cfg.output} is neither .npy nor .jsonl, in which vectors can be written")
    if (cfg.output and not cfg.embed and not cfg.explain and not cfg.output.endswith((".csv", ".jsonl"))
            and not Path(cfg.output).is_dir()):
        problems.append(f"output={cfg.output} is neither .csv (a table) nor .jsonl (JSON lines); give one of these")
    if cfg.explain and (cfg.embed or cfg.pseudo_perplexity or Path(cfg.output or ".").is_file()):
        problems.append("explain goes without embed and pseudo_perplexity, and its output is a folder")
    if cfg.output and not cfg.explain and (Path(cfg.output).is_dir() or not Path(cfg.output).parent.is_dir()):
        problems.append(f"output={cfg.output} is a folder, or lies in none; give a file in an existing folder")
    if cfg.interactive and (given(cfg) or cfg.output or cfg.embed or cfg.explain):
        problems.append("interactive asks for its texts; leave out those that are given, output, embed and explain")
    if (cfg.interactive or cfg.explain) and (cfg.beams or cfg.logprobs or cfg.num_samples > 1):
        problems.append("interactive and explain draw one text each time; leave beams, logprobs and num_samples out")
    return problems


def main():
    cfg = config.load(Config, check=check)
    if cfg.output and not cfg.explain:
        begins = (b"{", b"\x93NUMPY", b"") if cfg.output.endswith(".csv") else (b"{", b"\x93NUMPY")
        files.check_overwrite(cfg.output, begins, *filter(None, (cfg.input, cfg.checkpoint)))
    model = nanoft.load(cfg.checkpoint, cfg.device, "float32" if cfg.explain else cfg.dtype)
    unfit = ["unique", "min_length"] * (not model.writes) + ["pseudo_perplexity"] * (model.writes or model.predicts)
    if names := [name for name in unfit if getattr(cfg, name)]:
        raise UserError(f"{' and '.join(names)} mean nothing to a model of this kind; leave them out")
    if cfg.interactive:
        return interact(model, sys.argv[1:])

    # ---- the rows, each a dictionary: a prompt, or what the task reads; and the same with all columns of the input
    kind = "embed" if cfg.embed else model.kind
    texts, columns = ({name: getattr(cfg, name) for name in names} for names in (given(cfg), COLUMNS))
    rows, whole = inputs.prediction_rows(model.task | {"kind": kind}, cfg.input, texts, columns)

    # ---- the model's answers, printed at once unless they go into a file
    if cfg.embed:
        return embed(model, rows, whole, cfg)
    if model.writes and cfg.output.endswith(".jsonl"):
        return write_lines(model, rows, whole, cfg)
    results = (predict_rows if model.predicts else answer_prompts)(model, rows, whole, cfg)

    # ---- a page that explains them, or the file
    if cfg.explain:
        explain_page.write(cfg.output or model.path.parent / "explain", model.path, model.net, model.tokenizer, results,
                           cfg)
    elif cfg.output:
        if cfg.output.endswith(".csv"):
            text = as_csv(results, " " if kind == "tag" else model.task.get("separator", ", "))
            files.write_whole(cfg.output, lambda file: file.write(text.encode("utf-8")))
        else:
            files.write_jsonl(cfg.output, results)
        print(f"{len(results)} results written to {cfg.output}")


def as_csv(results: list[dict], separator: str) -> str:
    """Results as a table: lists of texts with a separator between them, a column for each label's probability."""
    flat = []
    for result in results:
        row = {}
        for name, value in result.items():
            if name == "probabilities" and isinstance(value, dict):
                row |= {f"probability_{label}": p for label, p in value.items()}
            elif isinstance(value, list) and all(isinstance(item, str) for item in value):
                row[name] = separator.join(value)
            else:
                row[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        flat.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


# ---- prompts -----------------------------------------------------------------------------------------------------


def answer_prompts(model: Model, rows: list[dict], whole: list[dict], cfg: Config) -> list:
    """The whole rows with a GPT's continuations of the prompts, or an encoder's tokens for masks. explain: Subjects."""
    if cfg.explain and model.writes:
        return [explain_continuation(model, row["prompt"], cfg, cfg.seed + i) for i, row in enumerate(rows)]
    if model.writes:
        return [line for lines in continuations(model, rows, whole, cfg) for line in lines]
    answers = [fill_masks(model, row["prompt"], cfg) for row in rows]
    return answers if cfg.explain else [row | answer for row, answer in zip(whole, answers)]


def rules(cfg: Config) -> dict:
    """The options on how the next token is chosen, as Model.generate takes them."""
    return {f.name: getattr(cfg, f.name) for f in fields(Sampling) if hasattr(cfg, f.name)}


def continuations(model: Model, rows: list[dict], whole: list[dict], cfg: Config, first: int = 0):
    """Continuations of the prompts, num_samples each, from number `first` on: lists of {prompt, text, seed, ...}.

    Without an output they are printed, one after the other; with one they are written batch_size at a time.
    """
    prompts, size = [model.prompt_text(row["prompt"]) for row in rows], cfg.batch_size if cfg.output else 1
    for row in rows:  # all are looked at before anything is written
        model.prompt_ids(row["prompt"])
    total = len(rows) * cfg.num_samples
    for at in range(first // size * size, total, size):
        numbers = range(at, min(at + size, total))
        which, seeds = [n // cfg.num_samples for n in numbers], [cfg.seed + n for n in numbers]
        if cfg.beams:
            found = {i: model.beams(rows[i]["prompt"], cfg.max_new_tokens, cfg.beams) for i in set(which)}
            answers = [found[i][n % cfg.num_samples] for i, n in zip(which, numbers)]
        elif cfg.output or cfg.logprobs:
            answers = model.texts([rows[i]["prompt"] for i in which], cfg.max_new_tokens, seeds, cfg.stop, cfg.logprobs,
                                  **rules(cfg))
        else:
            answers = [{"text": print_text(model, rows[which[0]]["prompt"], cfg, seeds[0])}]
        if not cfg.output and (cfg.beams or cfg.logprobs):
            print_answer(prompts[which[0]], answers[0])
        lines = [whole[i] | {"prompt": prompts[i]} | answer | {"seed": seed}
                 for i, answer, seed in zip(which, answers, seeds)]
        yield [line for line, n in zip(lines, numbers) if n >= first]


def print_text(model: Model, prompt: str, cfg: Config, seed: int) -> str:
    """One continuation of a prompt by a GPT, printed as it is written."""
    written = model.generate(prompt, cfg.max_new_tokens, stream=True, seed=seed, stop=cfg.stop, **rules(cfg))
    prompt, pieces = model.prompt_text(prompt), []
    for number, piece in enumerate(written):
        pieces.append(piece)
        print(prompt * (number == 0 and prompt != END) + piece, end="", flush=True)
    print("\n---")
    return "".join(pieces)


def print_answer(prompt: str, answer: dict) -> None:
    """A continuation with what is known of its probability: of all of it, or of each token."""
    print((prompt if prompt != END else "") + answer["text"])
    if "logprob" in answer:
        print(f"    log-probability {answer['logprob']}")
    for token in answer.get("tokens", ()):
        best = "   ".join(f"{text!r} {p:.2f}" for text, p in token["best"].items())
        print(f"    {token['token']!r:16} {token['logprob']:8.2f}   {best}")
    print("---")


def write_lines(model: Model, rows: list[dict], whole: list[dict], cfg: Config) -> None:
    """Continuations into a file of JSON lines, a batch at a time, each line whole: --resume goes on after the last."""
    path, lines = Path(cfg.output), []
    data = path.read_bytes() if path.exists() else b""
    if data and not cfg.resume:
        raise UserError(f"{path} holds lines already; --resume goes on with it, another --output begins anew")
    if data:
        data = data[:data.rfind(b"\n") + 1]  # a line that was cut off is written again
        try:
            lines = [json.loads(line) for line in data.splitlines()]
            first = lines[-1]["seed"] - cfg.seed + 1 if lines else 0
            fits = 0 <= first <= len(rows) * cfg.num_samples and all(
                line["prompt"] == model.prompt_text(rows[(line["seed"] - cfg.seed) // cfg.num_samples]["prompt"])
                for line in lines)
        except (ValueError, KeyError, IndexError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path} holds other lines than this command writes; give another output, or the same "
                            "prompts, seed and num_samples")
        os.truncate(path, len(data))
    texts, begun, first = {line["text"] for line in lines}, len(lines), first if lines else 0
    answers, file, left_out = continuations(model, rows, whole, cfg, first), None, 0
    for batch in answers:
        kept = []
        for line in batch:
            if len(line["text"]) >= cfg.min_length and not (cfg.unique and line["text"] in texts):
                kept.append(line)
                texts.add(line["text"])
        left_out += len(batch) - len(kept)
        file = file or open(path, "ab")
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode())
        file.flush()
        begun += len(kept)
    if file:
        file.close()
    print(f"{begun} results written to {path}" + f", {left_out} left out" * (left_out > 0))


def explain_continuation(model: Model, prompt: str, cfg: Config, seed: int) -> targets.Subject:
    ids = model.prompt_ids(prompt)
    new = [row[0].id for row in model.tokens([ids], cfg.max_new_tokens, [seed], **rules(cfg))]
    return targets.subject_from_continuation(model.net, model.tokenizer, model.prompt_text(prompt), model.tensor(ids),
                                             model.tensor(new))


def fill_masks(model: Model, prompt: str, cfg: Config):
    """An encoder's most likely tokens for each <|mask|> of a prompt, with their probabilities: {prompt, candidates}.

    With pseudo_perplexity: that of the prompt. With explain: a targets.Subject.
    """
    if cfg.pseudo_perplexity:
        return pseudo_perplexity(model, prompt, cfg)
    candidates = model.fill(prompt, cfg.top_k or 5)
    if cfg.explain:
        return targets.subject_from_masks(model.net, model.tokenizer, prompt, model.encoder_ids(prompt))
    if not cfg.output:
        print(prompt)
        for mask in candidates:
            print("    " + "   ".join(f"{token.strip() or repr(token)} {p:.1%}" for token, p in mask))
    return {"prompt": prompt, "candidates": candidates}


def pseudo_perplexity(model: Model, prompt: str, cfg: Config) -> dict:
    """How well an encoder predicts each token of the prompt when it is masked: {prompt, nats_per_token, tokens}."""
    ids, special = model.encoder_ids(prompt), model.tokenizer.special
    scored = torch.tensor([i not in special.values() for i in ids.tolist()], device=ids.device)  # (T,)
    n_scored = int(scored.sum())
    if not n_scored:
        raise UserError(f"the prompt {prompt!r} has no token to score; give some text")
    with model.dist.autocast():
        loss = generate.pseudo_loss(model.net, ids, special["<|mask|>"], scored)
    if not cfg.output:
        print(f"{prompt}\n    pseudo-perplexity {math.exp(loss):,.1f} a token, over {n_scored} tokens")
    return {"prompt": prompt, "nats_per_token": loss, "tokens": n_scored}


# ---- rows of a task ----------------------------------------------------------------------------------------------


def predict_rows(model: Model, rows: list[dict], whole: list[dict], cfg: Config) -> list:
    """The whole rows with a fine-tuned model's predictions, printed if there is no output. With explain: Subjects."""
    guesses, encoded, out = model.outputs(rows)
    lines = [readable(model.kind, row, guess) for row, guess in zip(rows, guesses)]
    if cfg.explain:
        return [targets.subject_from_row(model.net, model.task, model.tokenizer, row, guess, line, i, encoded, out)
                for i, (row, guess, line) in enumerate(zip(rows, guesses, lines))]
    if not cfg.output:
        print(*lines, sep="\n")
    return [row | guess for row, guess in zip(whole, guesses)]


def readable(kind: str, row: dict, guess: dict) -> str:
    """A row and its prediction as lines for a person."""
    if kind == "tag":
        return " ".join(word if tag == "O" else f"{word}[{tag} {p:.0%}]"
                        for word, tag, p in zip(row["words"], guess["prediction"], guess["probabilities"]))
    if kind == "answer":
        if not guess["prediction"]:
            return f"{row['question']}\n    no answer in the context"
        end = guess["start"] + len(guess["prediction"])
        return (f"{row['question']}\n    {guess['prediction']}   (characters {guess['start']} to {end}, "
                f"{guess['probability']:.1%})")
    text = " | ".join(row[name] for name in ("text", "pair", "image") if name in row)
    if kind == "regress":
        return f"{text}\n    {guess['prediction']:.4g}"
    most_likely = sorted(guess["probabilities"].items(), key=lambda item: -item[1])
    chosen = [", ".join(guess["prediction"]) or "none of:"] if isinstance(guess["prediction"], list) else []
    return f"{text}\n    " + "   ".join(chosen + [f"{label} {p:.1%}" for label, p in most_likely])


# ---- vectors of texts --------------------------------------------------------------------------------------------


def embed(model: Model, rows: list[dict], whole: list[dict], cfg: Config) -> None:
    """Write the vectors of texts into a file, and print the cosines of a few texts."""
    if len(rows) > MAX_SHOWN and not cfg.output:
        raise UserError(f"{len(rows):,} texts are too many to show how alike they are; give --output=vectors.npy")
    texts, size = [row["text"] for row in rows], model.net.cfg.block_size
    vectors, n_tokens = model.embed_counted(texts)  # (N, C), (N,)
    n_cut = int((n_tokens > size).sum())
    if n_cut:
        print(f"{n_cut:,} of {len(rows):,} texts have more than {size} tokens; what follows these is left out",
              file=sys.stderr)
    if cfg.output.endswith(".npy"):
        files.write_whole(cfg.output, lambda file: np.save(file, vectors))
    elif cfg.output:
        files.write_jsonl(cfg.output, (row | {"vector": vector.tolist()} for row, vector in zip(whole, vectors)))
    if cfg.output:
        print(f"{len(rows):,} vectors of {vectors.shape[1]} numbers written to {cfg.output}")
    if len(rows) <= MAX_SHOWN:
        table = [("", *(str(i) for i in range(1, len(texts) + 1)))]
        table += [(f"{i} {text:.50}", *(f"{x:.3f}" for x in row))
                  for i, (text, row) in enumerate(zip(texts, (vectors @ vectors.T).tolist()), 1)]
        print(files.aligned(table))


# ---- prompts from the keyboard -----------------------------------------------------------------------------------

HELP = """A line is a prompt or a text, or both texts of a model that reads two: text | pair. Ctrl-C stops an answer.
    /NAME VALUE   sets an option of sample.py: /temperature 0.7, /max_new_tokens 50, /seed 3
    /reset        forgets the turns before, which a model of kind generate reads
    /quit         or Ctrl-D ends it"""
FIXED = ("checkpoint", "device", "dtype", "interactive", "output", *SOURCES)  # options that cannot change meanwhile


def interact(model: Model, words: list[str]) -> None:
    """Answer lines of the keyboard until /quit. words: the command line, to which commands add options."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its history and its keys; Windows lacks it)
    cfg, turns, number = config.load(Config, words, check), "", 0
    print("/help tells what can be written here")
    while True:
        try:
            line = input("> ")
            name, _, value = line.strip().partition(" ")
            if name == "/quit":
                return
            if name in ("/help", "/reset"):
                turns, number = "" if name == "/reset" else turns, 0
                print(HELP if name == "/help" else "forgotten")
            elif name[1:] in FIXED and name.startswith("/"):
                raise UserError(f"{name} cannot change here; leave by /quit and start with --{name[1:]}")
            elif name.startswith("/"):
                more = [*words, f"--{name[1:]}={value}"]
                cfg, words, number = config.load(Config, more, check), more, 0
            elif line.strip():
                turns = answer_line(model, line, turns, cfg, cfg.seed + number)
                number += 1
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            print("\n(stopped; /quit ends it)")
        except EOFError:
            return print()


def answer_line(model: Model, line: str, turns: str, cfg: Config, seed: int) -> str:
    """Print the answer to a line; the turns so far, with these."""
    if model.predicts:
        needed = inputs.TO_PREDICT.get(model.kind, ("text",))
        row = dict(zip(needed, line.split(" | ", len(needed) - 1)))
        predict_rows(model, *inputs.prediction_rows(model.task, program=[row]), cfg)
    elif not model.writes:
        fill_masks(model, line, cfg)
    else:
        turns = model.prompt_text(turns + line) if model.kind else line
        for piece in model.generate(turns, cfg.max_new_tokens, stream=True, seed=seed, stop=cfg.stop, **rules(cfg)):
            print(piece, end="", flush=True)
            turns += piece
        print()
    return turns.rstrip() + "\n" if model.kind == "generate" else ""


if __name__ == "__main__":
    config.run(main)
