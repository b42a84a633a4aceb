"""What every method must do, by table.

Runs are shared: a whole one shows that the loss falls and that random images are beaten, and a short one is what others
must equal to the bit. Each row's tests therefore belong to one worker (`--dist loadgroup`).
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
from conftest import start_of, step_of
from forked import in_ranks

import datadistill as dd
from datadistill.baselines import RandomReal
from datadistill.distillation.problem import make_problem
from datadistill.distillation.run_folder import RunFolder
from datadistill.engine import Network
from datadistill.methods import METHODS, Method, Problem, Synthesis, record_of
from datadistill.training.carried import inner_of, recipe_of
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

OUTER = dd.Outer(lr=0.03, betas=(0.5, 0.99), schedule="cosine", clip=1.0, average=0.9, eval_every=25)


@dataclass(frozen=True)
class Row:
    """A method as the contract runs it: small, on digits."""

    name: str
    method: Method | Synthesis
    weights: str
    ipc: int
    iterations: int
    variant: str = ""
    model: str = "mlp"
    outer: dd.Outer = OUTER

    @property
    def is_optimised(self) -> bool:
        """Whether there is an outer loss, and so a gradient."""
        return record_of(self.method).kind == "optimised"


SMALL, SMALL_NET = {"batch": 16, "together": 5}, "ConvNetD1W8"
EXPERTS = {"student_steps": 8, "max_start_epoch": 5, "learning_rate": 0.05, "augment": "crop_scale_rotate"}
LOOPS = {"matches": 3, "inner_epochs": 4, "images": "real"}
WINDOW = {
    "inner_steps": 10,
    "window": 4,
    "learning_rate": 0.01,
    "batch": 128,
    "images": "real",
    "inner_batch": 6,
    "augment": "none",
}
RIDGE = {"bodies": 3, "max_age": 20, "batch": 128}
MOVED = {"augment": "crop_scale_rotate", "trained_with": "none"}


def sgd(rate: float, eval_every: int = 30) -> dd.Outer:
    return dd.Outer(lr=rate, optimizer="sgd", momentum=0.5, schedule="constant", eval_every=eval_every)


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
    Row("dc", METHODS.get("dc").build({"batch": 16}), "random-init", 1, 60, "", SMALL_NET, sgd(1.0)),
    Row("dc", METHODS.get("dc").build(SMALL | LOOPS), "random-init", 2, 60, "-loops", SMALL_NET, sgd(1.0)),
    Row("dsa", METHODS.get("dsa").build(SMALL | MOVED), "random-init", 2, 60, "", SMALL_NET, sgd(3.0)),
    Row(
        "dc",
        METHODS.get("dc").build({"batch": 16, "matched_on": "ConvNetD1W4"}),
        "random-init",
        1,
        60,
        "-matched-on",
        SMALL_NET,
        sgd(1.0),
    ),
    Row("dm", METHODS.get("dm").build({"batch": 16, "augment": "none"}), "random-init", 2, 60, "", "mlp", sgd(0.5, 15)),
    Row(
        "dm",
        METHODS.get("dm").build({"batch": 16, "augment": "crop_scale_rotate"}),
        "random-init",
        2,
        60,
        "-moved",
        "mlp",
        sgd(0.5, 15),
    ),
    Row(
        "mtt",
        METHODS.get("mtt").build(EXPERTS),
        "random-init",
        1,
        80,
        "",
        "ConvNetD1W16",
        replace(OUTER, eval_every=40),
    ),
    Row(
        "mtt",
        METHODS.get("mtt").build(EXPERTS | {"labels": "soft"}),
        "random-init",
        1,
        80,
        "-soft",
        "ConvNetD1W16",
        replace(OUTER, eval_every=40),
    ),
    Row("rat_bptt", METHODS.get("rat_bptt").build(WINDOW), "random-init", 1, 80),
    Row("rat_bptt", METHODS.get("rat_bptt").build(WINDOW | {"labels": "soft"}), "random-init", 1, 80, "-soft"),
    Row("krr", METHODS.get("krr").build(RIDGE | {"loss": "cross-entropy"}), "random-init", 1, 120),
    Row("krr", METHODS.get("krr").build(RIDGE | {"labels": "soft"}), "random-init", 1, 120, "-soft"),
    Row("random_teacher", METHODS.get("random_teacher").build({}), "random-init", 2, 1, "", "mlp"),
]

table = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=pytest.mark.xdist_group(name))
        for row in ROWS
        for name in [f"{row.name}-{row.weights}{row.variant}"]
    ],
)

SHORT, LOOK, DRAWS = 12, 4, 8
EPOCHS = 100
"""Of training, when methods are compared with random images: more than these hardly change what either reaches."""


@dataclass(frozen=True)
class Made:
    """A run that several tests read."""

    distilled: dd.DistilledData
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _shorter_looks() -> Iterator[None]:
    """A look at data for protocol dc trains for fewer epochs: what is asked of methods holds however they are seen."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("datadistill.distillation.validation.CONDENSED_EPOCHS", 20)
        yield


