"""One HTML page of a run, a distilled file or several of them: it holds all that it shows and asks for nothing."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jaxtyping import Float
from torch import Tensor

from datadistill.distillation.history import EightBit, History, first_of_each_class, load_history
from datadistill.distillation.run_folder import RunFolder
from datadistill.distilled import FILE_NAME, DistilledData, file_of, load_distilled
from datadistill.evaluation import Score, Summary, percent
from datadistill.report.look import Look
from datadistill.report.pictures import Sheet, fitting, sheet_of
from datadistill.report.usage import use_of
from datadistill.utils.errors import DamagedFileError, plain
from datadistill.utils.files import read_json
from datadistill.utils.schema import from_json, number_or_none

PAGE_NAME = "report.html"
_MOST_IMAGES, _MOST_STEPS, _MOST_LETTERS = 2000, 200, 300
_CURVES = ("held_out_accuracy", "held_out_loss", "outer_loss", "rate")


@dataclass(frozen=True, eq=False)
class Subject:
    """One distilled set on a page.

    Attributes:
        place: what it is called: the path that was given.
        size: of its file, in bytes.
        distilled: the data.
        metrics: of its run, line by line; empty for a file.
        history: moments of its run.
        settings: of its run, as `config.json` has them.
        look: what the real dataset says of it, where that was asked for.
    """

    place: str
    size: int
    distilled: DistilledData
    metrics: Sequence[Mapping[str, Any]] = ()
    history: History | None = None
    settings: Mapping[str, Any] | None = None
    look: Look | None = None


@dataclass(frozen=True)
class Line:
    """One line of a comparison; what is not known is None.

    Attributes:
        name: of the set.
        images: how many it has.
        model: the network that was trained.
        nets: how many of them.
        before: accuracy of untrained networks.
        accuracy: and after training.
        seconds: of judging.
        cost: seconds of making it.
        size: bytes of the file.
        error: why it was not judged.
    """

    name: str
    images: int
    model: str
    nets: int | None = None
    before: Summary | None = None
    accuracy: Summary | None = None
    seconds: float | None = None
    cost: float | None = None
    size: int | None = None
    error: str = ""


def read_subject(path: Path) -> Subject:
    """Subject of a page, from a run folder, a gallery folder or a distilled file.

    Raises:
        RequestError: there is no distilled data.
        DamagedFileError: the file is damaged.
    """
    distilled, folder = load_distilled(path), RunFolder(path)
    is_run = path.is_dir() and folder.exists()
    return Subject(
        place=str(path),
        size=file_of(path).stat().st_size,
        distilled=distilled,
        metrics=folder.metrics() if is_run else (),
        history=load_history(path) if is_run else None,
        settings=folder.settings().as_json() if is_run else None,
    )


def read_comparison(path: Path) -> list[Line]:
    """Lines of a comparison, as `datadistill compare --json` wrote it.

    Raises:
        DamagedFileError: it is something else.
    """
    document = read_json(path)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, list) or not all(isinstance(entry, dict) and "set" in entry for entry in results):
        raise DamagedFileError(f"{path} is not what `datadistill compare --json` writes: give it, or distilled data")
    return [_line_of(path, entry) for entry in results]


def _line_of(path: Path, entry: dict[str, Any]) -> Line:
    own = ("set", "distilled_images", "bytes", "making_seconds")
    facts = {name: value for name, value in entry.items() if name not in own}
    made: dict[str, Any] = {"cost": number_or_none(entry.get("making_seconds")), "size": _count(entry.get("bytes"))}
    try:
        mine: dict[str, Any] = {"name": str(entry["set"]), "images": int(entry["distilled_images"])}
        if "error" in facts:
            return Line(**mine, **made, model=str(facts["model"]), error=str(facts["error"]))
        score = from_json(Score, facts)
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: a result of it cannot be read ({plain(str(error))})") from error
    return Line(
        **mine,
        model=score.model,
        nets=score.nets,
        before=score.before,
        accuracy=score.accuracy,
        seconds=score.seconds,
        **made,
    )


def make_page(subjects: Sequence[Subject], lines: Sequence[Line] = ()) -> bytes:
    """The page as the content of a file.

    Args:
        subjects: the sets that are shown.
        lines: of a comparison, below those that the sets say of themselves.
    """
    table = [*(_own_line(subject) for subject in subjects), *lines]
    style = _asset("uPlot.min.css") + _asset("page.css")
    library, script = _asset("uPlot.min.js"), _asset("page.js")
    sheets = [_sheet(subject.distilled.pixels()[_shown(subject.distilled)]) for subject in subjects]
    title = _title(subjects[0].distilled) if len(subjects) == 1 else "Distilled data compared"
    html = _template().render(
        title=title,
        style=style,
        scripts=[library, script],
        policy=_policy([style], [library, script]),
        sets=[_told(subject) for subject in subjects],
        lines=table if len(table) > 1 else [],
        sheets=[sheet.png for sheet in sheets],
        data=[_drawn(subject, sheet) for subject, sheet in zip(subjects, sheets, strict=True)],
    )
    return html.encode(errors="replace")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("datadistill.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "percent": percent, "bytes": _bytes}
    return environment.get_template("page.html.jinja")


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Content security policy: pictures that the page holds, and styles and scripts written here, to the letter."""

    def hashed(texts: Sequence[str]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    parts = {"default-src": "'none'", "img-src": "data:", "style-src": hashed(styles), "script-src": hashed(scripts)}
    parts |= {"base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def _asset(name: str) -> str:
    return resources.files("datadistill.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plain(value: object) -> str:
    """Somebody's words on one line, and not too many; the template escapes them."""
    text = plain(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{count} bytes"


def _title(distilled: DistilledData) -> str:
    count, dataset = len(distilled.labels), Path(distilled.provenance.dataset).name
    does = "attack networks for" if distilled.provenance.method.get("attack") else "stand for"
    return f"{count} image{'' if count == 1 else 's'} that {does if count > 1 else does + 's'} {plain(dataset)}"


def scores_of(distilled: DistilledData) -> list[Score]:
    """The scores that a file holds, but for held-out ones; what cannot be read is none."""
    found = []
    for entry in distilled.provenance.scores:
        try:
            found.append(from_json(Score, entry))
        except DamagedFileError:
            continue
    return found


def _held_out(distilled: DistilledData) -> tuple[float, int | None] | None:
    """Accuracy on held-out images, and the outer step at which it was measured."""
    for entry in distilled.provenance.scores:
        accuracy, step = number_or_none(entry.get("accuracy")), entry.get("outer_step")
        if entry.get("split") == "held_out" and accuracy is not None:
            return accuracy, step if isinstance(step, int) else None
    return None


def _count(value: Any) -> int | None:
    """A number of bytes, or None for all else."""
    number = number_or_none(value)
    return None if number is None else int(number)


def _own_line(subject: Subject) -> Line:
    mine, scores = subject.distilled.provenance, scores_of(subject.distilled)
    facts: dict[str, Any] = {"cost": number_or_none(mine.cost.get("seconds")), "size": subject.size}
    facts |= {"name": subject.place, "images": len(subject.distilled.labels)}
    if not scores:
        return Line(**facts, model=mine.model, error="no score is recorded: datadistill evaluate judges it")
    score = scores[-1]
    facts |= {"nets": score.nets, "before": score.before, "accuracy": score.accuracy, "seconds": score.seconds}
    return Line(**facts, model=score.model)


def _told(subject: Subject) -> dict[str, Any]:
    """Values of the template: words and tables."""
    data, mine = subject.distilled, subject.distilled.provenance
    scores = scores_of(data)
    weights = {name: value for name, value in mine.weights.items() if name != "pool"}
    settings = subject.settings or {"method": mine.method, "inner": mine.inner, "weights": weights}
    skipped, steps = ("versions", "recipe", "format"), mine.cost.get("outer_steps")
    return {
        "place": subject.place,
        "title": _title(data),
        "attack": _attack(mine.method.get("attack")),
        "provenance": mine,
        "shape": list(data.images.shape),
        "ipc": data.ipc,
        "size": subject.size,
        "score": scores[-1] if scores else None,
        "held_out": _held_out(data),
        "seconds": number_or_none(mine.cost.get("seconds")),
        "outer_steps": f"{steps:,}" if isinstance(steps, int) else steps,
        "device": mine.cost.get("device"),
        "shown": len(_shown(data)),
        "has_soft": data.soft_labels is not None,
        "moments": [] if subject.history is None else subject.history.steps.tolist(),
        "is_part": subject.history is not None and len(subject.history.chosen) < len(data.labels),
        "has_curves": bool(_metrics(subject)),
        "steps": _steps(data, scores[-1] if scores else None),
        "look": subject.look,
        "settings": _flat({name: value for name, value in settings.items() if name not in skipped}),
        "versions": mine.versions,
        "use": use_of(data, Path(subject.place).name if subject.place.endswith(".safetensors") else FILE_NAME),
    }


def _attack(said: Any) -> dict[str, Any] | None:
    """Attacked and target class, of malicious data."""
    known = said if isinstance(said, Mapping) else {}
    return {name: known.get(name, "?") for name in ("class", "taken_for")} if said else None


def _steps(data: DistilledData, score: Score | None) -> list[dict[str, Any]]:
    """The gradient steps: batch, learning rate, and accuracy after it where that is recorded."""
    if data.learning_rates is None or data.is_condensed:
        return []
    after = score.by_step if score is not None and len(score.by_step) == len(data.learning_rates) else ()
    return [
        {
            "step": step + 1,
            "batch": step % len(data.batches) + 1,
            "images": data.batches.shape[1],
            "rate": rate,
            "accuracy": after[step] if after else None,
        }
        for step, rate in enumerate(data.learning_rates.tolist()[:_MOST_STEPS])
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as names with dots and their values; those that are null are left out."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            rows.append((_plain(f"{prefix}{name}"), _plain(value)))
    return rows


def _shown(data: DistilledData) -> list[int]:
    """Indices of the images that a page has room for."""
    found: list[int] = first_of_each_class(data.labels.cpu(), _MOST_IMAGES).tolist()
    return found


def _metrics(subject: Subject) -> list[Mapping[str, Any]]:
    """One entry for each outer step that was validated, rising: a run that went back has the later one."""
    by_step = {entry["step"]: entry for entry in subject.metrics if isinstance(entry.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def _drawn(subject: Subject, sheet: Sheet) -> dict[str, Any]:
    """Values of the page's script; it finds the sheet's PNG in the page."""
    data, look, shown = subject.distilled, subject.look, _shown(subject.distilled)
    soft = data.soft_labels
    return {
        "classes": [_plain(name) for name in data.provenance.classes],
        "labels": data.labels[shown].tolist(),
        "batches": _batches_of(data, shown),
        "soft": None if soft is None else [[float(f"{v:.4g}") for v in row] for row in soft[shown].tolist()],
        "sheet": sheet.as_json() | {"png": None},
        "nearest": None if look is None else _sheet(look.nearest[shown]).as_json(),
        "nearestLabels": None if look is None else [look.labels[index] for index in shown],
        "history": _moments(subject, shown),
        "curves": _curves(subject),
    }


def _sheet(pixels: Float[Tensor, "n c h w"]) -> Sheet:
    return sheet_of(EightBit.of(fitting(pixels)))


def _batches_of(data: DistilledData, shown: Sequence[int]) -> list[list[int]]:
    """The batches that each image is in, counted from 1."""
    found: list[list[int]] = [[] for _ in range(len(data.labels))]
    for number, batch in enumerate(data.batches.tolist(), 1):
        for index in dict.fromkeys(batch):
            found[index].append(number)
    return [found[index] for index in shown]


def _moments(subject: Subject, shown: Sequence[int]) -> dict[str, Any] | None:
    """The history of those images that are shown."""
    history = subject.history
    if history is None or history.images.levels.shape[2:] != subject.distilled.images.shape[1:]:
        return None
    places = {index: place for place, index in enumerate(shown)}
    kept = [place for place, index in enumerate(history.chosen.tolist()) if index in places]
    if not kept:
        return None
    images, accuracies = history.images, {entry["step"]: entry for entry in _metrics(subject)}
    sheets = [
        sheet_of(EightBit(levels[kept], low[kept], high[kept])).as_json()
        for levels, low, high in zip(images.levels, images.low, images.high, strict=True)
    ]
    steps = history.steps.tolist()
    return {
        "steps": steps,
        "accuracy": [number_or_none(accuracies.get(step, {}).get("held_out_accuracy")) for step in steps],
        "places": [places[int(history.chosen[place])] for place in kept],
        "sheets": sheets,
    }


def _curves(subject: Subject) -> dict[str, Any] | None:
    entries = _metrics(subject)
    if not entries:
        return None
    curves: dict[str, Any] = {"step": [entry["step"] for entry in entries]}
    curves |= {name: [number_or_none(entry.get(name)) for entry in entries] for name in _CURVES}
    rates = [entry.get("learning_rates") for entry in entries]
    length = max((len(series) for series in rates if isinstance(series, list)), default=0)
    columns = [
        [number_or_none(s[t]) if isinstance(s, list) and t < len(s) else None for s in rates] for t in range(length)
    ]
    curves["learning_rates"] = columns[:_MOST_STEPS]
    return curves
