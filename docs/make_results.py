"""Write docs/results.md and gallery/README.md from what is recorded: `python docs/make_results.py`.

Figures come from `datadistill/experiments/recipes/measured.json` (`datadistill reproduce ID --record`), from the files
of the gallery, and, where they were only printed, from `benchmarks/results/printed.json`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datadistill.distilled import FILE_NAME, load_distilled
from datadistill.evaluation import Summary, percent
from datadistill.experiments.recipes import Recipe, recipes
from datadistill.experiments.recipes.measured import Measured, load_measured

ROOT = Path(__file__).resolve().parent.parent
PRINTED = ROOT / "benchmarks" / "results" / "printed.json"
DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar-10": "CIFAR-10", "usps": "USPS"}
FIELD = ("dc", "dsa", "dm", "mtt")
LEARNED = ("rat_bptt",)

RESULTS = """\
# Results

Accuracies on test images, mean ± deviation over networks where there are several. This page is written by
`python docs/make_results.py` from what was recorded, and a test repeats it.

Unless a line says otherwise distilling ran on one core of a shared machine, with AVX-512, beside other work and by
earlier versions, so seconds are upper bounds. Published figures are the authors'; without one, none was read in a
source. Most recipes are a stated part of the published experiment: [how to run one](reproduce.md), and what `--full`
adds.

## Training by the set's own steps (`dd`)

Beside a published figure, network, number of images and gradient steps are the paper's. Images start from class
means, cluster centres or real images instead of noise, and hypergradients of a fixed initialisation count the jumps
of ReLU's derivative ([how](mnist-fixed-10.md)). On CIFAR-10 the steps are a part of the paper's; in the seconds of
`cifar-random-100` are 13 minutes in which the process was paused. Learning rates start [falling](mnist-random-100.md)
for random weights. USPS is the official set, split otherwise than the paper's copy.

{own}

Real images in the same number, with tuned rates, judged by the same networks ([more](baselines.md)):

{real}

## The field's protocol (`dc`, `dsa`, `dm`, `mtt`)

