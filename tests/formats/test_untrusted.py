"""Files from strangers: each ends in one sentence and exit code 1 or 2, and nothing runs; tests/fuzzing has more."""

import io
import json
import os
import pickle
import resource
import shlex
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import datadistill as dd
from datadistill.cli.main import main
from datadistill.data.transforms import Normalization
from datadistill.distilled import Provenance
from datadistill.formats import FORMATS, export_to, import_from
from datadistill.formats.pickles import read_pickle
from datadistill.utils.errors import DatadistillError

NAMES = ("plain", "../../up", "a\nb", "<b>x</b>", "[/red]", "| x |", "\x1b[31m", "`code`", "![x](y)", "end")


def sample() -> dd.DistilledData:
    provenance = Provenance(
        dataset="digits",
        classes=tuple("0123456789"),
        normalization=Normalization((0.3051,), (0.3756,)),
        model="mlp",
        weights={"kind": "random-init", "scheme": "xavier"},
        inner={"optimizer": "sgd", "steps": 1, "epochs": 2, "augment": None, "loss": "cross-entropy"},
        method={"name": "dd"},
        seed=3,
    )
    return dd.DistilledData(
        images=torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(10),
        batches=torch.arange(10).view(1, 10),
        learning_rates=torch.tensor([0.5, 0.25]),
        provenance=provenance,
    )


