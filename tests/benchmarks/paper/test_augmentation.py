"""`benchmarks.paper.augmentation`: each change by hand or against another implementation; what draws keep."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.paper.augmentation import Stl10Augmentation, SvhnAugmentation, affine, change_colour, gaussian_blur
from tests.cases import seeded

STL10, SVHN = Stl10Augmentation(), SvhnAugmentation()
STL10_NOTHING = Stl10Augmentation(rotation=0, crop=0, brightness=1, saturation=(1, 1), hue=0, grey=0, flip=0)
SVHN_NOTHING = SvhnAugmentation(linear=0, translation=0, blur=0)
BOTH = pytest.mark.parametrize("augmentation", [STL10, SVHN], ids=["stl10", "svhn"])

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(count: int, height: int = 12, width: int = 17) -> Tensor:
    """Sides that differ, one even and one odd: neither a swap of x and y nor half a pixel stays hidden."""
    return torch.randint(0, 256, (count, 3, height, width), generator=seeded(count), dtype=torch.uint8)


def same_image(count: int, height: int = 12, width: int = 17) -> Tensor:
    return random_images(1, height, width).expand(count, -1, -1, -1)


def ramp(height: int, width: int) -> Tensor:
    """A grey image whose value is linear in x and y, which bilinear interpolation reproduces inside the image."""
    x, y = torch.arange(width) - (width - 1) / 2, torch.arange(height) - (height - 1) / 2
    return (100 + 3 * x[None, :] + 5 * y[:, None]).expand(1, 3, -1, -1)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [STL10_NOTHING, SVHN_NOTHING], ids=["stl10", "svhn"])
def test_ranges_of_zero_change_nothing(nothing: Augmentation) -> None:
    images = random_images(6)
    assert torch.equal(nothing(images, seeded()), images)
    # Positions and the colour circle are rounded in float32: about 1e-6 of a pixel, of values up to 255.
    torch.testing.assert_close(nothing(images.float(), seeded()), images.float(), rtol=0, atol=2e-3)


@BOTH
def test_same_seed_gives_the_same_images(augmentation: Augmentation) -> None:
    images = random_images(6)
    before = images.clone()
    first, again, other = (augmentation(images, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


@BOTH
def test_a_generator_moves_on(augmentation: Augmentation) -> None:
    generator = seeded()
    images = random_images(4)
    assert not torch.equal(augmentation(images, generator), augmentation(images, generator))


@pytest.mark.parametrize(
    "augmentation",
    [
        replace(STL10_NOTHING, rotation=10),
        replace(STL10_NOTHING, crop=0.2),
        replace(STL10_NOTHING, brightness=1.3),
        replace(STL10_NOTHING, saturation=(0.5, 1.2)),
        replace(STL10_NOTHING, hue=0.1),
        replace(SVHN_NOTHING, linear=0.15),
        replace(SVHN_NOTHING, translation=2),
    ],
    ids=["rotation", "crop", "brightness", "saturation", "hue", "linear", "translation"],
)
def test_every_image_has_its_own_draws(augmentation: Augmentation) -> None:
    changed = augmentation(same_image(8), seeded())
    assert len({image.numpy().tobytes() for image in changed}) == 8


@pytest.mark.parametrize(
    "augmentation",
    [replace(STL10_NOTHING, grey=0.5), replace(STL10_NOTHING, flip=0.5), replace(SVHN_NOTHING, blur=0.5)],
    ids=["grey", "flip", "blur"],
)
def test_coins_leave_about_half_of_the_images(augmentation: Augmentation) -> None:
    changed = augmentation(same_image(400), seeded())
    kept = (changed == same_image(400)).flatten(1).all(1).sum()
    assert len({image.numpy().tobytes() for image in changed}) == 2
    assert 160 < kept < 240  # four standard deviations


def test_coins_are_independent() -> None:
    changed = replace(STL10_NOTHING, grey=0.5, flip=0.5)(same_image(64), seeded())
    assert len({image.numpy().tobytes() for image in changed}) == 4


@BOTH
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_dtype_shape_and_range_are_kept(augmentation: Augmentation, dtype: torch.dtype) -> None:
    images = torch.where(random_images(64) > 127, 255, 0).to(dtype)  # extremes, which any overshoot would leave
    changed = augmentation(images, seeded())
    assert changed.dtype == dtype
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert len(changed.unique()) > 100


@BOTH
def test_uint8_is_float_rounded_once(augmentation: Augmentation) -> None:
    images = random_images(6)
    exact = augmentation(images.float(), seeded())
    assert (augmentation(images, seeded()).float() - exact).abs().max() <= 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@BOTH
def test_a_gpu_gives_the_same_images(augmentation: Augmentation) -> None:
    images = random_images(16, 32, 32)
    changed = augmentation(images.cuda(), seeded())
    assert changed.is_cuda
    difference = (changed.cpu().int() - augmentation(images, seeded()).int()).abs()
    # A value next to a half may be rounded the other way, and a TF32 convolution has 10 bits: 255 / 2**11 a product.
    assert difference.max() <= 1
    own = torch.Generator("cuda").manual_seed(0)
    assert augmentation(images.cuda(), own).is_cuda


@pytest.mark.parametrize(
    ("augmentation", "shape"),
    [(STL10, (2, 1, 8, 8)), (STL10, (3, 8, 8)), (SVHN, (2, 3, 3, 8)), (SVHN, (3, 8, 8))],
)
def test_wrong_shapes_are_refused(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"images: expected .*got shape \[{', '.join(map(str, shape))}\]"):
        augmentation(torch.zeros(shape), seeded())


# --- positions ------------------------------------------------------------------------------------------------------


def test_translation_mirrors_or_wraps() -> None:
    row = torch.tensor([10.0, 20, 30, 40, 50])
    images = row.expand(2, 1, 4, 5)
    wrapped = torch.tensor([False, True])
    moved = affine(images, torch.eye(2).expand(2, 2, 2), torch.tensor([[2.0, 0], [2, 0]]), wrapped)
    torch.testing.assert_close(moved[0, 0], torch.tensor([20.0, 10, 10, 20, 30]).expand(4, 5))
    torch.testing.assert_close(moved[1, 0], torch.tensor([40.0, 50, 10, 20, 30]).expand(4, 5))

    half = affine(images, torch.eye(2).expand(2, 2, 2), torch.tensor([[-0.5, 0], [-0.5, 0]]), wrapped)
    torch.testing.assert_close(half[0, 0, 0], torch.tensor([15.0, 25, 35, 45, 50]))
    torch.testing.assert_close(half[1, 0, 0], torch.tensor([15.0, 25, 35, 45, 30]))  # between 50 and 10


def test_translation_is_x_then_y() -> None:
    images = random_images(1).float()
    moved = affine(images, torch.eye(2)[None], torch.tensor([[3.0, -4.0]]), torch.tensor([True]))
    torch.testing.assert_close(moved, images.roll((3, -4), (3, 2)), rtol=0, atol=2e-3)


def test_affine_map_goes_from_image_to_result() -> None:
    """Turning by 90 degrees, x to y and y to -x, on a square and against `torch.rot90`; and a magnification."""
    images = random_images(1, 9, 9).float()
    quarter = torch.tensor([[[0.0, -1], [1, 0]]])  # y points down: clockwise
    turned = affine(images, quarter, torch.zeros(1, 2), torch.tensor([False]))
    torch.testing.assert_close(turned, images.rot90(-1, (2, 3)), rtol=0, atol=2e-3)

    magnified = affine(ramp(8, 11), 2 * torch.eye(2)[None], torch.zeros(1, 2), torch.tensor([False]))
    torch.testing.assert_close(magnified, (ramp(8, 11) + 100) / 2)  # the slope is halved about the centre, value 100
    moved = affine(ramp(8, 11), 2 * torch.eye(2)[None], torch.tensor([[4.0, -2.0]]), torch.tensor([False]))
    torch.testing.assert_close(moved, magnified - (3 * 4 - 5 * 2) / 2)  # by 4 and -2 pixels of the result


def test_far_positions_come_from_the_right_copy() -> None:
    """More than one image away, up to the fourth copy, each of the two continuations is what numpy's padding gives."""
    images = random_images(1, 5, 5).float()
    for wrapped, mode in ((True, "wrap"), (False, "symmetric")):
        padded = np.pad(images[0].numpy(), ((0, 0), (20, 20), (20, 20)), mode=mode)
        for shift in (7, -13, 20):
            moved = affine(images, torch.eye(2)[None], torch.tensor([[float(shift), 0.0]]), torch.tensor([wrapped]))
            expected = padded[:, 20:25, 20 - shift : 25 - shift]
            np.testing.assert_allclose(moved[0], expected, rtol=0, atol=5e-3)


