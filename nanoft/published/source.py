"""Where a model begins: a run's checkpoint or published weights, whichever a path holds."""

from pathlib import Path

from nanoft import UserError, checkpoint
from nanoft.published import layouts


def open_checkpoint(place) -> tuple[dict, Path]:
    """The dictionary of a checkpoint, as checkpoint.py describes it, and the file that it came from.

    place: a run folder (its best.pt, else latest.pt), a checkpoint file, or a folder as published: config.json with
    model.safetensors, pytorch_model.bin, or the index of their shards. Raises UserError where there is none.
    """
    path = checkpoint.find(place) or next(filter(Path.is_file, layouts.weight_files(Path(place))), None)
    if path is None:
        raise UserError(f"{place}: no checkpoint there; give a run folder such as out/wikitext, a .pt file, or a "
                        "folder with a published model: config.json and model.safetensors")
    if path.name.endswith((".safetensors", ".bin", ".index.json")):
        return layouts.load(path), path
    return checkpoint.load(path), path
