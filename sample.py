"""Let a trained model speak: a GPT continues a text, an encoder fills its gaps, a fine-tuned model does its task.

    python sample.py --checkpoint=out/wikitext --prompt="The history of"
    python sample.py --checkpoint=out/stdlib --num_samples=3 --temperature=0.7 --top_p=0.95
    python sample.py --checkpoint=out/wikitext --input=prompts.txt --output=answers.jsonl
    python sample.py --checkpoint=out/wikitext_bert --prompt="The capital of France is <|mask|>."
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end"
    python sample.py --checkpoint=out/squad --question="Who wrote back?" --context="Ada wrote, and Babbage wrote back."
    python sample.py --checkpoint=out/sst2 --input=rows.csv --output=predictions.jsonl
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end" --explain
    python sample.py --checkpoint=minilm --embed --text="A dog runs." --text="A puppy is running." --text="It rains."
    python sample.py --checkpoint=minilm --embed --input=texts.txt --output=vectors.npy
"""

import codecs
import math
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nanoft import UserError, checkpoint, config, distributed, files, generate, kernels
from nanoft.inspect import targets
from nanoft.model import make_model
from nanoft.pages import explain_page
from nanoft.published.source import open_checkpoint
from nanoft.tasks import embed, examples, features, predict, tables
from nanoft.tasks.heads import TaskModel
from nanoft.text import vocabulary
from nanoft.text.wordpiece import CHINESE

MOST_TEXTS = 20  # of which a table is shown
SOURCES = ("input", "prompt", "text", "pair", "question", "context")  # the options that bring texts
ALONE = f"{CHINESE}\u3001-\u3011！（），：；？"  # each is a word to be tagged, as Chinese data has it
WORD = re.compile(rf"[{ALONE}]|[^{ALONE}\s]+")


@dataclass
class Config:
    checkpoint: str = "out/stdlib"     # a run folder (its best.pt), a checkpoint file, or a published model's folder
    prompt: str = "<|endoftext|>"      # text to continue; <|endoftext|> begins a new document
    text: tuple = ()                   # to classify, tag or embed, or as prompt; may be given several times
    pair: str = ""                     # the second text, of a model for pairs
    question: str = ""                 # for a model that answers
    context: str = ""                  # the text in which the answer stands
    input: str = ""                    # .jsonl .csv .tsv with rows as in fine-tuning, else a prompt or text a line
    output: str = ""                   # JSON lines to this file, not the screen; of embed .npy too, of explain a folder
    embed: bool = False                # of an encoder: a vector for each text, and how much they are alike
    explain: bool = False              # a page on what the answers rest on, in output (default: explain/ in the run)
    layers: str = ""                   # whose attention the page shows: 1,3, "" = all
    heads: str = ""                    # the same
    drawn_tokens: int = 64             # longest text whose attention is drawn whole
    ig_steps: int = 50                 # points that integrated gradients take
    num_samples: int = 1               # continuations of each prompt
    max_new_tokens: int = 200          # longest continuation
    temperature: float = 0.8           # below 1 safer, above 1 wilder, 0 always the likeliest token
    top_k: int = 0                     # choose among the k likeliest tokens, 0 = all; for a gap: how many to show
    top_p: float = 0.95                # choose among the likeliest tokens that reach this probability together
    repetition_penalty: float = 1.0    # above 1: tokens already in the context become less likely
    pseudo_perplexity: bool = False    # of an encoder: how well it predicts each token of the prompt from the others
    seed: int = 1                      # the same seed, the same samples
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of weights and products; auto: bf16 if native


def given(cfg):
    return [name for name in SOURCES if getattr(cfg, name) != getattr(Config, name)]