def test_svhn_draws_have_the_stated_deviations() -> None:
    """A ramp shows the inverse map's slopes and shift at the centre; small maps, so that it is nearly 1 - the draw."""
    size, count = 31, 4000
    images = ramp(size, size).expand(count, -1, -1, -1)
    middle = size // 2
    moved = replace(SVHN_NOTHING, translation=2)(images, seeded())[:, 0, middle, middle] - 100
    # Value 3 x + 5 y: the deviation is 2 * sqrt(9 + 25); its standard error is 1 / sqrt(2 * count) of it.
    assert moved.std().item() == pytest.approx(2 * math.sqrt(34), rel=4 / math.sqrt(2 * count))

    bent = replace(SVHN_NOTHING, linear=0.01)(images, seeded())[:, 0]
    slope = bent[:, middle, middle + 1] - bent[:, middle, middle]
    assert slope.std().item() == pytest.approx(0.01 * math.sqrt(34), rel=4 / math.sqrt(2 * count) + 0.03)


def test_svhn_mirrors_half_of_the_images_and_wraps_the_others() -> None:
    """Of a ramp from 0 to 255, moved by some pixels, a wrapped image alone has a step in its rows."""
    images = torch.linspace(0, 255, 32).expand(400, 1, 32, 32)
    moved = replace(SVHN_NOTHING, translation=8)(images, seeded())
    steps = moved.diff(dim=3).abs().amax((1, 2, 3)) > 100
    # A wrapped image shows none where the step falls beyond the border: moved by less than half a pixel, one in twenty.
    assert 150 < steps.sum() < 240