def pool_for(row: Row) -> dd.Pool | None:
    return dd.load_pool(trained.POOL) if "pretrained" in row.weights else None


def trajectories_for(row: Row) -> dd.Trajectories | None:
    return dd.load_trajectories(trained.EXPERTS) if record_of(row.method).needs.experts else None


def run(row: Row, real: dd.RealData, **changes: Any) -> dd.Run:
    options: dict[str, Any] = {"iterations": row.iterations, "seed": 0, "outer": row.outer, "device": "cpu"}
    options |= {"pool": pool_for(row), "trajectories": trajectories_for(row)}
    return dd.distill(real, row.method, model=row.model, weights=row.weights, ipc=row.ipc, **(options | changes))


def short(row: Row, real: dd.RealData, **changes: Any) -> dd.Run:
    """A run of few steps with several looks, and so with several checkpoints."""
    return run(row, real, **{"iterations": SHORT, "outer": replace(row.outer, eval_every=LOOK)} | changes)


@pytest.fixture(scope="module")
def made(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row, str], Made]:
    """What a row gives in `short` or `whole`, run at the first question."""

    @cache
    def answer(number: int, length: str) -> Made:
        folder = tmp_path_factory.mktemp(f"{length}-{number}") / "run"
        torch.manual_seed(1)
        done = (short if length == "short" else run)(ROWS[number], digits, out=folder)
        return Made(done.distilled, timeless(folder))

    return lambda row, length: answer(ROWS.index(row), length)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, less what two equal runs differ in."""
    entries = RunFolder(folder).metrics()
    return [{key: entry[key] for key in entry if key not in ("seconds", "peak_bytes")} for entry in entries]


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


def with_images(method: Any, images: str) -> Any:
    """The method with other images at its start, where they are its to choose."""
    return replace(method, images=images) if hasattr(method, "images") else method


def same(one: dd.DistilledData, other: dd.DistilledData) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_method_has_a_row() -> None:
    assert {row.name for row in ROWS} == set(METHODS.names())


@table
def test_the_loss_falls(row: Row, digits: dd.RealData, made: Callable[[Row, str], Made]) -> None:
    if not row.is_optimised:
        pytest.skip("has no outer loss")
    given = problem(row, digits)
    method = row.method.resolve(given)
    first, state = method.init(given, stream(given.seed, "start"))  # as the run

    def loss(data: dd.DistilledData) -> float:
        """A mean over the same draws, such as of windows, whatever the data."""
        draws = (torch.Generator().manual_seed(seed) for seed in range(DRAWS))
        return statistics.fmean(float(step_of(method, data, given, state, draw).loss) for draw in draws)

    assert loss(made(row, "whole").distilled) < 0.8 * loss(first)


@table
def test_same_seed_same_bits(row: Row, digits: dd.RealData, made: Callable[[Row, str], Made]) -> None:
    """Whatever was drawn from the global generator."""
    torch.manual_seed(2)
    again = short(row, digits).distilled
    assert same(made(row, "short").distilled, again), "one seed, two results: is a number drawn from another generator?"


@table
def test_another_seed_gives_other_data(row: Row, digits: dd.RealData) -> None:
    one, other = (run(row, digits, iterations=1, seed=seed).distilled for seed in (0, 1))
    assert not same(one, other)


class Kill(Exception):
    pass


class KillAt:
    """A reporter that ends a run at some step, before anything of it is kept."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, status: Any) -> None:
        if status.step == self.step:
            raise Kill

    def say(self, text: str) -> None:
        pass


