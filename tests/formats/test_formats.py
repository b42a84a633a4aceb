"""What is written is read back, as the other program writes it and as the other program reads it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import datadistill as dd
from datadistill.cli.main import main
from datadistill.data.transforms import Normalization
from datadistill.distilled import Provenance
from datadistill.formats import FORMATS, Usage, export_to, guess_format, import_from
from datadistill.formats.png import cost, folder_names, rounded
from datadistill.utils.errors import DamagedFileError, RequestError
from datadistill.utils.runtime import stream

HALF = 0.5 / 255


def sample(digits: dd.RealData, soft: bool = False, rates: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05)) -> Any:
    """Two batches, walked twice, for digits."""
    draw = stream(0, "sample")
    provenance = Provenance(
        dataset="digits",
        classes=digits.classes,
        normalization=digits.normalization,
        model="mlp",
        weights={"kind": "random-init", "scheme": "xavier"},
        inner={"optimizer": "sgd", "steps": 2, "epochs": 2, "augment": None, "loss": "cross-entropy"},
        method={"name": "dd", "rate": 0.1},
        seed=3,
        scores=[{"split": "held_out", "accuracy": 0.5}],
    )
    labels = torch.arange(20) % 10
    targets = torch.randn(20, 10, generator=draw) + 5 * torch.eye(10)[labels] if soft else None
    return dd.DistilledData(
        images=torch.randn(20, 1, 8, 8, generator=draw),
        labels=labels if targets is None else targets.argmax(1),
        batches=torch.randperm(20, generator=draw).view(2, 10),
        learning_rates=torch.tensor(rates),
        provenance=provenance,
        initial_weights={"fc.weight": torch.randn(3, 16, generator=draw)},
        soft_labels=targets,
    )


def place(tmp_path: Path, name: str) -> Path:
    return tmp_path / f"x{FORMATS.get(name).suffix}"


def library(name: str) -> None:
    if name == "hf":
        pytest.importorskip("datasets", reason="the extra hf is not installed")


def assert_same_steps(one: dd.DistilledData, other: dd.DistilledData) -> None:
    for mine, theirs in zip(one.inner_steps(), other.inner_steps(), strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.rate, theirs.rate)


@pytest.mark.parametrize("name", FORMATS.names())
@pytest.mark.parametrize("soft", [False, True])
def test_round_trip(name: str, soft: bool, digits: dd.RealData, tmp_path: Path) -> None:
    library(name)
    first, info, path = sample(digits, soft), FORMATS.get(name), place(tmp_path, name)
    lost = export_to(first, name.upper(), path)
    assert guess_format(path).name == name
    second = import_from(path, real=digits, usage=Usage("mlp", labels="shares"))
    if name == "png":
        # Half a step of 8 bits, in the units of normalised images.
        inside = first.pixels().clamp(0, 1)
        assert (second.pixels() - inside).abs().max() <= HALF + 1e-6
        second = replace(second, images=first.images)
    if name == "2018":
        assert_same_steps(replace(first, soft_labels=None), second)
    else:
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    for held, tensor in (("batches", "batches"), ("rates", "learning_rates"), ("soft labels", "soft_labels")):
        mine, theirs = getattr(first, tensor), getattr(second, tensor)
        if held in info.holds and name != "2018" and mine is not None:
            assert torch.equal(mine, theirs)
    assert (second.soft_labels is not None) == (soft and "soft labels" in info.holds)
    assert any("soft labels" in part for part in lost) == (soft and "soft labels" not in info.holds)
    assert any("initial weights" in part for part in lost) == ("initial weights" not in info.holds)
    assert any("batches" in part for part in lost) == ("batches" not in info.holds)
    if "provenance" in info.holds:
        assert second.provenance == first.provenance
    else:
        assert second.provenance.classes == digits.classes
    assert first.learning_rates is not None
    trained = replace(second, learning_rates=first.learning_rates[: len(second.batches)])
    assert dd.evaluate(trained, digits, weights="random-init", nets=1).nets == 1


def test_npz_loses_nothing(digits: dd.RealData, tmp_path: Path) -> None:
    first = sample(digits, soft=True)
    assert export_to(first, "npz", tmp_path / "x.npz") == []
    second = import_from(tmp_path / "x.npz")
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name])


@pytest.mark.parametrize("name", ["mtt", "dd-ranking"])
def test_one_rate_is_kept(name: str, digits: dd.RealData, tmp_path: Path) -> None:
    first = sample(digits, rates=(0.25,) * 4)
    assert not any("rate" in part for part in export_to(first, name, tmp_path / "x"))
    second = import_from(tmp_path / "x", real=digits, usage=Usage("mlp", epochs=7))
    assert second.learning_rates is not None
    assert second.learning_rates.tolist() == [0.25] * 7
    assert second.batches.shape == (1, 20)


def dc(path: Path) -> None:
    """As the authors' code writes it, for two experiments; accuracies are NumPy's numbers."""
    data = [[torch.full((20, 1, 8, 8), 0.1 * n), torch.arange(10).repeat_interleave(2)] for n in range(2)]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float64(0.25)]}}, path)


def mtt(path: Path) -> None:
    path.mkdir()
    torch.save(torch.full((20, 1, 8, 8), 0.1), path / "images_best.pt")
    torch.save(torch.arange(10).repeat_interleave(2), path / "labels_best.pt")
    torch.save(torch.tensor(0.02), path / "lr_best.pt")


def results(path: Path) -> None:
    """Two steps, walked twice; in the way that PyTorch before 1.6 wrote files."""
    batches = [(torch.full((10, 1, 8, 8), 0.1 * n), torch.arange(10)) for n in range(2)]
    steps = [(*batches[t % 2], torch.tensor(0.1 * (t + 1), requires_grad=True)) for t in range(4)]
    torch.save(steps, path, _use_new_zipfile_serialization=False)


def dd_ranking(path: Path) -> None:
    path.mkdir()
    torch.save(torch.full((20, 1, 8, 8), 0.1), path / "images.pt")
    torch.save(torch.eye(10).repeat_interleave(2, 0), path / "labels.pt")
    torch.save(torch.tensor(0.02), path / "lr.pt")


def npz(path: Path) -> None:
    labels = np.arange(10).repeat(2)
    np.savez_compressed(path, images=np.full((20, 1, 8, 8), 0.1, dtype=np.float64), labels=labels)


def png(path: Path) -> None:
    for label in range(10):
        (path / str(label)).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((8, 8), 25 * label, dtype=np.uint8)).save(path / str(label) / f"{number}.png")


def hf(path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789")))
    pictures = [Image.fromarray(np.full((8, 8), 25 * (n // 2), dtype=np.uint8)) for n in range(20)]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [n // 2 for n in range(20)]}, features=features)
    table.save_to_disk(str(path))


FOREIGN: dict[str, Callable[[Path], None]] = {
    "dc": dc,
    "mtt": mtt,
    "2018": results,
    "dd-ranking": dd_ranking,
    "npz": npz,
    "png": png,
    "hf": hf,
}


def test_every_format_of_others_is_tried_below() -> None:
    assert {"1", *FOREIGN} == set(FORMATS.names())


@pytest.mark.parametrize("name", FOREIGN)
def test_what_the_other_program_writes(name: str, digits: dd.RealData, tmp_path: Path) -> None:
    path = place(tmp_path, name)
    FOREIGN[name](path)
    out = tmp_path / "x-imported.safetensors"
    assert main(["import", str(path), "--dataset", "digits", "--model", "mlp", "--rate", "0.1", "--epochs", "3",
                 "--out", str(out)]) == 0  # fmt: skip
    data = dd.load_distilled(out)
    assert data.images.shape == (20, 1, 8, 8)
    assert data.labels.bincount().tolist() == [2] * 10
    assert data.provenance.normalization == digits.normalization
    assert data.provenance.method == {"name": "imported", "format": name}
    assert data.learning_rates is not None
    expected = {"2018": [0.1, 0.2, 0.3, 0.4], "mtt": [0.02] * 3, "dd-ranking": [0.02] * 3}.get(name, [0.1] * 3)
    assert data.learning_rates.tolist() == pytest.approx(expected)
    assert len(data.batches) == (2 if name == "2018" else 1)
    if name in ("png", "hf"):
        assert torch.allclose(data.pixels()[:, 0, 0, 0] * 255, 25.0 * data.labels, atol=1e-3)
    assert main(["evaluate", str(out), "--nets", "1", "--weights", "random-init"]) == 0


def test_the_experiment_is_chosen(digits: dd.RealData, tmp_path: Path) -> None:
    dc(tmp_path / "x.pt")
    chosen = import_from(tmp_path / "x.pt", real=digits, number=2)
    assert chosen.images.unique().tolist() == pytest.approx([0.1])
    with pytest.raises(RequestError, match="holds 2 sets"):
        import_from(tmp_path / "x.pt", real=digits, number=3)


def loaded(path: Path) -> Any:
    """As the other programs load files, all of which trust them."""
    return torch.load(path, weights_only=False)


def test_the_other_programs_read_what_we_write(digits: dd.RealData, tmp_path: Path) -> None:
    data, soft = sample(digits, rates=(0.5,) * 4), sample(digits, soft=True, rates=(0.5,) * 4)
    for name in ("dc", "mtt", "2018", "png", "npz"):
        export_to(data, name, place(tmp_path / name, name))
    export_to(soft, "dd-ranking", tmp_path / "ranking")
    found = loaded(tmp_path / "dc" / "x.pt")
    images, labels = found["data"][0]
    assert torch.equal(images, data.images)
    assert torch.equal(labels, data.labels)
    assert found["accs_all_exps"] == {}
    assert torch.equal(loaded(tmp_path / "mtt" / "x" / "images_best.pt"), data.images)
    assert torch.equal(loaded(tmp_path / "mtt" / "x" / "labels_best.pt"), data.labels)
    assert loaded(tmp_path / "mtt" / "x" / "lr_best.pt").item() == 0.5
    steps = loaded(tmp_path / "2018" / "x.pth")
    assert isinstance(steps, list)
    for (images, labels, rate), step in zip(steps, data.inner_steps(), strict=True):
        assert torch.equal(images, step.images)
        assert torch.equal(labels, step.labels)
        assert rate.shape == ()
        assert rate == step.rate
    assert torch.equal(loaded(tmp_path / "ranking" / "labels.pt"), soft.soft_labels)
    assert torch.equal(loaded(tmp_path / "ranking" / "images.pt"), soft.images)
    assert loaded(tmp_path / "ranking" / "lr.pt").item() == 0.5
    with np.load(tmp_path / "npz" / "x.npz") as arrays:
        assert np.array_equal(arrays["images"], data.images.numpy())
        assert json.loads(str(arrays["datadistill"]))["model"] == "mlp"
    # torchvision's ImageFolder: folders in alphabetical order are the classes.
    folders = sorted(entry.name for entry in (tmp_path / "png" / "x").iterdir() if entry.is_dir())
    assert folders == list(digits.classes)
    assert sum(1 for _ in (tmp_path / "png" / "x").glob("*/*.png")) == 20


def test_hugging_face_reads_what_we_write(digits: dd.RealData, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    data = sample(digits)
    export_to(data, "hf", tmp_path / "x")
    table = datasets.load_from_disk(str(tmp_path / "x"))
    assert table.features["label"].names == list(digits.classes)
    assert np.array_equal(np.array(table["image"], dtype=np.float32), data.images.numpy())
    assert list(table["label"]) == data.labels.tolist()


def test_without_its_library_hugging_face_is_one_sentence(
    digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(RequestError, match="needs their library: python3 -m pip"):
        export_to(sample(digits), "hf", tmp_path / "x")


REFUSED: dict[str, tuple[list[str], str]] = {
    "no dataset": ([], "name it with --dataset"),
    "a dataset of another size": (["--dataset", "mnist"], "images are (1, 8, 8), but those of mnist are (1, 28, 28)"),
    "another normalisation": (
        ["--dataset", "digits", "--mean", "0.5", "--std", "0.5"],
        "mean 0.5000 and deviation 0.5000, differs from that of digits",
    ),
    "half a normalisation": (["--dataset", "digits", "--mean", "0.5"], "--mean and --std together"),
    "a normalisation of three channels": (
        ["--dataset", "digits", "--mean", "0.5", "0.5", "0.5", "--std", "1", "1", "1"],
        "has 1 channels, but 3 means",
    ),
    "no deviation": (["--dataset", "digits", "--mean", "0.5", "--std", "0"], "those of --std positive"),
    "another class map": (
        ["--dataset", "digits", "--classes", "0,1,2,3,4,5,6,7,9,8"],
        "class 8 is '9' there and '8' here",
    ),
    "fewer classes": (["--dataset", "digits", "--classes", "0,1"], "2 together, but digits has 10"),
    "no rate": (["--dataset", "digits", "--rate", "-1"], "must be positive"),
    "another format": (["--dataset", "digits", "--from", "mtt"], "format mtt is a folder"),
    "an unknown format": (["--from", "dcc"], "did you mean dc"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_match_is_refused_by_name(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, sentence = REFUSED[case]
    dc(tmp_path / "x.pt")
    assert main(["import", str(tmp_path / "x.pt"), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_renormalized_images_have_the_same_pixels(digits: dd.RealData, tmp_path: Path) -> None:
    dc(tmp_path / "x.pt")
    other = Normalization((0.5,), (0.25,))
    usage = Usage("mlp", normalization=other, renormalize=True)
    data = import_from(tmp_path / "x.pt", real=digits, usage=usage, number=2)
    assert torch.allclose(data.pixels(), torch.tensor(0.1 * 0.25 + 0.5), atol=1e-6)


def test_what_a_code_is_known_to_normalise_by_is_refused_too(digits: dd.RealData, tmp_path: Path) -> None:
    """CIFAR-10 files of DC and MTT have deviations that are not CIFAR-10's."""
    cifar = replace(
        digits,
        name="cifar-10",
        train=replace(digits.train, images=digits.train.images.expand(-1, 3, -1, -1)),
        normalization=Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    )
    torch.save({"data": [[torch.ones(10, 3, 8, 8), torch.arange(10)]], "accs_all_exps": {}}, tmp_path / "x.pt")
    with pytest.raises(RequestError, match=r"0\.2023 .* differs from that of cifar-10.*--renormalize"):
        import_from(tmp_path / "x.pt", real=cifar)
    data = import_from(tmp_path / "x.pt", real=cifar, usage=Usage("convnet", renormalize=True))
    assert data.pixels()[0, :, 0, 0].tolist() == pytest.approx([0.4914 + 0.2023, 0.4822 + 0.1994, 0.4465 + 0.2010])