def test_flip_mirrors_left_and_right() -> None:
    images = random_images(3)
    assert torch.equal(replace(STL10_NOTHING, flip=1)(images, seeded()), images.flip(3))


def test_rotation_is_within_its_range_and_black_outside() -> None:
    """On a ramp the slopes tell the angle: (3, 5) turned by it, of the same length, also where sides differ."""
    images = ramp(24, 30).expand(200, -1, -1, -1)
    turned = replace(STL10_NOTHING, rotation=10)(images, seeded())[:, 0]
    by_x = turned[:, 12, 15] - turned[:, 12, 14]
    by_y = turned[:, 12, 15] - turned[:, 11, 15]
    torch.testing.assert_close(by_x**2 + by_y**2, torch.full((200,), 34.0), rtol=1e-3, atol=0)
    degrees = torch.rad2deg(torch.atan2(by_y, by_x) - math.atan2(5, 3))
    assert -10.01 < degrees.min() < -9.5
    assert 9.5 < degrees.max() < 10.01
    white = replace(STL10_NOTHING, rotation=45)(torch.full((8, 3, 24, 24), 255.0), seeded())
    assert (white.amin((1, 2, 3)) < 128).any()
    assert (white[:, :, 8:16, 8:16] > 254.9).all()


def test_crop_is_a_window_inside_the_image() -> None:
    """On a ramp, a crop of both sides by u has slopes of 1 - u, and its corners stay inside the image."""
    plain = ramp(24, 30)
    cropped = replace(STL10_NOTHING, crop=0.2)(plain.expand(300, -1, -1, -1), seeded())[:, 0]
    scale_x = (cropped[:, 12, 16] - cropped[:, 12, 15]) / 3
    scale_y = (cropped[:, 12, 15] - cropped[:, 11, 15]) / 5
    torch.testing.assert_close(scale_x, scale_y, rtol=1e-3, atol=0)
    assert 0.799 < scale_x.min() < 0.82
    assert 0.98 < scale_x.max() < 1.001
    # The centre moves, by no more than the cut leaves room: in value, 3 * 15 u and 5 * 12 u.
    moved = cropped[:, 11:13, 14:16].mean((1, 2)) - 100
    room = (1 - scale_x) * (3 * 15 + 5 * 12)
    assert (moved.abs() <= room + 1e-2).all()
    assert (moved.abs() > room / 2).sum() > 20
    # Of a white image, what comes from outside would be black; sides far apart tell the room of one from the other's.
    constant = replace(STL10_NOTHING, crop=0.2)(torch.full((300, 3, 24, 80), 255.0), seeded())
    assert constant[:, :, 1:-1, 1:-1].min() > 254.9


# --- colours --------------------------------------------------------------------------------------------------------

