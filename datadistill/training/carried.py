"""The recipe that distilled data carries, as `provenance.inner` spells it.

There are three spellings. Two are of file format 1: steps of the data's own, by plain gradient descent; and `protocol`
dc with its settings. The third, of format 2, is any `TrainRecipe`, by the names of its fields.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datadistill.distilled import CONDENSATION, DistilledData, is_format_2
from datadistill.training.recipe import DC, OWN_STEPS, TrainRecipe, changed
from datadistill.utils.errors import RequestError
from datadistill.utils.schema import from_json

TAKES_LEARNED = "takes_learned_rate"
"""In `inner` of protocol dc: whether networks are trained at the rate that the data learned, as without this, or at the
one said."""

BATCH_NORM = "batch_norm"
"""In every spelling: what layers with running statistics do, where that is not `refused`."""

_ALWAYS = {"optimizer": "sgd", "loss": "cross-entropy"}
_IN_DC = ("epochs", "lr", "batch", "momentum", "weight_decay", "augment")
_MOST = 1e9
_TYPES: dict[type, str] = {int: "a whole number", float: "a number", str: "text"}


def recipe_of(distilled: DistilledData) -> TrainRecipe:
    """Training recipe that some data carries.

    Raises:
        RequestError: it says nothing, or nothing that is known or possible.
    """
    inner, rates = distilled.provenance.inner, distilled.learning_rates
    if is_format_2(inner) or distilled.is_condensed:
        recipe, takes_learned = read_inner(inner), inner.get(TAKES_LEARNED, True)
        if not isinstance(takes_learned, bool):
            raise RequestError(f"{TAKES_LEARNED} of protocol dc is {takes_learned!r}, but must be true or false")
        if distilled.is_condensed and takes_learned and rates is not None:
            return replace(recipe, lr=float(rates[0]))
        return recipe
    if rates is None:
        raise RequestError(
            "this distilled data has no steps with learning rates of their own: it is trained on by protocol dc"
        )
    for name, value in (_ALWAYS | {"augment": None}).items():
        if inner.get(name) != value:
            raise RequestError(f"protocol own needs {name} {value}, but this data was made with {inner.get(name)!r}")
    return replace(OWN_STEPS, steps=len(rates))


def dc_recipe(
    distilled: DistilledData, *, epochs: int | None = None, augment: str | None = None, rate: float | None = None
) -> TrainRecipe:
    """Training recipe of protocol `dc` for some data.

    Data that was made for the protocol says so itself, and may ask for the one rate that it learned; all other data
    gets the paper's settings. The other arguments are those of `recipe.changed`.

    Raises:
        RequestError: a setting is impossible, or the data says something that is not known.
    """
    own = recipe_of(distilled) if distilled.is_condensed else DC
    return changed(own, epochs=epochs, augment=augment, rate=rate)


def shared_recipe(distilled: DistilledData) -> TrainRecipe | None:
    """Training recipe that baselines of some data share; None for plain steps, whose rates are tuned for each set.

    Raises:
        RequestError: as for `recipe_of`, or the recipe takes rates or batches of the data's own.
    """
    if not (is_format_2(distilled.provenance.inner) or distilled.is_condensed):
        return None
    recipe = recipe_of(distilled)
    if recipe.takes_own_steps:
        return None
    if recipe.lr == "learned" or recipe.batch == "stored":
        raise RequestError(
            f"baselines bring no rates and batches of their own, which this data is trained on with ({recipe}): leave "
            "them out"
        )
    return recipe


def inner_of(recipe: TrainRecipe) -> dict[str, Any]:
    """A recipe as `provenance.inner` records it: as format 1 spells protocol dc, or by its fields."""
    said = {name: getattr(recipe, name) for name in _IN_DC}
    if recipe.schedule != "dc" or recipe != replace(DC, **said) or not {"learned", "stored"}.isdisjoint(said.values()):
        return recipe.as_json()
    return {"protocol": CONDENSATION, **{_spelt(name): value for name, value in said.items()}, **_ALWAYS}


def own_steps(steps: int, epochs: int) -> dict[str, Any]:
    """`inner` of data with learning rates for each step: so many batches, and walks over them."""
    return {"optimizer": "sgd", "steps": steps, "epochs": epochs, "augment": None, "loss": "cross-entropy"}


def read_inner(inner: Mapping[str, Any]) -> TrainRecipe:
    """Recipe from what `inner_of` wrote.

    Raises:
        RequestError: a setting is impossible or not known.
    """
    if is_format_2(inner):
        return from_json(
            TrainRecipe, {name: value for name, value in inner.items() if name != BATCH_NORM}, RequestError
        )
    for name, value in _ALWAYS.items():
        if inner.get(name) != value:
            raise RequestError(f"protocol dc has {name} {value}, but this data was made with {inner.get(name)!r}")
    return replace(DC, **{name: _typed(name, inner.get(_spelt(name), getattr(DC, name))) for name in _IN_DC})


def in_format_1(distilled: DistilledData) -> DistilledData:
    """The same data, spelt so that `save` writes format 1, for programs from before format 2.

    Raises:
        RequestError: format 1 cannot say how networks are trained on it.
    """
    inner, learned = distilled.provenance.inner, distilled.learning_rates
    if not is_format_2(inner):
        return distilled
    recipe, walk = recipe_of(distilled), len(distilled.batches)
    rates = learned if recipe.lr == "learned" else torch.tensor([recipe.lr], device=distilled.images.device)
    beside = {name: value for name, value in inner.items() if name == BATCH_NORM}
    if rates is not None and replace(recipe, lr="learned").takes_own_steps:
        steps = recipe.steps_in(walk)
        if steps > 0 and steps % walk == 0 and len(rates) in (1, steps):
            return _retold(distilled, own_steps(walk, steps // walk) | beside, rates.expand(steps).clone())
    if recipe.lr != "learned":
        learned = None
    elif learned is not None and len(learned) == 1:
        recipe = replace(recipe, lr=float(learned))
    told = inner_of(recipe)
    if is_format_2(told):
        raise RequestError(
            "format 1 knows plain gradient descent by the data's own batches, and protocol dc, but this data asks for "
            f"another training ({recipe}): leave it in format 2"
        )
    every = torch.arange(len(distilled.labels), device=distilled.images.device)
    return replace(_retold(distilled, told | beside, learned), batches=every.view(1, -1))


def _retold(distilled: DistilledData, inner: dict[str, Any], rates: Float[Tensor, "t"] | None) -> DistilledData:
    return replace(distilled.noted(inner=inner), learning_rates=rates)


def _spelt(name: str) -> str:
    """A setting of protocol dc, as format 1 spells it."""
    return "rate" if name == "lr" else name


def _typed(name: str, value: Any) -> Any:
    """A setting of protocol dc, if it is of its type."""
    kind = type(getattr(DC, name))
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is not str and not abs(value) < _MOST):
        raise RequestError(f"{_spelt(name)} of protocol dc is {value!r}, but must be {_TYPES[kind]}")
    return float(value) if kind is float else value
