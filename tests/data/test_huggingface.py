import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own import digit_arrays, write_hugging_face, write_npz
from PIL import Image

import datadistill as dd

ARRAYS = digit_arrays(100, 40)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def quiet(text: str) -> None:
    pass


def reference(tmp_path: Path) -> dd.RealData:
    return dd.load(write_npz(tmp_path / "reference.npz", ARRAYS), say=quiet)


def same(one: dd.RealData, two: dd.RealData) -> bool:
    return bool(one.source and two.source and one.source.digest == two.source.digest)


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra hf is not installed")


def test_parquet_files(tmp_path: Path, datasets: Any) -> None:
    saved = datasets.load_from_disk(str(write_hugging_face(tmp_path / "saved", ARRAYS)))
    folder = tmp_path / "parquet/data"
    folder.mkdir(parents=True)
    for split, table in saved.items():
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    assert same(dd.load(tmp_path / "parquet", say=quiet), reference(tmp_path))
    alone = dd.load(folder / "train-00000-of-00001.parquet", say=quiet)
    assert (len(alone.train), len(alone.held_out), len(alone.test)) == (72, 8, 20)


def test_one_split_and_labels_that_are_text(tmp_path: Path, datasets: Any) -> None:
    rows = {"img": [Image.fromarray(image) for image in ARRAYS[0]], "label": [f"n{label}" for label in ARRAYS[1]]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    real = dd.load(tmp_path / "saved", say=quiet)
    assert real.classes == tuple(f"n{label}" for label in range(10))
    assert len(real.test) == 20


def test_a_selection_is_kept(tmp_path: Path, datasets: Any) -> None:
    saved = datasets.load_from_disk(str(write_hugging_face(tmp_path / "saved", ARRAYS)))
    order = list(range(99, -1, -1))
    saved["train"].select(order).save_to_disk(str(tmp_path / "selected"))
    real = dd.load(tmp_path / "selected", say=quiet)
    other = dd.from_arrays(ARRAYS[0][::-1], ARRAYS[1][::-1], say=quiet)
    assert torch.equal(real.train.images, other.train.images)


def test_a_dataset_on_the_hub(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not at hand in tests: what the library gives for a name stands for it."""
    saved = datasets.load_from_disk(str(write_hugging_face(tmp_path / "saved", ARRAYS)))
    asked = []

    def load_dataset(*names: str | None) -> Any:
        asked.append(names)
        return saved

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    real = dd.load("hf:somebody/digits:small", say=quiet)
    assert asked == [("somebody/digits", "small")]
    assert same(real, reference(tmp_path))
    assert real.source is not None
    assert real.source.place == "hf:somebody/digits:small"
    assert real.name == "somebody-digits-small"


def test_a_dataset_that_cannot_be_fetched(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: str | None) -> Any:
        raise ConnectionError("no network\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(dd.DatadistillError, match=r"hf:nobody/nothing could not be loaded: no network and more lines$"):
        dd.load("hf:nobody/nothing", say=quiet)


def test_damaged_folders(tmp_path: Path, datasets: Any) -> None:
    folder = write_hugging_face(tmp_path / "saved", ARRAYS)
    arrow = next((folder / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(dd.DamagedFileError, match="is damaged or no Hugging Face dataset") as caught:
        dd.load(folder, say=quiet)
    assert "\n" not in str(caught.value)
    (folder / "train/state.json").write_text("{")
    with pytest.raises(dd.DamagedFileError, match=r"state\.json is damaged: it is not JSON"):
        dd.load(folder, say=quiet)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(dd.DamagedFileError, match="is damaged or no Hugging Face dataset"):
        dd.load(tmp_path / "bad.parquet", say=quiet)


def test_columns_that_are_missing(tmp_path: Path, datasets: Any) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(dd.RequestError, match="no column of images: it has text"):
        dd.load(tmp_path / "saved", say=quiet)


def test_images_outside_of_the_folder_are_refused(tmp_path: Path, datasets: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    outside = tmp_path / "private.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(outside)
    image = pa.array([{"bytes": None, "path": str(outside)}] * 20)
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.table({"image": image, "label": [0, 1] * 10}), tmp_path / "folder/train.parquet")
    with pytest.raises(dd.RequestError, match=r"names .*private.png outside: refused"):
        dd.load(tmp_path / "folder", say=quiet)


def test_without_the_extra_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(dd.RequestError, match=r"needs their library: python3 -m pip --python .* install 'datasets>=4'"):
        dd.load("hf:ylecun/mnist", say=quiet)


def table(datasets: Any, labels: list[Any], feature: Any = None, **columns: Any) -> Any:
    """Forty digits with such labels."""
    images = [Image.fromarray(image) for image in ARRAYS[0][:40]]
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=["a", "b"])}
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=datasets.Features(features))


PLAIN = [0, 1] * 20


def heard(folder: Path, **options: Any) -> tuple[dd.RealData, str]:
    lines = list[str]()
    real = dd.load(folder, say=lines.append, **options)
    return real, "\n".join(lines)


@pytest.mark.parametrize("labels", [[[0], [1]] * 20, [[0, 1], [1]] * 20])
def test_lists_of_labels_are_refused(labels: list[Any], tmp_path: Path, datasets: Any) -> None:
    feature = datasets.Sequence(datasets.Value("int64"))
    table(datasets, labels, feature).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(dd.RequestError, match=r"the column 'label' of .* one label is needed"):
        dd.load(tmp_path / "saved", say=quiet)


def test_labels_that_are_whole_floats(tmp_path: Path, datasets: Any) -> None:
    table(datasets, [float(one) for one in PLAIN], datasets.Value("float64")).save_to_disk(str(tmp_path / "saved"))
    assert dd.load(tmp_path / "saved", say=quiet).classes == ("0", "1")
    table(datasets, [one / 2 for one in PLAIN], datasets.Value("float64")).save_to_disk(str(tmp_path / "half"))
    with pytest.raises(dd.RequestError, match="whole numbers or text are needed"):
        dd.load(tmp_path / "half", say=quiet)


def test_a_picture_that_is_missing_is_one_that_cannot_be_read(tmp_path: Path, datasets: Any) -> None:
    whole = table(datasets, PLAIN)
    images = [None if number == 3 else image for number, image in enumerate(whole["image"])]
    holed = datasets.Dataset.from_dict({"image": images, "label": PLAIN}, features=whole.features)
    holed.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(dd.DamagedFileError, match=r"1 of 40 .* train image 3 \(it is missing or empty\)"):
        dd.load(tmp_path / "saved", say=quiet)
    real, said = heard(tmp_path / "saved", skip_unreadable=True)
    assert len(real.train) + len(real.held_out) + len(real.test) == 39
    assert "1 images of" in said


@pytest.mark.parametrize("none", [-1, None])
def test_a_split_without_labels_is_passed_over_and_said(none: int | None, tmp_path: Path, datasets: Any) -> None:
    whole = table(datasets, PLAIN)
    splits = {"train": whole, "validation": whole, "test": table(datasets, [none] * 40), "extra": whole}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    real, said = heard(tmp_path / "saved")
    assert len(real.test) == 40
    assert "the test split of" in said
    assert "has no labels and is passed over" in said
    assert "the splits extra of" in said


def test_columns_that_may_be_meant_are_said(tmp_path: Path, datasets: Any) -> None:
    whole = table(datasets, PLAIN)
    masked = datasets.Dataset.from_dict(
        {"mask": whole["image"], "image": whole["image"], "label": PLAIN, "fine_label": PLAIN},
        features=datasets.Features({"mask": datasets.Image(), **whole.features, "fine_label": datasets.Value("int64")}),
    )
    masked.save_to_disk(str(tmp_path / "saved"))
    _, said = heard(tmp_path / "saved")
    assert "images are the column 'image'" in said
    assert "not mask" in said
    assert "labels are the column 'label'" in said


def test_relative_paths_lead_into_the_folder(tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "folder/files").mkdir(parents=True)
    for number in range(40):
        Image.fromarray(ARRAYS[0][number]).save(tmp_path / f"folder/files/{number}.png")
    image = pa.array([{"bytes": None, "path": f"files/{number}.png"} for number in range(40)])
    pq.write_table(pa.table({"image": image, "label": PLAIN}), tmp_path / "folder/train.parquet")
    monkeypatch.chdir("/")
    real, _ = heard(tmp_path / "folder")
    other = dd.from_arrays(ARRAYS[0][:40], PLAIN, say=quiet)
    assert torch.equal(real.train.images, other.train.images)
