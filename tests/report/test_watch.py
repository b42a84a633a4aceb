"""watch serves one file on the loopback address, and nothing else."""

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from conftest import ROOT

from datadistill.cli.main import main
from datadistill.report.page import make_page, read_subject
from datadistill.report.watch import Watch


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Watch, Path]]:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "secret.html").write_text("secret")
    server = Watch(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, folder
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: Watch, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_page_is_served_as_it_changes(watched: tuple[Watch, Path]) -> None:
    server, folder = watched
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/stamp") == (200, b"")
    assert b"There is no page yet" in ask(server, "/report.html")[1]
    (folder / "report.html").write_text("first")
    assert ask(server, "/report.html") == (200, b"first")
    stamp = ask(server, "/stamp")[1]
    (folder / "new").write_text("second")
    (folder / "new").replace(folder / "report.html")
    assert ask(server, "/stamp")[1] != stamp
    assert ask(server, "/report.html")[1] == b"second"
    assert b"<iframe" not in ask(server, "/")[1]


@pytest.mark.parametrize(
    "path",
    [
        "/config.json",
        "/../secret.html",
        "/%2e%2e/secret.html",
        "//secret.html",
        "/report.html/../config.json",
        "/report.html?x",
        "*",
    ],
)
def test_nothing_else_is_served(path: str, watched: tuple[Watch, Path]) -> None:
    assert ask(watched[0], path) == (404, b"")
    assert ask(watched[0], "/report.html", "POST")[0] == 501


def test_no_link_is_followed(watched: tuple[Watch, Path]) -> None:
    server, folder = watched
    os.symlink(folder.parent / "secret.html", folder / "report.html")
    assert b"secret" not in ask(server, "/report.html")[1]
    (folder / "report.html").unlink()
    os.mkfifo(folder / "report.html")
    assert b"There is no page yet" in ask(server, "/report.html")[1]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_other_names_are_refused(host: str, watched: tuple[Watch, Path]) -> None:
    assert ask(watched[0], "/", host=host) == (403, b"")
    assert ask(watched[0], "/", host="localhost:1234")[0] == 200


def test_it_ends_with_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "datadistill", "watch", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


def test_wrong_requests(tmp_path: Path, watched: tuple[Watch, Path], capsys: pytest.CaptureFixture[str]) -> None:
    server, folder = watched
    assert main(["watch", str(tmp_path)]) == 2
    assert main(["watch", str(folder), "--port", "70000"]) == 2
    assert main(["watch", str(folder), "--port", str(server.server_address[1])]) == 1
    assert "could not listen on port" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
def test_a_browser_shows_each_new_page(watched: tuple[Watch, Path], tmp_path: Path) -> None:
    server, folder = watched
    page = make_page([read_subject(ROOT / "gallery" / "mnist-fixed-10")])
    title = "document.querySelector('iframe:not(.next)')?.contentDocument.querySelector('h1')?.textContent"
    with browser(tmp_path / "profile") as chromium:
        (folder / "report.html").write_bytes(page)
        chromium.call("Page.navigate", url=server.address)
        chromium.wait_for(f"{title} === '10 images that stand for mnist'")
        (folder / "new").write_bytes(page.replace(b"stand for mnist", b"stand for much"))
        (folder / "new").replace(folder / "report.html")
        chromium.wait_for(f"{title} === '10 images that stand for much'")
        assert chromium.said == []
        assert {url.split("/", 3)[2] for url in chromium.asked} == {server.address.split("/")[2]}
