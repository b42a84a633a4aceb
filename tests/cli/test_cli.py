"""The command line: what it prints, and that a wrong request is one sentence and an exit code."""

import gzip
import io
import json
import re
import shutil
import signal
from contextlib import redirect_stdout
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import datadistill as dd
from datadistill.cli import distill
from datadistill.cli.common import steps_for
from datadistill.cli.config import paper
from datadistill.cli.main import COMMANDS, main, make_parser
from datadistill.data import DATASETS
from datadistill.distillation.run_folder import RunFolder
from datadistill.experiments.recipes import recipes
from datadistill.formats import FORMATS
from datadistill.methods import METHODS
from datadistill.models import MODELS
from datadistill.pretraining.initial_weights import KINDS

QUICK = ["--dataset", "digits", "--model", "mlp", "--iterations", "16", "--outer-eval-every", "8", "--batch", "64"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder, and what was printed while it was made."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as printed:
        patched.chdir(place)
        patched.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
        assert main(["distill", *QUICK, "--out", "run"]) == 0
    return place / "run", printed.getvalue()


@pytest.fixture
def done(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of it, to be changed at will; the same is printed."""
    shutil.copytree(finished[0], "run")
    print(finished[1], end="")
    return Path("run")


def test_distill_leaves_a_whole_run_folder(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in done.iterdir()} - {".lock"}
    assert names == {
        *("config.json", "metrics.jsonl", "checkpoint", "history.safetensors", "distilled.safetensors"),
        *("README.md", "curve.png", "report.html", "sheet.png"),
    }
    out = capsys.readouterr().out
    assert "untrained network" in out
    assert "after step 3" in out
    assert "Wang" not in out
    assert "evaluate run" in out
    card = (done / "README.md").read_text()
    score = dd.load_distilled(done).provenance.scores[-1]
    assert score["split"] == "test"
    assert f"**{100 * score['accuracy']['mean']:.2f} %**" in card
    assert "--outer-eval-every 8" in card


def test_default_folders_are_numbered() -> None:
    for _ in range(2):
        assert main(["distill", *QUICK]) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-dd-fixed-init-1", "digits-dd-fixed-init-1-2"]


def test_resume_needs_no_other_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *QUICK]) == 0
    first = dd.load_distilled("runs/digits-dd-fixed-init-1")
    assert main(["distill", "--resume"]) == 0
    assert "the run in runs/digits-dd-fixed-init-1 is finished after 16 outer steps" in capsys.readouterr().err
    assert torch.equal(first.images, dd.load_distilled("runs/digits-dd-fixed-init-1").images)


def test_the_recorded_command_makes_the_same(done: Path) -> None:
    data = dd.load_distilled(done)
    words = data.provenance.recipe.split()
    assert words[0] == "datadistill"
    assert main([*words[1:], "--out", "again"]) == 0
    assert torch.equal(data.images, dd.load_distilled("again").images)


def test_evaluate_json(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", "run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"path", "dataset", "protocol", "results", "chance", "versions"} <= document.keys()
    (result,) = document["results"]
    assert {"model", "weights", "nets", "accuracy", "seconds"} <= result.keys()
    assert result["nets"] == 1
    assert result["accuracy"] == dd.load_distilled(done).provenance.scores[-1]["accuracy"]
    low, high = result["accuracy"]["ci95"]
    assert low < result["accuracy"]["mean"] < high
    assert document["chance"] == 0.1


def test_evaluate_several(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(done / "distilled.safetensors", "other.safetensors")
    capsys.readouterr()
    arguments = ["--models", "mlp,ConvNetD1W4", "--nets", "2", "--weights", "random-init", "--json"]
    assert main(["evaluate", "run", "other.safetensors", *arguments]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [len(document["results"]) for document in documents] == [2, 2]
    assert documents[0]["results"][0]["accuracy"] == documents[1]["results"][0]["accuracy"]
    assert main(["evaluate", "run", "other.safetensors"]) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_baseline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 3)  # that rates are tuned on: fewer are faster
    arguments = ["--dataset", "digits", "--model", "mlp", "--steps", "2", "--nets", "2", "--out", "base"]
    assert main(["baseline", *arguments]) == 0
    assert "tuned on held-out data" in capsys.readouterr().out
    data = dd.load_distilled("base")
    assert data.provenance.method["name"] == "random"
    assert len(data.labels) == 20
    assert main(["baseline", *arguments[:-1], "again", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["path"], document["sets"]) == ("again", 1)
    judged = dict(document["results"][0])
    recorded = dict(dd.load_distilled("again").provenance.scores[-1])
    assert judged.pop("seconds") > 0
    assert recorded.pop("seconds") > 0
    assert judged == recorded


@pytest.mark.parametrize(
    ("method", "ipc", "iterations", "rate", "lr_lr"),
    [
        ("dc", None, 1000, 0.1, None),
        ("dsa", 10, 10_000, 0.1, None),
        ("dc", "5,15", 10_000, 0.1, None),
        ("dc", 50, 50_000, 0.1, None),
        ("dm", 50, 20_000, 1.0, None),
        ("dm", 100, 20_000, 10.0, None),
        ("mtt", 1, 5000, 100.0, 1e-3),
        ("mtt", 10, 5000, 100.0, 10.0),
        ("mtt", 50, 5000, 1000.0, 10.0),
        ("mtt", "proportional:100", 5000, 100.0, 1e-3),
    ],
)
def test_what_a_paper_asks_for_goes_by_the_number_of_images(
    method: str, ipc: Any, iterations: int, rate: float, lr_lr: float | None
) -> None:
    config = paper(METHODS.get(method), ipc)
    assert config.iterations == iterations
    assert config.outer.lr == pytest.approx(rate)
    assert config.outer.lr_lr == pytest.approx(lr_lr or 0.0)


def test_show(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "run", "--out", "some/where.png"]) == 0
    assert capsys.readouterr().out.endswith("some/where.png\n")
    with Image.open("some/where.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", METHODS.names()),
        ("models", MODELS.names()),
        ("recipes", recipes().names()),
        ("WEIGHTS", KINDS.names()),
        ("datasets", DATASETS.names()),
        ("formats", FORMATS.names()),
    ],
)
def test_list(what: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines] == names


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_defaults_and_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"datadistill {command}" in out


def test_a_parser_for_one_command_has_all_its_flags() -> None:
    whole = make_parser()[1]
    for command in COMMANDS:
        parsers = make_parser(command)[1]
        assert parsers[command].format_help() == whole[command].format_help()
        assert parsers.keys() == whole.keys()


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


WRONG = {
    "an unknown command": (["distil"], "did you mean distill"),
    "a mistyped flag": (["distill", "--stesp", "3"], "did you mean --steps"),
    "a flag that does not exist": (["evaluate", "x", "--qqqqqq"], "--help lists them"),
    "a word too many": (["list", "models", "now"], "does not know what to do with 'now'"),
    "an unknown dataset": (["distill", "--dataset", "mnits"], "did you mean mnist"),
    "an unknown model": (["distill", "--model", "lenett"], "did you mean lenet"),
    "an unknown scheme": (["distill", "--scheme", "xavir"], "did you mean xavier"),
    "an unknown kind of weights": (["distill", "--weights", "fixed"], "did you mean fixed-init"),
    "an unknown method": (["distill", "--method", "ddd"], "did you mean dd"),
    "an unknown recipe": (["distill", "--recipe", "mnist-fixed"], "did you mean mnist-fixed-10"),
    "an unknown choice": (["distill", "--images", "nosie"], "did you mean noise"),
    "an unknown device": (["distill", "--device", "tpu"], "unknown device 'tpu'"),
    "a device that is not there": (["distill", "--device", "mps"], "not available here"),
    "an unknown list": (["list", "modles"], "did you mean models"),
    "an ipc larger than the class": (["distill", *QUICK, "--ipc", "1000"], "at most"),
    "an ipc of zero": (["distill", "--ipc", "0"], "not a positive number"),
    "a negative rate": (["distill", *QUICK, "--learning-rate", "-1"], "must be positive"),
    "a rate that is no float": (["distill", *QUICK, "--learning-rate", "1e39"], "must be positive"),
    "a rate that is no number at all": (["distill", *QUICK, "--learning-rate", "nan"], "must be positive"),
    "a beta that is no number": (["distill", *QUICK, "--outer-betas", "0.5", "nan"], "second beta"),
    "a count beyond reason": (["distill", *QUICK, "--batch", "99999999999999"], "less than a billion"),
    "steps beyond reason": (["distill", *QUICK, "--epochs", "1000000"], "gradient steps"),
    "a data root that is not there": (["distill", "--data-root", "nowhere"], "no folder nowhere"),
    "a negative outer learning rate": (["distill", *QUICK, "--outer-lr", "-1"], "must be positive"),
    "a rate that is no number": (["distill", "--learning-rate", "fast"], "'fast' is not a number"),
    "a count that is no number": (["distill", "--iterations", "many"], "whole number"),
    "no budget": (["distill", "--budget", "soon"], "no duration"),
    "a kernel that is none": (["distill", "--kernels", "pooling"], "unknown kernel 'pooling'"),
    "images of the wrong size": (["distill", "--dataset", "digits"], "use --model convnet or mlp"),
    "nothing to evaluate": (["evaluate", "nowhere"], "no distilled data at nowhere"),
    "nothing to show": (["show", "nowhere"], "no distilled data at nowhere"),
    "nothing to export": (["export", "nowhere", "--to", "npz"], "no distilled data at nowhere"),
    "an unknown format": (["export", "x", "--to", "mmt"], "did you mean mtt"),
    "nothing to import": (["import", "nowhere"], "nothing at nowhere"),
    "a file of code that is not there": (["distill", "--model", "nowhere.py:net"], "no file nowhere.py"),
    "nothing to resume": (["distill", "--resume"], "no run to resume"),
    "no path": (["evaluate"], "required: PATH"),
    "no value": (["distill", "--seed"], "expected one argument"),
    "no networks": (["evaluate", "x", "--nets", "0"], "at least 1"),
}


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("datadistill: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "a device that is not there" and torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    arguments, sentence = WRONG[name]
    assert main(arguments) == 2
    assert sentence in one_sentence(capsys)
    assert not Path("runs").exists(), "nothing is left behind"


def test_a_damaged_file_is_one_sentence(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = done / "distilled.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    for command in ("evaluate", "show"):
        assert main([command, "run"]) == 1
        assert "damaged" in one_sentence(capsys)


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_an_altered_dataset_is_one_sentence(
    by: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(str(resources.files("datadistill") / "data" / "mnist"), "data/mnist")
    target = Path("data/mnist/train-labels-idx1-ubyte.gz")
    content = bytearray(gzip.decompress(target.read_bytes()))
    content[-1] ^= 1
    target.write_bytes(gzip.compress(content))
    if by == "environment":
        monkeypatch.setenv("DATADISTILL_DATA", "data")
    assert main(["distill", *(["--data-root", "data"] if by == "flag" else [])]) == 1
    assert "SHA-256" in one_sentence(capsys)


def test_a_place_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(["distill", *QUICK, "--out", "file/run"]) == 1
    assert "file" in one_sentence(capsys)


def test_nothing_of_a_users_is_overwritten(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "distilled.safetensors").read_bytes()
    Path("project").mkdir()
    Path("project/README.md").write_text("mine")
    capsys.readouterr()
    for command in (["distill", *QUICK], ["baseline", "--dataset", "digits", "--model", "mlp"]):
        for folder in ("run", "project"):
            assert main([*command, "--out", folder]) == 2
            one_sentence(capsys)
    assert Path("project/README.md").read_text() == "mine"
    assert (done / "distilled.safetensors").read_bytes() == before


def test_its_own_model_by_name_keeps_its_own_weights(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", "run", "--models", "MLP,", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["weights"].startswith("fixed-init")


def test_a_full_disk_loses_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after the first look; with room again the run goes on to the same bits."""
    assert main(["distill", *QUICK, "--out", "whole"]) == 0
    capsys.readouterr()
    save, saved = RunFolder.save, []

    def fills_up(folder: RunFolder, step: int, checkpoint: object) -> None:
        if saved:
            raise dd.DatadistillError("could not write: No space left on device")
        saved.append(step)
        save(folder, step, checkpoint)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "save", fills_up)
        assert main(["distill", *QUICK, "--out", "run"]) == 1
    assert "No space left" in capsys.readouterr().err
    dd.load_distilled("run")
    assert main(["distill", "--resume", "--out", "run"]) == 0
    assert torch.equal(dd.load_distilled("whole").images, dd.load_distilled("run").images)


def test_a_folder_that_is_removed_while_judging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def removing(*given: Any, **named: Any) -> Any:
        shutil.rmtree("run")
        return dd.evaluate(*given, **named)

    monkeypatch.setattr("datadistill.report.card.evaluate", removing)
    assert main(["distill", *QUICK, "--out", "run"]) == 1
    assert "run was removed while it was written to" in capsys.readouterr().err
    assert not Path("run").exists()


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from datadistill.utils.interrupts import StopRequest
    from datadistill.utils.progress import Progress, Status

    monkeypatch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "requested", signal.SIGINT) or self)
    monkeypatch.setattr(Progress, "update", lambda self, status: isinstance(status, Status))
    assert main(["distill", *QUICK, "--out", "run"]) == 130
    assert "go on with: datadistill distill --resume --out run" in capsys.readouterr().err
    monkeypatch.undo()


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_a_network_that_does_not_fit_is_a_row_that_says_why(
    command: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "run", "--models", "mlp,lenet", "--nets", "2"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"mlp|%", out)
    assert re.search(r"lenet.*28x28", out)
    assert "lenet could not be judged" in err
    assert main([command, "run", "--models", "mlp,lenet", "--nets", "2", "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)["results"]
    assert good["accuracy"]["mean"] > 0.05
    assert (bad["model"], "28x28" in bad["error"]) == ("lenet", True)
    for networks in ("lenet", "lenet,vgg11"):
        assert main([command, "run", "--models", networks]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "28x28" in err


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [
        ([], 240),
        (["--seed", "3"], 240),
        (["--iterations", "50"], None),
        (["--dataset", "digits", "--model", "mlp"], None),
        (["--batch", "64"], None),
    ],
    ids=["as it is", "another seed", "so many steps", "other data", "another batch"],
)
def test_the_clock_ends_the_recipe_and_nothing_else(flags: list[str], seconds: int | None) -> None:
    parser, _ = make_parser("distill")
    _, config = distill._asked(parser.parse_args(["distill", *flags]))
    assert config.budget == seconds


@pytest.mark.parametrize(
    ("ipc", "steps"),
    [(None, 10), (1, 1), (4, 2), (20, 10), (0.5, 1), ("5,10,20", 5), ("proportional:30", 1)],
)
def test_a_default_follows_what_was_given(ipc: int | float | str | None, steps: int) -> None:
    assert steps_for(10, ipc) == steps


def test_a_default_never_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 1)  # that rates are tuned on: fewer are faster
    assert main(["baseline", "--dataset", "digits", "--model", "mlp", "--ipc", "1", "--nets", "1", "--out", "few"]) == 0
    assert len(dd.load_distilled("few").batches) == 1
    flags = ["--weights", "random-init", "--ipc", "1", "--iterations", "1", "--batch", "8", "--nets", "1"]
    assert main(["distill", "--dataset", "digits", "--model", "mlp", *flags, "--out", "own"]) == 0
    assert len(dd.load_distilled("own").batches) == 1
