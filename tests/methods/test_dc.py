"""Gradient matching: the distance, the loops, the pairs."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import start_of, step_of
from torch.func import functional_call

import datadistill as dd
from datadistill.data.augment import parse_augmentation, siamese
from datadistill.distillation.problem import make_problem
from datadistill.methods import METHODS, Problem
from datadistill.methods.dc import LOOPS, distance, loops_for
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


def problem(real: dd.RealData, ipc: int = 1, **changes: object) -> Problem:
    options = {"model": "ConvNetD1W8", "weights": "random-init", "scheme": "default", "ipc": ipc, "seed": 0}
    return make_problem(real, **{**options, **changes}, device=torch.device("cpu"))  # type: ignore[arg-type]


def test_distance_by_hand() -> None:
    one = {"weight": torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([1.0, 2.0, 3.0])}
    other = {"weight": torch.tensor([[5.0, 0.0], [0.0, -1.0], [4.0, -3.0]]), "bias": torch.tensor([-1.0, 0.0, 9.0])}
    # Rows: the same direction (0), the opposite one (2), at a right angle (1). Biases count for nothing.
    assert float(distance(one, other)) == pytest.approx(3.0, abs=1e-5)


def test_distance_of_a_gradient_that_is_zero_has_a_derivative() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    distance({"w": weight}, {"w": torch.ones(2, 3)}).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("ipc", "loops"), [*LOOPS.items(), (5, (5, 23)), (15, (15, 38)), (100, (50, 10)), (0.5, (1, 1))]
)
def test_loops(ipc: float, loops: tuple[int, int]) -> None:
    assert loops_for(float(ipc)) == loops


@pytest.mark.parametrize("augment", ["none", "color_crop_cutout_rotate"])
@pytest.mark.parametrize("together", [1, 4, 10])
def test_a_step_is_by_hand(digits: dd.RealData, augment: str, together: int) -> None:
    """Each group of classes by itself; real and distilled images through one draw of one transformation."""
    here = problem(digits, 2)
    method = METHODS.get("dc").build({"batch": 8, "images": "real", "augment": augment, "together": together})
    data = start_of(method, here, stream(0))
    found = step_of(method, data, here, {}, stream(1))
    draw = stream(1)
    (weights,) = here.starts.sample(1, draw)
    images, total = data.images.clone().requires_grad_(), torch.zeros(())
    for first in range(0, 10, together):
        group = range(first, min(first + together, 10))
        chosen = torch.cat([(m := digits.train.of_class(c))[torch.randperm(len(m), generator=draw)[:8]] for c in group])
        change = siamese(parse_augmentation(augment), 8, draw)
        mine = torch.cat([torch.nonzero(data.labels == c).flatten() for c in group]).sort().values
        gradients = []
        for batch, labels in (
            (digits.train.images[chosen], digits.train.labels[chosen]),
            (images[mine], data.labels[mine]),
        ):
            leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            loss = F.cross_entropy(functional_call(here.network.module, leaves, (change(batch),)), labels)
            found_here = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
            gradients.append(dict(zip(leaves, found_here, strict=True)))
        total = total + distance(gradients[1], {name: g.detach() for name, g in gradients[0].items()})
    (by_hand,) = torch.autograd.grad(total, [images])
    assert float(found.loss) == pytest.approx(float(total.detach()), rel=1e-4)
    assert float((found.gradients["images"] - by_hand).norm() / by_hand.norm()) < 1e-3


def test_one_network_is_matched_and_trained_and_then_left(digits: dd.RealData) -> None:
    method = METHODS.get("dc").build({"batch": 8, "matches": 3, "inner_epochs": 2, "images": "real"})
    here = problem(digits, 2)
    data, state, seen = start_of(method, here, stream(0)), {}, []
    for step in range(7):
        state = step_of(method, data, here, state, stream(step)).state
        seen.append((int(state["dc.done"]), next(iter(state["dc.weights"].values())).clone()))
    assert [done for done, _ in seen] == [1, 2, 3, 1, 2, 3, 1]
    moves = [float((one[1] - other[1]).norm() / one[1].norm()) for one, other in itertools.pairwise(seen)]
    assert all(0 < moves[index] < 0.2 for index in (0, 1, 3, 4))
    assert all(moves[index] > 0.5 for index in (2, 5))


def test_the_gradient_of_a_class_is_that_of_its_own_images(digits: dd.RealData) -> None:
    here = problem(digits, 2)
    method = METHODS.get("dc").build({"batch": 8, "images": "real"})
    data = start_of(method, here, stream(0))
    first = step_of(method, data, here, {}, stream(1))
    images = data.images.clone()
    images[data.labels == 3] += 1
    moved = step_of(method, replace(data, images=images), here, {}, stream(1))
    assert first.gradients["images"].flatten(1).norm(dim=1).min() > 0
    same = (first.gradients["images"] - moved.gradients["images"]).flatten(1).norm(dim=1) == 0
    assert torch.equal(same, data.labels != 3)


def test_more_classes_together_than_there_are_is_all_of_them(digits: dd.RealData) -> None:
    here, losses = problem(digits), []
    for together in (10, 99):
        method = METHODS.get("dc").build({"batch": 8, "images": "real", "together": together})
        losses.append(float(step_of(method, start_of(method, here, stream(0)), here, {}, stream(1)).loss))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["dc", "dm"])
def test_networks_may_be_trained_with_other_augmentation(name: str, digits: dd.RealData) -> None:
    for options, augment, epochs in (
        ({"augment": "none"}, "none", 300),
        ({"augment": "none", "trained_with": "crop_scale"}, "crop_scale", 1000),
        ({"augment": "crop"}, "crop", 1000),
        ({"augment": "crop", "trained_with": "none"}, "none", 300),
        ({"augment": "crop", "trained_with": "none", "trained_epochs": 20}, "none", 20),
        ({"augment": "crop", "trained_with": "warp20_warp20+cutout"}, "warp20_warp20+cutout", 1000),
    ):
        inner = start_of(METHODS.get(name).build(options), problem(digits), stream(0)).provenance.inner
        assert (inner["augment"], inner["epochs"]) == (augment, epochs)
    with pytest.raises(RequestError, match="augmentation"):
        METHODS.get(name).build({"trained_with": "wrap10"})


@pytest.mark.parametrize("name", ["dc", "dm"])
def test_another_network_may_be_matched_on(name: str, digits: dd.RealData) -> None:
    options = {"batch": 8} | ({"matches": 2, "inner_epochs": 1} if name == "dc" else {})
    method, narrow = (METHODS.get(name).build(options | more) for more in ({"matched_on": "ConvNetD1W4"}, {}))
    here, there = problem(digits), problem(digits, model="ConvNetD1W4")
    data = start_of(method, here, stream(0))
    assert data.provenance.model == here.model
    mine, theirs = {}, {}
    for step in range(2):  # the second step trains the network
        found = step_of(method, data, here, mine, stream(1, step))
        wanted = step_of(narrow, data, there, theirs, stream(1, step))
        assert torch.equal(found.gradients["images"], wanted.gradients["images"])
        mine, theirs = found.state, wanted.state


@pytest.mark.parametrize("name", ["dc", "dm"])
def test_another_network_has_none_of_the_fixed_weights(name: str, digits: dd.RealData) -> None:
    method = METHODS.get(name).build({"matched_on": "ConvNetD1W4"})
    with pytest.raises(RequestError, match="another network"):
        start_of(method, problem(digits, weights="fixed-init"), stream(0))


def test_names_say_whether_there_is_augmentation() -> None:
    assert METHODS.get("dc").build({}).name == "dc"
    assert METHODS.get("dsa").build({}).name == "dsa"
    assert METHODS.get("dm").build({}).name == "dm"


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dc", {"batch": 0}, "batch is 0"),
        ("dc", {"matches": -1}, "matches is -1"),
        ("dc", {"learning_rate": 0.0}, "learning_rate"),
        ("dsa", {"augment": "turn"}, "turn"),
        ("dm", {"batch": 0}, "batch is 0"),
    ],
)
def test_wrong_options(name: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        METHODS.get(name).build(options)


def test_images_shared_by_classes_are_refused(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="share images"):
        start_of(METHODS.get("dc").build({}), problem(digits, 0.5), stream(0))  # type: ignore[arg-type]