DATASETS = {
    "digits": Normalization((0.3051,), (0.3756,)),
    "mnist": Normalization((0.1307,), (0.3081,)),
    "usps": Normalization((0.1630,), (0.3048,)),
    "cifar-10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar-100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("name", FORMATS.names())
@pytest.mark.parametrize("dataset", DATASETS)
def test_there_and_back_is_equal_for_every_dataset(
    name: str, dataset: str, digits: dd.RealData, tmp_path: Path
) -> None:
    """What the other program reads is normalised as it normalises; what comes back is as it was."""
    library(name)
    ours, info, path = DATASETS[dataset], FORMATS.get(name), place(tmp_path, name)
    images = digits.train.images.expand(-1, len(ours.mean), -1, -1)
    real = replace(digits, name=dataset, normalization=ours, train=replace(digits.train, images=images))
    first = sample(digits, rates=(0.25,) * 4)
    first = replace(
        first,
        images=ours.apply((torch.rand(20, 8, 8, len(ours.mean), generator=stream(0)) * 255).byte()),
        provenance=replace(first.provenance, dataset=dataset, normalization=ours),
    )
    export_to(first, name, path)
    theirs = info.normalizations.get(dataset)
    back = import_from(path, real=real, usage=Usage("mlp", renormalize=theirs is not None))
    if name == "2018":
        for mine, other in zip(first.inner_steps(), back.inner_steps(), strict=True):
            assert torch.allclose(mine.images, other.images, atol=1e-5)
    else:
        assert torch.allclose(first.images, back.images, atol=1e-5)
        assert torch.equal(first.labels, back.labels)
    if name == "dc" and theirs is not None:
        written = torch.load(path, weights_only=True)["data"][0][0]
        assert torch.allclose(theirs.invert(written), first.pixels(), atol=1e-6)


def test_pictures_of_other_classes_are_refused(digits: dd.RealData, tmp_path: Path) -> None:
    png(tmp_path / "x")
    (tmp_path / "x" / "9").rename(tmp_path / "x" / "nine")
    with pytest.raises(RequestError, match="class 9 is 'nine' there and '9' here"):
        import_from(tmp_path / "x", real=digits)


def test_labels_beyond_the_dataset_are_refused(digits: dd.RealData, tmp_path: Path) -> None:
    torch.save({"data": [[torch.ones(11, 1, 8, 8), torch.arange(11)]]}, tmp_path / "x.pt")
    with pytest.raises(RequestError, match="of 11 classes, but digits has 10"):
        import_from(tmp_path / "x.pt", real=digits)


def test_nothing_is_overwritten(digits: dd.RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(digits).save(tmp_path / "x.safetensors")
    assert main(["export", str(tmp_path / "x.safetensors"), "--to", "npz"]) == 0
    assert main(["export", str(tmp_path / "x.safetensors"), "--to", "npz"]) == 2
    assert "already" in capsys.readouterr().err
    before = (tmp_path / "x-npz.npz").read_bytes()
    with pytest.raises(RequestError, match="already"):
        export_to(sample(digits), "png", tmp_path)
    assert main(["import", str(tmp_path / "x-npz.npz"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert (tmp_path / "x-npz.npz").read_bytes() == before


def test_png_says_what_it_costs(digits: dd.RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = replace(sample(digits), initial_weights=None)
    data.save(tmp_path / "x.safetensors")
    flags = ["--out", str(tmp_path / "png"), "--dataset", "digits", "--nets", "2"]
    assert main(["export", str(tmp_path / "x.safetensors"), "--to", "png", *flags]) == 0
    out = capsys.readouterr().out
    assert str(cost(data)) in out
    assert "test accuracy as it was" in out
    assert "test accuracy in 8 bits" in out
    pixels = data.pixels()
    assert cost(data).cut == pytest.approx(float(((pixels < -HALF) | (pixels > 1 + HALF)).float().mean()))
    back = import_from(tmp_path / "png")
    assert torch.equal(back.images, rounded(data).images)
    assert cost(back).worst < 1e-4


def test_hostile_class_names_stay_in_their_folder(digits: dd.RealData, tmp_path: Path) -> None:
    names = ("../../x", "/etc/passwd", "a\nb", "<script>alert(1)</script>", "..", "", "CON", "con", "c:\\x", "\x1b[2J")
    data = sample(digits)
    data = replace(data, provenance=replace(data.provenance, classes=names))
    folder = tmp_path / "deep" / "down"
    export_to(data, "png", folder / "png")
    assert {entry for entry in tmp_path.rglob("*") if entry.is_file()} == {
        entry for entry in (folder / "png").rglob("*") if entry.is_file()
    }
    written = [entry.name for entry in (folder / "png").iterdir() if entry.is_dir()]
    assert sorted(written) == sorted(folder_names(names))
    assert all(name.replace("-", "").isalnum() for name in written)
    assert import_from(folder / "png").provenance.classes == names


def test_folder_names_sort_as_classes_do() -> None:
    assert folder_names(("ant", "bee")) == ["ant", "bee"]
    assert folder_names(("bee", "ant")) == ["0-bee", "1-ant"]
    assert folder_names(("a", "A")) == ["0-a", "1-A"]
    many = tuple(str(n) for n in range(100))
    assert sorted(folder_names(many)) == folder_names(many)


def test_a_format_with_nothing_in_it(digits: dd.RealData, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing at"):
        guess_format(tmp_path / "x")
    with pytest.raises(RequestError, match="looks like none of"):
        guess_format(tmp_path)
    torch.save([], tmp_path / "x.pth")
    with pytest.raises(DamagedFileError, match="not a list of steps"):
        import_from(tmp_path / "x.pth", real=digits)


@pytest.mark.parametrize("name", ["mtt", "dd-ranking"])
def test_what_labels_are_is_told_or_asked(
    name: str, digits: dd.RealData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits, folder = sample(digits, soft=True, rates=(0.5,) * 4), tmp_path / "logits"
    assert logits.soft_labels is not None
    shares = logits.soft_labels.softmax(1)
    export_to(logits, name, folder)
    export_to(replace(logits, soft_labels=shares), name, tmp_path / "shares")
    command = ["import", str(folder), "--from", name, "--dataset", "digits", "--model", "mlp", "--out"]
    for number, words in enumerate(([], ["--labels", "logits"], ["--labels", "shares"])):
        out = tmp_path / f"{number}.safetensors"
        code = main([*command, str(out), *words])
        err = capsys.readouterr().err
        if not words and name != "mtt":  # nobody knows what they are
            assert code == 2
            assert "--labels logits" in err
            continue
        assert ("a softmax makes shares of them" in err) == (not words)
        expected = logits.soft_labels if "shares" in words else shares
        found = dd.load_distilled(out).soft_labels
        assert found is not None
        assert torch.equal(found, expected)
    command[1] = str(tmp_path / "shares")
    assert main([*command, str(tmp_path / "s.safetensors")]) == 0
    assert capsys.readouterr().err == ""
    found = dd.load_distilled(tmp_path / "s.safetensors").soft_labels
    assert found is not None
    assert torch.equal(found, shares)
