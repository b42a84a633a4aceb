import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from own import digit_arrays, write_folder
from PIL import Image, ImageCms

import datadistill as dd
from datadistill.data.download import cache_folder
from datadistill.data.readers import cache
from datadistill.data.readers.image_files import to_pixels


class Heard(list[str]):
    """Remembers what is said."""

    def __call__(self, text: str) -> None:
        self.append(text)

    def has(self, text: str) -> bool:
        return any(text in line for line in self)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def noise(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode=None)


def fill(folder: Path, names: tuple[str, ...] = ("a", "b"), count: int = 10, size: tuple[int, int] = (8, 8)) -> Path:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise(zlib.crc32(f"{folder.name} {label} {number}".encode()), size).save(
                folder / name / f"{label}-{number:03d}.png"
            )
    return folder


def test_three_splits(tmp_path: Path, heard: Heard) -> None:
    for split, count in (("train", 20), ("val", 5), ("test", 6)):
        fill(tmp_path / split, count=count)
    real = dd.load(tmp_path, say=heard)
    assert (len(real.train), len(real.held_out), len(real.test)) == (40, 10, 12)
    assert real.classes == ("a", "b")
    assert (real.in_channels, real.image_size) == (3, 8)
    assert heard.has("10 held out (val)")
    assert heard.has("20 training images of each class")
    assert len(heard) == 2


def test_one_folder_is_split_the_same_way_every_time(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path, count=50)
    real, again = dd.load(tmp_path, say=heard), dd.load(tmp_path, say=heard)
    assert (len(real.train), len(real.held_out), len(real.test)) == (72, 8, 20)
    assert real.test.counts.tolist() == [10, 10]
    assert torch.equal(real.test.images, again.test.images)
    assert heard.has("20 to test on, a fifth of the images as there is no test split")


def test_two_hundred_classes_that_are_numbers(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path / "train", tuple(str(number) for number in range(200)), count=3, size=(2, 2))
    fill(tmp_path / "test", ("7", "12"), count=3, size=(2, 2))
    real = dd.load(tmp_path, say=heard)
    assert real.classes == tuple(str(number) for number in range(200))
    assert real.test.counts.nonzero().flatten().tolist() == [7, 12]


def test_a_class_may_be_called_train(tmp_path: Path, heard: Heard) -> None:
    assert dd.load(fill(tmp_path, ("train", "plane")), say=heard).classes == ("plane", "train")