def resumed(kills: tuple[int, ...], folder: Path, go: Callable[..., dd.Run]) -> Made:
    for step in kills:
        with pytest.raises(Kill):
            go(out=folder, resume=True, reporter=KillAt(step))
    return Made(go(out=folder, resume=True).distilled, timeless(folder))


@table
def test_resumed_is_uninterrupted(
    row: Row, digits: dd.RealData, made: Callable[[Row, str], Made], tmp_path: Path
) -> None:
    """Killed before the first checkpoint, right after one, and in the last step."""
    kills = (3, LOOK + 1, SHORT - 1) if row.is_optimised else (1, 3, digits.num_classes - 1)
    whole, cut = made(row, "short"), resumed(kills, tmp_path, partial(short, row, digits))
    assert same(whole.distilled, cut.distilled), "a resumed run differs: is something kept outside the state?"
    assert whole.metrics == cut.metrics


@pytest.mark.slow
@table
def test_resumed_later_is_uninterrupted(row: Row, digits: dd.RealData, tmp_path: Path) -> None:
    if not row.is_optimised:
        pytest.skip("is the same run, however many steps are asked for")
    go = partial(run, row, digits, iterations=80)
    whole = Made(go(out=tmp_path / "whole").distilled, timeless(tmp_path / "whole"))
    cut = resumed((3, 31, 79), tmp_path / "cut", go)
    assert same(whole.distilled, cut.distilled)
    assert whole.metrics == cut.metrics


def in_several(count: int, folder: Path, go: Callable[..., dd.Run]) -> Made:
    """What ranks make together; rank 0 writes it."""
    for distilled in in_ranks(count, lambda: go(out=folder / "run", resume=True).distilled, folder / "ranks"):
        assert same(distilled, dd.load_distilled(folder / "run")), "ranks have come to different results"
    return Made(distilled, timeless(folder / "run"))


SHARED = [next(row for row in ROWS if row.name == name) for name in ("dd", "dc", "dm")]
"""What ranks share in them: the real batch, classes, and those that are given back by class."""


@table
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_do_what_one_process_does(
    row: Row, count: int, digits: dd.RealData, made: Callable[[Row, str], Made], tmp_path: Path
) -> None:
    if count == 2 and row not in SHARED:
        pytest.skip("is among the slow tests, with three ranks")
    whole, found = made(row, "short"), in_several(count, tmp_path, partial(short, row, digits))
    assert same(whole.distilled, found.distilled)
    assert whole.metrics == found.metrics