def check(cfg):
    problems = []
    if not any({*given(cfg)} <= some for some in ({"input"}, {"prompt"}, {"text", "pair"}, {"question", "context"})):
        problems.append(f"{' and '.join(given(cfg))} do not go together; give an input, a prompt, texts (with a pair) "
                        "or a question with its context")
    if cfg.temperature < 0:
        problems.append(f"temperature={cfg.temperature} must be 0 or more")
    if not 0 < cfg.top_p <= 1:
        problems.append(f"top_p={cfg.top_p} must be above 0 and at most 1")
    if cfg.top_k < 0 or cfg.num_samples < 1 or cfg.max_new_tokens < 1:
        problems.append("top_k must be 0 or more, num_samples and max_new_tokens at least 1")
    if cfg.repetition_penalty <= 0:
        problems.append(f"repetition_penalty={cfg.repetition_penalty} must be above 0; 1 is none")
    if cfg.embed and cfg.output and not cfg.output.endswith((".npy", ".jsonl")):
        problems.append(f"output={cfg.output} is neither .npy nor .jsonl, in which vectors can be written")
    if min(cfg.drawn_tokens, cfg.ig_steps) < 1:
        problems.append(f"drawn_tokens={cfg.drawn_tokens} and ig_steps={cfg.ig_steps} must be at least 1")
    if cfg.explain and (cfg.embed or cfg.pseudo_perplexity or Path(cfg.output or ".").is_file()):
        problems.append("explain goes without embed and pseudo_perplexity, and its output is a folder")
    if cfg.output and not cfg.explain and (Path(cfg.output).is_dir() or not Path(cfg.output).parent.is_dir()):
        problems.append(f"output={cfg.output} is a folder, or lies in none; give a file in an existing folder")
    return problems


def main():
    cfg = config.load(Config, check=check)
    dist = distributed.start(cfg.device, "float32" if cfg.explain else cfg.dtype)
    device, dtype = dist.device, dist.dtype
    if device.type == "cpu":
        kernels.keep_memory()
    if dist.reason:
        print(dist.reason, file=sys.stderr)
    state, path = open_checkpoint(cfg.checkpoint)
    if {"rank", "alpha"} <= state.keys():
        raise UserError(f"{path} is an adapter, not a whole model; give the best.pt beside it, which has it merged")
    tokenizer = vocabulary.load(path.parent)
    if cfg.embed:
        return do_embed(state, path, tokenizer, device, dtype, cfg)
    task = state.get("task", {})
    if task and task["kind"] != "generate":
        return do_task(state, path, task, tokenizer, dist, cfg)
    rows = read_rows(cfg, task.get("kind", ""))
    model = checkpoint.load_model(state, path, make_model, device)
    for p in model.parameters():  # most of what a token costs is reading the weights: halve them where bf16 is fast
        p.data = p.data.to(dtype)

    answer = continuations if model.cfg.causal else gaps
    results = []
    for number, row in enumerate(rows):
        prompt = features.prompt_text(row["prompt"]) if task else row["prompt"]
        ids = tokenizer.encode(prompt, allow_special=True)
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no tokens; give some text, or leave --prompt out "
                            "to begin a new document")
        found = answer(model, tokenizer, prompt, ids, cfg, number)
        results += found if cfg.explain else [row | one for one in found]
    if cfg.explain:
        return explain_page.write(cfg.output or path.parent / "explain", path, model, tokenizer, results, cfg)
    if cfg.output:
        files.write_jsonl(cfg.output, results)
        print(f"{len(results)} results written to {cfg.output}")


def do_task(state, path, task, tokenizer, dist, cfg):
    """What a fine-tuned model says of each row: its prediction on the screen, or the rows with it in a file."""
    rows = read_rows(cfg, task["kind"])
    model = checkpoint.load_model(state, path, partial(TaskModel, task=task), dist.device)
    pieces = features.encode(rows, task, tokenizer)
    out = predict.outputs(model, pieces, task, tokenizer, dist)
    found = predict.predictions(task, rows, pieces, out)
    if cfg.explain:
        subjects = [targets.of_row(model, task, tokenizer, row, guess, row_text(task["kind"], row, guess), i,
                                           pieces, out) for i, (row, guess) in enumerate(zip(rows, found))]
        return explain_page.write(cfg.output or path.parent / "explain", path, model, tokenizer, subjects, cfg)
    if cfg.output:
        files.write_jsonl(cfg.output, [row | guess for row, guess in zip(rows, found)])
        print(f"{len(rows)} results written to {cfg.output}")
        return
    for row, guess in zip(rows, found):
        print(row_text(task["kind"], row, guess))