def test_what_people_do_not_mean_is_passed_over(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path, count=20)
    for name in (".DS_Store", "a/._0-000.png", "a/.hidden.png", "a/Thumbs.db", "__MACOSX/c/1.png", ".git/c/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "a/notes.txt").write_text("mine")
    real = dd.load(tmp_path, say=heard)
    assert real.classes == ("a", "b")
    assert sum(map(len, (real.train, real.held_out, real.test))) == 40
    assert heard.has("1 other file in")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_once(tmp_path: Path, heard: Heard) -> None:
    folder, elsewhere = fill(tmp_path / "folder", count=20), fill(tmp_path / "elsewhere", ("c",), count=3)
    (folder / "a/round").symlink_to(folder / "a")
    (folder / "c").symlink_to(elsewhere / "c")
    (folder / "b/more.png").symlink_to("0-000.png")
    with pytest.raises(dd.DamagedFileError, match=r"b/more\.png \(it is no file, or a link that leads nowhere\)"):
        dd.load(folder, say=heard)
    (folder / "b/more.png").unlink()
    real = dd.load(folder, say=heard)
    assert sum(map(len, (real.train, real.held_out, real.test))) == 43
    assert heard.has("3 images are links that lead out of")


def test_unreadable_files_are_named_and_skipped_only_if_asked(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path, count=20)
    whole = (tmp_path / "a/0-000.png").read_bytes()
    (tmp_path / "a/0-000.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b/1-000.png").write_bytes(b"GIF89a?")
    with pytest.raises(dd.DamagedFileError, match=r"2 of 40 .*a/0-000\.png \(.*b/1-000\.png .*--skip-unreadable"):
        dd.load(tmp_path, say=heard)
    real = dd.load(tmp_path, size=8, skip_unreadable=True, say=heard)
    assert sum(map(len, (real.train, real.held_out, real.test))) == 38
    assert heard.has("2 images of")


def test_duplicates_between_splits_are_counted(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path / "train", count=20)
    for number in range(3):
        source = tmp_path / f"train/a/0-00{number}.png"
        for split in ("test", "val")[: 1 + (number == 0)]:
            (tmp_path / split / "b").mkdir(parents=True, exist_ok=True)
            (tmp_path / split / "b" / f"{number}.png").write_bytes(source.read_bytes())
    noise(77).save(tmp_path / "test/b/new.png")
    dd.load(tmp_path, say=heard)
    assert heard.has("3 of the 4 test images")
    assert heard.has("1 of the 1 held-out images")


def test_a_size_must_be_given_where_there_are_several(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path, size=(90, 70))
    with pytest.raises(dd.RequestError, match=r"have 90x70 pixels: give one size .* --size 64"):
        dd.load(tmp_path, say=heard)
    fill(tmp_path / "c", (".",), size=(40, 40))
    with pytest.raises(dd.RequestError, match="from 40x40 to 90x70"):
        dd.load(tmp_path, say=heard)
    assert dd.load(tmp_path, size=32, say=heard).train.images.shape[1:] == (3, 32, 32)


def test_the_middle_is_cut_out_with_antialiasing() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = np.indices((8, 8)).sum(0)[..., None] % 2 * 255
    wide[:, :8], wide[:, 16:] = (255, 0, 0), (0, 0, 255)
    small = to_pixels(Image.fromarray(wide), 4, 3)
    assert small.shape == (4, 4, 3)
    assert abs(small[:, 1:3].astype(int) - 127).max() < 40, "a fine pattern becomes grey, not one of its colours"
    assert np.ptp(small[:, 1:3], axis=-1).max() < 8, "the sides are cut off"


def test_grey_is_inferred_from_pixels_and_can_be_set(tmp_path: Path, heard: Heard) -> None:
    write_folder(tmp_path / "grey", digit_arrays(100, 20))
    assert dd.load(tmp_path / "grey", say=heard).in_channels == 1
    colour = dd.load(tmp_path / "grey", channels=3, say=heard)
    assert torch.equal(colour.train.images[:, 0], colour.train.images[:, 2])
    fill(tmp_path / "colour")
    assert dd.load(tmp_path / "colour", say=heard).in_channels == 3
    assert dd.load(tmp_path / "colour", channels=1, say=heard).in_channels == 1


def test_modes_become_what_people_see() -> None:
    def seen(image: Image.Image) -> list[int]:
        pixel: list[int] = to_pixels(image, 1, 3)[0, 0].tolist()
        return pixel

    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert seen(palette) == [10, 20, 30]
    assert seen(Image.new("RGBA", (1, 1), (9, 9, 9, 0))) == [255, 255, 255], "what is transparent lies on white"
    assert seen(Image.new("LA", (1, 1), (0, 128))) == [127, 127, 127]
    clear = Image.new("P", (1, 1))
    clear.putpalette([10, 20, 30])
    clear.info["transparency"] = 0
    assert seen(clear) == [255, 255, 255]
    assert seen(Image.fromarray(np.array([[65535]], np.uint16))) == [255, 255, 255]
    assert seen(Image.fromarray(np.array([[257 * 100]], np.uint16))) == [100, 100, 100]
    assert seen(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [255, 0, 0]
    assert seen(Image.new("1", (1, 1), 1)) == [255, 255, 255]
    with pytest.raises(ValueError, match="floating point"):
        seen(Image.new("F", (1, 1), 0.5))


def test_a_photograph_is_turned_upright(tmp_path: Path, heard: Heard) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top is at the left of the file
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            lying = Image.fromarray(upright).rotate(90)
            lying.save(tmp_path / label / f"{label}{number}.jpg", exif=exif, quality=95)
    real = dd.load(tmp_path, say=heard)
    image = real.normalization.invert(real.train.images)[0, 0]
    assert image[:3].min() > 0.9
    assert image[5:].max() < 0.1


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 5_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a/bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 2**30) + b"IDAT")
    with pytest.raises(dd.DamagedFileError, match="30,000x5,000 pixels"):
        dd.load(tmp_path, size=8, say=heard)


