"""Kernel ridge regression beyond the contract: its closed form, its networks' ages, and what is used again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import start_of, step_of

import datadistill as dd
from datadistill.distillation.problem import make_problem
from datadistill.methods import METHODS, Problem, State, Step
from datadistill.methods.gradcheck import check_hypergradient
from datadistill.methods.krr import best_factor, ridge_answers
from datadistill.training.carried import recipe_of
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


def problem(real: dd.RealData, **changes: Any) -> Problem:
    options: dict[str, Any] = {"model": "mlp", "weights": "random-init", "scheme": "default", "ipc": 1, "seed": 0}
    return make_problem(real, **(options | changes), device=torch.device("cpu"))


def steps(asked: Problem, count: int, **options: Any) -> Iterator[tuple[Step, State]]:
    """Outer steps that leave the distilled data as it is, each with the state before it."""
    method = METHODS.get("krr").build({"batch": 32, "bodies": 2} | options)
    data, state = start_of(method, asked, stream(0)), {}
    for number in range(count):
        outcome = step_of(method, data, asked, state, stream(number))
        yield outcome, state
        state = outcome.state


def test_answers_are_those_of_ridge_regression() -> None:
    """In its other form, with a matrix of features by features."""
    shapes = enumerate([(6, 4), (6, 3), (5, 4)])
    known, labels, asked = (torch.randn(shape, generator=stream(n), dtype=torch.float64) for n, shape in shapes)
    penalty = 0.1 * float(known.square().sum()) / 6
    inverse = (known.T @ known + penalty * torch.eye(4, dtype=torch.float64)).inverse()
    torch.testing.assert_close(ridge_answers(known, labels, asked, 0.1), asked @ inverse @ known.T @ labels)
    few = ridge_answers(known.float(), labels.float(), asked.float(), 0.1)
    torch.testing.assert_close(few, ridge_answers(known, labels, asked, 0.1).float())


def test_the_best_factor_has_the_least_cross_entropy() -> None:
    labels = torch.arange(50) % 5
    answers = F.one_hot(labels, 5) + torch.randn(50, 5, generator=stream(0), dtype=torch.float64)
    best = best_factor(answers, labels)
    losses = [float(F.cross_entropy(best * share * answers, labels)) for share in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)
    assert best_factor(-answers, labels) == pytest.approx(0, abs=1e-9), "worse than chance, answers count nothing"


def test_a_network_and_its_real_features_are_used_again(digits: dd.RealData) -> None:
    visits = [outcome.state.get("visit") for outcome, _ in steps(problem(digits), 4, reuse=3)]
    assert [visit and int(visit["left"]) for visit in visits] == [2, 1, None, 2]
    assert torch.equal(visits[0]["features"], visits[1]["features"])
    assert not torch.equal(visits[0]["features"], visits[3]["features"])


def test_networks_grow_old_and_are_drawn_anew(digits: dd.RealData) -> None:
    """Their loss on the distilled images falls until then."""
    ages, lasts = [], []
    for outcome, _ in steps(problem(digits), 30, reuse=1, bodies=1, max_age=20, body_steps=3):
        (body,) = outcome.state["bodies"]
        ages.append(int(body["age"]))
        lasts.append(int(body["last"]))
    assert all(age <= last for age, last in zip(ages, lasts, strict=True))
    assert len(set(lasts)) > 1
    assert max(ages) > 6
    for before, after, last in zip(ages, ages[1:], lasts, strict=False):
        assert after in (0 if before == last else min(before + 3, last), 0)


def test_age_zero_takes_fresh_networks_alone(digits: dd.RealData) -> None:
    found = [outcome.state["bodies"][0] for outcome, _ in steps(problem(digits), 2, reuse=1, bodies=1, max_age=0)]
    assert all(int(body["age"]) == 0 for body in found)
    name = next(iter(found[0]["weights"]))
    assert not torch.equal(found[0]["weights"][name], found[1]["weights"][name])


def test_training_is_that_of_adam(digits: dd.RealData) -> None:
    """Over several visits, against PyTorch's own."""
    asked = problem(digits)
    options = {"bodies": 1, "max_age": 1000, "body_steps": 2, "body_loss": "mse", "labels": "hard"}
    outcomes = list(steps(asked, 3, reuse=1, **options))
    data = start_of(METHODS.get("krr").build({"labels": "hard"}), asked, stream(0))
    first, last = (outcomes[n][0].state["bodies"][0] for n in (0, 2))
    (start,) = asked.starts.sample(1, stream(0))
    weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    adam = torch.optim.Adam(weights.values(), lr=0.001)
    for _ in range(int(last["age"])):
        adam.zero_grad()
        (asked.network.logits(weights, data.images) - F.one_hot(data.labels, 10)).square().mean().backward()
        adam.step()
    assert int(first["age"]) == 2
    assert int(last["age"]) == 6
    for name, weight in weights.items():
        torch.testing.assert_close(last["weights"][name], weight.detach(), rtol=1e-4, atol=1e-5)


def test_hard_labels_are_not_learned(digits: dd.RealData) -> None:
    for labels, learned in (("hard", {"images"}), ("soft", {"images", "soft_labels"})):
        outcome, _ = next(steps(problem(digits), 1, labels=labels))
        assert outcome.gradients.keys() == learned


def test_the_result_says_how_networks_are_trained(digits: dd.RealData) -> None:
    method = METHODS.get("krr").build({"augment": "crop_rotate", "body_loss": "mse"})
    data = start_of(method, problem(digits), stream(0))
    recipe = recipe_of(data)
    assert (recipe.optimizer, recipe.loss, recipe.augment) == ("adam", "mse", "crop_rotate")
    assert dd.evaluate(data, digits, nets=1, protocol="dc", epochs=2).protocol == "dc"


@pytest.mark.parametrize(("loss", "labels"), [("cross-entropy", "hard"), ("mse", "soft")])
def test_gradient_on_another_network_with_augmentation(digits: dd.RealData, loss: str, labels: str) -> None:
    options = {"matched_on": "ConvNetD1W4", "augment": "crop_rotate", "loss": loss, "batch": 64, "labels": labels}
    done = check_hypergradient(METHODS.get("krr").build(options), problem(digits))
    assert done.passed, done.rows
    learned = {"images of batch 1"} | ({"soft labels of batch 1"} if labels == "soft" else set())
    assert {row.name for row in done.rows} == learned


@pytest.mark.parametrize("wrong", [{"reuse": 0}, {"max_age": -1}, {"ridge": 0.0}, {"learning_rate": float("nan")}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(wrong))} is .*, but must be"):
        METHODS.get("krr").build(wrong)


def test_soft_labels_need_a_loss_that_says_how_large_they_are() -> None:
    with pytest.raises(RequestError, match="choose loss mse, or labels hard"):
        METHODS.get("krr").build({"labels": "soft", "loss": "cross-entropy"})
