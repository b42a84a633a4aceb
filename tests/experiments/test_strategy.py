"""Strategies: what is chosen for some data, number of images and time, and that it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import datadistill as dd
from datadistill.cli.main import main
from datadistill.distillation.config import RunConfig
from datadistill.distillation.run_folder import RunFolder
from datadistill.experiments import attempts, augmentation, strategy
from datadistill.experiments.strategy import choose, config_to_start_from
from datadistill.utils.errors import DamagedFileError, Interrupted, RequestError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains as fast as it needs to, and does not try augmentations."""
    monkeypatch.setattr(strategy, "_seconds_of_training", lambda config, real, model: 1e-5)
    monkeypatch.setattr(strategy, "LEAST_EPOCHS", 10_000)


def asked(**options: object) -> RunConfig:
    return config_to_start_from().changed({"run": {"dataset": "digits", "ipc": 1, **options}})


@pytest.mark.usefixtures("quick")
def test_time_decides_whether_there_are_experts(digits: dd.RealData) -> None:
    short, long = (choose(asked(budget=budget), digits) for budget in ("1s", "10m"))
    assert (short.first.method.name, short.first.budget) == ("rat_bptt", "1s")
    assert (short.second, short.experts) == (None, None)
    assert (long.first.method.name, long.first.budget) == ("rat_bptt", strategy.UNROLLED_SHARE * 600)
    assert "no time to try augmentations" in long.why
    assert long.second is not None
    assert long.experts is not None
    assert long.second.method.name == "mtt"
    assert long.experts.count == strategy.EXPERTS[-1]
    middle = choose(asked(budget="15s"), digits).experts
    assert middle is not None
    assert 3 <= middle.count < long.experts.count
    assert "12 experts" in long.why
    assert "rat_bptt on convnet: trajectories of experts would take too long" in short.why
    shares = (strategy.UNROLLED_SHARE, strategy.EXPERTS_SHARE, strategy.TRIED_SHARE, strategy.second_share(True))
    assert sum(shares) <= 1


@pytest.mark.usefixtures("quick")
def test_few_images_are_made_through_windows_of_narrow_training(digits: dd.RealData) -> None:
    colour = replace(digits, train=replace(digits.train, images=digits.train.images.expand(-1, 3, -1, -1)))
    for real, augment in ((digits, "scale_rotate"), (colour, "flip_rotate")):
        method = choose(asked(budget="1m"), real).first.method
        assert isinstance(method, dd.methods.RaTBPTT)
        assert (method.augment, method.matched_on, method.labels) == (augment, "convnetw32", "soft")
        assert method.networks == torch.get_num_threads()
    assert choose(asked(budget="1m", model="mlp"), digits).first.method.name == "dsa"
    assert choose(asked(budget="1m", ipc=3), digits).first.method.name == "dm"


