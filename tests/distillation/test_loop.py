"""The outer loop's rails: rollback, divergence, interruption, budgets."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start_of

import datadistill as dd
from datadistill.distillation.budget import Length, parse_duration
from datadistill.distillation.optimizer import Variables, filled, improve
from datadistill.distillation.problem import make_problem
from datadistill.distillation.run_folder import RunFolder
from datadistill.distillation.state import Best, flat, nested
from datadistill.distillation.validation import SLOWER, held_out, slower
from datadistill.methods import DD, Context, State, Step
from datadistill.utils.errors import Interrupted, RequestError
from datadistill.utils.interrupts import SIGNALS
from datadistill.utils.runtime import stream

SMALL = DD(images="mean", batch=64)
CPU = torch.device("cpu")
QUICK = dd.Outer(lr=0.03, betas=(0.5, 0.99), eval_every=10)


def run(real: dd.RealData, method: Any = SMALL, **options: Any) -> dd.Run:
    options = {"iterations": 40, "outer": QUICK, "device": "cpu"} | options
    return dd.distill(real, method, model="mlp", **options)


@dataclass(frozen=True)
class Broken(DD):
    """DD that counts its steps in its state and spoils what it answers."""

    def step(self, distilled: Any, state: State, context: Context, generator: Any) -> Step:
        step = super().step(distilled, {}, context, generator)
        count = state.get("count", torch.zeros(()))
        return self.spoil(step._replace(state={"count": count + 1}), int(count))

    def spoil(self, step: Step, count: int) -> Step:
        return step


def spoiled(spoil: Callable[[Step, int], Step]) -> Broken:
    made = Broken(images="mean", batch=64)
    object.__setattr__(made, "spoil", spoil)
    return made


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, status: Any) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def with_nan_images(step: Step) -> Step:
    return step._replace(gradients={**step.gradients, "images": step.gradients["images"] * torch.nan})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda step, count: step._replace(loss=step.loss * torch.nan),
        lambda step, count: with_nan_images(step),
    ],
    ids=["loss", "gradient"],
)
def test_not_finite_rolls_back_once_and_goes_on(digits: dd.RealData, spoil: Any) -> None:
    tripped = []

    def once(step: Step, count: int) -> Step:
        if count == 25 and not tripped:
            tripped.append(count)
            return spoil(step, count)
        return step

    heard = Heard()
    result = run(digits, spoiled(once), reporter=heard)
    assert result.steps == 40
    assert len(result.remarks) == 1
    assert [text for text in heard.said if not text.startswith("building operations")] == list(result.remarks)
    assert "back to step 20" in result.remarks[0]
    assert "halved to 0.015" in result.remarks[0]
    assert result.distilled.images.isfinite().all()


def test_stops_with_what_it_has_after_three_rollbacks(digits: dd.RealData, tmp_path: Path) -> None:
    method = spoiled(lambda step, count: step if count < 25 else with_nan_images(step))
    result = run(digits, method, out=tmp_path / "run")
    assert result.steps == 20
    assert [("halved" in remark) for remark in result.remarks] == [True, True, True, False]
    assert "stopped with the best so far" in result.remarks[-1]
    assert result.held_out.loss < 2.3
    assert (tmp_path / "run" / "log.txt").read_text().count("\n") == 4
    again = run(digits, method, out=tmp_path / "run", resume=True)
    assert again.remarks == result.remarks
    assert torch.equal(again.distilled.images, result.distilled.images)


def test_broken_from_the_first_step_still_gives_a_result(digits: dd.RealData) -> None:
    result = run(digits, spoiled(lambda step, count: with_nan_images(step)))
    assert result.steps == 0
    assert result.distilled.images.isfinite().all()


def test_a_diverging_loss_rolls_back(digits: dd.RealData) -> None:
    def spoil(step: Step, count: int) -> Step:
        return step._replace(loss=step.loss + 100) if 10 <= count < 20 else step

    result = run(digits, spoiled(spoil))
    assert "the outer loss rose to 10" in result.remarks[0]


@pytest.mark.parametrize(
    ("method", "outer"),
    [
        (SMALL, replace(QUICK, lr=1e38, eval_every=1)),
        (SMALL, replace(QUICK, lr_lr=1e5, eval_every=1)),
        (replace(SMALL, learning_rate=1e-29), replace(QUICK, lr_lr=30.0)),
    ],
)
def test_whatever_the_rates_the_result_can_be_saved(
    digits: dd.RealData, tmp_path: Path, method: DD, outer: dd.Outer
) -> None:
    run(digits, method, outer=outer, out=tmp_path / "run")
    assert dd.load_distilled(tmp_path / "run").images.isfinite().all()


def test_a_start_that_gives_no_finite_loss_is_one_sentence(digits: dd.RealData) -> None:
    with pytest.raises(dd.DatadistillError, match="not finite even at the start"):
        run(digits, replace(SMALL, learning_rate=1e20))


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_with_networks_on_several_cores(digits: dd.RealData, threads: int) -> None:
    torch.set_num_threads(threads)
    method = replace(SMALL, networks=4)
    found = [run(digits, method, weights="random-init", iterations=8).distilled.images for _ in range(4)]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_rate_far_too_high_ends_well(digits: dd.RealData) -> None:
    result = run(digits, outer=replace(QUICK, lr=1e6))
    assert result.remarks
    assert result.distilled.images.isfinite().all()
    assert result.distilled.learning_rates is not None
    assert result.distilled.learning_rates.isfinite().all()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_saves_and_resumes_to_the_same_bits(number: int, digits: dd.RealData, tmp_path: Path) -> None:
    class Press(Heard):
        def update(self, status: Any) -> None:
            if status.step == 17:
                for _ in range(1 if number == signal.SIGINT else 2):  # `timeout` sends its own twice
                    os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    whole = run(digits, out=tmp_path / "whole")
    with pytest.raises(Interrupted, match=r"step 17 and saved in") as caught:
        run(digits, out=tmp_path / "cut", reporter=Press())
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    resumed = run(digits, out=tmp_path / "cut", resume=True)
    assert torch.equal(whole.distilled.images, resumed.distilled.images)


def test_a_signal_that_is_answered_already_is_left_alone(digits: dd.RealData) -> None:
    class Press(Heard):
        def update(self, status: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    answered: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: answered.append(number))
    try:
        run(digits, iterations=3, reporter=Press())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answered == [signal.SIGTERM] * 3


@pytest.mark.parametrize("where", ["a step", "a look"])
def test_ctrl_c_amid_a_step_or_a_look_loses_no_step_before_it(
    where: str, digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C comes at once, wherever that is, and networks in training end at the first."""

    def stopped(step: Step, count: int) -> Step:
        if count == 29 and where == "a step":
            raise KeyboardInterrupt
        return step

    def looking(*given: Any) -> Any:
        if where == "a look" and len(looks) == 2:
            raise KeyboardInterrupt
        looks.append(None)
        return held_out(*given)

    whole = run(digits, spoiled(lambda step, count: step), out=tmp_path / "whole")
    looks: list[None] = []
    with monkeypatch.context() as patched:
        patched.setattr("datadistill.distillation.loop.held_out", looking)
        with pytest.raises(Interrupted, match="step 29 and saved"):
            run(digits, spoiled(stopped), out=tmp_path / "cut")
    resumed = run(digits, spoiled(lambda step, count: step), out=tmp_path / "cut", resume=True)
    assert torch.equal(whole.distilled.images, resumed.distilled.images)
    metrics = [[entry["held_out_loss"] for entry in RunFolder(tmp_path / n).metrics()] for n in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_an_interrupted_run_still_rolls_back_to_the_last_look(digits: dd.RealData, tmp_path: Path) -> None:
    class Press(Heard):
        def update(self, status: Any) -> None:
            if status.step == 24:
                os.kill(os.getpid(), signal.SIGINT)

    method = spoiled(lambda step, count: with_nan_images(step) if count == 27 else step)
    whole = run(digits, method, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(digits, method, out=tmp_path / "cut", reporter=Press())
    resumed = run(digits, method, out=tmp_path / "cut", resume=True)
    assert whole.remarks == resumed.remarks
    assert "back to step 20" in whole.remarks[0]
    assert torch.equal(whole.distilled.images, resumed.distilled.images)


def test_a_budget_is_kept(digits: dd.RealData) -> None:
    result = run(digits, iterations=None, budget="1.5s")
    assert 1.5 <= result.seconds < 3
    assert result.steps > 10


def test_steps_or_the_clock_whichever_is_first(digits: dd.RealData) -> None:
    heard = Heard()
    assert run(digits, iterations=20, budget="10m", reporter=heard).steps == 20
    assert heard.said == []
    result = run(digits, iterations=10**6, budget="1s", reporter=heard)
    assert heard.said == [f"the clock ended it after {result.steps:,} of 1,000,000 outer steps."]
    assert Length(100, 10.0).progress(50, 1.0) == Length(100, 10.0).progress(1, 5.0) == 0.5


def test_best_is_by_held_out_accuracy(digits: dd.RealData, tmp_path: Path) -> None:
    result = run(digits, out=tmp_path / "run")
    seen = [entry["held_out_accuracy"] for entry in RunFolder(tmp_path / "run").metrics()]
    assert result.held_out.correct == max(seen)
    judged = dd.evaluate(result.distilled, digits, split="held_out")
    assert judged.accuracy.mean == result.held_out.correct


def test_what_settles_is_the_best_on_held_out_data(digits: dd.RealData, tmp_path: Path) -> None:
    method = DD(images="real", batch=64, learning_rate=0.3, networks=2)
    options: dict[str, Any] = {"weights": "random-init", "method": method, "out": tmp_path / "run"}
    plain = run(digits, **options | {"out": None})
    settled = run(digits, **options, outer=replace(QUICK, settle=5))
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=1, seed=0, device=CPU)
    assert settled.held_out == held_out(problem, settled.distilled, 5, "settle")
    assert settled.held_out.correct >= held_out(problem, plain.distilled, 5, "settle").correct
    assert plain.distilled.learning_rates is not None
    assert settled.distilled.learning_rates is not None
    assert (settled.distilled.learning_rates <= 1.1 * plain.distilled.learning_rates).all()
    saved = dd.load_distilled(tmp_path / "run")
    assert torch.equal(saved.images, settled.distilled.images)
    assert torch.equal(saved.learning_rates, settled.distilled.learning_rates)
    again = run(digits, **options, outer=replace(QUICK, settle=5), resume=True)
    assert torch.equal(again.distilled.learning_rates, settled.distilled.learning_rates)


def test_only_the_rates_are_lowered(digits: dd.RealData) -> None:
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=1, seed=0, device=CPU)
    distilled = start_of(DD(images="real", learning_rate=0.3), problem, stream(0))
    found = Best(0.0, 0.0, 0, Variables.of(distilled, ("images", "learning_rates"), QUICK).values)
    candidates = slower(found)
    factors = [float((one.values["log_rates"] - found.values["log_rates"]).exp()[0]) for one in candidates]
    assert factors == pytest.approx(list(SLOWER))
    assert all(torch.equal(one.values["images"], found.values["images"]) for one in candidates)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        (" 1.5H ", 5400),
        ("1h30m", 5400),
        ("1h 30s", 3630),
        (7.5, 7.5),
        (None, None),
    ],
)
def test_durations(given: Any, seconds: float | None) -> None:
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["", "five", "-3m", "5 minutes", "1e3", "1h30", "30m1h", "1m2m"])
def test_no_durations(given: str) -> None:
    with pytest.raises(RequestError, match="no duration"):
        parse_duration(given)


