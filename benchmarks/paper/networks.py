"""The paper's networks for MNIST (section 4), STL-10 (4.2) and SVHN (4.3), as its original code builds them.

C(k,3) is a convolution of k channels and 3x3 weights, padded to keep the size, P(s) a maximum over s x s every second
pixel. Every network ends in an embedding of 128 numbers; a linear classifier stands on it. Weights are Glorot-uniform
draws, biases zero, and the L2 penalty is half the squared weights times a coefficient, the defaults of TensorFlow slim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

EMBEDDING_SIZE = 128
CLASSIFIER_L2 = 1e-4  # of every network
MNIST_L2, SVHN_L2, STL10_L2 = 1e-3, 1e-4, 5e-3
VARIANCE_FLOOR = 1e-5  # of the SVHN network's input


class AssociationNetwork(nn.Module):
    """An embedding, its linear classifier, and how pixels and weights are scaled and regularised.

    ``joint_batches``: whether labelled and unlabelled images may pass through together, which batch normalisation
    forbids because each kind is normalised on its own.
    """

    joint_batches = True

    def __init__(self, embedding: nn.Sequential, classes: int, l2: float, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = embedding
        self.classifier = nn.Linear(EMBEDDING_SIZE, classes)
        self._l2 = l2
        for layer in _weighted_layers(self):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        # A third faster on a CPU than the default layout. PyTorch's annotations lack the signature.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def scale(self, images: Tensor) -> Tensor:
        """Pixels 0 to 255 (float) as the first layer takes them: here 0 to 1."""
        return images / 255

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [N, 128] of ``images`` [N, C, H, W] with values 0 to 255."""
        embeddings: Tensor = self.embedding(self.scale(images.float()))
        return embeddings

    def l2_penalty(self) -> Tensor:
        """Half the squared weights of each layer times its coefficient; biases go free."""
        return l2_penalty(self.embedding, self._l2) + l2_penalty(self.classifier, CLASSIFIER_L2)


class MnistNetwork(AssociationNetwork):
    """C(32,3)-C(32,3)-P(2)-C(64,3)-C(64,3)-P(2)-C(128,3)-C(128,3)-P(2)-FC(128), each C and FC with ELU."""

    def __init__(self, classes: int, generator: torch.Generator, channels: int = 1, side: int = 28) -> None:
        embedding = nn.Sequential(
            *_block(channels, 32, 32),  # [N, 32, 14, 14]
            *_block(32, 64, 64),  # [N, 64, 7, 7]
            *_block(64, 128, 128),  # [N, 128, 3, 3]
            *_head(128 * (side // 8) ** 2),
        )
        super().__init__(embedding, classes, MNIST_L2, generator)


class SvhnNetwork(AssociationNetwork):
    """The MNIST network with three convolutions in each block in place of two, on images normalised one by one."""

    def __init__(self, classes: int, generator: torch.Generator, channels: int = 3, side: int = 32) -> None:
        embedding = nn.Sequential(
            *_block(channels, 32, 32, 32),  # [N, 32, 16, 16]
            *_block(32, 64, 64, 64),  # [N, 64, 8, 8]
            *_block(64, 128, 128, 128),  # [N, 128, 4, 4]
            *_head(128 * (side // 8) ** 2),
        )
        super().__init__(embedding, classes, SVHN_L2, generator)

    def scale(self, images: Tensor) -> Tensor:
        """Each channel of each image less its mean, over its variance (not its deviation: so the original code)."""
        variance, mean = torch.var_mean(images, dim=(2, 3), correction=0, keepdim=True)
        return (images - mean) / (variance + VARIANCE_FLOOR)


class Stl10Network(AssociationNetwork):
    """C(32,3)-C(64,3)/2-P(3)-C(64,3)-C(128,3)-P(2)-C(128,3)-C(256,3)-P(2)-C(128,3)-FC(128).

    Each C is batch-normalised, without a learned scale, and followed by ELU; /2 takes every second pixel. The embedding
    is linear.
    """

    joint_batches = False

    def __init__(self, classes: int, generator: torch.Generator, channels: int = 3, side: int = 96) -> None:
        final_side = ((side // 2 - 3) // 2 + 1) // 4
        if final_side < 1:
            raise ValueError(f"side: expected at least 18, got {side}")
        embedding = nn.Sequential(
            *_normalised(channels, 32, nn.ELU()),  # [N, 32, 96, 96]
            nn.ZeroPad2d((0, 1, 0, 1)),  # as TensorFlow pads an even side for a stride of 2
            *_normalised(32, 64, nn.MaxPool2d(3, 2), nn.ELU(), stride=2),  # [N, 64, 23, 23]
            *_normalised(64, 64, nn.ELU()),
            *_normalised(64, 128, nn.MaxPool2d(2), nn.ELU()),  # [N, 128, 11, 11]
            *_normalised(128, 128, nn.ELU()),
            *_normalised(128, 256, nn.MaxPool2d(2), nn.ELU()),  # [N, 256, 5, 5]
            *_normalised(256, 128, nn.ELU()),
            nn.Flatten(),
            nn.Linear(128 * final_side**2, EMBEDDING_SIZE),
        )
        super().__init__(embedding, classes, STL10_L2, generator)

    def scale(self, images: Tensor) -> Tensor:
        """Pixels from -1 to 1."""
        return (images - 128) / 128


NETWORKS: dict[str, Callable[..., AssociationNetwork]] = {
    "mnist": MnistNetwork,
    "svhn": SvhnNetwork,
    "stl10": Stl10Network,
}


def l2_penalty(module: nn.Module, coefficient: float) -> Tensor:
    """``coefficient * sum(w^2) / 2`` over the convolution and linear weights in ``module``, as a 0-d tensor."""
    squares = [layer.weight.square().sum() for layer in _weighted_layers(module)]
    return coefficient / 2 * torch.stack(squares).sum()


def _weighted_layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _block(*channels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels_in, channels_out in pairwise(channels):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ELU()]
    # The last ELU stands after the pooling: it is monotone, so the result is the same from a quarter of the values.
    return [*layers[:-1], nn.MaxPool2d(2), layers[-1]]


def _head(features: int) -> list[nn.Module]:
    if features == 0:
        raise ValueError("side: expected at least 8 pixels, which three poolings reduce to one")
    return [nn.Flatten(), nn.Linear(features, EMBEDDING_SIZE), nn.ELU()]


def _normalised(channels_in: int, channels_out: int, *after: nn.Module, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1 if stride == 1 else 0, bias=False)
    normalisation = nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.01)  # the original's decay of 0.99
    normalisation.weight.requires_grad_(False)
    return [convolution, normalisation, *after]
