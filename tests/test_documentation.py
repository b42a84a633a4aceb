"""What the documentation shows runs."""

import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import datadistill as dd
from datadistill.cli.main import main, make_parser
from datadistill.evaluation import Summary, percent
from datadistill.experiments.recipes import recipes
from datadistill.experiments.recipes.measured import load_measured

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "gallery" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "gallery").glob("*/*.md"))]


def test_every_example_is_run_below() -> None:
    assert [example.name for example in EXAMPLES] == ["digits.py", "train_on_distilled.py"]


@pytest.mark.parametrize("steps", [10, pytest.param(None, marks=pytest.mark.slow)])
def test_the_digits_example_saves_its_images(
    steps: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if steps is not None:
        whole = dd.distill
        monkeypatch.setattr(dd, "distill", lambda *given, **named: whole(*given, **named | {"iterations": steps}))
    runpy.run_path(str(ROOT / "examples" / "digits.py"), run_name="__main__")
    assert dd.load_distilled("ten-digits.safetensors").provenance.dataset == "digits"


def test_training_without_this_package_gets_the_accuracy_of_the_card(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = ROOT / "examples" / "train_on_distilled.py"
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    found = re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)
    assert found is not None
    said = dd.load_distilled(ROOT / "gallery" / "mnist-fixed-10").provenance.scores[-1]["accuracy"]["mean"]
    assert float(found[1]) == pytest.approx(100 * said, abs=0.3)
    # Up to the line that says so, it needs nothing of this package.
    training = example.read_text().partition("# The network is trained.")[0]
    assert "import datadistill" not in training


@pytest.mark.parametrize("name", ["mnist-fixed-5-soft", "mnist-random-100", "mnist-random-100-soft"])
def test_it_does_so_with_soft_labels_and_from_any_start(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    folder = ROOT / "gallery" / name
    monkeypatch.setattr("sys.argv", ["example", str(folder / "distilled.safetensors")])
    runpy.run_path(str(ROOT / "examples" / "train_on_distilled.py"), run_name="__main__")
    found = re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)
    assert found is not None
    said = dd.load_distilled(folder).provenance.scores[-1]["accuracy"]
    assert float(found[1]) == pytest.approx(100 * said["mean"], abs=0.3 + 400 * (said["std"] or 0.0))


@pytest.mark.parametrize("name", ["mnist-dc-1", "mnist-malicious"])
def test_it_says_what_it_is_not_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["example", str(ROOT / "gallery" / name / "distilled.safetensors")])
    with pytest.raises(SystemExit, match="this script trains a LeNet by the file's own steps"):
        runpy.run_path(str(ROOT / "examples" / "train_on_distilled.py"), run_name="__main__")


README = (ROOT / "README.md").read_text()

# What the README asks for, as a test has time for it: few small pictures, and seconds instead of minutes.
SHORTER = {
    "--size 64": "--size 16",
    "size=64": "size=16",
    "4096": "256",
    "--ipc 10": "--ipc 2",
    "steps=10": "steps=2",
    "10m": "3s",
    "30m": "3s",
}


def shorter(text: str) -> str:
    for words, few in SHORTER.items():
        text = text.replace(words, few)
    return text


def test_the_readme_is_short_and_what_shortens_it_is_in_it() -> None:
    assert len(README.splitlines()) <= 80
    assert [words for words in SHORTER if words not in README] == []


def shell(text: str) -> list[list[str]]:
    """Its indented lines, as a shell reads them."""
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (.+)$", outside, re.MULTILINE)]


def test_all_that_the_readme_shows_runs_from_top_to_bottom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install .` is run by test_package.py, `make test` is this, and `make demo` is the program without flags."""
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, colour in {"cats": (180, 90, 60), "dogs": (60, 110, 180)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            noise = generator.normal(0, 40, (30, 24, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    others = [words for words in shell(README) if words[0] != "datadistill"]
    assert others == [["pip", "install", "."], ["make", "demo"], ["make", "test"]]
    for words in shell(shorter(README)):
        if words[0] == "datadistill":
            assert main(words[1:]) == 0, words
    assert (tmp_path / "runs" / "photos" / "report.html").exists()
    python, torch_alone = re.findall(r"```python\n(.*?)```", shorter(README), re.DOTALL)
    exec(compile(python, "README.md", "exec"), {})
    real = dd.load("photos", size=16)
    assert dd.load_distilled("photos.safetensors").images.shape == (4, 3, 16, 16)
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    assert "datadistill" not in torch_alone
    exec(compile(torch_alone, "README.md", "exec"), made)
    correct = made["network"](real.test.images).argmax(1) == real.test.labels
    assert correct.float().mean() >= 0.85


def test_make_demo_is_the_program_without_flags() -> None:
    asked = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert asked.stdout.splitlines()[-1] == ".venv/bin/datadistill distill"


def test_the_readme_repeats_what_was_recorded() -> None:
    rows = re.findall(r"\*\*(.+?)\*\* \| (.*?) ?\| `datadistill reproduce (.+?)`", README)
    assert len(rows) == 6
    for said, published, name in rows:
        found = load_measured()[name]
        assert not found.is_stale(recipes().get(name))
        assert said == percent(Summary(found.value, found.std, (0.0, 0.0)))
        assert published == recipes().get(name).published("after")


def test_every_figure_of_the_readme_is_among_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    figures = re.findall(r"[\d.]+ ± [\d.]+ %|\d+\.\d+ %|\d+ s\b", README)
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in results] == []


def anchors(page: Path) -> set[str]:
    """Its headings as GitHub names them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def commands(page: Path) -> list[list[str]]:
    found = re.findall(r"(?:^    |`)datadistill ([a-z][^`\n#]*)", page.read_text(), re.MULTILINE)
    return [words.split() for words in found if "COMMAND" not in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page):
        parser, by_name = make_parser(words[0])
        _, rest = parser.parse_known_args(words)
        by_name[words[0]].refuse(rest)


def test_the_readme_has_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 8
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
