"""Fresh networks drawn by another scheme than the one that data was made for."""

import json
from pathlib import Path

import pytest

import datadistill as dd
from datadistill.cli.main import main

QUICK = ["--dataset", "digits", "--model", "mlp", "--iterations", "5", "--batch", "64", "--outer-eval-every", "5"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dd.DistilledData:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    words = ["--weights", "random-init", "--steps", "1", "--networks", "1", "--nets", "1", "--out", "run"]
    assert main(["distill", *QUICK, *words]) == 0
    return dd.load_distilled("run")


def test_fresh_networks_are_drawn_by_it(
    data: dd.DistilledData, digits: dd.RealData, capsys: pytest.CaptureFixture[str]
) -> None:
    own, same, other = (dd.evaluate(data, digits, nets=2, scheme=scheme) for scheme in (None, "Xavier", "normal"))
    assert (own.before, own.weights) == (same.before, same.weights)
    assert (other.before, other.weights) != (own.before, own.weights)
    assert other.weights == "random-init (normal)"
    capsys.readouterr()
    for command in (["evaluate"], ["compare", "--baselines", "average"]):
        assert main([*command, "run", "--scheme", "normal", "--nets", "2", "--json"]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        assert results[0]["accuracy"]["mean"] == other.accuracy.mean
        assert {result["weights"] for result in results} == {"random-init (normal)"}


def test_weights_that_are_not_drawn_have_no_scheme(data: dd.DistilledData, digits: dd.RealData) -> None:
    assert main(["distill", *QUICK, "--out", "fixed"]) == 0
    fixed = dd.load_distilled("fixed")
    with pytest.raises(dd.RequestError, match="--weights random-init"):
        dd.evaluate(fixed, digits, scheme="normal")
    score = dd.evaluate(fixed, digits, scheme="normal", weights="random-init", nets=1)
    assert score.weights == "random-init (normal)"
    with pytest.raises(dd.RequestError, match="trains no network"):
        dd.evaluate(data, digits, protocol="nearest", scheme="normal")
    with pytest.raises(dd.RequestError, match="did you mean normal"):
        dd.evaluate(data, digits, scheme="norml")
