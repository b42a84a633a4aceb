"""`kmeans`: the cluster centres of every class's images."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from datadistill.baselines.base import Baseline, by_class
from datadistill.data.kmeans import STARTS, cluster_centres
from datadistill.distilled import DistilledData
from datadistill.methods import Problem
from datadistill.utils.runtime import stream


@dataclass(frozen=True)
class KMeans(Baseline):
    """Sets of cluster centres, which differ in where k-means starts."""

    name = "kmeans"
    line = "cluster centres of each class"

    def chosen(self, number: int, problem: Problem) -> DistilledData:
        ipc = problem.real.check_ipc(problem.ipc)
        with self.bar("finding clusters", problem.real.num_classes) as count:

            def pick(label: int) -> Float[Tensor, "k c h w"]:
                generator = stream(problem.seed, "kmeans", number, label)
                centres = cluster_centres(problem.real.train, label, ipc[label], generator)
                count()
                return centres

            images = by_class(problem, pick)
        return self.assembled(problem, images, set=number, starts=STARTS)
