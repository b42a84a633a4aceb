"""Augmentation: what each part does to a picture."""

import math

import pytest
import torch

from datadistill.data.augment import AUGMENTATIONS, augmented, one_of, parse_augmentation, siamese
from datadistill.utils.errors import RequestError
from datadistill.utils.runtime import stream


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
    turn = AUGMENTATIONS.get("rotate").draw(5, 32, stream(3))
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


def test_changes_joined_by_a_plus_are_one_part() -> None:
    images, joined = picture().expand(30, -1, -1, -1), parse_augmentation("flip_shift+cutout")
    assert [[change.name for change in part] for part in joined] == [["flip"], ["shift", "cutout"]]
    by_all = augmented(images, parse_augmentation("shift_cutout"), stream(0))
    assert torch.equal(augmented(images, parse_augmentation("shift+cutout"), stream(0)), by_all)
    changed = one_of(images, joined[1:], stream(1))
    for number, image in enumerate(changed):
        assert (image == 0).any(), "cut"
        assert not torch.allclose(image[image != 0], images[number][image != 0], atol=1e-3), "and shifted"


def test_a_piece_of_a_batch_is_changed_as_in_the_batch() -> None:
    images, parts = torch.rand(9, 3, 16, 16, generator=stream(4)), parse_augmentation("color_warp10+cutout_flip")
    for seed in range(6):
        whole = one_of(images, parts, stream(seed))
        piece = one_of(images[3:7], parts, stream(seed), first=3, total=9)
        assert torch.equal(whole[3:7], piece)


@pytest.mark.parametrize(("name", "degrees"), [("warp10", 10), ("warp20", 20)])
def test_a_warp_turns_scales_shears_and_shifts_as_far_as_it_says(name: str, degrees: int) -> None:
    share, draws = degrees / 20, AUGMENTATIONS.get(name).draw(4000, 28, stream(0))
    linear, shift, knots = draws[:, :, :2], draws[:, :, 2], draws[:, :, 3:]
    angle = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert degrees * 0.98 < angle.abs().max() <= degrees * 1.0001
    sizes = torch.linalg.norm(linear[:, :, 0], dim=1).log() / math.log(1.3)
    assert 0.98 * share < sizes.abs().max() <= 1.0001 * share
    assert 0.24 * share < shift.abs().max() <= share / 4
    assert knots.std() == pytest.approx(0.1 * share, rel=0.02)
    away = (linear[:, :, 0] * linear[:, :, 1]).sum(1) / linear[:, :, 0].square().sum(1)  # shear, over the width
    assert 0.15 * share < away.abs().max() < 0.3 * share


@pytest.mark.parametrize(
    ("text", "match"),
    [("turn", "turn"), ("flip_flip", "twice"), ("flip+flip", "twice"), ("", "augmentation"), ("flip+", "augmentation")],
)
def test_wrong_requests(text: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        parse_augmentation(text)


def colours(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=stream(9))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_siamese_is_one_change_for_all_images_and_all_batches(name: str) -> None:
    change = siamese(parse_augmentation(name), 16, stream(2))
    images = colours(6)
    assert torch.allclose(change(images)[2:5], change(images[2:5]), atol=1e-6)
    same = colours(1).expand(4, -1, -1, -1)
    assert torch.equal(change(same)[0], change(same)[3])


def test_one_of_takes_one_part_for_the_batch() -> None:
    images = picture().expand(50, -1, -1, -1)
    kinds = set()
    for seed in range(20):
        changed = one_of(images, parse_augmentation("flip_cutout"), stream(seed))
        cut = bool((changed == 0).flatten(1).any(1).any())
        kinds.add(cut)
        if cut:
            assert (changed == 0).flatten(1).any(1).all()
        else:
            assert {torch.allclose(one, picture()[0], atol=1e-5) for one in changed} == {True, False}
    assert kinds == {True, False}


def test_crops_move_by_whole_pixels_and_leave_zeros() -> None:
    images = colours(40) + 1
    changed = one_of(images, parse_augmentation("crop"), stream(1))
    rolled = {(dy, dx): torch.roll(images, (dy, dx), (2, 3)) for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for index, one in enumerate(changed):
        inside = one[0] != 0
        moves = [
            move
            for move, other in rolled.items()
            if torch.allclose(one[:, inside], other[index][:, inside], atol=1e-4)
            and int(inside.sum()) == (16 - abs(move[0])) * (16 - abs(move[1]))
        ]
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) > 8


def test_cutout_is_half_the_edge_and_may_lie_at_the_border() -> None:
    images = torch.ones(300, 1, 16, 16)
    sizes = (one_of(images, parse_augmentation("cutout"), stream(0)) == 0).sum((1, 2, 3))
    assert int(sizes.max()) == 64
    assert 16 <= int(sizes.min()) < 32


def test_colours_keep_grey_grey_and_reach_what_they_say() -> None:
    grey = torch.rand(500, 1, 8, 8, generator=stream(0)).expand(-1, 3, -1, -1)
    changed = one_of(grey, parse_augmentation("color"), stream(3))
    assert changed.std(1).abs().max() < 1e-5
    moved = changed.mean((1, 2, 3)) - grey.mean((1, 2, 3))
    assert -0.5 <= moved.min() < -0.45
    assert 0.45 < moved.max() <= 0.5
    contrast = changed.std((2, 3)) / grey.std((2, 3))
    assert 0.5 <= contrast.min() < 0.55
    assert 1.45 < contrast.max() <= 1.5
    coloured = colours(500)
    spread = one_of(coloured, parse_augmentation("color"), stream(4)).std(1).mean((1, 2)) / coloured.std(1).mean((1, 2))
    assert spread.min() < 0.05
    assert spread.max() > 2


def test_gradients_pass_through_every_part() -> None:
    for name in AUGMENTATIONS.names():
        images = colours(3).double().requires_grad_()
        assert torch.autograd.gradcheck(
            siamese(parse_augmentation(name), 16, stream(0)), images[:1, :1, :6, :6].detach().clone().requires_grad_()
        )
        siamese(parse_augmentation(name), 16, stream(0))(images).sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0
