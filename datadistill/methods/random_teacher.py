"""Random real images with a teacher's soft labels: the baseline beside which soft labels must be judged.

Qin, Deng and Alvarez-Melis, "A Label is Worth a Thousand Images in Dataset Distillation" (NeurIPS 2024), section 3:
real images drawn at random, each with the probabilities that a network trained on all real images gives its classes.
They come near to methods with learned labels, so that a method with soft labels shows something only above this.

A teacher is better for few images if its training is stopped early (section 4 there), so its epochs go by the number of
images per class.

Where this differs from the authors' code:
    - one teacher labels all images, trained as protocol `dc` trains networks, and not a series of its checkpoints of
      which the best is chosen by test images;
    - networks are trained on the result by protocol `dc`.
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch

from datadistill.distilled import DistilledData
from datadistill.engine.functional import Weights
from datadistill.methods.base import Problem, options_of
from datadistill.methods.initial_images import some_of_class
from datadistill.methods.judging import for_protocol
from datadistill.training.fit import fit
from datadistill.training.recipe import DC
from datadistill.utils.errors import RequestError
from datadistill.utils.fields import check_numbers
from datadistill.utils.runtime import stream

EPOCHS = {1: 20, 10: 44, 50: 128, 100: 164}
"""By images per class, for a ConvNet on CIFAR-10 (the paper's): when the training of a teacher is best stopped."""


@dataclass(frozen=True)
class RandomTeacher:
    """Hyper-parameters of random images with a teacher's labels.

    Attributes:
        teacher_epochs: of training the teacher on the real images; 0: by the number of images per class, 20 for 1, 44
            for 10, 128 for 50 and 164 for 100, in between on a line over its logarithm.
        temperature: that the teacher's scores are divided by before they become probabilities.
        learning_rate: of the teacher.
        batch: real images per step of the teacher's training.
    """

    teacher_epochs: int = 0
    temperature: float = 1.0
    learning_rate: float = 0.01
    batch: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, {"teacher_epochs": 0, "batch": 1}, positive=["temperature", "learning_rate"])

    @property
    def name(self) -> str:
        return "random_teacher"

    def resolve(self, problem: Problem) -> "RandomTeacher":
        """Method with `teacher_epochs` by the number of images per class.

        Raises:
            RequestError: under an attack, or a class has fewer images than are asked for.
        """
        problem.real.check_ipc(problem.ipc)
        if problem.attack is not None:
            raise RequestError("method random_teacher chooses real images: an attack needs method dd, dc or dsa")
        ipc = problem.count / problem.real.num_classes
        return replace(self, teacher_epochs=self.teacher_epochs or epochs_for(ipc))

    def pieces(self, problem: Problem) -> int:
        """One for each class."""
        return problem.real.num_classes

    def piece(self, number: int, problem: Problem, generator: torch.Generator) -> DistilledData:
        """The images of a class."""
        count = int((problem.labels == number).sum())
        real = problem.real.train.take(some_of_class(problem, number, count, generator))
        teacher = self._teacher(problem)
        with torch.no_grad():
            scores = problem.network.logits(teacher, real.images)
        data = for_protocol(problem, real.images, real.labels, self.name, options_of(self), "none")
        return replace(data, soft_labels=(scores / self.temperature).softmax(1))

    def _teacher(self, problem: Problem) -> Weights:
        """A network trained on all real images, once for all pieces."""
        if self not in problem.cache:
            recipe = replace(
                DC, epochs=self.teacher_epochs, lr=self.learning_rate, batch=self.batch, schedule="constant"
            )
            draw = stream(problem.seed, "teacher")
            (start,) = problem.starts.sample(1, draw)
            problem.cache[self] = fit(problem.network, start, problem.real.train, recipe, draw)
        teacher: Weights = problem.cache[self]
        return teacher


def epochs_for(ipc: float) -> int:
    """`EPOCHS` for any number of images per class; beyond those known, the nearest."""
    ipc = min(max(ipc, min(EPOCHS)), max(EPOCHS))
    for few, many in itertools.pairwise(EPOCHS):
        if ipc <= many:
            share = math.log(ipc / few) / math.log(many / few)
            return round(EPOCHS[few] + share * (EPOCHS[many] - EPOCHS[few]))
    return EPOCHS[max(EPOCHS)]
