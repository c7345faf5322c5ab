"""Schedules, batches and the training loop of the paper's experiments, and that an interruption changes nothing."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper.augmentation import Stl10Augmentation
from benchmarks.paper.data import DataError, Images
from benchmarks.paper.networks import AssociationNetwork, MnistNetwork, Stl10Network
from benchmarks.paper.sampling import (
    Batches,
    LabelledBatches,
    Stream,
    UnlabelledBatches,
    choose_per_class,
    random_stream,
)
from benchmarks.paper.schedules import LearningRate, Weight
from benchmarks.paper.tensorboard import tensorboard_log
from benchmarks.paper.training import (
    DivergenceError,
    Trained,
    TrainingOptions,
    batch_loss,
    embed,
    predict,
    train,
)
from tests.cases import seeded

pytestmark = pytest.mark.usefixtures("one_thread")


def random_digits(count: int, classes: int = 5) -> Images:
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=seeded(), dtype=torch.uint8)
    return Images(images, torch.arange(count) % classes)


def options(**changes: Any) -> TrainingOptions:
    default = {
        "steps": 4,
        "learning_rate": LearningRate(1e-3),
        "walker": Weight(1.0),
        "visit": Weight(0.5),
        "eval_every": 2,
    }
    return TrainingOptions(**(default | changes))


# --- schedules ------------------------------------------------------------------------------------------------------


def test_constant_weight_ignores_the_delay() -> None:
    assert [Weight(0.7, delay=100).at(step) for step in (0, 50, 1000)] == [0.7] * 3


@pytest.mark.parametrize("ramp", ["linear", "sigmoid"])
@pytest.mark.parametrize(("duration", "delay"), [(1, 500), (100, 3000), (200, 0)])
def test_ramp_is_the_original_codes(ramp: str, duration: int, delay: int) -> None:
    """Its formulas, as ``apply_envelope`` of train.py has them in the version that its README describes."""
    weight = Weight(0.3, ramp, duration, delay)
    final_steps = duration + delay
    for step in range(0, 3 * final_steps + 1, 7):
        shifted = float(step - delay)
        if ramp == "linear":
            expected = 0.3 / duration * shifted
        else:
            expected = 0.3 * (math.tanh(5.0 / final_steps * (shifted - final_steps / 2.0)) + 1.0) / 2.0
        assert weight.at(step) == pytest.approx(min(max(expected, 0.0), 0.3), abs=1e-12)
    assert weight.at(delay + final_steps + 1) == pytest.approx(0.3, rel=0.01)


def test_learning_rate_decays_in_steps_to_its_minimum() -> None:
    rate = LearningRate(1e-3, factor=0.33, every=10, minimum=1e-4)
    expected = [1e-3, 1e-3, 0.33e-3, 0.33**2 * 1e-3, 1e-4, 1e-4]
    assert [rate.at(step) for step in (0, 9, 10, 29, 30, 1000)] == pytest.approx(expected)


def test_schedules_scale_with_the_steps() -> None:
    long = options(
        steps=1000,
        learning_rate=LearningRate(1e-3, 0.33, every=400),
        walker=Weight(1.0, "linear", duration=10, delay=200),
        eval_every=50,
    )
    short = long.scaled(100)
    assert (short.steps, short.eval_every) == (100, 5)
    assert short.learning_rate == LearningRate(1e-3, 0.33, every=40)
    assert short.walker == Weight(1.0, "linear", duration=1, delay=20)
    assert long.scaled(3).eval_every == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Weight(1.0, "cubic"), "unknown ramp 'cubic'; expected one of constant, linear, sigmoid"),
        (lambda: Weight(-1.0), "expected final >= 0"),
        (lambda: options(loss="slow"), "unknown loss 'slow'; expected one of fastassoc, eager"),
        (lambda: options(precision="fp8"), "unknown precision 'fp8'; expected one of float32, bf16"),
    ],
)
def test_wrong_options_say_what_was_expected(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- batches --------------------------------------------------------------------------------------------------------


def test_labelled_batches_are_balanced_draws_from_the_labelled_samples() -> None:
    labels = torch.arange(50) % 5
    digits = Images(torch.arange(50)[:, None, None, None].to(torch.uint8), labels)
    labelled = choose_per_class(labels, 4, seeded())
    assert labelled.shape == (5, 4)
    assert torch.equal(labels[labelled], torch.arange(5)[:, None].expand(5, 4))
    batches = LabelledBatches(digits, labelled, 3, seeded())
    seen = set()
    for _ in range(20):
        batch = next(batches)
        drawn = batch.images.flatten().tolist()
        assert batch.labels.bincount().tolist() == [3] * 5
        assert len(set(drawn)) == 15
        seen |= set(drawn)
    assert seen == set(labelled.flatten().tolist())


def test_classes_may_have_different_and_few_samples() -> None:
    digits = random_digits(10)
    batches = LabelledBatches(digits, [torch.tensor([0, 5]), torch.tensor([1])], 2, seeded())
    assert next(batches).labels.tolist() == [0, 0, 1]


def test_an_unlabelled_epoch_shows_no_image_twice() -> None:
    batches = UnlabelledBatches(torch.arange(25), 10, seeded())
    first, second, next_epoch = next(batches), next(batches), next(batches)
    assert len(torch.cat([first, second]).unique()) == 20
    assert len(next_epoch) == 10


def test_unlabelled_batches_keep_to_the_chosen_images() -> None:
    chosen = torch.tensor([3, 8, 13, 18])
    batches = UnlabelledBatches(torch.arange(25), 2, seeded(), chosen)
    assert {image for _ in range(20) for image in next(batches).tolist()} == set(chosen.tolist())


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="class 1 has 1 training images where 2 are needed"):
        choose_per_class(torch.tensor([0, 0, 1]), 2, seeded())
    with pytest.raises(DataError, match="batches of 4 unlabelled images"):
        UnlabelledBatches(torch.arange(3), 4, seeded())


def test_every_seed_and_purpose_has_its_own_stream() -> None:
    seeds = {random_stream(seed, stream).initial_seed() for seed in range(50) for stream in Stream}
    assert len(seeds) == 50 * len(Stream)
    seed = 2**32 - 1
    assert (
        random_stream(seed, Stream.AUGMENTATION).initial_seed()
        < random_stream(0, Stream.UNLABELLED_AUGMENTATION).initial_seed()
    )


def test_a_new_stream_leaves_the_others_as_they_were() -> None:
    """Results that took an hour were drawn from these."""
    streams = (Stream.SETUP, Stream.LABELLED, Stream.UNLABELLED, Stream.WEIGHTS)
    assert [random_stream(7, stream).initial_seed() for stream in streams] == [35, 36, 37, 38]


def test_augmented_labelled_images_do_not_depend_on_unlabelled_ones() -> None:
    images = torch.randint(0, 256, (10, 3, 18, 18), generator=seeded(), dtype=torch.uint8)
    data = Images(images, torch.arange(10) % 5)
    drawn = []
    for unlabelled in (None, UnlabelledBatches(images, 4, seeded(2))):
        labelled = LabelledBatches(data, choose_per_class(data.labels, 2, seeded()), 2, seeded(1))
        batches = Batches(labelled, unlabelled, "cpu", Stl10Augmentation(), [seeded(3), seeded(4)])
        drawn.append([batches.draw()[0].images for _ in range(3)])
    assert all(torch.equal(alone, beside) for alone, beside in zip(*drawn, strict=True))


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eval_every", "steps"), [(2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])], ids=["divides", "ragged", "beyond the end"]
)
def test_error_is_measured_at_the_start_the_intervals_and_the_end(eval_every: int, steps: list[int]) -> None:
    digits = Images(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    reported: list[dict[str, float]] = []
    labelled = LabelledBatches(digits, torch.tensor([[0, 1], [2, 3]]), 1, seeded())
    network = MnistNetwork(2, seeded())
    curve = train(network, Batches(labelled, None), digits, options(eval_every=eval_every), reported.append).curve
    assert curve.steps == steps
    assert curve.test_error_percent == [50.0] * len(steps)  # all images are equal, half of them of each class
    assert [set(numbers) for numbers in reported] == [{"classification", "test error %"}] * 4


def test_total_loss_is_the_sum_of_its_parts() -> None:
    """Equation 5, with the weights of the step, and the same from the eager loss."""
    network = MnistNetwork(5, seeded(), side=8)
    labelled, unlabelled = random_digits(10), random_digits(20).images
    ramped = {"walker": Weight(0.8, "linear", 10), "visit": Weight(0.5, "sigmoid", 10)}
    loss, parts = batch_loss(network, labelled, unlabelled, options(**ramped), step=6)
    walker, visit = ramped["walker"].at(6), ramped["visit"].at(6)
    assert 0 < walker < 0.8
    expected = parts["classification"] + walker * parts["walker"] + visit * parts["visit"]
    assert loss.item() == pytest.approx(expected + network.l2_penalty().item(), rel=1e-5)
    eager, eager_parts = batch_loss(network, labelled, unlabelled, options(**ramped, loss="eager"), step=6)
    assert set(eager_parts) == {"classification", "association"}
    assert eager.item() == pytest.approx(loss.item(), rel=1e-5)


def test_bf16_rounds_embeddings_and_leaves_weights_and_losses_in_float32() -> None:
    network = MnistNetwork(5, seeded(), side=8)
    labelled, unlabelled = random_digits(10), random_digits(20).images
    exact, rounded = (
        batch_loss(network, labelled, unlabelled, options(precision=precision), 0)[0]
        for precision in ("float32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=8 * 2**-8)  # eight layers, each rounding to 8 bits
    rounded.backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in network.parameters())


def test_batch_normalisation_sees_each_kind_of_images_alone() -> None:
    network = Stl10Network(5, seeded(), side=18)
    labelled = Images(torch.randint(0, 256, (10, 3, 18, 18), generator=seeded()), torch.arange(10) % 5)
    dark, bright = torch.zeros(4, 3, 18, 18), torch.full((4, 3, 18, 18), 255.0)
    first, second = (batch_loss(network, labelled, other, options(), 0)[1] for other in (dark, bright))
    assert first["classification"] == second["classification"]


def test_prediction_uses_the_moving_averages_and_leaves_the_mode() -> None:
    network = Stl10Network(5, seeded(), side=18)
    images = torch.randint(0, 256, (6, 3, 18, 18), generator=seeded())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    together, alone = embed(network, images), embed(network, images[:1])
    torch.testing.assert_close(together[:1], alone)
    assert network.training
    assert predict(network, images).shape == (6,)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_divergence_is_an_error() -> None:
    digits = random_digits(10)
    batches = Batches(LabelledBatches(digits, choose_per_class(digits.labels, 2, seeded()), 2, seeded()), None)
    with pytest.raises(DivergenceError, match="try a smaller learning rate"):
        train(
            MnistNetwork(5, seeded(), side=8), batches, digits, options(learning_rate=LearningRate(1e30)), no_progress
        )


def no_progress(numbers: dict[str, float]) -> None:
    pass


class InterruptionError(Exception):
    """What a test throws into a training, in place of a power cut."""


def mnist_training(checkpoint: Path | None, progress: Any) -> tuple[AssociationNetwork, Trained]:
    digits = random_digits(60)
    network = MnistNetwork(5, seeded(), side=8)
    labelled = LabelledBatches(digits, choose_per_class(digits.labels, 6, seeded()), 2, seeded(1))
    batches = Batches(labelled, UnlabelledBatches(digits.images, 25, seeded(2)))
    schedule = options(
        steps=9,
        eval_every=2,
        learning_rate=LearningRate(1e-3, 0.5, every=3),
        walker=Weight(1.0, "linear", duration=6),
    )
    return network, train(network, batches, digits, schedule, progress, checkpoint=checkpoint)


def stl10_training(checkpoint: Path | None, progress: Any) -> tuple[AssociationNetwork, Trained]:
    """With batch normalisation and augmentation, which have a state of their own."""
    images = torch.randint(0, 256, (20, 3, 18, 18), generator=seeded(), dtype=torch.uint8)
    data = Images(images, torch.arange(20) % 5)
    network = Stl10Network(5, seeded(), side=18)
    labelled = LabelledBatches(data, choose_per_class(data.labels, 4, seeded()), 2, seeded(1))
    unlabelled = UnlabelledBatches(images, 10, seeded(2))
    batches = Batches(labelled, unlabelled, "cpu", Stl10Augmentation(), [seeded(3), seeded(4)])
    return network, train(network, batches, data, options(steps=5), progress, checkpoint=checkpoint)


@pytest.mark.parametrize("training", [mnist_training, stl10_training])
@pytest.mark.parametrize("interrupted_at", [1, 3, 4])
def test_an_interruption_changes_nothing(training: Any, interrupted_at: int, tmp_path: Path) -> None:
    """To the bit: before the first checkpoint, between two of them, and right after one."""
    whole, uninterrupted = training(None, no_progress)
    checkpoint = tmp_path / "checkpoint.pt"
    calls = 0

    def interrupt(numbers: dict[str, float]) -> None:
        nonlocal calls
        calls += 1
        if calls == interrupted_at:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        training(checkpoint, interrupt)
    steps: list[dict[str, float]] = []
    resumed, continued = training(checkpoint, steps.append)
    assert continued.curve == uninterrupted.curve
    assert len(steps) == uninterrupted.curve.steps[-1] - interrupted_at // 2 * 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not list(tmp_path.glob("*.unfinished"))


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def test_scalars_go_to_tensorboard_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *error: object) -> None:
            written.append(("closed", 0.0, 0))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with tensorboard_log(tmp_path) as log:
        assert log is not None
        log(3, {"walker": 0.5, "test error %": 4.0})
    assert written == [("walker", 0.5, 3), ("test error percent", 4.0, 3), ("closed", 0.0, 0)]


def test_no_log_where_tensorboard_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tensorboard_log(tmp_path) as log:
        assert log is None
    assert not list(tmp_path.iterdir())
