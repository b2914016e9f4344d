"""Drawing without a drawing package: PNG files and letters; and sheets of pictures, heat maps over pictures.

Shapes: B pictures of C channels, S x S pixels; a sheet is uint8 (height, width, 3).
"""

import struct
import zlib
from base64 import b64encode

import numpy as np

from nanoft import UserError
from nanoft.tasks import images

# digits and capitals of 3 x 5 dots, each row an octal digit: pictures need no drawing package
FONT = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-._%", (
    "75557 26227 71747 71717 55711 74717 74757 71222 75757 75717 25755 65656 34443 65556 74647 74644 34553 55755 72227 "
    "11152 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 55775 55255 55222 71247 00700 00002 "
    "00007 51245").split()))

COLUMNS, SIDE = 8, 96  # of a sheet: pictures in a row, and pixels of each


def write(image: np.ndarray, y: int, x: int, text: str, shade: int = 0) -> None:
    """Write a text into an image (height, width, 3), its upper left corner at (y, x), in place."""
    for letter in text:
        for i, row in enumerate(FONT.get(letter, "00000")):
            for j in range(3):
                if int(row) >> (2 - j) & 1 and x + j < image.shape[1]:
                    image[y + i, x + j] = shade
        x += 4


def png(pixels: np.ndarray) -> bytes:
    """An image, uint8 (height, width, 3), or 4 with opacity, as a PNG file (RFC 2083)."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # (H, W, channels) -> (H, 1 + W * channels): filter 0
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
            + chunk(b"IEND", b""))


# ---- sheets ------------------------------------------------------------------------------------------------------


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
            write(out, y + side + 2 + 8 * j, x, line.upper()[:side // 4])
    return out


def show(log, step: int, rows: list[dict], guesses: list[dict], encoded, worst: list[int]) -> None:
    """Log a few pictures with label and prediction, always the same ones, and those furthest from the truth."""
    few = np.linspace(0, len(rows) - 1, min(16, len(rows))).astype(int).tolist()
    for tag, numbers in (("examples", few), ("worst", worst[:16])):
        captions = [[rows[i]["label"], guesses[i]["prediction"]] for i in numbers]
        log_sheet(log, step, f"pictures/{tag}", encoded.pixels[encoded.index[numbers]], captions)


def show_augmented(log, step: int, data) -> None:
    """Log pictures of the first training batch as augmented. data: finetune.py's."""
    if log.board and data.cfg.augment:
        pixels = data.make_batch(np.arange(data.cfg.batch_size))["ids"][:16]
        log_sheet(log, step, "pictures/augmented", pixels, [[]] * len(pixels))


def log_sheet(log, step: int, tag: str, pixels: np.ndarray, captions: list[list[str]]) -> None:
    if log.board and len(pixels):
        picture = sheet(pixels, captions)
        log.picture(tag, png(picture), picture.shape[1], picture.shape[0], step)


def worst_as_html(task: dict, rows: list[dict]) -> str:
    """The pictures of rows of predictions, truth and prediction below each; "" where their files are gone."""
    try:
        found = images.encode(rows, task)
    except UserError:
        return ""
    captions = [[row["label"], row["prediction"]] for row in rows]
    return image(sheet(found.pixels[found.index], captions), "the worst pictures")


def image(pixels: np.ndarray, alt: str) -> str:
    """uint8 (height, width, 3) as an element of HTML."""
    return f'<img alt="{alt}" src="data:image/png;base64,{b64encode(png(pixels)).decode()}">'


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
