"""The paper's networks: their layers, input scaling, initial weights and L2 penalty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.paper.networks import (
    NETWORKS,
    AssociationNetwork,
    MnistNetwork,
    Stl10Network,
    SvhnNetwork,
    l2_penalty,
)
from tests.cases import seeded

pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=seeded(), dtype=torch.uint8)


# Channels in and out of each convolution, and what the embedding layer reads.
MNIST_CONVOLUTIONS = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
SVHN_CONVOLUTIONS = [(3, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
STL10_CONVOLUTIONS = [(3, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128)]


@pytest.mark.parametrize(
    ("make", "shape", "convolutions", "features", "normalised"),
    [
        (MnistNetwork, (3, 1, 28, 28), MNIST_CONVOLUTIONS, 3 * 3 * 128, False),
        (SvhnNetwork, (3, 3, 32, 32), SVHN_CONVOLUTIONS, 4 * 4 * 128, False),
        (Stl10Network, (3, 3, 96, 96), STL10_CONVOLUTIONS, 5 * 5 * 128, True),
    ],
)
def test_network_is_the_papers(
    make: Callable[..., AssociationNetwork],
    shape: tuple[int, ...],
    convolutions: list[tuple[int, int]],
    features: int,
    normalised: bool,
) -> None:
    network = make(10, seeded())
    assert network(random_images(*shape)).shape == (3, 128)
    # Batch normalisation has a shift for each channel in place of the bias, and no learned scale.
    expected = sum(9 * i * o + o for i, o in convolutions) + (features + 1) * 128 + (128 + 1) * 10
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()) == normalised
    assert network.joint_batches != normalised


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("mnist", 1, 16), ("mnist", 1, 8), ("svhn", 1, 28), ("stl10", 3, 40)]
)
def test_other_sizes_and_channels_fit(name: str, channels: int, side: int) -> None:
    network = NETWORKS[name](7, seeded(), channels=channels, side=side)
    embeddings = network(random_images(2, channels, side, side))
    assert embeddings.shape == (2, 128)
    assert network.classifier(embeddings).shape == (2, 7)


@pytest.mark.parametrize(("name", "side"), [("mnist", 7), ("svhn", 7), ("stl10", 17)])
def test_too_small_images_are_refused(name: str, side: int) -> None:
    with pytest.raises(ValueError, match="side: expected at least"):
        NETWORKS[name](10, seeded(), side=side)


def test_network_pools_after_the_activation() -> None:
    """The paper's order, which the network exchanges for speed, gives the same embeddings."""
    network = MnistNetwork(10, seeded())
    images = random_images(4, 1, 28, 28)
    layers = list(network.embedding)
    for i in (3, 8, 13):
        layers[i], layers[i + 1] = layers[i + 1], layers[i]
    in_papers_order = torch.nn.Sequential(*layers)
    assert torch.equal(in_papers_order(images.float() / 255), network(images))


def test_stride_pads_as_tensorflow_does() -> None:
    """For an even side and a stride of 2 TensorFlow pads below and to the right only."""
    network = Stl10Network(10, seeded())
    layers = list(network.embedding)[:5]
    pad, strided = layers[3], layers[4]
    image = torch.zeros(1, 32, 6, 6)
    image[0, 0, 0, 0] = 1.0
    response = strided(pad(image))
    assert response.shape == (1, 64, 3, 3)
    assert torch.equal(response[0, :, 0, 0], strided.weight[:, 0, 0, 0])


def test_svhn_images_are_normalised_one_by_one_by_their_variance() -> None:
    images = random_images(2, 3, 32, 32).float()
    scaled = SvhnNetwork(10, seeded()).scale(images)
    one = images[1, 2]
    expected = (one - one.mean()) / (((one - one.mean()) ** 2).mean() + 1e-5)
    torch.testing.assert_close(scaled[1, 2], expected)


def test_stl10_pixels_are_centred() -> None:
    assert Stl10Network(10, seeded()).scale(torch.tensor([0.0, 128.0, 256.0])).tolist() == [-1.0, 0.0, 1.0]


def test_initial_weights_are_glorot_and_of_the_generator() -> None:
    network, again, other = (MnistNetwork(10, seeded(seed)) for seed in (0, 0, 1))
    weight = network.embedding[16].weight
    bound = (6 / (1152 + 128)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert torch.equal(weight, again.embedding[16].weight)
    assert not torch.equal(weight, other.embedding[16].weight)
    assert network.classifier.bias.abs().max() == 0


def test_l2_penalty_by_hand() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2), torch.nn.Flatten(), torch.nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))  # squares: 30
        module[2].weight.copy_(torch.tensor([[5.0, 6.0]]))  # squares: 61
        module[0].bias.fill_(100.0)
        module[2].bias.fill_(100.0)
    assert l2_penalty(module, 1e-3).item() == pytest.approx(1e-3 * (30 + 61) / 2)


@pytest.mark.parametrize(("make", "coefficient"), [(MnistNetwork, 1e-3), (SvhnNetwork, 1e-4), (Stl10Network, 5e-3)])
def test_network_regularises_its_weights(make: Callable[..., AssociationNetwork], coefficient: float) -> None:
    network = make(10, seeded())
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    embedding = sum(m.weight.square().sum().item() for m in network.embedding if isinstance(m, kinds))
    classifier = network.classifier.weight.square().sum().item()
    assert network.l2_penalty().item() == pytest.approx(coefficient * embedding / 2 + 1e-4 * classifier / 2, rel=1e-5)
