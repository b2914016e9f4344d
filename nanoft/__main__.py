"""nanoft's scripts and tools: python -m nanoft NAME ..., or nanoft NAME ... once pip has installed it.

Every NAME answers --help. On several processes: torchrun --nproc_per_node=8 -m nanoft train ...
Config files and data sets are looked for in the current folder, then in {home}.
"""

import difflib
import importlib
import runpy
import sys

from nanoft import HOME, UserError, config

SCRIPTS = {  # name of the file: what it does
    "train": "pretrain a language model: train config/wikitext.py",
    "finetune": "fine-tune one on a task: finetune --train_file=reviews.csv",
    "sample": "use a model: sample --checkpoint=out/wikitext --prompt=\"The history of\"",
}
TOOLS = {  # name: (module with a main(), what it does)
    "prepare": ("nanoft.text.prepare", "make a data set, your own text too: prepare text --source=notes/,book.txt"),
    "tokenizer": ("nanoft.text.learn", "learn a tokenizer: tokenizer FILE... --vocab_size=8192 --out=tokenizer.json"),
    "bins": ("nanoft.text.show_bin", "what a token file holds: bins data/wikitext/train.bin"),
    "model": ("nanoft.inspect.summary", "shapes, FLOPs, memory: model config/wikitext.py, or model out/wikitext"),
    "figures": ("nanoft.pages.data_report", "a page on a data set: figures data/sst2"),
    "report": ("nanoft.pages.run_report", "a page on a run, or on several: report out/x; report --compare out/x out/y"),
    "pretrained": ("nanoft.published.convert", "published weights in and out: pretrained FOLDER --out=out/bert"),
    "serve": ("nanoft.serve.server", "a local page and endpoint for models: serve out/wikitext out/sst2"),
    "quantize": ("nanoft.quantize", "weights of 8 bits, a quarter of the file: quantize out/x out/x_int8"),
    "prune": ("nanoft.prune", "leave out heads and small weights: prune out/x out/x_pruned --heads=0.25"),
    "ensemble": ("nanoft.tasks.sweep", "the mean of several models: ensemble out/x/seed1 out/x/seed2"),
}


def start():
    """Run the script or the tool that the first word of the command line names. Raises UserError for another word."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__.strip().format(home=HOME))
        for title, lines in (("scripts", SCRIPTS), ("tools", {tool: line for tool, (_, line) in TOOLS.items()})):
            print(f"\n{title}:", *(f"  {word:12}{line}" for word, line in lines.items()), sep="\n")
    elif name in SCRIPTS:
        del sys.argv[1]
        runpy.run_path(str(HOME / f"{name}.py"), run_name="__main__")
    elif name in TOOLS:
        sys.argv[:2] = [f"nanoft {name}"]
        importlib.import_module(TOOLS[name][0]).main()
    else:
        near = difflib.get_close_matches(name, [*SCRIPTS, *TOOLS], n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join([*SCRIPTS, *TOOLS])}"
        raise UserError(f"{name}: no such script or tool; {hint}")


def main():
    config.run(start)


if __name__ == "__main__":
    main()
