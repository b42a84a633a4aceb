import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from rich.console import Console

import datadistill as dd
from datadistill.cli.main import main
from datadistill.report.terminal import print_images
from datadistill.utils.runtime import stream

SHIPPED = ROOT / "gallery" / "mnist-fixed-10"


def printed(data: dd.DistilledData, width: int = 80, **options: object) -> str:
    file = io.StringIO()
    options = {"force_terminal": True, "color_system": "truecolor"} | options
    print_images(data, Console(file=file, width=width, **options))  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_every_line_fits(width: int) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(dd.load_distilled(SHIPPED), width))
    assert max(map(len, plain.splitlines())) <= width
    assert all(name in plain for name in "0123456789")


def test_two_pixels_are_one_character() -> None:
    data = dd.load_distilled(SHIPPED)
    images = torch.zeros(10, 1, 28, 28)
    images[:, :, 1::2] = 1
    text = printed(replace(data, images=images), 300)
    lines = [line for line in text.splitlines() if "▀" in line]
    assert len(lines) == 14
    colours = set(re.findall(r"\x1b\[38;2;(\d+);\d+;\d+;48;2;(\d+);\d+;\d+m", text))
    assert len(colours) == 1
    top, bottom = map(int, colours.pop())
    assert top < 100 < 150 < bottom


def test_without_colours_there_are_shades() -> None:
    text = printed(dd.load_distilled(SHIPPED), color_system=None)
    assert "\x1b[38" not in text
    assert set("░▒▓") <= set(text)


def test_a_hostile_name_does_nothing() -> None:
    data = dd.load_distilled(SHIPPED)
    classes = tuple(f"\x1b]0;{k}\a[red]" for k in range(10))
    text = printed(replace(data, provenance=replace(data.provenance, classes=classes)))
    assert "\x1b]" not in text
    assert "[red]" in text


def test_many_are_cut_short() -> None:
    data = dd.load_distilled(SHIPPED)
    images = torch.randn(1000, 1, 28, 28, generator=stream(0))
    text = printed(replace(data, images=images, labels=torch.arange(1000) % 10), color_system=None)
    assert text.endswith("100 of 1,000 images, the first of each class\n")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    dd.load_distilled(SHIPPED).save("ten.safetensors")
    assert main(["show", "ten.safetensors", "--terminal"]) == 0
    assert "0 " in capsys.readouterr().out
    assert not Path("ten.png").exists()
    assert main(["show", "ten.safetensors"]) == 0
    assert capsys.readouterr().out == "ten.png\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["show", "ten.safetensors"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
    assert main(["show", "ten.safetensors", "--out", "other.png"]) == 0
    assert capsys.readouterr().out == "other.png\n"
