"""Protocol `dc`: fresh networks are trained on the distilled images for hundreds of epochs, then tested once."""

import time

from datadistill.engine.functional import Weights
from datadistill.evaluation.config import NETS, Trial
from datadistill.evaluation.scores import Score, summarize
from datadistill.evaluation.trained import accuracies_of
from datadistill.models import SCHEMES, draw_weights
from datadistill.training.carried import dc_recipe, inner_of
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


def judge_condensed(trial: Trial) -> Score:
    """The score of networks that are trained by `recipe.DC`, with what the data says of it.

    They are always fresh: initial weights and rates of single steps that the data holds are not used.

    Raises:
        RequestError: a pool was given, or the settings are impossible.
    """
    config = trial.config
    if config.pool is not None:
        raise RequestError("protocol dc draws fresh networks, which take no pool: leave it out")
    recipe = dc_recipe(trial.distilled, **config.changes)
    began, network = time.perf_counter(), trial.make_network()
    scheme = SCHEMES.get(config.scheme or str(trial.distilled.provenance.weights.get("scheme", "default"))).name

    def draw(net: int) -> Weights:
        return draw_weights(network.module, scheme, stream(config.seed, "evaluation", net))

    found = accuracies_of(trial, network, recipe, draw, config.nets or NETS)
    before, after = (summarize(list(values), len(trial.judged_on)) for values in zip(*found, strict=True))
    return Score(
        model=trial.model_name,
        weights=f"random-init ({scheme})",
        protocol="dc",
        nets=len(found),
        split=config.split,
        images=len(trial.judged_on),
        accuracy=after,
        before=before,
        by_step=(),
        seconds=time.perf_counter() - began,
        device=str(trial.device),
        settings=inner_of(recipe),
    )
