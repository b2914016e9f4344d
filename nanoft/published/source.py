"""Where a model comes from: a run's checkpoint or published weights, whichever a path holds."""

from pathlib import Path

from nanoft import UserError, checkpoint
from nanoft.bpe import Tokenizer
from nanoft.published import layouts
from nanoft.text import vocabulary


def open_checkpoint(path: str | Path) -> tuple[dict, Path]:
    """The dictionary of a checkpoint, as checkpoint.py describes it, and the file it was read from.

    path: a run folder (its best.pt, else latest.pt), a checkpoint file, or a folder as published: config.json with
    model.safetensors, pytorch_model.bin, or the index of their shards. Raises UserError if there is none.
    """
    folders = [Path(path), *sorted(Path(path).glob("0_*"))]  # sentence-transformers may use 0_Transformer/
    found = filter(Path.is_file, (folder / name for folder in folders for name in layouts.FILES))
    file = checkpoint.find(path) or next(found, None)
    if file is None:
        maker = Path("config", f"{Path(path).name}.py")  # a config's run is named like it
        raise UserError(f"{path}: no checkpoint there; " + (
            f"{maker} makes it: run that first" if maker.exists() else
            "give a run folder such as out/wikitext, a .pt file, or a folder with a published model: config.json and "
            "model.safetensors"))
    if file.name.endswith((".safetensors", ".bin", ".index.json")):
        state = layouts.load(file)
        checkpoint.check_state(state, file)
        return state, file
    return checkpoint.load(file), file


def open_model(path: str | Path) -> tuple[dict, Path, Tokenizer]:
    """open_checkpoint of a whole model, and its tokenizer. Raises UserError if it was trained with another one."""
    state, file = open_checkpoint(path)
    if {"rank", "alpha"} <= state.keys():
        raise UserError(f"{file} is an adapter, not a whole model; give the best.pt beside it, which has it merged")
    tokenizer = vocabulary.of_checkpoint(file)
    checkpoint.check_tokenizer(state, tokenizer, file)
    return state, file, tokenizer