@table
@pytest.mark.parametrize("epochs", [EPOCHS, pytest.param(None, marks=pytest.mark.slow)], ids=["", "full"])
def test_beats_random_real_images_with_tuned_rates(
    row: Row, digits: dd.RealData, made: Callable[[Row, str], Made], epochs: int | None
) -> None:
    options: dict[str, Any] = {"nets": 10 if "pretrained" in row.weights else 5, "pool": pool_for(row)}
    whole = made(row, "whole").distilled
    if epochs is None and not whole.is_condensed and recipe_of(whole).epochs <= EPOCHS:
        pytest.skip("is the short test: its recipe has no more epochs")
    if not whole.is_condensed and epochs and recipe_of(whole).epochs > epochs:
        whole = whole.noted(inner=inner_of(replace(recipe_of(whole), epochs=epochs)))
    if not whole.is_condensed and whole.learning_rates is not None:
        steps = len(whole.batches)
        chosen = RandomReal(steps, len(whole.learning_rates) // steps).run(problem(row, digits))[0]
    else:  # a recipe sets the rates: what a method starts from are random real images, with their classes
        chosen = start_of(with_images(row.method, "real"), problem(row, digits), stream(0, "baseline"))
        chosen = replace(chosen, soft_labels=None).noted(inner=whole.provenance.inner)
        options |= {"protocol": "dc", "epochs": epochs} if whole.is_condensed else {}
    baseline, distilled = (dd.evaluate(data, digits, **options) for data in (chosen, whole))
    assert distilled.accuracy.ci95[0] > baseline.accuracy.ci95[1]


@table
def test_never_looks_at_the_test_split(row: Row, digits: dd.RealData, made: Callable[[Row, str], Made]) -> None:
    blind = replace(digits, test=replace(digits.test, images=torch.full_like(digits.test.images, torch.nan)))
    assert same(made(row, "short").distilled, short(row, blind).distilled)


@table
def test_gradient_against_finite_differences(row: Row, digits: dd.RealData) -> None:
    if not row.is_optimised:
        pytest.skip("has no gradient")
    method: Any = replace(row.method, **record_of(row.method).exact)  # type: ignore[type-var]
    small = problem(row, digits)
    double = replace(digits, train=replace(digits.train, images=digits.train.images.double()))
    network = Network(small.network.module.double())
    starts = problem(row, digits).starts

    class Double:
        fixed = None if starts.fixed is None else {n: w.double() for n, w in starts.fixed.items()}

        def sample(self, count: int, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
            return [{n: w.double() for n, w in weights.items()} for weights in starts.sample(count, generator)]

    exact = replace(small, real=double, network=network, starts=Double())
    start = start_of(method, small, stream(0))
    soft = None if start.soft_labels is None else start.soft_labels.double()
    rates = None if start.learning_rates is None else start.learning_rates.double() * (0.1 / start.learning_rates.max())
    data = replace(start, images=start.images.double(), learning_rates=rates, soft_labels=soft)

    def loss(candidate: dd.DistilledData) -> float:
        return float(step_of(method, candidate, exact, {}, stream(7)).loss)

    def check(name: str, gradient: torch.Tensor, direction: torch.Tensor) -> None:
        """One of two steps must do: curvature spoils a large one, as of Adam near zero, and rounding a small one."""
        values, slope = getattr(data, name), float((gradient * direction).sum())
        numeric = []
        for eps in (1e-6, 1e-7):
            ends = [loss(replace(data, **{name: values + sign * eps * direction})) for sign in (1, -1)]
            numeric.append((ends[0] - ends[1]) / (2 * eps))
        assert any(slope == pytest.approx(number, rel=1e-4, abs=1e-8) for number in numeric), (
            f"{name}: the gradient gives {slope}, finite differences {numeric}"
        )

    for name, gradient in step_of(method, data, exact, {}, stream(7)).gradients.items():
        directions = [torch.randn(gradient.shape, generator=stream(1), dtype=torch.float64)]
        if name == "learning_rates":
            directions = list(torch.eye(len(gradient), dtype=torch.float64))
        for direction in directions:
            check(name, gradient, direction)


@table
@pytest.mark.parametrize("images", ["noise", "mean", "real", "kmeans"])
def test_more_images_than_a_class_has_are_refused(row: Row, images: str, digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match=r"ipc is 200, but class .* has only"):
        start_of(with_images(row.method, images), replace(problem(row, digits), ipc=200), stream(0))


@table
def test_experts_are_for_those_who_learn_from_them(row: Row, digits: dd.RealData) -> None:
    if record_of(row.method).needs.experts or "pretrained" in row.weights:
        pytest.skip("takes experts, or a pool in their place")
    with pytest.raises(RequestError, match=f"method {row.name} learns from no experts"):
        run(row, digits, trajectories=dd.load_trajectories(trained.EXPERTS), iterations=1)


@table
def test_three_classes_with_unequal_numbers_of_images(row: Row, digits: dd.RealData) -> None:
    if record_of(row.method).needs.experts or "steps" in row.method.__dataclass_fields__:
        pytest.skip("experts know ten classes, and steps are of one size")
    few = digits.train.take(torch.nonzero(digits.train.labels < 3).flatten())
    pixels = (digits.normalization.invert(few.images)[:, 0] * 255).round().byte().numpy()
    labels = few.labels.numpy()
    real = dd.from_arrays(pixels[:-60], labels[:-60], pixels[-60:], labels[-60:])
    made = run(replace(row, ipc=(1, 3, 2)), real, iterations=3).distilled  # type: ignore[arg-type]
    assert made.labels.bincount().tolist() == [1, 3, 2]
    start = start_of(row.method, replace(problem(row, real), ipc=(1, 3, 2)), stream(0, "start")).images
    assert bool((made.images - start).flatten(1).norm(dim=1).gt(0).all())
    assert dd.evaluate(made, real, nets=1).accuracy.mean > 0.5
