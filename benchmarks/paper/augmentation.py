"""Random changes of training images that keep their class: those of the paper for STL-10 and for SVHN.

Every image of a batch [N, C, H, W] gets its own draws. The draws are made on the device of the generator and then
taken to that of the images, so that one seed gives one result wherever the images are. Values are 0 to 255, and so is
the result, in the dtype of the input; uint8 is rounded once, at the end. Positions are (x, y) in pixels with the
centre of the image as origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

WHITE = 255.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Stl10Augmentation:
    """The augmentation of STL-10 (section 4.2): rotation, crop, flip, brightness, saturation, hue and grey images.

    The paper names random crops, brightness, saturation, hue and small rotations. The ranges, the grey images and the
    flips are those of its published code (haeusser/learning_by_association), which differs from this in two ways. Its
    colour functions were never published: that brightness multiplies is our reading of its 1.3. And it resizes the
    crop to the nearest pixel, where rotation and crop are one bilinear interpolation here.

    - ``rotation``: the largest angle in degrees, either way; what comes from outside the image is black
    - ``crop``: the largest fraction cut from both sides of the image, which is resized to its old size
    - ``brightness``: the largest factor of the pixels; its logarithm is uniform between that and its inverse
    - ``saturation``: the range of the factor of the HSV saturation
    - ``hue``: the largest change of the HSV hue either way, in turns of the colour circle
    - ``grey``, ``flip``: the probabilities of an image without colour and of one mirrored left to right
    """

    rotation: float = 10.0
    crop: float = 0.2
    brightness: float = 1.3
    saturation: tuple[float, float] = (0.5, 1.2)
    hue: float = 0.1
    grey: float = 0.5
    flip: float = 0.5

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` [N, 3, H, W] changed at random. Raises ValueError where they are not RGB."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected RGB images [N, 3, H, W], got shape {list(images.shape)}")
        count, _, height, width = images.shape
        draws = torch.rand(9, count, generator=generator, device=generator.device)
        turn, cut, left, top, brightness, saturation, hue = draws[:7]
        grey, flip = draws[7] < self.grey, draws[8] < self.flip

        # 1. Where each pixel comes from: the flip, then the crop, then the rotation, from the result backwards.
        kept = 1 - self.crop * cut
        angle = math.radians(self.rotation) * (2 * turn - 1)
        linear = kept[:, None, None] * _rotations(angle)
        linear[..., 0] *= torch.where(flip, -1.0, 1.0)[:, None]
        corner = torch.stack([width * (2 * left - 1), height * (2 * top - 1)], 1) / 2
        offset = (_rotations(angle) @ ((1 - kept)[:, None] * corner)[..., None]).squeeze(2)
        changed = grid_sample(
            _float(images),
            _grid(linear, offset, height, width).to(images.device),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )

        # 2. The colours.
        lowest, highest = self.saturation
        factor = self.brightness ** (2 * brightness - 1)
        changed = (changed * _per_image(factor, images)).clamp(0, WHITE)
        changed = change_colour(
            changed,
            self.hue * (2 * hue - 1).to(images.device),
            (lowest + (highest - lowest) * saturation).to(images.device),
        )
        changed = torch.where(_per_image(grey, images), _luma(changed), changed)
        return _like(changed, images)


@dataclass(frozen=True)
class SvhnAugmentation:
    """The augmentation of SVHN (section 4.3): a random affine map and, for half of the images, a Gaussian blur.

    The paper names the two; their parameters are those of its published code (haeusser/learning_by_association). The
    map from the image to the result is the identity plus ``linear`` times standard normal draws in each of the four
    numbers of its matrix, and moves by ``translation`` pixels times a normal draw each way. What comes from outside the
    image continues it mirrored or from its other side, by an even coin for each image. The blur has 7 x 7 weights of a
    standard deviation of 1.4 pixels (what OpenCV gives where none is asked for) and ``blur`` as its probability.
    """

    linear: float = 0.15
    translation: float = 2.0
    blur: float = 0.5

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` [N, C, H, W], H and W at least 4, changed at random."""
        if images.ndim != 4 or min(images.shape[2:]) < 4:
            raise ValueError(f"images: expected [N, C, H, W] of at least 4 x 4 pixels, got shape {list(images.shape)}")
        count = len(images)
        normal = torch.randn(count, 2, 3, generator=generator, device=generator.device)
        wrapped, blurred = torch.rand(2, count, generator=generator, device=generator.device) < torch.tensor(
            [[0.5], [self.blur]], device=generator.device
        )
        linear = torch.eye(2, device=generator.device) + self.linear * normal[..., :2]
        changed = affine(_float(images), linear, self.translation * normal[..., 2], wrapped)
        changed = torch.where(_per_image(blurred, images), gaussian_blur(changed), changed)
        return _like(changed, images)


