"""Generate text, fill masks or predict with a trained model: a GPT, an encoder, or one fine-tuned for a task.

    python sample.py --checkpoint=out/wikitext --prompt="The history of"
    python sample.py --checkpoint=out/stdlib --num_samples=3 --temperature=0.7 --top_p=0.95
    python sample.py --checkpoint=out/wikitext --input=prompts.txt --output=answers.jsonl
    python sample.py --checkpoint=out/wikitext_bert --prompt="The capital of France is <|mask|>."
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end"
    python sample.py --checkpoint=out/squad --question="Who wrote back?" --context="Ada wrote, and Babbage wrote back."
    python sample.py --checkpoint=out/sst2 --input=rows.csv --output=predictions.csv
    python sample.py --checkpoint=out/sst2 --text="a joy from beginning to end" --explain
    python sample.py --checkpoint=minilm --embed --text="A dog runs." --text="A puppy is running." --text="It rains."
    python sample.py --checkpoint=minilm --embed --input=texts.txt --output=vectors.npy
"""

import codecs
import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
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
from nanoft.tasks import features, inputs, predict
from nanoft.tasks.heads import TaskModel
from nanoft.text import vocabulary

SOURCES = ("input", "prompt", "text", "pair", "question", "context")  # the options that bring texts
COLUMNS = ("text_column", "pair_column", "label_column", "columns", "encoding")  # those on the columns of an input
MAX_SHOWN = 20  # texts in the table of cosines


@dataclass
class Config:
    checkpoint: str = "out/stdlib"     # a run folder (its best.pt), a checkpoint file, or a published model's folder
    prompt: str = "<|endoftext|>"      # text to continue; <|endoftext|> begins a new document
    text: tuple = ()                   # to classify, tag or embed, or as prompt; may be given several times
    pair: str = ""                     # the second text, of a model for pairs
    question: str = ""                 # for a model that answers
    context: str = ""                  # the text that holds the answer
    input: str = ""                    # a file as in fine-tuning (table, CoNLL, SQuAD), else a prompt or text a line
    text_column: str = ""              # names of its columns, as in fine-tuning; "" = those of the training table
    pair_column: str = ""              # the second text, or the context of an answer
    label_column: str = ""             # of a CoNLL file, the tags
    columns: str = ""                  # the names, where the input has no header: title,description
    encoding: str = ""                 # of the input, as gb18030; "" = UTF-8, or that of the training table
    output: str = ""                   # a file (.csv .jsonl), not the screen; of embed .npy .jsonl, of explain a folder
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
    repetition_penalty: float = 1.0    # above 1: tokens already in the context become less likely
    pseudo_perplexity: bool = False    # of an encoder: how well it predicts each token of the prompt from the others
    seed: int = 1                      # the same seed, the same samples
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of weights and products; auto: bf16 if native


def given(cfg: Config) -> list[str]:
    """The names of the options that bring texts and were set."""
    return [name for name in SOURCES if getattr(cfg, name) != getattr(Config, name)]


def check(cfg: Config) -> list[str]:
    """Sentences on options that cannot be, or cannot go together."""
    problems = config.at_least(cfg, 0, "temperature", "top_k")
    problems += config.at_least(cfg, 1, "num_samples", "max_new_tokens", "drawn_tokens", "ig_steps")
    if not any({*given(cfg)} <= group for group in ({"input"}, {"prompt"}, {"text", "pair"}, {"question", "context"})):
        problems.append(f"{' and '.join(given(cfg))} do not go together; give an input, a prompt, texts (with a pair) "
                        "or a question with its context")
    if not cfg.input and (names := [name for name in COLUMNS if getattr(cfg, name)]):
        problems.append(f"{' and '.join(names)} say how to read an input; give --input, or leave them out")
    if not 1e-6 <= cfg.top_p <= 1:
        problems.append(f"top_p={cfg.top_p} must be above 0 (1e-6, say) and at most 1")
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
    return problems


