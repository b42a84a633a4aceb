"""pretrain, and --pool in the commands that take one."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import datadistill as dd
from datadistill.cli.main import main

SMALL = ["--dataset", "digits", "--model", "mlp", "--nets", "8", "--reserved", "3", "--epochs", "2", "--device", "cpu"]
PROBLEM = ["--dataset", "digits", "--model", "mlp", "--weights", "random-pretrained", "--batch", "64", "--steps", "1"]
QUICK = ["--iterations", "20", "--outer-eval-every", "10", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


@pytest.fixture
def file(pool: dd.Pool) -> str:
    return str(pool.path)


def test_a_table_and_what_to_type_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *SMALL, "--test"]) == 0
    out, err = capsys.readouterr()
    assert "8 networks take 0.4 MB, and 0.8 MB more while they are trained." in err
    for words in ("held-out accuracy", "before rounding", "test accuracy", "5 to distil with, 3 to judge by"):
        assert words in out
    pool = dd.load_pool("pools/digits-mlp.safetensors")
    assert f"{100 * sum(pool.facts.accuracies) / 8:.2f} %" in out
    (line,) = [line for line in out.splitlines() if line.startswith("distil ")]
    words = line.split("datadistill ")[1].split()
    assert main([*words, *QUICK, "--batch", "64", "--out", "run"]) == 0


def test_the_recorded_command_makes_the_same_networks() -> None:
    assert main(["pretrain", *SMALL, "--seed", "3", "--rate", "0.002", "--out", "a.safetensors"]) == 0
    pool = dd.load_pool("a.safetensors")
    assert pool.facts.training == dd.TrainRecipe(epochs=2, lr=0.002)
    words = pool.facts.recipe.split()
    assert words[:2] == ["datadistill", "pretrain"]
    assert main([*words[1:], "--out", "b.safetensors"]) == 0
    assert dd.load_pool("b.safetensors").digest == pool.digest


def test_further_training_and_its_recorded_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *SMALL, "--out", "half.safetensors"]) == 0
    further = ["pretrain", "--dataset", "digits", "--from", "half.safetensors", "--epochs", "2", "--device", "cpu"]
    assert main([*further, "--test", "--out", "tuned.safetensors"]) == 0
    tuned = dd.load_pool("tuned.safetensors")
    assert tuned.facts.start == dd.load_pool("half.safetensors").digest
    words = tuned.facts.recipe.split()
    assert main([*words[1:], "--out", "again.safetensors"]) == 0
    assert dd.load_pool("again.safetensors").digest == tuned.digest
    capsys.readouterr()
    for wrong, said in (
        (["--scheme", "he"], "--scheme"),
        (["--trajectories"], "--trajectories"),
        (["--nets", "9"], "no other numbers"),
    ):
        assert main([*further, *wrong, "--out", "wrong.safetensors"]) == 2
        assert said in capsys.readouterr().err


def test_resume(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from datadistill.pretraining import make as making

    assert main(["pretrain", *SMALL, "--out", "whole"]) == 0
    fit, calls = making.fit, []

    def interrupted(*arguments: object) -> object:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(making, "fit", interrupted)
        assert main(["pretrain", *SMALL, "--out", "cut"]) == 130
    capsys.readouterr()
    assert main(["pretrain", *SMALL, "--out", "cut"]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main(["pretrain", *SMALL, "--out", "cut", "--resume"]) == 0
    assert "3 of 8 networks are there already" in capsys.readouterr().err
    assert dd.load_pool("cut").digest == dd.load_pool("whole").digest


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from datadistill.utils.interrupts import StopRequest

    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "requested", signal.SIGINT) or self)
    assert main(["pretrain", *SMALL, "--out", "p", "--resume"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("--out p --resume")


def test_distill_evaluate_and_resume(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *PROBLEM, *QUICK, "--pool", file, "--out", "run", "--nets", "4"]) == 0
    out = capsys.readouterr().out
    assert "network as pretrained" in out
    assert f"evaluate run --pool {file}" in out
    card = (Path("run") / "README.md").read_text()
    assert f"datadistill evaluate run --pool {file}" in card
    assert "were trained on digits" in card
    first = dd.load_distilled("run")
    assert first.provenance.scores[-1]["nets"] == 4
    assert main(["evaluate", "run", "--pool", file, "--nets", "4", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["accuracy"] == first.provenance.scores[-1]["accuracy"]
    assert main(["distill", "--resume", "--out", "run", "--pool", file]) == 0
    assert torch.equal(first.images, dd.load_distilled("run").images)


def test_fixed_pretrained_needs_the_pool_only_once(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*PROBLEM, *QUICK, "--weights", "fixed-pretrained", "--pool", file, "--out", "run"]
    assert main(["distill", *arguments]) == 0
    assert "evaluate    datadistill evaluate run\n" in capsys.readouterr().out.replace("\r", "")
    assert "one known trained network" in (Path("run") / "README.md").read_text()
    assert main(["evaluate", "run", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["weights"], result["nets"]) == ("fixed-pretrained (digits)", 1)


def test_baseline_check_and_plan_take_a_pool(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = ["--dataset", "digits", "--model", "mlp", "--weights", "random-pretrained", "--steps", "1"]
    assert main(["baseline", *baseline, "--pool", file, "--out", "base"]) == 0
    out = capsys.readouterr().out
    assert f"evaluate base --pool {file}" in out
    words = dd.load_distilled("base").provenance.recipe.split()
    assert main([*words[1:], "--out", "again"]) == 0
    assert torch.equal(dd.load_distilled("base").images, dd.load_distilled("again").images)
    assert main(["check", *PROBLEM, "--pool", file]) == 0
    assert "random-pretrained" in capsys.readouterr().out
    assert main(["plan", *PROBLEM, "--pool", file]) == 0
    assert "random-pretrained" in capsys.readouterr().out


WRONG: dict[str, tuple[Callable[[str], list[str]], str]] = {
    "no pool": (lambda file: ["distill", *PROBLEM, *QUICK], "make one with `datadistill pretrain`"),
    "no such pool": (lambda file: ["distill", *PROBLEM, *QUICK, "--pool", "x"], "no pool of networks at x"),
    "a pool for a drawn kind": (
        lambda file: ["distill", *PROBLEM, *QUICK, "--weights", "random-init", "--pool", file],
        "random-init draws its weights",
    ),
    "another model": (
        lambda file: ["distill", *PROBLEM, *QUICK, "--model", "ConvNetD1W4", "--pool", file],
        "holds networks mlp",
    ),
    "other images": (
        lambda file: ["distill", *PROBLEM, *QUICK, "--dataset", "mnist", "--pool", file],
        "the pool's images are (1, 8, 8), but those of mnist are (1, 28, 28)",
    ),
    "more judges than there are": (
        lambda file: ["distill", *PROBLEM, *QUICK, "--pool", file, "--nets", "11"],
        "the pool has 10 networks for judging",
    ),
    "more networks than there are": (
        lambda file: ["distill", *PROBLEM, *QUICK, "--pool", file, "--networks", "26"],
        "takes 26 networks, but the pool has 25",
    ),
    "everything reserved": (lambda file: ["pretrain", *SMALL, "--reserved", "8"], "8 of 8 networks cannot be reserved"),
    "too large": (lambda file: ["pretrain", *SMALL, "--max-gb", "0.001"], "but 0.001 GB are allowed"),
    "too large by far": (lambda file: ["pretrain", *SMALL, "--nets", "999999999"], "but 2 GB are allowed"),
    "no cap": (lambda file: ["pretrain", *SMALL, "--max-gb", "nan"], "nan GB are allowed"),
    "no epochs": (lambda file: ["pretrain", *SMALL, "--epochs", "-1"], "whole number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_sentence(name: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = WRONG[name]
    assert main(arguments(file)) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.startswith("datadistill: ")
    assert err.count("\n") == 1
    assert not list(Path().iterdir()), "nothing is left behind"


def test_a_damaged_pool_is_one_sentence(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path(file).read_bytes()
    middle = len(whole) // 2
    Path("cut").write_bytes(whole[:-1])
    Path("flipped").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for name, sentence in (("cut", "damaged"), ("flipped", "its checksum differs")):
        assert main(["distill", *PROBLEM, *QUICK, "--pool", name]) == 1
        err = capsys.readouterr().err
        assert sentence in err
        assert err.count("\n") == 1