@pytest.mark.parametrize(("iterations", "budget"), [(None, None), (0, None), (None, 0.0), (5, 0.0), (None, -1.0)])
def test_lengths(iterations: int | None, budget: float | None) -> None:
    with pytest.raises(RequestError):
        Length(iterations, budget)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"betas": (0.5, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.5, float("nan"))},
        {"average": 1.0},
        {"warmup": -0.1},
        {"clip": -1.0},
        {"eval_every": 0},
        {"settle": -1},
        {"lr_lr": -1.0},
    ],
)
def test_outer_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        dd.Outer(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"epochs": -1},
        {"batch": 0},
        {"learning_rate": -0.1},
        {"learning_rate": 0.0},
        {"batch_last": -1},
        {"surrogate_width": -1.0},
        {"learning_rate": 1e39},
        {"steps": 10**6},
    ],
)
def test_dd_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        DD(**options)


def test_ipc_that_cannot_be_cut(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="multiple of steps"):
        run(digits, DD(steps=2), ipc=3)


def test_schedules() -> None:
    halving = dd.Outer(lr=1.0)
    assert [halving.lr_at(p) for p in (0.0, 0.05, 0.1, 0.95, 1.0)] == [1, 1, 0.5, 0.5**9, 0.5**9]
    cosine = dd.Outer(lr=1.0, schedule="cosine", warmup=0.1)
    assert cosine.lr_at(0.0) == 0
    assert cosine.lr_at(1.0) == pytest.approx(0)
    assert dd.Outer(lr=2.0, schedule="constant").lr_at(0.7) == 2
    assert dd.Outer(lr=2.0, schedule="linear").lr_at(0.75) == 0.5


