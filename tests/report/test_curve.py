"""The picture of a run's metrics. Runs of other tests copy one that was drawn before (`conftest.py`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datadistill.report.curve import save_curve


def entries(rates: list[list[float]] | None, accuracies: tuple[float, ...] = (0.1, 0.6, 0.7)) -> list[dict[str, Any]]:
    lines = [
        {"step": 10 * n, "held_out_accuracy": value, "outer_loss": 1.0 / n} for n, value in enumerate(accuracies, 1)
    ]
    return lines if rates is None else [line | {"learning_rates": row} for line, row in zip(lines, rates, strict=True)]


def drawn(metrics: list[dict[str, Any]], path: Path) -> np.ndarray[Any, Any]:
    save_curve(metrics, path)
    with Image.open(path) as picture:
        assert picture.size == (900, 340)
        return np.asarray(picture.convert("RGB")).astype(int)


RATES = {
    "loss, without rates": None,
    "few rates, with a legend": [[0.1, 0.2], [0.11, 0.19], [0.12, 0.18]],
    "many rates": [[0.1 + 0.01 * n for n in range(8)]] * 3,
    "rates of several sizes": [[0.001, 0.1], [0.002, 0.1], [0.004, 0.2]],
    "rates of no one length": [[0.1], [0.1, 0.2], [0.1]],
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_each_half_shows_what_it_is_of(rates: list[list[float]] | None, tmp_path: Path) -> None:
    picture = drawn(entries(rates), tmp_path / "curve.png")
    other = drawn(entries(rates, (0.1, 0.2, 0.7)), tmp_path / "other.png")
    assert (picture[:, :450] != other[:, :450]).any()
    assert (picture[:, 450:] == other[:, 450:]).all()
    half = picture[:, 450:]
    assert (half.max(axis=-1) - half.min(axis=-1) > 60).any(), "no coloured line"


def test_an_accuracy_that_is_missing_is_a_gap(tmp_path: Path) -> None:
    metrics = entries(None)
    del metrics[1]["held_out_accuracy"]
    drawn(metrics, tmp_path / "curve.png")


def test_nothing_validated_is_no_picture(tmp_path: Path) -> None:
    save_curve([], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