def main():
    cfg = config.load(Config, check=check)
    dist = distributed.start(cfg.device, "float32" if cfg.explain else cfg.dtype)  # device and dtype
    if dist.device.type == "cpu":
        kernels.keep_memory()
    if dist.reason:
        print(dist.reason, file=sys.stderr)

    if cfg.output and not cfg.explain:
        begins = (b"{", b"\x93NUMPY", b"") if cfg.output.endswith(".csv") else (b"{", b"\x93NUMPY")
        files.check_overwrite(cfg.output, begins, *filter(None, (cfg.input, cfg.checkpoint)))

    # ---- the checkpoint and its tokenizer
    state, path = open_checkpoint(cfg.checkpoint)
    if {"rank", "alpha"} <= state.keys():
        raise UserError(f"{path} is an adapter, not a whole model; give the best.pt beside it, which has it merged")
    tokenizer = vocabulary.load(path.parent)
    checkpoint.check_tokenizer(state, tokenizer, path)
    task = state.get("task", {})  # of a fine-tuned model

    # ---- the rows, each a dictionary: a prompt, or what the task reads; and the same with all columns of the input
    kind = "embed" if cfg.embed else task.get("kind", "")
    texts, columns = ({name: getattr(cfg, name) for name in names} for names in (given(cfg), COLUMNS))
    rows, whole = inputs.prediction_rows(task | {"kind": kind}, cfg.input, texts, columns)
    if cfg.embed:
        return embed(state, path, tokenizer, dist, rows, whole, cfg)

    # ---- the model's answers, printed at once unless they go into a file
    if kind in ("", "generate"):
        model = checkpoint.load_model(state, path, make_model, dist.device)
        for p in model.parameters():  # reading the weights is most of a token's cost: halve them where bf16 is fast
            p.data = p.data.to(dist.dtype)
        results = answer_prompts(model, task, tokenizer, rows, whole, cfg)
    else:
        model = checkpoint.load_model(state, path, partial(TaskModel, task=task), dist.device)
        results = predict_rows(model, task, tokenizer, dist, rows, whole, cfg)

    # ---- a page that explains them, or the file
    if cfg.explain:
        explain_page.write(cfg.output or path.parent / "explain", path, model, tokenizer, results, cfg)
    elif cfg.output:
        if cfg.output.endswith(".csv"):
            text = as_csv(results, " " if kind == "tag" else task.get("separator", ", "))
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


def answer_prompts(model, task: dict, tokenizer, rows: list[dict], whole: list[dict], cfg: Config) -> list:
    """The whole rows with a GPT's continuations of the prompts, or an encoder's tokens for masks. explain: Subjects."""
    results, device = [], model.head.weight.device
    for number, row in enumerate(rows):
        prompt = features.prompt_text(row["prompt"]) if task else row["prompt"]
        ids = tokenizer.encode(prompt, allow_special=not task)  # as in training: text is plain text to a task
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no tokens; give some text, or leave --prompt out "
                            "to begin a new document")
        if not model.cfg.causal:
            answers: list = [fill_masks(model, tokenizer, prompt, cfg)]
        elif cfg.explain:
            new_ids = torch.tensor(list(sample_tokens(model, tokenizer, ids, cfg, cfg.seed + number)), device=device)
            prompt_ids = torch.tensor(ids, device=device)
            answers = [targets.subject_from_continuation(model, tokenizer, prompt, prompt_ids, new_ids)]
        else:
            seeds = range(cfg.seed + number * cfg.num_samples, cfg.seed + (number + 1) * cfg.num_samples)
            answers = [continue_text(model, tokenizer, prompt, ids, cfg, seed) for seed in seeds]
        results += answers if cfg.explain else [whole[number] | answer for answer in answers]
    return results


def continue_text(model, tokenizer, prompt: str, ids: list[int], cfg: Config, seed: int) -> dict:
    """One continuation of a prompt by a GPT: {prompt, text}; without an output printed as it is written."""
    if not cfg.output and prompt != "<|endoftext|>":
        print(prompt, end="")
    pieces = []
    for piece in stream(sample_tokens(model, tokenizer, ids, cfg, seed), tokenizer):
        pieces.append(piece)
        if not cfg.output:
            print(piece, end="", flush=True)
    if not cfg.output:
        print("\n---")
    return {"prompt": prompt, "text": "".join(pieces)}


def sample_tokens(model, tokenizer, ids: list[int], cfg: Config, seed: int) -> Iterator[int]:
    """Token ids that a GPT writes after `ids`, one at a time, up to <|endoftext|>, which is the last."""
    device = model.head.weight.device
    for token in generate.generate(model, torch.tensor([ids], device=device), cfg.max_new_tokens, cfg.temperature,
                                   cfg.top_k, cfg.top_p, cfg.repetition_penalty,
                                   stop_id=tokenizer.special["<|endoftext|>"],
                                   generator=torch.Generator(device).manual_seed(seed)):
        yield int(token)


