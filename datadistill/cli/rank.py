"""rank: the scores by which DD-Ranking and DC-BENCH compare distilled sets."""

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

from datadistill.baselines import RandomReal, full_dataset
from datadistill.cli.common import add_data_flags, add_run_flag, listed, load_data, print_table
from datadistill.cli.parsing import Parser, positive_int
from datadistill.data import RealData
from datadistill.data.augment import NONE
from datadistill.distillation.problem import make_problem, started_like
from datadistill.distilled import DistilledData, is_format_2, load_distilled
from datadistill.engine import network_for
from datadistill.evaluation import (
    AugmentationRobustScore,
    LabelRobustScore,
    Score,
    average_over_augmentations,
    average_over_transfer,
    best_over_augmentations,
    evaluate_sets,
    percent,
)
from datadistill.methods import Problem
from datadistill.methods.dc import DSA_STRATEGY
from datadistill.models import model_name, same_model
from datadistill.models.gate import passed
from datadistill.training.carried import dc_recipe, shared_recipe
from datadistill.training.recipe import DC, TrainRecipe
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import counting, say
from datadistill.utils.runtime import resolve_device, versions

USAGE = "PATH"
DESCRIPTION = """\
Score a distilled set as DD-Ranking and DC-BENCH do, from networks trained on

  - the set by its own protocol, and random real images by the same one;
  - the set with hard labels and the random images by protocol dc, with augmentation
    and without;
  - the full real dataset by protocol dc, with the number of epochs you say.

Scores are fractions. Rates are those of the protocol: they are not searched for.

examples:
  datadistill rank runs/RUN --nets 5
  datadistill rank runs/RUN --full-epochs 50 --transfer mlp,lenet --json
"""

NETS, SETS, FULL_EPOCHS = 5, 5, 20


@dataclass(frozen=True)
class _Measured:
    """One training: on what, and its score."""

    what: str
    score: Score


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, or a run or gallery folder")
    parser.add_argument("--model", metavar="NAME", help="another network than its own")
    add_run_flag(parser, "batch_norm", "as the data was made")
    parser.add_argument(
        "--nets", type=positive_int, metavar="N", default=NETS, help="networks for each part (default: %(default)s)"
    )
    parser.add_argument(
        "--sets",
        type=positive_int,
        metavar="N",
        default=SETS,
        help="random sets, which share them (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=positive_int, metavar="N", help="of protocol dc (default: as the data says, or 300, or 1000)"
    )
    parser.add_argument(
        "--augment", metavar="PARTS", help=f"the augmentation (default: as the data says, or {DSA_STRATEGY})"
    )
    parser.add_argument(
        "--full-epochs",
        type=positive_int,
        metavar="N",
        default=FULL_EPOCHS,
        help="on the full dataset, with one network (default: %(default)s)",
    )
    parser.add_argument("--transfer", metavar="A,B", help="other networks, for the average over transfer")
    add_data_flags(parser, "the one it was made from")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> None:
    data = load_distilled(arguments.path)
    name = passed("dataset", arguments.dataset, data.provenance.dataset, data_root=arguments.data_root)
    real = load_data(name, arguments, like=data).to(resolve_device(arguments.device))
    data.check_matches(real)
    ranking = _Ranking(data, real, arguments)
    parts = ranking.measure()
    scores = _scores({name: part.score.accuracy.mean for name, part in parts.items()})
    if arguments.json:
        print(json.dumps(_document(arguments, real, parts, scores), indent=2))
        return
    rows = [[part.what, str(part.score.nets), percent(part.score.accuracy)] for part in parts.values()]
    print_table(f"{arguments.path}, {parts['syn_own'].score.model}", ["trained on", "nets", "test accuracy"], rows)
    shown = [[name, f"{value:.4f}"] for name, value in scores.items()]
    print_table("scores, as fractions; the best over augmentations is chosen by test images", ["score", ""], shown)