@pytest.mark.usefixtures("quick")
def test_experts_take_their_share_and_go_as_far_as_students_start(digits: dd.RealData) -> None:
    for ipc, starts in ((1, 3), (10, 8)):
        chosen = choose(asked(ipc=ipc, budget="60s"), digits)
        assert chosen.second is not None
        experts, method = chosen.experts, chosen.second.method
        assert experts is not None
        assert isinstance(method, dd.methods.MTT)
        assert method.labels == ("hard" if ipc == 1 else "soft")
        assert experts.seconds <= strategy.EXPERTS_SHARE * 60
        assert experts.training.epochs == starts * method.expert_epochs
        assert method.max_start_epoch + method.expert_epochs == experts.training.epochs
        walk = -(-len(digits.train.images) // int(experts.training.batch))
        assert 60 <= walk * method.expert_epochs <= 120


def test_training_is_timed(digits: dd.RealData) -> None:
    wide, narrow = (strategy._seconds_of_training(asked(), digits, model) for model in ("convnetD1W64", "convnetD1W8"))
    assert wide > narrow > 0


@pytest.mark.usefixtures("quick")
def test_the_network_goes_by_the_images_and_grey_ones_are_not_mirrored(digits: dd.RealData) -> None:
    chosen = choose(asked(budget="1m"), digits).second
    assert chosen is not None
    assert chosen.model == "convnet"
    assert isinstance(chosen.method, dd.methods.MTT)
    assert chosen.method.matched_on == "convnetw32"
    wide, slow = (choose(asked(budget=budget), digits) for budget in ("10m", "2s"))
    assert (wide.first.model, slow.first.model) == ("convnet", "convnet")
    assert (wide.nets, slow.nets) == (20, 10)
    assert choose(asked(budget="2s", ipc=10), digits).first.model == "convnetw16"
    assert "flip" not in chosen.method.augment
    narrow = [choose(asked(budget="1m", model=f"ConvNetW{width}IN"), digits).second for width in (64, 16)]
    assert [config and config.method.matched_on for config in narrow] == ["convnetinw32", "convnetw16in"]  # type: ignore[union-attr]
    own = choose(asked(budget="1m", model="mlp"), digits).second
    assert own is not None
    assert isinstance(own.method, dd.methods.MTT)
    assert own.method.matched_on == "mlp"


@pytest.mark.usefixtures("quick")
def test_more_images_begin_with_mean_features_and_ones_own_network_has_no_experts(digits: dd.RealData) -> None:
    assert choose(asked(ipc=10, iterations=3, budget=None), digits).first.method.name == "dm"
    own = choose(replace(asked(budget="10m"), model=Network), digits)
    assert own.experts is None
    assert isinstance(own.first.method, dd.methods.DC)
    assert own.first.method.matched_on == "same"


class Network(torch.nn.Sequential):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def test_other_weights_are_refused(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="name a --method for anything else"):
        choose(asked(weights="fixed-init"), digits)


@pytest.fixture
def two_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that makes two attempts in some seconds, the first one through windows of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datadistill.cli.main.keep_freed_memory", lambda: True)
    monkeypatch.setattr(strategy, "_seconds_of_training", lambda config, real, model: 1e-8)
    monkeypatch.setattr(strategy, "LEAST_EPOCHS", 10_000)
    monkeypatch.setattr(strategy, "EXPERTS", range(2, 3))
    monkeypatch.setattr(strategy, "_WAY", 16)
    for module in ("methods.judging", "experiments.augmentation", "experiments.attempts"):
        monkeypatch.setattr(f"datadistill.{module}.EPOCHS_AUGMENTED", 60)
    return ["distill", "--dataset", "digits", "--model", "convnetD1W8", "--ipc", "1", "--nets", "1", "--budget", "2s"]


def test_the_better_attempt_is_the_result(two_experts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*two_experts, "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert "taking rat_bptt on convnetD1W8 for 40% of the time (no time to try augmentations), then mtt with 2" in err
    assert "trying augmentations" not in err
    found = {}
    for name in ("first", "second"):
        data = dd.load_distilled(Path("run", name))
        assert "--ipc 1" in data.provenance.recipe
        found[name] = next(score["accuracy"] for score in data.provenance.scores if score["split"] == "held_out")
        assert data.provenance.method["name"] == {"first": "rat_bptt", "second": "mtt"}[name]
    best = "first" if found["first"] > found["second"] else "second"
    assert torch.equal(dd.load_distilled("run").images, dd.load_distilled(Path("run", best)).images)
    assert "run folder  run\n" in out
    assert {"report.html", "sheet.png", "README.md"} <= {path.name for path in Path("run").iterdir()}
    assert main(["distill", "--resume", "--out", "run", "--nets", "1"]) == 0
    assert main([*two_experts, "--out", "run"]) == 2
    assert "holds a run already: add --resume" in capsys.readouterr().err
    Path("run", "config.json").unlink()  # as if it had been killed before the end
    assert main([*two_experts, "--out", "run"]) == 0
    assert torch.equal(dd.load_distilled("run").images, dd.load_distilled(Path("run", best)).images)


@pytest.fixture
def tries(two_experts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of `two_experts`, which tries two augmentations for two epochs."""
    monkeypatch.setattr(strategy, "LEAST_EPOCHS", 1)
    monkeypatch.setattr(strategy, "epochs_within", lambda *given: 2)
    monkeypatch.setattr(augmentation, "GREY", ("crop", "warp10"))
    return [word.replace("convnetD1W8", "mlp") for word in two_experts]


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_each_attempt_is_trained_with_the_best_augmentation(
    tries: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it is made under, too, after the first one; and what was tried is not tried again."""
    tried = list[str]()

    def pretended(network: Any, distilled: dd.DistilledData, real: Any, recipes: Any, **how: Any) -> dict[str, float]:
        augmentation.try_recipes(network, distilled, real, recipes, **how)
        name = str(distilled.provenance.method["name"])
        if len(recipes) == 1:  # longer does harm
            assert recipes["warp10"].epochs == 60
            return {"warp10": 0.25}
        tried.append(name)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return {"crop": 0.25, "warp10": 0.75 if name == "mtt" else 0.5}

    monkeypatch.setattr(attempts, "try_recipes", pretended)
    assert main([*tries, "--out", "run"]) == 130
    assert tried == ["dsa", "dsa", "mtt"]
    said = (
        "dsa: held out after 2 epochs 25.0% with crop, 50.0% with warp10, and with it for 60 epochs 25.0%; "
        "networks are trained with the best, for 2 epochs."
    )
    err = capsys.readouterr().err
    assert said in err
    assert "go on with: datadistill distill --dataset digits" in err
    assert "--out run" in err
    first, again = (dd.load_distilled(Path("run", name)).provenance for name in ("first", "again"))
    assert [(made.inner["augment"], made.inner["epochs"]) for made in (first, again)] == [("warp10", 2)] * 2
    assert [made.method["augment"] for made in (first, again)] == ["crop", "warp10"]
    held_out = [score["accuracy"] for score in first.scores if score["split"] == "held_out"]
    assert held_out == [0.5], "as those were who were trained so"
    assert dd.load_distilled("run").provenance.inner["augment"] == "warp10"
    assert "config.json" not in names(Path("run")), "it is not done"
    before = {name: Path("run", name, "metrics.jsonl").read_bytes() for name in ("first", "again", "second")}
    assert main([*tries, "--out", "run"]) == 0
    assert tried == ["dsa", "dsa", "mtt", "mtt"]
    assert before == {name: Path("run", name, "metrics.jsonl").read_bytes() for name in before}
    for _ in range(2):
        made = dd.load_distilled("run").provenance
        assert (made.method["name"], made.inner["augment"], made.inner["epochs"]) == ("mtt", "warp10", 2)
        assert main(["distill", "--resume", "--out", "run", "--nets", "1"]) == 0


def test_windows_of_training_are_judged_on_the_networks_of_the_other_attempt(
    tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one recipe of their result, and made once."""
    seen = list[tuple[str, list[int]]]()

    def watched(network: Any, distilled: dd.DistilledData, real: dd.RealData, recipes: Any, **how: Any) -> Any:
        seen.append((str(distilled.provenance.method["name"]), [recipe.steps for recipe in recipes.values()]))
        return augmentation.try_recipes(network, distilled, real, recipes, **how)

    monkeypatch.setattr(attempts, "try_recipes", watched)
    assert main([*(word.replace("mlp", "convnetD1W8") for word in tries), "--out", "run"]) == 0
    assert seen == [("rat_bptt", [100]), ("mtt", [0, 0]), ("mtt", [0])]
    assert not Path("run", "again").exists()


def test_where_experts_take_too_long_the_same_method_has_the_rest_of_the_time(
    tries: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(strategy, "EXPERTS", range(10**9, 10**9 + 1))
    assert main([*tries, "--out", "run"]) == 0
    assert "dsa on mlp, twice: quickly, and then for the rest of the time" in capsys.readouterr().err
    first, again = (RunFolder(Path("run", name)).settings().asked["budget"] for name in ("first", "again"))
    assert first == pytest.approx(2 * strategy.FIRST_SHARE)
    assert first < again <= 2 - first
    assert strategy.SECOND_SHARE > strategy.EXPERTS_SHARE, "trajectories have the largest share"
    assert not Path("run", "second").exists()


@pytest.mark.usefixtures("quick")
def test_a_strategy_goes_on_with_what_it_was_begun_with(digits: dd.RealData, tmp_path: Path) -> None:
    begun = tmp_path / "strategy.json"
    begun.write_text('{"model": "convnetw16", "experts": 5, "epochs": 0}')
    again = choose(asked(budget="10m", ipc=10), digits, tmp_path)
    assert again.first.model == "convnetw16"
    assert again.experts is not None
    assert again.experts.count == 5
    assert again.epochs == 0
    begun.write_text('{"model": "net.py:make", "experts": 5, "epochs": 0}')
    with pytest.raises(RequestError, match=r"net\.py:make, which is code: say --model net\.py:make"):
        choose(asked(budget="10m", ipc=10), digits, tmp_path)
    for experts, tried in (('"many"', "{}"), ("5", '{"first": {"accuracies": {"wrap10": 0.5}}}')):
        begun.write_text(f'{{"model": "convnetw16", "experts": {experts}, "epochs": 0, "tried": {tried}}}')
        with pytest.raises(DamagedFileError, match=r"strategy\.json is not what a strategy was begun with"):
            choose(asked(budget="10m", ipc=10), digits, tmp_path)


def test_nothing_is_written_through_a_link_or_over_a_run_inside(
    two_experts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("theirs").mkdir()
    Path("elsewhere").mkdir()
    Path("theirs", "checkpoint").symlink_to(tmp_path / "elsewhere")
    Path("theirs", "strategy.json").write_text('{"model": "convnetD1W8", "experts": 2, "epochs": 0}')
    assert main([*two_experts, "--out", "theirs"]) == 2
    assert "is a link, and nothing is written or deleted through one" in capsys.readouterr().err
    assert list(Path("elsewhere").iterdir()) == []
    Path("mine", "first").mkdir(parents=True)
    Path("mine", "README.md").write_text("mine")
    Path("mine", "first", "config.json").write_text("{}")
    assert main([*two_experts, "--out", "mine"]) == 2
    assert "mine is not empty" in capsys.readouterr().err
    assert Path("mine", "README.md").read_text() == "mine"


def test_an_interrupted_strategy_goes_on(
    two_experts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, folder = attempts.make_trajectories, Path("run")

    def interrupted(*given: object, **options: object) -> None:
        raise Interrupted("interrupted", folder / "experts")

    monkeypatch.setattr(attempts, "make_trajectories", interrupted)
    assert main([*two_experts, "--out", "run"]) == 130
    said = capsys.readouterr().err
    assert "--ipc 1" in said.partition("go on with: ")[2]
    assert "--out run" in said
    first = dd.load_distilled("run/first").images
    assert torch.equal(dd.load_distilled("run").images, first)
    monkeypatch.setattr(attempts, "make_trajectories", made)
    (folder / "experts").mkdir()
    assert main([*two_experts, "--out", "run"]) == 0
    assert torch.equal(dd.load_distilled("run/first").images, first)


def test_an_interrupted_strategy_goes_on_with_fewer_cores(
    two_experts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks are those that it was begun with."""
    made, threads = attempts.make_trajectories, torch.get_num_threads()

    def interrupted(*given: object, **options: object) -> None:
        raise Interrupted("interrupted", Path("run", "experts"))

    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(attempts, "make_trajectories", interrupted)
        assert main([*two_experts, "--out", "run"]) == 130
        torch.set_num_threads(1)
        monkeypatch.setattr(attempts, "make_trajectories", made)
        assert main([*two_experts, "--out", "run"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert RunFolder(Path("run", "first")).settings().asked["method"]["networks"] == 2


def test_a_folder_with_something_else_is_left_alone(two_experts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine", "distilled.safetensors").write_bytes(b"mine")
    assert main([*two_experts, "--out", "mine"]) == 2
    assert "mine is not empty: give a new folder with --out" in capsys.readouterr().err
    assert Path("mine", "distilled.safetensors").read_bytes() == b"mine"


def test_flags_of_methods_need_one(two_experts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*two_experts, "--method", "auto", "--steps", "3", "--out", "other"]) == 2
    assert "--steps goes with a method: name one with --method, not auto" in capsys.readouterr().err
    assert main([*two_experts, "--method", "auto", "--outer-lr", "3", "--out", "other"]) == 2
    assert "--outer-lr goes with a method: name one with --method, not auto" in capsys.readouterr().err
