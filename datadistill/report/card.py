"""The card beside a distilled set: what it is, how well it does, how to use it; and the end of a run."""

import json
import shlex
from dataclasses import replace

import jinja2

from datadistill.data.real import RealData
from datadistill.distilled import FILE_NAME, DistilledData
from datadistill.errors import DatadistillError
from datadistill.evaluation import Score, evaluate, percent
from datadistill.files import write_atomically
from datadistill.outer import Run
from datadistill.progress import counting
from datadistill.report.curve import save_curve
from datadistill.report.sheet import SHEET_NAME, save_sheet
from datadistill.runs import RunFolder

CARD_NAME, CURVE_NAME = "README.md", "curve.png"


def conclude(run: Run, real: RealData, nets: int = 20) -> tuple[DistilledData, Score]:
    """End a run: judge the result on the test split, and complete its folder with score, sheet, curve and card.

    Args:
        run: a finished run.
        real: its dataset.
        nets: networks to judge by, with random initial weights.

    Returns:
        The distilled data with its score in the provenance, and the score.
    """
    with counting("evaluating", nets) as count:
        score = evaluate(run.distilled, real, nets=nets, count=count)
    mine = run.distilled.provenance
    held_out = [entry for entry in mine.scores if entry.get("split") == "held_out"]
    distilled = replace(run.distilled, provenance=replace(mine, scores=[*held_out, score.as_json()]))
    if run.folder is not None:
        distilled.save(run.folder / FILE_NAME)
        save_sheet(distilled, run.folder / SHEET_NAME)
        save_curve(RunFolder(run.folder).metrics(), run.folder / CURVE_NAME)
        card = make_card(distilled, score, str(run.folder))
        write_atomically(run.folder / CARD_NAME, card.encode())
    return distilled, score


def make_card(distilled: DistilledData, score: Score, place: str) -> str:
    """The card as Markdown.

    Args:
        distilled: the data.
        score: its score on the test split.
        place: the folder or file, as people will type it.
    """
    provenance = distilled.provenance
    held_out = [entry["accuracy"] for entry in provenance.scores if entry.get("split") == "held_out"]
    if not held_out:
        raise DatadistillError("this distilled data does not say how it was chosen: it has no held-out score")
    rates = distilled.learning_rates
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datadistill.report"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("card.md.jinja").render(
        p=provenance,
        score=score,
        command=shlex.join(["datadistill", "evaluate", place]),
        place=json.dumps(place, ensure_ascii=False),
        sheet=SHEET_NAME,
        count=len(distilled.labels),
        ipc=distilled.ipc,
        soft_labels=distilled.soft_labels,
        fixed=distilled.initial_weights is not None,
        accuracy=percent(score.accuracy),
        before=percent(score.before),
        nets="one network" if score.nets == 1 else f"{score.nets} fresh networks",
        interval="over test images" if score.nets == 1 else "of the mean over networks",
        held_out=held_out[0],
        shape=list(distilled.images.shape),
        rates="none" if rates is None else ", ".join(f"{rate:.4g}" for rate in rates[:6].tolist()),
        mean=", ".join(f"{value:.4f}" for value in provenance.normalization.mean),
        std=", ".join(f"{value:.4f}" for value in provenance.normalization.std),
    )
