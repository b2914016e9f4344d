"""Pictures: read, normalised, augmented, cut into patches, learned, explained."""

import gzip
import importlib.util
import json
import shutil
import struct
import tarfile
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, read_page, run
from test_story_train import assert_equal, load, result

import finetune
import nanoft
import sample
from nanoft import UserError, loop, optim
from nanoft.model import ModelConfig, Transformer
from nanoft.tasks import collate, images
from nanoft.tasks.heads import TaskModel

PIL = pytest.importorskip("PIL.Image", reason="reads pictures by Pillow (pip install nanoft[images])")
COLOURS = {"blue": (30, 60, 200), "green": (40, 180, 60), "red": (200, 40, 50)}
PICTURE = {"size": 16, "channels": 3, "patch": 4, "stem": "conv", "cls": False, "mean": [100.0, 90.0, 80.0],
           "deviation": [50.0, 60.0, 70.0]}
TASK = {"kind": "image", "labels": list(COLOURS), "metric": "accuracy", "picture": PICTURE}
FAST = ["--device=cpu", "--dtype=float32", "--log_interval=1", "--batch_size=16", "--n_layer=1", "--n_embd=32",
        "--n_head=2", "--image_size=16"]


def some_pixels(n=5, size=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def some_pictures(n=5, **kwargs):
    return images.Pictures(some_pixels(n, **kwargs), np.arange(n), np.arange(n) % 3, 16)


def options(augment, seed=1):
    return SimpleNamespace(augment=augment, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one for each class: noisy squares of a colour, some .jpg, one with a file that is no picture."""
    home, rng = tmp_path_factory.mktemp("home") / "pictures", np.random.default_rng(1)
    for label, colour in COLOURS.items():
        (home / label).mkdir(parents=True)
        for i in range(40):
            noisy = np.clip(rng.normal(colour, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            PIL.fromarray(noisy).save(home / label / f"{i}.{'jpg' if i % 3 == 0 else 'png'}")
    (home / "red" / "notes.txt").write_text("no picture", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run on that folder."""
    out = tmp_path_factory.mktemp("out") / "run"
    run("finetune.py", "--kind=image", f"--train_file={folder}", f"--out_dir={out}", "--epochs=5",
        "--augment=flip,crop", *FAST)
    return out


# ---- augmentation ------------------------------------------------------------------------------------------------


def moved(x, fill, degrees=0.0, down=0, right=0, mirrored=False):
    """images.moved, each argument a tensor (B,) or one for all pictures."""
    return images.moved(x, *(torch.as_tensor(each).expand(len(x)) for each in (degrees, down, right, mirrored)), fill)


def test_moves_and_cut_out_by_hand():
    x, fill = torch.arange(1.0, 10).view(1, 1, 3, 3), torch.zeros(1, 1, 1)
    for wanted, *how in (([[0, 0, 0], [1, 2, 3], [4, 5, 6]], 0, 1), ([[3, 0, 0], [6, 0, 0], [9, 0, 0]], 0, 0, -2),
                         ([[3, 2, 1], [6, 5, 4], [9, 8, 7]], 0, 0, 0, True), ([[3, 6, 9], [2, 5, 8], [1, 4, 7]], 90),
                         ([[0, 9, 6], [0, 8, 5], [0, 7, 4]], 90, 0, -1, True)):
        assert moved(x, fill, *how)[0, 0].round(decimals=3).tolist() == wanted  # 90 degrees: counter-clockwise
    cut = images.cut_out(x, torch.tensor([0]), torch.tensor([2]), 2, fill)
    assert cut[0, 0].tolist() == [[1, 0, 0], [4, 5, 6], [7, 8, 9]]


def test_augmentation_is_torchvisions():
    tv = pytest.importorskip("torchvision.transforms.v2.functional", reason="compares with torchvision")
    x, fill = torch.from_numpy(some_pixels()).float(), torch.tensor([10.0, 20, 30])[:, None, None]
    down, right = torch.tensor([-2, -1, 0, 1, 2]), torch.tensor([2, 0, -1, 1, -2])
    ours = moved(x, fill, down=down, right=right)
    flipped = moved(x, fill, down=down, right=right, mirrored=True)
    padded = tv.pad(x, [2], fill=[10.0, 20, 30])
    for i in range(5):
        theirs = tv.crop(padded[i], 2 - int(down[i]), 2 - int(right[i]), 16, 16)
        assert torch.equal(ours[i].round(), theirs) and torch.equal(flipped[i].round(), tv.horizontal_flip(theirs))
    degrees = torch.tensor([-15.0, -3, 0, 7, 14])
    ours = moved(x, fill, degrees)
    for i in range(5):
        theirs = tv.rotate(x[i], float(degrees[i]), interpolation=tv.InterpolationMode.BILINEAR, fill=[10.0, 20, 30])
        inside = (slice(None), slice(3, 13), slice(3, 13))  # at the border torchvision leaves a seam of the fill
        torch.testing.assert_close(ours[i][inside], theirs[inside], atol=1e-2, rtol=1e-4)
    ours = images.cut_out(x, torch.tensor([8] * 5), torch.tensor([6] * 5), 8, fill)
    assert torch.equal(ours, tv.erase(x, 4, 2, 8, 8, fill.expand(3, 8, 8)))


@pytest.mark.parametrize("names", ["flip", "crop", "rotate", "cutout", "mixup", "flip,crop,rotate,cutout,mixup"])
def test_augmentation_is_a_function_of_seed_epoch_and_picture(names):
    pictures, index = some_pictures(), np.arange(5)
    augment = images.augmentation(options(names), TASK, 3)
    whole = images.batch(pictures, index, TASK, augment=augment)
    assert not np.array_equal(whole["ids"], pictures.pixels) and whole["ids"].dtype == np.uint8
    alone = [images.batch(pictures, [i], TASK, augment=augment) for i in (4, 2)]
    for i, one in zip((4, 2), alone):
        assert np.array_equal(one["ids"][0], whole["ids"][i]) and np.array_equal(one["targets"][0], whole["targets"][i])
    for other in (images.augmentation(options(names), TASK, 4), images.augmentation(options(names, 2), TASK, 3)):
        assert not np.array_equal(images.batch(pictures, index, TASK, augment=other)["ids"], whole["ids"])
    assert images.augmentation(options(""), TASK, 0) is None


def test_one_more_augmentation_changes_no_other():
    pictures, index = some_pictures(), np.arange(5)
    flipped, both = (images.batch(pictures, index, TASK, augment=images.augmentation(options(names), TASK, 0))["ids"]
                     for names in ("flip", "flip,cutout"))
    same = (flipped == both).all(1)  # (B, S, S): all that is not painted over
    assert 0.4 < same.mean() < 1
    assert ((both == np.array([100, 90, 80])[:, None, None]).all(1) | same).all()


def test_mixtures_have_shares_of_both_classes():
    pictures = some_pictures(200)
    mixed = images.batch(pictures, np.arange(200), TASK, np.array([1.0, 2.0, 4.0]),
                         images.augmentation(options("mixup"), TASK, 0))
    targets = mixed["targets"]
    assert targets.dtype == np.float32 and np.allclose(targets.sum(1), 1)
    assert 0.05 < (targets.max(1) < 0.99).mean() < 0.95
    np.testing.assert_allclose(mixed["weights"], targets @ [1.0, 2.0, 4.0], rtol=1e-6)


# ---- normalisation and patches -----------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels():
    pictures = some_pictures(7)
    found = images.statistics(pictures)
    np.testing.assert_allclose(found["mean"], pictures.pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(found["deviation"], pictures.pixels.std((0, 2, 3)))
    flat = images.Pictures(np.full((2, 1, 4, 4), 9, np.uint8), np.arange(2), np.arange(2), 1)
    assert images.statistics(flat) == {"mean": [9.0], "deviation": [1.0]}


def test_a_linear_patch_is_one_product_with_its_normalised_pixels():
    patches = images.Patches(PICTURE | {"stem": "linear"}, 8)
    x = torch.from_numpy(some_pixels(2))
    normal = (x - torch.tensor(PICTURE["mean"]).view(3, 1, 1)) / torch.tensor(PICTURE["deviation"]).view(3, 1, 1)
    weight, y = patches.layers[0].weight, patches(x)
    assert y.shape == (2, 16, 8)
    for t, (row, column) in ((0, (0, 0)), (6, (4, 8)), (15, (12, 12))):  # row by row
        patch = normal[:, :, row:row + 4, column:column + 4]
        torch.testing.assert_close(y[:, t], patch.flatten(1) @ weight.flatten(1).T, atol=1e-5, rtol=1e-5)


def test_normalisation_and_size_are_torchvisions():
    tv = pytest.importorskip("torchvision.transforms.v2.functional", reason="compares with torchvision")
    patches = images.Patches(PICTURE, 8)
    seen = []
    patches.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.from_numpy(some_pixels(2, size=23))
    patches(x)
    wanted = tv.normalize(tv.resize(x.float(), [16, 16], antialias=True), PICTURE["mean"], PICTURE["deviation"])
    torch.testing.assert_close(seen[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_convolutions_give_as_many_tokens_as_patches(patch):
    picture = PICTURE | {"patch": patch}
    trunk = Transformer(ModelConfig(n_layer=1, n_embd=24, n_head=2, causal=False, vocab_size=1,
                                    block_size=images.n_tokens(picture)))
    images.put_patches(trunk, picture)
    assert trunk(torch.from_numpy(some_pixels(2))).shape == (2, (16 // patch) ** 2, 24)
    assert len({*map(tuple, trunk.cos[:, 0].round(decimals=4).tolist())}) == (16 // patch) ** 2  # each its own position
    side, row_part, column_part = 16 // patch, trunk.sin[:, 0, :3], trunk.sin[:, 0, 3:]
    assert torch.equal(row_part[0], row_part[side - 1]) and not torch.equal(row_part[0], row_part[side])
    assert torch.equal(column_part[0], column_part[side]) and not torch.equal(column_part[0], column_part[1])


def test_convolutions_are_steps_of_muon():
    cfg = ModelConfig(n_layer=1, n_embd=24, n_head=2, causal=False, vocab_size=1, block_size=16)
    model = TaskModel(cfg, TASK | {"pool": "mean", "head_dropout": 0.0})
    rates = SimpleNamespace(optimizer="muon", lr=1e-3, muon_lr=0.02, head_lr=0.01, embed_lr=0.0, weight_decay=0.1,
                            layer_decay=1.0, unfreeze_every=0.0)
    by_muon = [group for group in optim.finetuning_groups(model, rates) if group["by"] == "muon"]
    assert [p.dim() for group in by_muon if "embeddings" in group["name"] for p in group["params"]] == [4] * 4


@pytest.mark.parametrize("kind, steps, wanted", [("image", 600, True), ("image", 100, False), ("classify", 600, False)])
def test_longer_runs_on_pictures_are_compiled_by_themselves(folder, tmp_path, call, monkeypatch, kind, steps, wanted):
    def stop(run, try_it, auto, length):
        raise UserError(f"auto: {auto}")

    monkeypatch.setattr(loop.Run, "wrap", stop)
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)), encoding="utf-8")
    with pytest.raises(UserError, match=f"^auto: {wanted}$"):
        call(finetune, f"--kind={kind}", f"--train_file={folder if kind == 'image' else table}", "--n_embd=32",
             "--n_head=2", f"--max_steps={steps}", "--device=cpu", f"--out_dir={tmp_path / 'run'}")


# ---- files -------------------------------------------------------------------------------------------------------


def save(path, mode="RGB", size=(20, 16), colour=None):
    PIL.new(mode, size, colour if colour is not None else 0).save(path)
    return path


def test_every_mode_becomes_what_the_model_reads(tmp_path):
    grey = images.read_picture(save(tmp_path / "grey.png", "L", colour=77), 8, 3)
    assert grey.shape == (3, 8, 8) and grey.dtype == np.uint8 and (grey == 77).all()
    assert (images.read_picture(save(tmp_path / "clear.png", "RGBA", colour=(9, 9, 9, 0)), 8, 3) == 255).all()
    palette = PIL.new("RGB", (9, 9), (200, 40, 50)).convert("P")
    palette.save(tmp_path / "palette.gif")
    assert abs(images.read_picture(tmp_path / "palette.gif", 8, 3)[:, 0, 0].astype(int) - (200, 40, 50)).max() < 30
    assert images.read_picture(save(tmp_path / "cmyk.jpg", "CMYK"), 8, 1).shape == (1, 8, 8)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 250
    PIL.fromarray(wide).save(tmp_path / "wide.png")
    assert (images.read_picture(tmp_path / "wide.png", 10, 3) > 200).all()  # the middle


def test_what_is_no_picture_is_named(tmp_path):
    whole = BytesIO()
    PIL.fromarray(some_pixels(1, 64)[0].transpose(1, 2, 0)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:-4000])
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    save(tmp_path / "deep.png", "I;16")
    save(tmp_path / "bomb.png", "1", (10_000, 10_000))
    for name, message in (("cut.png", "broken"), ("text.png", "not a picture"), ("deep.png", "16 or 32 bits"),
                          ("bomb.png", "10,000 x 10,000 pixels"), ("missing.png", "no such file")):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            images.read_picture(tmp_path / name, 8, 3)


def test_a_folder_and_its_faults(folder, tmp_path, capsys):
    located = images.folder_rows(folder)
    assert len(located) == 120 and {row["label"] for _, row in located} == {*COLOURS}
    assert "120 pictures, 1 other files left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="no folder for each class"):
        images.folder_rows(folder / "red")
    for split in ("train", "Test"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        shutil.copy(next((folder / "red").glob("*.png")), tmp_path / "splits" / split / "1.png")
    with pytest.raises(UserError, match="splits, not classes; give them by --train_file"):
        images.folder_rows(tmp_path / "splits")
    tmp_path /= "empty"
    (tmp_path / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="cat: no picture .* of this class"):
        images.folder_rows(tmp_path)


def test_mapped_pixels_and_their_faults(tmp_path):
    path = tmp_path / "train.npy"
    np.save(path, some_pixels(4))
    rows = [{"image": f"{path}:{i}", "label": label} for i, label in ((2, "red"), (0, "blue"))]
    pictures = images.encode(rows, TASK)
    assert isinstance(pictures.pixels, np.memmap) and pictures.targets.tolist() == [2, 0] and len(pictures) == 2
    assert np.array_equal(images.batch(pictures, [0], TASK)["ids"][0], some_pixels(4)[2])
    with pytest.raises(UserError, match="4 pictures, but number 4"):
        images.encode([{"image": f"{path}:4"}], TASK)
    with pytest.raises(UserError, match="the model reads grey ones"):
        images.encode(rows, TASK | {"picture": PICTURE | {"channels": 1}})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train.npy: no whole file of pictures"):
        images.encode(rows, TASK)
    np.save(path, np.zeros((4, 3, 8, 9), np.uint8))
    with pytest.raises(UserError, match="no whole file"):
        images.encode(rows, TASK)


def test_grey_pictures_for_a_model_of_colours(tmp_path):
    np.save(tmp_path / "grey.npy", some_pixels(2, channels=1))
    pictures = images.encode([{"image": f"{tmp_path}/grey.npy:1"}], TASK)
    ids = images.batch(pictures, [0], TASK)["ids"]
    assert ids.shape == (1, 3, 16, 16) and (ids == ids[:, :1]).all()


# ---- prepare.py --------------------------------------------------------------------------------------------------


def script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_cifar(path, per_file, names="airplane automobile bird cat deer dog frog horse ship truck"):
    with tarfile.open(path, "w:gz") as archive:
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            data = b"".join(bytes([i % 10]) + bytes([i % 256]) * 1024 + bytes(2048) for i in range(per_file))
            add(archive, name, data)
        add(archive, "batches.meta.txt", names.replace(" ", "\n").encode())


def add(archive, name, data):
    info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
    info.size = len(data)
    archive.addfile(info, BytesIO(data))


def test_cifar10_as_published(tmp_path, call, monkeypatch):
    module = script("cifar10")
    monkeypatch.setattr(module, "PER_FILE", 20)
    source = tmp_path / "cifar-10-binary.tar.gz"
    write_cifar(source, 20)
    call(module, f"--source={source}", f"--out={tmp_path / 'out'}", "--val_pictures=30")
    task, rows = finetune.examples.load_task(tmp_path / "out")
    assert {split: len(some) for split, some in rows.items()} == {"train": 70, "val": 30, "test": 20}
    assert task["labels"][3] == "cat" and rows["train"][13]["label"] == "cat"
    pixels = images.open_pixels(tmp_path / "out" / "train.npy")
    assert (pixels[13, 0] == 13).all() and not pixels[13, 1:].any()  # red, green, blue
    whole = source.read_bytes()
    source.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        module.read_archive(source)
    write_cifar(source, 19)
    with pytest.raises(UserError, match="95.* pictures .* were published"):
        module.read_archive(source)


def write_idx(folder, n, size=28):
    for name, begin, data in (("images-idx3", struct.pack(">IIII", 2051, n, size, size), bytes(range(n)) * size * size),
                              ("labels-idx1", struct.pack(">II", 2049, n), bytes(i % 10 for i in range(n)))):
        for split in ("train", "t10k"):
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(begin + data))


def test_mnist_as_published(tmp_path, call, monkeypatch):
    module = script("mnist")
    monkeypatch.setattr(module, "COUNTS", {"train": 20, "test": 20})
    write_idx(tmp_path, 20)
    call(module, f"--source={tmp_path}", f"--out={tmp_path / 'out'}", "--val_pictures=5")
    _, rows = finetune.examples.load_task(tmp_path / "out")
    assert [len(rows[split]) for split in ("train", "val", "test")] == [15, 5, 20]
    assert images.open_pixels(tmp_path / "out" / "test.npy").shape == (20, 1, 28, 28)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(UserError, match="not a whole IDX file"):
        module.read_idx(path)
    with pytest.raises(UserError, match="t10k-labels.*not a whole IDX file"):
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"hello")
        module.read_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")


# ---- whole runs --------------------------------------------------------------------------------------------------


def test_a_folder_is_learned_predicted_and_shown(trained, folder, tmp_path, call, capsys):
    found = result(trained)
    assert found["val_accuracy"] > 0.9 and found["kind"] == "image"
    saved = load(trained / "best.pt")
    assert saved["task"]["mirror"] and len(saved["task"]["picture"]["mean"]) == 3
    assert {"pictures/examples", "pictures/augmented"} <= tags(trained)
    files = [f"--image={folder / 'red' / '1.png'}", f"--image={folder / 'blue' / '0.jpg'}"]
    call(sample, f"--checkpoint={trained}", *files, "--device=cpu")
    shown = capsys.readouterr().out
    assert "1.png\n    red " in shown and "0.jpg\n    blue " in shown
    call(sample, f"--checkpoint={trained}", files[0], "--explain", f"--output={tmp_path}")
    assert "logit of red" in read_page(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("the picture and what matters in it") == 4
    run("nanoft report", trained)
    assert "Options" in read_page(trained / "report.html")


def test_the_mirror_image_has_half_a_say(trained, folder):
    model = nanoft.load(trained, "cpu", "float32")
    rows = [{"image": str(folder / "red" / f"{i}.png")} for i in (1, 2)]
    _, encoded, out = model.outputs(rows)
    x = torch.from_numpy(encoded.pixels)
    with torch.no_grad():
        plain, mirrored = model.net.logits(x), model.net.logits(x.flip(-1))
    assert not torch.allclose(plain, mirrored, atol=1e-3)
    np.testing.assert_allclose(out, (plain + mirrored).numpy() / 2, atol=1e-5)


def tags(folder):
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in folder.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = struct.unpack_from("<Q", data, at)[0]
            found |= {value.tag for value in Event.FromString(data[at + 12:at + 12 + size]).summary.value}
            at += size + 16
    return found


def test_a_table_of_pictures(folder, tmp_path, call):
    table = folder.parent / "rows.csv"
    lines = [f"pictures/{label}/{i}.png,{label}" for label in COLOURS for i in range(40) if i % 3]
    table.write_text("\n".join(["file,class", *lines]), encoding="utf-8")
    out = tmp_path / "run"
    call(finetune, "--kind=image", f"--train_file={table}", f"--out_dir={out}", "--max_steps=3", "--val_fraction=0.3",
         *FAST)
    call(sample, f"--checkpoint={out}", f"--input={table}", f"--output={tmp_path / 'answers.jsonl'}", "--device=cpu")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == len(lines) and {*answers[0]} >= {"file", "prediction", "probabilities"}
    table.write_text("\n".join(["file,class", "pictures/red/none.png,red", *lines]), encoding="utf-8")
    with pytest.raises(UserError, match="none.png: no such file"):
        call(finetune, "--kind=image", f"--train_file={table}", f"--out_dir={tmp_path / 'other'}", *FAST)
    table.write_text("\n".join(["file,class", *lines[1:], lines[0].split(",")[0] + ","]), encoding="utf-8")
    with pytest.raises(UserError, match="label is ''"):
        call(finetune, "--kind=image", f"--train_file={table}", f"--out_dir={tmp_path / 'other'}", *FAST)


def test_resumed_is_never_stopped(folder, tmp_path, call, monkeypatch):
    args = ["--kind=image", f"--train_file={folder}", "--augment=flip,crop,rotate,cutout,mixup", "--max_steps=8",
            "--eval_interval=4", "--average=0.9", *FAST]
    call(finetune, f"--out_dir={tmp_path / 'whole'}", *args)
    with monkeypatch.context() as patch:
        after = finetune.loop.Run.save_latest

        def stop(self, **state):
            after(self, **state)
            raise KeyboardInterrupt

        patch.setattr(finetune.loop.Run, "save_latest", stop)
        with pytest.raises(KeyboardInterrupt):
            call(finetune, f"--out_dir={tmp_path / 'halves'}", *args)
    call(finetune, f"--out_dir={tmp_path / 'halves'}", *args, "--resume")
    assert_equal(load(tmp_path / "whole" / "latest.pt")["model"], load(tmp_path / "halves" / "latest.pt")["model"])


def test_another_set_of_classes_begins_from_a_run(trained, tmp_path, call):
    home = tmp_path / "pictures"
    for label, shade in (("dark", 40), ("light", 210)):
        (home / label).mkdir(parents=True)
        for i in range(24):
            save(home / label / f"{i}.png", "L", colour=shade + i)
    out, args = tmp_path / "head", ["--kind=image", f"--train_file={home}", f"--init_from={trained}", *FAST]
    call(finetune, f"--out_dir={out}", "--freeze_blocks=-1", "--epochs=8", *args)
    before, after = load(trained / "best.pt")["model"], load(out / "best.pt")["model"]
    assert after["task_head.weight"].shape[0] == 2 and result(out)["val_accuracy"] == 1
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("trunk."))
    call(finetune, f"--out_dir={tmp_path / 'all'}", "--epochs=3", *args)
    after = load(tmp_path / "all" / "best.pt")["model"]
    assert not torch.equal(before["trunk.tokens.layers.0.weight"], after["trunk.tokens.layers.0.weight"])


def test_texts_and_pictures_are_not_confused(trained, folder, tmp_path, call):
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "good,yes\nbad,no\nfine,yes\npoor,no\n" * 5, encoding="utf-8")
    with pytest.raises(UserError, match="reads pictures, and these rows hold texts"):
        call(finetune, f"--train_file={table}", f"--init_from={trained}", f"--out_dir={tmp_path / 'a'}")
    with pytest.raises(UserError, match="augment=flip changes pictures"):
        call(finetune, f"--train_file={table}", "--augment=flip", f"--out_dir={tmp_path / 'b'}")
    with pytest.raises(UserError, match="flop is none of flip"):
        call(finetune, f"--train_file={folder}", "--kind=image", "--augment=flop", f"--out_dir={tmp_path / 'c'}")
    with pytest.raises(UserError, match="no multiple of patch=4"):
        call(finetune, f"--train_file={folder}", "--kind=image", "--image_size=30", f"--out_dir={tmp_path / 'd'}")
    with pytest.raises(UserError, match="--text means nothing"):
        call(sample, f"--checkpoint={trained}", "--text=hello")
    with pytest.raises(UserError, match="reads no texts"):
        call(sample, f"--checkpoint={trained}", "--text=hello", "--embed")


def test_a_server_opens_no_files_and_the_page_on_texts_is_for_texts(trained, tmp_path, call):
    from nanoft.pages import data_report
    from nanoft.serve import server

    with pytest.raises(UserError, match="would open any file that a client names"):
        call(server, trained, "--port=0")
    np.save(tmp_path / "train.npy", some_pixels(4))
    rows = [{"image": f"train.npy:{i}", "label": str(i % 2)} for i in range(4)]
    finetune.examples.save_task(tmp_path, {"kind": "image", "labels": ["0", "1"], "metric": "accuracy"},
                                {"train": rows[:2], "val": rows[2:]})
    with pytest.raises(UserError, match="holds pictures"):
        call(data_report, tmp_path)


@pytest.mark.slow
def test_two_processes_do_as_one(folder, tmp_path):
    args = ["--kind=image", f"--train_file={folder}", "--augment=flip,crop,mixup", "--max_steps=6", "--dropout=0",
            "--head_dropout=0", "--optimizer=adamw", "--lr=0.001", *FAST]
    run("finetune.py", f"--out_dir={tmp_path / 'one'}", *args)
    run("finetune.py", f"--out_dir={tmp_path / 'two'}", *args,
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])
    one, two = (load(tmp_path / name / "latest.pt")["model"] for name in ("one", "two"))
    assert_close = [float((one[name] - two[name]).abs().max()) for name in one]
    assert max(assert_close) < 1e-4


def test_batches_of_pictures_go_the_way_of_all():
    pictures = some_pictures()
    batch = collate.batch(pictures, np.array([3, 1]), TASK, images.PixelTokenizer())
    assert np.array_equal(batch["ids"], pictures.pixels[[3, 1]]) and batch["targets"].tolist() == [0, 1]


# ---- published models --------------------------------------------------------------------------------------------


def test_a_published_vit_is_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    torch.manual_seed(1)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=16, patch_size=4,
        id2label={0: "red", 1: "green", 2: "blue"}, label2id={"red": 0, "green": 1, "blue": 2})).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}), encoding="utf-8")
    x = torch.from_numpy(some_pixels(3))
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    compare(tmp_path, x, theirs((x / 255 - mean) / deviation).logits, ["red", "green", "blue"])


