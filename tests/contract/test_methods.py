"""What every method must do, by table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import datadistill as dd
from datadistill.baselines import random_real
from datadistill.errors import RequestError
from datadistill.inner import Network
from datadistill.methods import METHODS, Method, Problem, make_problem
from datadistill.runs import RunFolder
from datadistill.runtime import stream

OUTER = dd.Outer(rate=0.03, betas=(0.5, 0.99), schedule="cosine", clip=1.0, average=0.9, look_every=25)


@dataclass(frozen=True)
class Row:
    """A method as the contract runs it: small, on digits."""

    name: str
    method: Method
    weights: str
    ipc: int
    iterations: int
    variant: str = ""
    model: str = "mlp"
    outer: dd.Outer = OUTER
    falls_to: float = 0.8


SMALL, SMALL_NET = {"batch": 16, "together": 5}, "ConvNetD1W8"
EXPERTS = {"student_steps": 8, "max_start_epoch": 5, "learning_rate": 0.05, "augment": "crop_scale_rotate"}
LOOPS = {"matches": 3, "inner_epochs": 4, "images": "real"}
MOVED = {"augment": "crop_scale_rotate", "trained_with": "none"}


def sgd(rate: float) -> dd.Outer:
    return dd.Outer(rate=rate, optimizer="sgd", momentum=0.5, schedule="constant", look_every=30)


ROWS = [
    Row("dd", dd.methods.DD(steps=1, epochs=3, images="mean", batch=128), "fixed-init", 1, 150),
    Row("dd", dd.methods.DD(steps=2, epochs=2, batch=128, networks=2), "random-init", 2, 150),
    Row("dd", dd.methods.DD(steps=1, epochs=3, images="mean", batch=128, labels="soft"), "fixed-init", 1, 150, "-soft"),
    Row("dd", dd.methods.DD(steps=1, epochs=3, images="mean", batch=128), "fixed-pretrained", 1, 150),
    Row(
        "dd",
        dd.methods.DD(
            steps=2,
            epochs=2,
            learning_rate=0.1,
            rates="falling",
            labels="soft",
            images="real",
            batch=128,
            networks=3,
        ),
        "random-pretrained",
        2,
        250,
    ),
    Row("dc", METHODS.get("dc").build({"batch": 16}), "random-init", 1, 90, "", SMALL_NET, sgd(1.0)),
    Row("dc", METHODS.get("dc").build(SMALL | LOOPS), "random-init", 2, 60, "-loops", SMALL_NET, sgd(1.0), 1.0),
    Row("dsa", METHODS.get("dsa").build(SMALL | MOVED), "random-init", 2, 60, "", SMALL_NET, sgd(3.0), 0.9),
    Row(
        "dc",
        METHODS.get("dc").build({"batch": 16, "matched_on": "ConvNetD1W4"}),
        "random-init",
        1,
        90,
        "-matched-on",
        SMALL_NET,
        sgd(1.0),
    ),
    Row("dm", METHODS.get("dm").build({"batch": 16, "augment": "none"}), "random-init", 2, 60, "", "mlp", sgd(10.0)),
    Row(
        "dm",
        METHODS.get("dm").build({"batch": 16, "augment": "crop_scale_rotate"}),
        "random-init",
        2,
        60,
        "-moved",
        "mlp",
        sgd(10.0),
        0.9,
    ),
    Row(
        "mtt",
        METHODS.get("mtt").build(EXPERTS),
        "random-init",
        1,
        120,
        "",
        "ConvNetD1W16",
        replace(OUTER, look_every=60),
    ),
]

table = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.weights}{row.variant}")


POOLS: list[dd.Pool] = []
TRAJECTORIES: list[dd.Trajectories] = []


@pytest.fixture(autouse=True, scope="session")
def _trained(pool: dd.Pool, trajectories: dd.Trajectories) -> None:
    POOLS.append(pool)
    TRAJECTORIES.append(trajectories)


def pool_for(row: Row) -> dd.Pool | None:
    return POOLS[0] if "pretrained" in row.weights else None


def trajectories_for(row: Row) -> dd.Trajectories | None:
    return TRAJECTORIES[0] if row.name == "mtt" else None


def run(row: Row, real: dd.RealData, **changes: Any) -> dd.Run:
    options: dict[str, Any] = {"iterations": row.iterations, "seed": 0, "outer": row.outer, "device": "cpu"}
    options |= {"pool": pool_for(row), "trajectories": trajectories_for(row)}
    return dd.distill(real, row.method, model=row.model, weights=row.weights, ipc=row.ipc, **(options | changes))


def problem(row: Row, real: dd.RealData) -> Problem:
    return make_problem(
        real,
        model=row.model,
        weights=row.weights,
        scheme="xavier",
        ipc=row.ipc,
        seed=0,
        device=torch.device("cpu"),
        pool=pool_for(row),
        trajectories=trajectories_for(row),
    )


def same(one: dd.DistilledData, other: dd.DistilledData) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_method_has_a_row() -> None:
    assert {row.name for row in ROWS} == set(METHODS.names())


@table
def test_the_loss_falls(row: Row, digits: dd.RealData, tmp_path: Path) -> None:
    run(row, digits, out=tmp_path / "run")
    losses = [entry["outer_loss"] for entry in RunFolder(tmp_path / "run").metrics()]
    assert losses[-1] < row.falls_to * losses[0]


@table
def test_same_seed_same_bits(row: Row, digits: dd.RealData) -> None:
    first = run(row, digits, iterations=30).distilled
    assert same(first, run(row, digits, iterations=30).distilled)
    assert not same(first, run(row, digits, iterations=30, seed=1).distilled)


@table
def test_the_global_generator_does_not_matter(row: Row, digits: dd.RealData) -> None:
    torch.manual_seed(1)
    first = run(row, digits, iterations=10).distilled
    torch.manual_seed(2)
    assert same(first, run(row, digits, iterations=10).distilled)


@table
def test_resumed_is_uninterrupted(row: Row, digits: dd.RealData, tmp_path: Path) -> None:
    class Kill(Exception):
        pass

    class KillAt:
        def __init__(self, step: int) -> None:
            self.step = step

        def update(self, status: Any) -> None:
            if status.step == self.step:
                raise Kill

        def say(self, text: str) -> None:
            pass

    whole = run(row, digits, iterations=80, out=tmp_path / "whole").distilled
    for step in (3, 31, 79):
        with pytest.raises(Kill):
            run(row, digits, iterations=80, out=tmp_path / "cut", resume=True, reporter=KillAt(step))
    resumed = run(row, digits, iterations=80, out=tmp_path / "cut", resume=True).distilled
    assert same(whole, resumed)
    timeless = [
        [{key: value for key, value in entry.items() if key not in ("seconds", "peak_bytes")} for entry in metrics]
        for metrics in (RunFolder(tmp_path / "whole").metrics(), RunFolder(tmp_path / "cut").metrics())
    ]
    assert timeless[0] == timeless[1]


@table
def test_beats_random_real_images_with_tuned_rates(row: Row, digits: dd.RealData) -> None:
    if isinstance(row.method, dd.methods.DD):
        steps, epochs = row.method.steps, row.method.epochs
        chosen = random_real(problem(row, digits), steps, epochs)[0]
    else:  # the protocol sets the rates: what a method starts from are random real images
        chosen = replace(row.method, images="real").start(problem(row, digits), stream(0, "baseline"))
    baseline = dd.evaluate(chosen, digits, nets=5, pool=pool_for(row))
    distilled = dd.evaluate(run(row, digits).distilled, digits, nets=5, pool=pool_for(row))
    assert distilled.accuracy.ci95[0] > baseline.accuracy.ci95[1]


@table
def test_never_looks_at_the_test_split(row: Row, digits: dd.RealData) -> None:
    blind = replace(digits, test=replace(digits.test, images=torch.full_like(digits.test.images, torch.nan)))
    assert same(run(row, digits, iterations=30).distilled, run(row, blind, iterations=30).distilled)


@table
def test_gradient_against_finite_differences(row: Row, digits: dd.RealData) -> None:
    small = problem(row, digits)
    double = replace(digits, train=replace(digits.train, images=digits.train.images.double()))
    network = Network(small.network.module.double())
    starts = problem(row, digits).starts

    class Double:
        fixed = None if starts.fixed is None else {n: w.double() for n, w in starts.fixed.items()}

        def sample(self, count: int, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
            return [{n: w.double() for n, w in weights.items()} for weights in starts.sample(count, generator)]

    exact = replace(small, real=double, network=network, starts=Double())
    start = row.method.start(small, stream(0))
    soft = None if start.soft_labels is None else start.soft_labels.double()
    rates = None if start.learning_rates is None else start.learning_rates.double() * (0.1 / start.learning_rates.max())
    data = replace(start, images=start.images.double(), learning_rates=rates, soft_labels=soft)

    def loss(candidate: dd.DistilledData) -> float:
        return float(row.method.gradient(candidate, exact, {}, stream(7), 0.0).loss)

    found = row.method.gradient(data, exact, {}, stream(7), 0.0).gradients
    direction = torch.randn(data.images.shape, generator=stream(1), dtype=torch.float64)
    eps = 1e-6
    ends = [loss(replace(data, images=data.images + sign * eps * direction)) for sign in (1, -1)]
    slope = float((found.images * direction).sum())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-4)
    if soft is not None:
        assert found.soft_labels is not None
        direction = torch.randn(soft.shape, generator=stream(2), dtype=torch.float64)
        ends = [loss(replace(data, soft_labels=soft + sign * eps * direction)) for sign in (1, -1)]
        slope = float((found.soft_labels * direction).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-4)
    for t in range(0 if data.learning_rates is None else len(data.learning_rates)):
        assert found.learning_rates is not None
        ends = []
        for sign in (1, -1):
            moved = data.learning_rates.clone()
            moved[t] += sign * eps
            ends.append(loss(replace(data, learning_rates=moved)))
        assert float(found.learning_rates[t]) == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-4, abs=1e-8)


@table
@pytest.mark.parametrize("images", ["noise", "mean", "real", "kmeans"])
def test_more_images_than_a_class_has_are_refused(row: Row, images: str, digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=r"ipc is 200, but class .* has only"):
        replace(row.method, images=images).start(replace(problem(row, digits), ipc=200), stream(0))  # type: ignore[type-var]


@table
def test_experts_are_for_those_who_learn_from_them(row: Row, digits: dd.RealData) -> None:
    if row.name == "mtt" or "pretrained" in row.weights:
        pytest.skip("takes experts, or a pool in their place")
    with pytest.raises(RequestError, match=f"method {row.name} learns from no experts"):
        run(row, digits, trajectories=TRAJECTORIES[0], iterations=1)


@table
def test_three_classes_with_unequal_numbers_of_images(row: Row, digits: dd.RealData) -> None:
    if row.name not in ("dc", "dsa", "dm"):
        pytest.skip("dd is cut into steps, and mtt's experts know ten classes")
    few = digits.train.take(torch.nonzero(digits.train.labels < 3).flatten())
    pixels = (digits.normalization.invert(few.images)[:, 0] * 255).round().byte().numpy()
    labels = few.labels.numpy()
    real = dd.from_arrays(pixels[:-60], labels[:-60], pixels[-60:], labels[-60:])
    made = run(replace(row, ipc=(1, 3, 2)), real, iterations=3).distilled  # type: ignore[arg-type]
    assert made.labels.bincount().tolist() == [1, 3, 2]
    start = row.method.start(replace(problem(row, real), ipc=(1, 3, 2)), stream(0, "start")).images
    assert bool((made.images - start).flatten(1).norm(dim=1).gt(0).all())
    assert dd.evaluate(made, real, nets=1).accuracy.mean > 0.5