def do_embed(state, path, tokenizer, device, dtype, cfg):
    """The vectors of texts: in a file, and of few texts their cosines on the screen."""
    rows = read_rows(cfg, "embed")
    if len(rows) > MOST_TEXTS and not cfg.output:
        raise UserError(f"{len(rows):,} texts are too many to show how alike they are; give --output=vectors.npy")
    trunk, texts = embed.load_trunk(state, path, device), [row["text"] for row in rows]
    found, tokens = embed.vectors(trunk, texts, tokenizer, device, dtype)
    longer = int((tokens > trunk.cfg.block_size).sum())
    if longer:
        print(f"{longer:,} of {len(rows):,} texts have more than {trunk.cfg.block_size} tokens; what follows these is "
              "left out", file=sys.stderr)
    if cfg.output.endswith(".npy"):
        files.write_whole(cfg.output, lambda file: np.save(file, found))
    elif cfg.output:
        files.write_jsonl(cfg.output, (row | {"vector": vector.tolist()} for row, vector in zip(rows, found)))
    if cfg.output:
        print(f"{len(rows):,} vectors of {found.shape[1]} numbers written to {cfg.output}")
    if len(rows) <= MOST_TEXTS:
        print(embed.similarity_table(texts, found))


def row_text(kind, row, guess):
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
    text = row["text"] + (f" | {row['pair']}" if "pair" in row else "")
    if kind == "regress":
        return f"{text}\n    {guess['prediction']:.4g}"
    likeliest = sorted(guess["probabilities"].items(), key=lambda item: -item[1])
    return f"{text}\n    " + "   ".join(f"{label} {p:.1%}" for label, p in likeliest)


def read_rows(cfg, kind):
    """The rows of --input (a table, or a text a line), or those that the options give. Raises UserError.

    kind: a task's, "embed", or "" for a model with prompts and no task. A row keeps the table's other columns; one of a
    plain file has the number of its `line`, for blank lines are passed over.
    """
    model = f"a model of kind {kind}" if kind else "a model that is not fine-tuned for a task"
    names = {"": ("prompt",), "generate": ("prompt",), "pair": ("text", "pair"), "regress": ("text", "pair"),
             "answer": ("question", "context")}.get(kind, ("text",))
    takes = ("prompt", "text") if kind == "generate" else names
    options = " ".join(f"--{name}=..." for name in takes)
    if cfg.input.lower().removesuffix(".gz").endswith((".jsonl", ".csv", ".tsv")):
        located = read_table(cfg.input, names)
    elif cfg.input:
        located = [(f"{cfg.input} line {i}", {"line": i, names[0]: line}) for i, line in tables.read_lines(cfg.input)]
    else:
        for name in [name for name in given(cfg) if name not in takes]:
            raise UserError(f"--{name} means nothing to {model}; give {options}")
        row = {name: getattr(cfg, name) for name in names}
        rows = [row | {names[0]: text} for text in cfg.text or [row[names[0]]]]
        located = [("the command line", {name: value for name, value in row.items() if value or name == "prompt"})
                   for row in rows]
    for where, row in located:
        if "pair" not in names:
            row.pop("pair", None)  # or it would be encoded as a second text
        if kind == "tag" and "words" not in row and isinstance(row.get("text"), str):
            row["words"] = WORD.findall(row["text"])
        for name in ("words",) if kind == "tag" else names:
            value = row.get(name, "" if kind == "regress" and name == "pair" else None)
            whole = isinstance(value, list) and all(isinstance(word, str) for word in value)
            if not (whole if name == "words" else isinstance(value, str)):
                what = f"{name} is {value!r:.60}, not a {'list of texts' if name == 'words' else 'text'}; mend the row"
                if name not in row:
                    what = f"no {name} for {model}" + (
                        f", only {', '.join(row) or 'nothing'}; give it as a column of that name in a .csv or .jsonl"
                        if cfg.input else f"; give {options}, or an --input")
                raise UserError(f"{where}: {what}")
    if not located:
        raise UserError(f"{cfg.input} holds no {names[0]}; write one on each line")
    return [row for _, row in located]


def read_table(path, names):
    """[(where, row)] of a table; a column with another usual name for one of `names` gets that name."""
    columns, located = tables.read_table(path)
    for name in names:
        usual = [column for column in columns if column.lower() in examples.USUAL.get(name, name).split()]
        if name not in columns and len(usual) == 1:
            print(f"{path}: {name} = {usual[0]}", file=sys.stderr)
            for _, row in located:
                if usual[0] in row:
                    row.setdefault(name, row.pop(usual[0]))
    return located


