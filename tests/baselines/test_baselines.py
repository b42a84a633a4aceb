"""What every baseline must do, by table, on digits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

import datadistill as dd
from datadistill.baselines import (
    BASELINES,
    Average,
    Baseline,
    Herding,
    KCenter,
    KMeans,
    Optimized,
    RandomReal,
    base,
    features,
)
from datadistill.baselines.base import held_out_score
from datadistill.distillation.problem import make_problem
from datadistill.evaluation import evaluate_sets
from datadistill.methods import Problem, Synthesis

STEPS, EPOCHS, IPC = 2, 2, 4


def problem(real: dd.RealData, **changes: object) -> Problem:
    options = {"weights": "random-init", "scheme": "xavier", "ipc": IPC, "seed": 0, "device": torch.device("cpu")}
    return make_problem(real, **({"model": "mlp"} | options | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _less_work() -> Iterator[None]:
    """Rates are tuned on fewer networks, and features are learned in fewer steps: the tests are about the rest."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "_FEW", 1)
        patched.setattr(base, "_NETWORKS", 3)
        patched.setattr(features, "_LEAST_STEPS", 1)
        yield


@dataclass
class Made:
    """What a baseline answers, and how far its bars came."""

    sets: list[dd.DistilledData]
    bars: list[list[int]]


def choose(info: type[Baseline], asked: Problem) -> Made:
    bars: list[list[int]] = []

    @contextmanager
    def bar(title: str, total: int) -> Iterator[Callable[[], None]]:
        bars.append([0, total])
        mine = bars[-1]
        yield lambda: mine.__setitem__(0, mine[0] + 1)

    return Made(info(STEPS, EPOCHS, 5 if info.sets > 1 else 1, bar=bar).run(asked), bars)


# What is made once for a baseline is made in one worker.
@pytest.fixture(
    scope="module",
    params=[pytest.param(info, id=info.name, marks=pytest.mark.xdist_group(info.name)) for info in BASELINES],
)
def info(request: pytest.FixtureRequest) -> type[Baseline]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made(info: type[Baseline], digits: dd.RealData) -> Made:
    return choose(info, problem(digits))


def same(one: dd.DistilledData, other: dd.DistilledData) -> bool:
    assert one.learning_rates is not None
    assert other.learning_rates is not None
    return torch.equal(one.images, other.images) and torch.equal(one.learning_rates, other.learning_rates)


def test_it_is_distilled_data_that_can_be_kept(info: type[Baseline], made: Made, tmp_path: object) -> None:
    data = made.sets[0]
    ipc = 1 if info.name == "average" else IPC
    assert data.images.shape == (10 * ipc, 1, 8, 8)
    assert torch.bincount(data.labels).tolist() == [ipc] * 10
    for batch in data.batches:
        assert torch.bincount(data.labels[batch]).unique().numel() == 1, "every step has every class as often"
    assert data.learning_rates is not None
    assert len(data.learning_rates) == STEPS * EPOCHS
    assert data.provenance.method["name"] == info.name
    data.save(f"{tmp_path}/set.safetensors")
    assert same(dd.load_distilled(f"{tmp_path}/set.safetensors"), data)


def test_it_is_a_synthesis_whose_pieces_are_sets(info: type[Baseline], made: Made, digits: dd.RealData) -> None:
    baseline = info(STEPS, EPOCHS, len(made.sets))
    assert isinstance(baseline, Synthesis)
    if info is not Optimized:  # of which a fifth is kept
        assert baseline.pieces(problem(digits)) == len(made.sets)
        last = len(made.sets) - 1
        assert same(baseline.piece(last, problem(digits), torch.Generator()), made.sets[last])


def test_images_are_of_the_class_that_their_label_says(made: Made, digits: dd.RealData) -> None:
    data = made.sets[0]
    train = digits.train
    for image, label in zip(data.images, data.labels, strict=True):
        nearest = torch.cdist(image.view(1, -1), train.images.flatten(1)).argmin()
        assert train.labels[nearest] == label