def stream(tokens: Iterable[int], tokenizer) -> Iterator[str]:
    """The text of token ids, a piece at a time: characters appear with their last byte, <|endoftext|> never."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token != tokenizer.special["<|endoftext|>"]:
            yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


def fill_masks(model, tokenizer, prompt: str, cfg: Config):
    """An encoder's most likely tokens for each <|mask|> of a prompt, with their probabilities: {prompt, candidates}.

    With pseudo_perplexity: that of the prompt. With explain: a targets.Subject. Raises UserError without a mask.
    """
    mask_id = tokenizer.special.get("<|mask|>")
    ids = encoder_ids(model, tokenizer, prompt, mask_id)
    if cfg.pseudo_perplexity:
        return pseudo_perplexity(model, tokenizer, prompt, ids, mask_id, cfg)
    if mask_id not in ids.tolist():
        raise UserError(f"the prompt {prompt!r} has no <|mask|> to fill; write one where a word is missing")
    if cfg.explain:
        return targets.subject_from_masks(model, tokenizer, prompt, ids)
    best, probability = generate.fill_masks(model, ids, mask_id, cfg.top_k or 5)  # (masks, k) each
    candidates = [[(tokenizer.decode([token]), p) for token, p in zip(*mask)]
                  for mask in zip(best.tolist(), probability.tolist())]
    if not cfg.output:
        print(prompt)
        for mask in candidates:
            print("    " + "   ".join(f"{token.strip() or repr(token)} {p:.1%}" for token, p in mask))
    return {"prompt": prompt, "candidates": candidates}


def encoder_ids(model, tokenizer, prompt: str, mask_id: int) -> torch.Tensor:
    """The ids (T,) of a prompt in the form that the encoder was trained on. Raises UserError if they are too many."""
    for name in [name for name, i in tokenizer.special.items() if i == mask_id]:
        prompt = prompt.replace(" " + name, name)  # a word's token begins with its space, so the mask takes it, too
    ids = tokenizer.encode(prompt, allow_special=True)
    if model.cfg.n_types or tokenizer.published:  # trained on pairs, or as BERT was: it knows texts between these only
        ids = [tokenizer.special["<|cls|>"], *ids, tokenizer.special["<|sep|>"]]
    if len(ids) > model.cfg.block_size:
        raise UserError(f"the prompt has {len(ids)} tokens, more than the {model.cfg.block_size} that this model "
                        "takes; shorten it")
    return torch.tensor(ids, device=model.head.weight.device)


def pseudo_perplexity(model, tokenizer, prompt: str, ids: torch.Tensor, mask_id: int, cfg: Config) -> dict:
    """How well an encoder predicts each token of the prompt when it is masked: {prompt, nats_per_token, tokens}."""
    scored = torch.tensor([i not in tokenizer.special.values() for i in ids.tolist()], device=ids.device)  # (T,)
    n_scored = int(scored.sum())
    if not n_scored:
        raise UserError(f"the prompt {prompt!r} has no token to score; give some text")
    loss = generate.pseudo_loss(model, ids, mask_id, scored)
    if not cfg.output:
        print(f"{prompt}\n    pseudo-perplexity {math.exp(loss):,.1f} a token, over {n_scored} tokens")
    return {"prompt": prompt, "nats_per_token": loss, "tokens": n_scored}


# ---- rows of a task ----------------------------------------------------------------------------------------------


def predict_rows(model, task: dict, tokenizer, dist, rows: list[dict], whole: list[dict], cfg: Config) -> list:
    """The whole rows with a fine-tuned model's predictions, printed if there is no output. With explain: Subjects."""
    encoded = features.encode(rows, task, tokenizer)
    out = predict.outputs(model, encoded, task, tokenizer, dist)
    guesses = predict.predictions(task, rows, encoded, out)
    lines = [readable(task["kind"], row, guess) for row, guess in zip(rows, guesses)]
    if cfg.explain:
        return [targets.subject_from_row(model, task, tokenizer, row, guess, line, i, encoded, out)
                for i, (row, guess, line) in enumerate(zip(rows, guesses, lines))]
    if not cfg.output:
        print(*lines, sep="\n")
    if task["kind"] == "tag" and predict.has_entities(task["labels"]):
        guesses = [guess | {"entities": predict.entity_spans(row, guess)} for row, guess in zip(rows, guesses)]
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
    text = row["text"] + (f" | {row['pair']}" if "pair" in row else "")
    if kind == "regress":
        return f"{text}\n    {guess['prediction']:.4g}"
    most_likely = sorted(guess["probabilities"].items(), key=lambda item: -item[1])
    chosen = [", ".join(guess["prediction"]) or "none of:"] if isinstance(guess["prediction"], list) else []
    return f"{text}\n    " + "   ".join(chosen + [f"{label} {p:.1%}" for label, p in most_likely])


# ---- vectors of texts --------------------------------------------------------------------------------------------


def embed(state: dict, path: Path, tokenizer, dist, rows: list[dict], whole: list[dict], cfg: Config) -> None:
    """Write the vectors of texts into a file, and print the cosines of a few texts."""
    if len(rows) > MAX_SHOWN and not cfg.output:
        raise UserError(f"{len(rows):,} texts are too many to show how alike they are; give --output=vectors.npy")
    trunk, texts = predict.load_trunk(state, path, dist.device), [row["text"] for row in rows]
    vectors, n_tokens = predict.sentence_vectors(trunk, texts, tokenizer, dist)  # (N, C), (N,)
    n_cut = int((n_tokens > trunk.cfg.block_size).sum())
    if n_cut:
        print(f"{n_cut:,} of {len(rows):,} texts have more than {trunk.cfg.block_size} tokens; what follows these is "
              "left out", file=sys.stderr)
    if cfg.output.endswith(".npy"):
        files.write_whole(cfg.output, lambda file: np.save(file, vectors))
    elif cfg.output:
        files.write_jsonl(cfg.output, (row | {"vector": vector.tolist()} for row, vector in zip(whole, vectors)))
    if cfg.output:
        print(f"{len(rows):,} vectors of {vectors.shape[1]} numbers written to {cfg.output}")
    if len(rows) <= MAX_SHOWN:
        print(predict.similarity_table(texts, vectors))


if __name__ == "__main__":
    config.run(main)
