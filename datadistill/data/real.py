"""RealData: a labelled dataset as tensors on one device, with a held-out slice for every choice."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datadistill.data.labelled import Labelled
from datadistill.data.options import Options, check_room_to_whiten
from datadistill.data.transforms import Normalization, Whitening
from datadistill.utils.errors import RequestError
from datadistill.utils.progress import Bar, quiet
from datadistill.utils.runtime import stream

HELD_OUT_FRACTION = 0.1
HELD_OUT_MOST = 5000


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, all on one device.

    Attributes:
        images: normalised, and whitened where that was asked for, as a network takes them.
        labels: class indices.
        num_classes: how many classes there are, including any that this split lacks.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def counts(self) -> Int64[Tensor, "k"]:
        """Images per class, on the CPU."""
        return torch.bincount(self.labels.cpu(), minlength=self.num_classes)

    @cached_property
    def _by_class(self) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "k"]]:
        order = torch.argsort(self.labels.cpu(), stable=True)
        return order, torch.cumsum(self.counts, 0) - self.counts

    def of_class(self, label: int) -> Int64[Tensor, "m"]:
        """Indices of the images of one class, on the CPU."""
        order, first = self._by_class
        return order[int(first[label]) : int(first[label] + self.counts[label])]

    def draw(self, count: int, generator: torch.Generator) -> Int64[Tensor, "{count}"]:
        """Indices of a class-balanced random batch, with replacement, on the CPU.

        Each class gets `count / num_classes` images; where that does not divide, the classes that get one
        more are drawn too.
        """
        order, first = self._by_class
        shift = torch.randint(self.num_classes, (), generator=generator)
        classes = (torch.arange(count) + shift) % self.num_classes
        within = torch.rand(count, generator=generator, dtype=torch.float64) * self.counts[classes]
        return order[first[classes] + within.long()]

    def take(self, indices: Int64[Tensor, "m"]) -> "Split":
        """The images and labels at these indices."""
        indices = indices.to(self.labels.device)
        return Split(self.images[indices], self.labels[indices], self.num_classes)


@dataclass(frozen=True)
class Source:
    """Origin of data of one's own, by which a run can get it again and see whether it is the same.

    Attributes:
        given: what the user called it: a path as it was typed, `hf:NAME`, or a name.
        place: the same, to be found from any folder; empty where it came from arrays or datasets in Python.
        options: how it was read.
        digest: SHA-256 of all pixels, labels and class names, hexadecimal.
    """

    given: str
    place: str
    options: Options
    digest: str = ""


@dataclass(frozen=True, eq=False)
class RealData:
    """A dataset: what distilling learns from (`train`), chooses by (`held_out`) and is judged by (`test`).

    Attributes:
        name: the dataset's name.
        train: the training split less the held-out slice.
        held_out: a fixed, stratified slice of the training split: a tenth, at most 5,000 images; or the validation
            split of one's own data.
        test: the test split; for the last line of a report only.
        classes: class names, by index.
        normalization: how pixels in [0, 1] became the images here.
        source: where data of one's own comes from; None for a dataset with a name.
    """

    name: str
    train: Split
    held_out: Split
    test: Split
    classes: tuple[str, ...]
    normalization: Normalization
    source: Source | None = None

    @property
    def origin(self) -> str:
        """Name by which `load` gets it again: its own, or what the user called it."""
        return self.name if self.source is None else self.source.given

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[2]

    @property
    def is_whitened(self) -> bool:
        """Whether its images went through ZCA."""
        return self.normalization.zca is not None

    @property
    def options(self) -> Options:
        """Options of `load`, besides `origin`, that get it again."""
        return Options(zca=self.is_whitened) if self.source is None else self.source.options

    def whitened(self, bar: Bar = quiet) -> "RealData":
        """Dataset after ZCA whitening, learned from the training split less the held-out slice alone.

        Args:
            bar: shows progress.

        Raises:
            RequestError: it is whitened already, or the matrix does not fit the machine.
        """
        if self.is_whitened:
            raise RequestError(f"{self.name} is whitened already: whiten it once")
        check_room_to_whiten(self.name, self.train.images.shape[1:])
        zca = Whitening.learn(self.train.images, self.normalization.std, bar)
        train, held_out, test = (
            replace(split, images=zca.apply(split.images)) for split in (self.train, self.held_out, self.test)
        )
        source = self.source and replace(self.source, options=replace(self.source.options, zca=True))
        normalization = replace(self.normalization, zca=zca)
        return replace(self, train=train, held_out=held_out, test=test, normalization=normalization, source=source)

    def to(self, device: torch.device) -> "RealData":
        """The same data on a device."""

        def moved(split: Split) -> Split:
            return replace(split, images=split.images.to(device), labels=split.labels.to(device))

        return replace(self, train=moved(self.train), held_out=moved(self.held_out), test=moved(self.test))

    def check_ipc(self, ipc: int | float | tuple[int, ...]) -> tuple[int, ...]:
        """The images of each class as whole numbers, where the training split has that many.

        Args:
            ipc: one number for all classes, or one for each.

        Raises:
            RequestError: it has not, or they are no whole numbers.
        """
        if isinstance(ipc, tuple):
            for name, asked, there in zip(self.classes, ipc, self.train.counts.tolist(), strict=True):
                if not 1 <= asked <= there:
                    raise RequestError(
                        f"ipc is {asked} for class '{name}' of {self.name}, but must be from 1 to its {there} training "
                        "images"
                    )
            return ipc
        if ipc != int(ipc):
            raise RequestError(f"ipc is {ipc:g}, but only dd with --labels soft lets classes share images")
        if ipc < 1:
            raise RequestError(f"ipc is {ipc}, but each class needs at least 1 image")
        fewest = int(self.train.counts.min())
        if ipc > fewest:
            label = self.classes[int(self.train.counts.argmin())]
            raise RequestError(
                f"ipc is {ipc}, but class '{label}' of {self.name} has only {fewest} training images: "
                f"ask for at most {fewest}"
            )
        return (int(ipc),) * self.num_classes


def stratified(labels: Int64[Tensor, "n"], count: int, seed: int) -> Int64[Tensor, "{count}"]:
    """`count` sorted indices, drawn so that every class has its share, to within one image."""
    generator = stream(seed, "stratified")
    shares = torch.bincount(labels).double() * count / len(labels)
    take = shares.long()
    # The images that rounding down leaves over go to the classes that it cost most.
    take[torch.argsort(take - shares, stable=True)[: count - int(take.sum())]] += 1
    chosen = []
    for label, some in enumerate(take.tolist()):
        members = torch.nonzero(labels == label).flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:some]])
    return torch.cat(chosen).sort().values


def set_apart(split: Labelled, count: int, seed: int) -> tuple[Labelled, Labelled]:
    """The rest of a split, and a stratified sample of `count` of its images, each in their order."""
    chosen = torch.zeros(len(split.labels), dtype=torch.bool)
    chosen[stratified(split.labels, count, seed)] = True
    rest, sample = (Labelled(split.pixels[mask], split.labels[mask]) for mask in (~chosen, chosen))
    return rest, sample


def from_pixels(
    name: str,
    train: Labelled,
    test: Labelled,
    classes: tuple[str, ...],
    held_out: Labelled | None = None,
    source: Source | None = None,
) -> RealData:
    """RealData from 8-bit pixels; mean and standard deviation per channel come from the whole training split.

    The held-out slice depends on the labels alone, never on a run's seed, so that every run and every
    method chooses by the same images. A validation split takes its place where one is given.
    """
    normalization = Normalization.measure(train.pixels)
    if held_out is None:
        count = min(round(HELD_OUT_FRACTION * len(train.labels)), HELD_OUT_MOST)
        train, held_out = set_apart(train, count, seed=0)

    def normalized(split: Labelled) -> Split:
        return Split(normalization.apply(split.pixels), split.labels, len(classes))

    return RealData(
        name=name,
        train=normalized(train),
        held_out=normalized(held_out),
        test=normalized(test),
        classes=classes,
        normalization=normalization,
        source=source,
    )