def test_same_seed_same_bits(info: type[Baseline], made: Made, digits: dd.RealData) -> None:
    torch.manual_seed(1)
    again = choose(info, problem(digits)).sets
    assert len(made.sets) == len(again)
    assert all(same(one, other) for one, other in zip(made.sets, again, strict=True))
    if info.name != "average":
        assert not torch.equal(made.sets[0].images, choose(info, problem(digits, seed=1)).sets[0].images)


def test_never_looks_at_the_test_split(info: type[Baseline], made: Made, digits: dd.RealData) -> None:
    blind = replace(digits, test=replace(digits.test, images=torch.full_like(digits.test.images, torch.nan)))
    assert same(made.sets[0], choose(info, problem(blind)).sets[0])


def test_what_is_chosen_comes_from_the_training_images(info: type[Baseline], made: Made, digits: dd.RealData) -> None:
    if info.name not in ("kmeans", "average"):  # which have tests of their own
        rows = {tuple(image.flatten().tolist()) for image in digits.train.images}
        for data in made.sets:
            mine = [tuple(image.flatten().tolist()) for image in data.images]
            assert len(set(mine)) == len(mine)
            assert set(mine) <= rows


def test_it_beats_chance(made: Made, digits: dd.RealData) -> None:
    assert evaluate_sets(made.sets, digits, nets=5)[1].accuracy.ci95[0] > 0.3


def test_a_fixed_start_belongs_to_the_result(info: type[Baseline], digits: dd.RealData) -> None:
    data = choose(info, problem(digits, weights="fixed-init")).sets[0]
    assert data.initial_weights is not None
    assert data.provenance.method["tuning_networks"] == 1
    score = dd.evaluate(data, digits)
    assert score.nets == 1
    assert score.accuracy.mean > 0.5


def test_progress_adds_up(made: Made) -> None:
    assert made.bars
    assert all(counted == total for counted, total in made.bars)


def test_random_sets_differ(digits: dd.RealData) -> None:
    one, other = RandomReal(STEPS, EPOCHS, 2).run(problem(digits))
    assert not torch.equal(one.images, other.images)


def test_average_images_are_class_means(digits: dd.RealData) -> None:
    (data,) = Average(STEPS, EPOCHS).run(problem(digits))
    for label in range(10):
        expected = digits.train.images[digits.train.labels == label].double().mean(0)
        assert torch.allclose(data.images[data.labels == label][0].double(), expected, atol=1e-5)
    with pytest.raises(dd.RequestError, match="always the same"):
        Average(STEPS, EPOCHS, 2).run(problem(digits))


def test_kmeans_images_are_means_of_the_images_nearest_to_them(digits: dd.RealData) -> None:
    (data,) = KMeans(STEPS, EPOCHS).run(problem(digits))
    for label in range(10):
        points = digits.train.images[digits.train.labels == label].flatten(1)
        centres = data.images[data.labels == label].flatten(1)
        nearest = torch.cdist(points, centres).argmin(1)
        for number, centre in enumerate(centres):
            assert torch.allclose(points[nearest == number].mean(0), centre, atol=1e-4)


def test_optimized_keeps_the_best_of_the_random_sets(digits: dd.RealData) -> None:
    asked, drawn = problem(digits), 10
    random_sets = RandomReal(STEPS, EPOCHS, drawn).run(asked)
    kept = Optimized(STEPS, EPOCHS, drawn).run(asked)
    assert len(kept) == 2
    of = [next(s for s in random_sets if torch.equal(s.images, data.images)) for data in kept]
    held_out = [held_out_score(data) for data in kept]
    assert held_out == sorted(held_out, reverse=True)
    assert min(held_out) > kept[0].provenance.method["held_out_of_all"]
    mean = sum(map(held_out_score, random_sets)) / drawn
    assert sum(map(held_out_score, of)) / 2 > mean


@pytest.mark.parametrize("baseline", [Herding, KCenter])
def test_features_need_a_linear_layer(baseline: type[Baseline], digits: dd.RealData) -> None:
    def factory(num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(1, num_classes, 8), torch.nn.Flatten())

    with pytest.raises(dd.RequestError, match="no linear layer"):
        baseline(STEPS, EPOCHS).run(problem(digits, model=factory))
