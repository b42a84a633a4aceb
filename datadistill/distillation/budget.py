"""Length of a run, in outer steps or by the clock."""

import math
import re
from dataclasses import dataclass

from datadistill.utils.errors import RequestError


@dataclass(frozen=True)
class Length:
    """Length of a run: outer steps, seconds by the clock, or whichever end first; schedules follow it."""

    iterations: int | None
    budget: float | None

    def __post_init__(self) -> None:
        if self.iterations is None and self.budget is None:
            raise RequestError("give iterations or a budget")
        if self.iterations is not None and self.iterations < 1:
            raise RequestError(f"iterations is {self.iterations}, but must be at least 1")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise RequestError(f"the budget is {self.budget} seconds, but must be positive")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1."""
        by_steps = step / self.iterations if self.iterations else 0.0
        by_clock = seconds / self.budget if self.budget else 0.0
        return min(1.0, max(by_steps, by_clock))


def parse_duration(given: float | str | None) -> float | None:
    """Seconds of a number, or of text such as `90`, `90s`, `5m`, `1.5h` or `1h30m`.

    Raises:
        RequestError: it is not a duration.
    """
    if given is None or isinstance(given, int | float):
        return given
    number, text = r"(\d+(?:\.\d*)?|\.\d+)", given.strip().lower()
    if re.fullmatch(number, text):
        return float(text)
    match = re.fullmatch("".join(rf"(?:{number}\s*{unit}\s*)?" for unit in "hms"), text)
    if match is None or not text:
        raise RequestError(f"'{given}' is no duration: write seconds, or for instance 90s, 5m, 1.5h or 1h30m")
    return sum(float(part) * seconds for part, seconds in zip(match.groups("0"), (3600, 60, 1), strict=True))
