"""The documentation as a site: it builds without a warning, asks nobody for anything, and what it shows runs."""

import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser, browser, overlapping
from conftest import ROOT
from PIL import Image

import datadistill as dd
from datadistill.cli.main import COMMANDS, main, make_parser

QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
NOTEBOOK = ROOT / "examples" / "digits.ipynb"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # The theme would tell of its successor, which is no warning of these pages.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on the loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_no_page_names_another_place_to_load_from(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"""<(?:script|img|iframe|source|video|audio)[^>]*\ssrc="([^"]*)""", text)
        loaded += re.findall(r"""<link[^>]*\srel="(?:stylesheet|preconnect|icon|preload)"[^>]*\shref="([^"]*)""", text)
        loaded += re.findall(r"""<link[^>]*\shref="([^"]*)"[^>]*\srel="(?:stylesheet|preconnect|icon|preload)""", text)
        assert loaded
        assert not [target for target in loaded if re.match(r"(https?:)?//", target)], page


def test_formulas_are_mathml(site: Path) -> None:
    for name in ("concepts", "method-dd", "method-dc", "method-dm", "method-mtt", "method-krr", "method-rat-bptt"):
        text = (site / name / "index.html").read_text()
        assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') >= 1
        assert "arithmatex" not in text
        assert "$$" not in re.sub(r"<(pre|code|script).*?</\1>", "", text, flags=re.DOTALL)


def test_the_command_line_is_the_parsers(site: Path) -> None:
    text = (site / "command-line" / "index.html").read_text()
    _, parsers = make_parser()
    for name in COMMANDS:
        assert f'<h2 id="{name}">' in text
        for action in parsers[name]._actions:
            if action.help != "==SUPPRESS==" and "--help" not in action.option_strings:
                assert all(f"<code>{flag}" in text for flag in action.option_strings)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = (site / "python" / "index.html").read_text()
    names = set(dd.api.__all__) - {"methods"}
    assert [name for name in names if f'id="datadistill.{name}"' not in text] == []
    shown = {"DD", "DC", "DM", "MTT", "KRR", "RaTBPTT", "RandomTeacher", "Method", "Synthesis", "Step"}
    assert [name for name in shown if f'id="datadistill.methods.{name}"' not in text] == []


def test_recorded_figures_stand_beside_published_ones(site: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", (site / "method-dc" / "index.html").read_text())
    measured = json.loads((ROOT / "datadistill" / "experiments" / "recipes" / "measured.json").read_text())
    entry = measured["mnist-dc-1"]
    ours = f"{100 * entry['value']:.1f} ± {100 * entry['std']:.1f} %"
    assert re.search(rf"mnist-dc-1\s+{ours}\s+91\.7 ± 0\.5 %\s+{entry['nets']}", text)


PLACES = {
    "quickstart/": "quickstart",
    "concepts/": "concepts",
    "command-line/": "command line",
    "python/": "reference",
    "notebook/": "notebook",
    "method-dc/": "method",
}
READY = "document.readyState === 'complete' && window.document$ !== undefined"

# What is wider than the window must be inside of something that scrolls.
CUT_OFF = """[...document.querySelectorAll(".md-content *, .md-header *")].filter(node => {
  const box = node.getBoundingClientRect();
  const scrolls = node.closest("pre, table, .md-typeset__scrollwrap, math, svg, .md-search, .md-dialog") !== null;
  return !scrolls && node.checkVisibility({visibilityProperty: true, opacityProperty: true}) && box.width > 1
    && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
}).map(node => node.outerHTML.slice(0, 200))"""

OVERLAPPING = overlapping(".md-content :is(h1, h2, h3, p, dt, dd, pre, table, img, math[display])")


@in_a_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("place", PLACES)
def test_a_page_opens_whole(place: str, width: int, dark: bool, chromium: Browser, address: str) -> None:
    chromium.show(address + place, width, dark=dark, ready=READY)
    assert chromium.said == []
    assert chromium.asked
    assert [asked for asked in chromium.asked if not asked.startswith(address)] == []
    assert chromium.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert chromium.run(CUT_OFF) == []
    assert chromium.run(OVERLAPPING) == []
    paper = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] | 0")
    assert (paper < 60) if dark else (paper > 200)


@in_a_browser
def test_the_search_finds(chromium: Browser, address: str) -> None:
    chromium.show(address + "concepts/", ready=READY)
    chromium.run("document.querySelector('.md-search__input').focus()")
    chromium.call("Input.insertText", text="hypergradient")
    chromium.wait_for("document.querySelector('.md-search-result__link')")
    assert [asked for asked in chromium.asked if not asked.startswith(address)] == []
    assert chromium.said == []


def photographs(folder: Path) -> None:
    """A folder of pictures, as somebody may have: three classes, sizes that differ."""
    draws = np.random.default_rng(0)
    for label, name in enumerate(("apples", "leaves", "skies")):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = draws.integers(0, 120, (72 + number % 3, 80, 3))
            pixels[:, :, label] += 120
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{number}.jpg")


def test_the_quickstart_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr("datadistill.baselines.base._FEW", 1)
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 2)
    monkeypatch.setattr("datadistill.baselines.features._LEAST_STEPS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    parts = re.findall(r"^    datadistill ([a-z][^\n]*)$|^```python\n(.*?)^```", QUICKSTART, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(command) for command, _ in parts if command]
    assert [words[0] for words in commands] == [
        *("distill", "evaluate", "compare", "show", "report"),
        *("plan", "distill", "evaluate", "compare"),
    ]
    assert re.findall(r"^    ([a-z]\S+)", QUICKSTART, re.MULTILINE).count("datadistill") == len(commands)
    for command, code in parts:
        if command:
            short = re.sub(r"--budget \w+", "--budget 3s", command)
            short = short.replace("--size 64", "--size 16").replace("--ipc 10 --steps 10", "--ipc 2 --steps 2")
            words = shlex.split(short)
            nets = ["--nets", "2"] if words[0] in ("distill", "evaluate", "compare") else []
            assert main([*words, *nets]) == 0, command
        else:
            names: dict[str, object] = {}
            torch.manual_seed(0)
            exec(compile(re.sub(r'budget="\w+"', 'budget="1s"', code), "quickstart.md", "exec"), names)
            if "network" in names:
                _check_training(names)
    assert Path("hundred-digits.safetensors").is_file()
    assert "%" in capsys.readouterr().out


def _check_training(names: dict[str, object]) -> None:
    """The network of the page's plain PyTorch tells the pictures as well as the program's own networks do."""
    real, data = dd.load("photos", size=16), dd.load_distilled("runs/photos")
    score = dd.evaluate(data, real, nets=5)
    network = names["network"]
    assert isinstance(network, torch.nn.Module)
    right = (network(real.test.images).argmax(1) == real.test.labels).float().mean()
    assert score.accuracy.mean > 0.6
    assert float(right) > score.accuracy.mean - 0.25


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        printed += capsys.readouterr().out.splitlines()
    kept = [
        line for cell in cells for output in cell["outputs"] for line in "".join(output.get("text", "")).splitlines()
    ]
    percents = [float(text) for line in printed for text in re.findall(r"([\d.]+)%", line)]
    shown = [float(text) for line in kept for text in re.findall(r"([\d.]+)%", line)]
    assert len(percents) == len(shown) >= 6
    assert np.allclose(percents, shown, atol=3)  # another processor rounds otherwise
    distilled, random_images = percents[2], percents[4]
    assert distilled > random_images + 2
