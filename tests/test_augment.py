"""Augmentation: what each part does to a picture."""

import pytest
import torch

from datadistill.augment import AUGMENTATIONS, augmented, parse_augmentation
from datadistill.errors import RequestError
from datadistill.runtime import stream


def picture() -> torch.Tensor:
    """A smooth picture, as [1, 1, 32, 32]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    return torch.exp(-4 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))[None, None]


def centre(images: torch.Tensor) -> torch.Tensor:
    """The centre of mass, row and column in pixels."""
    places = torch.arange(32.0)
    total = images.sum((1, 2, 3))
    rows = (images.sum((1, 3)) * places).sum(1) / total
    return torch.stack([rows, (images.sum((1, 2)) * places).sum(1) / total], 1)


def test_nothing_is_nothing() -> None:
    assert parse_augmentation("none") == ()
    assert torch.equal(augmented(picture(), (), stream(0)), picture())


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_each_image_has_a_draw_of_its_own_and_the_seed_decides(name: str) -> None:
    images = picture().expand(8, -1, -1, -1)
    once, again, other = (augmented(images, parse_augmentation(name), stream(seed)) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({tuple(image.flatten().tolist()) for image in once}) >= 2


def test_flips_are_exact() -> None:
    images = picture().expand(20, -1, -1, -1)
    flipped = augmented(images, parse_augmentation("flip"), stream(0))
    kinds = [torch.allclose(one, picture()[0], atol=1e-5) for one in flipped]
    assert all(
        kind or torch.allclose(one, picture()[0].flip(-1), atol=1e-5) for kind, one in zip(kinds, flipped, strict=True)
    )
    assert 2 < sum(kinds) < 18


def test_shifts_reach_an_eighth_of_the_edge() -> None:
    images = picture().expand(400, -1, -1, -1)
    moved = centre(augmented(images, parse_augmentation("shift"), stream(0))) - centre(picture())
    assert 3.5 < moved.abs().max() < 4.2
    assert moved.mean(0).abs().max() < 0.6
    assert moved.std(0) == pytest.approx(8 / 12**0.5, abs=0.4)


def test_turning_keeps_the_middle_where_it_is() -> None:
    lone = torch.zeros(1, 1, 33, 33)
    lone[0, 0, 16, 16] = 1
    turned = augmented(lone.expand(50, -1, -1, -1), parse_augmentation("rotate_scale"), stream(0))
    assert turned[:, 0, 16, 16] == pytest.approx(1.0, abs=1e-4)


def test_a_turn_and_the_same_turn_back_are_none() -> None:
    turn = AUGMENTATIONS.get("rotate").draw(5, stream(3))
    assert torch.allclose(turn @ turn.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-6)


def test_parts_act_in_the_order_in_which_they_are_named() -> None:
    """A shift after a flip moves the picture by what the shift says; before it, by the mirror image of that."""
    images, sign = picture().expand(200, -1, -1, -1), []
    for name in ("flip_shift", "shift_flip"):
        parts = parse_augmentation(name)
        together = augmented(images, parts, stream(5))
        generator = stream(5)
        one_by_one = augmented(augmented(images, parts[:1], generator), parts[1:], generator)
        inside = (slice(None), slice(None), slice(6, 26), slice(6, 26))
        sign.append(float((together - one_by_one)[inside].abs().max()))
    assert max(sign) < 0.05


def test_gradients_pass() -> None:
    images = picture().requires_grad_()
    augmented(images, parse_augmentation("shift_scale_rotate_flip"), stream(0)).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(("text", "match"), [("turn", "turn"), ("flip_flip", "twice"), ("", "augmentation")])
def test_wrong_requests(text: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        parse_augmentation(text)
