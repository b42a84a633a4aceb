"""What pip builds can be installed where nothing is but PyTorch, and works there."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import datadistill as dd

TORCH = Path(torch.__file__).parent.parent
# PyTorch, and what a build for CUDA brings.
ITS_OWN = ("torch", "torch-*", "torchgen", "functorch", "nvidia*", "triton*", "cuda*")


def run(*words: str | Path, folder: Path) -> str:
    """What a command prints, away from this checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of `pip wheel .` and a source distribution."""
    folder = tmp_path_factory.mktemp("built")
    venv.create(folder / "tools", with_pip=True)
    python = folder / "tools" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "hatchling", folder=folder)
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "whl", ROOT, folder=folder)
    run(python, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder / "gz", folder=ROOT)
    return folder


def sums(wheel: Path) -> dict[str, int]:
    """A checksum for each file in it."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.mark.slow
@pytest.mark.xdist_group("built")
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's folders have other names")
def test_the_source_distribution_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (source,), (wheel,) = (list((built / kind).iterdir()) for kind in ("gz", "whl"))
    assert source.name == f"datadistill-{dd.__version__}.tar.gz"
    python = built / "tools" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source, folder=tmp_path)
    assert sums(tmp_path / wheel.name) == sums(wheel)


@pytest.mark.slow
@pytest.mark.xdist_group("built")
@pytest.mark.skipif(sys.platform == "win32", reason="the environment's folders have other names")
def test_it_installs_where_nothing_is_and_works(built: Path, tmp_path: Path) -> None:
    (file,) = (built / "whl").iterdir()
    assert file.name == f"datadistill-{dd.__version__}-py3-none-any.whl"
    (tmp_path / "torch").mkdir()
    for path in (path for pattern in ITS_OWN for path in TORCH.glob(pattern)):
        (tmp_path / "torch" / path.name).symlink_to(path)
    venv.create(tmp_path / "new", with_pip=True)
    python = tmp_path / "new" / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    Path(packages, "existing-torch.pth").write_text(f"{tmp_path / 'torch'}\n")
    run(python, "-m", "pip", "install", "--quiet", file, folder=tmp_path)
    assert (Path(packages) / "datadistill" / "py.typed").exists()
    program = tmp_path / "new" / "bin" / "datadistill"
    assert run(program, "--version", folder=tmp_path) == f"datadistill {dd.__version__}\n"
    words = ("--dataset", "digits", "--model", "mlp", "--iterations", "20", "--out", "run")
    assert "test accuracy" in run(program, "distill", *words, folder=tmp_path)
    for name in ("distilled.safetensors", "README.md", "report.html", "sheet.png", "curve.png"):
        assert (tmp_path / "run" / name).exists()
    assert "test accuracy" in run(program, "evaluate", "run", folder=tmp_path)
    assert "mnist-fixed-10" in run(program, "reproduce", "--list", folder=tmp_path)
    assert "complete -" in run(program, "completion", "bash", folder=tmp_path)
    load = "import datadistill as dd; print(len(dd.load('mnist').test.labels), dd.__file__)"
    count, place = run(python, "-c", load, folder=tmp_path).split()
    assert (count, Path(place).is_relative_to(packages)) == ("10000", True)


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {dd.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {dd.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert (ROOT / "datadistill" / "py.typed").exists()