def affine(images: Tensor, linear: Tensor, translation: Tensor, wrapped: Tensor) -> Tensor:
    """Each image [N, C, H, W] under its map x -> ``linear`` x + ``translation`` ([N, 2, 2], [N, 2]), bilinear.

    Outside of itself an image continues periodically where ``wrapped`` [N] says so, and mirrored at the outer edge of
    its border pixels elsewhere.
    """
    height, width = images.shape[2:]
    inverse = torch.linalg.inv(linear)
    grid = _grid(inverse, -(inverse @ translation[..., None]).squeeze(2), height, width).to(images.device)
    wrapped = _per_image(wrapped, images)
    # grid_sample cannot wrap: positions are brought into the image, which gets one more pixel on every side for the
    # interpolation across its edge.
    size = torch.tensor([width, height], device=images.device)
    turns = grid / 2 + 0.5  # one image is [0, 1]
    inside = torch.where(wrapped, turns.remainder(1), 1 - (turns.remainder(2) - 1).abs())
    extended = torch.where(wrapped, pad(images, (1, 1, 1, 1), "circular"), pad(images, (1, 1, 1, 1), "replicate"))
    return grid_sample(extended, (2 * inside - 1) * size / (size + 2), mode="bilinear", align_corners=False)


def gaussian_blur(images: Tensor, deviation: float = 1.4, radius: int = 3) -> Tensor:
    """Float images [N, C, H, W] under a Gaussian of ``deviation`` pixels cut off beyond ``radius``, weights of sum 1.

    Outside of itself an image continues mirrored at the centre of its border pixels.
    """
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-(offsets**2) / (2 * deviation**2), 0)
    planes = pad(images, (radius,) * 4, "reflect").flatten(0, 1)[:, None]
    planes = conv2d(conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return planes.view_as(images)


def change_colour(images: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Float RGB images [N, 3, H, W], 0 to 255, with ``hue`` [N] turns added and the HSV saturation times a factor [N].

    The saturation ends at 1; the HSV value stays.
    """
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * hue[:, None, None]
    chroma = torch.minimum(chroma * saturation[:, None, None], value)
    # Each colour loses up to the chroma from the value, by how far the hue is from its own third of the circle.
    distance = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    position = (distance + sixths[:, None]).remainder(6)
    loss = torch.minimum(position, 4 - position).clamp(0, 1)
    return value[:, None] - chroma[:, None] * loss


def _luma(images: Tensor) -> Tensor:
    return (images * torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _rotations(angles: Tensor) -> Tensor:
    """The rotation matrices [N, 2, 2] of ``angles`` [N] in radians."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _grid(linear: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
    """The positions ``linear`` x + ``offset`` of all pixels x as `grid_sample` wants them, [N, H, W, 2] in [-1, 1]."""
    ys, xs = (torch.arange(size, device=linear.device) - (size - 1) / 2 for size in (height, width))
    pixels = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), 2).view(1, -1, 2)
    positions = pixels @ linear.mT + offset[:, None]
    half = torch.tensor([width, height], device=linear.device) / 2
    return (positions / half).view(-1, height, width, 2)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device)[:, None, None, None]


def _float(images: Tensor) -> Tensor:
    return images.to(torch.float32)


def _like(changed: Tensor, images: Tensor) -> Tensor:
    changed = changed.clamp(0, WHITE)
    return (changed if images.is_floating_point() else changed.round()).to(images.dtype)
