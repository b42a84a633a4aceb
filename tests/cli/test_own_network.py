"""A network of a user's own, from a file outside the package, through the commands."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import datadistill as dd
from datadistill.cli.main import main

RESNET = """
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.short = nn.Conv2d(before, after, 1)

    def forward(self, images):
        hidden = F.relu(self.norms[0](self.first(images)))
        return F.relu(self.norms[1](self.second(hidden)) + self.short(images))


def resnet(num_classes, in_channels):
    blocks = [Block(in_channels, 8), nn.MaxPool2d(2), Block(8, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""
QUICK = ["--dataset", "digits", "--iterations", "20", "--outer-eval-every", "10", "--batch", "64"]
OWN = ["--model", "net.py:resnet"]
SAID = "batch normalisation (0.norms.0, 0.norms.1, 2.norms.0 and 1 more) uses each batch's own statistics"
ODD = """
import torch
from torch import nn

class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.last = [nn.Linear(64, 16)], nn.Linear(16, 10)

    def forward(self, images):
        return self.last(torch.tanh(self.layers[0](images.flatten(1))))

def softened(num_classes):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, num_classes), nn.Softmax(1))
    module[1].requires_grad_(False)
    return module

def normalised(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))

def one(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, num_classes))

def another(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""
COMMANDS = {
    "distill": ["--dataset", "digits", "--iterations", "1", "--steps", "1", "--epochs", "1", "--batch", "32"],
    "evaluate": ["run", "--nets", "1"],
    "compare": ["run", "--nets", "1"],
    "pretrain": ["--dataset", "digits", "--nets", "2", "--reserved", "1", "--epochs", "1"],
    "baseline": ["--dataset", "digits", "--steps", "1", "--epochs", "1", "--nets", "1"],
    "plan": ["--dataset", "digits", "--batch", "32", "--steps", "1", "--epochs", "1", "--storage", "full"],
    "check": ["--dataset", "digits", "--batch", "32", "--steps", "1", "--epochs", "1", "--directions", "1"],
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    Path("net.py").write_text(RESNET)


def test_a_resnet_with_batch_norm_distils_evaluates_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *QUICK, *OWN, "--batch-norm", "refused", "--out", "run"]) == 2
    assert "--batch-norm batch" in capsys.readouterr().err
    assert main(["distill", *QUICK, *OWN, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "evaluate run --model net.py:resnet" in out
    assert err.startswith(SAID)
    data = dd.load_distilled("run")
    assert data.provenance.inner["batch_norm"] == "batch"
    assert data.provenance.model == "net.py:resnet"
    assert "datadistill evaluate run --model net.py:resnet" in Path("run/README.md").read_text()
    assert main(["evaluate", "run", *OWN, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["weights"].startswith("fixed-init")
    assert result["accuracy"] == data.provenance.scores[-1]["accuracy"]
    # The file may lie elsewhere by then.
    Path("sub").mkdir()
    Path("net.py").rename("sub/net.py")
    assert main(["evaluate", "run", "--model", "sub/net.py:resnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["accuracy"] == result["accuracy"]
    assert main(["distill", "--resume", "--out", "run", "--model", "sub/net.py:resnet"]) == 0
    assert torch.equal(dd.load_distilled("run").images, data.images)


def test_code_is_never_loaded_because_a_file_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *QUICK, *OWN, "--batch-norm", "batch", "--out", "run"]) == 0
    Path("net.py").write_text("import pathlib\npathlib.Path('ran').touch()\n" + RESNET)
    for command in (
        ["evaluate", "run"],
        ["compare", "run", "--baselines", "random"],
        ["audit", "run"],
        ["distill", "--resume", "--out", "run"],
    ):
        capsys.readouterr()
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert "net.py:resnet, which is code" in error
        assert "--model" in error
        assert error.count("\n") == 1
    for command in (["show", "run"], ["export", "run", "--to", "npz"], ["evaluate", "run", "--protocol", "nearest"]):
        assert main(command) == 0
    assert not Path("ran").exists()
    assert main(["evaluate", "run", *OWN]) == 0
    assert Path("ran").exists()


def test_the_way_to_go_on_names_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datadistill.utils.interrupts import StopRequest

    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "requested", signal.SIGINT) or self)
    assert main(["distill", *QUICK, *OWN, "--batch-norm", "batch", "--out", "run"]) == 130
    assert "go on with: datadistill distill --resume --out run --model net.py:resnet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["baseline", "--steps", "1", "--epochs", "1", "--nets", "1"],
        ["pretrain", "--nets", "2", "--reserved", "1", "--epochs", "1", "--batch-norm", "batch", "--out", "pool"],
        ["plan", "--batch", "64", "--storage", "full"],
        ["check", "--batch-norm", "batch", "--batch", "32", "--directions", "1", "--epochs", "1"],
    ],
    ids=lambda command: command[0],
)
def test_the_other_commands_take_it_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--dataset", "digits", *OWN]) == 0, capsys.readouterr().err


def test_compare_and_audit_take_it_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 1)  # that rates are tuned on: fewer are faster
    assert main(["distill", *QUICK, "--model", "mlp", "--out", "run"]) == 0
    words = [*OWN, "--batch-norm", "batch", "--nets", "2"]
    assert main(["compare", "run", "--baselines", "random", *words]) == 0, capsys.readouterr().err
    assert main(["audit", "run", *words, "--train-epochs", "1"]) in (0, 1)
    assert "net.py" not in capsys.readouterr().err


def test_a_pool_of_own_networks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "digits", *OWN, "--batch-norm", "batch"]
    assert main(["pretrain", *words, "--nets", "3", "--reserved", "1", "--epochs", "1"]) == 0
    pool = "pools/digits-net.py-resnet.safetensors"
    assert dd.load_pool(pool).facts.model == "net.py:resnet"
    more = ["--weights", "random-pretrained", "--pool", pool, "--steps", "1", "--networks", "1", "--out", "run"]
    assert main(["distill", *words, *more, "--iterations", "2", "--batch", "64"]) == 0, capsys.readouterr().err


def test_the_program_itself(tmp_path: Path) -> None:
    """As a user starts it, in a folder of their own."""
    (tmp_path / "nets_of_a_user.py").write_text(RESNET)
    words = ["--model", "nets_of_a_user:resnet", "--batch-norm", "batch", "--out", "run"]
    command = [sys.executable, "-c", "from datadistill.__main__ import run_and_exit; run_and_exit()"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [*command, "distill", *QUICK, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nets_of_a_user:resnet" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_the_same_of_a_network(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 1)  # that rates are tuned on: fewer are faster
    Path("odd.py").write_text(ODD)
    if "run" in COMMANDS[command]:
        random = ["--dataset", "digits", "--protocol", "dc", "--epochs", "1", "--ipc", "1", "--nets", "1"]
        assert main(["baseline", "--model", "mlp", *random, "--out", "run"]) == 0
    capsys.readouterr()
    assert main([command, *COMMANDS[command], "--model", "odd.py:Listed"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "weights that PyTorch does not see (layers)" in err
    assert err.count("\n") == 1
    assert main([command, *COMMANDS[command], "--model", "odd.py:softened"]) == 0
    _, err = capsys.readouterr()
    assert err.count("weight 1.weight, 1.bias stays as it is: requires_grad is False") == 1
    assert err.count("the network ends in a softmax") == 1


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_one_image_has_no_statistics(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.py").write_text(ODD)
    words = ["--method", method, "--dataset", "digits", "--model", "odd.py:normalised"]
    for command in (["distill", "--iterations", "1", "--out", "run"], ["plan"]):
        assert main([*command, *words, "--ipc", "1"]) == 2
        assert "does not take a batch of one image" in capsys.readouterr().err
    assert main(["distill", "--iterations", "1", "--nets", "1", "--out", "two", *words, "--ipc", "2"]) == 0


def test_one_network_has_many_spellings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("odd.py").write_text(ODD)
    assert main(["distill", *QUICK, "--model", "odd.py:one", "--nets", "1", "--out", "run"]) == 0
    scores = []
    for model in ("odd.py:one", f"{Path.cwd()}/odd.py:one", "odd:one"):
        capsys.readouterr()
        assert main(["evaluate", "run", "--model", model, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["results"][0])
    monkeypatch.syspath_prepend(Path.cwd())
    function = importlib.import_module("odd").one
    scores.append(dd.evaluate(dd.load_distilled("run"), dd.load("digits"), model=function).as_json())
    assert [score["weights"] for score in scores] == ["fixed-init (xavier-uniform)"] * 4
    assert {score["accuracy"]["mean"] for score in scores} == {scores[0]["accuracy"]["mean"]}
    assert main(["evaluate", "run", "--model", "odd.py:another", "--nets", "1"]) == 0
    assert "taken for another network than odd.py:one" in capsys.readouterr().err
