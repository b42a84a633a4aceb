"""check: its table, its JSON and its exit codes."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datadistill.cli.main import main
from datadistill.data import RealData
from datadistill.methods import DD, METHODS, Step
from datadistill.models import ModelFactory

QUICK = ["check", "--dataset", "digits", "--model", "ConvNetD1W4", "--directions", "2", "--batch", "16"]


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


def test_a_table_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    for words in ("images of batch 1", "learning rate 3", "relative error", "checked with surrogate_width 0"):
        assert words in out
    assert out.splitlines()[-1].startswith("the gradient is right: the largest relative error is ")
    assert "wrong" not in out


@pytest.mark.parametrize("storage", ["full", "recompute", "checkpoint", "offload"])
@pytest.mark.parametrize("hvp", ["reverse", "forward"])
def test_json_for_every_engine(storage: str, hvp: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*QUICK, "--storage", storage, "--hvp", hvp, "--json"]
    if (storage, hvp) == ("full", "forward"):
        assert main(arguments) == 2
        return
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"]
    assert document["exact"]
    assert document["largest_error"] < document["tolerance"]
    assert [len(row["numeric"]) for row in document["rows"]] == [2, 1, 1, 1]


def test_an_approximation_is_declared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--hvp", "difference", "--model", "ConvNetD1W4swishAP"]) == 0
    assert "is declared approximate: the largest relative error is" in capsys.readouterr().out


def test_batch_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--model", "ConvNetD1W4BN", "--batch-norm", "batch", "--weights", "fixed-init"]) == 0
    assert "ok" in capsys.readouterr().out


@dataclass(frozen=True)
class Wrong(DD):
    """A gradient that is too long by a hundredth."""

    def step(self, *arguments: Any) -> Step:
        step = super().step(*arguments)
        return step._replace(gradients={**step.gradients, "images": step.gradients["images"] * 1.01})


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_wrong_method_fails(
    extra: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = METHODS
    monkeypatch.setattr(METHODS, "records", (replace(first, make=Wrong), *others))
    assert main([*QUICK, *extra]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "datadistill: the gradient of images of batch 1 is wrong: the largest relative error"
    )
    assert captured.err.count("\n") == 1
    if extra:
        assert not json.loads(captured.out)["passed"]
    else:
        assert "wrong" in captured.out


class Apart(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LayerNorm(64), Distances())


class Distances(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, values: Tensor) -> Tensor:
        return torch.cdist(values, self.weight) + self.bias


def test_a_layer_without_second_derivative_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(model: str | ModelFactory, real: RealData) -> nn.Module:
        return Apart()

    monkeypatch.setattr("datadistill.engine.networks.create_model", build)
    assert main(QUICK) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "layer 2 (Distances: the derivative for '_cdist_backward' is not implemented)" in captured.err


def test_no_float64_on_this_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--device", "mps"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
