"""WikiText (Merity et al. 2016, arXiv:1609.07843): good and featured Wikipedia articles, in train, val and test.

    python data/wikitext/prepare.py [--variant=2|2-raw|103|103-raw] [--vocab_size=8192]
"""

import io
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoft import UserError, config
from nanoft.text import prepare

HERE = Path(__file__).resolve().parent
ADDRESS = "https://wikitext.smerity.com/"
# as published perplexities count words: what stands between spaces, and one end of line per line
WORDS = {"2": {"train": 2_088_628, "val": 217_646, "test": 245_569}}
TITLE = re.compile(r" = [^=]+ = \n")  # of an article; its sections have " = = ... = = "


@dataclass
class Options:
    variant: Literal["2", "2-raw", "103", "103-raw"] = "2"  # 2 or 103 million words; raw: without <unk>
    vocab_size: int = 8192  # size of the vocabulary
    tokenizer: str = ""  # a tokenizer.json or the folder of a published one, instead of learning one
    source: str = ""  # the zip file, or a folder that holds it or the files in it
    out: str = ""  # where the data set goes; empty is beside this file (in a folder VARIANT for all but 2)


def read_articles(path: Path, member: str) -> Iterator[str]:
    """The articles of one file of the zip, or of the folder it was unpacked to; joined, they are it byte for byte."""
    article = []
    with open(path / member, "rb") if path.is_dir() else zipfile.ZipFile(path).open(member) as file:
        for line in io.TextIOWrapper(file, encoding="utf-8", newline="\n"):
            article.append(line)
            # a title stands between empty lines; a formula or a reference that looks like one does not
            if len(article) > 3 and article[-3] == article[-1] == " \n" and TITLE.fullmatch(article[-2]):
                yield "".join(article[:-2])
                article = article[-2:]
    if article:
        yield "".join(article)


def count_words(articles: Iterable[str]) -> int:
    return sum(len(article.split()) + article.count("\n") for article in articles)


def main():
    cfg = config.load(Options)
    name = f"wikitext-{cfg.variant.replace('-raw', '')}{'-raw' if 'raw' in cfg.variant else ''}"
    ending = "raw" if cfg.variant.endswith("raw") else "tokens"
    members = {"train": f"wiki.train.{ending}", "val": f"wiki.valid.{ending}", "test": f"wiki.test.{ending}"}
    unpacked = [folder for folder in (Path(cfg.source), Path(cfg.source, name))
                if cfg.source and (folder / members["train"]).is_file()]
    if unpacked:
        path = unpacked[0]
    else:
        path = prepare.find_raw(f"{name}-v1.zip", f"{ADDRESS}{name}-v1.zip", HERE, cfg.source)
        members = {split: f"{name}/{member}" for split, member in members.items()}
    try:
        words = {split: count_words(read_articles(path, member)) for split, member in members.items()}
    except (zipfile.BadZipFile, KeyError, FileNotFoundError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: not the published {name}-v1.zip ({error}); fetch it again") from None
    if words != WORDS.get(cfg.variant, words):
        raise UserError(f"{path}: {words} words, where {WORDS[cfg.variant]} were published; fetch it again")
    splits = {split: lambda member=member: read_articles(path, member) for split, member in members.items()}
    out = cfg.out or (HERE if cfg.variant == "2" else HERE / cfg.variant)
    words = {} if "raw" in cfg.variant else words  # published perplexities count the words of the other form
    prepare.write_data(out, splits, cfg.vocab_size, cfg.tokenizer, words)


if __name__ == "__main__":
    config.run(main)
