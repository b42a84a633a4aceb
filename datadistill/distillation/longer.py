"""A run that goes on for more outer steps than it was started with."""

import re
from dataclasses import replace

from datadistill.distillation.config import RunConfig
from datadistill.distillation.settings import Settings
from datadistill.distillation.state import RunState
from datadistill.methods.base import Synthesis
from datadistill.utils.errors import RequestError


def is_longer(before: Settings, settings: Settings) -> bool:
    """Whether more outer steps are asked for than a run was started with."""
    there, here = before.asked["iterations"], settings.asked["iterations"]
    return there is not None and here is not None and here > there


def before_longer(before: Settings, config: RunConfig) -> RunConfig:
    """What is asked for, with as many outer steps as the run was started with."""
    return replace(config, iterations=before.asked["iterations"])


def lengthened(before: Settings, iterations: int) -> Settings:
    """What a run was asked for, with so many outer steps, and the command that makes the same from the start."""
    recipe, count = re.subn(r"--iterations[ =]\d+", f"--iterations {iterations}", before.recipe)
    if before.recipe and not count:
        recipe += f" --iterations {iterations}"
    return replace(before, asked={**before.asked, "iterations": iterations}, recipe=recipe)


def why_fixed(config: RunConfig, state: RunState | None = None) -> str | None:
    """Why a longer run would not have gone through the same states so far, or None.

    Args:
        config: what the run was asked for.
        state: where it is, if that is known.
    """
    outer, name = config.outer, config.method.name
    if isinstance(config.method, Synthesis):
        return f"method {name} takes no outer steps"
    if config.budget is not None or config.iterations is None:
        return "it goes by the clock"
    if outer.schedule != "constant":
        return f"its schedule {outer.schedule} follows the number of outer steps, as any but constant does"
    if outer.warmup:
        return "its warm-up is a share of all outer steps"
    if state is not None and state.is_paced:
        return f"method {name} asks how much of the run is done"
    if state is not None and state.finished and state.step < config.iterations:
        return f"it was given up at outer step {state.step}"
    return None


def check_can_be_longer(config: RunConfig, place: object, state: RunState | None = None) -> None:
    """Refuse more outer steps where the steps so far would have been others.

    Raises:
        RequestError: naming what depends on the number of outer steps.
    """
    if reason := why_fixed(config, state):
        raise RequestError(
            f"the run in {place} cannot be made longer: {reason}; leave --iterations out, or start anew with another "
            "--out"
        )


def what_to_do(config: RunConfig, place: object, state: RunState) -> str:
    """What is said when a finished run is resumed."""
    reason, done = why_fixed(config, state), f"the run in {place} is finished after {state.step} outer steps"
    if reason is None:
        return f"{done}: a larger --iterations makes it longer."
    return f"{done}: it cannot be made longer, since {reason}; for a longer one give another --out."
