"""Training by a recipe."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datadistill as dd
from datadistill.data.real import Split
from datadistill.distillation.problem import make_problem
from datadistill.engine import SGD, Network, Weights, make_network, walk, with_noise
from datadistill.evaluation import accuracy_of
from datadistill.models import create_model, draw_weights
from datadistill.training.fit import fit, path, walks_of
from datadistill.training.recipe import OWN_STEPS, TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


class Case:
    """A small network, where it starts, and 64 real images."""

    def __init__(self, digits: dd.RealData, module: nn.Module | None = None) -> None:
        self.module = module or create_model("mlp", digits)
        self.network = make_network(self.module)
        self.few = digits.train.take(torch.arange(64))
        self.start = draw_weights(self.module, "xavier", stream(0))

    def distilled(self, digits: dd.RealData, **changes: object) -> dd.DistilledData:
        """The images in two batches, with soft labels."""
        problem = make_problem(
            digits, model="mlp", weights="random-init", scheme="xavier", ipc=2, seed=0, device=torch.device("cpu")
        )
        data, _ = dd.methods.DD(steps=2, epochs=2, labels="soft").init(problem, stream(0))
        return replace(data, **changes)  # type: ignore[arg-type]

    def theirs(self) -> nn.Module:
        """The module at the start, for PyTorch to train."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(self.start)
        return module


@pytest.fixture(scope="module")
def case(digits: dd.RealData) -> Case:
    return Case(digits)


def near(mine: Weights, theirs: nn.Module) -> bool:
    return all(torch.allclose(mine[name], weight, atol=1e-5) for name, weight in theirs.named_parameters())


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_repeats_itself(digits: dd.RealData, case: Case) -> None:
    before = {name: weight.clone() for name, weight in case.start.items()}
    epochs: list[None] = []
    recipe = TrainRecipe(epochs=8, lr=0.003, batch=64)
    first = fit(case.network, case.start, digits.train, recipe, stream(1), lambda: epochs.append(None))
    assert len(epochs) == walks_of(recipe, digits.train) == 8
    assert accuracy_of(case.network, first, digits.held_out).correct > 0.93
    assert same(before, case.start)
    assert same(first, fit(case.network, case.start, digits.train, recipe, stream(1)))


def test_sgd_with_everything_is_torch_s(case: Case) -> None:
    recipe = TrainRecipe(5, 0.05, 64, "sgd", momentum=0.9, weight_decay=0.01, schedule="constant")
    mine, theirs = fit(case.network, case.start, case.few, recipe, stream(1)), case.theirs()
    descent = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        descent.zero_grad()
        F.cross_entropy(theirs(case.few.images), case.few.labels).backward()
        descent.step()
    assert near(mine, theirs)


@pytest.mark.parametrize("order", ["shuffled", "stored"])
def test_a_number_of_steps_in_batches_of_a_size(case: Case, order: str) -> None:
    recipe = TrainRecipe(
        0,
        0.01,
        24,
        "adamw",
        weight_decay=0.1,
        schedule="constant",
        steps=7,
        order=order,  # type: ignore[arg-type]
    )
    kept: list[Weights] = []
    mine = fit(case.network, case.start, case.few, recipe, stream(1), keep=kept.append)
    theirs, draws = case.theirs(), stream(1)
    descent, batches = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1), list[Tensor]()
    while len(batches) < 7:
        walked = torch.randperm(64, generator=draws) if order == "shuffled" else torch.arange(64)
        batches += walked.split(24)
    for chosen in batches[:7]:
        descent.zero_grad()
        F.cross_entropy(theirs(case.few.images[chosen]), case.few.labels[chosen]).backward()
        descent.step()
    assert near(mine, theirs)
    assert len(kept) == 4, "at the start, after two walks, and at the end"
    assert walks_of(recipe, case.few) == 3


@pytest.mark.parametrize(("loss", "temperature"), [("mse", 1.0), ("kl", 1.0), ("kl", 4.0)])
def test_other_losses_take_soft_labels(digits: dd.RealData, case: Case, loss: str, temperature: float) -> None:
    data = case.distilled(digits)
    recipe = TrainRecipe(
        20,
        0.2,
        100,
        "sgd",
        schedule="constant",
        loss=loss,
        temperature=temperature,  # type: ignore[arg-type]
    )
    mine, theirs = fit(case.network, case.start, data, recipe, stream(1)), case.theirs()
    descent = torch.optim.SGD(theirs.parameters(), 0.2)
    for _ in range(20):
        descent.zero_grad()
        scores = theirs(data.images)
        if loss == "mse":
            F.mse_loss(scores, data.targets).backward()
        else:
            answers = (scores / temperature).log_softmax(1)
            (temperature**2 * F.kl_div(answers, data.targets, reduction="batchmean")).backward()
        descent.step()
    assert near(mine, theirs)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_other_losses_teach_from_classes(digits: dd.RealData, case: Case, loss: str) -> None:
    recipe = TrainRecipe(8, 0.003, 64, loss=loss)  # type: ignore[arg-type]
    last = fit(case.network, case.start, digits.train, recipe, stream(1))
    assert accuracy_of(case.network, last, digits.held_out).correct > 0.9