def test_clipping_shrinks_images_and_rates_alike(digits: dd.RealData) -> None:
    outer = dd.Outer(lr=0.1, clip=1.0)
    data = run(digits, iterations=1).distilled
    assert data.learning_rates is not None
    gradients = {"images": torch.ones_like(data.images), "learning_rates": torch.ones_like(data.learning_rates)}
    huge = {name: gradient * 100 for name, gradient in gradients.items()}
    start = improve(Variables.of(data, gradients, outer), gradients, outer, 0.1)
    usual, clipped = (improve(start, g, outer, 0.1) for g in (gradients, huge))
    assert torch.allclose(usual.values["images"], clipped.values["images"], atol=1e-5)
    assert torch.allclose(usual.values["log_rates"], clipped.values["log_rates"], atol=1e-5)
    assert clipped.norm == pytest.approx(1.04 * usual.norm, rel=1e-3)


@dataclass(frozen=True)
class ImagesAlone(DD):
    """DD that leaves the learning rates out of its gradients."""

    def step(self, *arguments: Any) -> Step:
        step = super().step(*arguments)
        return step._replace(gradients={"images": step.gradients["images"]})


def test_what_is_left_out_of_the_gradients_is_not_learned(digits: dd.RealData) -> None:
    distilled = run(digits, ImagesAlone(steps=1, epochs=3, batch=64), iterations=3).distilled
    assert distilled.learning_rates is not None
    assert torch.allclose(distilled.learning_rates, torch.full((3,), 0.02), rtol=1e-6)
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=1, seed=0, device=CPU)
    data = start_of(DD(steps=1, epochs=3), problem, stream(0))
    variables = Variables.of(data, ("images",), QUICK)
    assert filled(data, variables.values).learning_rates is data.learning_rates


