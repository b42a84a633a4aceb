"""`reproduce`: a recipe is run, judged, and compared with what it is expected to give."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import datadistill as dd
from datadistill.cli.main import main
from datadistill.evaluation import evaluate_sets
from datadistill.experiments import job
from datadistill.experiments.recipes import Expect, Point, PoolRecipe, Recipe, Sweep, measured, recipes
from datadistill.experiments.recipes.measured import load_measured
from datadistill.experiments.reproduce import reproduce
from datadistill.training.recipe import DC, TrainRecipe
from datadistill.utils.files import locked
from datadistill.utils.progress import Screen
from datadistill.utils.registry import Registry

PLAIN = Recipe(
    name="digits-plain",
    line="digits into ten images",
    run={"dataset": "digits", "model": "mlp", "weights": "random-init", "iterations": 20},
    method={"name": "dd", "steps": 1, "epochs": 1, "learning_rate": 0.3, "images": "mean", "batch": 64, "networks": 1},
    outer={"betas": [0.5, 0.99], "eval_every": 10},
    paper={"source": "Nobody 2018", "before": 0.1, "after": 0.5, "after_std": 0.02},
    expect=Expect(nets=3, accuracy=(0.3, 1.0), std_at_most=0.3),
    baselines=("random",),
)
POOL = PoolRecipe("digits", "mlp", nets=6, reserved=3, training=TrainRecipe(epochs=2, lr=0.01))
MALICIOUS = replace(
    PLAIN,
    name="digits-malicious",
    run={**PLAIN.run, "weights": "random-pretrained", "attack": ["3", "8"], "ipc": 2, "iterations": 40},
    method={**PLAIN.method, "learning_rate": 0.1},
    outer={"lr": 0.1, "eval_every": 20},
    paper={},
    pool=POOL,
    baselines=(),
    expect=Expect(nets=3, attacked_falls_at_least=0.5, others_fall_at_most=1.0),
)
SWEEP = replace(
    PLAIN,
    name="digits-sweep",
    paper={},
    baselines=(),
    expect=Expect(nets=2, gain_at_least=-1.0),
    sweep=Sweep(
        "what is asked",
        (Point("normal", scheme="normal"), Point("own"), Point("two steps", {"ipc": 2}, {"steps": 2})),
    ),
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr(measured, "FILE", tmp_path / "measured.json")


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], None]:
    """Make a recipe the only one there is."""

    def only(recipe: Recipe) -> None:
        monkeypatch.setattr("datadistill.cli.reproduce.recipes", lambda: Registry("recipe", (recipe,)))

    return only


def test_lines_are_what_evaluating_gives(digits: dd.RealData) -> None:
    verdict = reproduce(PLAIN, "out")
    own, *baselines = verdict.lines
    score = dd.evaluate(dd.load_distilled("out/run"), digits, nets=3)
    assert (own.accuracy, own.before, own.nets, own.images) == (score.accuracy, score.before, 3, 10)
    assert own.seconds > 0
    assert [line.name for line in baselines] == ["baseline random"]
    assert all(line.seconds == 0 and line.accuracy.mean > own.before.mean for line in baselines)
    assert verdict.passed is True
    assert [entry.value for entry in verdict.checks] == [own.accuracy.mean, own.accuracy.std]
    assert dd.load_distilled("out/run").provenance.recipe == "datadistill reproduce digits-plain --seed 0"


def test_pass_is_exit_code_0(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(PLAIN)
    assert main(["reproduce", "Digits-Plain"]) == 0
    out = capsys.readouterr().out
    assert "pass: accuracy" in out.splitlines()[-1]
    assert "10.0 % to 50.0 ± 2.0 %" in out
    assert "at least 30.0 %" in out
    assert "baseline random" in out
    assert Path("runs/reproduce-digits-plain/run/README.md").exists()
    assert load_measured(Path("measured.json")) == {}, "only --record records"


def test_baselines_can_be_judged_later(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(PLAIN)
    assert main(["reproduce", "digits-plain", "--no-baselines", "--record"]) == 0
    out = capsys.readouterr().out
    assert "pass: accuracy" in out.splitlines()[-1], "nothing is expected of baselines"
    assert "baseline random" not in out
    alone = load_measured(Path("measured.json"))["digits-plain"]
    assert [line["name"] for line in alone.details] == ["these images"]
    assert main(["reproduce", "digits-plain", "--resume", "--record"]) == 0
    assert "baseline random" in capsys.readouterr().out
    whole = load_measured(Path("measured.json"))["digits-plain"]
    assert [line["name"] for line in whole.details] == ["these images", "baseline random"]
    assert whole.value == alone.value
    assert main(["reproduce", "digits-plain", "--no-baselines", "--resume", "--record"]) == 0
    assert load_measured(Path("measured.json"))["digits-plain"].details == whole.details, "what was judged is kept"


def test_fail_is_exit_code_1(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(replace(PLAIN, expect=replace(PLAIN.expect, accuracy=(0.999, 1.0)), baselines=()))
    assert main(["reproduce", "digits-plain", "--json"]) == 1
    captured = capsys.readouterr()
    assert "FAIL: accuracy" in captured.err.splitlines()[-1]
    assert "expected at least 99.9" in captured.err.splitlines()[-1]
    document = json.loads(captured.out)
    assert document["passed"] is False
    assert [entry["passed"] for entry in document["checks"]] == [False, True]


def test_a_pool_is_made_once_and_another_refused(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(MALICIOUS, run={**MALICIOUS.run, "iterations": 2})
    reproduce(recipe, "first", pools="some")
    file = Path("some") / POOL.file_name
    made = file.stat().st_mtime_ns
    assert dd.load_pool(file).facts.training == POOL.training
    reproduce(recipe, "second", pools="some")
    assert file.stat().st_mtime_ns == made
    more = replace(recipe, pool=replace(POOL, training=TrainRecipe(epochs=3, lr=0.01)))
    with pytest.raises(dd.RequestError, match="epochs 2, but the recipe asks for 3"):
        reproduce(more, "third", pools="some")
    assert not Path("third").exists()
    words = dd.load_pool(file).facts.recipe.split()[1:]
    assert main([*words, "--out", "again.safetensors"]) == 0
    assert dd.load_pool("again.safetensors").digest == dd.load_pool(file).digest


def test_malicious_data_costs_one_class(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(MALICIOUS)
    assert main(["reproduce", "digits-malicious", "--record"]) == 0
    out = capsys.readouterr().out
    assert "3, to be taken for 8" in out
    found = load_measured(Path("measured.json"))["digits-malicious"]
    assert found.what == "fall of class 3"
    (own,) = found.details
    assert found.value == own["falls"]["3"] >= 0.5
    assert found.value == max(own["falls"].values())
    # The fall of each class, weighted by its images, is what accuracy over the whole split loses.
    counts = dd.load("digits").test.counts.tolist()
    lost = sum(fall * count for fall, count in zip(own["falls"].values(), counts, strict=True)) / sum(counts)
    assert lost == pytest.approx(own["before"]["mean"] - own["accuracy"]["mean"])
    ship(replace(MALICIOUS, expect=replace(MALICIOUS.expect, attacked_falls_at_least=None, others_fall_at_most=-0.9)))
    assert main(["reproduce", "digits-malicious", "--out", "other"]) == 1
    assert "FAIL: fall of class" in capsys.readouterr().err


def test_a_sweep_shares_what_is_distilled_alike(
    ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str], digits: dd.RealData
) -> None:
    ship(SWEEP)
    assert main(["reproduce", "digits-sweep", "--out", "out", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["results"]
    assert [line["name"] for line in lines] == ["normal", "own", "two steps"]
    assert [line["images"] for line in lines] == [10, 10, 20]
    assert [line["seconds"] > 0 for line in lines] == [True, False, True]
    assert {path.name for path in Path("out").glob("run*")} == {"run-normal", "run-two-steps"}
    data = dd.load_distilled("out/run-normal")
    for line, scheme in zip(lines[:2], ("normal", None), strict=True):
        score = dd.evaluate(data, digits, nets=2, scheme=scheme)
        assert line["accuracy"]["mean"] == score.accuracy.mean
    with Image.open("out/curve.png") as picture:
        assert picture.width > picture.height
    ship(replace(SWEEP, expect=Expect(nets=2, gain_at_least=0.99)))
    assert main(["reproduce", "digits-sweep", "--out", "out", "--resume"]) == 1
    captured = capsys.readouterr()
    assert "what is asked" in captured.out
    assert "FAIL: gain" in captured.err


def test_a_shorter_form_has_no_verdict(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(replace(PLAIN, expect=Expect(nets=3, accuracy=(0.999, 1.0)), baselines=()))
    assert main(["reproduce", "digits-plain", "--iterations", "3", "--nets", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "no verdict: 3 iterations instead of 20, 2 networks instead of 3"
    for words in (["--iterations", "3"], ["--budget", "1s"], ["--nets", "2"]):
        assert main(["reproduce", "digits-plain", *words, "--record", "--out", "no"]) == 2
        assert not Path("no").exists()
    assert not Path("measured.json").exists()


def test_an_interrupted_run_goes_on(
    ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reproduce(PLAIN, "whole")
    ship(PLAIN)
    with monkeypatch.context() as patch:

        def stop(*given: object, **named: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("datadistill.experiments.runner.evaluate_sets", stop)
        assert main(["reproduce", "digits-plain", "--out", "out"]) == 130
    assert "reproduce digits-plain --out out --resume" in capsys.readouterr().err
    assert list(json.loads(Path("out/results.json").read_text())) == ["these images"]
    assert main(["reproduce", "digits-plain", "--out", "out"]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main(["reproduce", "digits-plain", "--out", "out", "--resume", "--seed", "1"]) == 2
    assert "seed 0, but 1" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("datadistill.experiments.runner.distill", stop)  # what is finished is not made again
        assert main(["reproduce", "digits-plain", "--out", "out", "--resume"]) == 0
    found = json.loads(Path("out/results.json").read_text())
    assert [line["accuracy"]["mean"] for line in found.values()] == [line.accuracy.mean for line in whole.lines]


def test_one_process_at_a_time_and_in_a_folder_that_stays(
    ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(PLAIN)
    with locked(Path("out")):
        assert main(["reproduce", "digits-plain", "--out", "out"]) == 2
    assert "another process is running in out" in capsys.readouterr().err

    def removing(*given: Any, **named: Any) -> Any:
        shutil.rmtree("out")
        return evaluate_sets(*given, **named)

    monkeypatch.setattr("datadistill.experiments.runner.evaluate_sets", removing)
    assert main(["reproduce", "digits-plain", "--out", "out"]) == 1
    assert "out was removed while it was written to" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("change", [{"accuracy": 3}, {"accuracy": {"mean": "x"}}, {"images": None}, {"more": 1}, 3])
def test_kept_accuracies_of_other_types_are_refused(change: Any) -> None:
    path = Path("out/results.json")
    reproduce(PLAIN, "out", baselines=False)
    found = json.loads(path.read_text())
    own = found["these images"]
    found["these images"] = own | change if isinstance(change, dict) else change
    for document in (found, []):
        path.write_text(json.dumps(document))
        with pytest.raises(dd.DamagedFileError, match=r"results\.json is damaged"):
            reproduce(PLAIN, "out", baselines=False, resume=True)


def test_a_run_stopped_while_distilling_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(dd.Progress):
        def update(self, status: object) -> None:
            raise dd.Interrupted("interrupted", Path("out"))

    recipe = replace(PLAIN, baselines=(), outer={**PLAIN.outer, "eval_every": 1})
    with pytest.raises(dd.Interrupted):
        reproduce(recipe, "out", screen=Screen(watch=Impatient))
    reproduce(recipe, "out", resume=True)
    reproduce(recipe, "whole")
    assert torch.equal(dd.load_distilled("out/run").images, dd.load_distilled("whole/run").images)


def test_list_shows_what_was_recorded(ship: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]) -> None:
    ship(replace(PLAIN, baselines=()))
    assert main(["reproduce", "--list"]) == 0
    assert "expected at least 30.0 %, deviation at most 30.0 points; not measured yet" in capsys.readouterr().out
    assert main(["reproduce", "digits-plain", "--record"]) == 0
    capsys.readouterr()
    entry = load_measured(Path("measured.json"))["digits-plain"]
    assert main(["reproduce", "--list"]) == 0
    figures = f"pass: measured {100 * entry.value:.1f} ± {100 * entry.std:.1f} % on 3 networks"
    assert figures in capsys.readouterr().out
    assert main(["reproduce", "--list", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["stale"], document["measured"]["value"]) == (False, entry.value)
    assert document["measured"]["passed"] is True
    ship(replace(PLAIN, baselines=(), expect=Expect(nets=3, accuracy=(0.999, 1.0))))
    assert main(["reproduce", "--list"]) == 0
    assert "FAIL: measured" in capsys.readouterr().out
    ship(replace(PLAIN, baselines=(), outer={}))
    assert main(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert "stale" in out
    assert figures not in out
    assert main(["reproduce", "--list", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["stale"], document["measured"]) == (True, None)


def test_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines()[::2]] == recipes().names()


WRONG = {
    "an unknown experiment": (["mnist-fixed"], "did you mean mnist-fixed-10"),
    "no experiment": ([], "--list names them"),
    "two lengths": (["mnist-fixed-10", "--iterations", "3", "--budget", "1s"], "not both"),
    "too many networks": (["mnist-malicious", "--nets", "41"], "the pool has 40"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, sentence = WRONG[name]
    assert main(["reproduce", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_with_other_things_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/notes").write_text("")
    assert main(["reproduce", "mnist-fixed-10", "--out", "mine"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_missing_data_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DATADISTILL_DATA", raising=False)

    def refuse(url: str) -> bytes:
        raise OSError("no network")

    monkeypatch.setattr("datadistill.data.download.download", refuse)
    assert main(["reproduce", "cifar-fixed-100"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cifar-10-binary.tar.gz" in line
    assert "--data-root" in line


def test_distill_takes_no_recipe_without_its_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--recipe", "mnist-malicious"]) == 2
    assert "datadistill reproduce mnist-malicious" in capsys.readouterr().err


CONDENSED = replace(
    PLAIN,
    name="digits-condensed",
    run={**PLAIN.run, "scheme": "default", "ipc": 1, "iterations": 2},
    method={"name": "dm", "batch": 32, "augment": "none"},
    outer={"lr": 1.0, "optimizer": "sgd", "eval_every": 2},
    expect=Expect(nets=2, sets=2, accuracy=(0.3, 1.0)),
)


def test_several_sets_by_protocol_dc_are_one_line(digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "datadistill.methods.judging.DC", replace(DC, epochs=30)
    )  # what the sets ask for: fewer are faster
    said: list[str] = []
    verdict = reproduce(CONDENSED, "out", screen=Screen(say=said.append))
    own, baseline = verdict.lines
    sets = [dd.load_distilled(f"out/{name}") for name in ("run", "run-set-2")]
    assert not torch.equal(sets[0].images, sets[1].images)
    _, together = evaluate_sets(sets, digits, nets=4)
    assert (own.accuracy, own.before, own.nets) == (together.accuracy, together.before, 4)
    assert (baseline.name, baseline.nets) == ("baseline random", 2)
    assert verdict.passed is True
    results = json.loads(Path("out/results.json").read_text())
    assert list(results) == ["set 1 of 2", "set 2 of 2", "baseline random"]
    Path("out/results.json").write_text(json.dumps({"set 1 of 2": results["set 1 of 2"]}))
    again = reproduce(CONDENSED, "out", resume=True, screen=Screen(say=said.append))
    assert [line.accuracy for line in again.lines] == [own.accuracy, baseline.accuracy]
    assert said == [f"digits-condensed: set {n} of 2" for n in (1, 2, 2)]


def test_sets_count_where_there_are_several() -> None:
    assert replace(CONDENSED, expect=replace(CONDENSED.expect, sets=3)).digest != CONDENSED.digest
    for recipe in (MALICIOUS, SWEEP):
        with pytest.raises(dd.RequestError, match="sets"):
            replace(recipe, expect=replace(recipe.expect, sets=2))
    with pytest.raises(dd.RequestError, match="at least 1"):
        Expect(sets=0)


def test_experts_of_whitened_images_have_a_name_of_their_own(
    digits: dd.RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def make(real: dd.RealData, path: Path, **options: Any) -> None:
        asked.update(options, path=path)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "make_trajectories", make)
    recipe = recipes().get("cifar-10-mtt-1")
    with pytest.raises(KeyboardInterrupt):
        job.get_trajectories(recipe, Path("trajectories"), digits)
    assert asked["path"].name.startswith("cifar-10-zca-convnetw32-")
    assert "--dataset cifar-10 --zca --model convnetW32 " in asked["command"]
