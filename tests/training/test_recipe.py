"""The description of training."""

import os
from typing import Any

import pytest

from datadistill.training.recipe import DC, FLAGS, OWN_STEPS, TrainRecipe
from datadistill.utils.errors import RequestError


def test_what_is_as_usual_is_not_written() -> None:
    assert TrainRecipe().known() == {"epochs": 5, "rate": 0.001, "batch": 128}
    assert TrainRecipe(optimizer="sgd", momentum=0.5).known()["momentum"] == 0.5
    assert TrainRecipe(loss="mse").known()["loss"] == "mse"


@pytest.mark.parametrize(
    "recipe", [TrainRecipe(), DC, OWN_STEPS, TrainRecipe(schedule="constant", loss="mse")], ids=str
)
def test_what_is_written_is_read(recipe: TrainRecipe) -> None:
    assert TrainRecipe().told(**recipe.known()) == recipe
    assert TrainRecipe(**recipe.as_json()) == recipe


def test_flags_are_for_training_on_real_images() -> None:
    assert FLAGS == ("epochs", "rate", "batch", "optimizer", "momentum", "weight_decay", "falls", "augment")


def test_schedules() -> None:
    cosine = TrainRecipe(epochs=2, lr=0.1)
    assert [cosine.factor(step, walk=2) for step in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert TrainRecipe(steps=3, schedule="constant").factor(2, walk=100) == 1
    assert TrainRecipe(epochs=9, steps=3).steps_in(walk=100) == 3


def test_in_words() -> None:
    assert str(DC) == "300 epochs, rate 0.01, no augmentation"
    said = str(TrainRecipe(lr="learned", steps=20, loss="kl", temperature=4.0, augment="crop"))
    assert said == "20 steps, learned rates, adam, kl, augmentation crop"


@pytest.mark.skipif(os.environ.get("DATADISTILL_SHAPES") == "1", reason="types are refused before")
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.5},
        {"weight_decay": -1.0},
        {"augment": "turn"},
        {"epochs": -1},
        {"steps": -1},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"optimizer": "lion"},
        {"schedule": "step"},
        {"order": "sorted"},
        {"loss": "hinge"},
        {"labels": "none"},
        {"temperature": 2.0},
        {"temperature": 0.0, "loss": "kl"},
        {"schedule": "dc", "epochs": 0},
        {"schedule": "dc", "steps": 5},
    ],
    ids=str,
)
def test_wrong_recipes(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        TrainRecipe(**options)
