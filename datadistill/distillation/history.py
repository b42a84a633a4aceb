"""How the distilled images changed: some moments of a run in 8 bits, few and small enough to keep beside it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from datadistill.distilled import DistilledData
from datadistill.utils.errors import DamagedFileError, explain_os_error, require
from datadistill.utils.files import read_tensors, write_tensors

HISTORY_NAME = "history.safetensors"
MOMENTS, FEWEST_MOMENTS, BYTES = 24, 8, 3 * 2**20
"""At most so many moments and bytes; of images too many for `FEWEST_MOMENTS` the first of each class are kept."""

_DEVIATIONS = 3.0


@dataclass(frozen=True, eq=False)
class EightBit:
    """Pixels in 8 bits, each image with its own range, as learned ones leave [0, 1].

    Attributes:
        levels: 0 to 255.
        low: what 0 stands for in each image.
        high: what 255 stands for.
    """

    levels: UInt8[Tensor, "*n c h w"]
    low: Float[Tensor, "*n"]
    high: Float[Tensor, "*n"]

    @classmethod
    def of(cls, pixels: Float[Tensor, "n c h w"]) -> "EightBit":
        """Rounded pixels; what lies both outside [0, 1] and beyond three deviations from an image's mean is cut off."""
        flat = pixels.detach().float().cpu().nan_to_num().double().flatten(1)
        mean, reach = flat.mean(1), _DEVIATIONS * flat.std(1, correction=0)
        low = torch.maximum(flat.amin(1), (mean - reach).clamp_max(0))
        high = torch.maximum(torch.minimum(flat.amax(1), (mean + reach).clamp_min(1)), low)
        span = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        levels = ((flat - low[:, None]) / span[:, None]).clamp(0, 1).mul(255).round().to(torch.uint8)
        return cls(levels.view(pixels.shape), low.float(), high.float())


@dataclass(frozen=True, eq=False)
class History:
    """Moments of a run.

    Attributes:
        steps: outer steps done at each, rising.
        chosen: which of the images these are.
        images: of each moment.
    """

    steps: Int64[Tensor, "m"]
    chosen: Int64[Tensor, "n"]
    images: EightBit

    def at(self, places: list[int]) -> "History":
        """Some of the moments."""
        levels, low, high = (part[places] for part in (self.images.levels, self.images.low, self.images.high))
        return History(self.steps[places], self.chosen, EightBit(levels, low, high))


def load_history(folder: Path) -> History | None:
    """The history of a run; None where there is none that can be read, as nothing but pictures depends on it."""
    path = folder / HISTORY_NAME
    if not path.is_file():
        return None
    try:
        tensors, _ = read_tensors(path)
        return _parse(tensors)
    except DamagedFileError:
        return None


def remember(folder: Path, step: int, distilled: DistilledData) -> None:
    """Add a moment; later ones, which the run went back from, are forgotten, and too many are thinned evenly."""
    shape = distilled.images.shape[1:]
    most = BYTES // shape.numel()
    chosen = first_of_each_class(distilled.labels.cpu(), min(len(distilled.labels), most // FEWEST_MOMENTS))
    if len(chosen) == 0:
        return  # one image is too large
    now = EightBit.of(distilled.provenance.normalization.invert(distilled.images[chosen.to(distilled.images.device)]))
    moment = History(torch.tensor([step]), chosen, EightBit(now.levels[None], now.low[None], now.high[None]))
    before = _until(load_history(folder), step - 1)
    if before is not None and before.images.levels.shape[1:] == now.levels.shape:
        moment = _joined(before, moment)
    _save(folder, moment.at(thinned(moment.steps.tolist(), min(MOMENTS, most // len(chosen)))))


def rewind_history(folder: Path, step: int) -> None:
    """Forget the moments after a step."""
    before = load_history(folder)
    kept = _until(before, step)
    if kept is None:
        try:
            (folder / HISTORY_NAME).unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, f"remove {folder / HISTORY_NAME}") from error
    elif before is not None and len(kept.steps) < len(before.steps):
        _save(folder, kept)


def first_of_each_class(labels: Int64[Tensor, "n"], count: int) -> Int64[Tensor, "m"]:
    """Which images are first when classes take turns, in rising order."""
    seen: dict[int, int] = {}
    turns = []
    for index, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], label, index))
    return torch.tensor(sorted(index for *_, index in sorted(turns)[:count]), dtype=torch.int64)


def thinned(steps: list[int], most: int) -> list[int]:
    """Which of rising steps to keep: the first, the last, and an even choice of those between them."""
    kept = list(range(len(steps)))
    while len(kept) > most:
        gaps = [steps[after] - steps[before] for before, after in zip(kept, kept[2:], strict=False)]
        del kept[1 + gaps.index(min(gaps))]
    return kept


def _until(history: History | None, step: int) -> History | None:
    """The moments up to a step, or None where there is none."""
    count = 0 if history is None else int((history.steps <= step).sum())
    return None if history is None or count == 0 else history.at(list(range(count)))


def _joined(before: History, after: History) -> History:
    pairs = [(getattr(before.images, name), getattr(after.images, name)) for name in ("levels", "low", "high")]
    return History(torch.cat([before.steps, after.steps]), after.chosen, EightBit(*map(torch.cat, pairs)))


def _save(folder: Path, history: History) -> None:
    images = history.images
    tensors = {"steps": history.steps, "chosen": history.chosen, "levels": images.levels}
    write_tensors(folder / HISTORY_NAME, tensors | {"low": images.low, "high": images.high}, {})


def _parse(tensors: dict[str, Tensor]) -> History:
    kinds = {"steps": torch.int64, "chosen": torch.int64, "levels": torch.uint8}
    kinds |= {"low": torch.float32, "high": torch.float32}
    for name, kind in kinds.items():
        require(name in tensors and tensors[name].dtype == kind, f"'{name}' is missing or of the wrong type")
    history = History(tensors["steps"], tensors["chosen"], EightBit(*(tensors[n] for n in ("levels", "low", "high"))))
    images, shape = history.images, (*history.steps.shape, *history.chosen.shape)
    require(len(shape) == 2 and images.levels.dim() == 5 and images.levels.numel() > 0, "it has the wrong shape")
    require(images.levels.shape[:2] == images.low.shape == images.high.shape == shape, "it has the wrong shape")
    require(bool((images.low.isfinite() & images.high.isfinite()).all()), "it is not finite")
    require(bool((history.steps.diff() > 0).all() & (history.chosen.diff() > 0).all()), "it is out of order")
    require(int(history.chosen[0]) >= 0 and int(history.steps[0]) >= 0, "it has negative numbers")
    return history
