"""Files are written whole, and never through somebody's link; what lies in a file's place, and what JSON may say."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from datadistill.cli.main import main
from datadistill.data.labelled import read_bytes
from datadistill.utils.errors import DamagedFileError, RequestError, sentence, told
from datadistill.utils.files import read_json, read_tensors, refuse_links, write_atomically

PLACES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("read", [read_json, read_tensors, lambda path: read_bytes(path, 10)])
def test_what_is_no_file_is_refused_and_not_waited_for(
    place: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    PLACES[place](tmp_path / "x")
    with pytest.raises(DamagedFileError, match="x is no file"):
        read(tmp_path / "x")


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.npz", "x.safetensors"])
def test_a_pipe_is_not_imported(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / name)
    assert main(["import", str(tmp_path / name), "--dataset", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "is a file, which" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a/0.png", "datadistill.json"])
def test_a_pipe_among_pictures_is_not_waited_for(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "x" / name)
    assert main(["import", str(tmp_path / "x"), "--from", "png", "--dataset", "digits"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["dataset_info.json", "train/data.arrow"])
def test_a_pipe_in_a_table_is_not_waited_for(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    path = tmp_path / "x" / name
    path.parent.mkdir(parents=True)
    (tmp_path / "x" / "state.json").write_text("{}")
    os.mkfifo(path)
    for command in (["import", "--from", "hf"], ["distill", "--dataset"]):
        assert main([*command, str(tmp_path / "x")]) == 1
        assert "is no file, or a link that leads nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["NaN", "[-Infinity]", '{"a": 1e999}', "1" + "0" * 400, "9" * 5000, "[" * 100_000, "{", "", "\ud800"]
)
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DamagedFileError, match="it is not JSON"):
        read_json(tmp_path / "x")


def test_sentences_come_to_an_end() -> None:
    text = sentence("it has the name " + "x" * 100_000 + ", but must be short")
    assert len(text) < 2000
    assert text.startswith("it has the name xxx")
    assert text.endswith(", but must be short")


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    planted = tmp_path / f".x.{os.getpid()}-{threading.get_ident()}.part"
    planted.symlink_to(tmp_path / "mine")
    (tmp_path / "x").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "x", b"theirs")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "x"]


def test_links_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    refuse_links(tmp_path)
    refuse_links(tmp_path / "nothing", itself=True)
    (tmp_path / "a/b/c").symlink_to("nowhere")
    with pytest.raises(RequestError, match="a/b/c is a link"):
        refuse_links(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    with pytest.raises(RequestError, match="link is a link"):
        refuse_links(tmp_path / "link", itself=True)


def test_values_that_differ_come_to_an_end() -> None:
    assert told(None) == "not given"
    assert told(3) == 3
    assert len(str(told("x" * 100_000))) < 500
