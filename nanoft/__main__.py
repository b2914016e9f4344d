"""The tools of nanoft: python -m nanoft NAME ...

Without a name, a line on each. Every tool answers --help.
"""

import importlib
import sys

from nanoft import UserError, config

TOOLS = {  # name: (module with a main(), what it does)
    "tokenizer": ("nanoft.bpe", "learn a tokenizer: tokenizer FILE... --vocab_size=8192 --out=tokenizer.json"),
    "bins": ("nanoft.text.show_bin", "what a token file holds: bins data/wikitext/train.bin"),
    "model": ("nanoft.inspect.summary", "shapes, FLOPs, memory: model config/wikitext.py, or model out/wikitext"),
    "figures": ("nanoft.pages.data_report", "a page on a data set: figures data/sst2"),
    "report": ("nanoft.pages.run_report", "a page on a run, or on several: report out/x; report --compare out/x out/y"),
    "pretrained": ("nanoft.published.convert", "published weights in and out: pretrained FOLDER --out=out/bert"),
    "ensemble": ("nanoft.tasks.ensemble", "the mean of several models: ensemble out/x/seed1 out/x/seed2"),
}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__.strip() + "\n")
        for tool, (_, line) in TOOLS.items():
            print(f"  {tool:12}{line}")
        return
    if name not in TOOLS:
        raise UserError(f"{name}: no such tool; there are {', '.join(TOOLS)}")
    sys.argv[:2] = [f"nanoft {name}"]
    importlib.import_module(TOOLS[name][0]).main()


if __name__ == "__main__":
    config.run(main)
