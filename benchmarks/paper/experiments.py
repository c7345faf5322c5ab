"""The experiments of the paper as lists of trainings: Tables 1 to 5, STL-10, Figures 2 to 4; learning curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from benchmarks.paper import plans
from benchmarks.paper.data import DataError
from benchmarks.paper.plans import Settings
from benchmarks.paper.reported import (
    COVERED_REMARK,
    FIGURE2_REMARK,
    FIGURE3,
    FIGURE3_REMARK,
    FULL_MNIST_REMARK,
    MNIST,
    MNIST_OTHERS,
    MNIST_REMARK,
    NO_SUCH_NUMBER,
    OTHER_PAIR_REMARK,
    OTHERS_REMARK,
    SECTION_4_6_REMARK,
    STL10,
    STL10_REMARK,
    SVHN,
    SVHN_OTHERS,
    SVHN_TO_MNIST,
    SVHN_TO_MNIST_OTHERS,
    SVHN_TO_MNIST_REMARK,
    SVHN_TO_MNIST_ROWS,
    SVHN_TO_MNIST_START_REMARK,
    TABLE3_REMARK,
    VISIT_WEIGHT,
    VISIT_WEIGHT_OTHERS,
    VISIT_WEIGHT_REMARK,
)
from benchmarks.paper.runs import RunConfig

LABELS_ONLY, ASSOCIATION = "labels only", "with association"
FASTASSOC, EAGER = "fastassoc", "eager PyTorch"
FIGURE2_PER_CLASS = 2
LEAST, FINAL = "least during training", "at the end"
NAMES = {"mnist": "MNIST", "svhn": "SVHN", "usps": "USPS", "digits": "scikit-learn digits"}
STL10_IS_MISSING = "STL-10 is not embedded; give the folder with its published binary files with --data DIR"


@dataclass(frozen=True)
class Cell:
    """One number of a table: the group and series it stands in, its training without the seed, what the paper has.

    ``least``: the number is the least test error throughout the training, not that at the end.
    """

    group: str
    series: str
    config: RunConfig
    paper: str = NO_SUCH_NUMBER
    least: bool = False


@dataclass(frozen=True)
class Other:
    """The error of another ``method`` in the paper, in the same group as those that are measured."""

    group: str
    method: str
    paper: str


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, how its groups and series are called, and what has to be said beside it.

    ``comparable``: whether the task is the paper's, so that its numbers belong into the picture. ``others``: what the
    paper compares with. ``linear``: whether the picture is about differences of errors, not about their ratios.
    """

    name: str
    title: str
    group_name: str
    series_name: str
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...]
    comparable: bool = False
    others: tuple[Other, ...] = ()
    linear: bool = False

    def configs(self, settings: Settings) -> list[RunConfig]:
        """Every training of the experiment, for each of the seeds."""
        return [with_seed(cell.config, seed) for seed in settings.seeds for cell in self.cells]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """``config`` and the runs it starts from with ``seed``."""
    return replace(config, seed=seed, start=config.start and with_seed(config.start, seed))


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """``config`` and the runs it starts from in ``steps`` steps."""
    start = config.start and with_steps(config.start, steps)
    return replace(config, training=config.training.scaled(steps), start=start)


def table1(settings: Settings) -> Experiment:
    """MNIST with 100, 1000 and all labels, each with and without association."""
    base = plans.mnist(settings)
    counts = (10, None) if settings.quick else (10, 100, None)
    cells = [
        Cell(
            _labels(count),
            series,
            replace(base, labels_per_class=count, unlabelled=unlabelled),
            NO_SUCH_NUMBER if series == LABELS_ONLY else MNIST[_labels(count)],
        )
        for count in counts
        for series, unlabelled in ((LABELS_ONLY, 0), (ASSOCIATION, None))
    ]
    return Experiment(
        "table1",
        f"Table 1: {_mnist_name(settings)}, test error by the number of labelled digits",
        "labelled digits",
        "training",
        tuple(cells),
        (MNIST_REMARK, OTHERS_REMARK) if settings.data else (MNIST_REMARK, FULL_MNIST_REMARK, OTHERS_REMARK),
        comparable=settings.data is not None,
        others=_others(MNIST_OTHERS),
    )


