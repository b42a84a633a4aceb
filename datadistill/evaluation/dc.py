"""Protocol `dc`: fresh networks are trained on the distilled images for hundreds of epochs, then tested once."""

import threading
import time

from datadistill.engine.parallel import each_on_one_core
from datadistill.evaluation.config import NETS, Trial
from datadistill.evaluation.scores import Score, summarize
from datadistill.models import SCHEMES, draw_weights
from datadistill.training.accuracy import accuracy_of
from datadistill.training.dc_recipe import condensation_for
from datadistill.utils.errors import RequestError
from datadistill.utils.interrupts import StopRequest
from datadistill.utils.runtime import stream


def judge_condensed(trial: Trial) -> Score:
    """The score of networks that are trained as `Condensation` says.

    They are always fresh: initial weights and rates of single steps that the data holds are not used. On a CPU each
    has a core of its own, and generators of its own, so that what it reaches depends on no other network.

    Raises:
        RequestError: a pool was given, or the settings are impossible.
    """
    if trial.pool is not None:
        raise RequestError("protocol dc draws fresh networks, which take no pool: leave it out")
    settings = condensation_for(trial.distilled, **trial.changes)  # type: ignore[arg-type]
    began, distilled = time.perf_counter(), trial.distilled.to(trial.device)
    network, lock = trial.make_network(), threading.Lock()
    scheme = SCHEMES.get(trial.scheme or str(distilled.provenance.weights.get("scheme", "default"))).name
    with StopRequest() as stop:

        def count() -> None:
            with lock:
                trial.count()
            if stop.requested:  # ends every thread; otherwise all would finish first
                raise KeyboardInterrupt

        def one(net: int) -> tuple[float, float]:
            with network.alone:
                start = draw_weights(network.module, scheme, stream(trial.seed, "evaluation", net))
            before = accuracy_of(network, start, trial.judged_on)
            draws = stream(trial.seed, "evaluation-training", net)
            weights = settings.train(network, start, distilled.images, distilled.targets, draws, count)
            return before.correct, accuracy_of(network, weights, trial.judged_on).correct

        found = each_on_one_core(one, range(trial.nets or NETS), trial.device)
    before, after = (summarize(list(values), len(trial.judged_on)) for values in zip(*found, strict=True))
    return Score(
        model=trial.model_name,
        weights=f"random-init ({scheme})",
        protocol="dc",
        nets=len(found),
        split=trial.split,
        images=len(trial.judged_on),
        accuracy=after,
        before=before,
        by_step=(),
        seconds=time.perf_counter() - began,
        device=str(trial.device),
        settings=settings.as_inner(),
    )
