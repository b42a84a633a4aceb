"""What the documentation shows runs."""

import os
import re
import runpy
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.cli.main import make_parser

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("number", [0, 1])
def test_python_in_the_readme_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gallery").symlink_to(ROOT / "gallery")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[number]
    exec(compile(code.replace('budget="20s"', 'budget="1s"'), "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    found = re.findall(r"(?:^    |`)datadistill ([a-z][^`\n#]*)", page.read_text(), re.MULTILINE)
    return [words.split() for words in found if "COMMAND" not in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_are_understood(page: Path) -> None:
    for words in commands(page):
        parser, by_name = make_parser()
        _, rest = parser.parse_known_args(words)
        by_name[words[0]].refuse(rest)


def test_the_readme_has_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 8
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_readme_repeats_the_card() -> None:
    accuracy = dd.load_distilled(ROOT / "gallery" / "mnist-fixed-10").provenance.scores[-1]["accuracy"]
    assert f"**{100 * accuracy['mean']:.2f} %**" in (ROOT / "README.md").read_text()