def table2(settings: Settings) -> Experiment:
    """SVHN with 500, 1,000 and 2,000 labels, with association: the last column of Table 3 beside other methods."""
    if settings.data is None:
        raise DataError("SVHN is not embedded; give the folder with its published files with --data DIR")
    base = plans.svhn(settings)
    counts = (2,) if settings.quick else (50, 100, 200)
    cells = [
        Cell(_labels(count), ASSOCIATION, replace(base, labels_per_class=count), SVHN[_labels(count)]["all"])
        for count in counts
    ]
    return Experiment(
        "table2",
        "Table 2: SVHN, test error by the number of labelled images",
        "labelled images",
        "training",
        tuple(cells),
        (OTHERS_REMARK,),
        comparable=True,
        others=_others(SVHN_OTHERS),
    )


def table3(settings: Settings) -> Experiment:
    """Error against the number of labelled and of unlabelled samples: SVHN, or embedded MNIST-5k."""
    if settings.data is None:
        base, name, what = plans.mnist(settings), "MNIST-5k", "digits"
        labelled: tuple[int | None, ...] = (2, 10, 100)
        unlabelled: tuple[int | None, ...] = (0, 1000, None)
    else:  # the grid that the first author names in issue 6 of the original repository
        base, name, what = plans.svhn(settings), "SVHN", "images"
        labelled, unlabelled = (2, 10, 50, 100, 200, None), (0, 1000, 20_000, None)
    if settings.quick:
        labelled, unlabelled = (2, None), (0, 40, None)
    cells = [
        Cell(
            _labels(count),
            _count(others),
            replace(base, labels_per_class=count, unlabelled=others),
            NO_SUCH_NUMBER if settings.data is None else SVHN[_labels(count)].get(_count(others), NO_SUCH_NUMBER),
        )
        for count in labelled
        for others in unlabelled
    ]
    return Experiment(
        "table3",
        f"Table 3: {name}, test error by the number of labelled and unlabelled {what}",
        f"labelled {what}",
        f"unlabelled {what}",
        tuple(cells),
        (TABLE3_REMARK,) if settings.data is None else (),
        comparable=settings.data is not None,
    )


def table4(settings: Settings) -> Experiment:
    """The weight of the visit loss, with 1,000 labels: the least error during training (the paper's) and the last."""
    base = replace(plans.mnist(settings), labels_per_class=100)
    weights = (0.0, 1.0) if settings.quick else (0.0, 0.25, 0.5, 1.0)
    cells = []
    for weight in weights:
        config, name = _with_visit(base, weight), f"{weight:g}"
        cells += [Cell(name, LEAST, config, VISIT_WEIGHT[name], least=True), Cell(name, FINAL, config)]
    tests = base.training.steps // base.training.eval_every + 1  # the first is before training
    return Experiment(
        "table4",
        f"Table 4: {_mnist_name(settings)}, 1,000 labels, test error by the weight of the visit loss",
        "visit weight",
        "test error",
        tuple(cells),
        (VISIT_WEIGHT_REMARK.format(tests=tests), OTHERS_REMARK),
        comparable=settings.data is not None,
        others=_others(VISIT_WEIGHT_OTHERS),
    )


def table5(settings: Settings) -> Experiment:
    """Domain adaptation: labels of the source only, images of the target only."""
    names = plans.domain_pair(settings)
    pair = " to ".join(NAMES[name] for name in names) + ("-5k" if settings.data is None else "")
    comparable = names == ("svhn", "mnist")
    cells = [
        Cell(group, pair, config, SVHN_TO_MNIST[group] if comparable else NO_SUCH_NUMBER)
        for group, config in plans.domain_adaptation(settings).items()
    ]
    remarks = [COVERED_REMARK, OTHERS_REMARK]
    if comparable:
        remarks += [SVHN_TO_MNIST_REMARK, SVHN_TO_MNIST_START_REMARK]
    else:
        remarks += [OTHER_PAIR_REMARK, f"both data sets are brought to {plans.DIGITS_SIDE}x{plans.DIGITS_SIDE} pixels"]
        remarks += [SECTION_4_6_REMARK] if settings.data else []
    return Experiment(
        "table5",
        f"Table 5: {pair}, error on the target's test set",
        "training",
        "source to target",
        tuple(cells),
        tuple(remarks),
        comparable=comparable,
        others=_others(SVHN_TO_MNIST_OTHERS if comparable else SVHN_TO_MNIST_ROWS),
        linear=True,
    )