def ends_well(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command ends with 0, or with one sentence and 1 or 2; a traceback would leave `main`."""
    code = main(command)
    error = capsys.readouterr().err
    assert code in (0, 1, 2)
    if code:
        lines = [line for line in error.splitlines() if line.startswith("datadistill: ")]
        assert len(lines) == 1, error
        assert lines[0].isprintable()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


def with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file with another JSON in its metadata."""
    header = json.loads(sample().header())
    changed = change(header)
    text = changed if isinstance(changed, str) else json.dumps(header)
    return safetensors.torch.save(sample().tensors(), {"datadistill": text})


HEADERS = {
    "deep JSON": lambda: with_header(lambda header: "[" * 100_000),
    "deep JSON that is closed": lambda: with_header(lambda header: '{"a":' * 5000 + "1" + "}" * 5000),
    "no JSON": lambda: with_header(lambda header: "{"),
    "a number without end": lambda: with_header(lambda header: '{"format": ' + "9" * 10_000 + "}"),
    "a mean beyond floats": lambda: with_header(
        lambda header: header.update(normalization={"mean": [10**400], "std": [1]})
    ),
    "a mean that is no number": lambda: with_header(
        lambda header: header.update(normalization={"mean": [float("nan")], "std": [1]})
    ),
    "a huge header": lambda: struct.pack("<Q", 2**40) + b"{}",
    "a negative header": lambda: struct.pack("<q", -1) + b"{}",
    "a huge tensor": lambda: _claiming([1 << 40]),
    "a product beyond 64 bits": lambda: _claiming([1 << 40, 1 << 40]),
    "another type": lambda: safetensors.torch.save(
        {**sample().tensors(), "images": sample().images.half()}, {"datadistill": sample().header()}
    ),
    "numbers that are not finite": lambda: safetensors.torch.save(
        {**sample().tensors(), "images": sample().images / 0}, {"datadistill": sample().header()}
    ),
    "nothing": lambda: b"",
}


def _claiming(shape: list[int]) -> bytes:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 1 << 42]}
    header = json.dumps({"images": entry}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("case", HEADERS)
def test_a_lying_header_is_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.safetensors").write_bytes(HEADERS[case]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["evaluate", "x.safetensors"]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def written(name: str) -> Path:
    """A whole file of a format."""
    path = Path(f"whole-{name}{FORMATS.get(name).suffix}")
    if not path.exists():
        export_to(sample(), name, path)
    return path


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused(legacy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"data": [Evil()]}, "x.pt", _use_new_zipfile_serialization=not legacy)
    Path("y.pt").write_bytes(pickle.dumps(Evil()))
    Path("m").mkdir()
    torch.save(torch.ones(10, 1, 8, 8), "m/images_best.pt")
    torch.save(Evil(), "m/labels_best.pt")
    for name in ("x.pt", "y.pt", "m"):
        assert main(["import", name, "--dataset", "digits"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    np.savez("x.npz", images=np.array([Evil()], dtype=object), labels=np.arange(1))
    assert main(["import", "x.npz", "--dataset", "digits"]) == 1
    assert "Python objects, which could run anything" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_numbers_of_numpy_are_read_without_numpy() -> None:
    torch.save([np.float64(0.25), np.float32(0.5), np.int64(3)], "x.pt")
    assert read_pickle(Path("x.pt")) == [0.25, 0.5, 3.0]
    torch.save([np.array([1.0, 2.0])], "x.pt")
    with pytest.raises(DatadistillError, match="refused"):
        read_pickle(Path("x.pt"))


def _repacked(change: Callable[[str, bytes], bytes], compressed: bool = False) -> None:
    """The file `x.pt` with other entries."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(written("dc")) as whole, zipfile.ZipFile("x.pt", "w", kind) as out:
        for entry in whole.infolist():
            out.writestr(entry.filename, change(entry.filename, whole.read(entry)))


def test_sizes_in_a_pickle_are_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    # 640 numbers, as BININT2, become 2^31 - 1 as BININT.
    huge = b"J" + struct.pack("<i", 2**31 - 1)
    _repacked(lambda name, content: content.replace(b"M\x80\x02", huge) if name.endswith("data.pkl") else content)
    assert main(["import", "x.pt", "--dataset", "digits"]) == 1
    assert "claim more than the file holds" in capsys.readouterr().err
    _repacked(lambda name, content: bytes(1 << 20) if name.endswith("data/0") else content, compressed=True)
    assert main(["import", "x.pt", "--dataset", "digits"]) == 1
    assert "an entry is compressed" in capsys.readouterr().err
    torch.save({"data": [[torch.zeros(1).expand(1 << 30, 1, 8, 8), torch.zeros(1 << 5)]]}, "x.pt")
    assert main(["import", "x.pt", "--dataset", "digits"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_tensor_that_repeats_its_storage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"data": [[torch.zeros(1).expand(1000, 1, 8, 8), torch.zeros(1).long().expand(1000)]]}, "x.pt")
    assert main(["import", "x.pt", "--dataset", "digits"]) == 1
    assert "claims 64,000 numbers, but holds fewer" in capsys.readouterr().err


def test_sizes_in_an_npz_are_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez_compressed("x.npz", images=np.zeros((1 << 20, 1, 8, 8), dtype=np.float32), labels=np.zeros(1 << 20, int))
    assert main(["import", "x.npz", "--dataset", "digits"]) == 1
    assert "claims to become" in capsys.readouterr().err
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1, 8, 8)})
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue())
    assert main(["import", "x.npz", "--dataset", "digits"]) == 1
    assert "but 0 bytes follow" in capsys.readouterr().err


def test_a_picture_that_claims_a_huge_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = written("png") / "3" / "00003.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + struct.pack(">II", 60_000, 60_000) + whole[24:])
    assert main(["import", str(written("png")), "--out", "x.safetensors"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_names_of_strangers_are_shown_and_do_nothing(capsys: pytest.CaptureFixture[str], digits: dd.RealData) -> None:
    data = sample()
    data = replace(data, provenance=replace(data.provenance, classes=NAMES, model="mlp\x1b[31m[/red]\n"))
    data.save("x.safetensors")
    assert main(["show", "x.safetensors", "--out", "x.png"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "x.safetensors"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    strange = replace(digits, classes=NAMES, normalization=data.provenance.normalization)
    score = dd.evaluate(data, strange, model="mlp", nets=1, weights="random-init")
    from datadistill.cli.common import print_table, score_cells

    print_table("[/red]\x1b[31m", ["[/x]"] + ["b"] * 7, [["[/red]", *score_cells(replace(score, model=NAMES[6]))]])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped_in_a_card(name: str, digits: dd.RealData) -> None:
    from datadistill.report.card import make_card

    run = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    score = dd.evaluate(run, digits)
    mine = replace(run.provenance, dataset=name, model=name, recipe=f"x {name}")
    whole = make_card(replace(run, provenance=mine), score, "place")
    (command,) = (line for line in whole.splitlines() if line.startswith("    datadistill evaluate"))
    assert command.isprintable()
    assert shlex.split(command)[:3] == ["datadistill", "evaluate", "place"]
    assert set(shlex.split(command)[3:]) <= {"--dataset", "--model", name}
    card = whole.replace(command, "")
    assert "<b>" not in card.replace("`x <b>x</b>`", "")
    assert "\x1b" not in card
    assert "![x](y)" not in card.replace("`x ![x](y)`", "")
    heading = card.splitlines()[0]
    assert heading.startswith("# 10 images that stand for ")
    assert all(line.count("|") - line.count("\\|") == 3 for line in card.splitlines() if line.startswith("| network"))


def test_nothing_is_imported_for_a_file_that_names_code(digits: dd.RealData) -> None:
    Path("evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\nf = None")
    data = sample()
    data = replace(data, provenance=replace(data.provenance, model="evil.py:f", normalization=digits.normalization))
    export_to(data, "npz", "x.npz")
    back = import_from("x.npz", real=digits)
    with pytest.raises(DatadistillError, match=r"evil\.py:f, which is code"):
        dd.evaluate(back, digits)
    assert not Path("ran").exists()


def test_a_picture_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives EPS, whatever the file is called, to Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: Path("ran").touch())
    Path("set/0").mkdir(parents=True)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    Path("set/0/0.png").write_bytes(program)
    with pytest.raises(DatadistillError, match="no picture"):
        import_from("set", "png")
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0"]))
    rows = {"image": [{"bytes": program, "path": None}], "label": [0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
    with pytest.raises(DatadistillError, match="no picture"):
        import_from("saved", "hf")
    assert not Path("ran").exists()


@pytest.mark.parametrize("column", ["image", "label"])
def test_what_a_table_names_is_not_fetched(
    column: str, monkeypatch: pytest.MonkeyPatch, digits: dd.RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")

    def fetch(*given: Any, **more: Any) -> Any:
        Path("ran").touch()
        raise OSError("fetched")

    monkeypatch.setattr(datasets.features.image, "xopen", fetch)
    monkeypatch.setattr("datasets.arrow_dataset.xgetsize", lambda *given, **more: 1)  # asks the address when it saves
    named = [{"bytes": None, "path": "https://nowhere.invalid/x.png"}] * 4
    features = {"image": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.ClassLabel(names=["a", "b"])}
    rows: dict[str, Any] = {"image": [np.zeros((1, 8, 8), np.float32)] * 4, "label": [0, 1, 0, 1]}
    features, rows = features | {column: datasets.Image()}, rows | {column: named}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk("saved")
    for command in (["import", "saved", "--dataset", "digits"], ["plan", "--dataset", "./saved"]):
        ends_well(command, capsys)
    assert not Path("ran").exists()


@pytest.mark.parametrize(("file", "key", "names"), [
    ("saved/state.json", "_data_files", [{"filename": "../private/data-00000-of-00001.arrow"}]),
    ("saved/state.json", "_data_files", [{"filename": "{here}/private/data-00000-of-00001.arrow"}]),
    ("saved/state.json", "_indices_files", [{"filename": "../private/data-00000-of-00001.arrow"}]),
    ("saved/dataset_dict.json", "splits", ["../private"]),
    ("saved/dataset_dict.json", "splits", ["{here}/private"]),
])  # fmt: skip
def test_a_saved_table_opens_nothing_elsewhere(file: str, key: str, names: list[Any]) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = datasets.Features(image=datasets.Array3D((8, 8, 1), "uint8"), label=datasets.ClassLabel(names=["a"]))
    rows = {"image": [np.zeros((8, 8, 1), np.uint8)] * 20, "label": [0] * 20}
    for name in ("private", "saved"):
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(name)
    document = json.loads(Path(file).read_text()) if Path(file).exists() else {}
    Path(file).write_text(json.dumps(document | {key: names}).replace("{here}", str(Path.cwd())))
    for read in (lambda: import_from("saved", "hf"), lambda: dd.load("./saved", say=lambda text: None)):
        with pytest.raises(dd.DamagedFileError, match="which is not beside it"):
            read()


def test_nobody_is_told_to_type_what_a_file_calls_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    data = sample()
    export_to(replace(data, provenance=replace(data.provenance, model="evil.py:f")), "npz", "x.npz")
    assert main(["import", "x.npz"]) == 0
    assert "evil" not in capsys.readouterr().out
