"""Pictures for the encoder: files -> pixels -> batches, perhaps augmented -> patches -> embeddings.

A row names its picture: `train.npy:17`, the 18th in a file of NumPy's, uint8 (N, channels, size, size), which stays on
disk and is mapped; or a .png, .jpg, ... file, which Pillow reads (the extra `images`). What the model reads is in
task["picture"]: size and channels; patch, the side of a patch in pixels; stem, how a patch becomes an embedding (ours:
conv, ViT's: linear); cls, whether a learned token stands before the patches, as in ViT; mean and deviation of each
channel over the training pictures.

Shapes: B pictures of C channels, S x S pixels, G x G patches of them, T = G * G tokens (and one for cls).
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoft import UserError
from nanoft.batches import CHANGES
from nanoft.files import available_cores, write_json

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MAX_PIXELS = 50_000_000  # of a file: a small one can unpack to gigabytes
SIZE = 64                # of pictures from files, unless --image_size says otherwise
AUGMENTATIONS = ("flip", "crop", "rotate", "cutout", "mixup")
DEGREES = 15             # the largest rotation
MIXUP = 0.2              # alpha of the Beta distribution of a mixture's shares (arXiv:1710.09412)


# ---- reading -----------------------------------------------------------------------------------------------------


def folder_rows(folder) -> list[tuple[str, dict]]:
    """[(where, row)] of a folder with a folder of pictures for each class. Raises UserError where one is empty."""
    located, left_out = [], 0
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir() and path.name[0] != "."):
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name[0] != ".")
        pictures = [path for path in files if path.suffix.lower() in ENDINGS]
        left_out += len(files) - len(pictures)
        if not pictures:
            raise UserError(f"{place}: no picture ({' '.join(ENDINGS)}) of this class; add some, or remove the folder")
        located += [(str(path), {"image": str(path), "label": place.name}) for path in pictures]
    if not located:
        raise UserError(f"{folder}: no folder for each class there, as cat/1.png and dog/1.png; make such folders, or "
                        "give a table with the columns image and label")
    if {row["label"].lower() for _, row in located} <= {"train", "val", "valid", "validation", "dev", "test"}:
        raise UserError(f"{folder} holds splits, not classes; give them by --train_file, --val_file and --test_file")
    print(f"{folder}: {len(located):,} pictures, {left_out:,} other files left out")
    return located


def resolve(rows: list[dict], folder) -> list[dict]:
    """Rows whose pictures are named as seen from a folder, with names as seen from here."""
    return [row | {"image": str(Path(folder, row["image"]))} for row in rows]


def read_picture(path, size: int, channels: int) -> np.ndarray:
    """The middle of a picture file as uint8 (channels, size, size): its shorter side becomes `size`, the rest is cut.

    What is transparent becomes white. Raises UserError for what is no picture, or has too many pixels.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError(f"{path}: to read pictures Pillow is needed; install it, by pip install nanoft[images]"
                        ) from None
    Image.MAX_IMAGE_PIXELS = None  # Pillow would warn, or stop, at other sizes
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path}: {image.width:,} x {image.height:,} pixels are more than the {MAX_PIXELS:,} "
                                "that are read; make it smaller")
            if image.mode[0] in "IF":
                raise UserError(f"{path}: 16 or 32 bits a channel (mode {image.mode}); save it with 8")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if channels == 1 else "RGB")
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.array(image).reshape(size, size, channels).transpose(2, 0, 1)  # -> (channels, size, size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; mend the name of the picture") from None
    except UserError:
        raise
    except Exception as error:  # whatever a foreign or broken file can raise
        raise UserError(f"{path}: not a picture, or a broken one ({type(error).__name__}: {error}); mend or remove it"
                        ) from None


def open_pixels(path) -> np.ndarray:
    """The mapped pixels of a .npy file, uint8 (N, C, S, S). Raises UserError for another or a shorter file."""
    try:
        pixels = np.load(path, mmap_mode="r")
        if pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1] in (1, 3) and len({*pixels.shape[2:]}) < 2:
            return pixels
        problem = f"{pixels.dtype} {pixels.shape}, not uint8 (N, 1 or 3, size, size)"
    except (OSError, ValueError, EOFError) as error:
        problem = str(error)
    raise UserError(f"{path}: no whole file of pictures ({problem}); prepare the data set again")


