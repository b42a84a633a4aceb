"""What is read: whole files of every kind, and what reads them."""

import bz2
import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import trained
from PIL import Image
from scipy.io import savemat

import datadistill as dd
from datadistill.cli.main import main
from datadistill.data.readers.cache import _read as read_cache
from datadistill.data.readers.cifar import Binary
from datadistill.data.readers.cifar_python import parse_batch
from datadistill.data.readers.idx import read_idx_pairs
from datadistill.data.readers.libsvm import read_libsvm
from datadistill.data.readers.matlab import read_matlab
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import network_for
from datadistill.experiments.recipes import parse_recipe
from datadistill.experiments.recipes.measured import Measured, load_measured, record_measured
from datadistill.experiments.reproduce import Changes, reproduce
from datadistill.formats import FORMATS, export_to
from datadistill.report.curve import save_curve
from datadistill.utils.files import digest_of, write_tensors


@dataclass(frozen=True)
class Subject:
    """One kind of file, or of folder.

    Attributes:
        make: writes whole ones into a folder.
        read: reads them there: words of a command, or a function that raises errors for people.
        weight: how often it is taken.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Random], int | None]
    weight: int = 3


def command(*words: str) -> int:
    return main(list(words))


@cache
def digits() -> dd.RealData:
    return dd.load("digits")


@cache
def sample() -> dd.DistilledData:
    """Two batches of digits for a small network, with rates and initial weights."""
    method = dd.methods.DD(steps=2, epochs=2, batch=32)
    return dd.distill(digits(), method, model="mlp", ipc=2, iterations=1, device="cpu").distilled


def a_set(folder: Path) -> None:
    sample().save(folder / "x.safetensors")


def read_set(folder: Path, rng: Random) -> int:
    path = str(folder / "x.safetensors")
    words = rng.choice(
        (
            *(
                ["export", path, "--to", name, "--out", f"out/x{FORMATS.get(name).suffix}"]
                for name in ("npz", "dc", "1")
            ),
            ["export", path, "--to", "png", "--out", "out/x"],
            ["evaluate", path, "--nets", "1", "--json"],
            ["evaluate", path, "--dataset", "digits", "--nets", "1", "--protocol", "nearest"],
            ["show", path, "--out", "out/x.png"],
        )
    )
    return command(*words)


def a_format(name: str, data: Callable[[], dd.DistilledData] = sample) -> Subject:
    def make(folder: Path) -> None:
        export_to(data(), name, folder / f"x{FORMATS.get(name).suffix}")

    def read(folder: Path, rng: Random) -> int:
        words = ["import", str(folder / f"x{FORMATS.get(name).suffix}"), "--dataset", "digits", "--model", "mlp"]
        return command(
            *words, "--out", "out/y.safetensors", *rng.choice(([], ["--from", name], ["--labels", "shares"]))
        )

    return Subject(make, read)


def soft() -> dd.DistilledData:
    """With soft labels and one rate."""
    data = sample()
    shares = torch.full((len(data.labels), 10), 0.05).scatter(1, data.labels[:, None], 0.55)
    return replace(data, soft_labels=shares, learning_rates=torch.full((4,), 0.25), initial_weights=None)


def old(folder: Path) -> None:
    steps = [(torch.ones(10, 1, 8, 8), torch.arange(10), torch.tensor(0.1))] * 2
    torch.save(steps, folder / "x.pth", _use_new_zipfile_serialization=False)


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(16):
        place = folder / ("train" if number < 12 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        suffix = (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm")[number % 7]
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(place / f"{number}{suffix}")


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8)).astype(np.uint8), np.arange(count) % 2


def an_npz(folder: Path) -> None:
    (x, y), (x_test, y_test) = arrays(12), arrays(4)
    np.savez_compressed(
        folder / "x.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test, classes=np.array(["a", "b"])
    )


def saved(folder: Path) -> None:
    import datasets

    images, labels = arrays(12)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, test=table.select(range(4))).save_to_disk(str(folder))


def parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures(folder)
    found = sorted(folder.rglob("*.png")) * 6
    rows = {"image": [path.read_bytes() for path in found], "label": [number % 2 for number in range(len(found))]}
    shutil.rmtree(folder)
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "train.parquet")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files(folder: Path) -> None:
    for split, count in (("train", 12), ("t10k", 4)):
        images, labels = arrays(count)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def read_data(folder: Path, rng: Random) -> int:
    files = [path for path in folder.iterdir() if path.suffix in (".npz", ".parquet")]
    place = files[0] if len(files) == 1 else folder
    flags = rng.choice(([], ["--skip-unreadable"], ["--size", "12"], ["--channels", "1"], ["--white", "255"]))
    return command("distill", "--dataset", str(place), "--model", "no-such-model", *flags)


def a_run(folder: Path, method: str = "dd", model: str = "mlp") -> None:
    words = ["distill", "--method", method, "--dataset", "digits", "--model", model, "--weights", "random-init"]
    words += ["--iterations", "6", "--outer-eval-every", "2", "--nets", "1", "--ipc", "1", "--out", str(folder / "run")]
    if method == "dd":
        words += ["--steps", "1", "--epochs", "2", "--batch", "32", "--networks", "1"]
    assert command(*words) == 0
    (folder / "run" / "checkpoint" / "step-000000006.safetensors").unlink()


def go_on(folder: Path, rng: Random) -> int | None:
    """By the command, which takes a second, or what it does before and after the run itself."""
    run = RunFolder(folder / "run")
    if rng.random() < 0.1:
        return command("distill", "--resume", "--out", str(run.path), "--nets", "1")
    config = run.settings().config(run.path)
    if config.dataset != "digits" or (config.iterations or 0) > 20 or config.model not in ("mlp", "ConvNetD1W16"):
        return None  # as long a run as the file asks for
    dd.distill(digits(), config=replace(config, device="cpu"), out=run.path, resume=True)
    if rng.random() < 0.1:
        save_curve(run.metrics(), run.path / "curve.png")
    return None


def a_pool(folder: Path) -> None:
    shutil.copy(trained.POOL, folder / "x.safetensors")


def read_pool(folder: Path, rng: Random) -> None:
    pool = dd.load_pool(folder / "x.safetensors")
    pool.check_fits(network_for("mlp", digits(), torch.device("cpu"), "auto"), "mlp", digits())
    pool.for_distilling.sample(2, torch.Generator().manual_seed(0))
    str(pool.label)


def experts(folder: Path) -> None:
    shutil.copytree(trained.EXPERTS, folder, dirs_exist_ok=True)


def read_experts(folder: Path, rng: Random) -> None:
    found = dd.load_trajectories(folder)
    found.check_fits(network_for("ConvNetD1W16", digits(), torch.device("cpu"), "auto"), "ConvNetD1W16", digits())
    found.experts[0].check()
    str(found.digest)


def parts(folder: Path) -> None:
    """A pool that lacks its last network."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == 3:
            os.kill(os.getpid(), 2)

    try:
        grow(folder, count)
    except dd.DatadistillError:
        return
    raise AssertionError("it was not interrupted")


