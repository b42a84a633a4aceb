"""Classes with different numbers of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from own import digit_arrays

import datadistill as dd
from datadistill.baselines import BASELINES
from datadistill.data.ipc import labels_in_order, resolve_ipc
from datadistill.distillation.problem import make_problem


@pytest.fixture(scope="module")
def real() -> dd.RealData:
    """Three digits with 40, 80 and 121 training images."""
    x, y, *_ = digit_arrays(1797, 0)
    chosen = np.concatenate([np.flatnonzero(y == label)[:count] for label, count in ((0, 56), (1, 111), (2, 167))])
    return dd.from_arrays(x[chosen], y[chosen], say=lambda text: None)


def test_what_can_be_asked(real: dd.RealData) -> None:
    assert real.train.counts.tolist() == [40, 80, 121]
    assert resolve_ipc(3, real) == resolve_ipc("3,3,3", real) == resolve_ipc((3, 3, 3), real) == 3
    assert resolve_ipc("1,2,3", real) == resolve_ipc([1, 2, 3], real) == (1, 2, 3)
    assert resolve_ipc("proportional:12", real) == (2, 4, 6)
    assert resolve_ipc("proportional:3", real) == 1, "at least one to each class"
    assert sum(resolve_ipc("proportional:100", real)) == 100  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [("1,2", "2 numbers"), ("proportional:2", "2 images"), ("all", "is 'all'")],
)
def test_what_cannot(asked: object, sentence: str, real: dd.RealData) -> None:
    with pytest.raises(dd.RequestError, match=sentence):
        resolve_ipc(asked, real)  # type: ignore[arg-type]


def test_every_step_has_every_share() -> None:
    assert labels_in_order([2, 2, 2]).tolist() == [0, 1, 2, 0, 1, 2]
    steps = labels_in_order([4, 8, 12]).view(4, 6)
    for step in steps:
        assert torch.bincount(step).tolist() == [1, 2, 3]


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("images", ["noise", "mean", "real"])
def test_distilling(labels: str, images: str, real: dd.RealData) -> None:
    method = dd.methods.DD(steps=2, epochs=1, labels=labels, images=images, batch=32, learning_rate=0.1)  # type: ignore[arg-type]
    run = dd.distill(real, method, model="mlp", ipc=(1, 2, 3), iterations=3, device="cpu")
    assert torch.bincount(run.distilled.labels).tolist() == [1, 2, 3]
    assert run.distilled.batches.shape == (2, 3)
    if labels == "soft":
        assert run.distilled.soft_labels is not None
        assert torch.equal(run.distilled.soft_labels.argmax(1), run.distilled.labels)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.repeats if name in ("herding", "kcenter") else ())
        for name in BASELINES.names()
        if name not in ("average", "optimized")
    ],
)
def test_baselines(name: str, real: dd.RealData) -> None:
    """Each image is one of its own class: the nearest class mean says so more often than not."""
    problem = make_problem(
        real,
        model="mlp",
        weights="random-init",
        scheme="xavier",
        ipc="2,4,6",
        seed=0,
        device=torch.device("cpu"),
    )
    (data,) = BASELINES.get(name)(steps=2).run(problem)
    assert torch.bincount(data.labels).tolist() == [2, 4, 6]
    means = torch.stack([real.train.images[real.train.of_class(label)].mean(0) for label in range(3)]).flatten(1)
    nearest = torch.cdist(data.images.flatten(1), means).argmin(1)
    assert (nearest == data.labels).sum() >= 9


def test_more_than_a_class_has_is_refused(real: dd.RealData) -> None:
    with pytest.raises(dd.RequestError, match="ipc is 41 for class '0' of arrays, but must be from 1 to its 40"):
        dd.distill(real, model="mlp", ipc=(41, 1, 1), iterations=1, device="cpu")
    with pytest.raises(dd.RequestError, match="7 images cannot be cut into 2 equal steps"):
        dd.distill(real, dd.methods.DD(steps=2), model="mlp", ipc=(1, 2, 4), iterations=1, device="cpu")


def test_a_run_goes_on(real: dd.RealData, tmp_path: object) -> None:
    def run(resume: bool) -> dd.Run:
        return dd.distill(
            real,
            dd.methods.DD(batch=32),
            model="mlp",
            ipc=(1, 2, 3),
            iterations=2,
            out=f"{tmp_path}/run",
            resume=resume,
        )

    assert torch.equal(run(False).distilled.images, run(True).distilled.images)
    config = Path(f"{tmp_path}/run/config.json")
    assert '"ipc": [' in config.read_text()
    config.write_text(config.read_text().replace('"ipc": [', '"ipc": ["many", '))
    with pytest.raises(dd.DamagedFileError, match=r"'ipc' is .*, but must be a whole number or"):
        run(True)
