"""The card beside a distilled set: what it is, how well it does, how to use it; and the end of a run."""

import html
import json
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path

import jinja2

from datadistill.data import RealData, is_named
from datadistill.distillation.result import Run
from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import FILE_NAME, DistilledData
from datadistill.evaluation import Score, evaluate, percent, work_of
from datadistill.models import ModelFactory
from datadistill.models.gate import Named
from datadistill.pretraining.pool import Pool
from datadistill.report.curve import save_curve
from datadistill.report.live import save_page
from datadistill.report.sheet import SHEET_NAME, save_sheet
from datadistill.utils.errors import DatadistillError, plain, printable
from datadistill.utils.files import gone, write_atomically
from datadistill.utils.progress import counting

CARD_NAME, CURVE_NAME = "README.md", "curve.png"


def conclude(
    run: Run,
    real: RealData,
    nets: int | None = None,
    pool: Pool | None = None,
    model: str | ModelFactory | None = None,
    seed: int = 0,
) -> tuple[DistilledData, Score]:
    """End a run: judge the result on the test split, and complete its folder with score, sheet, curve, card and page.

    Args:
        run: a finished run.
        real: its dataset.
        nets: networks to judge by, as for `evaluate`.
        pool: of trained networks, if the run took its initial weights from one.
        model: the network, where it is code: a result holds only its name.
        seed: of the networks that judge.

    Returns:
        The distilled data with its score in the provenance, and the score.

    Raises:
        RequestError: the data does not fit the dataset, the network or the pool.
        DatadistillError: the folder has been removed, or cannot be written.
    """
    pool = None if run.distilled.is_condensed else pool  # protocol dc draws networks
    with counting("evaluating", work_of(run.distilled, nets)) as count:
        score = evaluate(run.distilled, real, model=model, nets=nets, pool=pool, seed=seed, count=count)
    held_out = [entry for entry in run.distilled.provenance.scores if entry.get("split") == "held_out"]
    distilled = run.distilled.noted(scores=[*held_out, score.as_json()])
    if run.folder is not None:
        if not RunFolder(run.folder).exists():
            raise gone(run.folder)
        distilled.save(run.folder / FILE_NAME)
        save_sheet(distilled, run.folder / SHEET_NAME)
        save_curve(RunFolder(run.folder).metrics(), run.folder / CURVE_NAME)
        card = make_card(distilled, score, str(run.folder), pool)
        write_atomically(run.folder / CARD_NAME, card.encode(errors="surrogateescape"))
        save_page(run.folder)
    return distilled, score


def judging(distilled: DistilledData, place: str, pool: Pool | None) -> list[str]:
    """The words after `datadistill` that judge this data."""
    is_needed = pool is not None and pool.path is not None and _kind(distilled) == "random-pretrained"
    made = distilled.provenance
    named = [Named("dataset", made.dataset, "--dataset"), Named("network", made.model, "--model")]
    # Official files may be fetched for whoever types this.
    reaching = [one for one in named if not is_named(one.name) and one.reach()]
    words = ["evaluate", place, *(word for one in reaching for word in one.words())]
    return [*words, *(["--pool", str(pool.path)] if pool is not None and is_needed else [])]


def _kind(distilled: DistilledData) -> str:
    """The kind of initial weights that judging takes; protocol dc always draws them afresh."""
    return "" if distilled.is_condensed else str(distilled.provenance.weights.get("kind", ""))


class _Code(str):
    """Text inside a span or a block of code, where nothing is obeyed but its end."""


def _span(words: object) -> str:
    return _Code(plain(str(words)).replace("`", "'"))


def _cell(words: object) -> str:
    """Code span in a table, whose edges count before anything else."""
    return _Code(_span(words).replace("|", "\\|"))


def _block(words: object) -> str:
    # Bytes of a path that are no text stay what they are: the file is written with them.
    return _Code("".join(c if "\udc80" <= c <= "\udcff" else printable(c) for c in str(words)))


def markdown(value: object) -> str:
    """Somebody's words in Markdown: neither HTML nor a link, a picture, a table's edge or a new line."""
    if isinstance(value, _Code):
        return value
    escaped = html.escape(plain(str(value)), quote=False)
    # Underscores within a word, as in the names of augmentations, mean nothing; addresses become links by themselves.
    return re.sub(r"([\\`*~$\[\]|#]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.|@)", r"\\\1", escaped)


def _known_command(recipe: str) -> str:
    """A command of ours that a file holds, word by word as a shell takes it; empty where it is anything else."""
    with suppress(ValueError):
        words = shlex.split(recipe)
        if words[:1] == ["datadistill"]:
            return shlex.join(words)
    return ""


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datadistill.report"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=markdown,
    )
    environment.filters |= {"span": _span, "cell": _cell, "block": _block}
    return environment.get_template("card.md.jinja")


def make_card(distilled: DistilledData, score: Score, place: str, pool: Pool | None = None) -> str:
    """The card as Markdown.

    Args:
        distilled: the data.
        score: its score on the test split.
        place: the folder or file, as people will type it.
        pool: of trained networks, if the data was made for them.

    Raises:
        DatadistillError: the data has no held-out score.
    """
    provenance = distilled.provenance
    held_out = [entry["accuracy"] for entry in provenance.scores if entry.get("split") == "held_out"]
    if not held_out:
        raise DatadistillError("this distilled data does not say how it was chosen: it has no held-out score")
    rates = None if distilled.is_condensed else distilled.learning_rates
    return _template().render(
        p=provenance,
        dataset=Path(provenance.dataset).name,
        score=score,
        way="steps" if not score.training else "dc" if "protocol" in (score.settings or {}) else "recipe",
        command=shlex.join(["datadistill", *judging(distilled, place, pool)]),
        place=json.dumps(place, ensure_ascii=False),
        path=shlex.quote(place),
        sheet=SHEET_NAME,
        count=len(distilled.labels),
        ipc=distilled.ipc,
        soft_labels=distilled.soft_labels,
        kind=_kind(distilled),
        pool_command=_known_command(pool.facts.recipe) if pool else "",
        pool_path=shlex.quote(str(pool.path)) if pool else "",
        has_example=not score.training and provenance.model == "lenet" and _kind(distilled) != "random-pretrained",
        accuracy=percent(score.accuracy),
        before=percent(score.before),
        nets="one network" if score.nets == 1 else f"{score.nets} fresh networks",
        interval="over test images" if score.nets == 1 else "of the mean over networks",
        held_out=held_out[0],
        shape=list(distilled.images.shape),
        rates=None if rates is None else ", ".join(f"{rate:.4g}" for rate in rates[:6].tolist()),
        mean=", ".join(f"{value:.4f}" for value in provenance.normalization.mean),
        std=", ".join(f"{value:.4f}" for value in provenance.normalization.std),
    )