def grow(folder: Path, count: Callable[[], None] = lambda: None) -> None:
    training = dd.TrainRecipe(epochs=1, batch=256)
    given: dict[str, Any] = {"model": "mlp", "nets": 3, "reserved": 1, "training": training, "device": "cpu"}
    dd.make_pool(digits(), folder / "x.safetensors", resume=True, count=count, **given)


RECIPE = """
line = "digits"
baselines = ["random"]

[run]
dataset = "digits"
model = "mlp"
weights = "random-init"
iterations = 2
ipc = 1

[method]
name = "dd"
steps = 1
epochs = 1
batch = 32
networks = 1

[outer]
lr = 0.01

[expect]
nets = 2
accuracy = [0.0, 1.0]

[paper]
source = "nobody"
after = 0.5
"""


def a_recipe(folder: Path) -> None:
    (folder / "x.toml").write_text(RECIPE)
    shipped = Path(dd.__file__).parent / "experiments" / "recipes"
    for name in ("mnist-malicious", "mnist-mtt-1", "mnist-sweep-epochs"):
        shutil.copy(shipped / f"{name}.toml", folder)


def read_recipe(folder: Path, rng: Random) -> None:
    for path in sorted(folder.glob("*.toml")):
        if path.is_file():
            try:
                document = tomllib.loads(path.read_bytes().decode())
            except (ValueError, RecursionError):
                continue  # those that are shipped are whole; what they hold is what is tried
            recipe = parse_recipe(path.stem, document)
            str(recipe.digest), recipe.published("after"), str(recipe.expect)


def experiment(folder: Path, nets: int = 2) -> None:
    recipe = parse_recipe("own", tomllib.loads(RECIPE))
    str(reproduce(recipe, folder / "x", Changes(nets=nets, device="cpu"), resume=True).sentence())