def split_name(name: str) -> tuple[str, int]:
    """`train.npy:17` -> ("train.npy", 17); the name of a picture's own file -> ("", 0)."""
    path, _, number = name.rpartition(":")
    return (path, int(number)) if path.endswith(".npy") and number.isdigit() else ("", 0)


def picture_of(cfg, source_task: dict, first: str) -> dict:
    """The task's `picture`: that of the checkpoint, else by the options and the first picture. Raises UserError."""
    if "picture" in source_task:
        return source_task["picture"]
    path, _ = split_name(first)
    channels, size = open_pixels(path).shape[1:3] if path else (3, SIZE)
    size = cfg.image_size or size
    if size % cfg.patch:
        raise UserError(f"image_size={size} is no multiple of patch={cfg.patch}; give another")
    return {"size": size, "channels": channels, "patch": cfg.patch, "stem": "conv", "cls": False}


def n_tokens(picture: dict) -> int:
    return (picture["size"] // picture["patch"]) ** 2 + picture["cls"]


@dataclass
class Pictures:
    """The N pictures of a split, with those fields of features.Encoded that its users need."""
    pixels: np.ndarray   # (any number, C, S, S) uint8, mapped or in memory
    index: np.ndarray    # (N,) the numbers of these pictures among them
    targets: np.ndarray  # (N,) int64
    tokens: int          # T

    def __post_init__(self):
        self.row = np.arange(len(self.index))
        self.lengths = self.n_tokens = np.full(len(self.index), self.tokens)

    def __len__(self):
        return len(self.index)


def encode(rows: list[dict], task: dict) -> Pictures:
    """The pictures of rows in the form of examples.py; rows to predict need no labels. Raises UserError."""
    picture, labels = task["picture"], {label: i for i, label in enumerate(task["labels"])}
    names = [split_name(row["image"]) for row in rows]
    if len(paths := {path for path, _ in names}) == 1 and "" not in paths:
        pixels, index = open_pixels(names[0][0]), np.array([number for _, number in names])
        if index.max() >= len(pixels):
            raise UserError(f"{names[0][0]}: {len(pixels):,} pictures, but number {index.max():,} is asked for; "
                            "prepare the data set again")
        if pixels.shape[1] > picture["channels"]:
            raise UserError(f"{names[0][0]}: pictures with colours, but the model reads grey ones; give another model")
    else:
        with ThreadPoolExecutor(available_cores()) as pool:  # Pillow releases Python's lock while it works
            read = [pool.submit(read_picture, row["image"], picture["size"], picture["channels"]) for row in rows]
            pixels, index = np.stack([one.result() for one in read]), np.arange(len(rows))
    return Pictures(pixels, index, np.array([labels.get(row.get("label"), 0) for row in rows]), n_tokens(picture))


def statistics(pictures: Pictures) -> dict[str, list[float]]:
    """{"mean", "deviation"} of each channel over the pictures, in pixel values, 0 to 255. Exact: by counting them."""
    counts = np.zeros((pictures.pixels.shape[1], 256))
    for at in range(0, len(pictures), 1000):
        chunk = pictures.pixels[pictures.index[at:at + 1000]]
        counts += [np.bincount(chunk[:, i].ravel(), minlength=256) for i in range(len(counts))]
    counts /= counts.sum(1, keepdims=True)
    mean = counts @ np.arange(256)
    deviation = np.sqrt((counts * (np.arange(256) - mean[:, None]) ** 2).sum(1))
    return {"mean": mean.tolist(), "deviation": np.maximum(deviation, 1.0).tolist()}  # of one colour: nothing to divide


# ---- batches and augmentation ------------------------------------------------------------------------------------


def batch(pictures: Pictures, index, task: dict, class_weights: np.ndarray | None = None,
          augment: Callable | None = None) -> dict[str, np.ndarray]:
    """The pictures number `index` (B,) as the arrays that TaskModel takes.

    ids: the pixels, uint8 (B, C, S, S), under the name that a text's tokens have; targets (B,), or (B, K) shares where
    pictures are mixed; weights (B,). class_weights: (K,). augment: as `augmentation` gives it.
    """
    index = np.asarray(index)
    pixels, targets = pictures.pixels[pictures.index[index]], pictures.targets[index]
    if augment is not None:
        pixels, targets = augment(pictures, pixels, targets, index)
    if pixels.shape[1] < task["picture"]["channels"]:  # grey for a model of colours
        pixels = pixels.repeat(3, axis=1)
    weights = np.ones(len(index)) if class_weights is None else (
        class_weights[targets] if targets.ndim == 1 else targets @ class_weights)
    return {"ids": pixels, "targets": targets, "weights": weights.astype(np.float32)}


def augmentation(cfg, task: dict, epoch: int) -> Callable | None:
    """The function augment(pictures, pixels, targets, index) of an epoch, or None if cfg.augment names none.

    What becomes of a picture, and which one it is mixed with, is a function of seed, epoch and its number alone.
    """
    names, K = set(filter(None, cfg.augment.split(","))), len(task["labels"])
    if not names:
        return None
    fill = torch.tensor(task["picture"]["mean"]).round()[:, None, None]  # (C, 1, 1): what comes in from outside

    def changed(pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """pixels (B, C, S, S) and for each picture 6 numbers of 0 to 1 -> float32 pixels."""
        x, draws = torch.from_numpy(pixels).float(), torch.from_numpy(draws)  # (B, 6)
        S, colour = x.size(-1), fill[:x.size(1)]
        if names & {"rotate", "crop", "flip"}:
            degrees = (2 * draws[:, 0] - 1) * DEGREES * ("rotate" in names)
            by = ((draws[:, 1:3] * (2 * (S // 8) + 1)).long() - S // 8) * ("crop" in names)  # (B, 2)
            x = moved(x, degrees, by[:, 0], by[:, 1], (draws[:, 3] < 0.5) & ("flip" in names), colour)
        if "cutout" in names:
            at = (draws[:, 4:6] * S).long()  # (B, 2)
            x = cut_out(x, at[:, 0], at[:, 1], S // 2, colour)
        return x.numpy()

    def augment(pictures, pixels, targets, index):
        def draws(numbers):
            return [np.random.default_rng((cfg.seed, epoch, int(number), CHANGES)) for number in numbers]

        generators = draws(index)
        x = changed(pixels, np.stack([rng.random(6) for rng in generators]))
        if "mixup" in names:
            share = np.array([rng.beta(MIXUP, MIXUP) for rng in generators])
            other = np.array([rng.integers(len(pictures)) for rng in generators])
            with_ = changed(pictures.pixels[pictures.index[other]], np.stack([rng.random(6) for rng in draws(other)]))
            x = x * share[:, None, None, None] + with_ * (1 - share[:, None, None, None])
            one_hot = np.eye(K)  # (B,) -> (B, K)
            targets = one_hot[targets] * share[:, None] + one_hot[pictures.targets[other]] * (1 - share[:, None])
            targets = targets.astype(np.float32)
        return x.round().clip(0, 255).astype(np.uint8), targets

    return augment


def moved(x: Tensor, degrees: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, fill: Tensor) -> Tensor:
    """Each picture turned about its middle, counter-clockwise, then moved by whole pixels, then mirrored or not.

    x: (B, C, S, S); degrees, down, right, mirrored (bool): (B,); fill: (C, 1, 1), what comes in from outside. What lies
    between pixels is interpolated; to move by whole pixels is the same as to cut the picture out of a padded one.
    """
    angle, side = degrees.float() * (math.pi / 180), x.size(-1)
    cos, sin, way = angle.cos(), angle.sin(), 1 - 2 * mirrored.float()
    down, right = 2 * down / side, 2 * right / side  # of coordinates that go from -1 to 1
    come_from = torch.stack((way * cos, -sin, down * sin - right * cos,  # (B, 2, 3): times a pixel's own (x, y, 1),
                             way * sin, cos, -down * cos - right * sin), dim=1).view(-1, 2, 3)  # where it comes from
    grid = F.affine_grid(come_from, list(x.shape), align_corners=False)  # (B, S, S, 2): column, row
    return F.grid_sample(x - fill, grid, align_corners=False) + fill  # outside lies 0


def cut_out(x: Tensor, row: Tensor, column: Tensor, side: int, fill: Tensor) -> Tensor:
    """Each picture with a square around (row, column), both (B,), painted over (arXiv:1708.04552)."""
    first = (row - side // 2)[:, None], (column - side // 2)[:, None]
    at = torch.arange(x.size(-1))
    rows, columns = ((at >= begin) & (at < begin + side) for begin in first)  # (B, S)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], fill, x)


# ---- pixels to embeddings ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual connection, as in the blocks: x + convolution(ReLU(norm(x))), (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)  # RMSNorm over the channels
        return x + self.conv(F.relu(y))


class Patches(nn.Module):
    """Pictures to T embeddings, in the place of the token embedding: uint8 (B, C, S, S) -> (B, T, n_embd).

    stem=linear: each patch through one matrix, as in ViT (arXiv:2010.11929). stem=conv: 3 x 3 convolutions, of which
    every other halves the sides (arXiv:2106.14881): patches overlap, and small models learn far faster (LOG.md).
    """
    mean: Tensor
    deviation: Tensor

    def __init__(self, picture: dict, width: int):
        super().__init__()
        self.size, channels, patch = picture["size"], picture["channels"], picture["patch"]
        with torch.device("cpu"):  # never "meta": no checkpoint holds these, but the task does
            for name in ("mean", "deviation"):
                self.register_buffer(name, torch.tensor(picture[name])[:, None, None], persistent=False)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, patch, stride=patch)]
        if picture["stem"] == "conv":
            widths = [channels, *(width * 2**i // patch for i in range(1, patch.bit_length()))]  # of 4: half, whole
            layers = [layer for before, after in zip(widths, widths[1:])
                      for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), Residual(after))]
        self.layers = nn.Sequential(*layers)
        self.cls = nn.Parameter(torch.zeros(width)) if picture["cls"] else None
        for p in self.layers.parameters():
            nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5) if p.dim() == 4 else nn.init.zeros_(p)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float()
        if x.size(-1) != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        x = (x - self.mean) / self.deviation
        x = self.layers(x.contiguous(memory_format=torch.channels_last))
        x = x.flatten(2).transpose(1, 2)  # (B, n_embd, G, G) -> (B, T, n_embd)
        return x if self.cls is None else torch.cat((self.cls.to(x.dtype).expand(len(x), 1, -1), x), dim=1)


def put_patches(trunk, picture: dict) -> None:
    """Make a Transformer read pictures. Rotary positions become those of rows and columns, half of the numbers each."""
    trunk.tokens = Patches(picture, trunk.cfg.n_embd)
    if trunk.cfg.position == "rope":
        pairs, side = trunk.cos.size(-1), picture["size"] // picture["patch"]
        with torch.device("cpu"):
            rate = math.pi / 2 * 100 ** (-torch.arange(pairs // 2) / max(1, pairs // 2))  # radians a patch
            at = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()     # (T, 2) row, column
            angle = (at[:, :, None] * rate).flatten(1)[:, None]                           # (T, 2, D/4) -> (T, 1, D/2)
            angle = F.pad(angle, (0, pairs % 2))                                          # an odd pair is not turned
            trunk.cos, trunk.sin = angle.cos(), angle.sin()


class PixelTokenizer:
    """What stands for a tokenizer in a run on pictures: nothing is tokenized."""
    FORMAT = "nanoft pixels"
    content = {"format": FORMAT}
    fingerprint, vocab_size, special, published, separators = FORMAT, 1, {"<|endoftext|>": 0}, False, 1

    def save(self, path) -> None:
        write_json(path, self.content)