class _Ranking:
    """Trainings that the scores are made of."""

    def __init__(self, data: DistilledData, real: RealData, arguments: argparse.Namespace) -> None:
        self.data, self.real, self.arguments = data, real, arguments
        self.model = passed("network", arguments.model, data.provenance.model)
        self.others = listed(arguments.transfer)
        for known in (self.model, *self.others):
            policy = arguments.batch_norm or data.provenance.batch_norm
            for remark in network_for(known, real, real.test.images.device, policy).remarks:
                say(remark)  # and what does not fit is refused before anything is trained
        for name in self.others:
            if same_model(name.lower(), model_name(self.model).lower()):
                raise RequestError(f"--transfer names {name}, the network of the set itself: name others")
        own = dc_recipe(data)
        augment = arguments.augment or (DSA_STRATEGY if own.augment == NONE else own.augment)
        if augment.strip().lower() == NONE:
            raise RequestError("--augment is none, but the score needs an augmentation to compare none with")
        self.plain = dc_recipe(data, augment=NONE, epochs=arguments.epochs)
        self.augmented = dc_recipe(data, augment=augment, epochs=arguments.epochs)
        by_own = is_format_2(data.provenance.inner) or not (data.is_condensed or data.learning_rates is None)
        self.own = None if by_own else dc_recipe(data, epochs=arguments.epochs)

    def measure(self) -> dict[str, _Measured]:
        """Trainings by the names under which the scores take them."""
        hard = replace(self.data, soft_labels=None)
        random = self._random(_for_real_images(self.plain))
        found = {}
        for name, settings in (("plain", self.plain), ("augmented", self.augmented)):
            found[f"syn_{name}"] = self._on(f"the set, hard labels, {settings}", [hard], settings)
            usual = _for_real_images(settings)
            found[f"random_{name}"] = self._on(f"random images, {usual}", random, usual)
        # The hard labels are judged as the data is meant to be, where that is protocol dc.
        which = "augmented" if self.own is not None and self.own.augment != NONE else "plain"
        found["syn_hard"] = found[f"syn_{which}"]
        if self.own is None:
            shared = shared_recipe(self.data)
            found["syn_own"] = self._on(f"the set, {shared or 'by its own steps'}", [self.data], None)
            found["random_own"] = self._on(f"random images, {shared or 'by as many steps'}", self._random(shared), None)
        else:
            same = self.own in (self.plain, self.augmented)
            hard_too = same and self.data.soft_labels is None
            found["syn_own"] = (
                found["syn_hard"] if hard_too else self._on(f"the set, {self.own}", [self.data], self.own)
            )
            usual = _for_real_images(self.own)
            found["random_own"] = (
                found[f"random_{which}"] if same else self._on(f"random images, {usual}", random, usual)
            )
        full = _for_real_images(replace(self.plain, epochs=self.arguments.full_epochs))
        everything = full_dataset(self._problem(), full)
        found["real_hard"] = self._on(f"the full dataset, {full}", [everything], full, nets=1)
        for model in self.others:
            settings = self.own or self.plain
            found[f"transfer_{model}"] = self._on(f"the set, {model}, {settings}", [self.data], settings, model=model)
        return found

    def _on(
        self,
        what: str,
        sets: list[DistilledData],
        settings: TrainRecipe | None,
        nets: int | None = None,
        model: str | None = None,
    ) -> _Measured:
        """Score of networks trained on some sets, by protocol dc with these settings or by the sets' own recipe."""
        changes: dict[str, Any] = {}
        if settings is not None:
            changes = {"epochs": settings.epochs, "augment": settings.augment, "rate": settings.lr}
        _, score = evaluate_sets(
            sets,
            self.real,
            model=model or self.model,
            nets=nets or self.arguments.nets,
            protocol="own" if settings is None else "dc",
            seed=self.arguments.seed,
            batch_norm=self.arguments.batch_norm,
            bar=counting,
            title=what,
            **changes,
        )
        return _Measured(what, score)

    def _random(self, settings: TrainRecipe | None) -> list[DistilledData]:
        """Random real sets of the same size; without settings for as many steps, with tuned rates."""
        sets = min(self.arguments.sets, self.arguments.nets)
        if settings is not None:
            return RandomReal(sets=sets, recipe=settings, bar=counting).run(self._problem())
        problem, rates = self._problem(), self.data.learning_rates
        kind, steps = str(self.data.provenance.weights.get("kind")), len(self.data.batches)
        if kind == "random-pretrained":
            raise RequestError("this set was made for trained networks, which cannot be ranked: use compare --pool")
        if self.data.initial_weights is not None and self.arguments.model is None:
            problem = started_like(problem, self.data, kind)
        assert rates is not None, "data without rates is trained on by protocol dc"
        return RandomReal(steps, len(rates) // steps, sets, bar=counting).run(problem)

    def _problem(self) -> Problem:
        mine = self.data.provenance
        counts = self.data.labels.cpu().bincount(minlength=self.real.num_classes).tolist()
        if 0 in counts:
            raise RequestError("this set has no image of some classes, so that no random set is like it")
        return make_problem(
            self.real,
            model=self.model,
            weights="random-init",
            scheme=str(mine.weights.get("scheme", "default")),
            ipc=counts,
            seed=self.arguments.seed,
            device=self.real.train.images.device,
            batch_norm=self.arguments.batch_norm or mine.batch_norm,
        )


def _for_real_images(settings: TrainRecipe) -> TrainRecipe:
    """The same at the protocol's own rate: one that was learned belongs to the distilled images."""
    return replace(settings, lr=DC.lr)


def _scores(found: dict[str, float]) -> dict[str, float]:
    """The scores and what they are made of, all from accuracies."""
    labels = LabelRobustScore(*(found[name] for name in ("real_hard", "syn_hard", "syn_own", "random_own")))
    names = ("syn_augmented", "random_augmented", "syn_plain", "random_plain")
    augmented = AugmentationRobustScore(*(found[name] for name in names))
    both = {"augmented": found["syn_augmented"], "none": found["syn_plain"]}
    scores = {
        "HLR, hard label recovery": labels.hard_label_recovery,
        "IOR, improvement over random": labels.improvement_over_random,
        "LRS, label robust score": labels.score,
        "beta": augmented.beta,
        "ARS, augmentation robust score": augmented.score,
        "best over augmentations": best_over_augmentations(both),
        "average over augmentations": average_over_augmentations(both),
    }
    transfer = {name: value for name, value in found.items() if name.startswith("transfer_")}
    return scores | ({"average over transfer": average_over_transfer(transfer)} if transfer else {})


def _document(
    arguments: argparse.Namespace, real: RealData, parts: dict[str, _Measured], scores: dict[str, float]
) -> dict[str, Any]:
    return {
        "path": arguments.path,
        "dataset": real.origin,
        "scores": scores,
        "parts": {name: {"trained_on": part.what, **part.score.as_json()} for name, part in parts.items()},
        "chance": 1 / real.num_classes,
        "versions": versions(),
    }