def measured(folder: Path) -> None:
    entry = Measured("0", "accuracy", 0.5, 0.1, 2, 1.0, 0, "cpu", 1, "2026-01-01", {"torch": "2"}, [{"name": "x"}])
    record_measured("one", entry, folder / "measured.json")
    record_measured("two", entry, folder / "measured.json")


def a_cache(folder: Path) -> None:
    tensors = {"pixels": torch.zeros(3, 4, 4, 1, dtype=torch.uint8)}
    facts = {"state": "s", "kept": "[0, 1, 3]", "more": '[255, ["a"]]'}
    write_tensors(folder / "x.safetensors", tensors, {**facts, "sha256": digest_of(tensors, json.dumps(facts))})


CIFAR = Binary(("one.bin",), "two.bin", 1, ((2, 3), (1, 1)))
COUNTS = ((6, 6), (2, 2))


def official(folder: Path) -> None:
    """Small files in the official forms."""
    for number, count in enumerate((12, 4)):
        images, labels = arrays(count)
        (folder / f"images{number}").write_bytes(gzip.compress(idx(images)))
        (folder / f"labels{number}").write_bytes(idx(labels))
        lines = []
        for image, label in zip(images, labels, strict=True):
            lines.append(f"{label + 1} " + " ".join(f"{n}:{v / 255:.3f}" for n, v in enumerate(image.flatten(), 1)))
        (folder / f"svm{number}.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    for name, labels in (("one.bin", (0, 0, 1, 1, 1)), ("two.bin", (0, 1))):
        (folder / name).write_bytes(b"".join(bytes([label]) + bytes(3072) for label in labels))
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name in CIFAR.names:
            archive.add(folder / name, f"cifar/{name}")
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    (folder / "batch").write_bytes(pickle.dumps(batch, protocol=2))
    savemat(folder / "x.mat", {"X": np.zeros((4, 4, 3, 4), np.uint8), "y": np.array([[1], [1], [2], [10]])})


def read_official(folder: Path, rng: Random) -> None:
    """Every reader; past the checksums, but for archives and MATLAB files, which are not parsed before."""
    sums = tuple(hashlib.sha256(content).hexdigest() for content in IDX_CONTENTS)
    files = [folder / f"{kind}{number}" for number in range(2) for kind in ("images", "labels")]
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_idx_pairs(tuple(files), sums, COUNTS, 8),
        lambda: read_libsvm((folder / "svm0.bz2", folder / "svm1.bz2"), COUNTS, 8),
        lambda: CIFAR.read((folder / "one.bin", folder / "two.bin")),
        lambda: CIFAR.read_archive((folder / "cifar.tar.gz",), "cifar", "0" * 32),
        lambda: parse_batch((folder / "batch").read_bytes(), b"labels", folder) if (folder / "batch").is_file() else 0,
        lambda: read_matlab((folder / "x.mat",) * 2, ("0" * 32,) * 2, ((2, 1, 1),) * 2, 4),
    )
    for reader in readers:
        try:
            reader()
        except dd.DatadistillError:
            continue


IDX_CONTENTS = [idx(array) for count in (12, 4) for array in arrays(count)]

SUBJECTS: dict[str, Subject] = {
    "set": Subject(a_set, read_set, 8),
    **{name: a_format(name) for name in ("dc", "2018", "npz", "png", "hf")},
    **{name: a_format(name, soft) for name in ("mtt", "dd-ranking")},
    "old pickle": Subject(old, a_format("2018").read),
    "pictures": Subject(pictures, read_data, 6),
    "arrays": Subject(an_npz, read_data, 6),
    "hugging face": Subject(saved, read_data),
    "parquet": Subject(parquet, read_data),
    "idx": Subject(idx_files, read_data),
    "official": Subject(official, read_official),
    "run of dd": Subject(a_run, go_on, 6),
    "run of dc": Subject(lambda folder: a_run(folder, "dc", "ConvNetD1W16"), go_on, 2),
    "pool": Subject(a_pool, read_pool, 4),
    "experts": Subject(experts, read_experts, 4),
    "parts of a pool": Subject(parts, lambda folder, rng: grow(folder), 2),
    "recipe": Subject(a_recipe, read_recipe, 4),
    "experiment": Subject(experiment, lambda folder, rng: experiment(folder), 2),
    "measured": Subject(measured, lambda folder, rng: str(load_measured(folder / "measured.json")) and None, 1),
    "cache": Subject(a_cache, lambda folder, rng: str(read_cache(folder / "x.safetensors", "s", 4)) and None, 2),
}
