import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from datadistill.data import download
from datadistill.data.download import Layout, Published, cache_folder
from datadistill.data.labelled import Labelled, check_digest
from datadistill.utils.errors import DamagedFileError, DatadistillError

FILES = {"one": b"1" * 3000, "two": b"2" * 5000}
MD5 = tuple(hashlib.md5(content).hexdigest() for content in FILES.values())
SERVED = "datadistill/data/set"


def split(value: int) -> Labelled:
    return Labelled(torch.full((1, 2, 2, 1), value, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


def read(paths: tuple[Path, ...], mark: int) -> tuple[Labelled, Labelled]:
    """A split for each file; both carry the mark of the layout that was read."""
    for path, md5 in zip(paths, MD5, strict=True):
        check_digest(path.read_bytes(), md5, path)
    return split(mark), split(mark)


def published(host: str = "http://nowhere.invalid/") -> Published:
    layouts = (
        Layout(("folder/one", "folder/two"), partial(read, mark=1)),
        Layout(("set/one", "set/two"), partial(read, mark=2)),
    )
    return Published("things", layouts, host, MD5)


def mark(dataset: Published, data_root: Path | None) -> int:
    return int(dataset.read(data_root)[0].pixels.max())


def put(folder: Path, files: dict[str, bytes] = FILES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "datadistill" / "data"


class Handler(http.server.BaseHTTPRequestHandler):
    contents: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]]
    announced: ClassVar[int | None] = None

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.asked.append(name)
        if name not in self.contents:
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        length = len(self.contents[name]) if self.announced is None else self.announced
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(self.contents[name])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def handler() -> Iterator[tuple[str, type[Handler]]]:
    class Mine(Handler):
        asked: ClassVar[list[str]] = []
        contents: ClassVar[dict[str, bytes]] = dict(FILES)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", Mine
        server.shutdown()
        thread.join()


def test_the_data_root_comes_first(tmp_path: Path, cache: Path) -> None:
    put(cache / "folder")
    put(tmp_path / "root" / "set")
    assert mark(published(), tmp_path / "root") == 2
    put(tmp_path / "root" / "folder")
    assert mark(published(), tmp_path / "root") == 1


def test_then_the_cache(tmp_path: Path, cache: Path) -> None:
    put(cache / "set")
    assert mark(published(), None) == 2
    # A folder that lacks a file is passed over.
    put(tmp_path / "root" / "folder", {"one": FILES["one"]})
    assert mark(published(), tmp_path / "root") == 2


def test_a_damaged_file_is_not_passed_over(tmp_path: Path, cache: Path) -> None:
    put(cache / "set")
    put(tmp_path / "root" / "folder", FILES | {"two": b"other"})
    with pytest.raises(DamagedFileError, match="two is damaged"):
        published().read(tmp_path / "root")


def test_then_the_authors_once(
    tmp_path: Path, cache: Path, handler: tuple[str, type[Handler]], capsys: pytest.CaptureFixture[str]
) -> None:
    host, served = handler
    assert mark(published(host), tmp_path) == 2
    assert served.asked == ["one", "two"]
    assert {path.name: path.read_bytes() for path in (cache / "set").iterdir()} == FILES
    assert mark(published(host), None) == 2
    assert served.asked == ["one", "two"]
    assert capsys.readouterr().out == ""


def test_what_is_there_is_not_fetched_again(cache: Path, handler: tuple[str, type[Handler]]) -> None:
    host, served = handler
    put(cache / "set", {"one": FILES["one"]})
    published(host).read(None)
    assert served.asked == ["two"]


def test_progress_is_shown(
    handler: tuple[str, type[Handler]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datadistill.utils.progress.SECONDS_BETWEEN_LINES", 0.0)
    host, _ = handler
    published(host).read(None)
    assert f"fetching {host}two (MiB): 1 of 1" in capsys.readouterr().err


def test_a_file_that_is_not_the_official_one_is_not_kept(cache: Path, handler: tuple[str, type[Handler]]) -> None:
    host, served = handler
    served.contents["two"] = FILES["two"][:-1]
    with pytest.raises(DamagedFileError, match=r"two sent is damaged .*MD5 differs"):
        published(host).read(None)
    assert [path.name for path in (cache / "set").iterdir()] == ["one"]


def test_a_connection_that_breaks_off_leaves_nothing(cache: Path, handler: tuple[str, type[Handler]]) -> None:
    host, served = handler
    served.announced = 3000
    served.contents["one"] = FILES["one"][:2000]
    with pytest.raises(DamagedFileError, match="one sent is damaged"):
        published(host).read(None)
    assert not cache.exists()


@pytest.mark.parametrize("announced", [0, 5000])
def test_a_host_cannot_fill_the_memory(
    announced: int, cache: Path, handler: tuple[str, type[Handler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, served = handler
    served.announced = announced
    monkeypatch.setattr(download, "_MOST", 4000)
    put(cache / "set", {"one": FILES["one"]})
    with pytest.raises(DamagedFileError, match=r"two sends more than the 4,000 bytes"):
        published(host).read(None)


def test_a_missing_file_is_one_sentence(tmp_path: Path, cache: Path, handler: tuple[str, type[Handler]]) -> None:
    host, served = handler
    served.contents.clear()
    with pytest.raises(DatadistillError, match="Not Found") as caught:
        published(host).read(tmp_path)
    for part in (
        f"things is not in {tmp_path} or {cache}",
        f"{host}one could not be reached",
        "put set/one and set/two",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_is_one_sentence() -> None:
    # Port 9 of this machine: nobody listens.
    with pytest.raises(DatadistillError, match=r"could not be reached \(Connection refused\)"):
        published("http://127.0.0.1:9/").read(None)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "datadistill" / "data"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DatadistillError, match="set XDG_CACHE_HOME"):
        cache_folder()