def stl10(settings: Settings) -> Experiment:
    """Section 4.2: STL-10 with 100 labelled images per class."""
    if settings.data is None:
        raise DataError(STL10_IS_MISSING)
    base = plans.stl10(settings)
    cells = [
        Cell(f"{base.labels_per_class} per class", series, config, paper)
        for series, config, paper in (
            (LABELS_ONLY, replace(base, unlabelled=0), NO_SUCH_NUMBER),
            (ASSOCIATION, base, STL10),
        )
    ]
    return Experiment(
        "stl10",
        "Section 4.2: STL-10, test error",
        "labelled images",
        "training",
        tuple(cells),
        (STL10_REMARK,),
    )


def curves(settings: Settings) -> Experiment:
    """The same trainings with the eager loss and with fastassoc."""
    base = plans.mnist(settings)
    cells = [
        Cell("100 labels", series, replace(base, training=replace(base.training, loss=loss)), NO_SUCH_NUMBER)
        for series, loss in ((EAGER, "eager"), (FASTASSOC, "fastassoc"))
    ]
    return Experiment(
        "curves",
        f"Learning curves: {_mnist_name(settings)}, eager loss and fastassoc, the same seeds",
        "labelled digits",
        "loss code",
        tuple(cells),
        ("-: the paper has no such comparison",),
    )


def figure2(settings: Settings) -> Experiment:
    """Associations before and after training, with two labels of each class."""
    config = replace(plans.mnist(settings), labels_per_class=FIGURE2_PER_CLASS)
    return Experiment(
        "figure2",
        f"Figure 2: associations before and after training, {_mnist_name(settings)}",
        "labelled digits",
        "training",
        (Cell(_labels(FIGURE2_PER_CLASS), ASSOCIATION, config),),
        (FIGURE2_REMARK,),
    )


def figure3(settings: Settings) -> Experiment:
    """Confusion matrix, labelled and misclassified digits, with 100 labels."""
    return _picture_of_mnist(settings, "figure3", "Figure 3: what is confused")


def figure4(settings: Settings) -> Experiment:
    """Nearest neighbours: STL-10, MNIST with ``--source mnist``, or embedded MNIST-5k."""
    if settings.data is None and settings.source == "stl10":
        raise DataError(STL10_IS_MISSING)
    if settings.data is None or settings.source == "mnist":
        return _picture_of_mnist(settings, "figure4", "Figure 4: nearest neighbours by cosine similarity")
    base = plans.stl10(settings)
    return Experiment(
        "figure4",
        "Figure 4: nearest neighbours by cosine similarity, STL-10",
        "labelled images",
        "training",
        (Cell(f"{base.labels_per_class} per class", ASSOCIATION, base, STL10),),
        (STL10_REMARK,),
    )


EXPERIMENTS: dict[str, Callable[[Settings], Experiment]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "stl10": stl10,
    "curves": curves,
}
EMBEDDED = tuple(name for name in EXPERIMENTS if name not in ("table2", "stl10"))


def _picture_of_mnist(settings: Settings, name: str, title: str) -> Experiment:
    cell = Cell("100", ASSOCIATION, plans.mnist(settings), FIGURE3 if name == "figure3" else NO_SUCH_NUMBER)
    remarks = (FIGURE3_REMARK, MNIST_REMARK) if name == "figure3" else (MNIST_REMARK,)
    return Experiment(name, f"{title}, {_mnist_name(settings)}", "labelled digits", "training", (cell,), remarks)


def _others(errors: Mapping[str, Mapping[str, str]]) -> tuple[Other, ...]:
    return tuple(Other(group, method, error) for method, row in errors.items() for group, error in row.items())


def _with_visit(config: RunConfig, weight: float) -> RunConfig:
    visit = replace(config.training.visit, final=weight)
    return replace(config, training=replace(config.training, visit=visit))


def _mnist_name(settings: Settings) -> str:
    return "MNIST-5k" if settings.data is None else "MNIST"


def _labels(per_class: int | None) -> str:
    return _count(None if per_class is None else 10 * per_class)


def _count(count: int | None) -> str:
    return "all" if count is None else f"{count:,}"