@pytest.mark.parametrize(("loss", "temperature"), [("cross-entropy", 1.0), ("mse", 1.0), ("kl", 4.0)])
def test_a_teacher_answers_to_what_the_network_sees(
    digits: dd.RealData, case: Case, loss: str, temperature: float
) -> None:
    taught = fit(case.network, case.start, digits.train, TrainRecipe(8, 0.003, 64), stream(1))
    answer, seen = partial(case.network.logits, taught), list[Tensor]()

    def teacher(images: Tensor) -> Tensor:
        seen.append(images)
        return answer(images)

    hidden = Split(digits.train.images, digits.train.labels.roll(7), digits.num_classes)
    recipe = TrainRecipe(
        8,
        0.003,
        64,
        augment="crop",
        loss=loss,
        temperature=temperature,
        labels="teacher",  # type: ignore[arg-type]
    )
    last = fit(case.network, case.start, hidden, recipe, stream(2), teacher=teacher)
    assert accuracy_of(case.network, last, digits.held_out).correct > 0.85
    assert not any(torch.equal(image, other) for image in seen[0] for other in hidden.images[:100])


def test_augmentation_changes_training_and_the_seed_decides(case: Case) -> None:
    def trained(augment: str) -> Weights:
        return fit(case.network, case.start, case.few, TrainRecipe(2, batch=32, augment=augment), stream(1))

    assert same(trained("crop_color"), trained("crop_color"))
    assert not same(trained("crop_color"), trained("none"))


def test_own_steps_are_those_of_the_engine(digits: dd.RealData) -> None:
    """To the bit, with dropout: distilling differentiates the one, and everything else takes the other."""
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))
    case = Case(digits, module)
    data = case.distilled(digits, learning_rates=torch.tensor([0.1, 0.4, 0.2, 0.3]))
    mine = list(path(case.network, case.start, data, replace(OWN_STEPS, steps=4), stream(1)))
    steps = with_noise(case.network, data.inner_steps(), stream(1))
    theirs = list(walk(case.network, SGD(), case.start, steps))
    assert len(mine) == len(theirs) == 5
    assert all(same(*pair) for pair in zip(mine, theirs, strict=True))
    assert not same(mine[-1], fit(case.network, case.start, data, replace(OWN_STEPS, steps=4), stream(2)))


def test_one_learned_rate_is_for_all_steps(digits: dd.RealData, case: Case) -> None:
    data = case.distilled(digits, learning_rates=torch.tensor([0.25]))
    learned = TrainRecipe(3, "learned", 5, "sgd")
    one, other = (
        fit(case.network, case.start, data, recipe, stream(1)) for recipe in (learned, replace(learned, lr=0.25))
    )
    assert same(one, other)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (TrainRecipe(lr="learned"), "the data holds none|holds 4 learning rates"),
        (TrainRecipe(lr="learned", steps=4), "the data holds none|or one for each with schedule constant"),
        (TrainRecipe(labels="teacher"), "there is no teacher"),
    ],
    ids=str,
)
def test_what_data_may_lack(digits: dd.RealData, case: Case, real: bool, recipe: TrainRecipe, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fit(case.network, case.start, case.few if real else case.distilled(digits), recipe, stream(1))


def test_real_images_come_in_no_batches(case: Case) -> None:
    with pytest.raises(RequestError, match="batch is stored"):
        fit(case.network, case.start, case.few, TrainRecipe(batch="stored"), stream(1))
    with pytest.raises(RequestError, match="but there is a teacher"):
        fit(
            case.network,
            case.start,
            case.few,
            TrainRecipe(),
            stream(1),
            teacher=partial(case.network.logits, case.start),
        )


def test_another_loss_shares_the_lock_on_the_module(case: Case) -> None:
    network: Network = case.network.trained_by(TrainRecipe(loss="mse").criterion)
    assert network.alone is case.network.alone
    assert case.network.trained_by(TrainRecipe().criterion) is case.network