Fresh ConvNets trained for hundreds of epochs ([protocol](protocols.md#protocol-dc)); images per class stand behind
the dataset. Real images are judged as the set of their row. Training the experts of `mtt` is not in the seconds.
[What was learned](field.md).

{field}

Real images in these rows that no recipe judges:

{beside}

## Training by the set's own recipe (`rat_bptt`)

Fresh ConvNets of the field's width, trained on soft labels by Adam for as many steps as the set's file says, about a
hundred; and beside it the field's protocol, a thousand epochs. Random real images are trained on by the same recipe,
with hard labels. Published figures for these datasets were not read in a source
([more](method-rat-bptt.md#our-figures-beside-the-published-ones)).

{learned}

## Malicious data

What one step on a set costs networks that distilling never saw, in points of accuracy ([how](malicious.md)).

{malicious}

## One hyper-parameter at a time

MNIST, LeNets with random weights ([curves](sweeps.md)).

{sweeps}

## Printed, not recorded

Figures that a command printed, kept in `benchmarks/results/printed.json`.

{printed}
"""

GALLERY = """\
# Gallery

Distilled sets, each with a card, its settings and its curve. This page is written by `python docs/make_results.py`
from the files. Accuracies are on test images, mean ± deviation over the networks; a set with fixed weights works for
that one network alone. Use them by `datadistill.load_distilled("gallery/NAME")`, or
[with torch and safetensors](../README.md#use-it); judge them by `datadistill evaluate gallery/NAME`.

{table}
{pictures}"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Row:
    """A recipe with what it gave."""

    recipe: Recipe
    measured: Measured

    @property
    def title(self) -> str:
        return (
            f"{DATASETS.get(self.recipe.run['dataset'], self.recipe.run['dataset'])}, {self.recipe.run.get('ipc', 1)}"
        )

    @property
    def method(self) -> str:
        """The method, and whether it learned the labels too."""
        soft = ", soft labels" if self.recipe.method.get("labels") == "soft" else ""
        return f"`{self.recipe.method['name']}`{soft}"

    @property
    def command(self) -> str:
        return f"`datadistill reproduce {self.recipe.name}`"

    @property
    def nets(self) -> str:
        return str(self.measured.nets)

    @property
    def seconds(self) -> str:
        threads = "" if self.measured.threads == 1 else f", {self.measured.threads} threads"
        return f"{sum(entry['seconds'] for entry in self.measured.details):.0f} s{threads}"

    def line(self, name: str) -> dict[str, Any]:
        """What was judged under a name; empty where it was not."""
        return next((entry for entry in self.measured.details if entry["name"] == name), {})

    def figure(self, name: str, what: str = "accuracy") -> str:
        """Its accuracy for people."""
        return figure(self.line(name).get(what))


def figure(entry: dict[str, Any] | None) -> str:
    """An accuracy as JSON has it, for people; empty for none."""
    return "" if entry is None else percent(Summary(**entry | {"ci95": tuple(entry["ci95"])}))


def interval(entry: dict[str, Any]) -> str:
    """A 95 % interval for people."""
    low, high = (100 * value for value in entry["ci95"])
    return f"{low:.2f} to {high:.2f}"


def recorded() -> list[Row]:
    """The recipes whose last recorded run is of what they are now."""
    measured = load_measured()
    return [
        Row(recipe, measured[recipe.name])
        for recipe in recipes()
        if recipe.name in measured and not measured[recipe.name].is_stale(recipe)
    ]


def results() -> str:
    """The page of all figures."""
    rows, printed = recorded(), json.loads(PRINTED.read_text())
    sweeps = [row for row in rows if row.recipe.sweep is not None]
    malicious = [row for row in rows if row.recipe.run.get("attack")]
    field = [row for row in rows if row.recipe.method["name"] in FIELD]
    learned = [row for row in rows if row.recipe.method["name"] in LEARNED]
    own = sorted((row for row in rows if row not in (*sweeps, *malicious, *field, *learned)), key=order)
    mine = "these images"
    beside = {(entry["recipe"], entry["baseline"]): entry for entry in printed if "baseline" in entry}
    by_dc = {entry["recipe"]: entry for entry in printed if "protocol" in entry}
    return RESULTS.format(
        own=table(
            ["", "untrained", "this", "95 % interval", "networks", "published", "distilling", "command"],
            (
                [
                    row.recipe.line,
                    row.figure(mine, "before"),
                    f"**{row.figure(mine)}**",
                    interval(row.line(mine)["accuracy"]),
                    row.nets,
                    published(row.recipe),
                    row.seconds,
                    row.command,
                ]
                for row in own
            ),
        ),
        real=table(
            ["beside", "images", "which", "accuracy", "95 % interval", "networks"],
            (
                [
                    f"`{row.recipe.name}`",
                    str(entry["images"]),
                    entry["name"].removeprefix("baseline "),
                    figure(entry["accuracy"]),
                    interval(entry["accuracy"]),
                    str(entry["nets"]),
                ]
                for row in own
                for entry in row.measured.details
                if entry["name"] != mine
            ),
        ),
        field=table(
            ["", "this", "published", "random", "herding", "k-center", "networks", "distilling", "command"],
            (
                [
                    f"{row.title}, {row.method}",
                    f"**{row.figure(mine)}**",
                    row.recipe.published("after"),
                    *(
                        row.figure(f"baseline {how}") or beside.get((row.recipe.name, how), {}).get("accuracy", "")
                        for how in ("random", "herding", "kcenter")
                    ),
                    row.nets,
                    row.seconds,
                    row.command,
                ]
                for row in sorted(field, key=order)
            ),
        ),
        beside=table(
            ["beside", "which", "accuracy", "command"],
            (
                [f"`{recipe}`", how, entry["accuracy"], f"`{entry['command']}`"]
                for (recipe, how), entry in beside.items()
            ),
        ),
        learned=table(
            ["", "by its own recipe", "by protocol `dc`", "random", "networks", "distilling", "command"],
            (
                [
                    f"{row.title}, {row.method}",
                    f"**{row.figure(mine)}**",
                    f"{by_dc[row.recipe.name]['accuracy']} (`{by_dc[row.recipe.name]['command']}`)"
                    if row.recipe.name in by_dc
                    else "",
                    row.figure("baseline random"),
                    row.nets,
                    row.seconds,
                    row.command,
                ]
                for row in sorted(learned, key=order)
            ),
        ),
        malicious=table(
            ["", "the attacked class", "the class that loses most of the others", "networks", "distilling", "command"],
            (
                [
                    row.recipe.line,
                    f"**{100 * falls[attacked]:.1f}**",
                    f"{100 * max(fall for name, fall in falls.items() if name != attacked):.1f}",
                    row.nets,
                    row.seconds,
                    row.command,
                ]
                for row in malicious
                for falls, attacked in [(row.line(mine)["falls"], row.recipe.run["attack"][0])]
            ),
        ),
        sweeps=table(
            ["recipe", "point", "images", "networks", "accuracy"],
            (
                [f"`{row.recipe.name}`", entry["name"], str(entry["images"]), row.nets, figure(entry["accuracy"])]
                for row in sweeps
                for entry in row.measured.details
            ),
        ),
        printed=table(
            ["", "accuracy", "command"],
            ([entry["what"], entry["accuracy"], f"`{entry['command']}`"] for entry in printed if "what" in entry),
        ),
    )


def published(recipe: Recipe) -> str:
    """The paper's figures."""
    before, after = recipe.published("before"), recipe.published("after")
    return f"{after} from {before}" if before and after else after


def order(row: Row) -> tuple[int, float, int]:
    """Dataset, images per class and method in the field's protocol, else the dataset alone."""
    run, method = row.recipe.run, row.recipe.method["name"]
    place = list(DATASETS).index(run["dataset"]) if run["dataset"] in DATASETS else len(DATASETS)
    return (place, run.get("ipc", 1), FIELD.index(method)) if method in FIELD else (place, 0, 0)


def gallery() -> str:
    """The page of the gallery."""
    folders = sorted(path.parent for path in (ROOT / "gallery").glob(f"*/{FILE_NAME}"))
    rows, pictures = [], ""
    for folder in folders:
        data, name = load_distilled(folder), folder.name
        made = data.provenance
        score = next(entry for entry in made.scores if entry["split"] == "test")
        size = (folder / FILE_NAME).stat().st_size
        nets = "one" if score["nets"] == 1 else str(score["nets"])
        labels = "hard" if data.soft_labels is None else "soft"
        rows.append(
            [
                f"[{name}](#{name})",
                f"{len(data.labels)}, {labels}",
                f"{nets} {made.model}, {made.weights['kind']}",
                figure(score["before"]),
                f"**{figure(score['accuracy'])}**",
                f"{made.cost['seconds']:.0f} s",
                f"{size / 1024:.0f} KiB",
            ]
        )
        pictures += (
            f"\n## {name}\n\n![{name}]({name}/sheet.png)\n\n{len(data.labels)} images with {labels} labels, "
            f"method `{made.method['name']}`, **{figure(score['accuracy'])}** on {score['images']:,} test images of "
            f"{DATASETS[made.dataset]}. [Card]({name}/README.md)\n"
        )
    columns = ["set", "images, labels", "networks", "untrained", "test accuracy", "distilling", "file"]
    return GALLERY.format(table=table(columns, rows), pictures=pictures)


def pages() -> dict[Path, str]:
    """Both pages by their files."""
    return {ROOT / "docs" / "results.md": results(), ROOT / "gallery" / "README.md": gallery()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
