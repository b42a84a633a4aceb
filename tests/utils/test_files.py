"""Files are written whole, and never through somebody's link."""

import os
import threading
from pathlib import Path

import pytest

from datadistill.utils.errors import RequestError
from datadistill.utils.files import refuse_links, write_atomically


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