# Primary and secondary colours, greys, black, white, two equal channels, and some others.
PIXELS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (0, 0, 0), (255, 255, 255),
    (90, 90, 90), (200, 200, 10), (10, 200, 200), (200, 10, 200), (12, 130, 250), (250, 12, 130), (130, 250, 12),
    (3, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize("saturation", [0.0, 0.5, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("hue", [-0.4, -0.1, 0.0, 0.07, 0.5])
def test_colours_are_those_of_colorsys(hue: float, saturation: float) -> None:
    images = torch.tensor(PIXELS, dtype=torch.float32).view(len(PIXELS), 3, 1, 1)
    changed = change_colour(images, torch.full((len(PIXELS),), hue), torch.full((len(PIXELS),), saturation))
    for pixel, result in zip(PIXELS, changed.view(-1, 3).tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
        expected = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v)
        assert result == pytest.approx([255 * channel for channel in expected], abs=1e-3)


def test_hue_and_saturation_draws_fill_their_ranges() -> None:
    """Of one colour, hue 0.5 and saturation 0.5, what colorsys sees in the results."""
    colour = torch.tensor([100.0, 200, 200]).view(1, 3, 1, 1).expand(300, 3, 4, 4)
    changed = replace(STL10_NOTHING, hue=0.1, saturation=(0.5, 1.2))(colour, seeded())
    seen = torch.tensor([colorsys.rgb_to_hsv(*(image[:, 0, 0] / 255).tolist()) for image in changed])
    hue, saturation, value = seen.unbind(1)
    assert 0.399 < hue.min() < 0.41
    assert 0.59 < hue.max() < 0.601
    assert 0.249 < saturation.min() < 0.26
    assert 0.59 < saturation.max() < 0.601
    torch.testing.assert_close(value, torch.full((300,), 200 / 255))


def test_brightness_multiplies_by_up_to_its_range() -> None:
    images = torch.full((300, 3, 4, 4), 100.0)
    factors = replace(STL10_NOTHING, brightness=1.3)(images, seeded()).mean((1, 2, 3)) / 100
    assert 1 / 1.301 < factors.min() < 0.78
    assert 1.28 < factors.max() < 1.301
    assert factors.log().mean().abs() < 4 * math.log(1.3) / math.sqrt(3 * 300)  # uniform in the logarithm


def test_brightness_ends_at_white_before_the_colours_change() -> None:
    red = torch.tensor([255.0, 0, 0]).view(1, 3, 1, 1).expand(20, 3, 4, 4)
    grey = replace(STL10_NOTHING, brightness=1.3, grey=1)(red, seeded())
    assert grey.max().item() == pytest.approx(0.299 * 255)


def test_grey_is_luma() -> None:
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert (replace(STL10_NOTHING, grey=1)(pixel, seeded()) == 18).all()  # 18.15


# --- blur -----------------------------------------------------------------------------------------------------------


def test_blur_keeps_constants() -> None:
    images = torch.tensor([0.0, 77, 255]).view(1, 3, 1, 1).expand(2, 3, 4, 9)
    torch.testing.assert_close(gaussian_blur(images), images)


def test_blur_of_a_point_is_the_gaussian() -> None:
    image = torch.zeros(1, 1, 11, 13)
    image[0, 0, 5, 6] = 1000
    offsets = np.arange(-3, 4)
    weights = np.exp(-(offsets**2) / (2 * 1.4**2))
    weights /= weights.sum()
    expected = np.zeros((11, 13))
    expected[2:9, 3:10] = 1000 * np.outer(weights, weights)
    blurred = gaussian_blur(image)[0, 0]
    np.testing.assert_allclose(blurred, expected, rtol=1e-5, atol=1e-4)
    assert blurred.sum().item() == pytest.approx(1000, rel=1e-5)


def test_blur_mirrors_at_the_border_pixel() -> None:
    """Away from a mirror no symmetric blur moves a ramp; at it, only the mirrored ramp gives these values."""
    row = torch.arange(8.0).expand(1, 1, 8, 8)
    blurred = gaussian_blur(row)[0, 0]
    torch.testing.assert_close(blurred[:, 3:5], row[0, 0, :, 3:5])
    weights = torch.softmax(-(torch.arange(-3, 4.0) ** 2) / (2 * 1.4**2), 0)
    assert blurred[4, 0].item() == pytest.approx((weights * torch.tensor([3.0, 2, 1, 0, 1, 2, 3])).sum().item())


def test_svhn_blur_is_this_blur() -> None:
    images = random_images(3)
    expected = gaussian_blur(images.float()).round().to(torch.uint8)
    changed = replace(SVHN_NOTHING, blur=1)(images, seeded())
    assert (changed.int() - expected.int()).abs().max() <= 1  # positions rounded in float32 may turn a tie
    assert not torch.equal(changed, images)