def test_more_than_the_memory_is_refused(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr("datadistill.data.options._memory", lambda: 2**20)
    with pytest.raises(dd.RequestError, match="give a smaller --size"):
        dd.load(tmp_path, size=512, say=heard)


WRONG_FOLDERS = {
    "nothing": ((), "no images in folders of classes"),
    "images without folders": (("1.png", "2.png"), "no images in folders of classes"),
    "one class": (("a/1.png", "a/2.png"), "only the class 'a'"),
    "an empty class": (("a/1.png", "b/1.png", "c/notes.txt"), "c has no images"),
    "a class in test alone": (("train/a/1.png", "train/b/1.png", "test/c/1.png"), "class 'c', which has no images"),
    "too few": (("a/1.png", "b/1.png"), "too few images"),
    "two names that look the same": (("a\n/1.png", "a\t/2.png"), "two classes that are called"),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_wrong_folder_is_one_sentence(name: str, tmp_path: Path, heard: Heard) -> None:
    files, sentence = WRONG_FOLDERS[name]
    for number, file in enumerate(files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(tmp_path / file, "PNG")
    with pytest.raises(dd.RequestError, match=sentence) as caught:
        dd.load(tmp_path, say=heard)
    assert "\n" not in str(caught.value)


def test_class_names_are_made_printable(tmp_path: Path, heard: Heard) -> None:
    odd = ("..\\x", "two\nlines", "<b>bold</b>", "\u202eright to left", "ü" * 120, os.fsdecode(b"bytes\xff"))
    real = dd.load(fill(tmp_path, odd), say=heard)
    assert all(name.isprintable() and len(name) <= 120 for name in real.classes)
    assert "two\N{REPLACEMENT CHARACTER}lines" in real.classes
    assert all(name.encode() for name in real.classes)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is large enough for the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CACHED_FROM", 10)
    return fill(tmp_path / "folder", count=20)


def files_of_the_cache() -> list[Path]:
    return sorted(cache_folder().with_name("decoded").iterdir())


def test_the_cache_is_used(cached: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dd.load(cached, say=heard)
    monkeypatch.setattr(cache, "decode", None)
    again = dd.load(cached, say=heard)
    assert torch.equal(real.train.images, again.train.images)
    assert len(files_of_the_cache()) == 1


def test_the_cache_is_made_again_when_a_file_changes(cached: Path, heard: Heard) -> None:
    real = dd.load(cached, say=heard)
    noise(5, mode="RGB").save(cached / "a/0-003.png")
    other = dd.load(cached, say=heard)
    assert real.source is not None
    assert other.source is not None
    assert real.source.digest != other.source.digest
    assert len(files_of_the_cache()) == 1, "the old one is replaced"
    dd.load(cached, channels=1, say=heard)
    assert len(files_of_the_cache()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no time of change there")
def test_the_cache_is_made_again_when_neither_size_nor_time_tells(cached: Path, heard: Heard) -> None:
    for number, path in enumerate(sorted(cached.rglob("*.png"))):
        path.unlink()
        noise(number).save(path.with_suffix(".bmp"))
        os.utime(path.with_suffix(".bmp"), (0, 0))
    real, path = dd.load(cached, say=heard), cached / "a/0-003.bmp"
    noise(77).save(path)
    os.utime(path, (0, 0))
    other = dd.load(cached, say=heard)
    other_path = cached / "new.bmp"
    noise(78).save(other_path)
    os.utime(other_path, (0, 0))
    other_path.replace(path)
    third = dd.load(cached, say=heard)
    digests = {one.source.digest for one in (real, other, third) if one.source is not None}
    assert len(digests) == 3


@pytest.mark.parametrize("where", [-1, -1000, 100, 8, 0])
def test_a_damaged_cache_is_made_again(cached: Path, heard: Heard, where: int) -> None:
    real = dd.load(cached, say=heard)
    (path,) = files_of_the_cache()
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    again = dd.load(cached, say=heard)
    assert heard.has("the cache is made again")
    assert torch.equal(real.train.images, again.train.images)
    assert path.read_bytes() != content


def test_a_cache_that_cannot_be_written_is_said(cached: Path, heard: Heard) -> None:
    cache_folder().parent.parent.mkdir()
    cache_folder().parent.write_text("in the way")
    assert len(dd.load(cached, say=heard).train) > 0
    assert heard.has("going on without a cache")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes there")
@pytest.mark.parametrize("name", ["", "datadistill/decoded", "file"])
def test_a_cache_that_others_may_change_is_not_used(cached: Path, heard: Heard, name: str) -> None:
    real = dd.load(cached, say=heard)
    (path,) = files_of_the_cache()
    place = path if name == "file" else cache_folder().parent.parent / name
    before = path.read_bytes()
    path.write_bytes(b"somebody else's")
    place.chmod(0o777)
    again = dd.load(cached, say=heard)
    assert heard.has(f"decoded pictures are neither kept nor taken from the cache: others may write to {place}")
    assert torch.equal(real.train.images, again.train.images)
    assert path.read_bytes() == b"somebody else's" != before


def test_colour_profiles_do_no_harm(tmp_path: Path, heard: Heard) -> None:
    fill(tmp_path)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    noise(3).save(buffer, "PNG", icc_profile=profile)
    (tmp_path / "a/profile.png").write_bytes(buffer.getvalue())
    assert dd.load(tmp_path, say=heard).in_channels == 3
