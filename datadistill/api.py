"""What `import datadistill` offers."""

from datadistill import methods
from datadistill.data import RealData, from_arrays, from_datasets, load
from datadistill.distillation.config import RunConfig
from datadistill.distillation.loop import distill
from datadistill.distillation.optimizer import Outer
from datadistill.distillation.result import Run
from datadistill.distilled import DistilledData, load_distilled
from datadistill.engine import Engine
from datadistill.evaluation import Score, evaluate
from datadistill.formats import Usage, export_to, import_from
from datadistill.pretraining.make import make_pool, make_trajectories
from datadistill.pretraining.pool import Pool, load_pool
from datadistill.pretraining.trajectories import Trajectories, load_trajectories
from datadistill.training.recipe import TrainRecipe
from datadistill.utils.errors import DamagedFileError, DatadistillError, Interrupted, RequestError
from datadistill.utils.progress import Progress

__all__ = [
    "DamagedFileError",
    "DatadistillError",
    "DistilledData",
    "Engine",
    "Interrupted",
    "Outer",
    "Pool",
    "Progress",
    "RealData",
    "RequestError",
    "Run",
    "RunConfig",
    "Score",
    "TrainRecipe",
    "Trajectories",
    "Usage",
    "distill",
    "evaluate",
    "export_to",
    "from_arrays",
    "from_datasets",
    "import_from",
    "load",
    "load_distilled",
    "load_pool",
    "load_trajectories",
    "make_pool",
    "make_trajectories",
    "methods",
]
