"""The page: what files say is text and nothing else, everything is inside, and it stays small."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from pages import HOSTILE, hostile, large, write_run

import datadistill as dd
from datadistill.cli.main import main
from datadistill.distilled import FILE_NAME
from datadistill.report.page import Subject, make_page, read_comparison, read_subject
from datadistill.report.usage import use_of
from datadistill.training.carried import recipe_of
from datadistill.training.fit import fit
from datadistill.utils.errors import DamagedFileError
from datadistill.utils.runtime import stream

SHIPPED = ROOT / "gallery" / "mnist-fixed-10"


@pytest.fixture(scope="module")
def ten(digits: dd.RealData) -> dd.DistilledData:
    return dd.distill(digits, dd.methods.DD(images="mean", batch=64), model="mlp", iterations=2, device="cpu").distilled


def test_files_are_text_and_nothing_else(ten: dd.DistilledData) -> None:
    page = make_page([Subject(HOSTILE, 1, hostile(ten), settings={HOSTILE: {HOSTILE: HOSTILE}})]).decode()
    without = make_page([Subject("ten", 1, ten)]).decode()
    for opening in ("<img", "<script", "</script", "<!--", "<style"):
        assert page.count(opening) == without.count(opening)
    assert "onerror=alert(1)&gt;" in page
    assert "{{7*7}}" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_everything_is_inside() -> None:
    page = make_page([read_subject(SHIPPED)]).decode()
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert set(re.findall(r"""(?:src|href|action)="([^"]{5})""", markup)) == {"data:"}
    assert not re.search(r"@import|url\(", page)
    assert "default-src &#39;none&#39;" in page
    for text in ("97.03", "96.68 to 97.35", "stand for mnist", "datadistill reproduce mnist-fixed-10", "6,000"):
        assert text in page


def test_a_thousand_images_and_two_hundred_looks_are_no_large_file(ten: dd.DistilledData, tmp_path: Path) -> None:
    write_run(large(ten), tmp_path, looks=200)
    subject = read_subject(tmp_path)
    assert subject.history is not None
    assert len(subject.history.steps) == 8
    assert len(subject.metrics) == 200
    assert 4e6 < len(make_page([subject])) < 10 * 2**20


def test_large_images_are_made_smaller(ten: dd.DistilledData) -> None:
    provenance = replace(ten.provenance, normalization=dd.data.Normalization((0.5,) * 3, (0.25,) * 3))
    data = replace(ten, images=torch.randn(10, 3, 600, 600, generator=stream(0)), provenance=provenance)
    assert len(make_page([Subject("ten", 1, data)])) < 10 * 2**20


def test_the_lines_that_use_a_file_do_what_its_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED)
    data = dd.load_distilled(SHIPPED)
    real = dd.load("mnist")
    from datadistill.engine import network_for

    network = network_for("lenet", real, torch.device("cpu"))
    expected = fit(network, data.initial_weights or {}, data, recipe_of(data), stream(0))
    names: dict[str, object] = {"network": network.module}
    exec(use_of(data, FILE_NAME), names)
    found = dict(network.module.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in found)


@pytest.mark.parametrize("name", ["mnist-dc-1", "mnist-random-100", "mnist-random-100-soft", "mnist-malicious"])
def test_every_kind_of_file_has_a_page(name: str) -> None:
    subject = read_subject(ROOT / "gallery" / name)
    page = make_page([subject]).decode()
    assert "Use it" in page
    assert ("Malicious on purpose" in page) == (name == "mnist-malicious")
    compile(use_of(subject.distilled, FILE_NAME), "use", "exec")


def test_several_are_compared(tmp_path: Path) -> None:
    entry = {
        **{
            "model": "lenet",
            "weights": "w",
            "protocol": "own",
            "nets": 5,
            "split": "test",
            "images": 10,
            "by_step": [],
        },
        **{"accuracy": {"mean": 0.5, "std": 0.1, "ci95": [0.4, 0.6]}, "before": None, "seconds": 2.5, "device": "cpu"},
    }
    results = [{"set": HOSTILE, "distilled_images": 10, "bytes": 4100, "making_seconds": 91.2, **entry}]
    results.append({"set": "other", "distilled_images": 10, "model": "vgg", "error": "does <not> fit"})
    (tmp_path / "table.json").write_text(json.dumps({"results": results}))
    lines = read_comparison(tmp_path / "table.json")
    assert [(line.size, line.cost) for line in lines] == [(4100, 91.2), (None, None)]
    page = make_page([read_subject(SHIPPED)], lines).decode()
    assert "40.00 to 60.00" in page
    assert "does &lt;not&gt; fit" in page
    assert "<img src=x" not in page


@pytest.mark.parametrize("text", ["{", "[]", '{"results": 3}', '{"results": [{"set": "a", "distilled_images": 3}]}'])
def test_another_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DamagedFileError):
        read_comparison(tmp_path / "table.json")


def test_the_command(ten: dd.DistilledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    write_run(ten, tmp_path / "run", looks=3)
    assert main(["report", "run"]) == 0
    Path("run/report.html").write_text("old")
    assert main(["report", "run"]) == 0
    assert Path("run/report.html").read_text().startswith("<!doctype html>")
    ten.save("ten.safetensors")
    assert main(["report", "ten.safetensors", "--dataset", "digits", "--real"]) == 0
    page = Path("report.html").read_text()
    assert "nearestLabels" in page
    assert "Confusions" in page
    Path("report.html").write_text("mine")
    assert main(["report", "ten.safetensors"]) == 2
    assert main(["report", "run", "ten.safetensors"]) == 2
    assert Path("report.html").read_text() == "mine"
    assert main(["report", "run", "ten.safetensors", "--out", "both.html"]) == 0
    assert "Comparison" in Path("both.html").read_text()
    Path("table.json").write_text("{}")
    assert main(["report", "table.json"]) == 2
    assert main(["report", "run", "table.json", "--out", "x.html"]) == 1
