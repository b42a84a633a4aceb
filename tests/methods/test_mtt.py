"""Trajectory matching beyond the contract: what a step is, its approximation, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import start_of, step_of
from torch.func import functional_call

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.engine import Network, predict
from datadistill.engine.memory import LiveBytes
from datadistill.methods import Problem
from datadistill.methods.gradcheck import check_hypergradient
from datadistill.methods.mtt import CIFAR_10, settings_for
from datadistill.training.carried import dc_recipe
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream

MODEL = "ConvNetD1W16"
SMALL: dict[str, Any] = {"student_steps": 4, "max_start_epoch": 3, "learning_rate": 0.05, "augment": "none"}


def problem(real: dd.RealData, trajectories: dd.Trajectories | None, **changes: Any) -> Problem:
    options: dict[str, Any] = {"model": MODEL, "weights": "random-init", "scheme": "xavier", "ipc": 1, "seed": 0}
    return make_problem(real, **(options | changes), device=torch.device("cpu"), trajectories=trajectories)


def in_double(asked: Problem) -> Problem:
    train = replace(asked.real.train, images=asked.real.train.images.double())
    return replace(asked, real=replace(asked.real, train=train), network=Network(asked.network.module.double()))


def started(method: dd.methods.MTT, asked: Problem, rate: float) -> dd.DistilledData:
    start = start_of(method, asked, stream(0))
    soft = None if start.soft_labels is None else start.soft_labels.double()
    rates = torch.tensor([rate], dtype=torch.float64)
    return replace(start, images=start.images.double(), learning_rates=rates, soft_labels=soft)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_step_is_equation_two(digits: dd.RealData, trajectories: dd.Trajectories, labels: Any) -> None:
    """By hand, with autograd through all steps."""
    method, asked = dd.methods.MTT(**SMALL, labels=labels), problem(digits, trajectories)
    exact, data = in_double(asked), started(method, asked, 0.05)
    found = step_of(method, data, exact, {}, stream(3))
    draw = stream(3)
    expert = trajectories.experts[int(torch.randint(4, (), generator=draw))]
    epoch = int(torch.randint(4, (), generator=draw))
    first, target = ({n: w.double() for n, w in expert.weights(t).items()} for t in (epoch, epoch + 2))
    images, rate = data.images.clone().requires_grad_(), torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    weights = {name: weight.clone().requires_grad_() for name, weight in first.items()}
    targets = data.targets.clone().requires_grad_(labels == "soft")
    for _ in range(4):
        loss = F.cross_entropy(functional_call(exact.network.module, weights, (images,)), targets)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {n: w - rate * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    apart = sum(((weights[name] - target[name]) ** 2).sum() for name in target)
    outer = apart / sum(((first[name] - target[name]) ** 2).sum() for name in target)
    assert isinstance(outer, torch.Tensor)
    assert float(found.loss) == pytest.approx(float(outer.detach()), rel=1e-12)
    by_images, by_rate, *by_labels = torch.autograd.grad(
        outer, [images, rate, *([targets] if labels == "soft" else [])]
    )
    assert torch.allclose(found.gradients["images"], by_images, rtol=1e-9, atol=1e-15)
    assert float(found.gradients["learning_rates"]) == pytest.approx(float(by_rate), rel=1e-9)
    assert ("soft_labels" in found.gradients) == (labels == "soft")
    for expected in by_labels:
        assert torch.allclose(found.gradients["soft_labels"], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("storage", ["full", "recompute", "checkpoint"])
def test_the_engine_stores_what_it_likes(digits: dd.RealData, trajectories: dd.Trajectories, storage: Any) -> None:
    asked = problem(digits, trajectories, ipc=2)
    method = dd.methods.MTT(**SMALL | {"augment": "crop_color_cutout", "inner_batch": 6})
    data, exact = started(method, asked, 0.05), in_double(asked)
    found = [
        step_of(method, data, replace(exact, engine=dd.Engine(storage=kind)), {}, stream(3)).gradients
        for kind in ("full", storage)
    ]
    assert torch.allclose(found[0]["images"], found[1]["images"], rtol=1e-9, atol=1e-15)
    assert bool(found[0]["images"].abs().sum((1, 2, 3)).gt(0).all())


@pytest.mark.parametrize("derivative", ["exact", "tesla"])
def test_a_batch_is_augmented_alike_however_it_is_cut(
    digits: dd.RealData, trajectories: dd.Trajectories, derivative: Any
) -> None:
    asked = problem(digits, trajectories)
    method = dd.methods.MTT(**SMALL | {"augment": "crop_color_cutout_rotate", "derivative": derivative})
    data, exact = started(method, asked, 0.05), in_double(asked)
    whole, cut = (
        step_of(method, data, replace(exact, engine=dd.Engine("recompute", inner_chunk=size)), {}, stream(3))
        for size in (10, 3)
    )
    assert float(whole.loss) == pytest.approx(float(cut.loss), rel=1e-12)
    assert torch.allclose(whole.gradients["images"], cut.gradients["images"], rtol=1e-9, atol=1e-15)


def gap(
    digits: dd.RealData, trajectories: dd.Trajectories, steps: int, rate: float, augment: str = "none", chunk: int = 0
) -> float:
    """How far the approximate derivative is from the exact one, relative to that."""
    asked = problem(digits, trajectories, engine=dd.Engine(inner_chunk=chunk))
    exact, gradients = in_double(asked), []
    for derivative in ("exact", "tesla"):
        changes = {"student_steps": steps, "derivative": derivative, "augment": augment, "labels": "soft"}
        method = dd.methods.MTT(**SMALL | changes)
        found = step_of(method, started(method, asked, rate), exact, {}, stream(3)).gradients
        gradients.append(torch.cat([found[name].flatten() for name in ("images", "soft_labels", "learning_rates")]))
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def test_tesla_is_exact_for_one_step_and_close_for_small_rates(
    digits: dd.RealData, trajectories: dd.Trajectories
) -> None:
    assert gap(digits, trajectories, 1, 0.1) < 1e-12
    assert gap(digits, trajectories, 1, 0.1, "crop_color_cutout_rotate", chunk=3) < 1e-12
    far, near = gap(digits, trajectories, 6, 0.05), gap(digits, trajectories, 6, 0.0005)
    assert 1e-12 < near < 0.03 * far
    assert near < 0.01


def growth(asked: Problem, derivative: Any, counts: tuple[int, int]) -> float:
    """How much more memory more student steps take, in copies of the weights."""
    start = start_of(dd.methods.MTT(**SMALL), asked, stream(0))
    peaks = []
    for count in counts:
        method = dd.methods.MTT(**SMALL | {"student_steps": count, "derivative": derivative})
        step_of(method, start, asked, {}, stream(3))
        with LiveBytes() as memory:
            step_of(method, start, asked, {}, stream(3))
        peaks.append(memory.peak)
    return (peaks[1] - peaks[0]) / sum(4 * p.numel() for p in asked.network.module.parameters())


@pytest.mark.repeats
def test_what_more_steps_of_the_student_cost_in_memory(digits: dd.RealData, trajectories: dd.Trajectories) -> None:
    """Nothing in the approximation; weights with `recompute`; graphs, but few of them, with `checkpoint`."""

    def found(storage: Any, derivative: str = "exact") -> float:
        return growth(problem(digits, trajectories, engine=dd.Engine(storage)), derivative, (4, 36))

    assert found("full", "tesla") < 1
    assert found("recompute") == pytest.approx(32, abs=3)
    assert found("checkpoint") < found("full") / 4


def test_settings_go_by_the_number_of_images() -> None:
    for asked in CIFAR_10:
        assert list(settings_for(asked.ipc)) == pytest.approx(asked)
    assert list(settings_for(500.0))[1:] == pytest.approx([30, 39, 0.001, 1000, 10])
    between = settings_for(10**0.5)
    assert (between.student_steps, between.last_start) == (40, 10)
    assert between.learning_rate == pytest.approx(10**-2.5)
    assert (between.lr, between.lr_lr) == pytest.approx((100, 0.1))


def test_few_epochs_of_experts_limit_the_start_that_nobody_asked_for(
    digits: dd.RealData, trajectories: dd.Trajectories
) -> None:
    asked = problem(digits, trajectories, ipc=10)
    assert dd.methods.MTT().resolve(asked).max_start_epoch == 8
    with pytest.raises(RequestError, match=r"2 expert epochs from epoch 9 on are asked for, but the experts .* for 10"):
        start_of(dd.methods.MTT(max_start_epoch=9), asked, stream(0))
    with pytest.raises(RequestError, match="11 expert epochs from epoch 0"):
        start_of(dd.methods.MTT(expert_epochs=11), asked, stream(0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": "fixed-init"}, "choose --weights random-init"),
        ({"attack": ("0", "1")}, "an attack needs method dd"),
        ({"engine": dd.Engine(hvp="forward")}, "choose hvp reverse, or parts such as color_cutout"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    digits: dd.RealData, trajectories: dd.Trajectories, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        start_of(dd.methods.MTT(), problem(digits, trajectories, **changes), stream(0))


def test_without_trajectories_one_sentence_says_how_to_make_them(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="pretrain --trajectories"):
        dd.distill(digits, dd.methods.MTT(), model=MODEL, weights="random-init", iterations=1, device="cpu")


@pytest.mark.parametrize(
    "change", [{"student_steps": -1}, {"expert_epochs": 0}, {"max_start_epoch": -2}, {"inner_batch": -1},
               {"learning_rate": -0.1}, {"trained_at": -1.0}, {"augment": "spin"}]
)  # fmt: skip
def test_impossible_hyper_parameters_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        dd.methods.MTT(**change)


def test_other_experts_are_refused(digits: dd.RealData, trajectories: dd.Trajectories) -> None:
    def start(asked: Problem) -> None:
        start_of(dd.methods.MTT(**SMALL), asked, stream(0))

    for changes, sentence in (
        ({"model": "mlp"}, "but the network here is mlp: .* add --matched-on convnetd1w16"),
        ({"model": "ConvNetD1W8"}, "but the network here is convnetd1w8"),
    ):
        with pytest.raises(RequestError, match=sentence):
            start(problem(digits, trajectories, **changes))
    darker = replace(digits.normalization, mean=(0.1,))
    with pytest.raises(RequestError, match="the trajectories' normalisation"):
        start(problem(replace(digits, normalization=darker), trajectories))
    with pytest.raises(RequestError, match="the trajectories' classes"):
        start(problem(replace(digits, classes=tuple("abcdefghij")), trajectories))


def test_students_may_be_of_another_network(digits: dd.RealData, trajectories: dd.Trajectories) -> None:
    same, other = dd.methods.MTT(**SMALL), dd.methods.MTT(**SMALL, matched_on=MODEL)
    wide = problem(digits, trajectories, model="ConvNetD1W32")
    start = start_of(other, wide, stream(0))
    assert start.provenance.model == "convnetd1w32"
    found = step_of(other, start, wide, {}, stream(1))
    wanted = step_of(same, start, problem(digits, trajectories), {}, stream(1))
    assert torch.equal(found.gradients["images"], wanted.gradients["images"])
    assert found.gradients["learning_rates"] == wanted.gradients["learning_rates"]


def test_a_result_says_where_its_experts_come_from(
    digits: dd.RealData, trajectories: dd.Trajectories, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": MODEL, "weights": "random-init", "device": "cpu", "out": tmp_path / "run"}
    method = dd.methods.MTT(**SMALL)
    made = dd.distill(digits, method, **options, trajectories=trajectories.folder, iterations=2)
    found = dd.load_distilled(tmp_path / "run").provenance
    assert found.method["trajectories"] == {"digest": trajectories.digest, "source": "digits"}
    assert found.method["student_steps"] == 4
    assert found.weights == {"kind": "random-init", "scheme": trajectories.facts.scheme}
    assert (found.inner["protocol"], found.inner["epochs"]) == ("dc", 300)
    assert made.distilled.learning_rates is not None
    assert made.distilled.learning_rates.shape == (1,)
    assert made.distilled.batches.tolist() == [list(range(10))]
    moved = tmp_path / "moved"
    moved.symlink_to(trajectories.folder)
    dd.distill(digits, method, **options, trajectories=moved, iterations=2, resume=True)
    other = replace(trajectories, facts=replace(trajectories.facts, seed=1))
    with pytest.raises(RequestError, match="other settings: trajectories_digest"):
        dd.distill(digits, method, **options, trajectories=other, iterations=2, resume=True)


@pytest.mark.parametrize(("trained_at", "rate"), [(0.0, 0.02), (0.005, 0.005)])
def test_networks_are_trained_at_the_learned_rate_or_at_another(
    digits: dd.RealData, trajectories: dd.Trajectories, trained_at: float, rate: float, tmp_path: Path
) -> None:
    asked = {"learning_rate": 0.02, "trained_at": trained_at, "augment": "crop", "trained_with": "warp10"}
    method = dd.methods.MTT(**SMALL | asked)
    start = start_of(method, problem(digits, trajectories), stream(0))
    start.save(tmp_path / "a.safetensors")
    back = dd.load_distilled(tmp_path / "a.safetensors")
    assert back.learning_rates is not None
    assert back.learning_rates.tolist() == pytest.approx([0.02])
    assert dc_recipe(back).lr == pytest.approx(rate)
    assert dc_recipe(back).augment == "warp10"


def test_the_check_passes_and_turns_the_approximation_off(digits: dd.RealData, trajectories: dd.Trajectories) -> None:
    method = dd.methods.MTT(**SMALL | {"augment": "crop_color_rotate", "derivative": "tesla", "inner_batch": 7})
    check = check_hypergradient(method, problem(digits, trajectories, ipc=2), directions=2)
    assert check.passed
    assert check.is_exact
    assert check.remarks == ("checked with derivative exact: tesla departs from the exact derivative on purpose",)


def test_memory_is_predicted_without_real_images(digits: dd.RealData, trajectories: dd.Trajectories) -> None:
    asked, method = problem(digits, trajectories), dd.methods.MTT(**SMALL)
    image, sizes = digits.train.images[:1], []
    for steps in (10, 40):
        demand = replace(method.workload(asked), steps=steps)
        assert demand.real == 0
        sizes.append(predict(asked.network, image, demand, dd.Engine(storage="full")).peak_bytes)
    assert 3 < sizes[1] / sizes[0] < 4.2