def continuations(model, tokenizer, prompt, ids, cfg, number):
    """What a GPT writes after a prompt, printed as it comes unless it goes to a file: rows of prompt and text.

    With explain: what is to be explained of it, and nothing is printed yet.
    """
    rows = []
    if cfg.explain:
        start = torch.tensor(ids, device=model.head.weight.device)
        new = generate.generate(model, start[None], cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                                cfg.repetition_penalty, stop_id=tokenizer.special["<|endoftext|>"],
                                generator=torch.Generator(start.device).manual_seed(cfg.seed + number))
        return [targets.of_continuation(model, tokenizer, prompt, start, torch.cat(list(new)))]
    for i in range(cfg.num_samples):
        generator = torch.Generator(model.head.weight.device).manual_seed(cfg.seed + number * cfg.num_samples + i)
        pieces = []
        if not cfg.output and prompt != "<|endoftext|>":
            print(prompt, end="")
        for piece in stream(model, tokenizer, ids, cfg, generator):
            pieces.append(piece)
            if not cfg.output:
                print(piece, end="", flush=True)
        if not cfg.output:
            print("\n---")
        rows.append({"prompt": prompt, "text": "".join(pieces)})
    return rows


def gaps(model, tokenizer, prompt, _ids, cfg, _number):
    """What an encoder puts for each <|mask|> of a prompt; or, if asked, the prompt's pseudo-perplexity."""
    mask_id, device = tokenizer.special.get("<|mask|>"), model.head.weight.device
    text = prompt
    for name in [name for name, i in tokenizer.special.items() if i == mask_id]:
        text = text.replace(" " + name, name)  # a word's token begins with its space, so the space belongs into the gap
    ids = tokenizer.encode(text, allow_special=True)
    if model.cfg.n_types or tokenizer.published:  # trained on pairs, or as BERT was: it knows texts between these only
        ids = [tokenizer.special["<|cls|>"], *ids, tokenizer.special["<|sep|>"]]
    if len(ids) > model.cfg.block_size:
        raise UserError(f"the prompt has {len(ids)} tokens, more than the {model.cfg.block_size} that this model "
                        "takes; shorten it")
    if cfg.pseudo_perplexity:
        scored = [i not in tokenizer.special.values() for i in ids]
        if not any(scored):
            raise UserError(f"the prompt {prompt!r} has no token to score; give some text")
        loss = generate.pseudo_loss(model, torch.tensor(ids, device=device), mask_id,
                                    torch.tensor(scored, device=device))
        if not cfg.output:
            print(f"{prompt}\n    pseudo-perplexity {math.exp(loss):,.1f} a token, over {sum(scored)} tokens")
        return [{"prompt": prompt, "nats_per_token": loss, "tokens": sum(scored)}]
    if mask_id not in ids:
        raise UserError(f"the prompt {prompt!r} has no <|mask|> to fill; write one where a word is missing")
    if cfg.explain:
        return [targets.of_gaps(model, tokenizer, prompt, torch.tensor(ids, device=device))]
    best, probability = generate.fill_masks(model, torch.tensor(ids, device=device), mask_id, cfg.top_k or 5)
    rows = []
    for tokens, parts in zip(best.tolist(), probability.tolist()):
        rows.append([(tokenizer.decode([token]), part) for token, part in zip(tokens, parts)])
    if not cfg.output:
        print(prompt)
        for row in rows:
            print("    " + "   ".join(f"{token.strip() or repr(token)} {part:.1%}" for token, part in row))
    return [{"prompt": prompt, "candidates": rows}]


def stream(model, tokenizer, ids, cfg, generator):
    """The continuation of `ids`, a piece of text at a time: characters appear when their last byte does."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    eot = tokenizer.special["<|endoftext|>"]
    start = torch.tensor([ids], device=generator.device)
    for token in generate.generate(model, start, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                                   cfg.repetition_penalty, stop_id=eot, generator=generator):
        if token.item() != eot:
            yield decoder.decode(tokenizer.decode_bytes([token.item()]))
    yield decoder.decode(b"", final=True)


if __name__ == "__main__":
    config.run(main)
