"""Training recipes: the one description of training, on real or distilled data."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from datadistill.data.augment import NONE, parse_augmentation
from datadistill.engine.losses import Loss
from datadistill.engine.optimizers import SGD, Adam, AdamW, Optimizer
from datadistill.utils.errors import RequestError, unknown_name
from datadistill.utils.fields import check_numbers

_ALWAYS = ("epochs", "rate", "batch")
_NO_FLAG: dict[str, Any] = {"flag": None}


@dataclass(frozen=True)
class TrainRecipe:
    """Recipe of a training; by default Adam with a learning rate that falls to zero along a cosine.

    The code of Wang et al. 2018 trains pools for 40 to 130 epochs at 2e-4 and halves the rate twice; a cosine from a
    higher rate gets as far in fewer epochs.

    Schedule `dc` is the code of Zhao et al., "Dataset Condensation with Gradient Matching" (ICLR 2021), section 4.1,
    oddities included, because published figures depend on them: the images are walked one epoch more than is said; the
    rate falls to a tenth at the end of epoch `epochs // 2 + 1`, counted from 0; and the optimiser starts anew there.

    Attributes:
        epochs: walks over the training images; 0 leaves a network as it is.
        lr: learning rate at first; `learned` takes what distilled data holds, one for all steps or one for each.
        batch: images per step; `stored` takes the batches that distilled data holds.
        optimizer: `adam`, `adamw` or `sgd`.
        momentum: of SGD.
        weight_decay: this share of the weights is added to their gradient; with `adamw`, this share times the rate is
            taken from the weights themselves.
        schedule: how the rate falls: `cosine` (to zero), `constant`, or `dc` (to a tenth at half, with a new start).
        augment: how images are changed: `none`, or parts such as `color_crop_flip`, of which one is drawn for each
            batch (Zhao and Bilen 2021).
        steps: gradient steps, if not as many as the epochs have; 0: those.
        order: of the images, or of stored batches, in each epoch: `shuffled` or `stored`.
        loss: `cross-entropy`, `mse` or `kl` (see `engine.losses.Loss`).
        temperature: of `kl`, also for what a teacher answers.
        labels: `stored`, or `teacher`: what a teacher answers to each batch, seen as the network sees it.

    Raises:
        RequestError: a setting is impossible, alone or beside another.
    """

    epochs: int = 5
    lr: float | Literal["learned"] = field(default=0.001, metadata={"flag": "rate"})
    batch: int | Literal["stored"] = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant", "dc"] = field(default="cosine", metadata={"flag": "falls"})
    augment: str = NONE
    steps: int = field(default=0, metadata=_NO_FLAG)
    order: Literal["shuffled", "stored"] = field(default="shuffled", metadata=_NO_FLAG)
    loss: Literal["cross-entropy", "mse", "kl"] = field(default="cross-entropy", metadata=_NO_FLAG)
    temperature: float = field(default=1.0, metadata=_NO_FLAG)
    labels: Literal["stored", "teacher"] = field(default="stored", metadata=_NO_FLAG)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        check_numbers(self, {"epochs": 0, "steps": 0}, no_less=["weight_decay"])
        if self.batch != "stored" and self.batch < 1:
            raise RequestError(f"batch is {self.batch}, but must be at least 1")
        if self.lr != "learned" and not 0 < self.lr < math.inf:
            raise RequestError(f"the rate is {self.lr}, but must be positive and finite")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise RequestError(
                f"momentum is {self.momentum}, but must be at least 0 and less than 1, and 0 but for sgd"
            )
        if not 0 < self.temperature < math.inf or (self.temperature != 1 and self.loss != "kl"):
            raise RequestError(f"temperature is {self.temperature}, but must be positive and finite, and 1 but for kl")
        if self.schedule == "dc" and (self.epochs < 1 or self.steps):
            raise RequestError(
                f"schedule dc goes by epochs, at least 1, but epochs is {self.epochs} and steps is {self.steps}"
            )
        parse_augmentation(self.augment)

    @property
    def criterion(self) -> Loss:
        """The loss."""
        return Loss(self.loss, self.temperature)

    @property
    def takes_own_steps(self) -> bool:
        """Whether it is the training that methods differentiate: plain steps by the data's own batches and rates."""
        return self == replace(OWN_STEPS, epochs=self.epochs, steps=self.steps)

    @property
    def walks(self) -> int:
        """How often the data is walked, if epochs say it."""
        return self.epochs + (self.schedule == "dc")

    def steps_in(self, walk: int) -> int:
        """Gradient steps in all, where a walk over the data has so many."""
        return self.steps or self.walks * walk

    def restart(self, walk: int) -> int:
        """The step before which the optimiser starts anew: 0, or that at which schedule `dc` lowers the rate."""
        return min(self.epochs // 2 + 2, self.walks) * walk if self.schedule == "dc" else 0

    def factor(self, step: int, walk: int) -> float:
        """Learning-rate schedule: the share of the first rate at a step."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step / self.steps_in(walk))))
        return 0.1 if self.schedule == "dc" and step >= self.restart(walk) else 1.0

    def make_optimizer(self) -> Optimizer:
        """Optimiser of the steps."""
        if self.optimizer == "sgd":
            return SGD(self.momentum, self.weight_decay)
        return (Adam if self.optimizer == "adam" else AdamW)(weight_decay=self.weight_decay)

    def words(self) -> dict[str, Any]:
        """The settings as flags, TOML recipes and files of pools spell them."""
        return {word: getattr(self, name) for word, name in _FIELDS.items()}

    def known(self) -> dict[str, Any]:
        """`words`, without what is as usual: a field that is new does not change what is older than it."""
        usual = TrainRecipe().words()
        return {word: value for word, value in self.words().items() if word in _ALWAYS or value != usual[word]}

    def as_words(self) -> list[str]:
        """`known` as flags."""
        flags = {f"--{name.replace('_', '-')}": str(value) for name, value in self.known().items()}
        return [word for flag in flags.items() for word in flag]

    def told(self, **words: Any) -> "TrainRecipe":
        """The same with other settings, by the names of `words`.

        Raises:
            TypeError: there is no such setting.
        """
        return replace(self, **by_field(words))

    def as_json(self) -> dict[str, Any]:
        """Every setting by its name: the key `training` of distilled data in format 2."""
        return asdict(self)

    def __str__(self) -> str:
        length = f"{self.steps} steps" if self.steps else f"{self.epochs} epochs"
        rate = "learned rates" if self.lr == "learned" else f"rate {self.lr:.4g}"
        augment = "no augmentation" if self.augment == NONE else f"augmentation {self.augment}"
        unusual = [word for word in (self.optimizer, self.loss) if word not in ("sgd", "cross-entropy")]
        return ", ".join([length, rate, *unusual, augment])


_CHOICES = {name: get_args(hint) for name, hint in get_type_hints(TrainRecipe).items() if get_origin(hint) is Literal}
_FIELDS = {entry.metadata.get("flag") or entry.name: entry.name for entry in fields(TrainRecipe)}


def by_field(words: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are spelt as `TrainRecipe.words` does, by the names of its fields."""
    return {_FIELDS.get(word, word): value for word, value in words.items()}


FLAGS = tuple(flag for entry in fields(TrainRecipe) if (flag := entry.metadata.get("flag", entry.name)))
"""What is asked of training on real images, as `words` spells it."""

OWN_STEPS = TrainRecipe(lr="learned", batch="stored", optimizer="sgd", schedule="constant", order="stored")
"""Gradient descent by the data's own batches and learning rates, in their order."""

DC = TrainRecipe(300, 0.01, 256, "sgd", momentum=0.9, weight_decay=0.0005, schedule="dc")
"""Protocol `dc`: how the field trains networks on distilled images (Zhao et al. 2021)."""

EPOCHS_AUGMENTED = 1000
"""Of protocol `dc` with augmentation."""


def changed(
    recipe: TrainRecipe, *, epochs: int | None = None, augment: str | None = None, rate: float | None = None
) -> TrainRecipe:
    """Protocol `dc` with what is not None put in its place.

    Args:
        recipe: the protocol, perhaps with settings of some data.
        epochs: other ones; where augmentation is added or left out, 1000 with it and 300 without.
        augment: another one.
        rate: another one.
    """
    augment = recipe.augment if augment is None else re.sub(r"\s", "", augment).lower()
    is_augmented = bool(parse_augmentation(augment))
    if epochs is None:
        same = is_augmented == bool(parse_augmentation(recipe.augment))
        epochs = recipe.epochs if same else EPOCHS_AUGMENTED if is_augmented else DC.epochs
    return replace(recipe, epochs=epochs, augment=augment, lr=recipe.lr if rate is None else rate)
