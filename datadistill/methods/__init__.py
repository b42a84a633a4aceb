"""Methods: one file per paper, one record here."""

from dataclasses import dataclass
from typing import Any

from datadistill.methods.base import Gradients, Method, Outcome, Problem, make_problem, options_of
from datadistill.methods.dd import DD
from datadistill.methods.mtt import MTT
from datadistill.registry import Registry

__all__ = [
    "DD",
    "METHODS",
    "MTT",
    "Gradients",
    "Method",
    "MethodInfo",
    "Outcome",
    "Problem",
    "make_problem",
    "options_of",
]


@dataclass(frozen=True)
class MethodInfo:
    """A distillation method.

    Attributes:
        name: what people type.
        line: one line of explanation.
        paper: its source.
        year: of publication.
        make: the dataclass of its hyper-parameters.
        learns: what is optimised.
    """

    name: str
    line: str
    paper: str
    year: int
    make: type[Any]
    learns: tuple[str, ...]


METHODS = Registry(
    "method",
    (
        MethodInfo(
            name="dd",
            line="images and learning rates optimised through training",
            paper="Wang et al., Dataset Distillation, arXiv 1811.10959",
            year=2018,
            make=DD,
            learns=("images", "learning rates"),
        ),
        MethodInfo(
            name="mtt",
            line="training on the images goes where training of experts on real images goes",
            paper="Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR",
            year=2022,
            make=MTT,
            learns=("images", "learning rate"),
        ),
    ),
)


def method_name(method: Method) -> str:
    """The name under which a method's class is registered.

    Raises:
        ValueError: it is not registered.
    """
    for info in METHODS:
        if isinstance(method, info.make):
            return info.name
    raise ValueError(f"{type(method).__name__} is no registered method")
