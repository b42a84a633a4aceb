"""Distribution matching."""

from dataclasses import replace

import pytest
import torch
from conftest import start_of, step_of

import datadistill as dd
from datadistill.data.augment import parse_augmentation, siamese
from datadistill.distillation.problem import make_problem
from datadistill.engine.features import headless
from datadistill.methods import METHODS
from datadistill.methods.dm import mean_feature
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


def test_loss_by_hand(digits: dd.RealData) -> None:
    """Without augmentation, and with all real images of each class, it is a plain distance of means."""
    few = replace(digits, train=digits.train.take(torch.arange(120)))
    problem = make_problem(
        few, model="mlp", weights="random-init", scheme="default", ipc=1, seed=0, device=torch.device("cpu")
    )
    method = METHODS.get("dm").build({"augment": "none", "batch": 1000, "images": "noise"})
    data = start_of(method, problem, stream(0))
    outcome = step_of(method, data, problem, {}, stream(1))
    (weights,) = problem.starts.sample(1, stream(1))
    layers = [weights[name] for name in weights if name.endswith(("weight", "bias"))]

    def features(images: torch.Tensor) -> torch.Tensor:
        values = images.flatten(1)
        for weight, bias in ((layers[0], layers[1]), (layers[2], layers[3])):
            values = torch.relu(values @ weight.T + bias)
        return values

    total = 0.0
    for label in range(10):
        real = features(few.train.images[few.train.labels == label]).mean(0)
        total += float(((features(data.images[data.labels == label]).mean(0) - real) ** 2).sum())
    assert float(outcome.loss) == pytest.approx(total, rel=1e-4)


def test_real_and_distilled_images_go_through_one_transformation(digits: dd.RealData) -> None:
    augment = "color_crop_cutout_rotate"
    problem = make_problem(
        digits, model="mlp", weights="random-init", scheme="default", ipc=2, seed=0, device=torch.device("cpu")
    )
    method = METHODS.get("dm").build({"augment": augment, "batch": 8})
    data = start_of(method, problem, stream(0))
    found, draw = step_of(method, data, problem, {}, stream(1)), stream(1)
    (weights,) = problem.starts.sample(1, draw)
    images, total = data.images.clone().requires_grad_(), torch.zeros(())
    for label in range(10):
        members = digits.train.of_class(label)
        chosen = members[torch.randperm(len(members), generator=draw)[:8]]
        change = siamese(parse_augmentation(augment), 8, draw)
        real, mine = (
            problem.features.logits(weights, change(batch)).mean(0)
            for batch in (digits.train.images[chosen], images[data.labels == label])
        )
        total = total + (real.detach() - mine).square().sum()
    (by_hand,) = torch.autograd.grad(total, [images])
    assert float(found.loss) == pytest.approx(float(total.detach()), rel=1e-4)
    assert torch.allclose(found.gradients["images"], by_hand, rtol=1e-3, atol=1e-7)


def test_images_of_real_means_have_no_loss_under_a_linear_network(digits: dd.RealData) -> None:
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20), torch.nn.Linear(20, 10))
    problem = make_problem(
        digits, model=linear, weights="random-init", scheme="default", ipc=1, seed=0, device=torch.device("cpu")
    )
    method = METHODS.get("dm").build({"augment": "none", "batch": 100_000, "images": "mean"})
    outcome = step_of(method, start_of(method, problem, stream(0)), problem, {}, stream(1))
    assert float(outcome.loss) < 1e-8


def test_headless_ends_before_the_last_linear_layer(digits: dd.RealData) -> None:
    problem = make_problem(
        digits, model="convnetd2w8", weights="random-init", scheme="default", ipc=1, seed=0, device=torch.device("cpu")
    )
    (weights,) = problem.starts.sample(1, stream(0))
    images = digits.train.images[:7]
    features = headless(problem.network, images[:1]).logits(weights, images)
    head = [weights["classifier.weight"], weights["classifier.bias"]]
    assert torch.allclose(features @ head[0].T + head[1], problem.network.logits(weights, images), atol=1e-5)


def test_mean_feature_in_pieces_is_the_whole(digits: dd.RealData) -> None:
    problem = make_problem(
        digits, model="mlp", weights="random-init", scheme="default", ipc=1, seed=0, device=torch.device("cpu")
    )
    (weights,) = problem.starts.sample(1, stream(0))
    whole, pieces = (mean_feature(problem.network, weights, digits.train.images[:50], chunk) for chunk in (0, 7))
    assert torch.allclose(whole, pieces, atol=1e-5)


def test_an_attack_is_refused(digits: dd.RealData) -> None:
    with pytest.raises(RequestError, match="compares features, not answers"):
        dd.distill(digits, dd.methods.DM(), model="mlp", attack=("0", "1"), weights="random-init", iterations=1)