def test_a_published_vit_is_timms(tmp_path):
    timm = pytest.importorskip("timm", reason="compares with timm")
    from safetensors.torch import save_file

    torch.manual_seed(1)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(
        {"architecture": "vit_tiny_patch16_224", "num_classes": 4,
         "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}), encoding="utf-8")
    x = torch.from_numpy(some_pixels(3, 32))
    compare(tmp_path, x, theirs(x / 127.5 - 1), [f"LABEL_{i}" for i in range(4)])


def compare(folder, x, wanted, labels):
    model = nanoft.load(folder, "cpu", "float32")
    assert model.kind == "image" and model.task["labels"] == labels
    with torch.no_grad():
        torch.testing.assert_close(model.net.logits(x), wanted, atol=1e-4, rtol=1e-4)


def test_a_vit_of_our_own_writing_is_read_and_fine_tuned(folder, tmp_path, call):
    """Without peers: a folder in timm's form, made here."""
    from nanoft.published import safetensors

    torch.manual_seed(1)
    C, T = 64, 17
    weights = {"cls_token": (1, 1, C), "pos_embed": (1, T, C), "patch_embed.proj.weight": (C, 3, 4, 4),
               "patch_embed.proj.bias": (C,), "norm.weight": (C,), "norm.bias": (C,), "head.weight": (5, C),
               "head.bias": (5,)}
    for name, shape in {"norm1": (), "attn.qkv": (3 * C,), "attn.proj": (C,), "norm2": (), "mlp.fc1": (2 * C,)}.items():
        weights |= {f"blocks.0.{name}.weight": (*shape, C), f"blocks.0.{name}.bias": shape or (C,)}
    weights |= {"blocks.0.mlp.fc2.weight": (C, 2 * C), "blocks.0.mlp.fc2.bias": (C,)}
    safetensors.write_folder(tmp_path, {name: torch.randn(shape) * 0.1 for name, shape in weights.items()}, 10**9)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch4_16"}), encoding="utf-8")
    call(finetune, "--kind=image", f"--train_file={folder}", f"--init_from={tmp_path}", f"--out_dir={tmp_path / 'run'}",
         "--max_steps=3", "--device=cpu", "--dtype=float32", "--batch_size=16")
    saved = load(tmp_path / "run" / "best.pt")
    assert saved["task"]["pool"] == "cls" and saved["task"]["picture"]["cls"]
    assert saved["model_config"]["block_size"] == T
    assert saved["task"]["labels"] == [*COLOURS]
    del weights["norm.bias"]
    (tmp_path / "cut").mkdir()
    safetensors.write_folder(tmp_path / "cut", {name: torch.zeros(shape) for name, shape in weights.items()}, 10**9)
    (tmp_path / "cut" / "config.json").write_text(json.dumps({"architecture": "vit_small_patch4_16"}), encoding="utf-8")
    with pytest.raises(UserError, match="norm_out.bias is missing"):
        call(finetune, "--kind=image", f"--train_file={folder}", f"--init_from={tmp_path / 'cut'}",
             f"--out_dir={tmp_path / 'other'}")
