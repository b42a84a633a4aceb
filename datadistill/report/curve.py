"""Curves: of a run, and over the points of a sweep."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datadistill.evaluation import Summary
from datadistill.utils.files import write_atomically


def save_curve(metrics: list[dict[str, Any]], path: Path) -> None:
    """Held-out accuracy and learned rates over outer steps, as a PNG; nothing where no validation was recorded."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if not metrics:
        return
    figure, (left, right) = _figure(9, 2)
    steps = [entry["step"] for entry in metrics]
    left.plot(steps, [100 * entry.get("held_out_accuracy", float("nan")) for entry in metrics], color="#1b6ca8")
    left.set(xlabel="outer step", ylabel="held-out accuracy (%)")
    rates: list[list[float]] = [entry.get("learning_rates") or [] for entry in metrics]
    if all(rates) and len(set(map(len, rates))) == 1:
        for index, series in enumerate(zip(*rates, strict=True)):
            right.plot(steps, series, label=f"step {index + 1}" if len(rates[0]) <= 6 else None)
        learned = [rate for series in rates for rate in series]
        if max(learned) >= 10 * min(learned) > 0:
            right.set_yscale("log")
            # As plain text: powers of ten would be set as formulas, which is slow.
            right.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
            right.yaxis.set_minor_formatter(NullFormatter())
        if len(rates[0]) <= 6:
            right.legend(frameon=False, fontsize="small")
        right.set(xlabel="outer step", ylabel="learned rate")
    else:
        right.plot(steps, [entry.get("outer_loss", float("nan")) for entry in metrics], color="#1b6ca8")
        right.set(xlabel="outer step", ylabel="outer loss")
    _save(figure, path)


def save_sweep(axis: str, points: Sequence[tuple[str, Summary]], path: Path) -> None:
    """Test accuracies at the points of a sweep as a PNG, with the standard deviation over several networks."""
    figure, (axes,) = _figure(5.5, 1)
    means = [100 * summary.mean for _, summary in points]
    spread = [100 * (summary.std or 0.0) for _, summary in points]
    # Names have no order that a line could follow.
    line = "-" if all(label.replace(".", "", 1).isdigit() for label, _ in points) else "none"
    axes.errorbar(range(len(points)), means, yerr=spread, marker="o", linestyle=line, capsize=3, color="#1b6ca8")
    axes.margins(x=0.08)
    axes.set_xticks(range(len(points)), [label for label, _ in points], parse_math=False)
    axes.set_xlabel(axis, parse_math=False)
    axes.set_ylabel("test accuracy (%)")
    _save(figure, path)


def _figure(width: int | float, columns: int) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.4))
    # Margins that hold what is written here: to measure it takes longer than to draw.
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.2 / width, bottom=0.16, top=0.96, wspace=0.25)
    found = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in found:
        axes.ticklabel_format(useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, found


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
