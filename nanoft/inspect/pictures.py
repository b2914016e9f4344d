"""Pictures for TensorBoard and pages: examples with label and prediction, the worst ones, augmented ones, heat maps.

Shapes: B pictures of C channels, S x S pixels; a sheet is uint8 (height, width, 3).
"""

from base64 import b64encode

import numpy as np

from nanoft import UserError
from nanoft.inspect import mistakes
from nanoft.tasks import images

COLUMNS, SIDE = 8, 96  # of a sheet: pictures in a row, and pixels of each


def sheet(pixels: np.ndarray, captions: list[list[str]]) -> np.ndarray:
    """Pictures (B, C, S, S) beside each other, each with two lines of text below it."""
    scale = max(1, SIDE // pixels.shape[-1])
    side = max(scale * pixels.shape[-1], 48)
    rows = -(-len(pixels) // COLUMNS)
    out = np.full((rows * (side + 18), COLUMNS * (side + 4), 3), 255, dtype=np.uint8)
    for i, (picture, lines) in enumerate(zip(pixels, captions)):
        y, x = i // COLUMNS * (side + 18), i % COLUMNS * (side + 4)
        large = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        out[y:y + len(large), x:x + len(large)] = large
        for j, line in enumerate(lines):
            mistakes.write(out, y + side + 2 + 8 * j, x, line.upper()[:side // 4])
    return out


def show(log, step: int, task: dict, rows: list[dict], guesses: list[dict], encoded) -> None:
    """Log a few pictures with label and prediction, always the same ones, and those furthest from the truth."""
    if not log.board:
        return
    worst = mistakes.worst_rows(task, rows, guesses)
    chosen = {"examples": np.linspace(0, len(rows) - 1, min(16, len(rows))).astype(int).tolist(),
              "worst": [mistake.row for mistake in worst[:16]]}
    for tag, numbers in chosen.items():
        captions = [[rows[i]["label"], guesses[i]["prediction"]] for i in numbers]
        log_sheet(log, step, f"pictures/{tag}", encoded.pixels[encoded.index[numbers]], captions)


def log_sheet(log, step: int, tag: str, pixels: np.ndarray, captions: list[list[str]]) -> None:
    if len(pixels):
        picture = sheet(pixels, captions)
        log.picture(tag, mistakes.png(picture), picture.shape[1], picture.shape[0], step)


def worst_as_html(task: dict, rows: list[dict], worst: list) -> str:
    """The pictures furthest from the truth, truth and prediction below each; "" where their files are gone."""
    rows = [rows[mistake.row] for mistake in worst[:16]]
    try:
        found = images.encode(rows, task)
    except UserError:
        return ""
    captions = [[row["label"], row["prediction"]] for row in rows]
    return image(sheet(found.pixels[found.index], captions), "the worst pictures")


def image(pixels: np.ndarray, alt: str) -> str:
    """uint8 (height, width, 3) as an element of HTML."""
    return f'<img alt="{alt}" src="data:image/png;base64,{b64encode(mistakes.png(pixels)).decode()}">'


# ---- patches -----------------------------------------------------------------------------------------------------


def units(n_tokens: int) -> list[tuple[str, list[int]]]:
    """(name, positions) of each token of a picture, as targets.text_units has for a text: row and column of a patch."""
    side = int(n_tokens ** 0.5)
    names = ["cls"] * (n_tokens - side * side) + [f"{i},{j}" for i in range(1, side + 1) for j in range(1, side + 1)]
    return [(name, [at]) for at, name in enumerate(names)]


def heat_map(pixels: np.ndarray, values: np.ndarray, blue, orange) -> str:
    """A picture (C, S, S) beside itself with values (T,) of -1 to 1 over it: blue above 0, orange below. HTML."""
    scale = max(1, 256 // pixels.shape[-1])
    plain = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
    side, S = int(len(values) ** 0.5), len(plain)
    at = np.arange(S) * side // S
    value = values[len(values) - side * side:].reshape(side, side)[at][:, at][..., None]  # (T,) -> (S, S, 1)
    share = 0.75 * np.abs(value)
    grey = plain.mean(-1, keepdims=True)
    over = (1 - share) * grey + share * np.where(value > 0, blue, orange)
    return image(np.concatenate((plain, over.round().astype(np.uint8)), axis=1), "the picture and what matters in it")
