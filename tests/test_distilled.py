"""Distilled data on disk: what is written is read, and what is damaged is refused in one sentence."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

import datadistill as dd
from datadistill.data.transforms import Normalization, Whitening
from datadistill.distilled import Provenance
from datadistill.utils.errors import DamagedFileError, DatadistillError, RequestError
from datadistill.utils.files import write_atomically
from datadistill.utils.runtime import stream


def sample(**changes: Any) -> dd.DistilledData:
    draw = stream(0, "sample")
    provenance = Provenance(
        dataset="digits",
        classes=tuple("abc"),
        normalization=Normalization((0.5,), (0.25,)),
        model="mlp",
        weights={"kind": "fixed-init", "scheme": "xavier"},
        inner={"optimizer": "sgd", "steps": 2, "epochs": 2, "augment": None, "loss": "cross-entropy"},
        method={"name": "dd"},
        seed=3,
        cost={"seconds": 1.5},
        scores=[{"accuracy": 0.5}],
        recipe="datadistill distill",
    )
    data = dd.DistilledData(
        images=torch.randn(6, 1, 4, 4, generator=draw),
        labels=torch.tensor([0, 1, 2, 0, 1, 2]),
        batches=torch.arange(6).view(2, 3),
        learning_rates=torch.rand(4, generator=draw) + 0.01,
        provenance=provenance,
        initial_weights={"fc.weight": torch.randn(3, 16, generator=draw), "fc.bias": torch.zeros(3)},
    )
    return replace(data, **changes)


def whitening(numbers: int) -> dict[str, Tensor]:
    return {"transform.zca_mean": torch.zeros(numbers), "transform.zca_matrix": torch.eye(numbers)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "set.safetensors"
    sample().save(path)
    return path


def test_round_trip(file: Path) -> None:
    first, second = sample(), dd.load_distilled(file)
    assert first.provenance == second.provenance
    for name in ("images", "labels", "batches", "learning_rates"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.initial_weights is not None
    assert second.initial_weights is not None
    assert first.initial_weights.keys() == second.initial_weights.keys()


def test_round_trip_of_what_is_optional(tmp_path: Path) -> None:
    soft = torch.full((6, 3), 1 / 3)
    sample(learning_rates=None, initial_weights=None, soft_labels=soft).save(tmp_path / "x.safetensors")
    back = dd.load_distilled(tmp_path / "x.safetensors")
    assert back.learning_rates is None
    assert back.initial_weights is None
    assert back.soft_labels is not None
    assert torch.equal(back.soft_labels, soft)
    with pytest.raises(RequestError, match="no steps with learning rates"):
        back.inner_steps()


def test_another_program_needs_only_safetensors(file: Path) -> None:
    with safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()["datadistill"])
        assert header["format"] == 1
        assert header["classes"] == ["a", "b", "c"]
        assert opened.get_tensor("images").shape == (6, 1, 4, 4)


def test_saving_the_same_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    sample().save(tmp_path / "again.safetensors")
    assert file.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_steps_walk_the_batches_in_order() -> None:
    steps = sample().inner_steps()
    assert [step.labels.tolist() for step in steps] == [[0, 1, 2]] * 4
    assert torch.equal(steps[0].images, steps[2].images)
    assert not torch.equal(steps[0].images, steps[1].images)


def test_folder_with_a_file(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "distilled.safetensors")
    assert dd.load_distilled(tmp_path).ipc == 2


def test_pixels_undo_the_normalization() -> None:
    data = sample()
    assert torch.allclose(data.pixels(), data.images * 0.25 + 0.5)


def test_as_dataset() -> None:
    image, label = sample().as_dataset()[4]
    assert image.shape == (1, 4, 4)
    assert int(label) == 1


def test_as_loader_gives_the_batches_in_order() -> None:
    data = sample()
    found = list(data.as_loader())
    assert len(found) == 2
    for (images, labels), step in zip(found, data.inner_steps(), strict=False):
        assert torch.equal(images, step.images)
        assert torch.equal(labels, step.labels)


def test_as_arrays() -> None:
    data = sample(soft_labels=torch.full((6, 3), 1 / 3))
    arrays = data.as_arrays()
    assert arrays.keys() == data.tensors().keys()
    assert arrays["images"].dtype == "float32"
    assert arrays["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert arrays["soft_labels"].shape == (6, 3)
    assert arrays["initial_weights.fc.bias"].tolist() == [0, 0, 0]


def test_another_order_of_classes_is_named(digits: dd.RealData) -> None:
    run = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    swapped = replace(run, provenance=replace(run.provenance, classes=tuple("0132456789")))
    with pytest.raises(RequestError, match="class 2 is '3' there and '2' here"):
        swapped.check_matches(digits)
    fewer = replace(run, provenance=replace(run.provenance, classes=tuple("012345678")))
    with pytest.raises(RequestError, match="9 together, but digits has 10"):
        fewer.check_matches(digits)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no distilled data at"):
        dd.load_distilled(tmp_path / "nothing")


def rewritten(
    file: Path,
    tensors: Callable[[dict[str, Tensor]], None] | None = None,
    header: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = json.loads(opened.metadata()["datadistill"])
    if tensors is not None:
        tensors(kept)
    if header is not None:
        facts = header(facts) or facts
    file.write_bytes(safetensors.torch.save(kept, {"datadistill": json.dumps(facts)}))


TENSOR_DAMAGE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "no images": lambda t: t.pop("images"),
    "no labels": lambda t: t.pop("labels"),
    "no batches": lambda t: t.pop("batches"),
    "images of another type": lambda t: t.update(images=t["images"].half()),
    "images of another shape": lambda t: t.update(images=t["images"].flatten(1)),
    "no image at all": lambda t: t.update(images=t["images"][:0], labels=t["labels"][:0]),
    "an infinite pixel": lambda t: t["images"][0, 0, 0].fill_(float("inf")),
    "a weight that is no number": lambda t: t["initial_weights.fc.bias"].fill_(float("nan")),
    "too few labels": lambda t: t.update(labels=t["labels"][:5].clone()),
    "labels as floats": lambda t: t.update(labels=t["labels"].float()),
    "a label out of range": lambda t: t["labels"].fill_(3),
    "a negative label": lambda t: t["labels"].fill_(-1),
    "a batch out of range": lambda t: t["batches"].fill_(6),
    "no batch": lambda t: t.update(batches=t["batches"][:0]),
    "rates of another shape": lambda t: t.update(learning_rates=t["learning_rates"][None]),
    "half an epoch of rates": lambda t: t.update(learning_rates=t["learning_rates"][:3].clone()),
    "a negative rate": lambda t: t["learning_rates"].neg_(),
    "no rates": lambda t: t.update(learning_rates=t["learning_rates"][:0]),
    "weights of another type": lambda t: t.update({"initial_weights.fc.bias": torch.zeros(3, dtype=torch.float64)}),
    "weights that are whole numbers": lambda t: t.update({"initial_weights.fc.bias": torch.zeros(3).long()}),
    "a float8 tensor": lambda t: t.update(images=t["images"].to(torch.float8_e4m3fn)),
    "a tensor nobody knows": lambda t: t.update({"transform.zca": torch.eye(3)}),
    "whitening that the metadata does not tell": lambda t: t.update(whitening(16)),
    "soft labels of another shape": lambda t: t.update(soft_labels=torch.zeros(6, 2)),
}
WHITENING_DAMAGE: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any]]] = {
    "no mean": ("zca_mean' is missing", lambda t: t.pop("transform.zca_mean")),
    "no matrix": ("zca_matrix' is missing", lambda t: t.pop("transform.zca_matrix")),
    "for other images": ("has 15 numbers, but its images have 16", lambda t: t.update(whitening(15))),
    "no square": (r"is \[16, 15\]", lambda t: t.update({"transform.zca_matrix": torch.zeros(16, 15)})),
    "half precision": ("float16", lambda t: t.update({"transform.zca_matrix": torch.eye(16).half()})),
    "not finite": ("not finite", lambda t: t.update({"transform.zca_mean": torch.full((16,), torch.nan)})),
}
HEADER_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda h: h.update(format=2),
    "no format": lambda h: h.pop("format"),
    "no classes": lambda h: h.pop("classes"),
    "an empty list of classes": lambda h: h.update(classes=[]),
    "classes that are no text": lambda h: h.update(classes=[1, 2, 3]),
    "too few classes": lambda h: h.update(classes=["a"]),
    "a seed that is text": lambda h: h.update(seed="3"),
    "a normalisation without mean": lambda h: h["normalization"].pop("mean"),
    "a normalisation of text": lambda h: h.update(normalization={"mean": ["x"], "std": [1.0]}),
    "a mean that is no number": lambda h: h.update(normalization={"mean": [float("nan")], "std": [1.0]}),
    "a deviation of zero": lambda h: h.update(normalization={"mean": [0.0], "std": [0.0]}),
    "too many channels": lambda h: h.update(normalization={"mean": [0.0] * 3, "std": [1.0] * 3}),
    "whitening that is not there": lambda h: h["normalization"].update(zca=True),
    "whitening that is text": lambda h: h["normalization"].update(zca="yes"),
    "a list": lambda h: [1, 2],
    "a number": lambda h: 7,
}


@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_damaged_tensors(file: Path, damage: str) -> None:
    rewritten(file, tensors=TENSOR_DAMAGE[damage])
    with pytest.raises(DamagedFileError, match="is not distilled data of format 1"):
        dd.load_distilled(file)


@pytest.mark.parametrize("damage", WHITENING_DAMAGE)
def test_damaged_whitening(tmp_path: Path, damage: str) -> None:
    data, (sentence, change) = sample(), WHITENING_DAMAGE[damage]
    zca = Whitening(*whitening(16).values())
    normalization = replace(data.provenance.normalization, zca=zca)
    path = tmp_path / "white.safetensors"
    replace(data, provenance=replace(data.provenance, normalization=normalization)).save(path)
    assert dd.load_distilled(path).provenance.normalization.zca is not None
    rewritten(path, tensors=change)
    with pytest.raises(DamagedFileError, match=sentence):
        dd.load_distilled(path)


def test_a_whitening_without_an_inverse_is_one_sentence() -> None:
    data = sample()
    normalization = replace(data.provenance.normalization, zca=Whitening(torch.zeros(16), torch.zeros(16, 16)))
    with pytest.raises(DatadistillError, match="has no inverse"):
        replace(data, provenance=replace(data.provenance, normalization=normalization)).pixels()


@pytest.mark.parametrize("damage", HEADER_DAMAGE)
def test_damaged_header(file: Path, damage: str) -> None:
    rewritten(file, header=HEADER_DAMAGE[damage])
    with pytest.raises(DamagedFileError, match="is not distilled data of format 1"):
        dd.load_distilled(file)


def test_no_metadata(file: Path) -> None:
    file.write_bytes(safetensors.torch.save({"images": torch.zeros(1)}))
    with pytest.raises(DamagedFileError, match="'datadistill' is missing"):
        dd.load_distilled(file)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({"images": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(DamagedFileError, match="safetensors"):
        dd.load_distilled(tmp_path / "x.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(file: Path, data: st.DataObject) -> None:
    whole = sample_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "header"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "header":
        at = data.draw(st.integers(0, 1500))
    if kind == "cut":
        broken = whole[:at]
    elif kind == "insert":
        broken = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:]
    else:
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    file.write_bytes(broken)
    with suppress(DamagedFileError):
        read = dd.load_distilled(file)
        assert read.images.isfinite().all()
        assert read.images.shape[0] == len(read.labels)


_BYTES: list[bytes] = []


def sample_bytes() -> bytes:
    if not _BYTES:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            sample().save(Path(folder) / "x.safetensors")
            _BYTES.append((Path(folder) / "x.safetensors").read_bytes())
    return _BYTES[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": tuple("0123456780")}, "classes are"),
        ({"normalization": Normalization((0.9,), (0.4,))}, "normalisation"),
    ],
)
def test_data_that_does_not_match_is_refused(digits: dd.RealData, changes: dict[str, Any], sentence: str) -> None:
    run = dd.distill(digits, model="mlp", iterations=1, device="cpu").distilled
    run.check_matches(digits)
    with pytest.raises(RequestError, match=sentence):
        replace(run, provenance=replace(run.provenance, **changes)).check_matches(digits)
    with pytest.raises(RequestError, match="distilled images are"):
        replace(run, images=run.images[:, :, :4]).check_matches(digits)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(dd.DatadistillError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(dd.DatadistillError, match="could not write"):
        sample().save(tmp_path / "x" / "y.safetensors")
