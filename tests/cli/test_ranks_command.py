"""Commands that several ranks do together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import codes_of, start

import datadistill as dd
from datadistill.cli.main import main
from datadistill.utils.files import read_tensors
from datadistill.utils.workers import workers_in

MLP = ["--dataset", "digits", "--device", "cpu", "--model", "mlp"]
POOL = ["pretrain", *MLP, "--nets", "5", "--reserved", "2", "--epochs", "2"]
RUN = ["distill", *MLP, "--weights", "random-init", "--networks", "2", "--ipc", "1", "--batch", "64", "--epochs", "2"]
RUN += ["--outer-eval-every", "20", "--nets", "2"]


def printed(folder: Path) -> str:
    return "".join((folder / f"said-{rank}").read_text() for rank in range(3) if (folder / f"said-{rank}").exists())


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def do(count: int, words: list[str], folder: str) -> str:
    """What so many ranks say of a command, which each of them ends well."""
    assert in_ranks_of_program(count, words, Path(folder)) == [0] * count
    return printed(Path(folder))


def in_ranks_of_program(count: int, words: list[str], folder: Path) -> list[int]:
    folder.mkdir()
    return codes_of([start(rank, count, lambda: sys.exit(main(words)), folder) for rank in range(count)])


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_pretrain_makes_the_same_networks(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*POOL, "--out", "one.safetensors"]) == 0
    said = do(count, [*POOL, "--out", "several.safetensors"], "ranks")
    one, several = (read_tensors(Path(f"{name}.safetensors"))[0] for name in ("one", "several"))
    assert one.keys() == several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)
    assert said.count("networks  3 to distil with, 2 to judge by") == 1, "rank 0 alone speaks"
    assert not Path("several.safetensors.parts").exists()


@pytest.mark.slow
def test_trajectories_are_the_same() -> None:
    words = ["pretrain", "--trajectories", *MLP, "--nets", "3", "--epochs", "2", "--batch", "64"]
    assert main([*words, "--out", "one"]) == 0
    do(2, [*words, "--out", "several"], "ranks")
    assert dd.load_trajectories("one").digest == dd.load_trajectories("several").digest


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("protocol", ["own", pytest.param("dc", marks=pytest.mark.slow)])
def test_evaluate_prints_the_same(count: int, protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--iterations", "1", "--out", "run"]) == 0
    words = ["evaluate", "run", "--device", "cpu", "--nets", "4", "--json", "--protocol", protocol]
    words += ["--epochs", "20"] if protocol == "dc" else []
    capsys.readouterr()
    assert main(words) == 0
    one, several = json.loads(capsys.readouterr().out), json.loads(do(count, words, "ranks"))
    for document in (one, several):
        document["results"][0].pop("seconds")
    assert one == several


def tensors_of(folder: str) -> dict[str, torch.Tensor]:
    return dd.load_distilled(folder).tensors()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_any_rank_saves_and_ends_all(number: int) -> None:
    """And another number of ranks goes on, to the same bits."""
    words, folder = [*RUN, "--iterations", "40"], Path("ranks")
    folder.mkdir()
    processes = [start(rank, 2, lambda: sys.exit(main([*words, "--out", "run"])), folder) for rank in range(2)]
    until = time.monotonic() + 30
    while not Path("run/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(processes[1], number)
    assert codes_of(processes) == [128 + number] * 2
    assert printed(folder).count("datadistill: interrupted") == 1
    assert main([*words, "--out", "whole"]) == 0
    assert main([*words, "--out", "run", "--resume"]) == 0
    one, other = tensors_of("whole"), tensors_of("run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_wrong_is_said_once() -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    for words, why in ((["--out", "taken"], "taken is not empty"), (["--networks", "x"], "--networks: ")):
        folder = Path("ranks" + words[0])
        assert in_ranks_of_program(2, [*RUN, "--iterations", "2", *words], folder) == [2, 2]
        assert printed(folder).count("datadistill: ") == 1
        assert why in printed(folder)


def test_what_is_not_shared_one_rank_does() -> None:
    assert do(2, ["list", "methods"], "ranks").count("rat_bptt") == 1


def test_a_result_says_how_many_ranks_made_it() -> None:
    do(2, [*RUN, "--iterations", "1", "--out", "run"], "ranks")
    assert dd.load_distilled("run").provenance.cost["ranks"] == 2


@pytest.mark.parametrize(
    ("words", "count"),
    [("distill", 1), ("distill --workers 4", 4), ("distill --workers=2 --ipc 1", 2), ("distill --workers x", 1)],
)
def test_the_number_of_workers(words: str, count: int) -> None:
    assert workers_in(words.split()) == count


@pytest.mark.slow
def test_workers_need_nobody_to_start_them() -> None:
    command = [sys.executable, "-m", "datadistill", *POOL, "--out"]
    for words in (["one.safetensors"], ["two.safetensors", "--workers", "2"]):
        assert subprocess.run([*command, *words], capture_output=True).returncode == 0
    one, two = (read_tensors(Path(f"{name}.safetensors"))[0] for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_torchrun(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "datadistill"]
    done = subprocess.run([*command, *RUN, "--iterations", "3", "--out", "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder  run") == 1
    refused = subprocess.run([*command, *RUN, "--workers", "2"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert refused.stderr.count("--workers starts processes, as torchrun and srun do") == 1


TIMED = ("seconds", "making_seconds", "path")


def timeless(document: Any) -> Any:
    """A document without what two equal commands differ in."""
    if isinstance(document, list):
        return [timeless(entry) for entry in document]
    if isinstance(document, dict):
        return {name: timeless(entry) for name, entry in document.items() if name not in TIMED}
    return document


JUDGES = {
    "baseline": ["baseline", *MLP, "--how", "random", "--weights", "random-init", "--nets", "4", "--sets", "2"],
    "compare": ["compare", "run", "--device", "cpu", "--baselines", "random", "--nets", "3"],
    "rank": ["rank", "run", "--device", "cpu", "--nets", "2", "--sets", "2", "--epochs", "5", "--full-epochs", "1"],
    "audit": ["audit", "run", "--device", "cpu", "--nets", "2", "--train-epochs", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGES)
def test_other_judges_print_the_same(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datadistill.baselines.base._NETWORKS", 4)  # that rates are tuned on: fewer are faster
    assert main([*RUN, "--iterations", "1", "--out", "run"]) == 0
    words = [*JUDGES[name], "--json"]
    capsys.readouterr()
    codes = main([*words, *(["--out", "one"] if name == "baseline" else [])])
    one = capsys.readouterr().out
    folder = Path("ranks")
    words += ["--out", "several"] if name == "baseline" else []
    assert in_ranks_of_program(3, words, folder) == [codes] * 3
    several = "".join((folder / f"said-{rank}").read_text() for rank in range(3))
    assert timeless(json.loads(one)) == timeless(json.loads(several[several.index("{") : several.rindex("}") + 1]))


@pytest.mark.slow
def test_a_chosen_method_is_the_same_on_all_ranks() -> None:
    """What is timed, and what is left of the time, are those of rank 0."""
    words = ["distill", "--dataset", "digits", "--device", "cpu", "--ipc", "1", "--budget", "5s", "--nets", "2"]
    assert do(2, [*words, "--out", "run"], "ranks").count("run folder  run") == 1
    assert dd.load_distilled("run").provenance.cost["ranks"] == 2


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *MLP, "--method", "dd", "--ipc", "1", "--steps", "1", "--epochs", "2", *words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_plan_says_what_a_rank_does(capsys: pytest.CaptureFixture[str]) -> None:
    several = ["--weights", "random-init", "--networks", "8"]
    alone, ranks = planned(capsys, *several), planned(capsys, *several, "--ranks", "4")
    assert [alone[name] for name in ("networks", "networks_per_rank", "exchanged_bytes")] == [8, 8, 0]
    digit = 8 * 8 * 4
    assert [ranks[name] for name in ("networks", "networks_per_rank", "exchanged_bytes")] == [8, 2, 8 * 10 * digit]
    one = planned(capsys, "--weights", "fixed-init", "--chunk", "32", "--batch", "128", "--ranks", "4")
    assert one["exchanged_bytes"] == 4 * one["weight_bytes"], "four pieces, each with a gradient"


def test_plan_says_where_ranks_are_no_gain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *MLP, "--method", "krr", "--ipc", "1", "--ranks", "2"]) == 0
    assert "ranks    all do the same, in the same time as one" in capsys.readouterr().out


@pytest.mark.slow
def test_variables_of_srun() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    command = [sys.executable, "-m", "datadistill", *RUN, "--iterations", "2", "--out", "run"]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_JOB_ID": str(os.getpid())},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    printed = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert ["run folder  run" in text for text in printed] == [True, False]