def test_a_gradient_of_what_is_not_learned_is_refused(digits: dd.RealData) -> None:
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=1, seed=0, device=CPU)
    data = start_of(DD(steps=1, epochs=1), problem, stream(0))
    for name, value in (("learning_rates", data.learning_rates), ("soft_labels", data.images), ("pixels", data.images)):
        assert value is not None
        with pytest.raises(dd.RequestError, match=f"gradient of '{name}', but what .* is images: add"):
            improve(Variables.of(data, ("images", "soft_labels"), QUICK), {name: torch.ones_like(value)}, QUICK, 0.1)


def test_what_must_not_be_negative_is_cut_off(digits: dd.RealData) -> None:
    problem = make_problem(digits, model="mlp", weights="random-init", scheme="xavier", ipc=1, seed=0, device=CPU)
    data = start_of(DD(steps=1, epochs=1, labels="soft"), problem, stream(0))
    assert data.soft_labels is not None
    variables = Variables.of(data, ("soft_labels",), QUICK)
    gradients = {"soft_labels": torch.ones_like(data.soft_labels)}
    free, cut = (improve(variables, gradients, QUICK, 0.1, names).values for names in ((), ("soft_labels",)))
    assert float(free["soft_labels"].min()) < 0
    assert torch.equal(cut["soft_labels"], free["soft_labels"].clamp_min(0))


def test_state_of_any_depth_is_packed_and_unpacked() -> None:
    state = {"age": torch.tensor(3), "nets": [{"w": torch.ones(2), "adam": [torch.zeros(1)]}, {"w": torch.zeros(2)}]}
    flattened = flat(state)
    assert sorted(flattened) == ["age", "nets/#0/adam/#0", "nets/#0/w", "nets/#1/w"]
    again = nested(flattened)
    assert torch.equal(again["nets"][0]["w"], torch.ones(2))
    assert torch.equal(again["nets"][0]["adam"][0], torch.zeros(1))
    assert len(again["nets"]) == 2


def test_loop_needs_no_folder(digits: dd.RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(digits, iterations=5).folder is None
    assert list(tmp_path.iterdir()) == []


def test_storage_does_not_change_the_problem(digits: dd.RealData) -> None:
    full = run(digits, SMALL, iterations=5, engine=dd.Engine(storage="full")).distilled
    recomputed = run(digits, SMALL, iterations=5, engine=dd.Engine(storage="recompute")).distilled
    assert torch.allclose(full.images, recomputed.images, atol=1e-5)
