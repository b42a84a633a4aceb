"""ZCA: what it does to images, what it is learned from, and who refuses to mix it with what is not whitened."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datadistill as dd
from datadistill.data import Split, Whitening
from datadistill.engine import make_network
from datadistill.formats import export_to, import_from
from datadistill.models import create_model
from datadistill.pretraining.pool import PoolFacts
from datadistill.pretraining.trajectories import TrajectoryFacts
from datadistill.utils.errors import RequestError


@pytest.fixture(scope="module")
def white() -> dd.RealData:
    torch.set_num_threads(1)  # as for every test: a sum's last bits depend on it
    return dd.load("digits", zca=True)


def spectrum(images: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(torch.cov(images.double().flatten(1).T)).clamp(min=0)


def pixels_of(real: dd.RealData) -> torch.Tensor:
    return real.normalization.invert(real.train.images)


def test_the_covariance_is_the_regularised_identity(digits: dd.RealData, white: dd.RealData) -> None:
    before, after = spectrum(pixels_of(digits)), spectrum(white.train.images)
    # Each variance s of pixels in [0, 1] becomes s / (s + eps), which keeps their order.
    assert torch.allclose(after, before / (before + 0.1), atol=1e-4)
    assert float(before.max()) > 0.5
    assert float(after.max()) < 1
    assert float(white.train.images.mean(0).abs().max()) < 1e-5


def test_it_is_the_whitening_nearest_to_the_images(white: dd.RealData, digits: dd.RealData) -> None:
    zca = white.normalization.zca
    assert zca is not None
    matrix = zca.matrix.double() / digits.normalization.std[0]
    assert torch.allclose(matrix, matrix.T, atol=1e-6)
    covariance = torch.cov(pixels_of(digits).double().flatten(1).T)
    # The inverse root itself: its square undoes the regularised covariance.
    square = matrix @ matrix @ (covariance + 0.1 * torch.eye(64))
    assert torch.allclose(square, torch.eye(64, dtype=torch.float64), atol=1e-3)


def test_channels_may_have_been_divided_by_anything() -> None:
    pixels = torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    pixels[:, 1] *= 0.3
    found = []
    for std in ((1.0, 1.0, 1.0), (0.5, 0.1, 0.25)):
        images = (pixels - 0.4) / torch.tensor(std)[:, None, None]
        found.append(Whitening.learn(images, std).apply(images))
    centred = pixels.flatten(1).double()
    centred -= centred.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / 59)
    by_hand = centred @ directions @ torch.diag((variances + 0.1).rsqrt()) @ directions.T
    for images in found:
        assert torch.allclose(images.flatten(1).double(), by_hand, atol=1e-5)


def test_only_training_images_less_the_held_out_ones_are_learned_from(digits: dd.RealData, white: dd.RealData) -> None:
    def gone(split: Split) -> Split:
        return replace(split, images=torch.full_like(split.images, torch.nan))

    again = replace(digits, held_out=gone(digits.held_out), test=gone(digits.test)).whitened()
    assert torch.equal(again.train.images, white.train.images)
    assert again.test.images.isnan().all(), "the test split goes through it, too"


def test_every_split_goes_through_the_same_map(digits: dd.RealData, white: dd.RealData) -> None:
    for name in ("train", "held_out", "test"):
        plain, mapped = getattr(digits, name), getattr(white, name)
        assert not torch.allclose(plain.images, mapped.images, atol=0.1)
        back = white.normalization.invert(mapped.images)
        assert torch.allclose(back, digits.normalization.invert(plain.images), atol=1e-4)
    pixels = (digits.normalization.invert(digits.test.images) * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.allclose(white.normalization.apply(pixels), white.test.images, atol=1e-3)
    assert white.normalization.by_channel == digits.normalization


def test_pieces_do_not_matter(digits: dd.RealData, white: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datadistill.data.transforms._PIECE", 77)
    assert torch.allclose(digits.whitened().train.images, white.train.images, atol=1e-3)


def test_what_cannot_be_whitened(white: dd.RealData, digits: dd.RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="digits is whitened already"):
        white.whitened()
    monkeypatch.setattr("datadistill.data.options._memory", lambda: 64 * 64 * 40 - 1)
    with pytest.raises(RequestError, match=r"takes a matrix of 64 x 64 .* leave out --zca"):
        digits.whitened()


def test_data_of_ones_own_remembers_it(tmp_path: Path, digits: dd.RealData) -> None:
    pixels = (digits.normalization.invert(digits.train.images) * 255).round().byte().numpy()[:, 0]
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=digits.train.labels.numpy())
    real = dd.load(tmp_path / "own.npz", zca=True, say=lambda text: None)
    assert real.is_whitened
    assert real.options.as_words() == ["--zca"]
    assert dd.load(tmp_path / "own.npz", say=lambda text: None).options.as_words() == []


@pytest.fixture
def made(white: dd.RealData, tmp_path: Path) -> Callable[..., dd.Run]:
    def distil(real: dd.RealData = white, **options: Any) -> dd.Run:
        method = dd.methods.DD(steps=1, epochs=1, batch=64, networks=1)
        common: dict[str, Any] = {"model": "mlp", "weights": "random-init", "iterations": 1, "device": "cpu"}
        return dd.distill(real, method, **common, **options)

    return distil


def test_a_file_holds_all_that_another_program_needs(
    made: Callable[..., dd.Run], white: dd.RealData, digits: dd.RealData, tmp_path: Path
) -> None:
    from safetensors import safe_open

    data = made(out=tmp_path / "run").distilled
    with safe_open(tmp_path / "run" / "distilled.safetensors", framework="pt") as file:
        mean, matrix = (file.get_tensor(f"transform.zca_{name}") for name in ("mean", "matrix"))
    test = ((digits.test.images.flatten(1) - mean) @ matrix).view_as(digits.test.images)
    assert torch.allclose(test, white.test.images, atol=1e-5)
    flat = torch.linalg.solve(matrix, data.images.flatten(1).T).T + mean
    pixels = digits.normalization.invert(flat.view_as(data.images))
    assert torch.allclose(data.pixels(), pixels, atol=1e-4)
    again = dd.load_distilled(tmp_path / "run")
    assert torch.equal(again.pixels(), data.pixels())
    assert json.loads(again.header())["normalization"] == {
        "mean": [*again.provenance.normalization.mean],
        "std": [*again.provenance.normalization.std],
        "zca": True,
    }
    again.check_matches(white)


def test_a_file_of_colour_images_comes_back(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels = (draw.random((200, 8, 8, 3)) * [255, 120, 40]).astype(np.uint8)
    labels = np.arange(200) % 4
    real = dd.from_arrays(pixels[:160], labels[:160], pixels[160:], labels[160:]).whitened()
    method = dd.methods.DM(batch=8)
    run = dd.distill(real, method, model="mlp", weights="random-init", iterations=1, device="cpu", out=tmp_path)
    back = dd.load_distilled(tmp_path)
    assert torch.equal(back.pixels(), run.distilled.pixels())
    back.check_matches(real)


def test_whitened_and_plain_data_are_never_mixed(
    made: Callable[..., dd.Run], white: dd.RealData, digits: dd.RealData
) -> None:
    with pytest.raises(RequestError, match=r"are whitened .* but those of digits are not whitened here: add --zca"):
        dd.evaluate(made().distilled, digits, nets=1)
    with pytest.raises(RequestError, match=r"are not whitened .* are whitened here: leave out --zca"):
        dd.evaluate(made(digits).distilled, white, nets=1)
    zca = white.normalization.zca
    assert zca is not None
    other = replace(white, normalization=replace(white.normalization, zca=Whitening(zca.mean, 1.01 * zca.matrix)))
    with pytest.raises(RequestError, match="whitened by another ZCA matrix than that of digits"):
        dd.evaluate(made().distilled, other, nets=1)


def test_a_run_goes_on_with_the_same_whitening_alone(
    made: Callable[..., dd.Run], digits: dd.RealData, tmp_path: Path
) -> None:
    made(out=tmp_path)
    with pytest.raises(RequestError, match="other settings: zca is True there and False here"):
        made(digits, out=tmp_path, resume=True)
    made(out=tmp_path, resume=True)


def test_experts_say_whether_they_saw_whitened_images(
    white: dd.RealData, digits: dd.RealData, pool: dd.Pool, trajectories: dd.Trajectories, tmp_path: Path
) -> None:
    training = dd.TrainRecipe(epochs=1, batch=256)
    common: dict[str, Any] = {"model": "mlp", "training": training, "device": "cpu"}
    mine = dd.make_pool(white, tmp_path / "pool", nets=2, reserved=1, **common)
    experts = dd.make_trajectories(white, tmp_path / "experts", experts=1, **common)
    network = make_network(create_model("mlp", white))
    known: tuple[PoolFacts | TrajectoryFacts, ...] = (mine.facts, experts.facts)
    assert all(facts.zca and facts.known()["normalization"]["zca"] for facts in known)
    assert not any("zca" in facts.known()["normalization"] for facts in (pool.facts, trajectories.facts))
    for found in (mine, experts):
        found.check_fits(network, "mlp", white)
        with pytest.raises(RequestError, match=r"images are whitened .* not whitened here: add --zca"):
            found.check_fits(network, "mlp", digits)
    for plain in (pool, trajectories):
        with pytest.raises(RequestError, match=r"images are not whitened .* leave out --zca"):
            plain.check_fits(network, "mlp", white)
    with pytest.raises(RequestError):
        dd.make_pool(digits, tmp_path / "pool", nets=2, reserved=1, resume=True, **common)


def test_formats_carry_it_or_refuse(made: Callable[..., dd.Run], white: dd.RealData, tmp_path: Path) -> None:
    data = made().distilled
    for name in ("dc", "mtt", "2018", "dd-ranking", "hf", "png"):
        with pytest.raises(RequestError, match=f"format {name} cannot say how: export them to npz"):
            export_to(data, name, tmp_path / "none")
    export_to(data, "npz", tmp_path / "data.npz")
    again = import_from(tmp_path / "data.npz", real=white)
    assert torch.equal(again.pixels(), data.pixels())
    np.savez(tmp_path / "bare.npz", images=data.images.numpy(), labels=data.labels.numpy())
    with pytest.raises(RequestError, match="do not say how they were whitened"):
        import_from(tmp_path / "bare.npz", real=white)
