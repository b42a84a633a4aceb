"""Methods: one file per paper, one record here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from datadistill.methods.base import Context, Method, Problem, State, Step, Synthesis, options_of, plan
from datadistill.methods.dc import DC, DSA_STRATEGY, loops_for
from datadistill.methods.dd import DD
from datadistill.methods.dm import DM
from datadistill.methods.krr import KRR
from datadistill.methods.mtt import MTT, settings_for
from datadistill.methods.random_teacher import RandomTeacher
from datadistill.methods.rat_bptt import RaTBPTT
from datadistill.utils.fields import by_name
from datadistill.utils.registry import Registry

__all__ = [
    "DC",
    "DD",
    "DM",
    "KRR",
    "METHODS",
    "MTT",
    "Context",
    "Method",
    "MethodInfo",
    "Needs",
    "Problem",
    "RaTBPTT",
    "RandomTeacher",
    "State",
    "Step",
    "Synthesis",
    "anonymous",
    "options_of",
    "plan",
    "record_of",
]

_CONVNET = {"model": "convnet", "weights": "random-init", "scheme": "default", "ipc": 1}
_RECIPES = {
    **dict.fromkeys(("fixed-init", "fixed-pretrained"), "mnist-fixed-10"),
    **dict.fromkeys(("random-init", "random-pretrained"), "mnist-random-100"),
}
_NETWORKS = 1000
"""Of gradient matching; each is matched several times, and an outer step is one match."""

Asked: TypeAlias = dict[str, dict[str, Any]]
"""What a paper asks for, by `run` and `outer`."""


def _of_gradient_matching(ipc: float) -> Asked:
    return {"run": {"iterations": _NETWORKS * loops_for(ipc)[0]}}


def _of_distribution_matching(ipc: float) -> Asked:
    return {"outer": {"lr": 10.0 if ipc >= 100 else 1.0}}


def _of_trajectory_matching(ipc: float) -> Asked:
    setting = settings_for(ipc)
    return {"outer": {"lr": setting.lr, "lr_lr": setting.lr_lr}}


@dataclass(frozen=True)
class Needs:
    """Requirements of a method.

    Attributes:
        derivatives: how often the network must be differentiable: 0, 1 or 2 times.
        experts: trajectories of networks trained on real data.
        teacher: a network trained on real data.
        pool: several of them.
    """

    derivatives: Literal[0, 1, 2] = 2
    experts: bool = False
    teacher: bool = False
    pool: bool = False


@dataclass(frozen=True)
class MethodInfo:
    """A distillation method.

    Attributes:
        name: what people type.
        line: one line of explanation.
        paper: its source.
        year: of publication.
        make: the dataclass of its hyper-parameters.
        learns: the variables that are optimised, by their names in `DistilledData`.
        code: where a method of the user's own lies, as `--method` names it.
        non_negative: those of them that are cut off below zero after each step.
        needs: what it cannot do without.
        kind: how its images come about.
        exact: options that depart from the exact derivative on purpose, and what they are where they do not.
        defaults: hyper-parameters of the paper, where they are not those of the dataclass.
        run: what the paper distils with: network, initial weights and the like.
        outer: the paper's outer loop.
        by_ipc: what of these goes by the number of images per class.
        recipes: which one flags of the command line change, by the kind of initial weights; none: the paper's settings.
        ipc: images per class where none are asked for, by its hyper-parameters.
        networks: how many an outer step takes, by its hyper-parameters.
        proxy: the network that it matches on, by its hyper-parameters; `same` as the run's.
    """

    name: str
    line: str
    paper: str
    year: int
    make: type[Any]
    learns: tuple[str, ...]
    needs: Needs = Needs()
    kind: Literal["optimised", "synthesised", "selected"] = "optimised"
    exact: Mapping[str, Any] = field(default_factory=dict)
    non_negative: tuple[str, ...] = ()
    code: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)
    by_ipc: Callable[[float], Asked] = lambda ipc: {}
    recipes: Mapping[str, str] = field(default_factory=dict)
    ipc: Callable[[Any], int] = lambda method: 1
    networks: Callable[[Any], int] = lambda method: 1
    proxy: Callable[[Any], str] = lambda method: "same"

    def build(self, options: Mapping[str, Any]) -> Any:
        """The method with these hyper-parameters, and its own defaults for the others: a `Method` or a `Synthesis`."""
        method: Method | Synthesis = self.make(**{**self.defaults, **by_name(self.make, options)})
        return method


METHODS = Registry(
    "method",
    (
        MethodInfo(
            name="dd",
            line="images and learning rates optimised through training",
            paper="Wang et al., Dataset Distillation, arXiv 1811.10959",
            year=2018,
            make=DD,
            learns=("images", "learning_rates", "soft_labels"),
            exact={"surrogate_width": 0.0, "network_clip": 0.0, "window": 0},
            recipes=_RECIPES,
            ipc=lambda method: method.steps,
            networks=lambda method: method.networks,
        ),
        MethodInfo(
            name="dc",
            line="gradients of distilled images matched to those of real ones",
            paper="Zhao et al., Dataset Condensation with Gradient Matching, ICLR 2021",
            year=2021,
            make=DC,
            learns=("images",),
            run=_CONVNET | {"iterations": _NETWORKS},
            outer={"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "schedule": "constant"},
            by_ipc=_of_gradient_matching,
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="dsa",
            line="gradient matching under one random transformation of real and distilled images",
            paper="Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021",
            year=2021,
            make=DC,
            learns=("images",),
            defaults={"images": "real", "augment": DSA_STRATEGY},
            run=_CONVNET | {"iterations": _NETWORKS},
            outer={"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "schedule": "constant"},
            by_ipc=_of_gradient_matching,
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="dm",
            line="mean features of distilled images matched to those of real ones, under random networks",
            paper="Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023",
            year=2023,
            make=DM,
            learns=("images",),
            needs=Needs(derivatives=1),
            run=_CONVNET | {"iterations": 20_000},
            outer={"optimizer": "sgd", "lr": 1.0, "momentum": 0.5, "schedule": "constant"},
            by_ipc=_of_distribution_matching,
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="mtt",
            line="training on the images goes where the training of experts on real images went",
            paper="Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022",
            year=2022,
            make=MTT,
            learns=("images", "learning_rates", "soft_labels"),
            needs=Needs(experts=True),
            non_negative=("soft_labels",),
            exact={"derivative": "exact"},
            run=_CONVNET | {"iterations": 5000},
            outer={"optimizer": "sgd", "lr": 100.0, "lr_lr": 1e-3, "momentum": 0.5, "schedule": "constant"},
            by_ipc=_of_trajectory_matching,
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="rat_bptt",
            line="training by Adam, differentiated through a window that lies anywhere in it",
            paper="Feng et al., Embarrassingly Simple Dataset Distillation, ICLR 2024",
            year=2024,
            make=RaTBPTT,
            learns=("images", "soft_labels"),
            non_negative=("soft_labels",),
            exact={"window": 0},
            networks=lambda method: method.networks,
            run=_CONVNET | {"iterations": 10_000},
            outer={"lr": 0.001, "betas": (0.9, 0.999), "clip": 2.0, "schedule": "constant"},
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="krr",
            line="a ridge regression on features of partly trained networks, in the place of their training",
            paper="Zhou et al., Dataset Distillation using Neural Feature Regression, NeurIPS 2022",
            year=2022,
            make=KRR,
            learns=("images", "soft_labels"),
            needs=Needs(derivatives=1),
            non_negative=("soft_labels",),
            run=_CONVNET | {"iterations": 10_000},
            outer={
                "lr": 0.03,
                "betas": (0.9, 0.999),
                "clip": 2.0,
                "average": 0.99,
                "schedule": "cosine",
                "eval_every": 500,
            },
            proxy=lambda method: method.matched_on,
        ),
        MethodInfo(
            name="random_teacher",
            line="random real images with the soft labels of a trained network, a baseline for soft labels",
            paper="Qin et al., A Label is Worth a Thousand Images in Dataset Distillation, NeurIPS 2024",
            year=2024,
            make=RandomTeacher,
            learns=(),
            needs=Needs(derivatives=1),
            kind="selected",
            run=_CONVNET | {"iterations": 1},
        ),
    ),
)


def record_of(method: Method | Synthesis) -> MethodInfo:
    """The record of a method."""
    for record in METHODS:
        if record.name == method.name and isinstance(method, record.make):
            return record
    return anonymous(method)


def anonymous(method: Method | Synthesis) -> MethodInfo:
    """A record for a method without one, which forbids nothing."""
    is_synthesis = isinstance(method, Synthesis)
    return MethodInfo(
        name=method.name,
        line=(type(method).__doc__ or "").partition("\n")[0],
        paper="",
        year=0,
        make=type(method),
        learns=() if is_synthesis else ("images", "learning_rates", "soft_labels"),
        needs=Needs(experts=True),
        kind="synthesised" if is_synthesis else "optimised",
        run={"weights": "random-init"},
    )
